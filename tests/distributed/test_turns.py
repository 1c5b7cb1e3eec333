"""Which batches each rank evaluates: each counts once, and all ranks run as many forwards."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from sparsitywatch.ranks.group import by_rank, shared

sizes = st.lists(st.sampled_from([8, 8, 8, 5, 3]), min_size=1, max_size=9)


@given(sizes, st.integers(1, 5))
def test_batches_of_all_are_shared_in_turns_of_one_size(batches: list[int], size: int) -> None:
    turns = shared([batches] * size)
    assert len({len(of_rank) for of_rank in turns}) == 1
    for together in zip(*turns, strict=True):
        assert len({batches[index] for index, _ in together}) == 1
    assert sorted(p for of_rank in turns for _, p in of_rank if p is not None) == [
        *range(len(batches))
    ]
    assert all(place in (None, index) for of_rank in turns for index, place in of_rank)
    # no more turns than the sizes need
    assert len(turns[0]) == sum(math.ceil(num / size) for num in Counter(batches).values())


@given(st.lists(sizes, min_size=1, max_size=4))
def test_batches_of_each_rank_all_count_in_the_order_of_the_ranks(batches: list[list[int]]) -> None:
    turns = by_rank(batches)
    assert {len(of_rank) for of_rank in turns} == {max(map(len, batches))}
    placed = [(rank, i, p) for rank, of in enumerate(turns) for i, p in of if p is not None]
    expected = [(rank, i) for rank, of in enumerate(batches) for i in range(len(of))]
    assert placed == [(*where, place) for place, where in enumerate(expected)]
    longest = max(batches, key=len)
    for own, of_rank in zip(batches, turns, strict=True):
        for turn, (index, place) in enumerate(of_rank):
            if place is None and longest[turn] in own:
                assert own[index] == longest[turn]


def test_who_has_no_batch_left_runs_one_of_the_same_size_again() -> None:
    first = [[(0, 0), (2, 2), (3, 3)], [(1, 1), (2, None), (3, None)]]
    assert shared([[8, 8, 8, 5], [8, 8, 8, 5]]) == first
    assert by_rank([[8, 5], [8, 8, 5]]) == [[(0, 0), (1, 1), (1, None)], [(0, 2), (1, 3), (2, 4)]]
