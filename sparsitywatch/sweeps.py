"""Which level to evaluate next, and on how many examples, given what those before have cost.

A sweep is told what each level costs so far (``PairedDifferences``), and says what to evaluate.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from sparsitywatch.errors import expect, expect_number, expect_whole, is_number, listed
from sparsitywatch.records import SparsityCurve
from sparsitywatch.records.curve import ROUNDED, Array, first_beyond, standard_error

__all__ = ["Bisection", "Grid", "Point", "Racing", "Sweep"]


def __dir__() -> list[str]:
    return __all__


#: Racing's levels around the crossing and the lower end of its interval are no farther apart than
#: so many widths of the interval, those around the upper end than so many, or so many times the
#: resolution. Harm mostly bends upward, so that it is read too high between levels that are far
#: apart: both ends come out too low, which is safe for the lower one and not for the upper.
_WIDTHS, _WIDTHS_ABOVE, _RESOLUTIONS = 3.0, 1.0, 3.0
#: A level between two is at least such a share of their distance from both.
_ROOM = 0.2
#: Passes over all examples that the crossing and its interval are expected to take.
_PASSES = 5.0

#: The harm that is accepted, given the mean value of the dense model; both in the value's units.
Allowed = Callable[[float], float]

#: A level, and the share of the examples to evaluate it on at least.
Step = tuple[float, float]


class Point(NamedTuple):
    """What one level costs, in units of the harm that is tolerated: beyond 1 is too much.

    Args:
        level: in [0, 1].
        harm: estimate of the mean over all examples; inf where the value is not finite.
        stderr: its standard error, for the population of the examples; 0 where harm is inf.
        sampling_error: its standard error about the mean of all examples; 0 where all were seen.
        degrees_of_freedom: of that error.
        share: of the examples that were evaluated.
    """

    level: float
    harm: float
    stderr: float = 0.0
    sampling_error: float = 0.0
    degrees_of_freedom: int = 0
    share: float = 1.0


class Sweep(ABC):
    """Chooses the levels to evaluate between 0 and 1; both ends are always evaluated.

    Write your own by deriving from this class.

    Args:
        levels: those that it starts from, fractions in [0, 1).
        examples: how many the smallest share of them has at least; None: a level is always
            evaluated on all of them.
    """

    levels: Sequence[float] = ()
    examples: int | None = None

    def expected(self, num_examples: int, *, divided: bool) -> tuple[float, float]:  # noqa: ARG002
        """About how many levels it evaluates on the smallest share, and passes over all examples.

        Both beside the ends; the first evaluation of a watch is priced by it. ``divided`` says
        whether a level can be evaluated on a share of the examples.
        """
        return len({float(level) for level in self.levels} - {0.0}), 0.0

    @abstractmethod
    def next_step(self, points: Sequence[Point], shares: Sequence[float]) -> Step | None:
        """The level to evaluate next, and the share of the examples; None where that is enough.

        Args:
            points: every level that was evaluated, rising from 0 to 1, as it is known by now.
            shares: of the examples on which a level can be evaluated, rising to 1. There is only 1
                where the sweep does not say ``examples``, or where they cannot be divided.
        """


@dataclass(frozen=True)
class Grid(Sweep):
    """The same levels every time.

    Args:
        levels: fractions in [0, 1).

    Raises:
        ConfigurationError: a level lies outside [0, 1), or there is none.
    """

    levels: Sequence[float] = field()

    def __post_init__(self) -> None:
        check_levels(self.levels)

    def next_step(self, points: Sequence[Point], shares: Sequence[float]) -> Step | None:
        """The first level that is missing."""
        return missing(self.levels, points, shares[-1])


@dataclass(frozen=True)
class Bisection(Sweep):
    """A grid, then halving its step where the best curve that only rises crosses the tolerance.

    Args:
        levels: the grid, fractions in [0, 1).
        resolution: stop when the crossing is bracketed this finely.

    Raises:
        ConfigurationError: a level lies outside [0, 1), there is none, or ``resolution``
            is not in (0, 1).
    """

    levels: Sequence[float] = field()
    resolution: float = 0.02

    def __post_init__(self) -> None:
        check_levels(self.levels)
        expect_number("resolution", self.resolution, lambda r: 0.0 < r < 1.0, "in (0, 1)")

    def expected(self, num_examples: int, *, divided: bool) -> tuple[float, float]:  # noqa: ARG002
        """The grid, and the halves of its widest step."""
        grid = sorted({0.0, *map(float, self.levels), 1.0})
        widest = max(b - a for a, b in itertools.pairwise(grid))
        return len(grid) - 2 + max(math.ceil(math.log2(widest / self.resolution)), 0), 0.0

    def next_step(self, points: Sequence[Point], shares: Sequence[float]) -> Step | None:
        """The first level of the grid that is missing, then the middle of where it is crossed."""
        if (step := missing(sorted(self.levels), points, shares[-1])) is not None:
            return step
        beyond = first_beyond(*_harm_with_errors(points, 0.0), 1.0)
        if not 0 < beyond < len(points):
            return None  # where nothing is crossed there is nothing to close in on
        below, above = points[beyond - 1].level, points[beyond].level
        middle = round((below + above) / 2, 6)
        is_wide = above - below > self.resolution and below < middle < above
        return (middle, shares[-1]) if is_wide else None


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
        return missing(sorted(self.levels), points, shares[0]) or self._on_all_examples(points)

    def _on_all_examples(self, points: Sequence[Point]) -> Step | None:
        """A level on all examples: near the crossing, near its interval's ends, and nearer."""
        # level 0 is the dense model, on however few examples that was checked
        points = [points[0]._replace(harm=0.0, share=1.0), *points[1:]]
        # one example on which the model breaks down proves that it does
        whole = [p for p in points if p.share == 1.0 or not math.isfinite(p.harm)]
        errors = -NormalDist().inv_cdf(self.risk / 2)
        numbers = (0.0, errors, -errors)
        cases = [(some, *_harm_with_errors(some, n)) for some in (whole, points) for n in numbers]
        firsts = [first_beyond(harm, stderr, 1.0) for _, harm, stderr in cases]
        value, low, high, *of_all = map(_crossing, cases, firsts)
        width, nearest = high.level - low.level, _RESOLUTIONS * self.resolution
        near, near_above = max(nearest, _WIDTHS * width), max(nearest, _WIDTHS_ABOVE * width)
        wanted = [(value, of_all[0], near)]
        if not value.stderr > 1.0:  # else no interval is told: the tolerance is below the noise
            wanted += [(low, of_all[1], near), (high, of_all[2], near_above)]
            wanted += [(value, of_all[0], nearest)]
        for crossing, expected, apart in wanted:
            below, above = crossing.below, crossing.above
            if above - below > apart + 1e-9:
                # whichever expects it at a wrong place, the middle is not passed over
                level = sorted((crossing.level, expected.level, (below + above) / 2))[1]
                room = _ROOM * (above - below)
                level = min(max(level, below + room), above - room)
                level = round(round(level / self.resolution) * self.resolution, 6)
                if below < level < above:
                    return level, 1.0
        return None


