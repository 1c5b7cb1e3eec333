"""Where a curve bends: the best continuous fit of two straight segments."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["knee_of"]

Array = NDArray[np.float64]

#: Two lines and the knot are fitted, and one point more.
_MIN_POINTS = 5
#: Slopes that add less than this share of the harm over the whole range are rounding.
_ROUNDING = 1e-9


def knee_of(sparsity: Array, harm: Array) -> tuple[float, float]:
    """Knot of the best two-segment fit that bends upward, and how sharply it bends.

    The fit is continuous and by least squares, its knot anywhere between the second and
    the last but one point. Only upward bends count: where harm levels off after a steep
    rise is no knee.

    Args:
        sparsity: rising, float64, length K; any other abscissa, such as steps, does too.
        harm: float64, length K; what is not finite is left out.

    Returns:
        The knot, and the slope after it over the slope before it: inf where harm does not
        rise before the knot. Both NaN with fewer than five finite points, without an
        upward bend, or where harm does not rise after it.

    Reference:
        Hudson 1966, J. Am. Stat. Assoc. 61:1097.

    >>> sparsity = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    >>> knot, sharpness = knee_of(sparsity, np.array([0.0, 0.1, 0.2, 0.3, 1.3, 2.3]))
    >>> round(knot, 6), round(sharpness, 6)
    (0.6, 10.0)
    """
    is_finite = np.isfinite(harm)
    x, y = sparsity[is_finite], harm[is_finite]
    if len(x) < _MIN_POINTS:
        return math.nan, math.nan
    origin, width = float(x[0]), float(x[-1] - x[0])
    x = (x - origin) / width
    fits = [_hinge(x, y, knot) for knot in _knots(x, y)]
    negligible = _ROUNDING * float(np.abs(y).max())
    bends = [fit for fit in fits if fit[3] - fit[2] > negligible]
    _, knot, before, after = min(bends, default=(0.0, math.nan, math.nan, math.nan))
    if not after > negligible:  # no upward bend, or harm does not rise after it
        return math.nan, math.nan
    return origin + width * knot, after / before if before > negligible else math.inf


def _knots(x: Array, y: Array) -> list[float]:
    """Where the best knot can be: at a point, or where free lines of both sides meet."""
    knots = [float(knot) for knot in x[1:-1]]
    for i in range(2, len(x) - 1):
        (level, slope), (other_level, other_slope) = _line(x[:i], y[:i]), _line(x[i:], y[i:])
        if slope != other_slope:
            meets = (level - other_level) / (other_slope - slope)
            if x[i - 1] < meets < x[i]:
                knots.append(meets)
    return knots


def _line(x: Array, y: Array) -> tuple[float, float]:
    level, slope = _least_squares(np.stack([np.ones_like(x), x], axis=1), y)
    return float(level), float(slope)


def _hinge(x: Array, y: Array, knot: float) -> tuple[float, float, float, float]:
    """Squared error, knot, and the slopes before and after of the fit with this knot."""
    design = np.stack([np.ones_like(x), x - knot, np.maximum(x - knot, 0.0)], axis=1)
    fit = _least_squares(design, y)
    error = float(np.square(y - design @ fit).sum())
    return error, knot, float(fit[1]), float(fit[1] + fit[2])


def _least_squares(design: Array, y: Array) -> Array:
    return np.asarray(np.linalg.lstsq(design, y, rcond=None)[0], dtype=np.float64)
