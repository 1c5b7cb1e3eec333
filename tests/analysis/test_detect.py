"""Abrupt changes in series that can be followed by eye."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from contracts.made_records import seen_by
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsitywatch.analysis.detect import AbruptChange
from sparsitywatch.records import Event

EVERY = 25


def watch(series: Any, detector: AbruptChange | None = None, **given: Any) -> list[Event]:
    """The events of a series, see ``seen_by``."""
    return seen_by(detector or AbruptChange(min_effect=0.01), series, **given)


def take_off(snapshots: int = 40, floor: float = 0.07, end: float = 0.3) -> np.ndarray:
    """Twenty snapshots at the floor, then exponential growth to the end, then level."""
    growth = floor * (end / floor) ** np.linspace(0, 1, snapshots)
    return np.concatenate([np.full(20, floor), growth, np.full(20, end)])


def noise(size: int, scale: float, seed: int = 0) -> np.ndarray:
    return scale * np.random.default_rng(seed).standard_normal(size)


# ------------------------------------------------------------------- series that rise
def test_a_jump_is_one_event_at_its_second_snapshot() -> None:
    #          step 25 ...                   step 275  300  325 ...
    series = [0.05] * 10 + [0.20] * 10
    (event,) = watch(series)
    assert event.direction == "up"
    assert event.onset_step == 250
    assert event.detected_step == 300
    assert event.baseline == pytest.approx(0.05)
    assert event.value == 0.20
    assert event.series == ""
    assert event.noise == 0.0


def test_what_is_known_besides_goes_into_the_event() -> None:
    known = [{"decay_clock": 0.1 * i, "lr": 1e-3} for i in range(20)]
    series = [0.05] * 10 + [0.20] * 10
    (event,) = watch(series, contexts=known, every=1)
    assert event.decay_clock == known[event.detected_step - 1]["decay_clock"]
    assert math.isnan(watch(series)[0].decay_clock)


def first_alarm(series: np.ndarray, clock_per_snapshot: float | None) -> int | None:
    rate = math.nan if clock_per_snapshot is None else clock_per_snapshot
    contexts = [{"decay_clock": rate * i} for i in range(len(series))]
    events = watch(series, AbruptChange(0.01, direction="up"), contexts=contexts, every=1)
    return events[0].detected_step - 1 if events else None


@pytest.mark.slow
@pytest.mark.parametrize("clock_per_snapshot", [None, 0.0, 0.05])
def test_even_growth_is_told_only_where_decay_can_account_for_it(
    clock_per_snapshot: float | None,
) -> None:
    even = 0.07 * 1.02 ** np.arange(60)
    seen = first_alarm(even, clock_per_snapshot)
    if not clock_per_snapshot:
        assert seen is None
    else:  # the first of the snapshots with 1.5 ** 1.5 times the floor is not enough
        above = np.flatnonzero(even >= 1.5**1.5 * 0.07)
        assert seen == above[1]


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    st.lists(st.floats(0.0, 0.1), min_size=60, max_size=60),
    st.lists(st.booleans(), min_size=60, max_size=60) | st.just([True] * 60),
    st.integers(1, 59),
)
def test_even_growth_is_told_once_what_is_seen_of_the_clock_can_account_for_it(
    advances: list[float], is_seen: list[bool], cut: int
) -> None:
    even = 0.07 * 1.02 ** np.arange(60)
    above = int(np.flatnonzero(even >= 1.5**1.5 * 0.07)[1])
    clock = np.cumsum(advances)
    known = [{"decay_clock": float(x)} for x in clock]
    parts = [{"estimated_advance": x} if s else {} for x, s in zip(advances, is_seen, strict=True)]
    for contexts, come in (
        (known, clock - clock[0]),
        (parts, np.cumsum([0.0, *np.multiply(advances, is_seen)[1:]])),
    ):
        detector, events = AbruptChange(0.01, direction="up"), []
        for i, value in enumerate(even):
            if i == cut:  # a resumed one goes on as if nothing had been
                state = json.loads(json.dumps(detector.state_dict()))
                detector = AbruptChange(0.01, direction="up")
                detector.load_state_dict(state)
            events.append(detector.update(i, float(value), contexts[i]))
        enough = np.flatnonzero(come >= math.log(1.5))
        first = next((event for event in events if event), None)
        assert (first and first.detected_step) == (
            max(above, int(enough[0])) if len(enough) else None
        )
        assert first is None or math.isnan(first.decay_clock) == (contexts is parts)


@pytest.mark.slow
def test_even_growth_is_steady_since_its_floor() -> None:
    """From .05 to .11 evenly over 400 snapshots: no bend, so nothing began in the middle."""
    every, clock = 500, [{"decay_clock": 0.01 * i} for i in range(400)]
    series = np.linspace(0.05, 0.11, 400) + noise(400, 0.0005)
    (event,) = watch(series, contexts=clock, every=every)
    assert (event.kind, event.direction) == ("steady", "up")
    assert event.baseline == pytest.approx(0.05, rel=0.03)
    assert event.value / event.baseline == pytest.approx(1.5**1.5, rel=0.05)
    assert event.onset_low == event.onset_step <= 20 * every
    assert event.detected_step - event.onset_high <= 2 * every


@pytest.mark.slow
def test_growth_with_a_bend_is_abrupt_where_decay_accounts_for_it() -> None:
    series = take_off(120, end=0.2) + noise(160, 0.001)
    clock = [{"decay_clock": 0.05 * i} for i in range(160)]
    assert [e.kind for e in watch(series, contexts=clock, every=1)] == ["abrupt"]


@pytest.mark.part(3)
@pytest.mark.slow
@pytest.mark.parametrize("shape", ["exponential", "linear"])
@pytest.mark.parametrize("factor", [2, 4])
def test_growth_over_half_a_run_is_seen_at_any_cadence(factor: int, shape: str) -> None:
    seen = []
    for number in (100, 250, 1000):
        time = np.arange(1, number + 1) / number
        way = np.maximum(time - 0.46, 0.0) / 0.54
        growth = factor**way if shape == "exponential" else 1 + (factor - 1) * way
        series = 0.05 * growth * (1 + noise(number, 0.01, seed=3))
        (event,) = watch(series, every=300_000 // number)
        assert event.onset_low <= 0.46 * 300_000 + 300_000 / number
        assert event.onset_high >= 0.46 * 300_000 - 300_000 / number
        seen.append(event.detected_step)
    assert max(seen) / min(seen) < 1.15


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_noise_of_a_tenth_does_not_take_off_however_much_decay_there_is(seed: int) -> None:
    assert first_alarm(0.07 * np.exp(noise(150, 0.1, seed)), 0.05) is None


@pytest.mark.parametrize("per_snapshot", [None, 0.0, 0.01])
def test_growth_that_decay_can_account_for_needs_less_proof(per_snapshot: float | None) -> None:
    growth = 0.07 * np.concatenate([np.ones(5), 1.06 ** np.arange(1, 20)])
    uneven = growth * np.exp(noise(24, 0.04))
    assert first_alarm(uneven, 0.5) == 13
    assert first_alarm(uneven, per_snapshot) == 18


@pytest.mark.slow
@pytest.mark.parametrize("snapshots", [10, 20, 40, 60])
@pytest.mark.parametrize("seed", range(3))
def test_a_take_off_is_one_event_before_it_has_doubled(snapshots: int, seed: int) -> None:
    """The near-zero fraction of a small BERT goes from 0.07 to 0.3 in forty snapshots."""
    series = take_off(snapshots)
    (event,) = watch(series + noise(len(series), 0.001, seed))
    assert event.direction == "up"
    assert 1.1 < event.value / 0.07 < 2.0
    assert abs(event.onset_step - 20 * EVERY) <= 3 * EVERY
    assert event.onset_low <= event.onset_step <= event.onset_high < event.detected_step
    assert event.baseline == pytest.approx(0.07, rel=0.2)
    assert 0.0003 < event.noise < 0.003


@pytest.mark.parametrize("every", [1, 2, 4])
def test_it_is_seen_at_a_coarser_cadence_too(every: int) -> None:
    series = take_off(snapshots=40)
    (event,) = watch((series + noise(len(series), 0.001))[::every], every=EVERY * every)
    assert event.direction == "up"
    assert event.detected_step < 60 * EVERY


def test_growth_a_hundredfold_that_falls_back_in_part_is_one_rise() -> None:
    """As in grokking: from 0.002 to 0.2, then slowly down to 0.05."""
    rise = take_off(snapshots=50, floor=0.002, end=0.2)
    rising, *later = watch(np.concatenate([rise, np.geomspace(0.2, 0.05, 100)]))
    assert rising.direction == "up"
    assert {event.direction for event in later} <= {"down"}


def test_a_second_rise_after_a_pause_is_a_second_event() -> None:
    series = np.concatenate([take_off(20, 0.07, 0.2), take_off(20, 0.2, 0.6)])
    first, second = watch(series)
    assert second.baseline == pytest.approx(0.2, rel=0.2)
    assert first.detected_step < 60 * EVERY < second.detected_step


def test_a_rise_from_exactly_zero_is_judged_by_min_effect_alone() -> None:
    creep, rise = [0.0] * 20 + [0.002] * 20, [0.0] * 20 + [0.02] * 5
    assert watch(creep) == []
    (event,) = watch(rise)
    assert (event.baseline, event.value) == (0.0, 0.02)


def test_a_rise_smaller_than_min_effect_or_ratio_is_none() -> None:
    series = [0.05] * 20 + [0.09] * 10
    assert len(watch(series)) == 1
    assert watch(series, AbruptChange(min_effect=0.05)) == []
    assert watch(series, AbruptChange(ratio=2.0)) == []
    assert watch(series, AbruptChange(direction="down")) == []


# ---------------------------------------------------------------- series that are quiet
QUIET = {
    "flat": np.full(200, 0.07),
    "noise": 0.07 + noise(400, 0.004),
    "much noise": 0.07 + noise(400, 0.01),
    "threefold decay over eighty snapshots": 0.08 * (1 / 3) ** (np.arange(120) / 80),
    "flat, then threefold decay": 0.08 * (1 / 3) ** (np.arange(-10, 80).clip(0) / 80),
    "a violent start from above": 0.07 + 0.5 * np.exp(-np.arange(60) / 2),
    "a violent start from below": 0.07 * (1 - np.exp(-np.arange(60) / 2)),
    "linear drift, fourfold": np.linspace(0.05, 0.2, 200),
    "exponential drift, fourfold": np.geomspace(0.05, 0.2, 200),
    "noisy linear drift": np.linspace(0.05, 0.2, 200) + noise(200, 0.003),
    "saturation": 0.05 + 0.1 * (1 - np.exp(-np.arange(100) / 30)),
    "spikes of one snapshot": np.where(np.arange(200) % 17 == 16, 0.5, 0.07),
    "dips of one snapshot": np.where(np.arange(200) % 17 == 16, 0.001, 0.07),
    "a level that moves by a few points": 0.85 + noise(200, 0.03),
}


@pytest.mark.part(2)
@pytest.mark.slow
@pytest.mark.parametrize("name", QUIET)
def test_quiet(name: str) -> None:
    assert watch(QUIET[name]) == []


def test_control_of_the_small_bert() -> None:
    """Weight decay 0.01, every third snapshot: what was measured, falling all along."""
    series = """
        .077 .067 .055 .051 .048 .045 .043 .042 .040 .038 .037 .036 .034 .033 .033 .032
        .032 .031 .030 .029 .029 .028 .028 .027 .027 .026 .026 .025 .025 .025 .024 .024
    """
    assert watch([float(x) for x in series.split()], every=60) == []


def test_the_small_bert_takes_off() -> None:
    """Weight decay 1.0, every 100 steps: as measured; twice the floor at step 1100."""
    series = """
        .071 .063 .066 .072 .074 .079 .084 .091 .102 .119
        .137 .163 .192 .224 .255 .281 .303 .322 .334 .348
    """
    (event,) = watch([float(x) for x in series.split()], every=100)
    assert event.direction == "up"
    assert 600 <= event.onset_step <= 900
    assert 900 <= event.detected_step <= 1200


# --------------------------------------------------------------------- series that fall
def test_a_level_that_falls_is_one_event() -> None:
    """Essential sparsity at the breakthrough: from 0.85 to 0.55 in four snapshots."""
    level = np.concatenate([np.full(20, 0.85), [0.8, 0.7, 0.6], np.full(30, 0.55)])
    (event,) = watch(level + noise(len(level), 0.015))
    assert event.direction == "down"
    assert abs(event.onset_step - 20 * EVERY) <= 2 * EVERY
    assert event.detected_step <= 25 * EVERY
    assert event.baseline == pytest.approx(0.85, abs=0.03)


def test_a_fall_of_one_snapshot_or_of_little_is_none() -> None:
    assert watch([0.85] * 20 + [0.4] + [0.85] * 20) == []
    assert watch([0.85] * 20 + [0.75] * 20) == []
    assert watch([0.85] * 20 + [0.5] * 20, AbruptChange(direction="up")) == []


def test_a_fall_within_past_variation_is_none() -> None:
    shocks = noise(80, 0.03)
    wandering = np.full(80, 0.7)
    for i in range(1, 80):
        wandering[i] = 0.7 + 0.6 * (wandering[i - 1] - 0.7) + shocks[i]
    assert watch(np.concatenate([wandering, np.full(20, 0.68)])) == []


# --------------------------------------------------------------------------------- gaps
@pytest.mark.parametrize("gap", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_a_gap(gap: float) -> None:
    series = [0.05, gap] * 10 + [gap] * 5 + [0.2, gap] * 5
    (event,) = watch(series)
    assert (event.onset_step, event.detected_step) == (19 * EVERY, 28 * EVERY)
    assert watch([gap] * 50) == []


# ------------------------------------------------------------------- the learning rate
def answer(rates: np.ndarray, memory: float) -> np.ndarray:
    """What weights with an exponential memory have seen of the rate."""
    state, seen = rates[0], []
    for rate in rates:
        state += (rate - state) / memory
        seen.append(state)
    return np.array(seen)


@pytest.mark.slow
def test_what_answers_to_the_learning_rate_is_no_event_where_the_rate_is_known() -> None:
    """A rate that falls to a tenth, and a series that rises by 80 % as it does."""
    rates = np.where(np.arange(120) < 60, 1.0, 0.1)
    series = 0.07 * np.exp(0.6 * (1.0 - answer(rates, 6.0)) / 0.9) + noise(120, 0.0005)
    assert len(watch(series)) == 1
    clock = np.cumsum(EVERY * rates)
    known = [{"lr": lr, "lr_clock": total} for lr, total in zip(rates, clock, strict=True)]
    assert watch(series, contexts=known) == []


def test_a_take_off_under_a_rate_that_falls_slowly_is_an_event() -> None:
    series = take_off(40) + noise(80, 0.001)
    rates = 0.5 * (1 + np.cos(np.pi * np.arange(80) / 80))
    (event,) = watch(series, contexts=[{"lr": rate} for rate in rates])
    assert event.value < 2 * 0.07


# ---------------------------------------------------------------------- how sure it is
def test_a_single_snapshot_that_nobody_foresaw_is_a_suspicion() -> None:
    detector = AbruptChange()
    assert watch(0.3 + noise(30, 0.005), detector) == []
    assert not detector.is_suspicious
    assert detector.update(EVERY * 31, 0.4) is None
    assert detector.is_suspicious


@pytest.mark.slow
def test_one_of_many_series_needs_a_larger_change() -> None:
    """The smallest jump that is seen grows with the family that a series belongs to."""
    background = 0.3 + noise(60, 0.01)
    smallest = []
    for family in (1, 4, 1000):
        sizes = [
            size
            for size in np.arange(0.02, 0.15, 0.005)
            if watch(background + size * (np.arange(60) >= 40), AbruptChange(family=family))
        ]
        smallest.append(min(sizes))
    assert smallest == sorted(smallest)
    assert smallest[0] < smallest[-1]


# ------------------------------------------------------------------------ for all series
VALUES = st.lists(st.integers(0, 100), min_size=8, max_size=40)


@pytest.mark.slow
@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.integers(1, 60))
def test_a_constant_never_alarms(level: float, snapshots: int) -> None:
    assert watch([level] * snapshots) == []


@pytest.mark.slow
@settings(deadline=None)
@given(VALUES, st.sampled_from([2.0**-10, 0.25, 2.0**20]))
def test_scale_does_not_matter_where_min_effect_has_it_too(values: list[int], scale: float) -> None:
    series = [0.05] * 8 + [x / 128 for x in values]
    plain = watch(series, AbruptChange(min_effect=1 / 64))
    scaled = watch([scale * x for x in series], AbruptChange(min_effect=scale / 64))
    assert [(e.direction, e.detected_step, scale * e.value) for e in plain] == [
        (e.direction, e.detected_step, e.value) for e in scaled
    ]


@pytest.mark.slow
@settings(deadline=None)
@given(VALUES)
def test_direction_chooses_among_first_events(values: list[int]) -> None:
    series = [x / 100 for x in values]
    first = watch(series)[:1]
    for event in first:
        assert repr(watch(series, AbruptChange(direction=event.direction))[0]) == repr(event)


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([-1.0, -0.7, 0.0, 1e-9, 0.05, 0.2, 3.0, math.nan]), max_size=60),
    st.sampled_from([-1.0, 0.0, 0.05]),
)
def test_an_event_describes_what_was_seen(values: list[float], level: float) -> None:
    series = [level] * 6 + values
    for event in watch(series):
        assert event.onset_step < event.detected_step
        assert event.value == series[event.detected_step // EVERY - 1]
        assert event.size > 0 if event.direction == "up" else event.size < 0
        assert abs(event.size) >= 0.01
