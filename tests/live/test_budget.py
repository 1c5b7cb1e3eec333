"""The budget against sums done by hand, on a clock that the test moves."""

from __future__ import annotations

import itertools
import math

import pytest
from contracts.watched import Run
from hypothesis import given
from hypothesis import strategies as st

import sparsitywatch as sw
from sparsitywatch.live.schedule import Due, OverheadBudget
from sparsitywatch.ranks.reading import ShardedReader
from sparsitywatch.weights.motion import MotionTracker


class Clocked(OverheadBudget):
    """A budget whose training has begun, on a clock of its own, told prices at the attach."""

    def __init__(
        self, max_overhead: float | None, weights_s: float, evaluation_s: float | None = None
    ) -> None:
        self.clock = 100.0
        super().__init__(max_overhead, evaluates=evaluation_s is not None, now=lambda: self.clock)
        self.weights.expect(weights_s)
        if evaluation_s is not None:
            self.evaluations.expect(evaluation_s)
        self.start()

    @property
    def share(self) -> float:
        """Of the wall time that the training has taken so far."""
        return self.overhead()

    def take(self, seconds: float, *, evaluated: bool = False) -> None:
        """A snapshot that holds up the training for this long."""
        self.enter()
        self.clock += seconds
        self.leave()
        self.attribute(seconds, evaluated=evaluated)

    def train(self, num: int, step_s: float, weights_s: float, evaluation_s: float) -> list[Due]:
        """Take what is allowed after each of some steps; returns what was done at each."""
        done = []
        for _ in range(num):
            self.clock += step_s
            kinds = [Due.EVERYTHING, Due.WEIGHTS] if self.evaluates else [Due.WEIGHTS]
            due = next((kind for kind in kinds if self.wait_s(kind) <= 0.0), Due.NOTHING)
            if due:
                evaluated = due is Due.EVERYTHING
                self.take(weights_s + evaluation_s * evaluated, evaluated=evaluated)
            done.append(due)
        return done


@pytest.mark.parametrize(
    ("limit", "weights_s", "evaluation_s", "weights_at", "evaluation_at"),
    [
        (0.01, 0.03, None, 3.0, math.nan),  # all of it, without evaluations
        (0.01, 0.03, 6.0, 15.0, 750.0),  # a fifth and four fifths
        (0.1, 0.03, 6.0, 1.5, 75.0),
        (1.0, 2.0, 1.0, 10.0, 10.0),  # an evaluation is one of the weights, too
    ],
)
def test_the_first_ones_come_when_they_are_paid_for(
    limit, weights_s, evaluation_s, weights_at, evaluation_at
) -> None:
    budget = Clocked(limit, weights_s, evaluation_s)
    expected = {Due.WEIGHTS: weights_at, Due.EVERYTHING: evaluation_at}
    for due, at in expected.items():
        if not math.isnan(at):
            budget.clock = 100.0 + 0.9 * at
            assert budget.wait_s(due) == pytest.approx(0.1 * at)
            budget.clock = 100.0 + 1.001 * at
            assert budget.wait_s(due) < 0.0


def test_at_the_very_beginning_nothing_is_paid_for() -> None:
    assert Clocked(1.0, 0.0).wait_s(Due.WEIGHTS) == math.inf


def test_a_snapshot_is_allowed_once_it_and_what_was_done_behind_the_training_fit() -> None:
    budget = Clocked(0.1, 2.0)
    budget.clock += 20.0
    budget.take(2.0)
    budget.charge(0.5)
    budget.attribute(0.5)  # behind it
    budget.weights.expect(2.0)
    budget.clock += 22.9  # spent 2.5, next 2: 4.5 s of 44.9
    assert budget.wait_s(Due.WEIGHTS) == pytest.approx(0.1)
    assert budget.overhead() == pytest.approx(2.5 / 44.9)


def test_the_share_includes_what_is_going_on() -> None:
    budget = Clocked(0.1, 0.0)
    budget.clock += 6.0
    budget.enter()
    budget.clock += 2.0
    budget.enter()  # nested: counted once
    budget.clock += 2.0
    assert budget.overhead() == pytest.approx(4 / 10)
    assert budget.overhead(1.0) == pytest.approx(5 / 10)
    assert budget.overhead(60.0) == 1.0  # read beside the training, in several threads
    budget.leave()
    budget.leave()
    assert budget.overhead() == pytest.approx(4 / 10)


