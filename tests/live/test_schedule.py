"""When to look: what a schedule asks for, and the steps around an alert."""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace

import pytest
from contracts import fake_run
from hypothesis import given
from hypothesis import strategies as st

import sparsitywatch as sw
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.live.schedule import (
    Adaptive,
    BudgetedSchedule,
    Due,
    as_schedule,
    at,
    every,
    geometric,
)


@given(st.integers(1, 50), st.integers(1, 500))
def test_every_is_the_multiples(interval: int, step: int) -> None:
    assert every(interval)(step) == (step in range(interval, 501, interval))


def test_at_is_exactly_these() -> None:
    assert [s for s in range(1, 20) if at([7, 3, 7])(s)] == [3, 7]


@given(st.integers(0, 200), st.integers(1, 40), st.data())
def test_the_next_step_is_the_first_one_that_is_due(step, interval, data) -> None:
    alerted = sw.adaptive(interval, closer=3, intervals=1)
    alerted.alert(data.draw(st.integers(0, 200)))
    schedules = (every(interval), at([9, 3, 150]), geometric(interval, 1.3, 50), alerted)
    schedule = data.draw(st.sampled_from(schedules))
    ahead = range(step + 1, step + 200)
    assert schedule.next_due(step) == next((s for s in ahead if schedule(s)), -1)


@pytest.mark.slow
@given(
    st.integers(1, 20),
    st.floats(1.05, 4.0),
    st.none() | st.integers(1, 30),
    st.permutations(range(1, 200)),
)
def test_geometric_depends_on_the_step_alone(first, ratio, max_interval, order) -> None:
    due = geometric(first, ratio, max_interval)
    in_order = [s for s in range(1, 200) if due(s)]
    fresh = geometric(first, ratio, max_interval)
    assert sorted(s for s in order if fresh(s)) == in_order
    gaps = [b - a for a, b in itertools.pairwise(in_order)]
    assert all(b >= a for a, b in itertools.pairwise(gaps))
    if max_interval is not None:
        assert all(gap <= max_interval for gap in gaps)


@given(
    interval=st.integers(1, 50),
    closer=st.integers(2, 10),
    intervals=st.integers(1, 5),
    alert=st.integers(0, 200),
)
def test_closer_looks_are_those_in_the_alerted_stretch(interval, closer, intervals, alert) -> None:
    schedule = sw.adaptive(interval, closer=closer, intervals=intervals)
    schedule.alert(alert)
    fine = max(1, interval // closer)
    for step in range(1, 400):
        expected = step % interval == 0 or (
            step <= alert + interval * intervals and step % fine == 0
        )
        assert schedule(step) == expected


def test_a_function_is_asked_once_about_each_step_and_never_ahead() -> None:
    asked = []
    pace = BudgetedSchedule(lambda step: asked.append(step) or step == 4, None)
    assert [step for step in (3, 4) if pace.due(step, is_busy=False)] == [4]
    assert pace.schedule.next_due(4) == -1
    assert asked == [3, 4]
    assert as_schedule(50).next_due(50) == 100


@pytest.mark.parametrize("bad", [0, -5, 2.5, True, "500"])
def test_a_bad_interval_is_refused_by_name(bad: object) -> None:
    with pytest.raises(ConfigurationError, match="`every` to be a whole number"):
        as_schedule(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        *((at, {"steps": bad}, r"`steps(\[0\])?`") for bad in ([], [0], [1.5])),
        (geometric, {"first": 0}, "`first`"),
        (geometric, {"ratio": 1.0}, "`ratio`"),
        (geometric, {"max_interval": 0}, "`max_interval`"),
        (sw.adaptive, {"interval": 0}, "`interval`"),
        (sw.adaptive, {"interval": 10, "closer": 1}, "`closer` to be a whole number >= 2"),
        (sw.adaptive, {"interval": 10, "intervals": 0}, "`intervals` to be a whole number >= 1"),
    ],
)
def test_bad_arguments_are_refused(make, arguments, message) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make(**arguments)


def test_the_state_of_something_else_is_refused() -> None:
    with pytest.raises(sw.StateError, match="'until'"):
        Adaptive(10, closer=5, intervals=1).load_state_dict({"steps": 1})


# ------------------------------------------------------------------ as the budget allows


def due(pace: BudgetedSchedule, steps: range, *, is_busy: bool = False) -> list[int]:
    return [step for step in steps if pace.due(step, is_busy=is_busy)]


