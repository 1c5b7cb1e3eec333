"""Ranks that are threads of one process and exchange what they send in memory."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import distributed

from sparsitywatch.ranks.group import RankGroup

#: Who has not come within so many seconds is gone.
PATIENCE_S = 20.0


class Meeting:
    """Where the threads of all ranks meet, again and again."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=PATIENCE_S)
        self._given: list[Any] = [None] * size

    def exchanged(self, rank: int, thing: Any) -> list[Any]:
        """What each rank gives, once all of them have given something."""
        self._given[rank] = thing
        self._barrier.wait()
        found = list(self._given)
        self._barrier.wait()  # nobody gives the next thing before all have read this one
        return found

    def leave(self) -> None:
        """One rank comes no more: the others are told."""
        self._barrier.abort()


class ThreadRanks(RankGroup):
    """One of the ranks; everything but the transport is as in a real process."""

    def __init__(self, meeting: Meeting, rank: int, size: int) -> None:
        self._meeting, self.rank, self.size = meeting, rank, size
        self.lost, self.num_bytes, self._num_agreed, self.behind = "", 0, 0, self

    def gather(self, thing: Any) -> list[Any]:
        with self._exchanged():
            return self._meeting.exchanged(self.rank, thing)

    def of_first(self, thing: Any) -> Any:
        return self.gather(thing)[0]

    def _reduce(self, numbers: np.ndarray, operation: Any) -> np.ndarray:
        combine = {
            distributed.ReduceOp.SUM: np.add,
            distributed.ReduceOp.MAX: np.maximum,
            distributed.ReduceOp.BOR: np.bitwise_or,
        }[operation]
        self.num_bytes += numbers.nbytes
        first, *others = self.gather(numbers.copy())
        assert all((o.shape, o.dtype) == (first.shape, first.dtype) for o in others)
        numbers[...] = functools.reduce(combine, others, first)
        return numbers


def on_ranks(size: int, act: Callable[[ThreadRanks], Any]) -> list[Any]:
    """What ``act`` gives, or raises, on each of some ranks that run side by side."""
    meeting, results = Meeting(size), [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = act(ThreadRanks(meeting, rank, size))
        except Exception as error:  # noqa: BLE001 it is what the rank gives
            results[rank] = error
            meeting.leave()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
