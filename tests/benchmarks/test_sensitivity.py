"""Every number of the detector has a reason, and is what the detector goes by."""

from __future__ import annotations

import pytest
from detecting import sensitivity
from detecting.sensitivity import Number, changed, numbers, with_value

from sparsitywatch.analysis.detect import AbruptChange, change, detector, growth, jumps

SERIES = [0.05, 0.051, 0.049, 0.05, 0.052, 0.05, 0.049, 0.051, 0.05, 0.06, 0.08, 0.11]


def named(title: str) -> Number:
    return next(number for number in numbers() if number.title == f"`{title}`")


def alarms() -> list[int]:
    watched = AbruptChange(0.01)
    return [i for i, value in enumerate(SERIES) if watched.update(i, value)]


def test_every_number_has_its_reason() -> None:
    found = numbers()
    assert len(found) > 50
    assert [number.title for number in found if len(number.why) < 20] == []


def test_a_number_is_another_one_for_a_while_wherever_it_is_read() -> None:
    number = named("change._SEARCHED")
    with with_value(number, number.times(0.5)):
        assert change._SEARCHED == 96
    assert change._SEARCHED == 192
    rise = named("growth.RISE.noise_factor")
    with with_value(rise, rise.times(2.0)):
        assert growth.RISE.noise_factor == detector.RISE.noise_factor == 8.0
    assert growth.RISE.noise_factor == detector.RISE.noise_factor == 4.0
    score = named("detector._GROWTH_SCORE[0]")
    with with_value(score, 100.0):
        assert detector._GROWTH_SCORE == (100.0, 0.5)
    assert detector._GROWTH_SCORE == (3.0, 0.5)


def test_what_a_number_decides_is_seen() -> None:
    usual = alarms()
    assert usual
    with with_value(named("detector._GROWTH_SCORE[0]"), 100.0):
        assert alarms() != usual
    assert alarms() == usual


def test_a_grid_is_scaled_as_a_whole_and_whole_numbers_stay_whole() -> None:
    grid = named("jumps._CORRELATIONS")
    assert grid.times(0.5) == tuple(0.5 * x for x in jumps._CORRELATIONS)
    assert grid.shown == "0.6…0.92"
    assert named("jumps._MIN_FIT").times(0.5) == 4
    assert Number("m", "x", -1, 1, "").times(0.5) == 1


def test_changes_are_counted_by_series() -> None:
    before = {"a": ((3,), 0, 0), "b": ((), 1, 0), "c": ((5,), 0, 1)}
    now = {"a": ((), 1, 0), "b": ((), 1, 0), "c": ((), 0, 0)}
    assert changed(before, before) == "nothing"
    assert changed(before, now) == "2 series, missed +1, false -1"


def test_a_row_says_what_both_values_do(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(sensitivity, "outcomes", lambda *_: {"made up": (tuple(alarms()), 0, 0)})
    place = [number.title for number in numbers()].index("`detector._GROWTH_SCORE[0]`")
    rows, number = sensitivity.rows_of(tell=told.append, some=slice(place, place + 1))
    assert number == len(rows) == len(told) == 1
    assert rows[0][:2] == ["`detector._GROWTH_SCORE[0]`", "3"]
    assert rows[0][3:] == ["nothing", "1 series, missed +0, false +0"]
