"""When to look: the schedule within the budget, and closer after an alert."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sparsitywatch as sw
from sparsitywatch.live.schedule import Adaptive, BudgetedSchedule, Due, every


def due(pace: BudgetedSchedule, steps: range, *, is_busy: bool = False) -> list[int]:
    return [step for step in steps if pace.due(step, is_busy=is_busy) is not Due.NOTHING]


def left_out(pace: BudgetedSchedule) -> int:
    return pace.pop_left_out()


def test_without_a_limit_every_due_snapshot_is_taken_even_a_busy_one() -> None:
    pace = BudgetedSchedule(every(3), None)
    assert due(pace, range(1, 10), is_busy=True) == [3, 6, 9]
    assert left_out(pace) == 0


def test_what_is_not_affordable_is_left_out_counted_and_said_once(caplog) -> None:
    pace = BudgetedSchedule(every(1), 0.01)
    assert due(pace, range(1, 2)) == [1]
    pace.budget.spend(1000.0)
    pace.budget.book(1000.0)
    with caplog.at_level(logging.WARNING, "sparsitywatch"):
        assert due(pace, range(2, 6)) == []
    assert left_out(pace) == 4
    assert left_out(pace) == 0
    assert pace.budget.overhead(0.0) > 1.0
    assert len(caplog.records) == 1


def test_the_warning_says_in_steps_what_each_half_does(caplog) -> None:
    """A step of 0.45 s, a snapshot of the weights of 0.03 s, an evaluation of 6.2 s."""
    pace = BudgetedSchedule(every(50), 0.01, evaluates=True)
    clock = [0.0]
    pace.budget.now = lambda: clock[0]
    told = []
    for step in range(1, 151):
        found = pace.due(step, is_busy=False)
        clock[0] += 0.45
        if found is not Due.NOTHING:
            evaluated = found is Due.EVERYTHING
            seconds = 6.23 if evaluated else 0.03
            clock[0] += seconds
            pace.budget.spend(seconds)
            pace.budget.book(seconds, evaluated=evaluated)
            told.append((step, evaluated))
    assert [step for step, _ in told] == [50, 100, 150]
    assert told[0][1] is True
    assert told[1][1] is told[2][1] is False
    assert len(caplog.records) == 1
    assert "weights: every 50 steps; evaluation: about every 1,750 steps" in caplog.text


def test_weights_that_cannot_be_afforded_are_said_too(caplog) -> None:
    pace = BudgetedSchedule(every(10), 0.01, evaluates=True)
    clock = [0.0]
    pace.budget.now = lambda: clock[0]
    for step in range(1, 201):
        found = pace.due(step, is_busy=False)
        clock[0] += 1.0
        if found is not Due.NOTHING:
            seconds = 5.0 if found is Due.EVERYTHING else 0.1
            clock[0] += seconds
            pace.budget.spend(seconds)
            pace.budget.book(seconds, evaluated=found is Due.EVERYTHING)
    assert len(caplog.records) == 2
    assert "weights: about every 50 steps" in caplog.records[1].getMessage()


def test_with_a_limit_a_busy_snapshot_is_left_out() -> None:
    pace = BudgetedSchedule(every(1), 0.5)
    assert due(pace, range(1, 3), is_busy=True) == []
    assert left_out(pace) == 2


def test_an_alert_looks_closer_and_survives_a_resume() -> None:
    pace = BudgetedSchedule(sw.adaptive(10, closer=5, intervals=1), None)
    pace.alert(10)
    again = BudgetedSchedule(sw.adaptive(10, closer=5, intervals=1), None)
    again.load_state_dict(pace.state_dict())
    expected = [12, 14, 16, 18, 20, 30]
    assert due(pace, range(11, 31)) == expected
    assert due(again, range(11, 31)) == expected


def test_an_alert_means_nothing_to_a_plain_schedule() -> None:
    pace = BudgetedSchedule(every(10), None)
    pace.alert(10)
    assert due(pace, range(11, 31)) == [20, 30]
    assert pace.state_dict() == {}


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interval": 0}, "`interval`"),
        ({"interval": 10, "closer": 1}, "`closer` to be a whole number >= 2"),
        ({"interval": 10, "intervals": 0}, "`intervals` to be a whole number >= 1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message) -> None:
    with pytest.raises(sw.ConfigurationError, match=message):
        sw.adaptive(**arguments)


def test_the_state_of_something_else_is_refused() -> None:
    with pytest.raises(sw.StateError, match="'until'"):
        Adaptive(10, closer=5, intervals=1).load_state_dict({"steps": 1})
