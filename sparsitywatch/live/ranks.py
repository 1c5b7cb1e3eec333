"""The ranks of a distributed training: which of them watch, and how they evaluate together."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import distributed, nn

from sparsitywatch.errors import ProxyError, ScopeError
from sparsitywatch.pruning.proxy import Drawn, Part, Proxy, sizes_of
from sparsitywatch.shown import shown_name
from sparsitywatch.weights.scope import named_parameters
from sparsitywatch.weights.sharded import ForwardOrder, is_sharded
from sparsitywatch.weights.shards import Ranks, is_data_parallel

__all__ = ["Companions", "SharedProxy", "join", "why_another_rank_watches", "why_only_a_stage"]

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


# ------------------------------------------------------------------ evaluating together


class SharedProxy(Proxy):
    """A proxy whose batches several ranks evaluate between them, in step; each has all values.

    Where all ranks have the same batches, each evaluates some of them, so that an evaluation on R
    ranks takes about 1/R of the time. Where each has batches of its own, all of them count, by
    rank. Every rank runs as many forwards as any other, since a forward may communicate: who has
    no batch left runs one again.

    Args:
        proxy: of this rank.
        ranks: all of them make one.
        model: that will be evaluated. Where a layer of it is split over ranks each runs all
            batches, and they have to be the same.

    Raises:
        ProxyError: the ranks have different batches where they must not, or proxies of different
            kinds.
    """

    ranks: Ranks

    def __init__(self, proxy: Proxy, ranks: Ranks, model: nn.Module) -> None:
        vars(self).update(vars(proxy))
        self.ranks, self._is_data_parallel = ranks, is_data_parallel(model)
        self._order = ForwardOrder(model)
        self._plan()

    def _plan(self) -> None:
        """Who evaluates which batches; all ranks are asked."""
        own = (
            super()._identity(),
            self.name,
            self.higher_is_better,
            [*map(sizes_of, self._batches)],
        )
        every = self.ranks.all_of(own)
        if any(other[1:3] != own[1:3] for other in every):
            raise ProxyError(
                "Expected a proxy of the same value on every rank, got "
                f"{', '.join(sorted({shown_name(name) for _, name, *_ in every}))}."
            )
        sizes = [of_rank for *_, of_rank in every]
        self._is_same = (
            len({(mark, len(of)) for (mark, *_), of in zip(every, sizes, strict=True)}) == 1
        )
        if self._is_data_parallel:
            turns = _shared(sizes) if self._is_same else _by_rank(sizes)
            self._turns = turns[self.ranks.rank]
        elif self._is_same:
            is_first = self.ranks.rank == 0
            self._turns = [(index, index if is_first else None) for index in range(len(sizes[0]))]
        else:
            raise ProxyError(
                "Expected the same batches on every rank of a model whose layers are split "
                "over ranks (tensor parallel), got others. Make the proxy of a source that "
                "does not depend on the rank."
            )
        self._num_places = len(sizes[0]) if self._is_same else sum(map(len, sizes))
        if not self._is_same:
            self.hash = hashlib.sha256(" ".join(mark for mark, *_ in every).encode()).hexdigest()
            self.hash = self.hash[:16]

    @property
    def num_batches(self) -> int:
        """Calls of the value function per evaluation that count, on all ranks together."""
        return self._num_places

    def _values(self, model: nn.Module) -> list[np.ndarray]:
        """The value of every example of each batch of every rank, on every rank."""
        own = []
        for index, place in self._turns:
            with self.ranks.together("evaluating a batch"), self._order.followed():
                values = self._of_batch(index, model)
            if place is not None:
                own.append((place, values))
        sizes = np.zeros(self._num_places, np.int64)
        for place, found in own:
            sizes[place] = len(found)
        self.ranks.sum(sizes)
        values = np.zeros(int(sizes.sum()), np.int64)  # bits of them, which add without rounding
        ends = np.cumsum(sizes)
        for place, found in own:
            values[ends[place] - sizes[place] : ends[place]] = found.view(np.int64)
        self.ranks.sum(values)
        return np.split(values.view(np.float64), ends[:-1])

    def halve(self) -> bool:
        """Split every batch in two, on every rank."""
        were_split = super().halve()
        self._plan()
        return bool(self.ranks.sum(np.array([were_split], np.int64))[0])

    def _proxies_of(self, drawn: Sequence[Drawn]) -> tuple[Part, ...]:
        """The parts of all ranks together; each draws its share of its own batches."""
        places = [of_part for _, of_part in drawn]
        num_own = sum(size for batch in self._batches for size in sizes_of(batch)[:1])
        every = self.ranks.all_of((places, num_own))
        # every rank has to run what the others run, so it needs something to run
        if not all(len(of_rank) == len(places) > 0 for of_rank, _ in every):
            return ()
        if any(len(of_part) == 0 for of_rank, _ in every for of_part in of_rank):
            return ()
        if not self._is_same:
            first = np.cumsum([0, *(number for _, number in every)])
            by_rank = [[p + first[r] for p in of_rank] for r, (of_rank, _) in enumerate(every)]
            places = [np.concatenate(of_part) for of_part in zip(*by_rank, strict=True)]
        batches = [of_part for of_part, _ in drawn]
        return super()._proxies_of([*zip(batches, places, strict=True)])

    def _of(self, batches: list[Any]) -> Proxy:
        other = super()._of(batches)
        other._plan()  # type: ignore[attr-defined]
        return other

    def with_leaves(self, leaves: Sequence[Sequence[Any]]) -> Proxy:
        """This proxy with other batches; on every rank."""
        other = super().with_leaves(leaves)
        other._plan()  # type: ignore[attr-defined]
        return other


#: What a rank evaluates in its turns: a batch of its own, and the place of its values among those
#: of all batches; None for a batch that is run only since the others run theirs.
_Turns = list[tuple[int, int | None]]


def _shared(sizes: Sequence[Sequence[Any]]) -> list[_Turns]:
    """The turns of each rank where all have the same batches.

    In each turn all of them run batches of one size: what a forward exchanges with other ranks
    may have to be.

    >>> _shared([[8, 8, 8, 5], [8, 8, 8, 5]])
    [[(0, 0), (2, 2), (3, 3)], [(1, 1), (2, None), (3, None)]]
    """
    num_ranks = len(sizes)
    alike: dict[Any, list[int]] = {}
    for index, size in enumerate(sizes[0]):
        alike.setdefault(size, []).append(index)
    turns: list[_Turns] = [[] for _ in sizes]
    for indices in alike.values():
        for start in range(0, len(indices), num_ranks):
            together = indices[start : start + num_ranks]
            for rank, of_rank in enumerate(turns):
                is_own = rank < len(together)
                index = together[rank if is_own else 0]
                of_rank.append((index, index if is_own else None))
    return turns


def _by_rank(sizes: Sequence[Sequence[Any]]) -> list[_Turns]:
    """The turns of each rank where each has batches of its own; all of them count, by rank.

    >>> _by_rank([[8, 5], [8, 8, 5]])
    [[(0, 0), (1, 1), (1, None)], [(0, 2), (1, 3), (2, 4)]]
    """
    longest, turns, first = max(sizes, key=len), [], 0
    for own in sizes:
        of_rank: _Turns = [(index, first + index) for index in range(len(own))]
        for size in longest[len(own) :]:
            of_rank.append((list(own).index(size) if size in own else 0, None))
        turns.append(of_rank)
        first += len(own)
    return turns
