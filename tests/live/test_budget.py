"""The budget against sums done by hand, on a clock that the test moves."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparsitywatch as sw
from sparsitywatch.live.schedule import OverheadBudget


class Clocked(OverheadBudget):
    """A budget whose training has begun, on a clock of its own."""

    def __init__(self, max_overhead: float | None, *, evaluates: bool = False) -> None:
        self.clock = 100.0
        super().__init__(max_overhead, evaluates=evaluates, now=lambda: self.clock)
        self.start()

    def take(self, seconds: float, *, evaluated: bool = False) -> None:
        """A snapshot that holds up the training for this long."""
        self.enter()
        self.clock += seconds
        self.leave()
        self.attribute(seconds, evaluated=evaluated)

    def train(self, num: int, step_s: float, weights_s: float, evaluation_s: float) -> list[str]:
        """Take what is allowed after each of some steps; returns what was done at each."""
        done = []
        for _ in range(num):
            self.clock += step_s
            if not self.allows_weights():
                done.append("nothing")
                continue
            evaluated = self.allows_evaluation()
            self.take(weights_s + evaluation_s * evaluated, evaluated=evaluated)
            done.append("everything" if evaluated else "weights")
        return done


def test_the_first_snapshot_is_allowed_whatever_it_costs() -> None:
    budget = Clocked(1e-9, evaluates=True)
    assert budget.allows_weights()
    assert budget.allows_evaluation()


def test_a_snapshot_is_allowed_once_it_and_what_was_done_behind_the_training_fit() -> None:
    budget = Clocked(0.1)
    budget.take(2.0)
    budget.charge(0.5)
    budget.charge(1.5)
    budget.clock += 57.9  # spent 4, next 2: 6 s of 59.9
    assert not budget.allows_weights()
    budget.clock += 0.2
    assert budget.allows_weights()
    assert budget.overhead() == pytest.approx(4 / 60.1)


def test_the_share_includes_what_is_going_on() -> None:
    budget = Clocked(0.1)
    budget.clock += 6.0
    budget.enter()
    budget.clock += 2.0
    budget.enter()  # nested: counted once
    budget.clock += 2.0
    assert budget.overhead() == pytest.approx(4 / 10)
    assert budget.overhead(1.0) == pytest.approx(5 / 10)
    budget.leave()
    budget.leave()
    assert budget.overhead() == pytest.approx(4 / 10)


def test_an_evaluation_of_a_thousand_snapshots_delays_none_of_them() -> None:
    """The training of a step of 0.45 s whose full snapshot takes 6.2 s; due every 50 steps."""
    budget = Clocked(0.01, evaluates=True)
    evaluated = []
    for look in range(400):
        (done,) = budget.train(1, 22.5, 0.03, 6.17)
        assert done != "nothing"
        evaluated += [50 * look] if done == "everything" else []
        assert budget.overhead() <= 0.01 or len(evaluated) == 1
    # 6.2 s of 0.01 - 0.03 / 22.5 of the wall time are some 1,600 steps
    assert evaluated[0] == 0
    intervals = [b - a for a, b in itertools.pairwise(evaluated)]
    assert 1500 <= sum(intervals) / len(intervals) <= 1900


def test_one_evaluation_that_is_dearer_than_all_others_delays_no_snapshot() -> None:
    budget = Clocked(0.01, evaluates=True)
    for evaluation_s in (6.17, 6.17, 617.0, 6.17):
        done = budget.train(100, 22.5, 0.03, evaluation_s)
        assert "nothing" not in done
    assert "everything" not in done  # not before the dear one is paid


def test_weights_that_cost_more_than_their_share_are_left_out_too() -> None:
    budget = Clocked(0.01, evaluates=True)
    budget.take(10.0, evaluated=True)
    taken = 0
    for _ in range(2_000):  # a snapshot of 0.01 s at every step of 1 s: five times a fifth
        budget.clock += 1.0
        if budget.allows_weights() and not budget.allows_evaluation():
            budget.take(0.01)
            taken += 1
    assert taken * 0.01 == pytest.approx(0.002 * (budget.clock - 100.0), rel=0.05)


def test_a_start_that_costs_more_than_its_share_leaves_nothing_out() -> None:
    """Snapshots of 0.06 s where 0.045 s is their share; in the long run the limit is kept."""
    budget = Clocked(0.01, evaluates=True)
    done = budget.train(400, 22.5, 0.06, 6.14)
    assert "nothing" not in done[:10]
    assert "nothing" in done
    assert budget.overhead() <= 0.01


@pytest.mark.parametrize(
    ("weights_s", "evaluation_s", "per_second"),
    [
        (0.0001, 0.05, 0.0099 / 0.05),  # cheap weights leave more than four fifths
        (0.03, 0.02, 0.01 / 0.05),  # dear ones come with an evaluation, which can spare that
    ],
)
def test_each_half_has_what_the_other_leaves(weights_s, evaluation_s, per_second) -> None:
    budget = Clocked(0.01, evaluates=True)
    done = budget.train(20_000, 1.0, weights_s, evaluation_s)
    assert done.count("everything") == pytest.approx(per_second * 20_000, rel=0.03)
    assert budget.overhead() <= 0.01


def test_steps_so_short_that_counting_them_costs_the_limit_leave_the_weights_their_fifth() -> None:
    budget = Clocked(0.01, evaluates=True)
    budget.take(0.01, evaluated=True)
    done = []
    for _ in range(20_000):
        budget.charge(1e-5)  # what the watch does at a step of 1 ms
        done += budget.train(1, 1e-3, 1e-4, 0.01)
    assert "everything" not in done
    assert done.count("weights") * 1e-4 == pytest.approx(0.002 * (budget.clock - 100.0), rel=0.05)


def test_without_a_limit_everything_is_allowed() -> None:
    budget = Clocked(None, evaluates=True)
    budget.charge(1e9)
    budget.attribute(1e9)
    budget.attribute(1e9, evaluated=True)
    assert budget.allows_weights()
    assert budget.allows_evaluation()


def test_before_the_training_began_nobody_knows_the_share() -> None:
    budget = OverheadBudget(0.01)
    budget.charge(1.0)
    assert math.isnan(budget.overhead())


@given(
    limit=st.floats(0.001, 1.0),
    weights_s=st.floats(0.0001, 1.0),
    evaluation_s=st.floats(0.001, 100.0),
    stretches=st.lists(
        st.tuples(st.integers(1, 50), st.floats(0.01, 50.0)), min_size=1, max_size=10
    ),
)
def test_the_limit_holds_but_for_the_first_ones_and_a_credit(
    limit, weights_s, evaluation_s, stretches
) -> None:
    """Whatever the intervals: all of it is at most the limit, the first ones and eleven more."""
    budget = Clocked(limit, evaluates=True)
    cost_s = {"nothing": 0.0, "weights": weights_s, "everything": weights_s + evaluation_s}
    taken = []
    for num, step_s in stretches:
        for _ in range(num):
            taken += budget.train(1, step_s, weights_s, evaluation_s)
            spent_s = sum(map(cost_s.__getitem__, taken))
            credit_s = sum(map(cost_s.__getitem__, set(taken))) + 11 * weights_s
            assert spent_s <= limit * (budget.clock - 100.0) + credit_s + 1e-9


@given(
    limit=st.floats(0.001, 1.0),
    costs=st.lists(st.floats(0.001, 10.0), min_size=1, max_size=30),
    step_s=st.floats(0.01, 5.0),
)
def test_snapshots_like_the_last_ones_never_exceed_the_limit(limit, costs, step_s) -> None:
    """A snapshot that costs no more than expected leaves the share within the limit."""
    budget = Clocked(limit)
    budget.clock += step_s
    budget.take(costs[0])
    for cost in costs[1:]:
        wait_s = step_s
        budget.clock += step_s
        while not budget.allows_weights():
            budget.clock += wait_s
            wait_s *= 1.1
        budget.take(min(cost, budget.weights.next_s()))
        assert budget.overhead() <= limit + 1e-9


@pytest.mark.parametrize("bad", [0, 0.0, -0.1, 1.5, math.nan, math.inf, "1%", True])
def test_a_share_out_of_range_is_refused(bad) -> None:
    with pytest.raises(sw.ConfigurationError, match=r"`max_overhead` .* in \(0, 1\], or None"):
        OverheadBudget(bad)
