"""Which ranks of a distributed training watch: all of them together, or rank 0 alone."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import logging
import os
import sys
import time
from collections import Counter
from typing import Any

from torch import distributed, nn

from sparsitywatch.errors import ScopeError
from sparsitywatch.weights.scope import is_sharded, named_parameters
from sparsitywatch.weights.shards import Ranks

__all__ = ["Companions", "join", "why_another_rank_watches", "why_only_a_stage"]

_logger = logging.getLogger("sparsitywatch")
_calls: Counter[str] = Counter()  # of join by place, on this rank


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


#: Seconds that a rank waits at the attach for others whose models are whole: rank 0 can do alone.
PATIENCE_S = 10.0
#: For others without whom there is no whole model; and for their part in what is done together.
_LONG_PATIENCE_S = 300.0
_POLL_S = 0.01
_TOGETHER, _ALONE = "together", "alone"


class Companions:
    """The ranks that watch together, as one of them sees it.

    Args:
        store: of the default process group.
        prefix: of what they leave there.
    """

    def __init__(self, store: Any, prefix: str) -> None:
        wait = dt.timedelta(seconds=_LONG_PATIENCE_S)
        self.front, self.behind = (
            # CPU tensors, whatever the training sends by; a thread each, so that neither waits
            Ranks(distributed.new_group(backend="gloo", timeout=wait))
            for _ in ("in the training's thread", "behind it")
        )
        self._store, self._key = store, f"{prefix}/left"

    def leave(self, why: str) -> None:
        """Say that this rank takes part in nothing any more; others see it before they wait."""
        with contextlib.suppress(RuntimeError):  # the process with the store has ended
            self._store.compare_set(self._key, "", f"rank {self.front.rank}: {why}")

    def gone(self) -> str:
        """Who takes part no more, and why; empty if nobody left."""
        try:
            left = self._store.check([self._key])
            return self._store.get(self._key).decode() if left else ""
        except RuntimeError as error:
            return f"the process with the ranks' store has ended ({error})"


class Latecomers:
    """Ranks that attach after this one has begun alone: they should hold the same model.

    Args:
        store: of the default process group.
        prefix: of what they leave there.
        own: of this rank's model.
        unknown: ranks that have not come yet.
    """

    def __init__(self, store: Any, prefix: str, own: str, unknown: set[int]) -> None:
        self._store, self._prefix, self._own, self._unknown = store, prefix, own, unknown

    def why_different(self) -> str:
        """Which rank holds another model than this one, as far as is known; empty if none."""
        try:
            for rank in sorted(self._unknown):
                if self._store.check([f"{self._prefix}/{rank}"]):
                    self._unknown.discard(rank)
                    if self._store.get(f"{self._prefix}/{rank}").decode() != self._own:
                        return _other_model(rank)
        except RuntimeError as error:  # the process with the store has ended
            _logger.info("sparsitywatch: cannot ask which models other ranks hold: %s", error)
            self._unknown.clear()
        return ""


def join(model: nn.Module, place: str) -> Companions | Latecomers | None:
    """The ranks that attach at this place, once all of them have come.

    Where others do not come and this rank holds the whole model, rank 0 watches alone.

    Args:
        model: of this rank.
        place: what the calls of all ranks have in common, such as the log directory.

    Returns:
        Who watches together; or, where this process watches alone, who may still come. None
        without other ranks, unless the model is sharded all the same, over one.

    Raises:
        ScopeError: the ranks hold different models, or parts of one and some have not come.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    rank, size = distributed.get_rank(), distributed.get_world_size()
    parameters = dict(named_parameters(model))
    is_part = any(map(is_sharded, parameters.values()))
    if size == 1 and not is_part:
        return None
    _calls[place] += 1
    store: Any = distributed.distributed_c10d._get_default_store()
    prefix = f"sparsitywatch/{_calls[place]}/{place}"
    shapes = sorted(f"{name} {tuple(p.shape)}" for name, p in parameters.items())
    own = hashlib.sha256("\n".join(shapes).encode()).hexdigest()[:16]
    store.set(f"{prefix}/{rank}", own)
    outcome = _met(store, prefix, rank, size, _LONG_PATIENCE_S if is_part else PATIENCE_S)
    if outcome == _TOGETHER:
        return Companions(store, prefix)
    if outcome != _ALONE:
        raise ScopeError(f"Expected a model that this process holds all of, but {outcome}")
    if is_part:
        raise ScopeError(
            "Expected `sw.watch` on every rank, since each holds a part of the model, but some "
            f"have not called it within {_LONG_PATIENCE_S:.0f} s (with logdir={place!r})."
        )
    if rank == 0:
        _logger.warning(
            "sparsitywatch: other ranks have not called `sw.watch` within %.0f s, so rank 0 "
            "watches alone. Call it on every rank to share the evaluation, and to compare "
            "the replicas.",
            PATIENCE_S,
        )
    return Latecomers(store, prefix, own, set(range(size)) - {rank})


def _met(store: Any, prefix: str, rank: int, size: int, patience_s: float) -> str:
    """What becomes of the ranks' meeting; one of them decides, once, for all."""
    key, ends = f"{prefix}/outcome", time.monotonic() + patience_s
    others = [f"{prefix}/{other}" for other in range(size)]
    while True:
        if rank == 0 and store.check(others):
            marks = [store.get(other).decode() for other in others]
            odd = next((r for r, mark in enumerate(marks) if mark != marks[0]), 0)
            return str(store.compare_set(key, "", _other_model(odd) if odd else _TOGETHER).decode())
        if store.check([key]):
            return str(store.get(key).decode())
        if time.monotonic() > ends:
            return str(store.compare_set(key, "", _ALONE).decode())
        time.sleep(_POLL_S)


def _other_model(rank: int) -> str:
    return (
        f"rank {rank} holds parameters of other names or shapes than rank 0, so that none of them "
        "holds the whole model (a stage of a pipeline, or a shard). Watch the checkpoints instead: "
        "`sparsitywatch replay <folder> --follow`. If each rank trains a model of its own, attach "
        "on one rank only, or give each a `logdir` of its own."
    )
