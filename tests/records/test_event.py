"""An event: what follows from its fields, and how it is told to people."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsitywatch.records import Event, latest_versions
from sparsitywatch.series import SERIES

EVENT = Event(
    series="near_zero/initial_0.1", direction="up", onset_step=300, detected_step=350,
    baseline=0.05, value=0.1,
)  # fmt: skip


def test_what_is_not_given() -> None:
    assert (EVENT.onset_low, EVENT.onset_high) == (300, 300)
    assert EVENT.id == "near_zero/initial_0.1@300"
    assert (EVENT.explained_by_decay, EVENT.reverted_step, EVENT.revised_step) == (None, -1, -1)
    assert replace(EVENT, series="").id == EVENT.id
    nameless = replace(EVENT, series="", id="")
    assert nameless.id == ""
    assert replace(nameless, series="a/b").id == "a/b@300"


@pytest.mark.parametrize(
    ("noise", "value", "sizes"),
    [
        (0.01, 0.1, 5.0),
        (0.01, 0.0, -5.0),
        (0.0, 0.1, math.inf),
        (0.0, 0.01, -math.inf),
        (0.0, 0.05, 0.0),
    ],
)
def test_size_in_units_of_the_noise(noise: float, value: float, sizes: float) -> None:
    event = replace(EVENT, noise=noise, value=value)
    assert event.size == pytest.approx(value - 0.05)
    assert event.size_in_noise == pytest.approx(sizes)
    assert math.isnan(EVENT.size_in_noise)


def test_told_at_its_detection_or_when_it_was_added_to() -> None:
    assert EVENT.reported_step == 350
    assert replace(EVENT, revised_step=400).reported_step == 400


@pytest.mark.parametrize(
    ("changes", "asks"),
    [
        ({}, "Look"),
        ({"direction": "down"}, "Note"),
        ({"kind": "not_finite", "reason": "NaN in a"}, "Act"),
    ],
)
def test_a_report_begins_with_what_it_asks_for_and_ends_in_advice(changes: dict, asks: str) -> None:
    event = replace(EVENT, **changes)
    assert asks.lower() == event.severity
    assert event.report() == f"{asks}: {event.describe()}. {event.advice}"


def test_in_words() -> None:
    plain = (
        "Near-zero weights (|w| ≤ 0.1 × first rms) began to rise from 5 % to 10 % (about 2 ×) "
        "after step 300"
    )
    assert EVENT.headline == plain
    assert EVENT.describe() == f"{plain}, seen at step 350"
    full = replace(
        EVENT,
        onset_low=275,
        onset_high=325,
        layers=("a", "b", "c", "d"),
        decay_clock=2.5,
        trend="sparsifying",
        change="both",
        explained_by_decay=False,
        related=("near_zero/rms_0.1", "y/z"),
        preceded_by="motion/dormant@100",
        reverted_step=1500,
    )
    assert full.describe() == (
        "Near-zero weights (|w| ≤ 0.1 × first rms) rose from 5 % to 10 % (about 2 ×), beginning "
        "between steps 275 and 325, most in a, b, c and 1 more, seen at step 350. Scale and shape "
        "of the weights' distribution changed; weight decay cannot explain it; seen in near-zero "
        "weights (|w| ≤ 0.1 × present rms), y/z too; dormant weights of these layers rose before, "
        "at step 100; back by half at step 1,500"
    )
    grown = replace(EVENT, value=0.2, revised_step=400)
    told = (
        "weights (|w| ≤ 0.1 × first rms) rose from 5 % to 20 % (about 4 ×){}, beginning after step "
    )
    assert grown.describe().endswith(
        f"{told.format(' so far')}300, seen at step 350, as of step 400"
    )
    last = replace(grown, settled_step=400)
    assert last.describe().endswith(f"{told.format('')}300, seen at step 350, settled at step 400")
    assert [e.course for e in (EVENT, grown, last, full)] == ["seen", "growing", "settled", "over"]
    assert [e.is_news for e in (EVENT, grown, last)] == [True, False, True]
    few = replace(EVENT, direction="down", change="scale", explained_by_decay=True)
    assert few.describe().startswith("Near-zero weights (|w| ≤ 0.1 × first rms) began to fall from")
    assert few.describe().endswith("350. The scale of the weights moved; weight decay explains it")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"jumped": True}, "jumped from 5 % to 10 % (about 2 ×)"),
        ({"jumped": True, "direction": "down"}, "dropped from"),
        ({"kind": "steady", "value": 0.092}, "rose steadily from 5 % to 9.2 % (about 1.8 ×)"),
        ({"kind": "steady", "direction": "down"}, "fell steadily from"),
        ({"value": 0.074, "noise": 0.002}, "from 5 % to 7.4 % (12 times the noise)"),
        ({"value": 0.0749}, "from 5 % to 7.49 % after"),
        ({"value": 0.0751}, "from 5 % to 7.51 % (about 1.5 ×) after"),
        ({"value": 0.02}, "from 5 % to 2 % (about 0.4 ×) after"),
        ({"baseline": 0.0, "noise": 0.01}, "from 0 % to 10 % (10 times the noise)"),
        ({"baseline": 0.0, "noise": 0.0}, "from 0 % to 10 % after"),
        ({"baseline": 0.0, "noise": 0.034}, "from 0 % to 10 % after"),  # 2.9 times the noise
        ({"baseline": 0.0, "noise": 0.0333}, "from 0 % to 10 % (3 times the noise)"),
        ({"baseline": 0.0001, "value": 0.5}, "(about 5,000 ×)"),
        ({"baseline": 0.001, "value": 0.0994}, "(about 99 ×)"),
    ],
)
def test_how_a_change_came_and_how_large_it_is(changes, told: str) -> None:
    assert told in replace(EVENT, **changes).headline


def test_a_cause_that_cannot_be_known_is_said_to_be_unknown() -> None:
    """Of a rise of near-zero weights only: decay explains nothing else."""
    why = "Adam divides the decay by the size of the gradient"
    unknown = replace(EVENT, why_no_clock=why)
    assert unknown.causes == [f"it is not known what weight decay has to do with it: {why}"]
    assert replace(unknown, explained_by_decay=False).causes == ["weight decay cannot explain it"]
    assert replace(unknown, direction="down").causes == []


@pytest.mark.parametrize("series", ["value/reliance", "essential_sparsity/value"])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_of_a_model_that_got_worse_no_other_meaning_is_claimed(series: str, direction: str) -> None:
    event = replace(EVENT, series=series, direction=direction, value_trend="worse")
    assert event.causes == ["the model itself got worse"]
    assert event.severity == "look"
    assert event.advice.startswith("The held-out value got worse meanwhile")
    assert event.causes != replace(event, value_trend="better").causes


@pytest.mark.parametrize("trend", ["", "better", "worse", "still"])
def test_advice_asks_whether_the_value_still_gets_better(trend: str) -> None:
    advice = replace(EVENT, value_trend=trend).advice
    told = {
        "": "while the loss still falls", "better": "still gets better",
        "worse": "got worse", "still": "stands still",
    }  # fmt: skip
    assert [one for one, words in told.items() if words in advice] == [trend]


def test_a_number_is_told_in_the_unit_of_its_series() -> None:
    assert "from 2.303 to 3.1" in replace(EVENT, series="value/reliance", baseline=2.30258,
                                          value=3.1).headline  # fmt: skip
    assert "from 1,200 to 3" in replace(EVENT, series="weights/num_zero", baseline=1200.0,
                                        value=3.0).headline  # fmt: skip
    unknown = replace(EVENT, baseline=math.nan, value=math.nan, direction="")
    assert unknown.headline == "Near-zero weights (|w| ≤ 0.1 × first rms) changed after step 300"


def test_dormant_weights_are_told_as_levels() -> None:
    """Not the excess over what passes by chance."""
    dormant = replace(EVENT, series="motion/dormant", baseline=0.221, value=0.54, id="x")
    assert dormant.headline.startswith("Dormant weights began to rise from 22.1 % to 54 %")
    assert "more of the weights get no gradient" in dormant.causes


@pytest.mark.parametrize(
    ("series", "direction", "meaning"),
    [
        ("value/reliance", "up", "The model begins to use the watched weights"),
        ("essential_sparsity/value", "down", "Fewer of the weights could be removed"),
    ],
)
def test_changes_of_the_value_say_what_they_mean(series: str, direction: str, meaning: str) -> None:
    assert meaning in replace(EVENT, series=series, direction=direction).describe()


@pytest.mark.parametrize("series", [row.name for row in SERIES])
@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("kind", ["abrupt", "steady"])
def test_every_event_ends_in_what_people_do(series: str, direction: str, kind: str) -> None:
    event = replace(EVENT, series=series, direction=direction, kind=kind, before_step=1250)
    assert event.advice.endswith(".")
    assert "{" not in event.advice
    assert "1,250" in event.advice or "No action needed" in event.advice
    assert event.severity in ("note", "look")
    replicas = replace(event, kind="replicas", ranks=(1,), layers=("a",))
    assert "a checkpoint of step 1,250 or before" in replicas.advice
    assert replicas.severity == "act"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 99)), max_size=12))
def test_the_last_version_of_each_counts(told: list[tuple[str, int]]) -> None:
    events = [replace(EVENT, id=name, revised_step=step) for name, step in told]
    found = latest_versions(events)
    assert [e.id for e in found] == list(dict.fromkeys(name for name, _ in told))
    for event in found:
        assert event.revised_step == [step for name, step in told if name == event.id][-1]
