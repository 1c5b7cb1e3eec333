"""A sweep that follows the crossing from snapshot to snapshot."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from sparsitywatch.errors import expect_number
from sparsitywatch.pruning.partial import Point
from sparsitywatch.pruning.sweep import check_levels

__all__ = ["Tracking"]

#: Standard errors to either end of the 90 % interval that a watch reports.
_CRITICAL = NormalDist().inv_cdf(0.95)
#: Harm beyond this says no more about how far the crossing is.
_MAX_HARM = 20.0
#: After so many levels a search for the crossing only halves.
_MAX_GUESSES = 6
#: Neighbours around an end of the interval are at most so many times its distance apart.
_MAX_GAP = 3.0
#: Levels for the ends of the interval are chosen a little farther out, so as to be beyond them.
_REACH = 1.5
#: Harm less its error that is near enough to the tolerance.
_ALMOST = 0.6
#: Share of the levels below the interval between one check and the next.
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


@dataclass(frozen=True)
class Tracking:
    """Starts from the crossing of the snapshot before: about five levels a snapshot, not a grid.

    All levels are multiples of ``resolution``. The first snapshot, and one after a snapshot that
    crossed nothing, measures ``levels`` and closes in on their first crossing. A later one
    first measures where the interval began at the snapshot before. The harm there and the
    slope of harm at the snapshot before tell where the crossing is now, so the second level is
    the end of the interval and the third the crossing. Where the crossing is not between
    them the search gallops outwards, then halves. It stops when the crossing lies between
    neighbouring levels, or no farther than ``resolution`` from a level whose harm the
    standard error does not tell from the tolerance. So where harm only rises and has no
    error the estimate is that of the full grid; with errors it is as a rule within
    ``resolution`` of it, and beyond where harm stays near the tolerance over many levels
    (benchmarks/sweep.py shows how often).

    A dip that opens below the interval is not on the way. So every snapshot also checks one
    level down there, another one each time: the lowest level of the curve before says which
    one is next, so a resumed run decides alike. While the interval stays, a dip over the
    share w of the levels below it is met within 3 / w snapshots, all levels in as many snapshots as
    there are. Until then the crossing above it is reported.

    Every snapshot also evaluates dense, level 0 and level 1, as with any sweep. Level 0 could
    be left out at most snapshots, but what it catches, such as a value function that turned
    random, can begin at any snapshot and would pass for a move of the crossing.

    What lies far from the crossing is not seen: the knee is rough, the last crossing and
    the pictures know few points. Where removing everything is within the tolerance there
    is no estimate to make, and nothing in between is measured.

    Args:
        resolution: distance of neighbouring levels.
        levels: those of the first snapshot, fractions in [0, 1), each taken to the nearest
            multiple.
        checks_below: False saves the evaluation that each snapshot spends on the check, and
            never sees a crossing that opens below the interval.

    Raises:
        ConfigurationError: a level lies outside [0, 1), there is none, ``resolution`` is
            not in (0, 0.5].
    """

    resolution: float = 0.01
    levels: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
    checks_below: bool = True

    def __post_init__(self) -> None:
        check_levels(self.levels)
        expect_number("resolution", self.resolution, lambda r: 0.0 < r <= 0.5, "in (0, 0.5]")

    def choose(self, measure: Callable[[float], Point], previous: Sequence[Point]) -> None:
        """Measure the crossing and both ends of its interval."""
        search = _Search(measure, self.resolution)
        if search[search.last].is_within:
            return
        points = {point.level / self.resolution: point for point in previous}
        guess = _Guess.of(points)
        if guess is None:
            for level in self.levels:
                search.measure(round(level / self.resolution))
            guess = _Guess.of(search) or _Guess(1.0, 1.0, 0.5, 0.5, search)
        elif self.checks_below:
            lowest = min(i for i in points if i > 0.0)
            index = _next_check(round(lowest), round(guess.crossing - 2 * guess.below))
            if index is not None:
                search.measure(index)
        # what has been measured up to here does not follow from the guess
        search.searched.clear()
        while (index := _next(search, guess)) is not None:
            search.measure(index)


def _next_check(before: int, end: int) -> int | None:
    """The index in [1, end) that follows the one checked before; None if there is none.

    Steps of about the golden section, without a common divisor with the number of
    indices, leave no large gap for long and miss none.
    """
    number = end - 1
    if number < 1:
        return None
    stride = max(round(_GOLDEN * number), 1)
    while math.gcd(stride, number) > 1:
        stride += 1
    return 1 + (before - 1 + stride) % number


class _Search(dict[float, Point]):
    """What this snapshot has measured, by index: level over resolution; the last one is level 1.

    ``searched`` are the indices by the order of their measurement.
    """

    def __init__(self, measure: Callable[[float], Point], resolution: float) -> None:
        self._measure, self._resolution = measure, resolution
        self.last = math.ceil(round(1.0 / resolution, 6))
        self.searched: list[int] = []
        self.measure(0)
        self.measure(self.last)

    def measure(self, index: int) -> None:
        """Measure one level, if it has not been."""
        index = min(max(index, 0), self.last)
        self.searched.append(index)
        level = 1.0 if index == self.last else round(index * self._resolution, 6)
        self[index] = self._measure(level)


@dataclass(frozen=True)
class _Guess:
    """What a curve lets one expect of the next, in indices.

    Where it crosses, the slope of harm there, how far the ends of the interval are from
    the crossing, and the curve itself.
    """

    crossing: float
    slope: float
    below: float
    above: float
    points: Mapping[float, Point]

    @classmethod
    def of(cls, points: Mapping[float, Point]) -> _Guess | None:
        """From measured points by index; None if nothing is crossed."""
        bracket = _bracket(points)
        if bracket is None:
            return None
        crossing = _straight(points, *bracket)
        slopes = [
            _distance_in_harm(points[index].harm) / (crossing - index)
            for index in points
            if abs(crossing - index) >= 1.0 and 0.2 < points[index].harm < 4.0
        ]
        rising = [slope for slope in slopes if slope > 0.0]  # not those behind a dip
        slope = sum(rising) / len(rising) if rising else 1.0 / max(crossing, 1.0)
        low, high = (_crossing(points, sign * _CRITICAL) for sign in (1, -1))
        below, above = (
            min(max(_REACH * abs(crossing - end), 0.5), max(0.4 * crossing, 0.5))
            for end in (low or 0.0, high or crossing)
        )
        return cls(crossing, slope, below, above, points)

    def from_point(self, index: float, harm: float) -> float:
        """Where the crossing is, if this index has this harm.

        As far as the slope at the crossing says, or as it was on the curve, if that is
        nearer: beside a cliff.
        """
        by_slope = _distance_in_harm(harm) / self.slope
        by_curve = self.crossing - self._index_of(harm)
        return index + min(by_slope, by_curve, key=abs)

    def _index_of(self, harm: float) -> float:
        """Where the curve had this harm, going outwards from the crossing."""
        side = 1 if harm > 1.0 else -1
        outwards = sorted(
            (i for i in self.points if side * (i - self.crossing) > 0.0), key=lambda i: side * i
        )
        before, harm_before = self.crossing, 1.0
        for index in outwards:
            found = self.points[index].harm
            if side * (found - harm) >= 0.0:
                if math.isinf(found) or found == harm:
                    return index
                share = (harm - harm_before) / (found - harm_before)
                return before + share * (index - before)
            before, harm_before = index, found
        return before


def _distance_in_harm(harm: float) -> float:
    """Harm left until the tolerance; beyond it in logarithms, as harm grows ever faster."""
    return 1.0 - harm if harm <= 1.0 else -math.log(min(harm, _MAX_HARM))


def _bracket(points: Mapping[float, Point], critical: float = 0.0) -> tuple[float, float] | None:
    """Neighbouring points around the first crossing of harm plus ``critical`` errors."""
    left = 0.0
    for index in sorted(points):
        if points[index].harm + critical * points[index].stderr > 1.0:
            return (left, index) if index else None
        left = index
    return None


def _crossing(points: Mapping[float, Point], critical: float = 0.0) -> float | None:
    """The first crossing of harm plus ``critical`` errors, read as straight."""
    bracket = _bracket(points, critical)
    return None if bracket is None else _straight(points, *bracket, critical)


def _straight(
    points: Mapping[float, Point], left: float, right: float, critical: float = 0.0
) -> float:
    inside, outside = (points[i].harm + critical * points[i].stderr for i in (left, right))
    return left + (right - left) * (1.0 - inside) / (outside - inside)


def _next(search: _Search, guess: _Guess) -> int | None:
    """The index to measure next; None when enough is known."""
    bracket = _bracket(search)
    if bracket is None:
        return None
    left, right = (round(index) for index in bracket)
    if right - left > 1 and not _is_settled(search, guess, left, right):
        return min(max(round(_between(search, guess, left, right)), left + 1), right - 1)
    crossing = _straight(search, left, right)
    low = _missing_end(search, guess, crossing, -1)
    return _missing_end(search, guess, crossing, 1) if low is None else low


def _is_settled(search: _Search, guess: _Guess, left: int, right: int) -> bool:
    """Whether the crossing is beside a level that noise does not tell from it."""
    if right - left > _MAX_GAP * (guess.below + guess.above) / 2:
        return False
    crossing = _straight(search, left, right)
    near = left if crossing - left < right - crossing else right
    point = search[near]
    return abs(crossing - near) <= 1.0 and abs(1.0 - point.harm) < _CRITICAL * point.stderr


def _between(search: _Search, guess: _Guess, left: int, right: int) -> float:
    """Where to look for the crossing between two measured indices that are not neighbours."""
    inside = search.searched
    if not inside and right == search.last:
        return guess.crossing - guess.below
    middle = (left + right) / 2
    if len(inside) >= _MAX_GUESSES:
        return middle
    if right == search.last:  # it has moved up
        step = guess.above * 2 ** (sum(index <= left for index in inside) - 1)
        wanted = guess.from_point(left, search[left].harm) + step
    elif left == 0:  # it has moved down
        step = guess.below * 2 ** max(sum(index >= right for index in inside) - 1, 0)
        wanted = guess.from_point(right, search[right].harm) - step
    else:
        good, bad = (_distance_in_harm(search[index].harm) for index in (left, right))
        return left + (right - left) * good / (good - bad)
    return wanted if left < wanted < right else middle


def _missing_end(search: _Search, guess: _Guess, crossing: float, side: int) -> int | None:
    """The index to measure for the low (-1) or high (+1) end of the interval; None if it is known.

    The end is read off between two neighbours, which must not be too far from each other.
    Above, nearly at the end is enough: the estimate goes on from there along the slope.
    """
    critical = -side * _CRITICAL
    bracket = _bracket(search, critical)
    if bracket is None:
        return None
    left, right = (round(index) for index in bracket)
    margin = guess.above if side > 0 else guess.below
    is_near = side > 0 and search[left].harm + critical * search[left].stderr >= _ALMOST
    if is_near or right - left <= max(_MAX_GAP * margin, 1.0):
        return None
    wanted = round(crossing + side * margin)
    if not left < wanted < right:
        wanted = round((left if side > 0 else right) + side * 2 * margin)
    return min(max(wanted, left + 1), right - 1)
