"""What ranks do together; for a process by itself all of it is the identity."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, ParamSpec, TypeVar

import numpy as np
from torch import distributed

P = ParamSpec("P")
T = TypeVar("T")
#: What a rank evaluates in its turns: a batch of its own, and the place of its values among those
#: of all batches; None for a batch that is run only since the others run theirs.
Turns = list[tuple[int, int | None]]


class Ranks:
    """Ranks that watch one training together, as one of them sees it; this class is one alone."""

    # every rank calls each method, in the same order

    rank, size = 0, 1
    is_alone = True  # whether others, if there are any, do not watch
    splits_layers = False  # over ranks, so that all of them have to run the same batches
    fsdp: Sequence[Any] = ()  # modules that FSDP2 shards

    #: Around what succeeds on every rank, or on none; given the place in the code.
    all_or_none: Callable[[str], AbstractContextManager[Any]] = contextlib.nullcontext
    #: Around a forward: where it fails on one rank, the others can still end theirs.
    followed: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext

    def __init__(self) -> None:
        self.behind = self  # the same ranks, for the thread behind the training

    # ------------------------------------------------------------------ all of them, or none

    def agree(self, what: str, error: Exception | None = None, value: int = 0) -> int:
        """Rank 0's ``value`` (>= 0), if every rank is at ``what`` in the code, and well."""
        # a RanksError where another one is elsewhere, or does not answer; where it failed on
        # another one, a MeasurementError, or a MemoryError where memory was missing
        if error is not None:
            raise error
        return value

    def guarded(self, what: str, function: Callable[P, T]) -> Callable[P, T]:
        """The function: each call of it succeeds on every rank, or on none."""
        return function

    def led(self, what: str, function: Callable[P, T]) -> Callable[P, T]:
        """The function as rank 0 calls it: what it returns there is what every rank gets."""
        return function

    def decide(self, what: str, value: int = 0) -> int:
        """What rank 0 decides; a RanksError where one does not watch any more."""
        return value

    # ------------------------------------------------------------------ exchanged

    def sum(self, numbers: np.ndarray) -> np.ndarray:
        """The sum over ranks, int64 of any shape; in place."""
        return numbers

    def highest(self, numbers: np.ndarray) -> np.ndarray:
        """The largest over ranks, int64 of any shape; in place."""
        return numbers

    def union(self, bits: np.ndarray) -> np.ndarray:
        """What is set on any rank, packed bits, uint8 [B]; in place."""
        return bits

    def gather(self, thing: T) -> list[T]:
        """What each rank gives, by rank; plain data."""
        return [thing]

    def merged(self, own: dict[int, Any]) -> dict[int, Any]:
        """Of a part that each rank has of a mapping, all of it; plain data."""
        return {key: value for part in self.gather(own) for key, value in part.items()}

    def of_first(self, thing: T) -> T:
        """What rank 0 gives; plain data."""
        return thing

    def turns(self, sizes: Sequence[Any], *, is_same: bool) -> tuple[Turns, int]:
        """Which batches this rank evaluates, and how many there are on all ranks together."""
        return [(index, index) for index in range(len(sizes))], len(sizes)

    def hand_down(self, give: Callable[[], T], take: Callable[[T], object]) -> None:
        """What rank 0 gives is taken by all others."""

    # ------------------------------------------------------------------ who watches

    def evaluating(self) -> AbstractContextManager[None]:
        """Around forwards: they may communicate only where every rank runs them."""
        if not is_distributed() or distributed.get_world_size() == 1:
            return contextlib.nullcontext()  # there is nobody to wait for
        from sparsitywatch.ranks.forward import without_collectives

        return without_collectives()

    def leave(self, why: str) -> None:
        """Say that this rank takes part in nothing any more; others see it before they wait."""

    def why_another_watches(self) -> str:
        """Why this process leaves the watch to rank 0; empty if it does not."""
        rank = distributed.get_rank() if is_distributed() else _rank_by_environment()
        return "rank 0 watches; replicas hold the same weights" if rank else ""

    def why_different(self) -> str:
        """Which rank holds another model than this one, as far as is known; empty if none."""
        return ""


ALONE: Final = Ranks()


def is_distributed() -> bool:
    """Whether this process is one of several of torch.distributed, or of one."""
    return distributed.is_available() and distributed.is_initialized()


def _rank_by_environment() -> int:
    """Before ``init_process_group``, as torchrun and Lightning set it; 0 if nothing tells."""
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "NODE_RANK")
    texts = [os.environ.get(name, "") for name in names]
    size, rank, local, node = (int(text) if text.isdecimal() else 0 for text in texts)
    if size <= 1:
        return 0
    return rank if "RANK" in os.environ else local or node
