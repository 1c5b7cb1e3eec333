"""The early signal: weights that no longer get a gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

import pytest
from contracts.made_records import seen_by
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsitywatch.analysis.detect import DormantRise
from sparsitywatch.records import Event

EVERY = 25
#: As in small BERTs: what passes by chance, then units die.
HEALTHY = [0.007, 0.009, 0.008, 0.009, 0.008, 0.008]
DYING = [*HEALTHY, 0.015, 0.03, 0.05, 0.08, 0.12, 0.16]


def watch(
    series: Sequence[float],
    contexts: Sequence[Mapping[str, float]] | None = None,
    detector: DormantRise | None = None,
) -> list[Event]:
    return seen_by(detector or DormantRise(), series, contexts, EVERY)


def test_a_rise_is_seen_once_with_its_onset() -> None:
    (event,) = watch(DYING)
    assert (event.direction, event.detected_step) == ("up", EVERY * 10)
    assert event.onset_low <= event.onset_step <= event.onset_high < event.detected_step
    assert EVERY * 6 <= event.onset_step <= EVERY * 7
    assert event.baseline == pytest.approx(0.007, abs=0.001)
    assert event.value == 0.08


def test_one_snapshot_far_above_is_enough() -> None:
    (event,) = watch([*HEALTHY, 0.2])
    assert (event.detected_step, event.onset_step) == (EVERY * 7, EVERY * 6)


def test_one_snapshot_a_little_above_is_none() -> None:
    assert not watch([*HEALTHY, 0.05, 0.008, 0.05, 0.008])


def test_what_passes_by_chance_is_no_event_however_it_grows() -> None:
    chance = [0.01, 0.03, 0.06, 0.1, 0.14, 0.15, 0.15]  # snapshots further and further apart
    assert not watch(chance, [{"dormant_by_chance": x} for x in chance])
    assert watch(chance)


def test_units_that_were_dead_before_the_watch_began_are_no_change() -> None:
    assert not watch([0.3] * 10, [{"dormant_by_chance": 0.01}] * 10)


def test_without_decay_nothing_shrinks() -> None:
    assert not watch(DYING, [{"decay_clock": 0.0}] * len(DYING))
    moving = [{"decay_clock": 0.01 * i} for i in range(len(DYING))]
    assert watch(DYING, moving)
    # as estimated where the clock is not known
    assert not watch(DYING, [{"estimated_advance": 0.0}] * len(DYING))
    assert watch(DYING, [{"estimated_advance": 0.01}] * len(DYING)) == watch(DYING)


def test_gaps_are_left_out() -> None:
    with_gaps = [x for value in DYING for x in (value, math.nan)]
    (event,) = watch(with_gaps)
    assert event.detected_step == EVERY * 19


def test_units_die_one_after_the_other_and_that_is_one_event() -> None:
    assert len(watch([*DYING, *[0.16] * 8, 0.3, 0.45, 0.5])) == 1


def test_the_onset_is_that_of_the_excess_over_chance() -> None:
    """Chance rises while the learning rate warms up; units die from the tenth snapshot on."""
    chance = [0.001, 0.003, 0.005, 0.007, 0.009, *[0.01] * 20]
    excess = [0.0] * 10 + [0.004 * i for i in range(1, 16)]
    series = [a + b for a, b in zip(chance, excess, strict=True)]
    (event,) = watch(series, [{"dormant_by_chance": x} for x in chance])
    assert EVERY * 9 <= event.onset_step <= EVERY * 11
    assert event.onset_low >= EVERY * 8


@pytest.mark.parametrize(
    ("after", "level"),
    [
        ([0.12, 0.06, 0.03, 0.027, 0.027, 0.027, 0.09, 0.15, 0.18], 0.027),
        ([0.05, 0.02, 0.02, 0.008, 0.009, 0.008, 0.1, 0.2], 0.008),
    ],
)
def test_a_rise_after_half_of_the_first_is_gone_is_another_event(
    after: list[float], level: float
) -> None:
    first, second = watch([*DYING, *after])
    assert first.detected_step < second.onset_step
    assert second.baseline == pytest.approx(level, abs=0.001)
    assert len(watch([*DYING, 0.02, 0.16, 0.02, 0.16, 0.02, 0.16])) == 1


def test_a_snapshot_halfway_up_is_suspicious() -> None:
    detector = DormantRise()
    watch(HEALTHY, detector=detector)
    assert not detector.is_suspicious
    detector.update(1000, 0.03)
    assert detector.is_suspicious
    detector.update(1025, 0.008)
    assert not detector.is_suspicious


values = st.lists(
    st.one_of(st.floats(0.0, 1.0), st.sampled_from([0.0, 0.008, 0.038, 0.07, math.nan])),
    min_size=1,
    max_size=25,
)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(values, st.one_of(st.none(), st.floats(0.0, 0.2)))
def test_the_first_alarm_is_that_of_the_rule_in_words(
    series: list[float], chance: float | None
) -> None:
    seen = watch(series, None if chance is None else [{"dormant_by_chance": chance}] * len(series))
    first = None
    known: list[float] = []
    above = 0
    for i, value in enumerate(series):
        if math.isnan(value):
            continue
        before = known[: len(known) - above]
        if before:
            padded = [before[0], before[0], *before]
            middle = [median(padded[j : j + 3]) for j in range(len(before))]
            expected = max(min(middle if len(before) > 2 else before), chance or 0.0)
            needed = max(0.03, expected)
            share = (value - expected) / needed
            above = above + 1 if share >= 1 else 0
            if above == 2 or share >= 2:
                first = EVERY * (i + 1)
                break
        known.append(value)
    assert (seen[0].detected_step if seen else None) == first
