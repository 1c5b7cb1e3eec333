"""Racing: a sweep that looks for the crossing on few examples and measures it on all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

from sparsitywatch.errors import expect_number, expect_whole
from sparsitywatch.pruning.sweeps import (
    Bisection,
    Point,
    Step,
    Sweep,
    check_levels,
    first_beyond,
    harm_with,
    missing,
)

#: Levels around the crossing and the lower end of its interval are no farther apart than so many
#: widths of the interval, those around the upper end than so many, or so many times the resolution.
#: Harm mostly bends upward, so that it is read too high between levels that are far apart: both
#: ends come out too low, which is safe for the lower one and not for the upper.
_WIDTHS, _WIDTHS_ABOVE, _RESOLUTIONS = 3.0, 1.0, 3.0
#: A level between two is at least such a share of their distance from both.
_ROOM = 0.2
#: Passes over all examples that the crossing and its interval are expected to take.
_PASSES = 5.0


@dataclass(frozen=True)
class Racing(Sweep):
    """Looks for the crossing on parts of the examples: a third of the passes of a grid.

    All levels of the grid see a small share, a simple random sample of the examples that is the
    same at every level and every snapshot. Where the best curve that only rises crosses the
    tolerance, and where it does with more and with less than its error, levels see all examples:
    those around both ends of the interval always, so that it is as narrow as that of a grid of all
    examples.

    A value that takes few values, such as an accuracy, has to be seen on many examples before a
    part in which nothing changes proves anything; proxies of fewer than 8 x ``examples`` are not
    divided at all. Where no part would do, ``Bisection`` chooses, with twice the resolution.

    Nothing is taken over from the snapshot before: a snapshot is the same whichever others were
    taken.

    Args:
        levels: the grid, fractions in [0, 1).
        resolution: of the levels that see all examples; those around the crossing are at most three
            times as far apart.
        risk: that the interval does not hold the crossing, in (0, 1): its ends are where levels see
            all examples. ``Settings`` gives 1 - ``confidence``.
        examples: how many the smallest part has, at least.

    Raises:
        ConfigurationError: a level lies outside [0, 1), there is none, ``resolution`` is not in
            (0, 0.25], ``risk`` not in (0, 1), ``examples`` less than 8.
    """

    levels: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
    resolution: float = 0.01
    risk: float = 0.1
    examples: int = 8

    def __post_init__(self) -> None:
        check_levels(self.levels)
        expect_number("resolution", self.resolution, lambda r: 0.0 < r <= 0.25, "in (0, 0.25]")
        expect_number("risk", self.risk, lambda r: 0.0 < r < 1.0, "in (0, 1)")
        expect_whole("examples", self.examples, 8)

    def expected(self, num_examples: int, *, divided: bool) -> tuple[float, float]:
        """The grid on the smallest share, and some levels on all examples or on most."""
        if not divided:
            bisection = Bisection(self.levels, 2 * self.resolution)
            return bisection.expected(num_examples, divided=False)
        return len(self.levels), _PASSES

    def next_step(self, points: Sequence[Point], shares: Sequence[float]) -> Step | None:
        """The grid on the smallest share, then whatever makes the crossing surer."""
        if len(shares) == 1:
            return Bisection(self.levels, 2 * self.resolution).next_step(points, shares)
        everything = points[-1]
        if everything.share == 1.0 and everything.harm <= 1.0:
            return None  # there is no crossing
        step = missing(sorted(self.levels), points, shares[0])
        return step or _Race(points, self).next_step()


class _Place(NamedTuple):
    """Where harm crosses the tolerance, and the points around."""

    below: Point
    above: Point
    level: float


class _Race:
    """The levels of one snapshot on their way to all examples: what to evaluate next."""

    def __init__(self, points: Sequence[Point], sweep: Racing) -> None:
        # level 0 is the dense model, on however few examples that was checked
        self._points = [points[0]._replace(harm=0.0, share=1.0), *points[1:]]
        # one example on which the model breaks down proves that it does
        self._whole = [p for p in self._points if p.share == 1.0 or not math.isfinite(p.harm)]
        self._resolution = sweep.resolution
        self._sides = -NormalDist().inv_cdf(sweep.risk / 2)

    def next_step(self) -> Step | None:
        """A level on all examples: near the crossing, near its interval's ends, and nearer."""
        value, low, high = (_place(self._whole, side * self._sides) for side in (0, 1, -1))
        nearest = _RESOLUTIONS * self._resolution
        width = high.level - low.level
        near = max(nearest, _WIDTHS * width)
        if (step := self._between(value, 0, near)) is not None:
            return step
        if _stderr_at(value) > 1.0:
            return None  # no interval is told where the tolerance is below the noise
        return (
            self._between(low, 1, near)
            or self._between(high, -1, max(nearest, _WIDTHS_ABOVE * width))
            or self._between(value, 0, nearest)
        )

    def _between(self, place: _Place, side: int, near: float) -> Step | None:
        """A level between two that are not near: where these and where all points expect it."""
        below, above = place.below.level, place.above.level
        of_all = _place(self._points, side * self._sides).level
        # whichever is wrong, the middle is not passed over
        expected = sorted((place.level, of_all, (below + above) / 2))[1]
        if above - below <= near + 1e-9:
            return None
        room = _ROOM * (above - below)
        level = min(max(expected, below + room), above - room)
        level = round(round(level / self._resolution) * self._resolution, 6)
        return (level, 1.0) if below < level < above else None


def _place(points: Sequence[Point], errors: float) -> _Place:
    """Where harm with so many errors more crosses."""
    beyond = min(max(first_beyond(points, errors), 1), len(points) - 1)
    below, above = points[beyond - 1], points[beyond]
    harm = harm_with(below, errors)
    rise = harm_with(above, errors) - harm  # infinite where the model breaks down, anywhere between
    share = min(max((1.0 - harm) / rise, 0.0), 1.0) if 0.0 < rise < math.inf else 0.5
    return _Place(below, above, below.level + share * (above.level - below.level))


def _stderr_at(place: _Place) -> float:
    """The standard error there, between those of both points."""
    below, above, level = place
    share = (level - below.level) / (above.level - below.level)
    return below.stderr + share * (above.stderr - below.stderr)