def test_an_evaluation_of_two_hundred_snapshots_delays_none_of_them() -> None:
    """The training of a step of 0.45 s whose full snapshot takes 6.2 s; due every 50 steps."""
    budget = Clocked(0.01, 0.03, 6.17)
    evaluated = []
    for look in range(400):
        (done,) = budget.train(1, 22.5, 0.03, 6.17)
        assert done is not Due.NOTHING
        evaluated += [50 * (look + 1)] if done is Due.EVERYTHING else []
        assert budget.share <= 0.01
    # 6.17 s of 0.008 of the wall time are 1,714 steps of 0.45 s: first, and then
    assert evaluated[0] == 1750
    intervals = [b - a for a, b in itertools.pairwise(evaluated)]
    assert 1650 <= sum(intervals) / len(intervals) <= 1750


def test_an_evaluation_far_dearer_than_expected_delays_no_snapshot() -> None:
    budget = Clocked(0.01, 0.03, 6.17)
    for evaluation_s in (6.17, 6.17, 617.0, 6.17):
        done = budget.train(100, 22.5, 0.03, evaluation_s)
        assert Due.NOTHING not in done
    assert Due.EVERYTHING not in done  # not before the dear one is paid


def test_snapshots_of_the_weights_that_are_due_too_often_come_evenly() -> None:
    """One of 0.01 s at every step of 1 s is five times a fifth: every fifth one is taken."""
    done = Clocked(0.01, 0.01, 1e9).train(2_000, 1.0, 0.01, 1e9)
    steps = [step for step, due in enumerate(done, 1) if due]
    gaps = {b - a for a, b in itertools.pairwise(steps)}
    assert steps[0] == 5
    assert gaps <= {4, 5}
    assert len(steps) == pytest.approx(400, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("counting", [0.0, 0.001, 0.004, 0.008])
def test_counting_the_steps_is_paid_first(counting: float) -> None:
    budget = Clocked(0.01, 0.001, 0.05)
    for _ in range(20_000):
        budget.charge(counting)
        budget.train(1, 1.0, 0.001, 0.05)
        assert budget.share <= 0.01 + 1e-9
    spent_s = budget.share * (budget.clock - 100.0) - 20_000 * counting
    left = 0.01 - counting
    expected = 0.8 * left + min(0.001, 0.2 * left)
    assert spent_s == pytest.approx(20_000 * expected, rel=0.05)


def test_steps_so_short_that_counting_them_costs_the_limit_leave_snapshots_a_fifth() -> None:
    budget = Clocked(0.01, 1e-4, 0.01)
    done = []
    for _ in range(20_000):
        budget.charge(1e-5)  # what the watch does at a step of 1 ms
        done += budget.train(1, 1e-3, 1e-4, 0.01)
    elapsed_s = budget.clock - 100.0
    assert sum(map(bool, done)) * 1e-4 == pytest.approx(0.2 * 0.002 * elapsed_s, rel=0.05)
    assert budget.share <= 0.0122


def test_first_looks_are_in_no_share_and_leave_the_rest_what_it_would_be() -> None:
    budget, other = Clocked(0.01, 0.01), Clocked(0.01, 0.01)
    budget.apart.add(8)
    for one in (budget, other):
        one.clock += 10.0
        one.take(0.02)
    budget.enter()
    budget.clock += 3.0
    budget.attribute(3.0, step=8)
    budget.leave()
    assert budget.apart_s == 3.0
    assert budget.share == pytest.approx(other.share)
    assert budget.elapsed_s() == pytest.approx(other.elapsed_s())
    assert budget.wait_s(Due.WEIGHTS) == pytest.approx(other.wait_s(Due.WEIGHTS))


def test_without_a_limit_everything_is_allowed() -> None:
    budget = Clocked(None, 1e9, 1e9)
    budget.attribute(1e9, evaluated=True)
    assert [budget.wait_s(due) for due in (Due.WEIGHTS, Due.EVERYTHING)] == [0.0, 0.0]


def test_before_the_training_began_nobody_knows_the_share_and_nothing_is_its_time() -> None:
    budget = OverheadBudget(0.01, now=lambda: 5.0)
    budget.charge(1.0)
    budget.attribute(1.0)
    assert math.isnan(budget.overhead())
    budget.start()
    assert budget.weights.spent_s == 0.0
    assert budget.weights.price_s == 1.0  # but what it has taught


def test_the_price_is_what_the_attach_said_until_evaluations_say_another() -> None:
    budget = Clocked(0.01, 1.0, 10.0)
    prices = []
    for seconds in (31.0, 11.0, 12.0, 13.0, 500.0):  # each with one of the weights, of 1 s
        prices.append(budget.evaluations.price_s)
        budget.take(seconds, evaluated=True)
    assert prices == [10.0, 20.0, 10.0, 11.0, 11.0]  # medians of 10 30 10 11 12 499
    assert budget.evaluations.price_s == 12.0


STRETCHES = st.lists(st.tuples(st.integers(1, 50), st.floats(0.01, 50.0)), min_size=1, max_size=10)


@given(
    limit=st.floats(0.001, 1.0),
    weights_s=st.floats(0.0001, 1.0),
    evaluation_s=st.none() | st.floats(0.001, 100.0),
    stretches=STRETCHES,
    too_dear=st.floats(1.0, 3.0),
)
def test_the_limit_holds_from_the_first_step_on(
    limit, weights_s, evaluation_s, stretches, too_dear
) -> None:
    """Whatever the intervals, where things cost at most what they were expected to."""
    dear = None if evaluation_s is None else too_dear * evaluation_s
    budget = Clocked(limit, too_dear * weights_s, dear)
    for num, step_s in stretches:
        for _ in range(num):
            budget.train(1, step_s, weights_s, evaluation_s or 0.0)
            assert budget.share <= limit + 1e-9
    if budget.wait_s(Due.EVERYTHING, is_last=True) <= 0.0:
        budget.take(weights_s + (evaluation_s or 0.0), evaluated=evaluation_s is not None)
        assert budget.share <= limit + 1e-9


@given(
    limit=st.floats(0.001, 0.1),
    weights_s=st.floats(0.0001, 1.0),
    evaluation_s=st.floats(0.001, 100.0),
    stretches=STRETCHES,
    wrong=st.floats(1.0, 2.0),
)
def test_a_price_that_is_wrong_is_over_the_limit_by_no_more_than_that(
    limit, weights_s, evaluation_s, stretches, wrong
) -> None:
    budget = Clocked(limit, weights_s, evaluation_s)
    for num, step_s in stretches:
        for _ in range(num):
            budget.train(1, step_s, wrong * weights_s, wrong * evaluation_s)
            assert budget.share <= wrong * limit + 1e-9


@pytest.mark.parametrize("bad", [0, 0.0, -0.1, 1.5, math.nan, math.inf, "1%", True])
def test_a_share_out_of_range_is_refused(bad) -> None:
    with pytest.raises(sw.ConfigurationError, match=r"`max_overhead` .* in \(0, 1\], or None"):
        OverheadBudget(bad)


def test_the_attach_prices_all_that_is_said_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """What moved, too, of which there is most to say: the first snapshot is paid for in whole."""
    clock = [0.0]

    def slowed(cls: type, name: str, seconds: float) -> None:
        real = getattr(cls, name)

        def slow(*given: object, **named: object) -> object:
            clock[0] += seconds
            return real(*given, **named)

        monkeypatch.setattr(cls, name, slow)

    slowed(ShardedReader, "counted", 1.0)
    slowed(MotionTracker, "compare", 30.0)
    monkeypatch.setattr("sparsitywatch.live.snapshots.time.perf_counter", lambda: clock[0])
    with Run().watch(None, proxy=None, max_overhead=0.01) as watcher:
        price_s = watcher._budget.weights.price_s
    assert 30.0 < price_s < 40.0
    with Run().watch(None, proxy=None, max_overhead=0.01, dormant_samples=0) as watcher:
        price_s = watcher._budget.weights.price_s
    assert 0.0 < price_s < 10.0
