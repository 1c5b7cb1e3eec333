"""Which process of a distributed training watches, and whether the others hold the same model."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections import Counter
from typing import Any

from torch import distributed, nn

__all__ = ["Replicas", "why_another_rank_watches", "why_only_a_stage"]

_logger = logging.getLogger("sparsitywatch")
_calls: Counter[str] = Counter()  # of Replicas by place, on this rank


def why_another_rank_watches() -> str:
    """Why this process leaves the watch to rank 0; empty if it is rank 0, or alone.

    Before ``init_process_group`` the environment tells, as torchrun and Lightning set it.
    """
    if distributed.is_available() and distributed.is_initialized():
        rank = distributed.get_rank()
    else:
        rank = _rank_by_environment()
    return "rank 0 watches; replicas hold the same weights" if rank else ""


def _rank_by_environment() -> int:
    """Not 0 for any process but the first; 0 also where the environment does not tell."""
    if _number("WORLD_SIZE") <= 1:
        return 0
    if "RANK" in os.environ:
        return _number("RANK")
    return _number("LOCAL_RANK") or _number("NODE_RANK")


def _number(variable: str) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else 0


def why_only_a_stage(model: nn.Module) -> str:
    """Why ``model`` is a stage of a pipeline of torch.distributed; empty if it is none."""
    stages = sys.modules.get("torch.distributed.pipelining.stage")
    if stages is None:
        return ""
    import gc

    kind: Any = stages._PipelineStageBase
    for thing in gc.get_objects():
        if issubclass(type(thing), kind) and thing.num_stages > 1:
            inside = thing.submod.modules()
            if any(module is model for module in inside):
                return (
                    f"it is stage {thing.stage_index} of {thing.num_stages} of a pipeline, which "
                    "would be reported as the model. Watch the checkpoints instead: "
                    "`sparsitywatch replay <folder> --follow`."
                )
    return ""


class Replicas:
    """Whether the ranks that attach to one place hold models of the same shapes.

    Each rank leaves a description at the store of the default process group and reads what is
    there of the others, without waiting: no rank has to call, and none is waited for.

    Args:
        model: of this rank.
        place: what the calls of all ranks have in common, such as the log directory.
    """

    def __init__(self, model: nn.Module, place: str) -> None:
        _calls[place] += 1
        self._prefix = f"sparsitywatch/{_calls[place]}/{place}"
        shapes = sorted(f"{name} {tuple(p.shape)}" for name, p in model.named_parameters())
        self._own = hashlib.sha256("\n".join(shapes).encode()).hexdigest()[:16]
        self._unknown: set[int] = set()
        self._store: Any = None
        if distributed.is_available() and distributed.is_initialized():
            self._store = distributed.distributed_c10d._get_default_store()
            self._unknown = {*range(distributed.get_world_size())} - {distributed.get_rank()}
            self._store.set(f"{self._prefix}/{distributed.get_rank()}", self._own)

    def why_different(self) -> str:
        """Which rank holds another model than this one, as far as is known; empty if none."""
        try:
            for rank in sorted(self._unknown):
                key = f"{self._prefix}/{rank}"
                if not self._store.check([key]):
                    continue
                self._unknown.discard(rank)
                if self._store.get(key).decode() != self._own:
                    return (
                        f"rank {rank} holds parameters of other names or shapes than this one, so "
                        "that none of them holds the whole model (a stage of a pipeline, or a "
                        "shard). Watch the checkpoints instead: `sparsitywatch replay <folder> "
                        "--follow`. If each rank trains a model of its own, attach on one rank "
                        "only, or give each a `logdir` of its own."
                    )
        except RuntimeError as error:  # the process with the store has ended
            _logger.info("sparsitywatch: cannot ask which models other ranks hold: %s", error)
            self._unknown.clear()
        return ""
