"""Does the interval hold the true crossing as often as it says? Simulated evaluations.

A simulated example loses ``m * h(s) + noise``: h is the true harm, m a lognormal factor of
the example, the noise multivariate t with 4 degrees of freedom, correlated from level to
level, growing with sparsity. The dense losses are simulated too, so the tolerance is noisy.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from contracts.families import some_of
from numpy.typing import NDArray

from sparsitywatch.analysis.estimate import bounds, essential_sparsity
from sparsitywatch.records import EssentialSparsity, SparsityCurve
from sparsitywatch.records.curve import best_rising

Array = NDArray[np.float64]

NUM_RUNS = 500
DENSE = 3.0
ALLOWED = 0.01 * DENSE


def bump(s: Array, height: float) -> Array:
    return height * np.exp(-(((s - 0.4) / 0.1) ** 2))


#: True harm in units of what is allowed: it is crossed where this first exceeds 1.
SHAPES: dict[str, Callable[[Array], Array]] = {
    "linear": lambda s: s / 0.5,
    "power": lambda s: (s / 0.75) ** 8,
    "logistic": lambda s: 33 / (1 + np.exp((0.75 - s) / 0.07)) - 33 / (1 + math.exp(0.75 / 0.07)),
    "gains first": lambda s: -0.6 * np.sin(np.pi * np.minimum(s / 0.5, 1)) + (s / 0.65) ** 6,
    "crosses twice": lambda s: bump(s, 1.3) + (s / 0.8) ** 12,
    "nearly crosses": lambda s: bump(s, 0.8) + (s / 0.8) ** 12,
}


def truth(shape: Callable[[Array], Array]) -> float:
    """Where the best rising curve crosses."""
    grid = np.linspace(0, 1, 10_001)
    return float(grid[np.argmax(best_rising(shape(grid), np.zeros_like(grid), 1.0) > 1)])


def simulate(
    shape: Callable[[Array], Array], levels: int, examples: int, noise: float, seed: int
) -> list[SparsityCurve]:
    rng = np.random.default_rng(seed)
    sparsity = np.linspace(0, 1, levels)
    correlated = rng.standard_normal((NUM_RUNS, examples, levels))
    for k in range(1, levels):
        correlated[..., k] = 0.8 * correlated[..., k - 1] + 0.6 * correlated[..., k]
    scale = np.sqrt(rng.chisquare(4, (NUM_RUNS, examples, 1)) / 4)
    factor = rng.lognormal(-0.32, 0.8, (NUM_RUNS, examples, 1))
    spread = noise * np.minimum(sparsity / 0.3, 1) * (0.3 + sparsity)
    harm = ALLOWED * (factor * shape(sparsity) + spread * correlated / scale)
    dense = rng.gamma(9, DENSE / 9, (NUM_RUNS, examples)).mean(axis=1)
    mean, stderr = harm.mean(axis=1), harm.std(axis=1, ddof=1) / math.sqrt(examples)
    return [
        SparsityCurve(
            sparsity, dense[i] + mean[i], stderr[i], higher_is_better=False, num_examples=examples
        )
        for i in range(NUM_RUNS)
    ]


def coverage(estimates: list[EssentialSparsity], crossing: float) -> float:
    held = [e.low <= crossing <= e.high for e in estimates if e.informative]
    assert len(held) > 0.6 * len(estimates)  # the others cannot say
    return sum(held) / len(held)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    some_of([
        ("linear", 12, 256, 4.0),
        ("power", 16, 64, 3.0),
        ("logistic", 14, 128, 4.0),
        ("logistic", 12, 512, 2.0),  # the grid is coarser than the noise
        ("gains first", 20, 128, 8.0),
        ("crosses twice", 20, 256, 4.0),
        ("nearly crosses", 16, 512, 4.0),
    ], 2),
    ids=lambda case: case[0],
)  # fmt: skip
def test_coverage_is_nominal(case: tuple[str, int, int, float]) -> None:
    name, levels, examples, noise = case
    curves = simulate(SHAPES[name], levels, examples, noise, seed=levels + examples)
    estimates = [essential_sparsity(curve, confidence=0.9) for curve in curves]
    # 3.7 standard errors around what is asked for
    assert 0.85 <= coverage(estimates, truth(SHAPES[name])) <= 0.95


@pytest.mark.parametrize(("name", "examples", "noise"), [("power", 48, 14.0), ("linear", 64, 9.0)])
def test_where_examples_are_too_few_the_bounds_hold_the_crossing(
    name: str, examples: int, noise: float
) -> None:
    curves = simulate(SHAPES[name], 12, examples, noise, seed=examples)
    estimates = [essential_sparsity(curve) for curve in curves]
    crossing = truth(SHAPES[name])
    pairs = list(
        zip(estimates, (bounds(c, e) for c, e in zip(curves, estimates, strict=True)), strict=True)
    )
    few = [low <= crossing <= high for one, (low, high) in pairs if one.examples_needed]
    assert len(few) > 0.2 * NUM_RUNS
    assert sum(few) / len(few) >= 0.85
    assert np.mean([high - low for one, (low, high) in pairs if one.examples_needed]) < 0.9
    told = [(one.low, one.high) == pair for one, pair in pairs if one.informative]
    assert all(told)  # the same interval where there is an estimate


@pytest.mark.slow
def test_the_check_can_fail() -> None:
    """Halved errors are found out, and so is a confidence of 0.5."""
    curves = simulate(SHAPES["power"], 16, 64, 3.0, seed=80)
    halved = [
        SparsityCurve(
            c.sparsity, c.value, np.divide(c.stderr, 2), higher_is_better=False, num_examples=64
        )
        for c in curves
    ]
    crossing = truth(SHAPES["power"])
    assert coverage([essential_sparsity(curve) for curve in halved], crossing) < 0.75
    assert coverage([essential_sparsity(c, confidence=0.5) for c in curves], crossing) < 0.65
