"""Which levels to evaluate, given what those before have cost."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from sparsitywatch.errors import ConfigurationError, expect_number, expect_whole, is_number, listed
from sparsitywatch.pruning.partial import Point
from sparsitywatch.records import SparsityCurve
from sparsitywatch.records.student import t_quantile

__all__ = [
    "Allowed",
    "Bisection",
    "Grid",
    "Measure",
    "Racing",
    "Sweep",
    "check_levels",
    "points_of",
]

#: The harm that is accepted, given the mean value of the dense model; both in the value's units.
Allowed = Callable[[float], float]


def points_of(curve: SparsityCurve, allowed: Allowed) -> list[Point]:
    """The points of a curve by rising level, as the sweep that chose them saw them.

    There are none without a dense value at level 0.

    >>> curve = SparsityCurve([0, 0.5, 1], [2.0, 2.01, 4.0], higher_is_better=False)
    >>> [round(point.harm, 6) for point in points_of(curve, lambda dense: 0.01 * dense)]
    [0.0, 0.5, 100.0]
    """
    levels = curve.sparsity if curve.level is None else curve.level
    stderr = [0.0] * len(levels) if curve.stderr is None else curve.stderr
    found = sorted(zip(levels, curve.value, stderr, strict=True))
    level, dense, _ = found[0]
    if level != 0.0 or not math.isfinite(dense):
        return []
    sign = -1.0 if curve.higher_is_better else 1.0
    scale = allowed(dense)
    return [Point.of(level, sign * (value - dense), e, scale) for level, value, e in found]


class Measure(Protocol):
    """What a sweep calls."""

    @property
    def shares(self) -> Sequence[float]:
        """Shares of the examples on which a level can be evaluated, rising to 1.

        There is only 1 unless the sweep has an attribute ``examples``: how many it wants to
        begin with.
        """

    def __call__(self, level: float, share: float = 1.0, /) -> Point:
        """What a level costs, evaluated on this share of the examples at least, in drawn order.

        Other levels may have made the estimate better since it was asked for last.
        """

    def after(self, steps: Sequence[tuple[float, float]], /) -> Sequence[Point]:
        """What every level costs that was evaluated, by rising level, after some more steps.

        Each is a level, and the share of the examples to evaluate it on at least.
        """


class Sweep(Protocol):
    """Chooses the levels between 0 and 1; both ends are always measured.

    Levels are evaluated on all examples, but by a sweep with an attribute ``examples``, see
    ``Measure``.
    """

    def choose(self, measure: Measure, previous: Sequence[Point]) -> None:
        """Call ``measure(level)`` for the levels to evaluate.

        Args:
            measure: evaluates a level in [0, 1]; measuring one twice costs nothing, and 0
                and 1 have been measured already, on the smallest share there is.
            previous: the points of the snapshot before, by rising level; empty at the first one.
        """


@dataclass(frozen=True)
class Grid:
    """The same levels every time.

    Args:
        levels: fractions in [0, 1).

    Raises:
        ConfigurationError: a level lies outside [0, 1), or there is none.
    """

    levels: Sequence[float]

    def __post_init__(self) -> None:
        check_levels(self.levels)

    def choose(self, measure: Callable[[float], Point], previous: Sequence[Point]) -> None:
        """Measure every level."""
        del previous  # a grid does not depend on what comes out
        for level in self.levels:
            measure(level)


@dataclass(frozen=True)
class Bisection:
    """A grid, then halving the step of the grid where the tolerance is first crossed.

    Args:
        levels: the grid, fractions in [0, 1).
        resolution: stop when the crossing is bracketed this finely.

    Raises:
        ConfigurationError: a level lies outside [0, 1), there is none, or ``resolution``
            is not in (0, 1).
    """

    levels: Sequence[float]
    resolution: float = 0.02

    def __post_init__(self) -> None:
        check_levels(self.levels)
        expect_number("resolution", self.resolution, lambda r: 0.0 < r < 1.0, "in (0, 1)")

    def choose(self, measure: Callable[[float], Point], previous: Sequence[Point]) -> None:
        """Measure the grid, then close in on its first crossing."""
        del previous  # every snapshot starts anew
        good, beyond = 0.0, math.inf
        for level in sorted({0.0, *self.levels, 1.0}):
            is_within = measure(level).is_within
            if not is_within:
                beyond = min(beyond, level)
            elif beyond == math.inf:
                good = level
        # where nothing is crossed there is nothing to close in on
        while self.resolution < beyond - good < math.inf:
            middle = round((good + beyond) / 2, 6)
            if measure(middle).is_within:
                good = middle
            else:
                beyond = middle


def check_levels(levels: Sequence[float]) -> None:
    """Refuse levels that no sweep can measure: outside [0, 1), or none at all."""
    levels = listed("levels", levels, "a list of sparsities in [0, 1)")
    if len(levels) == 0:
        raise ConfigurationError(
            "Expected `levels` with at least one sparsity in [0, 1), got none."
        )
    for index, level in enumerate(levels):
        if not is_number(level) or not 0.0 <= level < 1.0:
            raise ConfigurationError(
                f"Expected `levels[{index}]` to be a sparsity in [0, 1), got {level!r}. "
                "The level 1, everything removed, is always measured."
            )


# ------------------------------------------------------------------ racing

#: Levels of the grid farther apart than this have one between them below the crossing.
_WIDEST = 0.05
#: The crossing is read off levels that are no farther apart.
_BRACKET = 0.02
#: Standard error of the crossing that is near enough to evaluate all examples there.
_NEAR_ENOUGH = 0.05
#: As far from the only level that saw all examples a second one is needed.
_NEAR = 0.025
#: Standard error of the crossing about that on all examples, in units of the resolution.
_SHARP = 0.5
#: It is taken from where so many standard errors more and less would cross.
_ERRORS = 2.0
#: Up to such a share of the examples a first look at where the crossing is.
_FIRST_LOOK = 0.17
#: Up to such a share of them what everything removed costs.
_RELIANCE = 0.17
#: A level that needs more of the examples is evaluated on all of them.
_WHOLE = 0.5
#: Of a level that is in doubt below the crossing.
_WHOLE_IN_DOUBT = 0.35
#: Where the slope is fitted: so far on both sides, where harm is between these.
_REACH, _LEAST, _MOST = 0.08, -5.0, 6.0
#: Least slope, in what is tolerated by unit of sparsity.
_FLATTEST = 4.0
#: Spread of the curve about a straight line there, in what is tolerated.
_BEND = 0.02

#: A level, and the share of the examples to evaluate it on.
_Step = tuple[float, float]


@dataclass(frozen=True)
class Racing:
    """Evaluates levels on parts of the examples: about a third of the work of a grid.

    A level is left as soon as the examples it has seen say on which side of the tolerance it is.
    All levels begin with a small part, a simple random sample of the examples that is the same
    at every level and every snapshot (``Proxy.parts``). Only around the crossing all are evaluated:
    one level where the parts let it expect, mostly a second one, sometimes more. What examples
    lose at one level tells nearly what they lose at the next, so the levels that saw all of them
    correct the estimates of the others, by regression. At the end

    - the crossing is known to half of ``resolution`` (standard error) as all examples have it;
    - every evaluated level below it is within the tolerance, in the estimate plus so many
      standard errors (Student's t) that one level is wrongly passed with a probability of
      ``risk`` at most, over all its looks together. A crossing is overlooked only if every
      level beyond the tolerance below it passes, so no correction for the number of levels is
      needed (an intersection-union test: Berger 1982, Technometrics 24:295). Looks are few and at
      fixed numbers of examples, so that their union bound is narrower than a sequence for all
      numbers (a mixture of normals: Robbins 1970, Ann. Math. Stat. 41:1397; empirical Bernstein
      without replacement: Waudby-Smith and Ramdas 2020, arXiv:2006.04347): docs/estimate.md has
      what each costs.

    A value that takes few values, such as an accuracy, has to be seen on many examples before a
    part in which nothing changes proves anything; proxies of fewer than 8 x ``examples`` are not
    divided at all. Where no part would do, ``Bisection`` chooses, with twice the resolution.

    Nothing is taken over from the snapshot before: a snapshot is the same whichever others were
    taken. On recorded trainings the crossing before told as much as a part of 40 examples.

    Args:
        levels: the grid, fractions in [0, 1); below the crossing also halfway between.
        resolution: distance of neighbouring levels at the crossing.
        risk: see above, in (0, 0.5).
        examples: how many the smallest part has, at least.

    Raises:
        ConfigurationError: a level lies outside [0, 1), there is none, ``resolution`` is not in
            (0, 0.25], ``risk`` not in (0, 0.5), ``examples`` less than 8.
    """

    levels: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
    resolution: float = 0.01
    risk: float = 0.1
    examples: int = 8

    def __post_init__(self) -> None:
        check_levels(self.levels)
        expect_number("resolution", self.resolution, lambda r: 0.0 < r <= 0.25, "in (0, 0.25]")
        expect_number("risk", self.risk, lambda r: 0.0 < r < 0.5, "in (0, 0.5)")
        expect_whole("examples", self.examples, 8)

    def choose(self, measure: Measure, previous: Sequence[Point]) -> None:
        """Measure the grid on parts, then close in on its first crossing."""
        if len(measure.shares) == 1:
            Bisection(self.levels, 2 * self.resolution).choose(measure, previous)
            return
        race = _Race(measure.shares, self)
        points = measure.after([race.everything()])
        while (step := race.reliance(points)) is not None:
            points = measure.after([step])
        points = measure.after(race.grid())
        points = measure.after(race.halfway(points))
        while (step := race.next_step(points)) is not None:
            points = measure.after([step])

    def again(self, curve: SparsityCurve) -> _Again:
        """The same levels on as many examples, for another pattern."""
        return _Again(curve, self.examples)


@dataclass(frozen=True)
class _Again:
    """The levels of a curve, each on as many examples as there."""

    curve: SparsityCurve
    examples: int

    def choose(self, measure: Measure, previous: Sequence[Point]) -> None:
        del previous
        curve, num = self.curve, self.curve.num_examples or 1
        seen = curve.num_seen or [num] * len(curve.sparsity)
        shares = (number / num for number in seen)
        measure.after([*zip(curve.level or curve.sparsity, shares, strict=True)])


class _Crossing(NamedTuple):
    """Where the estimates cross the tolerance first, and how sure that is."""

    first: int  # the first point beyond it
    level: float
    slope: float  # of harm, by unit of sparsity
    error: float  # standard error of the level about that of all examples


class _Race:
    """The levels of one snapshot on their way to all examples: what to evaluate next."""

    def __init__(self, shares: Sequence[float], sweep: Racing) -> None:
        self._shares, self._sweep = shares, sweep
        self._probability = 1.0 - sweep.risk / (len(shares) - 1)
        self._grid = sorted({float(level) for level in sweep.levels} - {0.0})

    def everything(self) -> _Step:
        """What removing everything costs; a watch shows it, so not of the smallest part."""
        return 1.0, [share for share in self._shares if share <= _RELIANCE][-1]

    def reliance(self, points: Sequence[Point]) -> _Step | None:
        """More examples with everything removed, until it is decided whether that is too much."""
        everything = points[-1]
        if everything.share == 1.0 or self._margin(everything) <= abs(everything.harm - 1.0):
            return None
        return 1.0, min(2 * everything.share, 1.0)

    def grid(self) -> list[_Step]:
        """Every level of the grid, on the smallest part."""
        return [(level, self._shares[0]) for level in self._grid]

    def halfway(self, points: Sequence[Point]) -> list[_Step]:
        """Levels between those of the grid, up to the first that is surely beyond."""
        are_beyond = (p.level for p in points if p.harm - self._margin(p) > 1.0)
        beyond = next(are_beyond, 1.0)
        return [
            (round((before + after) / 2, 6), self._shares[0])
            for before, after in itertools.pairwise([0.0, *self._grid, 1.0])
            if before < beyond and after - before > _WIDEST + 1e-9
        ]

    def next_step(self, points: Sequence[Point]) -> _Step | None:
        """The level that makes the crossing surer at the least cost; None where that is enough."""
        points = [Point(0.0, 0.0), *points[1:]]
        if points[-1].harm <= 1.0 or (crossing := self._crossing(points)) is None:
            return None
        for rule in (self._whole, self._between, self._sharper, self._doubtful, self._returning):
            if (step := rule(points, crossing)) is not None:
                return step[0], min(step[1], 1.0)
        return None

    # ------------------------------------------------------------------ the crossing

    def _crossing(self, points: Sequence[Point]) -> _Crossing | None:
        index = next((i for i, point in enumerate(points) if not point.harm <= 1.0), None)
        if index is None:
            return None
        before, after = points[index - 1], points[index]
        width, rise = after.level - before.level, after.harm - before.harm
        share = (1.0 - before.harm) / rise  # 0 where the model broke down
        level = before.level + width * share
        slope = max(_slope(points, level), rise / width if width > 0.03 else 0.0, _FLATTEST)
        # what the parts say is wrong in the same direction at neighbouring levels
        ends = [_first_crossing(points, sign * _ERRORS) for sign in (-1, 1)]
        return _Crossing(index, level, slope, (ends[0] - ends[1]) / (2 * _ERRORS))

    def _whole(self, points: Sequence[Point], crossing: _Crossing) -> _Step | None:
        """One or two levels at the crossing on all examples."""
        wholes = [point for point in points[1:-1] if point.share == 1.0]
        level = self._on_grid(crossing.level)
        if len(wholes) == 1 and abs(level - wholes[0].level) > _NEAR:
            return _further(points, level, 1.0)
        if wholes:
            return None
        expected = _monotone_crossing(points)
        near = min(points[1:-1], key=lambda point: abs(point.level - expected))
        looks = [share for share in self._shares if near.share < share <= _FIRST_LOOK]
        error = near.doubt / max(_chord(points, expected), _FLATTEST + 1.0)
        if looks and error > _NEAR_ENOUGH:
            return near.level, looks[0]
        return _further(points, self._on_grid(expected), 1.0)

    def _between(self, points: Sequence[Point], crossing: _Crossing) -> _Step | None:
        """A level where the crossing is between two that are far apart."""
        before, after = points[crossing.first - 1], points[crossing.first]
        resolution = self._sweep.resolution
        if after.level - before.level <= max(_BRACKET, resolution) + 1e-9:
            return None
        level = self._on_grid(crossing.level)
        level = min(max(level, before.level + resolution), after.level - resolution)
        are_whole = before.share == after.share == 1.0
        share = 1.0 if are_whole else self._shares[min(1, len(self._shares) - 1)]
        return _further(points, round(level, 6), share)

    def _sharper(self, points: Sequence[Point], crossing: _Crossing) -> _Step | None:
        """More examples at the nearer side of the crossing, then at the other."""
        wanted = _SHARP * self._sweep.resolution
        if crossing.error <= wanted:
            return None
        sides = points[crossing.first - 1], points[crossing.first]
        for side in sorted(sides, key=lambda point: abs(point.level - crossing.level)):
            if side.share < 1.0:
                share = _needed(side, wanted * crossing.slope)
                return side.level, 1.0 if share > _WHOLE else share
        return None

    # ------------------------------------------------------------------ the other levels

    def _doubtful(self, points: Sequence[Point], crossing: _Crossing) -> _Step | None:
        """The level below the crossing that is the least surely within the tolerance."""
        below = points[1 : crossing.first - 1]
        doubtful = [p for p in below if p.share < 1.0 and p.harm + self._margin(p) > 1.0]
        if not doubtful:
            return None
        point = max(doubtful, key=lambda p: (p.harm - 1.0) / max(p.doubt, 1e-12))
        quantile = t_quantile(self._probability, max(point.freedom, 20))
        share = _needed(point, max(1.0 - point.harm, 0.0) / quantile)
        return point.level, 1.0 if share > _WHOLE_IN_DOUBT else share

    def _returning(self, points: Sequence[Point], crossing: _Crossing) -> _Step | None:
        """A level above the crossing that may be within the tolerance again, or not."""
        for point in points[crossing.first + 1 : -1]:
            if point.harm <= 1.0 < point.harm + self._margin(point) and point.share < 1.0:
                return point.level, 2 * point.share
        return None

    def _margin(self, point: Point) -> float:
        """How far the harm on all examples may be from the estimate."""
        if point.doubt == 0.0:
            return 0.0
        return t_quantile(self._probability, point.freedom) * point.doubt

    def _on_grid(self, level: float) -> float:
        resolution = self._sweep.resolution
        last = math.ceil(round(1.0 / resolution, 6)) - 1
        return round(min(max(round(level / resolution), 1), last) * resolution, 6)


def _further(points: Sequence[Point], level: float, share: float) -> _Step | None:
    """The step, if it is one."""
    seen = next((point.share for point in points if point.level == level), 0.0)
    return (level, share) if seen < share else None


def _needed(point: Point, doubt: float) -> float:
    """The share of the examples that brings the doubt of a point down to this, more than it has."""
    if doubt <= 0.0:
        return 1.0
    # the square of the doubt goes with 1 / share - 1
    ratio = (point.doubt / doubt) ** 2
    return max(1.0 / (1.0 + (1.0 / point.share - 1.0) / ratio), 1.2 * point.share)


def _first_crossing(points: Sequence[Point], errors: float) -> float:
    """Where harm plus so many standard errors crosses the tolerance first, read as straight."""
    harms = [point.harm + errors * point.doubt for point in points]
    index = next((i for i, harm in enumerate(harms) if harm > 1.0), len(harms) - 1)
    low, high = harms[index - 1], harms[index]
    share = min(max((1.0 - low) / (high - low), 0.0), 1.0) if high > low else 1.0
    return points[index - 1].level + share * (points[index].level - points[index - 1].level)


def _chord(points: Sequence[Point], level: float) -> float:
    """The slope of harm between the points around a level."""
    index = next((i for i, point in enumerate(points) if point.level > level), len(points) - 1)
    before, after = points[index - 1], points[index]
    return (after.harm - before.harm) / (after.level - before.level)


def _slope(points: Sequence[Point], level: float) -> float:
    """The slope of harm around a level, by weighted least squares; 0 from fewer than three."""
    near = [p for p in points if abs(p.level - level) <= _REACH + 1e-9 and _LEAST < p.harm < _MOST]
    if len(near) < 3:
        return 0.0
    x, y = np.array([p.level for p in near]), np.array([p.harm for p in near])
    weights = 1.0 / (np.array([p.doubt for p in near]) ** 2 + _BEND)
    x = x - np.average(x, weights=weights)
    return float((weights * x) @ y / ((weights * x) @ x))


def _monotone_crossing(points: Sequence[Point]) -> float:
    """Where the best curve that only rises passes the tolerance.

    Noise that crosses early does not count if the levels above are within it again. By pooling
    adjacent violators (Barlow et al. 1972, Statistical Inference under Order Restrictions).
    """
    blocks: list[list[float]] = []  # weighted sums of harm and level, and of weights
    for point in _finite(points):
        weight = 1.0 / max(point.doubt**2, 1e-4)
        blocks.append([weight * point.harm, weight, point.level, 1.0])
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] >= blocks[-1][0] * blocks[-2][1]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    fitted = [(levels / number, harm / weight) for harm, weight, levels, number in blocks]
    for (left, low), (right, high) in itertools.pairwise(fitted):
        if high > 1.0:
            return left + (right - left) * min(max((1.0 - low) / (high - low), 0.0), 1.0)
    return fitted[-1][0]


def _finite(points: Sequence[Point]) -> Iterator[Point]:
    """A model that breaks down is far beyond the tolerance."""
    for point in points:
        yield point if math.isfinite(point.harm) else point._replace(harm=1e3)
