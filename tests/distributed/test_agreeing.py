"""Ranks agree before they exchange anything: what fails on one fails on all, and nobody waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from contracts.thread_ranks import ThreadRanks, on_ranks

from sparsitywatch.errors import RanksError


def test_the_value_of_rank_0_counts() -> None:
    found = on_ranks(3, lambda ranks: ranks.agree("here", value=7 - ranks.rank))
    assert found == [7, 7, 7]
    large = 0x3FE6666666666666  # the bits of a float64
    assert (
        on_ranks(2, lambda ranks: ranks.agree("here", value=large if ranks.rank == 0 else 9))
        == [large] * 2
    )


def failing(
    on: dict[int, BaseException], act: Callable[[ThreadRanks], Any] = lambda _: None
) -> Callable[[ThreadRanks], Any]:
    """An agreement to which some ranks bring an error; what the ranks do afterwards."""

    def both(ranks: ThreadRanks) -> tuple[str, Any]:
        try:
            with ranks.all_or_none("a place"):
                _raise(on.get(ranks.rank))
            said = "well"
        except Exception as error:  # noqa: BLE001 it is what the rank gives
            said = f"{type(error).__name__}: {error}"
        return said, act(ranks)

    return both


def _raise(error: BaseException | None) -> None:
    if error is not None:
        raise error


def test_what_fails_on_one_rank_fails_on_all_by_its_words_and_they_go_on_together() -> None:
    act = failing({1: ValueError("no such key")}, lambda ranks: ranks.agree("next", value=5))
    other = "MeasurementError: failed on rank 1: ValueError: no such key"
    assert on_ranks(3, act) == [(other, 5), ("ValueError: no such key", 5), (other, 5)]


def test_what_fails_on_several_is_said_of_each() -> None:
    act = failing({0: ValueError("a"), 2: KeyError("b")})
    (first, _), (second, _), (third, _) = on_ranks(3, act)
    assert first == "ValueError: a"
    assert second == "MeasurementError: failed on rank 0: ValueError: a; rank 2: KeyError: 'b'"
    assert third == "KeyError: 'b'"


@pytest.mark.parametrize(
    "error", [MemoryError("no room"), torch.OutOfMemoryError("no room")], ids=["host", "device"]
)
def test_missing_memory_is_missing_memory_on_all(error: Exception) -> None:
    (other, _), (own, _) = on_ranks(2, failing({1: error}))
    assert own == f"{type(error).__name__}: no room"
    assert other.startswith("MemoryError: rank 1: ")
    assert other.endswith("no room")


def test_memory_counts_before_anything_else_that_fails() -> None:
    """So that all of them try again with less, or none does."""
    found = on_ranks(3, failing({0: ValueError("a"), 1: MemoryError("b")}))
    assert found[2][0] == "MemoryError: rank 0: ValueError: a; rank 1: MemoryError: b"


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
