"""What some examples lose at a level, and what that tells of all of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sparsitywatch.pruning.sweeps import Point
from sparsitywatch.records.doubt import ROUNDED, standard_error

Array = NDArray[np.float64]


class Mean(NamedTuple):
    """An estimate of a mean over all examples, in the units of the values."""

    value: float
    sampling_error: float  # standard error about the mean of all examples; 0 where all were seen
    stderr: float  # about the mean of their population, as if they were drawn
    degrees_of_freedom: int
    num_seen: int


class PairedDifferences:
    """What each example loses at each level, as far as it was evaluated.

    The examples of a subset are the first ones of a random order, a simple random sample without
    replacement. In a heavy tail the variance of few examples is too small as a rule: the error that
    one more difference of the size of the largest would make is added. Where all that were seen
    lose the same, an unseen one may lose as much as one that loses anything does at a higher level.

    Args:
        num_examples: of all.
        tolerated: harm that is accepted, in the units of the values.
        sign: -1 where losing is good.
    """

    def __init__(self, num_examples: int, tolerated: float, *, sign: float = 1.0) -> None:
        self._num_examples = num_examples
        self._tolerated = tolerated
        self._sign = sign
        self._lost: dict[float, Array] = {}
        self._sizes: dict[float, float] = {}  # of what those lose that lose anything
        self._same = {0.0}  # levels at which no weight has changed
        self._known: dict[float, Mean] = {}  # what other levels do not change

    @property
    def means(self) -> dict[float, Mean]:
        """What is lost at each level, as it is known by now."""
        return {level: self._known.get(level) or self._mean(level) for level in self._lost}

    def points(self) -> list[Point]:
        """What each level costs in units of what is tolerated, by rising level."""
        return [self._point(level, mean) for level, mean in sorted(self.means.items())]

    def add(self, level: float, lost: Array, *, is_same: bool = False) -> None:
        """More of what was lost at a level: in the next subset, or by all examples.

        ``is_same`` says that this level has changed no weight.
        """
        if len(lost) < self._num_examples and level in self._lost:
            lost = np.concatenate([self._lost[level], lost])
        self._lost[level] = lost
        self._same |= {level} if is_same else set()
        losers = lost[np.isfinite(lost) & (np.abs(lost) > ROUNDED * self._tolerated)]
        self._sizes[level] = math.sqrt(float(losers @ losers) / len(losers)) if len(losers) else 0.0
        self._known.pop(level, None)
        if self._sizes[level]:
            self._known[level] = self._mean(level)

    def _mean(self, level: float) -> Mean:
        lost, num = self._lost[level], len(self._lost[level])
        mean = float(lost.mean())
        if not math.isfinite(mean):
            return Mean(mean, 0.0, math.nan, 0, num)  # the model broke down
        if level in self._same:
            return Mean(mean, 0.0, 0.0, num - 1, num)
        higher = [size for other, size in self._sizes.items() if other > level and size > 0.0]
        most = min(higher, default=self._tolerated)
        error, unseen = standard_error(lost, most, self._tolerated), 1.0 - num / self._num_examples
        tail = float(np.abs(lost - mean).max()) / num if unseen else 0.0
        sampling_error = math.sqrt(unseen * (error**2 + tail**2))
        stderr = math.hypot(error * math.sqrt(1.0 - unseen), sampling_error)
        return Mean(mean, sampling_error, stderr, num - 1, num)

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
    # one by itself has no error
    found, number = [], max(smallest, 2.0, num_examples / 32, 4.0 * step)
    if 8 * number > num_examples:  # the smallest would save little, and say little
        return ()
    while 2 * number <= num_examples:
        found.append(number / num_examples)
        number *= 2
    return tuple(found)
