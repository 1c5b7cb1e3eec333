"""A point of a sweep: what a level costs, measured by what may be spent."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from sparsitywatch.records import SparsityCurve

__all__ = ["Allowed", "Point", "points_of"]

#: The harm that is accepted, given the mean value of the dense model; both in the value's units.
Allowed = Callable[[float], float]


class Point(NamedTuple):
    """What one level costs, in units of the harm that is allowed: beyond 1 is too much.

    ``harm`` is inf where the value is not finite; ``stderr``, its standard error, is 0 there.
    """

    level: float
    harm: float
    stderr: float = 0.0

    @property
    def is_within(self) -> bool:
        """Whether the tolerance is kept."""
        return self.harm <= 1.0

    @classmethod
    def of(cls, level: float, harm: float, stderr: float, allowed: float) -> Point:
        """From a harm and its error in the units of the value.

        >>> Point.of(0.5, 0.06, 0.01, allowed=0.02)
        Point(level=0.5, harm=3.0, stderr=0.5)
        """
        if not math.isfinite(harm):
            return cls(level, math.inf)
        if allowed == 0.0:  # a relative tolerance of a dense value of 0
            return cls(level, math.inf if harm > 0.0 else 0.0)
        return cls(level, harm / allowed, 0.0 if math.isnan(stderr) else stderr / allowed)


def points_of(curve: SparsityCurve, allowed: Allowed) -> tuple[Point, ...]:
    """The points of a curve by rising level, as the sweep that chose them saw them.

    Args:
        curve: of an earlier look.
        allowed: the harm that is accepted for a dense mean value.

    Returns:
        One point for each of the curve; none without a dense value at level 0.

    >>> curve = SparsityCurve([0, 0.5, 1], [2.0, 2.01, 4.0], higher_is_better=False)
    >>> [round(point.harm, 6) for point in points_of(curve, lambda dense: 0.01 * dense)]
    [0.0, 0.5, 100.0]
    """
    levels = curve.sparsity if curve.level is None else curve.level
    stderr = [0.0] * len(levels) if curve.stderr is None else curve.stderr
    found = sorted(zip(levels, curve.value, stderr, strict=True))
    level, dense, _ = found[0]
    if level != 0.0 or not math.isfinite(dense):
        return ()
    sign = -1.0 if curve.higher_is_better else 1.0
    scale = allowed(dense)
    return tuple(Point.of(level, sign * (value - dense), e, scale) for level, value, e in found)
