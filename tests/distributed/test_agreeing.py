"""Ranks agree before they exchange anything: what fails on one fails on all, and nobody waits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from contracts.thread_ranks import ThreadRanks, on_ranks

from sparsitywatch.errors import RanksError


def test_the_value_of_rank_0_counts() -> None:
    found = on_ranks(3, lambda ranks: ranks.agree("here", value=7 - ranks.rank))
    assert found == [7, 7, 7]
    large = 0x3FE6666666666666  # the bits of a float64
    found = on_ranks(2, lambda ranks: ranks.agree("here", value=9 if ranks.rank else large))
    assert found == [large] * 2


#: What fails on each rank, and what each of them is told.
FAILURES = {
    "one": (
        {1: ValueError("no such key")},
        ["MeasurementError: failed on rank 1: ValueError: no such key", "ValueError: no such key",
         "MeasurementError: failed on rank 1: ValueError: no such key"],
    ),
    "several": (
        {0: ValueError("a"), 2: KeyError("b")},
        ["ValueError: a",
         "MeasurementError: failed on rank 0: ValueError: a; rank 2: KeyError: 'b'",
         "KeyError: 'b'"],
    ),
    "memory of the host": (
        {1: MemoryError("no room")}, ["MemoryError: rank 1: MemoryError: no room",
                                      "MemoryError: no room"],
    ),
    "memory of a device": (
        {1: torch.OutOfMemoryError("no room")},
        ["MemoryError: rank 1: OutOfMemoryError: no room", "OutOfMemoryError: no room"],
    ),
    # so that all of them try again with less, or none does
    "memory before anything else": (
        {0: ValueError("a"), 1: MemoryError("b")},
        ["ValueError: a", "MemoryError: b",
         "MemoryError: rank 0: ValueError: a; rank 1: MemoryError: b"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", FAILURES)
def test_what_fails_on_one_rank_fails_on_all_by_its_words_and_they_go_on_together(
    what: str,
) -> None:
    errors, told = FAILURES[what]

    def fail(ranks: ThreadRanks) -> None:
        with ranks.all_or_none("a place"):
            if ranks.rank in errors:
                raise errors[ranks.rank]

    def act(ranks: ThreadRanks) -> tuple[str, int]:
        with pytest.raises((RuntimeError, MemoryError, ValueError, KeyError)) as caught:
            fail(ranks)
        said = f"{caught.type.__name__}: {caught.value}"
        return said, ranks.agree("next", value=5)

    assert on_ranks(len(told), act) == [(said, 5) for said in told]


def test_different_places_lose_the_ranks_for_good() -> None:
    def act(ranks: ThreadRanks) -> list[str]:
        said = []
        for what in ("step 3" if ranks.rank else "step 4", "step 5"):
            with pytest.raises(RanksError) as caught:
                ranks.agree(what)
            said.append(str(caught.value))
        return said

    for rank, (first, again) in enumerate(on_ranks(2, act)):
        assert f"rank {rank} is at 'step {4 - rank}', another one is not" in first
        assert "Call `sw.watch`, `watcher.snapshot()` and `watcher.close()` on every rank" in first
        assert again == first


def test_the_same_place_at_another_time_is_another_place() -> None:
    def act(ranks: ThreadRanks) -> None:
        if ranks.rank == 0:
            ranks._num_agreed += 1  # one agreement that the other one has not seen
        ranks.agree("a snapshot")

    assert [type(error) for error in on_ranks(2, act)] == [RanksError, RanksError]


def test_a_rank_that_has_gone_is_waited_for_by_nobody() -> None:
    def act(ranks: ThreadRanks) -> str:
        if ranks.rank == 1:
            raise OSError("gone")
        with pytest.raises(RanksError) as caught:
            ranks.sum(np.zeros(3, np.int64))
        return str(caught.value)

    first, gone = on_ranks(2, act)
    assert "the ranks have lost each other" in first
    assert isinstance(gone, OSError)


def test_lost_ranks_are_said_to_be_lost_and_not_to_have_failed_together() -> None:
    """Inside `all_or_none` it would be agreed upon with ranks that do not answer."""

    def act(ranks: ThreadRanks) -> None:
        with ranks.all_or_none("outer"):
            ranks.agree(f"place {ranks.rank}")

    assert [type(error) for error in on_ranks(2, act)] == [RanksError, RanksError]
