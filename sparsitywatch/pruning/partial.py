"""What some of the examples tell about all of them: a mean, and how far it may be off."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Losses", "Mean", "largest_step", "shares_of", "t_quantile"]

Array = NDArray[np.float64]

#: From so many examples on two levels are used at once to read one.
_EXAMPLES_FOR_TWO = 16
#: How much a doubt of few degrees of freedom counts for larger, where it is compared.
_UNSURE = 4.0
#: Covariates that say the same are one.
_SINGULAR = 1e8


class Mean(NamedTuple):
    """An estimate of the mean over all examples, in the units of the values.

    Args:
        value: the estimate.
        doubt: its standard error about the mean of all examples; 0 where all were seen.
        stderr: its standard error about the mean of their population, as if they were drawn.
        freedom: degrees of freedom of the errors.
    """

    value: float
    doubt: float
    stderr: float
    freedom: int


class Losses:
    """What each example loses at each level, as far as it was evaluated.

    The examples of a part are the first ones of a random order, a simple random sample without
    replacement. Their mean is corrected by a linear regression on one or two levels that more
    examples have seen, since what an example loses at one level tells nearly what it loses at
    the next: the regression estimator of double sampling (Cochran 1977, Sampling Techniques, 3rd
    ed., sections 7.1 and 12.6). The variance has the finite population correction and that of the
    regression. In a heavy tail the variance of few examples is too small as a rule: the error that
    one more residual of the size of the largest would make is added.

    Args:
        num_examples: of all.
        order: places of the drawn examples, int64 [n]; those of the first part come first.
        step: the most that a value which takes few values can jump; 0 for a continuous one. As much
            doubt is added as two unseen examples that jump would make, so that a part in which
            nothing changes does not prove that nothing does.
    """

    def __init__(self, num_examples: int, order: NDArray[np.int64], step: float = 0.0) -> None:
        self.num_examples = num_examples
        self._order, self._step = order, step
        self._lost: dict[float, Array] = {}  # in the drawn order; of all examples in their own
        self._means: dict[float, Mean] = {}

    def num_seen(self, level: float) -> int:
        """How many examples were evaluated at a level."""
        return len(self._lost.get(level, ()))

    def add(self, level: float, lost: Array) -> None:
        """More of what was lost at a level: in the next part, or by all examples in their order."""
        if len(lost) < self.num_examples and level in self._lost:
            lost = np.concatenate([self._lost[level], lost])
            if len(lost) == self.num_examples:
                lost, drawn = np.empty_like(lost), lost
                lost[self._order] = drawn
        self._lost[level] = lost
        self._means.clear()

    def mean(self, level: float) -> Mean:
        """What is known about a level now; more levels on more examples make it better."""
        if level not in self._means:
            self._means[level] = self._read(level)
        return self._means[level]

    def _read(self, level: float) -> Mean:
        lost = self._lost[level]
        if not np.isfinite(lost).all():
            return Mean(float(lost.mean()), 0.0, math.nan, 0)  # the model broke down
        if len(lost) == self.num_examples:
            error = float(lost.std(ddof=1) / math.sqrt(len(lost)))
            return Mean(float(lost.mean()), 0.0, error, len(lost) - 1)
        helpers = (self._corrected(level, others) for others in self._helpers(level))
        plain = self._corrected(level, ())
        found = [plain, *(mean for mean in helpers if mean is not None)]
        # few degrees of freedom make an error uncertain
        return min(
            (mean for mean in found if mean is not None),
            key=lambda mean: mean.doubt * math.sqrt(1.0 + _UNSURE / mean.freedom),
        )

    def _helpers(self, level: float) -> Iterable[tuple[float, ...]]:
        """Levels by which one may be corrected, alone and in pairs."""
        if level == 0.0:
            return
        num_seen = self.num_seen(level)
        wider = [
            other
            for other in sorted(self._lost)
            if other > 0.0
            and self.num_seen(other) > num_seen
            and math.isfinite(self.mean(other).value)
        ]
        if not wider:
            return
        yield (min(wider, key=lambda other: (abs(other - level), other)),)
        below = max((other for other in wider if other < level), default=None)
        above = min((other for other in wider if other > level), default=None)
        if num_seen >= _EXAMPLES_FOR_TWO and below is not None and above is not None:
            yield below, above

    def _corrected(self, level: float, others: Sequence[float]) -> Mean | None:
        """The mean by regression on others; None where they say nothing or the same."""
        lost = self._lost[level]
        num, freedom = len(lost), len(lost) - 1 - len(others)
        unseen = 1.0 - num / self.num_examples
        slopes, leverage = np.zeros(len(others)), 0.0
        residual, shift = lost - lost.mean(), np.zeros(len(others))
        if others:
            known = np.stack([self._in_order(other)[:num] for other in others], axis=1)
            centred = known - known.mean(axis=0)
            products = centred.T @ centred
            if not np.linalg.cond(products) < _SINGULAR:
                return None
            slopes = np.linalg.solve(products, centred.T @ residual)
            residual = residual - centred @ slopes
            shift = np.array([self.mean(other).value for other in others]) - known.mean(axis=0)
            leverage = float(shift @ np.linalg.solve(products, shift))
        variance = float(residual @ residual) / freedom
        carried = sum(abs(b) * self.mean(o).doubt for b, o in zip(slopes, others, strict=True))
        spread = sum(abs(b) * self.mean(o).stderr for b, o in zip(slopes, others, strict=True))
        doubt = math.sqrt(
            variance * (unseen / num + leverage)
            + unseen * (float(np.abs(residual).max()) / num) ** 2
            + unseen * (2.0 * self._step / num) ** 2
            + carried**2
        )
        of_all = max(spread**2 - carried**2, 0.0) + variance / self.num_examples
        value = float(lost.mean() + slopes @ shift)
        return Mean(value, doubt, math.sqrt(of_all + doubt**2), freedom)

    def _in_order(self, level: float) -> Array:
        lost = self._lost[level]
        return lost[self._order] if len(lost) == self.num_examples else lost


def largest_step(values: Array) -> float:
    """The range of values of which many are the same, as of an accuracy; 0 of continuous ones.

    >>> largest_step(np.array([0.0, 1.0, 1.0, 0.0])), largest_step(np.array([0.1, 0.2, 0.3, 0.4]))
    (1.0, 0.0)
    """
    if 2 * len(np.unique(values)) > len(values):
        return 0.0
    return float(values.max() - values.min())


def shares_of(num_examples: int, smallest: int, step: float = 0.0) -> tuple[float, ...]:
    """Shares of the examples that parts rise to, each twice the one before, up to a half.

    Args:
        num_examples: of all.
        smallest: how many the first part has at least; it has one in 32 of them, too, and at
            most one in 8.
        step: that a value which takes few values can jump, in units of the harm allowed. A part
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


@functools.lru_cache(maxsize=1024)
def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t, ``probability`` in (0.5, 1).

    The distribution function is a finite sum (Abramowitz and Stegun 26.7.3 and 26.7.4).

    >>> round(t_quantile(0.95, 5), 3), round(t_quantile(0.975, 1000), 3)
    (2.015, 1.962)
    """
    if freedom > 200:
        z = NormalDist().inv_cdf(probability)
        second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
        return z + (z**3 + z) / (4 * freedom) + second / freedom**2
    low, high = 0.0, 1e6
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if _t_probability(middle, freedom) < probability else (low, middle)
        )
    return high


def _t_probability(t: float, freedom: int) -> float:
    angle = math.atan(t / math.sqrt(freedom))
    cosine, is_odd = math.cos(angle) ** 2, freedom % 2 == 1
    term, total = (math.cos(angle) if is_odd else 1.0), 0.0
    for k in range(1, (freedom - 1) // 2 + 1 if is_odd else freedom // 2 + 1):
        total += term
        term *= cosine * (2 * k / (2 * k + 1) if is_odd else (2 * k - 1) / (2 * k))
    both = 2 / math.pi * (angle + math.sin(angle) * total) if is_odd else math.sin(angle) * total
    return 0.5 + both / 2