def test_without_a_limit_every_due_snapshot_is_taken_even_a_busy_one() -> None:
    pace = BudgetedSchedule(every(3), None)
    assert due(pace, range(1, 10), is_busy=True) == [3, 6, 9]
    assert pace.pop_left_out() == 0


def test_with_a_limit_a_busy_snapshot_is_left_out() -> None:
    pace = BudgetedSchedule(every(1), 0.5)
    assert due(pace, range(1, 3), is_busy=True) == []
    assert pace.pop_left_out() == 2


def test_what_is_not_affordable_is_left_out_counted_and_said_once(caplog) -> None:
    pace = BudgetedSchedule(every(1), 0.01)
    pace.budget.weights.expect(1000.0)
    with caplog.at_level(logging.WARNING, "sparsitywatch"):
        assert due(pace, range(1, 6)) == []
    assert [pace.pop_left_out(), pace.pop_left_out()] == [5, 0]
    assert pace.left_out == {"to keep within `max_overhead`": 5}
    assert len(caplog.records) == 1


def simulated(
    interval: int, steps: int, step_s: float, weights_s: float, everything_s: float
) -> list[tuple[int, Due]]:
    """What is taken of a training at one percent, on a clock of its own."""
    pace = BudgetedSchedule(every(interval), 0.01, evaluates=True)
    now, found = 0.0, []
    pace.budget.now = lambda: now
    pace.budget.weights.expect(weights_s)
    pace.budget.evaluations.expect(everything_s - weights_s)
    for step in range(1, steps + 1):
        what = pace.due(step, is_busy=False)
        now += step_s
        if what:
            seconds = everything_s if what is Due.EVERYTHING else weights_s
            now += seconds
            pace.budget.charge(seconds)
            pace.budget.attribute(seconds, evaluated=what is Due.EVERYTHING)
            found.append((step, what))
    return found


def test_the_warning_says_in_steps_what_each_half_does(caplog) -> None:
    taken = simulated(50, 1800, 0.45, weights_s=0.03, everything_s=6.23)
    expected = [(step, Due.WEIGHTS) for step in range(50, 1801, 50)]
    expected[34] = (1750, Due.EVERYTHING)  # 6.2 s / 0.008 are 1,723 steps
    assert taken == expected
    assert len(caplog.records) == 1
    assert "weights takes about 0.03 s, evaluating the proxy about 6.2 s" in caplog.text
    assert "next snapshot about step 100, next evaluation about step 1,750" in caplog.text


def test_weights_that_cannot_be_afforded_are_said_too(caplog) -> None:
    taken = simulated(10, 200, 1.0, weights_s=0.1, everything_s=5.0)
    assert [step for step, _ in taken] == [60, 110, 160]  # 0.1 s / 0.002 is 50 s
    (told,) = caplog.records  # of both, where both are left out
    assert "when the next comes is not known yet" not in told.getMessage()
    assert "next snapshot about step 60, next evaluation about step 620" in told.getMessage()


@pytest.mark.parametrize("affords_first", [True, False])
def test_each_kind_of_what_is_left_out_is_said_once(affords_first: bool, caplog) -> None:
    """First the evaluation alone and later the weights: twice; both from the first on: once."""
    pace = BudgetedSchedule(every(1), 0.01, evaluates=True)
    now = 0.0
    pace.budget.now = lambda: now
    pace.budget.weights.expect(1e-4 if affords_first else 100.0)
    pace.budget.evaluations.expect(100.0)
    pace.budget.start()
    for step in range(1, 10):
        now += 1.0
        pace.due(step, is_busy=False)
        if step == 5:
            pace.budget.weights.add(100.0)
    assert len(caplog.records) == (2 if affords_first else 1)


def test_only_the_rank_that_decides_says_what_is_left_out(caplog) -> None:
    pace = BudgetedSchedule(every(1), 0.01, evaluates=True, tells=False)
    pace.budget.weights.expect(1000.0)
    assert due(pace, range(1, 6)) == []
    assert pace.left_out == {"to keep within `max_overhead`": 5}
    assert not caplog.records