class _Crossing(NamedTuple):
    """Where harm crosses the tolerance, between two levels, and its standard error there."""

    below: float
    above: float
    level: float
    stderr: float


def _crossing(case: tuple[Sequence[Point], Array, Array], first: int) -> _Crossing:
    """Where harm at points crosses, before the first that is beyond on the curve that rises."""
    points, harm, _ = case
    beyond = min(max(first, 1), len(points) - 1)
    below, above = points[beyond - 1], points[beyond]
    start, end = harm[beyond - 1 : beyond + 1].tolist()
    # infinite where the model breaks down, anywhere between
    rise = end - start
    share = min(max((1.0 - start) / rise, 0.0), 1.0) if 0.0 < rise < math.inf else 0.5
    level = below.level + share * (above.level - below.level)
    error = below.stderr + share * (above.stderr - below.stderr)
    return _Crossing(below.level, above.level, level, error)


def _harm_with_errors(points: Sequence[Point], number: float) -> tuple[Array, Array]:
    """Harm and so many errors, those that are left once all examples were seen; standard errors."""
    harm = [
        p.harm + number * math.sqrt(max(p.stderr**2 - p.sampling_error**2, 0.0))
        if math.isfinite(p.harm)
        else math.inf
        for p in points
    ]
    return np.array(harm), np.array([point.stderr for point in points])


@dataclass(frozen=True)
class SameLevels(Sweep):
    """The levels of a curve, each on as many examples as there: for another pattern."""

    curve: SparsityCurve
    examples: int | None = None

    @property
    def levels(self) -> Sequence[float]:  # type: ignore[override]
        """Those of the curve, without 1."""
        return [level for level in self.curve.level or self.curve.sparsity if level < 1.0]

    def next_step(self, points: Sequence[Point], _: Sequence[float]) -> Step | None:
        """The first level that has not seen as many examples as in the curve."""
        levels, num = self.curve.level or self.curve.sparsity, self.curve.num_examples or 1
        seen = {point.level: point.share for point in points}
        for level, number in zip(levels, self.curve.num_seen or [num] * len(levels), strict=True):
            if seen.get(level, 0.0) < number / num - 1e-9:
                return level, number / num
        return None


def missing(levels: Sequence[float], points: Sequence[Point], share: float) -> Step | None:
    """The first of some levels that was not evaluated yet."""
    known = {point.level for point in points}
    return next(((level, share) for level in map(float, levels) if level not in known), None)


