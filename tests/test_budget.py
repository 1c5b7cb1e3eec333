"""The budget against sums done by hand, on a clock that the test moves."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparsitywatch as sw
from sparsitywatch.budget import OverheadBudget


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def started(max_overhead: float | None) -> tuple[OverheadBudget, Clock]:
    clock = Clock()
    budget = OverheadBudget(max_overhead, now=clock)
    budget.start()
    return budget, clock


def test_the_first_look_is_allowed_whatever_it_costs() -> None:
    budget, _ = started(1e-9)
    assert budget.allows()


def test_a_look_is_allowed_once_it_fits() -> None:
    budget, clock = started(0.1)
    budget.spend(2.0)
    budget.expect(2.0)
    clock.now += 39.9  # 4 s of 39.9
    assert not budget.allows()
    clock.now += 0.2
    assert budget.allows()


def test_what_was_done_behind_the_training_counts_too() -> None:
    budget, clock = started(0.1)
    budget.spend(1.0)
    budget.expect(1.0)
    budget.spend(3.0, is_look=True)
    clock.now += 79.0  # spent 4, next 4
    assert not budget.allows()
    clock.now += 2.0
    assert budget.allows()
    assert budget.overhead() == pytest.approx(4 / 81)


def test_without_a_limit_everything_is_allowed() -> None:
    budget, _ = started(None)
    budget.spend(1e9)
    budget.expect(1e9)
    assert budget.allows()


def test_before_the_training_began_nobody_knows_the_share() -> None:
    budget = OverheadBudget(0.01)
    budget.spend(1.0)
    assert math.isnan(budget.overhead())


@given(
    limit=st.floats(0.001, 1.0),
    costs=st.lists(st.floats(0.001, 10.0), min_size=1, max_size=30),
    step_s=st.floats(0.01, 5.0),
)
def test_looks_like_the_last_one_never_exceed_the_limit(limit, costs, step_s) -> None:
    """A look that costs no more than expected leaves the share within the limit."""
    budget, clock = started(limit)
    first = True
    for cost in costs:
        clock.now += step_s
        wait_s = step_s
        while not budget.allows():
            clock.now += wait_s
            wait_s *= 1.1
        cost = cost if first else min(cost, budget.next_look_s)
        clock.now += cost
        budget.spend(cost)
        budget.expect(cost)
        if not first:
            assert budget.overhead() <= limit + 1e-9
        first = False


@pytest.mark.parametrize("bad", [0, 0.0, -0.1, 1.5, math.nan, math.inf, "1%", True])
def test_a_share_out_of_range_is_refused(bad) -> None:
    with pytest.raises(sw.ConfigurationError, match=r"`max_overhead` .* in \(0, 1\], or None"):
        OverheadBudget(bad)
