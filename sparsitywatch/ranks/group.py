"""The ranks of a distributed training: how they meet at the attach, and a process group of them."""

from __future__ import annotations

import contextlib
import datetime as dt
import gc
import hashlib
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import distributed, nn

from sparsitywatch.errors import (
    MeasurementError,
    RanksError,
    ScopeError,
    TrainingChangedError,
    is_out_of_memory,
)
from sparsitywatch.ranks.forward import ForwardOrder
from sparsitywatch.ranks.protocol import ALONE, P, Ranks, T, Turns
from sparsitywatch.redact import logger, redacted_error
from sparsitywatch.weights.scope import named_parameters
from sparsitywatch.weights.sharded import fsdp_modules, is_sharded

#: Seconds that a rank waits at the attach for others whose models are whole: rank 0 can do alone.
PATIENCE_S = 10.0
#: For others without whom there is no whole model; and for their part in what is done together.
_LONG_PATIENCE_S = 300.0
_TOGETHER, _ALONE = "together", "alone"


class RankGroup(Ranks):
    """Ranks in a process group of the watch's own, by gloo: what is sent lies on the CPU."""

    # before data is exchanged all agree that they are at the same place and well: what failed on
    # one of them fails on all, and none waits for it

    is_alone = False
    evaluating = contextlib.nullcontext

    def __init__(self, group: Any, store: Any = None, key: str = "") -> None:
        super().__init__()
        self._group, self._store, self._key = group, store, key
        self.rank = distributed.get_rank(group)
        self.size = distributed.get_world_size(group)
        self.lost = ""  # why the ranks have lost each other; empty as long as they have not
        self.num_bytes = 0  # that this rank has given to collectives
        self._num_agreed = 0

    @classmethod
    def of_all(cls, store: Any, prefix: str, model: nn.Module) -> RankGroup:
        """Every rank, in two groups, so that neither thread of a watch waits for the other."""
        wait = dt.timedelta(seconds=_LONG_PATIENCE_S)
        front, behind = (
            cls(distributed.new_group(backend="gloo", timeout=wait), store, f"{prefix}/left")
            for _ in ("in the training's thread", "behind it")
        )
        front.behind = behind
        front.splits_layers = splits_layers(model)
        front.fsdp = fsdp_modules(model.modules())
        if front.fsdp:
            front.followed = ForwardOrder(front.fsdp).followed
        return front

    def agree(self, what: str, error: Exception | None = None, value: int = 0) -> int:
        self._num_agreed += 1
        place = (zlib.crc32(what.encode()) << 24) + self._num_agreed % (1 << 24)
        code = 0 if error is None else 2 if is_out_of_memory(error) else 1
        own = np.array([code, place, -place, value if self.rank == 0 else -1])
        worst, highest, lowest, value = self.highest(own).tolist()
        if highest != -lowest:
            self._lose(f"rank {self.rank} is at {what[:80]!r}, another one is not")
        if worst:
            self._fail(error, is_memory=worst == 2)
        return int(value)

    @contextlib.contextmanager
    def all_or_none(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not isinstance(error, RanksError):
                self.agree(what, error)
            raise
        self.agree(what)

    def guarded(self, what: str, function: Callable[P, T]) -> Callable[P, T]:
        return self.all_or_none(what)(function)

    def led(self, what: str, function: Callable[P, T]) -> Callable[P, T]:
        def called(*args: P.args, **kwargs: P.kwargs) -> T:
            with self.all_or_none(what):
                given: Any = function(*args, **kwargs) if self.rank == 0 else None
            first: T = self.of_first(given)
            return first

        return called

    def decide(self, what: str, value: int = 0) -> int:
        if gone := self._gone():
            raise RanksError(gone)
        try:
            return self.agree(what, value=value)
        except MeasurementError as error:
            raise RanksError(str(error)) from error

    def _fail(self, error: Exception | None, *, is_memory: bool) -> None:
        """Fail on every rank; on others than the one that failed, by its words."""
        told = "" if error is None else redacted_error(error)
        said = self.gather((told, isinstance(error, TrainingChangedError)))
        if error is not None:
            raise error
        text = "; ".join(f"rank {rank}: {text}" for rank, (text, _) in enumerate(said) if text)
        if any(is_changed for _, is_changed in said):
            raise TrainingChangedError(f"failed on {text}")
        raise MemoryError(text) if is_memory else MeasurementError(f"failed on {text}")

    def _lose(self, why: str) -> None:
        """Note that nothing can be agreed on any more."""
        self.lost = self.lost or (
            f"the ranks have lost each other: {why}. Call `sw.watch`, `watcher.snapshot()` and "
            "`watcher.close()` on every rank, at the same step."
        )
        raise RanksError(self.lost)

    # ------------------------------------------------------------------ exchanged

    def sum(self, numbers: np.ndarray) -> np.ndarray:
        return self._reduce(numbers, distributed.ReduceOp.SUM)

    def highest(self, numbers: np.ndarray) -> np.ndarray:
        return self._reduce(numbers, distributed.ReduceOp.MAX)

    def union(self, bits: np.ndarray) -> np.ndarray:
        return self._reduce(bits, distributed.ReduceOp.BOR)

    def gather(self, thing: T) -> list[T]:
        found: list[Any] = [None] * self.size
        with self._exchanged():
            distributed.all_gather_object(found, thing, group=self._group)
        return found

    def of_first(self, thing: T) -> T:
        found: list[Any] = [thing]
        with self._exchanged():
            distributed.broadcast_object_list(found, src=0, group=self._group)
        first: T = found[0]
        return first

    def turns(self, sizes: Sequence[Any], *, is_same: bool) -> tuple[Turns, int]:
        every = self.gather(sizes)
        num_places = len(sizes) if is_same else sum(map(len, every))
        if self.splits_layers:  # each runs all of them; the first one says the values
            return [(i, None if self.rank else i) for i in range(len(sizes))], num_places
        return (shared(every) if is_same else by_rank(every))[self.rank], num_places

    def hand_down(self, give: Callable[[], T], take: Callable[[T], object]) -> None:
        known = self.led("what rank 0 hands down", give)()
        if self.rank > 0:
            take(known)

    def _reduce(self, numbers: np.ndarray, operation: Any) -> np.ndarray:
        self.num_bytes += numbers.nbytes
        with self._exchanged():
            distributed.all_reduce(torch.from_numpy(numbers), operation, group=self._group)
        return numbers

    @contextlib.contextmanager
    def _exchanged(self) -> Iterator[None]:
        if self.lost:
            raise RanksError(self.lost)
        try:
            yield
        except (RuntimeError, ValueError) as error:  # a rank has gone, or does not answer in time
            self._lose(redacted_error(error))

    # ------------------------------------------------------------------ who watches

    def leave(self, why: str) -> None:
        with contextlib.suppress(RuntimeError):  # the process with the store has ended
            self._store.compare_set(self._key, "", f"rank {self.rank}: {why}")

    def _gone(self) -> str:
        """Who takes part no more, and why; empty if nobody left."""
        try:
            return self._store.get(self._key).decode() if self._store.check([self._key]) else ""
        except RuntimeError as error:
            return f"the process with the ranks' store has ended ({error})"

    def why_another_watches(self) -> str:
        return ""


class PendingRanks(Ranks):
    """A rank that has begun alone while others may still attach, with the same model."""

    def __init__(self, store: Any, prefix: str, own: str, unknown: set[int]) -> None:
        super().__init__()
        self._store = store
        self._prefix = prefix  # of the marks that each leaves
        self._own = own
        self._unknown = unknown  # have not come yet

    def why_different(self) -> str:
        try:
            for rank in sorted(self._unknown):
                if self._store.check([f"{self._prefix}/{rank}"]):
                    self._unknown.discard(rank)
                    if self._store.get(f"{self._prefix}/{rank}").decode() != self._own:
                        return _other_model(rank)
        except RuntimeError as error:  # the process with the store has ended
            logger.info("cannot ask which models other ranks hold: %s", error)
            self._unknown.clear()
        return ""


# ------------------------------------------------------------------ meeting at the attach


def join(model: nn.Module, place: str) -> Ranks:
    """The ranks that attach at a place such as the log directory, once all of them have come."""
    # where others do not come, rank 0 watches alone if it holds the whole model. A ScopeError where
    # they hold different models, or parts of one and some have not come.
    if why := _why_only_a_stage(model):
        raise ScopeError(f"Expected a model that this process holds all of, but {why}")
    rank, size = distributed.get_rank(), distributed.get_world_size()
    for module in fsdp_modules(model.modules()):  # what it has gathered is not what it holds
        module.reshard()
    parameters = dict(named_parameters(model))
    is_part = any(map(is_sharded, parameters.values()))
    if size == 1 and not is_part:
        return ALONE
    store: Any = distributed.distributed_c10d._get_default_store()
    number = store.add(f"sparsitywatch/calls of rank {rank}/{place}", 1)
    prefix = f"sparsitywatch/{number}/{place}"
    shapes = sorted(f"{name} {tuple(p.shape)}" for name, p in parameters.items())
    own = hashlib.sha256("\n".join(shapes).encode()).hexdigest()[:16]
    store.set(f"{prefix}/{rank}", own)
    outcome = _met(store, prefix, rank, size, _LONG_PATIENCE_S if is_part else PATIENCE_S)
    if outcome == _TOGETHER:
        return RankGroup.of_all(store, prefix, model)
    if outcome != _ALONE:
        raise ScopeError(f"Expected a model that this process holds all of, but {outcome}")
    if is_part:
        raise ScopeError(
            "Expected `sw.watch` on every rank, since each holds a part of the model, but some "
            f"have not called it within {_LONG_PATIENCE_S:.0f} s (with logdir={place!r})."
        )
    if rank == 0:
        logger.warning(
            "other ranks have not called `sw.watch` within %.0f s, so rank 0 watches alone. Call "
            "it on every rank to share the evaluation, and to compare the replicas.",
            PATIENCE_S,
        )
    return PendingRanks(store, prefix, own, set(range(size)) - {rank})


def _met(store: Any, prefix: str, rank: int, size: int, patience_s: float) -> str:
    """What becomes of the ranks' meeting; one of them decides, once, for all."""
    key, keys = f"{prefix}/outcome", [f"{prefix}/{other}" for other in range(size)]
    outcome = _ALONE
    with contextlib.suppress(RuntimeError):  # they have not come in time
        store.wait(keys if rank == 0 else [key], dt.timedelta(seconds=patience_s))
        if rank == 0:
            marks = [store.get(other).decode() for other in keys]
            odd = next((r for r, mark in enumerate(marks) if mark != marks[0]), 0)
            outcome = _other_model(odd) if odd else _TOGETHER
    return str(store.compare_set(key, "", outcome).decode())


def _other_model(rank: int) -> str:
    return (
        f"rank {rank} holds parameters of other names or shapes than rank 0, so that none of them "
        "holds the whole model (a stage of a pipeline, or a shard). Watch the checkpoints instead: "
        "`sparsitywatch replay <folder> --follow`. If each rank trains a model of its own, attach "
        "on one rank only, or give each a `logdir` of its own."
    )


def _why_only_a_stage(model: nn.Module) -> str:
    """Why ``model`` is a stage of a pipeline of torch.distributed; empty if it is none."""
    stages = sys.modules.get("torch.distributed.pipelining.stage")
    if stages is None:
        return ""
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


# ------------------------------------------------------------------ which batches a rank evaluates


def splits_layers(model: nn.Module) -> bool:
    """Whether a layer is split over ranks, so that all of them have to run the same examples."""
    is_fsdp = bool(fsdp_modules(model.modules()))
    for parameter in model.parameters():
        if is_sharded(parameter):
            placements: Any = parameter.placements  # type: ignore[attr-defined]
            outer = all(placement.is_replicate() for placement in placements[:-1])
            if not (is_fsdp and outer and len(placements) <= 2):
                return True
    return False


def shared(sizes: Sequence[Sequence[Any]]) -> list[Turns]:
    """The turns of each rank where all have the same batches."""
    # in each turn all of them run batches of one size: what a forward exchanges with other ranks
    # may have to be
    num_ranks = len(sizes)
    alike: dict[Any, list[int]] = {}
    for index, size in enumerate(sizes[0]):
        alike.setdefault(size, []).append(index)
    starts = [
        indices[start : start + num_ranks]
        for indices in alike.values()
        for start in range(0, len(indices), num_ranks)
    ]
    turns: list[Turns] = [[] for _ in sizes]
    for in_turn in sorted(starts):
        for rank, of_rank in enumerate(turns):
            is_own = rank < len(in_turn)
            index = in_turn[rank if is_own else 0]
            of_rank.append((index, index if is_own else None))
    return turns


def by_rank(sizes: Sequence[Sequence[Any]]) -> list[Turns]:
    """The turns of each rank where each has batches of its own; all of them count, by rank."""
    longest, turns, first = max(sizes, key=len), [], 0
    for own in sizes:
        of_rank: Turns = [(index, first + index) for index in range(len(own))]
        for size in longest[len(own) :]:
            of_rank.append((list(own).index(size) if size in own else 0, None))
        turns.append(of_rank)
        first += len(own)
    return turns
