"""Noise, onset and the learning rate's part of a change against naive oracles."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsitywatch.analysis.detect.abrupt import share_left_by_rate
from sparsitywatch.analysis.detect.detector import median_of_three, noise_sd, onset_of

RNG = np.random.default_rng(5)
NUMBERS = st.lists(st.integers(-50, 50), min_size=2, max_size=30)


@settings(deadline=None)
@given(NUMBERS)
def test_median_of_three(values: list[int]) -> None:
    smooth = median_of_three(np.array(values, dtype=float))
    assert len(smooth) == len(values)
    assert smooth[0] == values[0]
    for i in range(2, len(values)):
        assert smooth[i] == statistics.median(values[i - 2 : i + 1])


@pytest.mark.parametrize("trend", ["flat", "line", "parabola", "jump"])
def test_noise_is_seen_through_trends(trend: str) -> None:
    t = np.arange(400.0)
    trends = {"flat": 0 * t, "line": t, "parabola": (t / 40) ** 2, "jump": 500.0 * (t > 200)}
    noise = 3 * np.random.default_rng(0).standard_normal(400)
    assert noise_sd(trends[trend] + noise) == pytest.approx(3, rel=0.25)
    assert noise_sd(trends[trend]) < 0.6  # growth that accelerates is not seen through fully


def test_noise_that_wanders_is_seen_too() -> None:
    wander = np.repeat(np.random.default_rng(0).standard_normal(100), 4)
    assert noise_sd(wander) > 0.7


def test_too_few_values_have_no_noise() -> None:
    assert math.isnan(noise_sd(np.arange(4.0)))
    assert noise_sd(np.arange(5.0)) == 0.0


@pytest.mark.parametrize("sd", [0.01, 3.0])
def test_noise_of_white_noise_on_a_smooth_trend_is_its_standard_deviation(sd: float) -> None:
    x = np.linspace(0.0, 1.0, 200_001)
    white = np.random.default_rng(3).normal(0.0, sd, len(x))
    assert noise_sd(white) == pytest.approx(sd, rel=0.01)
    assert noise_sd(white + np.exp(3.0 * x)) == pytest.approx(sd, rel=0.01)


# ------------------------------------------------------------------------------ rate
def share_left(rates: np.ndarray, y: np.ndarray, split: int) -> float:
    x = np.arange(float(len(y)))
    shape = np.maximum(x - (len(y) - split - 1), 0.0) / split
    return share_left_by_rate(x, y, rates, shape, noise=0.01, strongest=0.5, first=0)


def test_a_rate_that_does_not_move_accounts_for_nothing() -> None:
    y = np.concatenate([np.zeros(30), np.linspace(0, 0.5, 10)])
    assert share_left(np.full(40, 3e-3), y, 10) == 1.0
    assert share_left(np.full(40, math.nan), y, 10) == 1.0


def test_a_rate_that_falls_with_the_change_accounts_for_it() -> None:
    rates = np.where(np.arange(40) < 30, 3e-3, 3e-4)
    follows = -0.4 * (1 - np.exp(-np.maximum(np.arange(40) - 29, 0) / 4))
    assert share_left(rates, -follows, 10) < 0.5


def test_a_rate_that_moved_long_before_accounts_for_little() -> None:
    rates = np.minimum(np.arange(1, 81) / 4, 1.0)
    y = np.concatenate([np.zeros(60), np.linspace(0.02, 0.5, 20)])
    assert share_left(rates, y, 20) > 0.9


# ----------------------------------------------------------------------------- onset
@pytest.mark.parametrize("at", [10, 20, 33])
@pytest.mark.parametrize("kind", ["bend", "step"])
def test_the_onset_is_where_it_was_put(at: int, kind: str) -> None:
    x = 25.0 * np.arange(40)
    late = np.maximum(np.arange(40) - at, 0)
    y = 0.1 + (0.01 * late if kind == "bend" else 0.1 * (late > 0))
    assert onset_of(x, y, noise=1e-6, latest=37) == (at, at, at)


def test_the_interval_of_the_onset_holds_it_about_as_often_as_it_says() -> None:
    held = 0
    for _ in range(200):
        late = np.maximum(np.arange(60) - 40, 0)
        y = 0.1 + 0.004 * late + 0.01 * RNG.normal(size=60)
        _, low, high = onset_of(np.arange(60.0), y, noise=0.01, latest=57)
        held += low <= 40 <= high
    assert 0.8 <= held / 200 <= 1.0
