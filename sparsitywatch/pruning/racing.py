"""Racing: a sweep on shares of the examples, and what these tell of all of them."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsitywatch.errors import expect_number, expect_whole
from sparsitywatch.pruning.sweeps import Bisection, Point, Step, Sweep, check_levels
from sparsitywatch.records.student import t_quantile

Array = NDArray[np.float64]

#: From so many examples on two levels are used at once to read one.
_EXAMPLES_FOR_TWO = 16
#: How much an error of few degrees of freedom counts for larger, where it is compared.
_UNSURE = 4.0
#: Covariates that say the same are one.
_SINGULAR = 1e8

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
#: Passes over all examples that the crossing is expected to take: on recorded runs 4 to 9 of some
#: 200, and fewer of more examples, whose errors are smaller.
_MOST_PASSES, _PASSES = 6.0, 100.0
#: Spread of the curve about a straight line there, in what is tolerated.
_BEND = 0.02


@dataclass(frozen=True)
class Racing(Sweep):
    """Evaluates levels on parts of the examples: about a third of the work of a grid.

    A level is left as soon as the examples it has seen say on which side of the tolerance it is.
    All levels begin with a small share, a simple random sample of the examples that is the same
    at every level and every snapshot. Only around the crossing all are evaluated: one level where
    the shares let it expect, mostly a second one, sometimes more. What examples
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

    def candidates(self) -> list[float]:
        """The grid, and halfway between its levels."""
        grid = [0.0, *sorted({float(level) for level in self.levels} - {0.0}), 1.0]
        return grid[1:-1] + [halfway for _, halfway in _halfway(grid)]

    def expected(self, num_examples: int, *, divided: bool) -> tuple[float, float]:
        """The grid with what lies between; at the crossing some on all examples, or on most."""
        if not divided:
            bisection = Bisection(self.levels, 2 * self.resolution)
            return bisection.expected(num_examples, divided=False)
        return len(self.candidates()), min(_MOST_PASSES, _PASSES / math.sqrt(num_examples))

    def next_step(self, points: Sequence[Point], shares: Sequence[float]) -> Step | None:
        """The ends, the grid on the smallest share, then whatever makes the crossing surer."""
        if len(shares) == 1:
            return Bisection(self.levels, 2 * self.resolution).next_step(points, shares)
        race = _Race(shares, self)
        step = None
        if all(point.share < shares[1] - 1e-9 for point in points[1:-1]):
            step = race.first_look(points)
        return step or race.next_step(points)


class _Crossing(NamedTuple):
    """Where the estimates cross the tolerance first, and how sure that is."""

    first: int  # the first point beyond it
    level: float
    slope: float  # of harm, by unit of sparsity
    error: float  # standard error of the level about that of all examples


