"""Changes of numbers that are measured with an interval."""

from __future__ import annotations

import math

import numpy as np
import pytest
from contracts.made_records import seen_by

from sparsitywatch.analysis.detect import MeasuredChange

EVERY = 25
#: Essential sparsity of a small BERT (GELU, seed 0) every 50 steps from step 150 on, as measured;
#: its held-out loss leaves its plateau at step 800. Below it, its reliance.
MEASURED = (
    ".846 .822 .761 .861 .812 .848 .787 .825 .819 .803 .770 .756 .775 .611 .661 .649 .659 .566"
)
RELIANCE = ".07 .09 .10 .09 .10 .11 .12 .12 .12 .14 .18 .24 .23 .32 .37 .50 .57 .64"


def watch(series, detector: MeasuredChange | None = None, side: float = 0.07, reliance=None):
    contexts = [{"low": x - side, "high": x + side} for x in series]
    for context, known in zip(contexts, reliance or (), strict=False):
        context["reliance"] = known
    return seen_by(detector or MeasuredChange(), series, contexts, EVERY)


def correlated(number: int, sd: float, rho: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    out = rng.standard_normal(number)
    for i in range(1, number):
        out[i] = rho * out[i - 1] + math.sqrt(1 - rho**2) * out[i]
    return sd * out


@pytest.mark.parametrize("sign", [1, -1])
def test_a_shift_of_five_sd_is_seen_in_both_directions(sign: int) -> None:
    values = 0.7 + correlated(40, 0.03, 0.3, 1)
    values[25:] += sign * 0.15
    (event,) = watch(values)
    assert event.direction == ("up" if sign > 0 else "down")
    assert event.onset_low <= EVERY * 25 <= event.onset_high + EVERY
    assert EVERY * 26 < event.detected_step <= EVERY * 30
    assert event.baseline == pytest.approx(0.7, abs=0.03)
    assert 0.02 < event.noise < 0.06
    other = "down" if sign > 0 else "up"
    assert watch(values, MeasuredChange(direction=other)) == []


def test_the_fall_at_a_breakthrough_is_seen_with_its_cause() -> None:
    measured, reliance = ([float(x) for x in row.split()] for row in (MEASURED, RELIANCE))
    (event,) = watch(measured, reliance=reliance)
    assert event.direction == "down"
    assert event.detected_step <= EVERY * 16  # step 900: two snapshots after the label
    alone = watch(measured)
    assert not alone or alone[0].detected_step >= event.detected_step


def test_reliance_that_comes_to_several_times_its_plateau_is_seen() -> None:
    reliance = [float(x) for x in RELIANCE.split()]
    (event,) = watch(reliance, MeasuredChange(0.0, ratio=2.5), side=0.05)
    assert (event.direction, event.value >= 2.5 * event.baseline) == ("up", True)
    assert watch(reliance[:13], MeasuredChange(0.0, ratio=2.5), side=0.05) == []


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.0, 0.6, 0.9])
def test_what_scatters_within_its_interval_is_quiet(rho: float) -> None:
    events = [event for seed in range(8) for event in watch(0.7 + correlated(100, 0.03, rho, seed))]
    assert len(events) <= 1  # in 800 snapshots


def test_a_shift_within_the_interval_or_of_little_is_none() -> None:
    values = np.array([0.80] * 20 + [0.74] * 20) + correlated(40, 0.002, 0.0, 3)
    assert watch(values, side=0.1) == []
    assert len(watch(values, side=0.01)) == 1
    assert watch(values, MeasuredChange(0.1), side=0.01) == []


def test_one_snapshot_alone_and_gaps_are_no_event() -> None:
    values = [0.8, 0.82, math.nan, 0.79, 0.81] * 5
    assert watch([*values, 0.2, *values]) == []


def test_without_an_interval_the_scatter_alone_counts() -> None:
    values = [0.80, 0.82, 0.79, 0.81] * 4 + [0.5, 0.51, 0.5]
    assert [event.direction for event in seen_by(MeasuredChange(), values)] == ["down"]


@pytest.mark.parametrize(
    ("between", "last", "number"),
    [(10, 0.2, 1), (14, 0.2, 2), (10, 0.38, 2)],  # when it is over, 0.3 and 0.12 were added
)
def test_the_next_change_is_looked_for_after_twelve_snapshots_that_add_a_fifth_at_most(
    between: int, last: float, number: int
) -> None:
    levels = np.array([0.8] * 20 + [0.5] * between + [last] * 20)
    assert len(watch(levels + correlated(len(levels), 0.005, 0.0, 0), side=0.01)) == number
