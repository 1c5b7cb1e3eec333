"""The knee of a curve: that there is one, where, and how far it may be off."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import t

from sparsitywatch.analysis.estimate import Knee, essential_sparsity, knee_of_curve
from sparsitywatch.records import SparsityCurve

GRID = np.round(np.linspace(0, 1, 21), 3)


def loss(law: Callable[[np.ndarray], np.ndarray], dense: float = 3.0) -> SparsityCurve:
    """A loss whose logarithm rises by ``law``."""
    return SparsityCurve(
        sparsity=GRID, value=dense * np.exp(law(GRID)), higher_is_better=False
    )  # fmt: skip


def score(law: Callable[[np.ndarray], np.ndarray], dense: float = 0.8) -> SparsityCurve:
    """A score of which ``law`` is lost."""
    return SparsityCurve(sparsity=GRID, value=dense * (1 - law(GRID)), higher_is_better=True)


def after(s: np.ndarray, knot: float) -> np.ndarray:
    return np.maximum(s - knot, 0.0)


def rounded(s: np.ndarray, knot: float) -> np.ndarray:
    """A line with a soft corner."""
    return 0.05 * (np.logaddexp(0, (s - knot) / 0.02) - np.logaddexp(0, -knot / 0.02))


def made_up() -> Iterator[tuple[SparsityCurve, float]]:
    """Forty curves and their knee, NaN where there is none: sharp, explosive, gradual, flat."""
    for k in (0.2, 0.35, 0.5, 0.65, 0.8):
        yield loss(lambda s, k=k: 0.02 * s + 2 * after(s, k)), k
        yield score(lambda s, k=k: np.minimum(0.03 * s + 2.5 * after(s, k), 0.75)), k
        yield loss(lambda s, k=k: 0.1 * s + 12 * after(s, k), 5.7), k  # a perplexity
        yield loss(lambda s, k=k: rounded(s, k)), k
    for power in (1, 1.5, 2, 3, 4, 6):
        yield loss(lambda s, p=power: 0.8 * s**p), math.nan
        yield score(lambda s, p=power: 0.7 * s**p), math.nan
    for rate in (1, 3, 6, 10):
        yield loss(lambda s, r=rate: 0.9 * np.expm1(r * s) / np.expm1(r)), math.nan
    for law in (lambda s: 0 * s, lambda s: 1.5 * (s >= 1)):  # the end alone is no knee
        yield loss(law), math.nan
        yield score(lambda s, law=law: law(s) / 2), math.nan


def test_a_knee_is_found_where_there_is_one_and_nowhere_else() -> None:
    curves = list(made_up())
    assert len(curves) == 40
    right = 0
    for curve, knee in curves:
        found = knee_of_curve(curve)
        right += math.isnan(found.place) == math.isnan(knee)
        if not (math.isnan(found.place) or math.isnan(knee)):
            assert found.place == pytest.approx(knee, abs=0.03)
            assert found.low <= found.place <= found.high
    assert right >= 38


@pytest.mark.parametrize(("slope", "spread"), [(1.5, 0.03), (1.5, 0.08), (6.0, 0.03)])
def test_nine_of_ten_intervals_hold_the_knee(slope: float, spread: float) -> None:
    rng = np.random.default_rng(0)
    value = 3 * np.exp(0.05 * GRID + slope * after(GRID, 0.53))
    stderr = spread * np.sqrt(GRID) * value / 3
    held = []
    for _ in range(150):
        curve = SparsityCurve(
            sparsity=GRID, value=value + rng.normal(size=21) * stderr, higher_is_better=False,
            stderr=stderr, num_examples=200,
        )  # fmt: skip
        found = knee_of_curve(curve)
        assert not math.isnan(found.place) or spread == 0.08
        held.append(found.low <= 0.53 <= found.high)
    assert 0.87 - 0.03 <= np.mean(held) <= 0.95 + 0.03  # of so few


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.99])
def test_the_interval_is_of_the_knots_that_fit_as_well(confidence: float) -> None:
    """By least squares at each of a thousand knots, and scipy's t."""
    rng = np.random.default_rng(3)
    value, stderr = 3 * np.exp(0.05 * GRID + 1.5 * after(GRID, 0.53)), 0.02 + 0.03 * GRID
    curve = SparsityCurve(
        sparsity=GRID, value=value + rng.normal(size=21) * stderr, higher_is_better=False,
        stderr=stderr, num_examples=12,
    )  # fmt: skip
    found = knee_of_curve(curve, confidence)
    y = np.log(np.array(curve.value) / curve.dense)[:-1]
    x, errors = GRID[:-1], np.hypot(stderr / curve.value, 0.001 * y.max())[:-1]
    knots = np.linspace(x[1], x[-2], 1000)
    misfits = []
    for knot in knots:
        basis = np.stack([np.ones(20), x, after(x, knot)], axis=1) / errors[:, None]
        misfits.append(np.linalg.lstsq(basis, y / errors, rcond=None)[1][0])
    best = min(misfits)
    most = best + max(best / 16, 1.0) * t.ppf(0.5 + confidence / 2, 11) ** 2
    within = knots[np.array(misfits) <= most]
    assert (found.low, found.high) == pytest.approx((within[0], within[-1]), abs=0.003)


def test_the_end_and_what_broke_do_not_matter() -> None:
    curve = loss(lambda s: 0.02 * s + 2 * after(s, 0.5))
    knee = knee_of_curve(curve)
    for end in (3.1, 1e9, math.inf):
        assert knee_of_curve(replace(curve, value=(*curve.value[:-1], end))) == knee
    broken = (*curve.value[:-3], math.inf, math.nan, 8.0)
    assert knee_of_curve(replace(curve, value=broken)).place == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_unit_of_the_value_does_not_matter(scale: float) -> None:
    for curve, _ in list(made_up())[:4]:
        scaled = replace(curve, value=tuple(scale * x for x in curve.value))
        assert knee_of_curve(scaled) == pytest.approx(knee_of_curve(curve), rel=1e-6)


@pytest.mark.parametrize(
    "curve",
    [
        pytest.param(loss(lambda s: after(s, 0.5), -3.0), id="a dense value below zero"),
        pytest.param(loss(lambda s: -2 * after(s, 0.5)), id="only gains"),
        pytest.param(
            SparsityCurve(
                sparsity=[0, 0.2, 0.4, 0.6, 0.8, 1], value=[3, 3, 3, 3, 9, 9],
                higher_is_better=False,
            ),
            id="five points",
        ),
    ],
)  # fmt: skip
def test_no_knee(curve: SparsityCurve) -> None:
    assert all(math.isnan(x) for x in knee_of_curve(curve))
    assert len(Knee()) == 4


def test_an_estimate_says_what_can_go_and_where_the_drop_is() -> None:
    sharp = essential_sparsity(loss(lambda s: 0.02 * s + 2 * after(s, 0.5)), 0.02)
    assert sharp.knee_low <= 0.5 <= sharp.knee_high
    assert sharp.describe_drop() == "a sharp drop from 0.500 [0.499, 0.501] on"
    gradual = essential_sparsity(loss(lambda s: 0.8 * s**2), 0.02)
    assert gradual.describe_drop() == "no sharp drop seen"
    assert math.isnan(gradual.knee_low)
    kept = replace(sharp, knee_low=math.nan, knee_high=math.nan)  # of an older log
    assert kept.describe_drop("{:.0%}".format) == "a sharp drop from 50% on"