class _Race:
    """The levels of one snapshot on their way to all examples: what to evaluate next."""

    def __init__(self, shares: Sequence[float], sweep: Racing) -> None:
        self._shares = shares
        self._sweep = sweep
        self._probability = 1.0 - sweep.risk / (len(shares) - 1)
        self._grid = sorted({float(level) for level in sweep.levels} - {0.0})

    def reliance(self, everything: Point) -> Step | None:
        """More examples with everything removed, until it is decided whether that is too much."""
        # a watch shows it, so not of the smallest share
        least = [share for share in self._shares if share <= _RELIANCE][-1]
        if everything.share < least - 1e-9:
            return 1.0, least
        if everything.share == 1.0 or self._margin(everything) <= abs(everything.harm - 1.0):
            return None
        return 1.0, min(2 * everything.share, 1.0)

    def first_look(self, points: Sequence[Point]) -> Step | None:
        """The grid on the smallest share, and halfway up to the first level surely beyond."""
        if len(points) == 2 and (step := self.reliance(points[-1])) is not None:
            return step
        known = {point.level for point in points}
        of_grid = [p for p in points if p.level in (0.0, *self._grid, 1.0)]
        wanted = self._grid
        if len(of_grid) == len(self._grid) + 2:
            beyond = next((p.level for p in of_grid if p.harm - self._margin(p) > 1.0), 1.0)
            between = _halfway([0.0, *self._grid, 1.0])
            wanted = [halfway for below, halfway in between if below < beyond]
        missing = [level for level in wanted if level not in known]
        return (missing[0], self._shares[0]) if missing else None

    def next_step(self, points: Sequence[Point]) -> Step | None:
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

    def _whole(self, points: Sequence[Point], crossing: _Crossing) -> Step | None:
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
        error = near.sampling_error / max(_chord(points, expected), _FLATTEST + 1.0)
        if looks and error > _NEAR_ENOUGH:
            return near.level, looks[0]
        return _further(points, self._on_grid(expected), 1.0)

    def _between(self, points: Sequence[Point], crossing: _Crossing) -> Step | None:
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

    def _sharper(self, points: Sequence[Point], crossing: _Crossing) -> Step | None:
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

    def _doubtful(self, points: Sequence[Point], crossing: _Crossing) -> Step | None:
        """The level below the crossing that is the least surely within the tolerance."""
        below = points[1 : crossing.first - 1]
        doubtful = [p for p in below if p.share < 1.0 and p.harm + self._margin(p) > 1.0]
        if not doubtful:
            return None
        point = max(doubtful, key=lambda p: (p.harm - 1.0) / max(p.sampling_error, 1e-12))
        quantile = t_quantile(self._probability, max(point.degrees_of_freedom, 20))
        share = _needed(point, max(1.0 - point.harm, 0.0) / quantile)
        return point.level, 1.0 if share > _WHOLE_IN_DOUBT else share

    def _returning(self, points: Sequence[Point], crossing: _Crossing) -> Step | None:
        """A level above the crossing that may be within the tolerance again, or not."""
        for point in points[crossing.first + 1 : -1]:
            if point.harm <= 1.0 < point.harm + self._margin(point) and point.share < 1.0:
                return point.level, 2 * point.share
        return None

    def _margin(self, point: Point) -> float:
        """How far the harm on all examples may be from the estimate."""
        if point.sampling_error == 0.0:
            return 0.0
        return t_quantile(self._probability, point.degrees_of_freedom) * point.sampling_error

    def _on_grid(self, level: float) -> float:
        resolution = self._sweep.resolution
        last = math.ceil(round(1.0 / resolution, 6)) - 1
        return round(min(max(round(level / resolution), 1), last) * resolution, 6)


def _halfway(grid: Sequence[float]) -> list[tuple[float, float]]:
    """The levels halfway between those of a grid that are far apart, with the one below each."""
    return [
        (below, round((below + above) / 2, 6))
        for below, above in itertools.pairwise(grid)
        if above - below > _WIDEST + 1e-9
    ]


def _further(points: Sequence[Point], level: float, share: float) -> Step | None:
    """The step, if it is one."""
    seen = next((point.share for point in points if point.level == level), 0.0)
    return (level, share) if seen < share else None


def _needed(point: Point, doubt: float) -> float:
    """The share of the examples that brings the doubt of a point down to this, more than it has."""
    if doubt <= 0.0:
        return 1.0
    # the square of the doubt goes with 1 / share - 1
    ratio = (point.sampling_error / doubt) ** 2
    return max(1.0 / (1.0 + (1.0 / point.share - 1.0) / ratio), 1.2 * point.share)


def _first_crossing(points: Sequence[Point], errors: float) -> float:
    """Where harm plus so many standard errors crosses the tolerance first, read as straight."""
    harms = [point.harm + errors * point.sampling_error for point in points]
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
    weights = 1.0 / (np.array([p.sampling_error for p in near]) ** 2 + _BEND)
    x = x - np.average(x, weights=weights)
    return float((weights * x) @ y / ((weights * x) @ x))


def _monotone_crossing(points: Sequence[Point]) -> float:
    """Where the best curve that only rises passes the tolerance.

    Noise that crosses early does not count if the levels above are within it again. By pooling
    adjacent violators (Barlow et al. 1972, Statistical Inference under Order Restrictions).
    """
    blocks: list[list[float]] = []  # weighted sums of harm and level, and of weights
    for point in _finite(points):
        weight = 1.0 / max(point.sampling_error**2, 1e-4)
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


# ------------------------------------------------------------------ what some examples tell of all


class Mean(NamedTuple):
    """An estimate of a mean over all examples, in the units of the values."""

    value: float
    sampling_error: float  # standard error about the mean of all examples; 0 where all were seen
    stderr: float  # about the mean of their population, as if they were drawn
    degrees_of_freedom: int
    num_seen: int


#: Levels by which one is corrected.
_Helpers = tuple[float, ...]


