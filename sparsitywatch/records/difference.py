"""A paired difference and how far it may be off: what every comparison is made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from sparsitywatch.errors import expect, expect_number
from sparsitywatch.records.curve import ROUNDED, standard_error, t_quantile, t_tail


class Spread(NamedTuple):
    """By how much a mean is off because few were drawn."""

    stderr: float
    num: int | None  # how many were drawn; None if that is not known
    unit: str  # what: "seed", "example", or what else counts as independent


@dataclass(frozen=True)
class Difference:
    """The first of two numbers minus the second, on the same seeds and examples.

    ``Difference.paired`` makes one of values, ``Difference.of`` one of a mean and its error.

    Args:
        mean: in the unit of the numbers.
        spreads: what makes it uncertain, each independent of the others.
    """

    mean: float
    spreads: tuple[Spread, ...]

    @classmethod
    def of(
        cls, mean: float, stderr: float, num: int | None = None, unit: str = "example"
    ) -> Difference:
        """A difference whose standard error is known.

        Args:
            mean: in the unit of the numbers.
            stderr: of the mean, not negative.
            num: from how many the error comes, at least 2; None if that is not known.
            unit: from how many of what: "seed", "example", "batch".

        Raises:
            ConfigurationError: an argument is out of range.

        >>> print(Difference.of(2.0, 0.5, num=3, unit="seed"))
        +2.0 [+0.5, +3.5]
        """
        expect_number("stderr", stderr, lambda x: not x < 0.0, "a non-negative standard error")
        expect(num is None or num >= 2, "num", "at least 2, or None", num)
        return cls(float(mean), (Spread(float(stderr), num, unit),))

    @classmethod
    def paired(
        cls,
        first: ArrayLike,
        second: ArrayLike,
        groups: Sequence[Any] | None = None,
        *,
        most: float | None = None,
    ) -> Difference:
        """The mean of ``first`` minus ``second``, paired by seed and by example.

        The variance is that of the means of the seeds, plus that of the means of the examples. The
        first has a share of the second already, so the interval errs to the wide side. Seeds or
        examples that agree to the last digit are no certainty: see ``most``.

        Args:
            first, second: what each seed gave for each example, [S, N]; [N] of one seed, [S, 1]
                where only the mean of each seed is known.
            groups: which file, user or the like each example is from, [N]; those of one count
                together.
            most: by how much another one may differ where all that were seen agree; by default the
                largest change, or the largest value where nothing changes.

        Raises:
            ConfigurationError: there is not a group for each example.
        """
        one, two = np.broadcast_arrays(*(np.atleast_2d(np.asarray(x, float))
                                         for x in (first, second)))  # fmt: skip
        drops = one - two
        num = drops.shape[1]
        numbers = np.arange(num)
        if groups is not None:
            expect(len(groups) == num, "groups", f"one for each of {num} examples", groups)
            numbers = np.unique(np.asarray(groups), return_inverse=True)[1].reshape(-1)
        mean, spreads = float(drops.mean()), []
        off = np.bincount(numbers, drops.mean(0) - mean) * (numbers.max() + 1) / num
        kind = "example" if groups is None else "group"
        for of_mean, unit in ((drops.mean(1), "seed"), (mean + off, kind)):
            if len(of_mean) > 1:
                largest = np.abs(of_mean).max() or np.abs([one, two]).max()
                size = float(largest if most is None else most)
                error = standard_error(of_mean, size, size)
                apart = np.ptp(drops, 0) > ROUNDED * np.abs([one, two]).max()
                if unit == "seed" and num > 1 and apart.any() and np.ptp(of_mean) <= ROUNDED * size:
                    # only the means agree: as far apart as seeds whose examples are their own
                    own = drops.var(0, ddof=1).sum() / len(of_mean)
                    error = math.sqrt(float(own)) / num
                spreads.append(Spread(error, len(of_mean), unit))
        return cls(mean, tuple(spreads))

    @property
    def stderr(self) -> float:
        """Standard error of the mean, of all sources together; NaN where there is none."""
        return math.hypot(*(one.stderr for one in self.spreads)) if self.spreads else math.nan

    @property
    def degrees_of_freedom(self) -> int | None:
        """Those of the standard error (Satterthwaite 1946), rounded down; None: it is exact."""
        known = [(x.stderr / self.stderr, x.num) for x in self.spreads if x.num and x.stderr]
        total = sum(share**4 / (num - 1) for share, num in known)
        return max(1, math.floor(1.0 / total + 1e-9)) if total > 0.0 else None

    @property
    def p_value(self) -> float:
        """How often chance makes a difference as large, two-sided; NaN without an error."""
        size = abs(self.mean) / self.stderr if self.stderr else math.nan
        return 2.0 * t_tail(size, self.degrees_of_freedom)

    def interval(self, confidence: float = 0.9) -> tuple[float, float]:
        """Both ends of the interval, by Student's t."""
        width = t_quantile(0.5 + confidence / 2, self.degrees_of_freedom) * self.stderr
        return self.mean - width, self.mean + width

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self.mean:+.1f} [{low:+.1f}, {high:+.1f}]"