def test_the_step_of_what_comes_next_is_that_at_which_it_comes() -> None:
    """Foretold at every step before, within what a step's time says in whole intervals."""
    pace = BudgetedSchedule(every(7), 0.01, evaluates=True)
    now, told = 0.0, []
    pace.budget.now = lambda: now
    pace.budget.weights.expect(0.01)
    pace.budget.evaluations.expect(1.0)
    for step in range(1, 300):
        if pace.due(step, is_busy=False) is Due.EVERYTHING:
            break
        told.append(pace.next_step(Due.EVERYTHING, step))
        now += 0.5
    assert step == 252  # 1 s / 0.008 is 125 s, after the first step
    assert told[0] == -1  # the time of a step is not known yet
    stopped = BudgetedSchedule(every(7), 0.01)
    stopped.budget.now = lambda: 5.0
    assert [stopped.due(step, is_busy=False) for step in (7, 14)] == [Due.NOTHING] * 2
    assert stopped.next_step(Due.WEIGHTS, 14) == -1
    assert set(told[1:]) == {252}


@given(
    once_s=st.floats(0.0, 1.0),
    step_s=st.floats(0.01, 1.0),
    counting=st.floats(0.0, 0.005),
    weights_s=st.floats(0.005, 0.2),
)
def test_what_the_first_step_takes_is_not_foreseen_of_every_step(
    once_s: float, step_s: float, counting: float, weights_s: float
) -> None:
    """Oracle: all that the watch took, and one snapshot, are one percent of the time by then.

    Or the snapshot is a fifth of that, whatever else was taken.
    """
    pace = BudgetedSchedule(every(10), 0.01)
    now = 0.0
    pace.budget.now = lambda: now
    pace.budget.weights.expect(weights_s)
    told: list[int] = []
    each_s = counting * step_s
    for step in range(1, 201):
        pace.budget.enter()
        is_due = pace.due(step, is_busy=False)
        now += each_s + (once_s if step == 1 else 0.0)
        pace.budget.leave()
        if is_due:
            break
        told.append(pace.next_step(Due.WEIGHTS, step))
        now += step_s - each_s
    by_then_s = (once_s * (1.0 - counting) + weights_s) / (0.01 - counting)
    expected = 1 + (min(by_then_s, weights_s / 0.002) - once_s) / step_s  # once_s is time, too
    assert abs(step - max(expected, 10)) <= 11 or step == 200 < expected
    for foreseen in told[20:]:  # once the time of a step is known well
        assert abs(foreseen - expected) <= 0.06 * expected + 11


@pytest.mark.parametrize(
    ("records", "left_out", "elapsed_s", "made_up"),
    [
        ("none", 3, 1000.0, Due.EVERYTHING),
        ("none", 3, 102.0, Due.EVERYTHING),  # 1.01 s of one percent: all of it, at the end
        ("none", 3, 100.0, Due.WEIGHTS),
        ("none", 3, 1.1, Due.WEIGHTS),
        ("none", 3, 0.9, Due.NOTHING),
        ("none", 0, 1000.0, Due.NOTHING),  # nothing was due
        ("weights", 0, 1000.0, Due.EVERYTHING),
        ("weights", 0, 100.0, Due.NOTHING),  # the weights are known
        ("everything", 0, 1000.0, Due.NOTHING),
        ("everything", 1, 1000.0, Due.EVERYTHING),
    ],
)
def test_the_end_makes_up_for_what_was_left_out_where_it_is_paid_for(
    records, left_out, elapsed_s, made_up, caplog
) -> None:
    pace = BudgetedSchedule(every(500), 0.01, evaluates=True)
    now = 0.0
    pace.budget.now = lambda: now
    pace.budget.weights.expect(0.01)
    pace.budget.evaluations.expect(1.0)
    pace.budget.start()
    pace.num_left_out, now = left_out, elapsed_s
    (record,) = [record for record, _ in fake_run.looks([0])]
    log = {
        "none": [],
        "weights": [replace(record, not_evaluated="left out")],
        "everything": [record],
    }
    with caplog.at_level(logging.INFO, "sparsitywatch"):
        assert pace.made_up(log[records], 700) is made_up
    is_refused = not made_up and elapsed_s < 1000.0
    assert ("evaluating the proxy about 1 s" in caplog.text) == is_refused


def test_an_alert_looks_closer_survives_a_resume_and_means_nothing_to_other_schedules() -> None:
    alerted, again = (BudgetedSchedule(sw.adaptive(10, intervals=1), None) for _ in range(2))
    plain = BudgetedSchedule(every(10), None)
    for pace in (alerted, plain):
        pace.schedule.alert(10)
    again.schedule.load_state_dict(alerted.schedule.state_dict())
    for pace in (alerted, again):
        assert due(pace, range(11, 31)) == [12, 14, 16, 18, 20, 30]
    assert due(plain, range(11, 31)) == [20, 30]
    assert plain.schedule.state_dict() == {}
