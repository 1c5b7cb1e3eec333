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


def test_in_words() -> None:
    plain = (
        "Near-zero weights rose abruptly from 5 % to 10 %: began at about step 300, seen at step "
        "350"
    )
    assert EVENT.describe() == plain
    assert plain.startswith(f"{EVENT.headline}: ")
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
        "Near-zero weights rose abruptly from 5 % to 10 %: began at about step 300 (275 to 325), "
        "seen at step 350, most in a, b, c and 1 more. Sparsifying; scale and shape of the "
        "weights' distribution changed; weight decay alone does not explain it; seen in near-zero "
        "weights (|w| ≤ 0.1 × present rms), y/z too; announced by dormant weights at step 100; "
        "back by half at step 1,500"
    )
    few = replace(EVENT, direction="down", change="scale", explained_by_decay=True)
    assert few.describe().startswith("Near-zero weights fell abruptly from")
    assert few.describe().endswith(
        "350. The scale of the weights moved; weight decay alone explains it"
    )


def test_a_number_is_told_in_the_unit_of_its_series() -> None:
    assert "from 2.303 to 3.1" in replace(EVENT, series="value/reliance", baseline=2.30258,
                                          value=3.1).headline  # fmt: skip
    assert "from 1,200 to 3" in replace(EVENT, series="weights/num_zero", baseline=1200.0,
                                        value=3.0).headline  # fmt: skip
    unknown = replace(EVENT, baseline=math.nan, value=math.nan, direction="")
    assert unknown.headline == "Near-zero weights changed abruptly"


def test_units_that_die_are_told_as_such_and_when_it_will_show() -> None:
    dormant = replace(
        EVENT, series="motion/dormant", baseline=0.01, value=0.05, trend="sparsifying", id="x"
    )
    assert dormant.headline == "Units are dying: 4 % of the weights get no gradient"
    assert "parsifying" not in dormant.describe()
    soon = replace(dormant, near_zero_step=2000).describe()
    assert "half of them will be near zero by step 2,000" in soon
    assert "ecay is too weak" in replace(dormant, near_zero_step=3501).describe()


@pytest.mark.parametrize(
    ("series", "direction", "meaning"),
    [
        ("value/reliance", "up", "The model begins to use the watched weights"),
        ("essential_sparsity/value", "down", "Densifying; fewer of the weights could be removed"),
    ],
)
def test_changes_of_the_value_say_what_they_mean(series: str, direction: str, meaning: str) -> None:
    trend = "densifying" if series.startswith("essential") else ""
    assert meaning in replace(EVENT, series=series, direction=direction, trend=trend).describe()


def test_steady_growth_is_told_in_floors() -> None:
    steady = replace(EVENT, kind="steady", value=0.092)
    assert steady.headline == (
        "Near-zero weights rose steadily to 1.84 times their floor, from 5 % to 9.2 %"
    )
    from_nothing = replace(steady, baseline=0.0)
    assert from_nothing.headline.startswith("Near-zero weights rose steadily from")
    assert steady.is_of_series
    assert not replace(EVENT, kind="replicas").is_of_series


@pytest.mark.parametrize("series", [row.name for row in SERIES])
@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("kind", ["abrupt", "steady"])
def test_every_event_ends_in_what_people_do(series: str, direction: str, kind: str) -> None:
    event = replace(EVENT, series=series, direction=direction, kind=kind, before_step=1250)
    assert event.advice.endswith(".")
    assert "{" not in event.advice
    assert "1,250" in event.advice or event.advice.startswith("No action needed")
    replicas = replace(event, kind="replicas", ranks=(1,), layers=("a",))
    assert "a checkpoint of step 1,250 or before" in replicas.advice


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 99)), max_size=12))
def test_the_last_version_of_each_counts(told: list[tuple[str, int]]) -> None:
    events = [replace(EVENT, id=name, revised_step=step) for name, step in told]
    found = latest_versions(events)
    assert [e.id for e in found] == list(dict.fromkeys(name for name, _ in told))
    for event in found:
        assert event.revised_step == [step for name, step in told if name == event.id][-1]