class PairedDifferences:
    """What each example loses at each level, as far as it was evaluated.

    The examples of a subset are the first ones of a random order, a simple random sample without
    replacement. Their mean is corrected by a linear regression on one or two levels that more
    examples have seen, since what an example loses at one level tells nearly what it loses at
    the next: the regression estimator of double sampling (Cochran 1977, Sampling Techniques, 3rd
    ed., sections 7.1 and 12.6). The variance has the finite population correction and that of the
    regression. In a heavy tail the variance of few examples is too small as a rule: the error that
    one more residual of the size of the largest would make is added, and the variance is larger
    by as much as the nearest level that saw more varies more over all that it saw than over this
    subset.

    Args:
        num_examples: of all.
        order: places of the drawn examples, int64 [n]; those of the first subset come first.
        tolerated: harm that is accepted, in the units of the values.
        step: the most that a value which takes few values can jump; 0 for a continuous one. As much
            error is added as two unseen examples that jump would make, so that a subset in which
            nothing changes does not prove that nothing does.
        sign: -1 where losing is good.
    """

    def __init__(
        self,
        num_examples: int,
        order: NDArray[np.int64],
        tolerated: float,
        *,
        step: float = 0.0,
        sign: float = 1.0,
    ) -> None:
        self.means: dict[float, Mean] = {}
        self._num_examples = num_examples
        self._order = order
        self._tolerated = tolerated
        self._step = step
        self._sign = sign
        self._lost: dict[float, Array] = {}  # in the drawn order; of all examples in their own
        self._basis: dict[float, Any] = {}  # what the mean of a level depends on
        self._points: dict[float, Point] = {}

    def points(self) -> list[Point]:
        """What each level costs in units of what is tolerated, by rising level."""
        return [self._points[level] for level in sorted(self._points)]

    def add(self, level: float, lost: Array) -> None:
        """More of what was lost at a level: in the next subset, or by all examples in their order.

        Levels that fewer examples have seen are read anew where this one helps to.
        """
        if len(lost) < self._num_examples and level in self._lost:
            lost = np.concatenate([self._lost[level], lost])
            if len(lost) == self._num_examples:
                drawn = lost
                lost = np.empty_like(drawn)
                lost[self._order] = drawn
        self._lost[level] = lost
        self._update(len(lost), [level])
        fewer: dict[int, list[float]] = {}
        for other, seen in self._lost.items():
            if len(seen) < len(lost):
                fewer.setdefault(len(seen), []).append(other)
        for number in sorted(fewer, reverse=True):  # those that most have seen help the others
            self._update(number, fewer[number])

    def _update(self, number: int, levels: Sequence[float]) -> None:
        """Read the means of levels that so many examples have seen, where their helpers changed."""
        wider = sorted(
            level
            for level, seen in self._lost.items()
            if len(seen) > number and level > 0.0 and math.isfinite(self.means[level].value)
        )
        for level in levels:
            helpers = _helpers(level, number, wider)
            basis = number, helpers, [self.means[one] for pair in helpers for one in pair]
            if self._basis.get(level) != basis:
                self._basis[level] = basis
                self.means[level] = self._read(level, helpers)
                self._points[level] = self._point(level, self.means[level])

    def _point(self, level: float, mean: Mean) -> Point:
        """The same in units of what is tolerated."""
        harm, unit = self._sign * mean.value, self._tolerated
        if not math.isfinite(harm):
            return Point(level, math.inf)
        if unit == 0.0:  # a relative tolerance of a dense value of 0
            return Point(level, math.inf if harm > 0.0 else 0.0)
        stderr = 0.0 if math.isnan(mean.stderr) else mean.stderr / unit
        error, share = mean.sampling_error / unit, mean.num_seen / self._num_examples
        return Point(level, harm / unit, stderr, error, mean.degrees_of_freedom, share)

    def _read(self, level: float, helpers: Sequence[_Helpers]) -> Mean:
        lost = self._lost[level]
        num = len(lost)
        if not np.isfinite(lost).all():
            return Mean(float(lost.mean()), 0.0, math.nan, 0, num)  # the model broke down
        if num == self._num_examples:
            error = float(lost.std(ddof=1) / math.sqrt(num))
            return Mean(float(lost.mean()), 0.0, error, num - 1, num)
        wide = self._how_much_wider(helpers[0][0], num) if helpers else 1.0
        found = [self._corrected(lost, others, wide) for others in [(), *helpers]]
        # few degrees of freedom make an error uncertain
        return min(
            (mean for mean in found if mean is not None),
            key=lambda mean: (
                mean.sampling_error * math.sqrt(1.0 + _UNSURE / mean.degrees_of_freedom)
            ),
        )

    def _how_much_wider(self, other: float, num: int) -> float:
        """The variance of what a level has seen over that of the first ``num`` examples, or 1.

        Where few examples lose most, a subset without them looks as if nothing varied.
        """
        part, seen = self._drawn(other, num).var(), self._lost[other].var()
        return max(1.0, float(seen / part)) if part > 0.0 else 1.0

    def _corrected(self, lost: Array, others: _Helpers, wide: float) -> Mean | None:
        """The mean by regression on others; None where they say nothing or the same."""
        num, freedom = len(lost), len(lost) - 1 - len(others)
        unseen = 1.0 - num / self._num_examples
        slopes, leverage = np.zeros(len(others)), 0.0
        residual, shift = lost - lost.mean(), np.zeros(len(others))
        if others:
            known = np.stack([self._drawn(other, num) for other in others], axis=1)
            centred = known - known.mean(axis=0)
            products = centred.T @ centred
            if not np.linalg.cond(products) < _SINGULAR:
                return None
            slopes = np.linalg.solve(products, centred.T @ residual)
            residual = residual - centred @ slopes
            shift = np.array([self.means[o].value for o in others]) - known.mean(axis=0)
            leverage = float(shift @ np.linalg.solve(products, shift))
        variance = wide * float(residual @ residual) / freedom
        helping = [*zip(slopes, (self.means[other] for other in others), strict=True)]
        carried = sum(abs(slope) * mean.sampling_error for slope, mean in helping)
        spread = sum(abs(slope) * mean.stderr for slope, mean in helping)
        sampling_error = math.sqrt(
            variance * (unseen / num + leverage)
            + unseen * (float(np.abs(residual).max()) / num) ** 2
            + unseen * (2.0 * self._step / num) ** 2
            + carried**2
        )
        of_all = max(spread**2 - carried**2, 0.0) + variance / self._num_examples
        value = float(lost.mean() + slopes @ shift)
        stderr = math.sqrt(of_all + sampling_error**2)
        return Mean(value, sampling_error, stderr, freedom, num)

    def _drawn(self, level: float, num: int) -> Array:
        """What the first ``num`` drawn examples lost at a level that has seen them."""
        lost = self._lost[level]
        return lost[self._order[:num]] if len(lost) == self._num_examples else lost[:num]


