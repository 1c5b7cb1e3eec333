"""The budget against sums done by hand, on a clock that the test moves."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparsitywatch as sw
from sparsitywatch.live.schedule import OverheadBudget


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def started(max_overhead: float | None, *, evaluates: bool = False) -> tuple[OverheadBudget, Clock]:
    clock = Clock()
    budget = OverheadBudget(max_overhead, evaluates=evaluates, now=clock)
    budget.start()
    return budget, clock


def take(budget: OverheadBudget, clock: Clock, seconds: float, *, evaluated: bool = False) -> None:
    """A snapshot that holds up the training for so long."""
    budget.settle(evaluated=evaluated)
    budget.enter()
    clock.now += seconds
    budget.leave()
    budget.book(seconds, evaluated=evaluated)


def test_the_first_snapshot_is_allowed_whatever_it_costs() -> None:
    budget, _ = started(1e-9, evaluates=True)
    assert budget.allows_weights()
    assert budget.allows_evaluation()


def test_a_snapshot_is_allowed_once_it_fits() -> None:
    budget, clock = started(0.1)
    take(budget, clock, 2.0)
    clock.now += 37.9  # 4 s of 39.9
    assert not budget.allows_weights()
    clock.now += 0.2
    assert budget.allows_weights()


def test_what_was_done_behind_the_training_counts_too() -> None:
    budget, clock = started(0.1)
    budget.spend(1.0)
    budget.spend(3.0)
    budget.book(4.0)
    clock.now += 79.0  # spent 4, next 4
    assert not budget.allows_weights()
    clock.now += 2.0
    assert budget.allows_weights()
    assert budget.overhead() == pytest.approx(4 / 81)


def test_the_share_includes_what_is_going_on() -> None:
    budget, clock = started(0.1)
    clock.now += 6.0
    budget.enter()
    clock.now += 2.0
    budget.enter()  # nested: counted once
    clock.now += 2.0
    assert budget.overhead() == pytest.approx(4 / 10)
    assert budget.overhead(1.0) == pytest.approx(5 / 10)
    budget.leave()
    budget.leave()
    assert budget.overhead() == pytest.approx(4 / 10)


def test_an_evaluation_of_a_thousand_snapshots_delays_none_of_them() -> None:
    """The training of a step of 0.45 s whose full snapshot takes 6.2 s; due every 50 steps."""
    budget, clock = started(0.01, evaluates=True)
    due, looked, evaluated = 0, 0, []
    for step in range(1, 20_001):
        clock.now += 0.45
        if step % 50:
            continue
        due += 1
        if not budget.allows_weights():
            continue
        looked += 1
        evaluates = budget.allows_evaluation()
        take(budget, clock, 6.2 if evaluates else 0.03, evaluated=evaluates)
        evaluated += [step] if evaluates else []
        assert budget.overhead() <= 0.01 or len(evaluated) == 1
    assert looked == due
    # 6.2 s of 0.01 - 0.03 / 22.5 of the wall time are some 1,600 steps
    assert evaluated[0] == 50
    intervals = [b - a for a, b in itertools.pairwise(evaluated)]
    assert 1500 <= sum(intervals) / len(intervals) <= 1900


def test_weights_that_cost_more_than_their_share_are_left_out_too() -> None:
    budget, clock = started(0.01, evaluates=True)
    take(budget, clock, 10.0, evaluated=True)
    taken = 0
    for _ in range(2_000):  # a snapshot of 0.01 s at every step of 1 s: five times a fifth
        clock.now += 1.0
        if budget.allows_weights() and not budget.allows_evaluation():
            take(budget, clock, 0.01)
            taken += 1
    assert taken * 0.01 == pytest.approx(0.002 * (clock.now - 100.0), rel=0.05)


def test_a_start_that_costs_more_than_its_share_leaves_nothing_out() -> None:
    """Snapshots of 0.06 s where 0.045 s is their share; in the long run the limit is kept."""
    budget, clock = started(0.01, evaluates=True)
    taken = []
    for step in range(50, 20_001, 50):
        clock.now += 22.5
        if budget.allows_weights():
            evaluates = budget.allows_evaluation()
            take(budget, clock, 6.2 if evaluates else 0.06, evaluated=evaluates)
            taken.append(step)
    assert taken[:10] == list(range(50, 501, 50))
    assert len(taken) < 400
    assert budget.overhead() <= 0.01


def test_a_cheap_evaluation_has_what_the_weights_leave() -> None:
    budget, clock = started(0.01, evaluates=True)
    evaluations = 0
    for _ in range(20_000):  # 0.0001 for the weights leaves 0.0099 and not only 0.008
        clock.now += 1.0
        if budget.allows_weights():
            evaluates = budget.allows_evaluation()
            take(budget, clock, 0.0001 + 0.05 * evaluates, evaluated=evaluates)
            evaluations += evaluates
    assert evaluations * 0.05 == pytest.approx(0.0099 * (clock.now - 100.0), rel=0.03)
    assert budget.overhead() <= 0.01


def test_without_a_limit_everything_is_allowed() -> None:
    budget, _ = started(None, evaluates=True)
    budget.spend(1e9)
    budget.book(1e9)
    budget.book(1e9, evaluated=True)
    assert budget.allows_weights()
    assert budget.allows_evaluation()


def test_before_the_training_began_nobody_knows_the_share() -> None:
    budget = OverheadBudget(0.01)
    budget.spend(1.0)
    assert math.isnan(budget.overhead())


@given(
    limit=st.floats(0.001, 1.0),
    weights_s=st.floats(0.0001, 1.0),
    evaluation_s=st.floats(0.001, 100.0),
    steps=st.lists(st.floats(0.01, 50.0), min_size=1, max_size=200),
)
def test_the_limit_holds_once_the_first_is_paid_back(limit, weights_s, evaluation_s, steps) -> None:
    """Whatever the intervals: all together at most the limit and what the firsts cost."""
    budget, clock = started(limit, evaluates=True)
    spent = first = 0.0
    for step_s in steps:
        clock.now += step_s
        if not budget.allows_weights():
            continue
        evaluates = budget.allows_evaluation()
        is_first = math.isnan(budget.evaluation_cost_s if evaluates else budget.weights_cost_s)
        cost = weights_s + evaluation_s * evaluates
        take(budget, clock, cost, evaluated=evaluates)
        spent += cost
        first += cost * is_first
        assert spent <= limit * (clock.now - 100.0) + first + 11 * weights_s + 1e-9


@given(
    limit=st.floats(0.001, 1.0),
    costs=st.lists(st.floats(0.001, 10.0), min_size=1, max_size=30),
    step_s=st.floats(0.01, 5.0),
)
def test_snapshots_like_the_last_ones_never_exceed_the_limit(limit, costs, step_s) -> None:
    """A snapshot that costs no more than expected leaves the share within the limit."""
    budget, clock = started(limit)
    first = True
    for cost in costs:
        clock.now += step_s
        wait_s = step_s
        while not budget.allows_weights():
            clock.now += wait_s
            wait_s *= 1.1
        cost = cost if first else min(cost, budget.weights_cost_s)
        take(budget, clock, cost)
        if not first:
            assert budget.overhead() <= limit + 1e-9
        first = False


@pytest.mark.parametrize("bad", [0, 0.0, -0.1, 1.5, math.nan, math.inf, "1%", True])
def test_a_share_out_of_range_is_refused(bad) -> None:
    with pytest.raises(sw.ConfigurationError, match=r"`max_overhead` .* in \(0, 1\], or None"):
        OverheadBudget(bad)
