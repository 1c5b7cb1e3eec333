"""What some examples lose at a level, and what that tells of all of them."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsitywatch.pruning.sweeps import Point
from sparsitywatch.records.doubt import ROUNDED, standard_error
from sparsitywatch.records.student import t_quantile

Array = NDArray[np.float64]

#: From so many examples on two levels are used at once to read one.
_EXAMPLES_FOR_TWO = 16
#: Covariates that say the same are one.
_SINGULAR = 1e8
#: Of several readings the one whose bound of this probability is the nearest is taken.
_BOUND = 0.95


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
    one more residual of the size of the largest would make is added. Where all that were seen lose
    the same, an unseen one may lose as much as one that loses anything does at a higher level.

    Args:
        num_examples: of all.
        order: places of the drawn examples, int64 [n]; those of the first subset come first.
        tolerated: harm that is accepted, in the units of the values.
        sign: -1 where losing is good.
    """

    def __init__(
        self,
        num_examples: int,
        order: NDArray[np.int64],
        tolerated: float,
        *,
        sign: float = 1.0,
    ) -> None:
        self.means: dict[float, Mean] = {}
        self._num_examples = num_examples
        self._order = order
        self._tolerated = tolerated
        self._sign = sign
        self._sizes: dict[float, float] = {}  # of what those lose that lose anything
        self._same = {0.0}  # levels at which no weight has changed
        self._lost: dict[float, Array] = {}  # in the drawn order; of all examples in their own
        self._basis: dict[float, Any] = {}  # what the mean of a level depends on
        self._points: dict[float, Point] = {}

    def points(self) -> list[Point]:
        """What each level costs in units of what is tolerated, by rising level."""
        return [self._points[level] for level in sorted(self._points)]

    def add(self, level: float, lost: Array, *, is_same: bool = False) -> None:
        """More of what was lost at a level: in the next subset, or by all examples in their order.

        Levels that fewer examples have seen are read anew where this one helps to, and those at
        which nobody loses anything. ``is_same`` says that this level has changed no weight.
        """
        if len(lost) < self._num_examples and level in self._lost:
            lost = np.concatenate([self._lost[level], lost])
            if len(lost) == self._num_examples:
                drawn = lost
                lost = np.empty_like(drawn)
                lost[self._order] = drawn
        self._lost[level] = lost
        self._same |= {level} if is_same else set()
        losers = lost[np.isfinite(lost) & (np.abs(lost) > ROUNDED * self._tolerated)]
        self._sizes[level] = math.sqrt(float(losers @ losers) / len(losers)) if len(losers) else 0.0
        self._update(len(lost), [level])
        fewer: dict[int, list[float]] = {}
        for other, seen in self._lost.items():
            if len(seen) < len(lost) or (other < level and not self._sizes[other]):
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
            most = 0.0 if self._sizes[level] else self._most(level)
            basis = number, most, [self.means[one] for pair in helpers for one in pair]
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

    def _most(self, level: float) -> float:
        """What one may lose at a level at which nobody seen loses anything."""
        higher = [size for other, size in self._sizes.items() if other > level and size > 0.0]
        return min(higher, default=self._tolerated)

    def _read(self, level: float, helpers: Sequence[_Helpers]) -> Mean:
        lost = self._lost[level]
        num = len(lost)
        if not np.isfinite(lost).all():
            return Mean(float(lost.mean()), 0.0, math.nan, 0, num)  # the model broke down
        most = self._most(level)
        if level in self._same:
            return Mean(float(lost.mean()), 0.0, 0.0, num - 1, num)
        if num == self._num_examples:
            error = standard_error(lost, most, self._tolerated)
            return Mean(float(lost.mean()), 0.0, error, num - 1, num)
        found = [self._corrected(lost, most, others) for others in [(), *helpers]]
        # few degrees of freedom make an error uncertain
        return min(
            (mean for mean in found if mean is not None),
            key=lambda mean: mean.sampling_error * t_quantile(_BOUND, mean.degrees_of_freedom),
        )

    def _corrected(self, lost: Array, most: float, others: _Helpers) -> Mean | None:
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
        # as far as the degrees of freedom have it
        error = standard_error(residual, most, self._tolerated) * math.sqrt((num - 1) / freedom)
        helping = [*zip(slopes, (self.means[other] for other in others), strict=True)]
        carried = sum(abs(slope) * mean.sampling_error for slope, mean in helping)
        spread = sum(abs(slope) * mean.stderr for slope, mean in helping)
        sampling_error = math.sqrt(
            error**2 * (unseen + num * leverage)
            + unseen * (float(np.abs(residual).max()) / num) ** 2
            + carried**2
        )
        of_all = max(spread**2 - carried**2, 0.0) + error**2 * num / self._num_examples
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
