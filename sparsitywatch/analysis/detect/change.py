"""A change that may be an event: its noise, its onset, and what the learning rate leaves of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BORNE_OUT",
    "FEW",
    "LATEST",
    "MAD_TO_SD",
    "SUSPICION",
    "TREND",
    "Candidate",
    "Limits",
    "correlation_of",
    "is_back_by_half",
    "is_left_by_rate",
    "median_of",
    "median_of_three",
    "noise_sd",
    "onset_of",
    "peak_of",
    "share_left_by_rate",
]

Array = NDArray[np.float64]

#: So few snapshots have a level and a noise: that of a baseline, and of what has settled.
FEW = 5
#: So few snapshots have a trend, or a bend, that could be told from their noise.
TREND = 8
#: The latest part of what has been seen that shows where it is now.
LATEST = 1 / 4
#: The snapshot before the last bears out this part of a change: none is seen in one snapshot.
BORNE_OUT = 0.5
#: Definition: the part of every requirement of an event that makes a suspicion.
SUSPICION = 0.5


@dataclass(frozen=True)
class Limits:
    """What is required of a change.

    Args:
        min_effect: its smallest size, in units of the series.
        ratio: of a take-off to its running floor.
        jump_score, growth_score: smallest normal scores.
        caused_score: that of growth that weight decay can account for.
    """

    min_effect: float
    ratio: float
    jump_score: float
    growth_score: float
    caused_score: float

    def part(self, share: float) -> Limits:
        """The same with ``share`` of every requirement."""
        return Limits(
            share * self.min_effect,
            1.0 + share * (self.ratio - 1.0),
            share * self.jump_score,
            share * self.growth_score,
            share * self.caused_score,
        )


@dataclass(frozen=True)
class Candidate:
    """A change that was not foreseen.

    Args:
        direction: "up" or "down".
        split: snapshots since it began.
        start: index of the first snapshot of its baseline.
        size: of the change; in the logarithm for growth.
        score: how certain it is, as a normal score.
        noise: standard deviation of a snapshot; in the logarithm for growth.
        offset: added to the series before taking logarithms; None for a jump, which adds.
        kind: of the event that it makes, "abrupt" or "steady".
        baseline: of a steady one: its floor.
    """

    direction: str
    split: int
    start: int
    size: float
    score: float
    noise: float
    offset: float | None = None
    kind: str = "abrupt"
    baseline: float = math.nan

    def transformed(self, values: Array) -> Array:
        """The series in which the change is a step or a bend upward or downward."""
        return values if self.offset is None else np.log(values + self.offset)


# ------------------------------------------------------------------ level and noise

#: Definition: standard deviation of a normal sample, in its median absolute deviation.
MAD_TO_SD = 1.4826


def median_of_three(values: Array) -> Array:
    """Each value replaced by the median of itself and the two before: no lone spikes.

    >>> median_of_three(np.array([1.0, 1.0, 9.0, 1.0, 2.0, 2.0])).tolist()
    [1.0, 1.0, 1.0, 1.0, 2.0, 2.0]
    """
    padded = np.concatenate([values[:1], values[:1], values])
    windows = np.lib.stride_tricks.sliding_window_view(padded, 3)
    return np.asarray(np.median(windows, axis=1), dtype=np.float64)


def noise_sd(values: Array) -> float:
    """Standard deviation of single values, from differences; trends and jumps left out.

    Second differences see through any smooth trend; those between values two and four
    apart see noise that wanders. The largest counts. NaN with fewer than five values.
    """
    if len(values) < FEW:
        return math.nan
    sizes = [MAD_TO_SD * median_of(np.abs(np.diff(values, 2))) / math.sqrt(6)]
    for lag in (1, 2, 4):
        if len(values) >= 3 * lag + 2:
            wander = values[lag:] - values[:-lag]
            mad = median_of(np.abs(wander - median_of(wander)))
            sizes.append(MAD_TO_SD * mad / math.sqrt(2))
    return max(sizes)


def median_of(values: Array) -> float:
    """The median, in a tenth of the time that numpy takes for a short series."""
    ordered = np.sort(values)
    return float(0.5 * (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]))


# ------------------------------------------------------------------ what became of it

#: Definition: what is left of the largest size of a change that has gone back by half.
_LEFT_OF_PEAK = 0.5


def peak_of(peak: float, last: float, size: float) -> float:
    """The largest size that a change has had at two snapshots in a row; NaN where there is none.

    >>> peak_of(0.2, 0.3, 0.25)
    0.25
    """
    return float(np.fmax(peak, min(size, last)))


def is_back_by_half(peak: float, size: float) -> bool:
    """Whether half of what a change was at its largest is gone.

    It is back when that is so at two snapshots in a row. Both the tracker of events and the
    detector of dormant weights go by it.
    """
    return peak > 0.0 and size <= _LEFT_OF_PEAK * peak


# ------------------------------------------------------------------ when it began

#: Definition: twice the log-likelihood that may be lost within a 90 percent profile interval.
_LOST = 2.706
#: Definition: the fits that tell the onset itself, a bend and a step.
_NUM_PLAIN = 2
#: Guard: correlation of neighbouring residuals is allowed for up to this one.
_MOST_CORRELATED = 0.9


def onset_of(
    x: Array,
    y: Array,
    *,
    noise: float,
    latest: int,
    direction: str = "up",
    multiplies: bool = False,
) -> tuple[int, int, int]:
    """Index of the last snapshot before the change, and both ends of the interval that it lies in.

    Fitted are a line before the change and a bend or a step after it, in the direction that it
    went; the better one counts. The
    interval holds the onsets whose fit is not clearly worse (90 percent, profile likelihood), also
    of bends that begin gently, and, where the change ``multiplies``, ``y`` being a logarithm, of
    bends of the series itself. What the best fit leaves is correlated where noise lasts, or the
    change has another shape; that makes the interval wider. No fit can beat the ``noise`` of a
    snapshot.
    """
    z = (x - x[0]) / (x[-1] - x[0])
    y = y if direction == "up" else -y
    last = max(min(latest, len(y) - 2), 0)
    candidates = np.arange(min(1, last), last + 1)
    fits = [_left_by_fits(z, y, int(k), multiplies=multiplies) for k in candidates]
    place = int(np.argmin([min(map(_power, left[:_NUM_PLAIN])) for left in fits]))
    best = [min(left, key=_power) for left in fits]
    errors = np.array([_power(left) for left in best])
    least = int(errors.argmin())
    variance = max(noise**2, float(errors[least]) / max(len(y) - 4, 1), 1e-300)
    rho = correlation_of(best[least], noise)
    is_inside = (errors - errors[least]) / variance <= _LOST * (1.0 + rho) / (1.0 - rho)
    is_inside[place] = True
    inside = candidates[is_inside]
    return int(candidates[place]), int(inside[0]), int(inside[-1])


def _left_by_fits(z: Array, y: Array, k: int, *, multiplies: bool) -> list[Array]:
    """What each fit with the change after snapshot ``k`` leaves; plain bend and step first."""
    ones = np.ones_like(z)
    bend, step = np.maximum(z - z[k], 0.0), (z > z[k]).astype(np.float64)
    line = [ones, z] if k >= 2 else [ones]
    shapes = [np.stack([*line, shape], axis=1) for shape in (bend, step, bend**2, bend**3)]
    found = [_left(design, y) for design in shapes]
    if multiplies:
        level = np.exp(median_of_three(y))  # of a fall it is that of the reciprocal
        bends = [shapes[0], *shapes[_NUM_PLAIN:]]
        found += [_left(design / level[:, None], np.exp(y) / level) for design in bends]
    return found


def _power(left: Array) -> float:
    return float(left @ left)


def _left(design: Array, y: Array) -> Array:
    """What the fit leaves, its last column not being used if that would go down."""
    fit = np.linalg.lstsq(design, y, rcond=None)[0]
    if fit[-1] < 0.0:
        design = design[:, :-1]
        fit = np.linalg.lstsq(design, y, rcond=None)[0]
    return np.asarray(y - design @ fit)


def correlation_of(left: Array, noise: float) -> float:
    """Of neighbouring residuals, between 0 and a limit; what is rounding beside the noise is 0."""
    power = _power(left)
    if len(left) < FEW or power <= len(left) * (1e-3 * noise) ** 2:
        return 0.0
    rho = float(left[1:] @ left[:-1]) / power + 1.0 / len(left)
    return min(max(rho, 0.0), _MOST_CORRELATED)


# ------------------------------------------------------------------ what the learning rate leaves
#
# A series may answer to the learning rate at once or with a memory of many snapshots. What such an
# answer of a usual size can account for is no change.

#: What the rate leaves of a change, at least.
_LEAST_LEFT = 0.5
#: Standard deviation of a series' answer to the full rate: of the logarithm, and in ranges of the
#: series where a change adds.
_ANSWER_IN_LOG, _ANSWER_IN_RANGES = 0.5, 10.0
#: Snapshots that tell what the rate leaves of a jump.
_ANSWER_SNAPSHOTS = 64
#: Grid: memories that are tried, in snapshots.
_MEMORIES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
#: They are short beside the run so far: a longer one could not be told from a trend.
_LONGEST = 1 / 4
#: Guard: rates that differ by less than this part of the largest are the same.
_SAME = 0.02
#: So many standard deviations of what the response may be are granted to the rate.
_GRANTED = 0.5


def is_left_by_rate(
    candidate: Candidate, steps: Array, values: Array, rates: Array, min_size: float
) -> bool:
    """Whether ``min_size`` of the change is left when the learning rate has been accounted for."""
    is_jump = candidate.offset is None
    y = candidate.transformed(values)
    first = max(0, len(y) - _ANSWER_SNAPSHOTS) if is_jump else candidate.start
    strongest = _ANSWER_IN_RANGES * float(np.ptp(y[first:])) if is_jump else _ANSWER_IN_LOG
    # the change as it may have come, from the split on: a bend, or also a step; 1 at the end
    bend = np.maximum(steps - steps[len(y) - candidate.split - 1], 0.0)
    bend /= bend[-1]
    for shape in [bend, (bend > 0.0).astype(np.float64)] if is_jump else [bend]:
        left = share_left_by_rate(
            steps, y, rates, shape, noise=candidate.noise, strongest=strongest, first=first
        )
        if left >= _LEAST_LEFT and left * candidate.size >= min_size:
            return True
    return False


def share_left_by_rate(
    x: Array, y: Array, rates: Array, shape: Array, *, noise: float, strongest: float, first: int
) -> float:
    """The share of a change that remains beside a response to the rate, whatever its memory.

    Args:
        x, y: the series, in the units in which the change adds, length N.
        rates: mean learning rate since the snapshot before; NaN where it is not known.
        shape: of the change, 0 before it, 1 at the last snapshot.
        strongest: standard deviation of the response to the largest rate, in units of ``y``.
        first: index of the first snapshot that is fitted; those before are the rate's past.

    Returns:
        1 if the rate is not known or has not changed; 0 or less if it may account for all.
    """
    if not np.isfinite(rates).all() or rates.max() <= 0.0:
        return 1.0
    # the first snapshot shows the series at one rate, but not what it did at any other
    share = np.append(rates[1], rates[1:]) / rates.max()
    if np.ptp(share) < _SAME:
        return 1.0
    z = (x - x[-1]) / (x[-1] - x[first])
    plain = np.stack([np.ones_like(z), z, shape], axis=1)[first:]
    alone, variance = _estimate(plain, y[first:], noise, 0.0)
    if alone == 0.0:
        return 1.0
    spacing = float(np.median(np.diff(x)))
    left = []
    for memory in _MEMORIES:
        if memory > max(_LONGEST * len(x), _MEMORIES[0]):
            break
        response = strongest * _remembered(share, x, memory * spacing)[first:]
        design = np.concatenate([plain, response[:, None]], axis=1)
        beside, wider = _estimate(design, y[first:], noise, 1.0)
        granted = _GRANTED * math.sqrt(max(wider - variance, 0.0))
        left.append((beside - math.copysign(granted, alone)) / alone)
    return min(left)


def _remembered(share: Array, x: Array, memory: float) -> Array:
    """The rate as weights with an exponential memory have seen it."""
    out = np.empty_like(share)
    state = out[0] = share[0]
    for i, part in enumerate(1.0 - np.exp(-np.diff(x) / memory), start=1):
        state += part * (share[i] - state)
        out[i] = state
    return out


def _estimate(design: Array, y: Array, noise: float, prior: float) -> tuple[float, float]:
    """Size of the change, column 2, and its variance; column 3 has a prior of variance 1."""
    gram = design.T @ design / noise**2
    gram += np.diag(1e-12 * np.diag(gram))
    if prior:
        gram[3, 3] += prior
    inverse = np.linalg.inv(gram)
    fit = inverse @ (design.T @ y) / noise**2
    return float(fit[2]), float(inverse[2, 2])
