"""Every number of the detectors has a reason, and is what they go by."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from contracts.families import some_of
from detecting import sensitivity
from detecting.sensitivity import (
    Number,
    Outcome,
    changed,
    detect_with,
    detectors_with,
    is_seen,
    numbers,
    outcomes,
)

from sparsitywatch.analysis import detect
from sparsitywatch.analysis.detect import abrupt, detector, jumps

SERIES = [0.05, 0.051, 0.049, 0.05, 0.052, 0.05, 0.049, 0.051, 0.05, 0.06, 0.08, 0.11]


def named(title: str) -> Number:
    return next(number for number in numbers() if number.title == f"`{title}`")


def alarms(package=detect) -> list[int]:
    watched = package.AbruptChange(0.01)
    return [i for i, value in enumerate(SERIES) if watched.update(i, value)]


def test_every_number_has_its_reason() -> None:
    found = numbers()
    assert len({number.title for number in found}) == len(found) > 40
    assert [number.title for number in found if len(number.why) < 20] == []
    assert {number.kind for number in found} == {"chosen", "guard", "bound", "grid"}


def test_numbers_are_those_that_are_written_in_constants() -> None:
    found = {number.title: number.value for number in numbers()}
    assert found["`detector.FEW`"] == detector.FEW
    assert found["`abrupt._MEMORIES`"] == abrupt._MEMORIES
    assert found["`abrupt.RISE.min_past`"] == abrupt.RISE.min_past
    assert found["`abrupt._RISE_SPLITS`"] == abrupt.RISE.splits
    assert found["`jumps._FREQUENCIES`"] == jumps._FREQUENCIES  # of a type, by a function
    assert "`jumps.WINDOW`" not in found  # follows from others


def test_detectors_are_made_anew_with_another_number_and_stay_as_they_are() -> None:
    before = {name: module for name, module in sys.modules.items() if "analysis.detect" in name}
    number = named("detector.SCORE")
    other = detect_with(number, number.times(2.0))
    assert other.detector.SCORE == other.abrupt.SCORE == 2 * detector.SCORE
    assert detect_with(named("jumps._LONG"), 20).jumps.WINDOW == jumps.WINDOW - 12
    now = {name: module for name, module in sys.modules.items() if "analysis.detect" in name}
    assert now == before
    assert sys.modules["sparsitywatch.analysis"].detect is detect


def test_what_a_number_decides_is_seen() -> None:
    usual = alarms()
    assert usual
    number = named("detector.SCORE")
    assert alarms(detect_with(number, number.value)) == usual
    assert alarms(detect_with(number, 30.0)) != usual


def test_a_grid_is_scaled_as_a_whole_and_whole_numbers_stay_whole() -> None:
    def made(value: object) -> Number:
        return Number("m", "x", value, "grid", "", 0, 0)  # type: ignore[arg-type]

    assert made((0.5, 1.0, 2.0, 4.0)).times(0.5) == (0.25, 0.5, 1.0, 2.0)
    assert made((2, 3, 4, 6)).times(0.5) == (1, 2, 3)
    assert made((2, 3, 4, 6)).shown == "2…6"
    assert made(7).times(0.5) == 4
    assert made(1).times(0.5) == 1


def test_changes_are_counted_by_series() -> None:
    before = {
        "a": Outcome((3,), (0.1,)), "b": Outcome((), (), 1), "c": Outcome((5,), (0.2,), 0, 1),
    }  # fmt: skip
    now = {"a": Outcome((), (), 1), "b": Outcome((), (0.3,), 1), "c": Outcome((), ())}
    assert changed(before, before) == "nothing"
    assert changed(before, now) == "2 alarms, 1 told, missed +1, false -1"


@pytest.mark.slow
def test_a_number_is_tried_on_the_detectors_that_read_it() -> None:
    assert detectors_with("detector") == {"abrupt", "measured", "value"}
    assert detectors_with("jumps") == detectors_with("abrupt") == {"abrupt", "value"}
    assert detectors_with("measured") == {"measured"}
    found = outcomes([100], 41, modules=detectors_with("measured"))
    kinds = ("dormant", "essential sparsity", "reliance")
    assert {kind for kind in kinds for name in found if name.startswith(kind)} == set(kinds)
    assert all(name.startswith(kinds) for name in found)


@pytest.mark.slow
def test_every_detector_is_looked_at_on_what_it_is_for() -> None:
    found = outcomes([100], 41)
    kinds = ("growth", "recorded", "essential sparsity", "reliance", "dormant")
    for kind in kinds:
        assert any(o.alarms for name, o in found.items() if name.startswith(kind)), kind


@pytest.mark.slow
def test_a_row_says_what_both_values_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def one(seeds: object, longest: int, package=detect, *_) -> dict[str, Outcome]:
        del seeds, longest
        return {"made up": Outcome(tuple(alarms(package)), ())}

    monkeypatch.setattr(sensitivity, "outcomes", one)
    place = [number.title for number in numbers()].index("`detector.HALF`")
    rows, number = sensitivity.rows_of(some=slice(place, place + 1))
    assert number == len(rows) == 1
    assert rows[0][:3] == ["`detector.HALF`", "0.5", "chosen"]
    assert rows[0][4:] == ["1 alarms", "1 alarms"]


_NEXT = "test_the_next_change_is_looked_for_after_twelve_snapshots_that_add_a_fifth_at_most"
_AT_BEST = "test_a_value_within_three_of_its_noise_of_its_best_is_at_it"
_UNLEARNED = "test_what_never_leaves_its_start_is_told_after_sixteen_evaluations"
#: Not pinned on a series, but on what a part of a detector says, or not to be doubled.
ELSEWHERE = {
    ("abrupt._ANSWER_IN_LOG", 0.5): "test_an_answer_to_the_rate_is_believed_up_to_its_usual_size",
    (
        "abrupt._MEMORIES",
        0.5,
    ): "test_a_memory_of_thirty_two_snapshots_is_allowed_for_and_no_longer_one",
    (
        "abrupt._MEMORIES",
        2.0,
    ): "test_a_memory_of_thirty_two_snapshots_is_allowed_for_and_no_longer_one",
    ("abrupt._BENDS", 0.5): "test_growth_is_even_up_to_a_bend_that_makes_it_twice_as_steep",
    ("abrupt._BENDS", 2.0): "test_growth_is_even_up_to_a_bend_that_makes_it_twice_as_steep",
    ("abrupt._STEEPER", 0.5): "test_growth_is_even_up_to_a_bend_that_makes_it_twice_as_steep",
    ("abrupt._STEEPER", 2.0): "test_growth_is_even_up_to_a_bend_that_makes_it_twice_as_steep",
    ("jumps._CORRELATIONS", 2.0): "",  # a correlation above 1
    ("measured._SCORE_OF_MULTIPLE", 2.0): "test_reliance_rises_at_every_recorded_breakthrough",
    ("measured._SETTLED", 0.5): _NEXT,
    ("measured._SETTLED", 2.0): _NEXT,
    ("measured._SETTLING", 0.5): _NEXT,
    ("value.CLEAR", 0.5): _AT_BEST,
    ("value.CLEAR", 2.0): _AT_BEST,
    ("value.ENOUGH", 0.5): _UNLEARNED,
    ("value.ENOUGH", 2.0): _UNLEARNED,
    ("value._FEWEST", 0.5): "test_what_got_worse_for_good_is_told_however_it_came",
    ("value._FEWEST", 2.0): "test_a_third_of_a_short_run_says_where_it_stands",
    ("value._FULL", 0.5): "test_warm_up_is_no_training_yet",
    ("value._FULL", 2.0): "test_warm_up_is_no_training_yet",
    ("value._MISSED", 0.5): "test_a_fifth_of_what_was_gained_is_worse",
    ("value._MISSED", 2.0): "test_a_fifth_of_what_was_gained_is_worse",
}
#: For half of each chosen number, and twice of it, a series on which that is seen.
PINS: dict[str, str] = json.loads(Path(__file__).with_name("number_pins.json").read_text())


def test_every_chosen_number_is_pinned_on_either_side() -> None:
    chosen = [n for n in numbers() if n.kind in ("chosen", "grid")]
    sides = {(n.title.strip("`"), x) for n in chosen for x in (0.5, 2.0) if n.times(x) != n.value}
    pinned = {(title, float(x)) for title, x in (pin.split(" x") for pin in PINS)}
    assert pinned <= sides
    assert sides - pinned == set(ELSEWHERE)
    tests = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
    assert all(f"def {name}(" in tests for name in ELSEWHERE.values() if name)


@pytest.mark.slow
@pytest.mark.parametrize("pin", some_of(PINS, 6))
def test_a_number_that_is_halved_or_doubled_is_seen(pin: str) -> None:
    title, factor = pin.split(" x")
    assert is_seen(named(title), float(factor), PINS[pin])
