"""Which levels to evaluate next, and on how many examples, given what those before have cost."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from sparsitywatch.errors import ConfigurationError, expect_number, is_number, listed
from sparsitywatch.records import SparsityCurve
from sparsitywatch.records.doubt import best_rising

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

    def candidates(self) -> list[float]:
        """Levels that it may ask for; what they remove is found in one go."""
        return [float(level) for level in self.levels]

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
        beyond = first_beyond(points)
        if not 0 < beyond < len(points):
            return None  # where nothing is crossed there is nothing to close in on
        below, above = points[beyond - 1].level, points[beyond].level
        middle = round((below + above) / 2, 6)
        is_wide = above - below > self.resolution and below < middle < above
        return (middle, shares[-1]) if is_wide else None


def harm_with(point: Point, errors: float) -> float:
    """Harm and so many errors, those that are left once all examples were seen."""
    if not math.isfinite(point.harm):
        return math.inf
    left = max(point.stderr**2 - point.sampling_error**2, 0.0)
    return point.harm + errors * math.sqrt(left)


def first_beyond(points: Sequence[Point], errors: float = 0.0) -> int:
    """The first point beyond the tolerance by the best curve that only rises; or their number.

    The curve is that of harm and so many errors.
    """
    harm = np.array([harm_with(point, errors) for point in points])
    stderr = np.array([point.stderr for point in points])
    beyond = np.flatnonzero(best_rising(harm, stderr, 1.0) > 1.0)
    return int(beyond[0]) if len(beyond) else len(points)


def missing(levels: Sequence[float], points: Sequence[Point], share: float) -> Step | None:
    """The first of some levels that was not evaluated yet."""
    known = {point.level for point in points}
    missing = (float(level) for level in levels if float(level) not in known)
    return next(((level, share) for level in missing), None)


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
