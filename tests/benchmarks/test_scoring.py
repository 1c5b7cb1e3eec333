"""What alarms are worth, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from detecting.detectors import MIN_EFFECT, online
from detecting.scoring import Outcome, Score, grouped, judge, score
from detecting.series import Series

from sparsitywatch.records import Event

STEPS, VALUES = np.arange(1, 101), np.zeros(100)
QUIET = Series("stable", 0, STEPS, VALUES)
JUMP = Series("change", 0, STEPS, VALUES, onset=40, settled=43)
SLOW = Series("takeoff", 0, STEPS, VALUES, onset=30, settled=80, due=50, window=(35, 60))


@pytest.mark.parametrize(
    ("series", "alarms", "delay", "false"),
    [
        (JUMP, [], None, 0),
        (JUMP, [39], 0, 0),  # one snapshot early
        (JUMP, [45], 5, 0),
        (JUMP, [46], None, 0),  # too late, but the change goes on
        (JUMP, [49], None, 1),
        (JUMP, [38], None, 1),
        (JUMP, [10, 11, 12, 42, 90], 2, 2),
        (JUMP, [37, 39], None, 1),  # the second belongs to the first, which is too early
        (SLOW, [29], None, 1),
        (SLOW, [30], None, 0),
        (SLOW, [36], -14, 0),
        (SLOW, [60], 10, 0),
        (SLOW, [61], None, 0),
        (SLOW, [86], None, 1),
    ],
)
def test_a_change(series: Series, alarms: list[int], delay: int | None, false: int) -> None:
    """Of the jump snapshots 39 to 48 are excused, of the slow take-off 30 to 85."""
    num_quiet = 90 if series is JUMP else 44
    assert judge(series, alarms) == Outcome(series.family, 0, True, delay, false, num_quiet)


def test_every_alarm_in_a_series_without_a_change_is_false() -> None:
    assert judge(QUIET, [3, 4, 50]) == Outcome("stable", 0, False, None, 2, 100)


def test_change_points_hit_within_their_tolerance() -> None:
    assert judge(JUMP, [37], tolerance=3).delay == 0
    assert judge(JUMP, [44], tolerance=3).delay is None
    assert judge(JUMP, [37], tolerance=3).num_false == 0


def test_what_is_dropped_at_the_end_is_not_counted() -> None:
    late = Series("change", 0, STEPS, VALUES, onset=97, settled=99)
    assert judge(late, [98]) == Outcome("change", 0, True, 1, 0, 96)


def test_groups_reach_three_snapshots_from_their_first() -> None:
    assert grouped([9, 3, 4, 5, 6, 7]) == [3, 7]


def outcomes() -> tuple[Outcome, ...]:
    return (
        Outcome("a", 0, True, 2, 1, 100),
        Outcome("a", 1, True, None, 0, 100),
        Outcome("a", 2, True, 4, 0, 100),
        Outcome("b", 0, False, None, 1, 200),
    )


def test_totals() -> None:
    found = Score(outcomes())
    expected = {"recall": 2 / 3, "precision": 2 / 4, "f1": 4 / 7, "false_per_1000": 1000 * 2 / 500}
    assert found.figures == pytest.approx(expected)
    assert (found.delay(50), found.delay(90)) == (3.0, pytest.approx(3.8))
    assert math.isnan(Score(outcomes()[3:]).delay(50))
    assert Score(()).figures["f1"] == 0.0


def test_an_interval_holds_its_figure_and_is_a_point_where_seeds_agree() -> None:
    found = Score(outcomes())
    for name, (low, high) in found.intervals.items():
        assert low <= found.figures[name] <= high
        assert low < high
    alike = Score(tuple(Outcome("a", seed, True, 1, 1, 10) for seed in range(5)))
    assert alike.intervals["precision"] == (0.5, 0.5)


def test_a_detector_is_told_step_value_and_context_look_by_look() -> None:
    told: list[object] = []

    def make(min_effect: float):  # type: ignore[no-untyped-def]
        told.append(min_effect)

        def update(step: int, value: float, context: dict[str, float] | None) -> bool:
            told.append((step, value, context))
            return value > 0.5

        return update

    series = Series("x", 0, STEPS[:2], np.array([0.0, 1.0]), unit=2.0, context={"lr": STEPS[:2]})
    assert online(make)(series) == {1: True}
    assert told == [2 * MIN_EFFECT, (1, 0.0, {"lr": 1.0}), (2, 1.0, {"lr": 2.0})]
    assert score(online(make), [series]).figures["false_per_1000"] == 500.0


@pytest.mark.parametrize(
    ("low", "high", "outside"),
    [
        (40, 45, 0),  # the onset is at step 41, index 40
        (41, 41, 0),
        (42, 45, 1),
        (40, 40, 0),  # after step 40: it has begun at the next
        (20, 39, 1),
        (20, 38, 2),
    ],
)
def test_how_far_the_onset_is_from_its_interval(low: int, high: int, outside: int) -> None:
    event = Event(
        series="", direction="up", onset_step=low, onset_low=low, onset_high=high,
        detected_step=43, baseline=0.0, value=1.0,
    )  # fmt: skip
    assert judge(JUMP, {42: event}).outside == outside
    assert judge(JUMP, {10: event}).outside is None  # false
    assert judge(JUMP, {42: True}).outside is None  # nothing is said of the onset
    assert judge(QUIET, {42: event}).outside is None


def test_intervals_that_hold_the_onset_are_counted_of_those_that_there_are() -> None:
    found = Score(
        tuple(Outcome("x", 0, True, 1, 0, 9, outside) for outside in (0, 1, 1, 2, None, 0))
    )
    assert found.held() == (2, 5)
    assert Score(()).held() == (0, 0)