def _helpers(level: float, num_seen: int, wider: Sequence[float]) -> tuple[_Helpers, ...]:
    """Levels by which one may be corrected, alone and in pairs, of rising ones that saw more."""
    if level == 0.0 or not wider:
        return ()
    place = bisect.bisect(wider, level)
    around = wider[max(place - 1, 0) : place + 1]
    nearest = around[-1] if level - around[0] > around[-1] - level else around[0]
    if num_seen < _EXAMPLES_FOR_TWO or not 0 < place < len(wider):
        return ((nearest,),)
    return (nearest,), (around[0], around[1])


def largest_step(values: Array) -> float:
    """The range of values of which many are the same, as of an accuracy; 0 of continuous ones.

    >>> largest_step(np.array([0.0, 1.0, 1.0, 0.0])), largest_step(np.array([0.1, 0.2, 0.3, 0.4]))
    (1.0, 0.0)
    """
    if 2 * len(np.unique(values)) > len(values):
        return 0.0
    return float(values.max() - values.min())


def shares_of(num_examples: int, smallest: int, step: float = 0.0) -> tuple[float, ...]:
    """Shares of the examples that subsets rise to, each twice the one before, up to a half.

    The first subset has ``smallest`` examples at least, one in 32 at least, one in 8 at most. With
    a ``step``, that a value which takes few values can jump in units of the harm allowed, a subset
    in which nothing changes has to say that less than that much changes in all.

    >>> shares_of(128, 8), shares_of(63, 8)
    ((0.0625, 0.125, 0.25, 0.5), ())
    """
    found, number = [], max(smallest, num_examples / 32, 4.0 * step)
    if 8 * number > num_examples:  # the smallest would save little, and say little
        return ()
    while 2 * number <= num_examples:
        found.append(number / num_examples)
        number *= 2
    return tuple(found)
