"""What some of the examples tell about all of them: a mean, and how far it may be off."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Losses", "Mean", "Point", "largest_step", "shares_of"]

Array = NDArray[np.float64]

#: From so many examples on two levels are used at once to read one.
_EXAMPLES_FOR_TWO = 16
#: How much a doubt of few degrees of freedom counts for larger, where it is compared.
_UNSURE = 4.0
#: Covariates that say the same are one.
_SINGULAR = 1e8


class Point(NamedTuple):
    """What one level costs, in units of the harm that is allowed: beyond 1 is too much.

    ``harm`` is inf where the value is not finite; ``stderr``, its standard error, is 0 there. A
    level that was evaluated on a ``share`` of the examples has an estimate of the harm on all of
    them, and ``doubt`` is its standard error about that, with ``freedom`` degrees of freedom.
    """

    level: float
    harm: float
    stderr: float = 0.0
    doubt: float = 0.0
    freedom: int = 0
    share: float = 1.0

    @property
    def is_within(self) -> bool:
        """Whether the tolerance is kept."""
        return self.harm <= 1.0

    @classmethod
    def of(
        cls,
        level: float,
        harm: float,
        stderr: float,
        allowed: float,
        *,
        doubt: float = 0.0,
        freedom: int = 0,
        share: float = 1.0,
    ) -> Point:
        """From a harm and its errors in the units of the value.

        >>> Point.of(0.5, 0.06, 0.01, allowed=0.02)[:3]
        (0.5, 3.0, 0.5)
        """
        if not math.isfinite(harm):
            return cls(level, math.inf)
        if allowed == 0.0:  # a relative tolerance of a dense value of 0
            return cls(level, math.inf if harm > 0.0 else 0.0)
        stderr = 0.0 if math.isnan(stderr) else stderr / allowed
        return cls(level, harm / allowed, stderr, doubt / allowed, freedom, share)


class Mean(NamedTuple):
    """An estimate of the mean over all examples, in the units of the values.

    Args:
        value: the estimate.
        doubt: its standard error about the mean of all examples; 0 where all were seen.
        stderr: its standard error about the mean of their population, as if they were drawn.
        freedom: degrees of freedom of the errors.
        num_seen: examples that were evaluated.
    """

    value: float
    doubt: float
    stderr: float
    freedom: int
    num_seen: int


#: Levels by which one is corrected, and all that the mean of a level depends on.
_Helpers = tuple[float, ...]
_Basis = tuple[int, tuple[tuple[_Helpers, tuple[Mean, ...]], ...]]


class Losses:
    """What each example loses at each level, as far as it was evaluated.

    The examples of a part are the first ones of a random order, a simple random sample without
    replacement. Their mean is corrected by a linear regression on one or two levels that more
    examples have seen, since what an example loses at one level tells nearly what it loses at
    the next: the regression estimator of double sampling (Cochran 1977, Sampling Techniques, 3rd
    ed., sections 7.1 and 12.6). The variance has the finite population correction and that of the
    regression. In a heavy tail the variance of few examples is too small as a rule: the error that
    one more residual of the size of the largest would make is added, and the variance is larger
    by as much as the nearest level that saw more varies more over all that it saw than over this
    part.

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
        self._known: dict[float, tuple[_Basis, Mean]] = {}

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

    def points(self, allowed: float, sign: float = 1.0) -> list[Point]:
        """What each level costs in units of what is allowed, by rising level.

        Args:
            allowed: harm that is accepted, in the units of the values.
            sign: -1 where losing is good.
        """
        return [
            Point.of(
                level,
                sign * mean.value,
                mean.stderr,
                allowed,
                doubt=mean.doubt,
                freedom=mean.freedom,
                share=mean.num_seen / self.num_examples,
            )
            for level, mean in sorted(self.means().items())
        ]

    def means(self) -> dict[float, Mean]:
        """What is known about every level now.

        Those that most examples have seen come first, since they correct the others. What no new
        example bears on is as it was before.
        """
        found: dict[float, Mean] = {}
        by_number = sorted(self._lost, key=self.num_seen, reverse=True)
        for number, levels in itertools.groupby(by_number, self.num_seen):
            helping = [o for o in sorted(found) if o > 0.0 and math.isfinite(found[o].value)]
            read = {}
            for level in levels:
                helpers = _helpers(level, number, helping)
                basis = number, tuple((h, tuple(map(found.__getitem__, h))) for h in helpers)
                if level not in self._known or self._known[level][0] != basis:
                    self._known[level] = basis, self._read(level, helpers, found)
                read[level] = self._known[level][1]
            found |= read
        return found

    def _read(self, level: float, helpers: Sequence[_Helpers], means: Mapping[float, Mean]) -> Mean:
        lost = self._lost[level]
        num = len(lost)
        if not np.isfinite(lost).all():
            return Mean(float(lost.mean()), 0.0, math.nan, 0, num)  # the model broke down
        if num == self.num_examples:
            error = float(lost.std(ddof=1) / math.sqrt(num))
            return Mean(float(lost.mean()), 0.0, error, num - 1, num)
        wide = self._how_much_wider(helpers[0][0], num) if helpers else 1.0
        found = [self._corrected(lost, others, means, wide) for others in [(), *helpers]]
        # few degrees of freedom make an error uncertain
        return min(
            (mean for mean in found if mean is not None),
            key=lambda mean: mean.doubt * math.sqrt(1.0 + _UNSURE / mean.freedom),
        )

    def _how_much_wider(self, other: float, num: int) -> float:
        """The variance of what a level has seen over that of the first ``num`` examples, or 1.

        Where few examples lose most, a part without them looks as if nothing varied.
        """
        part, seen = self._drawn(other, num).var(), self._lost[other].var()
        return max(1.0, float(seen / part)) if part > 0.0 else 1.0

    def _corrected(
        self, lost: Array, others: _Helpers, means: Mapping[float, Mean], wide: float
    ) -> Mean | None:
        """The mean by regression on others; None where they say nothing or the same."""
        num, freedom = len(lost), len(lost) - 1 - len(others)
        unseen = 1.0 - num / self.num_examples
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
            shift = np.array([means[other].value for other in others]) - known.mean(axis=0)
            leverage = float(shift @ np.linalg.solve(products, shift))
        variance = wide * float(residual @ residual) / freedom
        carried = sum(abs(b) * means[o].doubt for b, o in zip(slopes, others, strict=True))
        spread = sum(abs(b) * means[o].stderr for b, o in zip(slopes, others, strict=True))
        doubt = math.sqrt(
            variance * (unseen / num + leverage)
            + unseen * (float(np.abs(residual).max()) / num) ** 2
            + unseen * (2.0 * self._step / num) ** 2
            + carried**2
        )
        of_all = max(spread**2 - carried**2, 0.0) + variance / self.num_examples
        value = float(lost.mean() + slopes @ shift)
        return Mean(value, doubt, math.sqrt(of_all + doubt**2), freedom, num)

    def _drawn(self, level: float, num: int) -> Array:
        """What the first ``num`` drawn examples lost at a level that has seen them."""
        lost = self._lost[level]
        return lost[self._order[:num]] if len(lost) == self.num_examples else lost[:num]


def _helpers(level: float, num_seen: int, wider: Sequence[float]) -> tuple[_Helpers, ...]:
    """Levels by which one may be corrected, alone and in pairs, of rising ones that saw more."""
    if level == 0.0 or not wider:
        return ()
    nearest = min(wider, key=lambda other: (abs(other - level), other))
    below = max((other for other in wider if other < level), default=None)
    above = min((other for other in wider if other > level), default=None)
    if num_seen < _EXAMPLES_FOR_TWO or below is None or above is None:
        return ((nearest,),)
    return (nearest,), (below, above)


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
