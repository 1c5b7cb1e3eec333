"""Robust statistics against naive oracles."""

from __future__ import annotations

import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsitywatch.analysis.robust import line_at, median_of_three, noise_sd, robust_sd

NUMBERS = st.lists(st.integers(-50, 50), min_size=2, max_size=30)


@settings(deadline=None)
@given(NUMBERS)
def test_median_of_three(values: list[int]) -> None:
    smooth = median_of_three(np.array(values, dtype=float))
    assert len(smooth) == len(values)
    assert smooth[0] == values[0]
    for i in range(2, len(values)):
        assert smooth[i] == statistics.median(values[i - 2 : i + 1])


@settings(deadline=None)
@given(NUMBERS, st.integers(-10, 60))
def test_line_of_median_slope(values: list[int], where: int) -> None:
    pairs = itertools.combinations(enumerate(values), 2)
    slope = statistics.median((b - a) / (j - i) for (i, a), (j, b) in pairs)
    start = statistics.median(y - slope * x for x, y in enumerate(values))
    found = line_at(np.arange(len(values), dtype=float), np.array(values, float), where)
    assert found == pytest.approx(start + slope * where, abs=1e-9)


def test_a_long_line_is_thinned_and_still_right() -> None:
    x = np.arange(1000.0) ** 1.1
    assert line_at(x, 3 - 0.5 * x, 5000.0) == pytest.approx(3 - 0.5 * 5000)


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


def test_robust_sd_of_a_normal_sample() -> None:
    sample = 2 * np.random.default_rng(0).standard_normal(4000)
    sample[:200] = 1e6
    assert robust_sd(sample) == pytest.approx(2, rel=0.15)


@pytest.mark.parametrize("sd", [0.01, 3.0])
def test_noise_of_white_noise_on_a_smooth_trend_is_its_standard_deviation(sd: float) -> None:
    x = np.linspace(0.0, 1.0, 200_001)
    white = np.random.default_rng(3).normal(0.0, sd, len(x))
    assert noise_sd(white) == pytest.approx(sd, rel=0.01)
    assert noise_sd(white + np.exp(3.0 * x)) == pytest.approx(sd, rel=0.01)