def check_levels(levels: Sequence[float]) -> None:
    """Refuse levels that no sweep can measure: outside [0, 1), or none at all."""
    found = listed("levels", levels, "a list of sparsities in [0, 1)")
    expect(found, "levels", "at least one sparsity in [0, 1)", levels)
    what = "a sparsity in [0, 1) (the level 1, everything removed, is always measured)"
    for index, level in enumerate(found):
        expect(is_number(level) and 0.0 <= level < 1.0, f"levels[{index}]", what, level)


# ------------------------------------------------------------------ what levels have cost


class Mean(NamedTuple):
    """An estimate of a mean over all examples, in the units of the values."""

    value: float
    sampling_error: float  # standard error about the mean of all examples; 0 where all were seen
    stderr: float  # about the mean of their population, as if they were drawn
    num_seen: int


class PairedDifferences:
    """What each example loses at each level, as far as it was evaluated.

    The examples of a subset are the first ones of a random order, a simple random sample without
    replacement. In a heavy tail the variance of few examples is too small as a rule: the error that
    one more difference of the size of the largest would make is added. Where all that were seen
    lose the same, an unseen one may lose as much as one that loses anything does at a higher level.
    """

    def __init__(self, num_examples: int, tolerated: float, *, sign: float = 1.0) -> None:
        self.num_examples = num_examples
        self._tolerated = tolerated  # harm, in the units of the values
        self._sign = sign  # -1 where losing is good
        self._lost: dict[float, Array] = {}
        self._sizes: dict[float, float] = {}  # of what those lose that lose anything
        self._same = {0.0}  # levels at which no weight has changed
        self.means: dict[float, Mean] = {}  # of what is lost at each level, as known by now

    def points(self) -> list[Point]:
        """What each level costs in units of what is tolerated, by rising level."""
        return [self._point(level, mean) for level, mean in sorted(self.means.items())]

    def add(self, level: float, lost: Array, *, is_same: bool = False) -> None:
        """More of what was lost at a level: in the next subset, or by all examples."""
        if len(lost) < self.num_examples and level in self._lost:
            lost = np.concatenate([self._lost[level], lost])
        self._lost[level] = lost
        self._same |= {level} if is_same else set()
        losers = lost[np.isfinite(lost) & (np.abs(lost) > ROUNDED * self._tolerated)]
        self._sizes[level] = math.sqrt(float(losers @ losers) / len(losers)) if len(losers) else 0.0
        # the error where nothing is lost is by what is lost at others
        for changed in {level} | {other for other, size in self._sizes.items() if not size}:
            self.means[changed] = self._mean(changed)

    def _mean(self, level: float) -> Mean:
        lost, num = self._lost[level], len(self._lost[level])
        mean = float(lost.mean())
        if not math.isfinite(mean):
            return Mean(mean, 0.0, math.nan, num)  # the model broke down
        if level in self._same:
            return Mean(mean, 0.0, 0.0, num)
        higher = [size for other, size in self._sizes.items() if other > level and size > 0.0]
        most = min(higher, default=self._tolerated)
        error, unseen = standard_error(lost, most, self._tolerated), 1.0 - num / self.num_examples
        tail = float(np.abs(lost - mean).max()) / num if unseen else 0.0
        sampling_error = math.sqrt(unseen * (error**2 + tail**2))
        stderr = math.hypot(error * math.sqrt(1.0 - unseen), sampling_error)
        return Mean(mean, sampling_error, stderr, num)

    def _point(self, level: float, mean: Mean) -> Point:
        """The same in units of what is tolerated."""
        harm, unit = self._sign * mean.value, self._tolerated
        if not math.isfinite(harm):
            return Point(level, math.inf)
        if unit == 0.0:  # a relative tolerance of a dense value of 0
            return Point(level, math.inf if harm > 0.0 else 0.0)
        stderr = 0.0 if math.isnan(mean.stderr) else mean.stderr / unit
        error, share = mean.sampling_error / unit, mean.num_seen / self.num_examples
        return Point(level, harm / unit, stderr, error, mean.num_seen - 1, share)


def largest_step(values: Array) -> float:
    """The range of values of which many are the same, as of an accuracy; 0 of continuous ones."""
    if 2 * len(np.unique(values)) > len(values):
        return 0.0
    return float(values.max() - values.min())


def shares_of(num_examples: int, smallest: int, step: float = 0.0) -> tuple[float, ...]:
    """Shares of the examples that subsets rise to, each twice the one before, up to a half.

    With a ``step``, that a value which takes few values can jump in units of the harm allowed, a
    subset in which nothing changes has to say that less than that much changes in all.

    >>> shares_of(128, 8), shares_of(63, 8)
    ((0.0625, 0.125, 0.25, 0.5), ())
    """
    # one by itself has no error
    found, number = [], max(smallest, 2.0, num_examples / 32, 4.0 * step)
    if 8 * number > num_examples:  # the smallest would save little, and say little
        return ()
    while 2 * number <= num_examples:
        found.append(number / num_examples)
        number *= 2
    return tuple(found)
