"""The knee against hinges given by hand and a brute-force search."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sparsitywatch.analysis.estimate import knee_of

GRID = np.linspace(0, 1, 11)


def hinge(knot: float, before: float, after: float) -> np.ndarray:
    return before * np.minimum(GRID, knot) + after * np.maximum(GRID - knot, 0)


@pytest.mark.parametrize("knot", [0.2, 0.45, 0.6, 0.83])
@pytest.mark.parametrize(("before", "after"), [(0.1, 3.0), (1.0, 1.5), (1e-6, 1e-4)])
def test_a_hinge_is_found_exactly(knot: float, before: float, after: float) -> None:
    found, sharpness = knee_of(GRID, hinge(knot, before, after))
    assert found == pytest.approx(knot)
    assert sharpness == pytest.approx(after / before)


@pytest.mark.parametrize("before", [0.0, -0.3])
def test_without_a_rise_before_it_the_knee_is_infinitely_sharp(before: float) -> None:
    found, sharpness = knee_of(GRID, hinge(0.7, before, 2.0))
    assert found == pytest.approx(0.7)
    assert sharpness == math.inf


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(np.zeros(11), id="flat"),
        pytest.param(np.full(11, 19.0), id="flat, not at zero"),
        pytest.param(3 * GRID, id="straight"),
        pytest.param(np.sqrt(GRID), id="levels off"),
        pytest.param(hinge(0.5, -2.0, -1.0), id="only gains"),
        pytest.param(np.where(GRID < 0.35, GRID**2, np.nan), id="four finite points"),
    ],
)
def test_no_knee(harm: np.ndarray) -> None:
    assert all(math.isnan(x) for x in knee_of(GRID, harm))


def test_where_harm_levels_off_at_the_end_the_knee_is_where_it_rose() -> None:
    """The overall best bend of this S is the one at 0.8, downward; the knee is at 0.6."""
    harm = np.array([0, 0, 0, 0, 0, 0, 0, 1, 2, 2, 2.0])
    found, _ = knee_of(GRID, harm)
    assert 0.4 < found < 0.7


def test_points_that_broke_are_left_out() -> None:
    harm = hinge(0.5, 0.1, 1.0)
    broken = np.append(harm[:-2], [math.inf, math.nan])
    assert knee_of(GRID, broken) == pytest.approx((0.5, 10.0))


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scale_and_origin_do_not_matter(scale: float) -> None:
    found, sharpness = knee_of(scale * (100 + GRID), scale * hinge(0.45, 0.1, 3.0))
    assert found == pytest.approx(scale * 100.45)
    assert sharpness == pytest.approx(30.0)


def squared_error(x: np.ndarray, y: np.ndarray, knot: float) -> tuple[float, float]:
    """Squared error of the fit with this knot, and its change of slope."""
    design = np.stack([np.ones_like(x), x, np.maximum(x - knot, 0)], axis=1)
    fit = np.linalg.pinv(design) @ y
    return float(np.sum((y - design @ fit) ** 2)), float(fit[2])


@settings(deadline=None)
@given(st.lists(st.integers(-20, 20), min_size=5, max_size=9))
def test_no_knot_on_a_fine_grid_fits_better(heights: list[int]) -> None:
    y = np.array(heights, dtype=float)
    x = np.linspace(0, 1, len(y)) ** 1.5
    found, _ = knee_of(x, y)
    assume(not math.isnan(found))
    tried = [squared_error(x, y, knot) for knot in np.linspace(x[1], x[-2], 300)]
    upward = [error for error, bend in tried if bend > 1e-6]
    best, bend = squared_error(x, y, found)
    assert bend > 0
    assert best <= min(upward, default=math.inf) + 1e-6
