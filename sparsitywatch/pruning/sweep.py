"""Which levels to evaluate, given what those before have cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sparsitywatch.errors import ConfigurationError, expect_number, is_number, listed
from sparsitywatch.pruning.partial import Point
from sparsitywatch.records import SparsityCurve

__all__ = [
    "Allowed",
    "Bisection",
    "Grid",
    "Measure",
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
