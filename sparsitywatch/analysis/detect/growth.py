"""Take-offs and falls: growth that the whole run before it, continued, does not explain.

A near-zero fraction that takes off does not jump. It leaves its floor and grows over tens of
snapshots. A trend fitted to the latest snapshots follows it, so that no single one is a surprise.
What makes it abrupt is the run before. So the last snapshots are compared with what everything
before a *split* explains, continued to now. Many splits are tried, because nobody knows how long
ago the growth began. All of it is in logarithms: growth multiplies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sparsitywatch.analysis.detect.detector import (
    FEW,
    HALF,
    LATEST,
    SCORE,
    TREND,
    Array,
    Candidate,
    Limits,
    in_family,
    median_of_three,
    noise_sd,
)
from sparsitywatch.records.student import normal_score

#: Where weight decay can account for it, growth to this power of the ratio is an event however
#: evenly it came about.
_TIMES_EVEN = 1.5
#: Such growth is steady if no bend makes it steeper by this factor.
_STEEPER = 2.0
#: Grid: bends that are tried, at these parts of its time.
_BENDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
#: Noise of a single snapshot's logarithm before any is seen, and the snapshots it is worth.
_PRIOR_SD, _PRIOR_SNAPSHOTS = 0.03, 6.0
#: Smallest normal score of growth, if there were one snapshot to see it in.
GROWTH_SCORE = 3.0
#: Distance from the floor, in units of a snapshot's noise, at which it is reached.
_AT_FLOOR = 2.0
#: A parabola explains growth only if its bend is this many standard errors large.
_BENT = 3.0


@dataclass(frozen=True)
class Growth:
    """What counts as growth; a fall is growth of the reciprocals."""

    direction: str  # "up" or "down"
    splits: tuple[int, ...]  # snapshots since it began that are tried
    min_past: int  # snapshots before it without which there is nothing to compare with
    ratio: float | None = None  # of the last value to the running floor; None: that of the limits


#: Grid: snapshots since a rise began that are tried: it grows over any time.
_RISE_SPLITS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96)
#: Those since a fall: what falls for longer decays, and that is not abrupt.
_FALL_SPLITS = tuple(split for split in _RISE_SPLITS if split <= TREND)
#: It can be seen after so few snapshots.
RISE = Growth("up", _RISE_SPLITS, min_past=3)
#: A fall is one by a fifth of the level, and of what the past explains.
FALL = Growth("down", _FALL_SPLITS, min_past=FEW, ratio=1.25)


def grown(
    kind: Growth, steps: Array, values: Array, limits: Limits, *, is_decaying: bool = False
) -> Candidate | None:
    """Growth since the split at which it is clearest that the past does not explain it, if any.

    Values are not negative. What weight decay can account for (``is_decaying``) needs less proof.
    """
    offset = limits.min_effect if values.min() == 0.0 else 0.0  # the smallest size that counts
    y = values + offset if kind is RISE else 1.0 / (values + offset)
    ratio = kind.ratio or limits.ratio
    if len(y) < kind.min_past + 2:
        return None
    smooth = median_of_three(y)
    floor = float(smooth[:-2].min())
    if y[-1] < ratio * floor or y[-2] < ratio**HALF * floor:
        return None
    # chance has been tried at every snapshot
    threshold = 0.0 if is_decaying else in_family(limits.growth_score, len(y))
    found = []
    x = (steps - steps[0]) / (steps[-1] - steps[0])
    logs, smooth = np.log(y), np.log(smooth)
    for split in kind.splits:
        past = len(y) - split
        if past < kind.min_past or x[past - 1] < HALF:
            break  # half of the run so far has to lie before
        if offset and kind is RISE and split > FALL.splits[-1]:
            break  # what creeps up from zero is not abrupt
        growth = _at_split(kind, x, logs, smooth, past, offset)
        if growth is not None and growth.score >= threshold:
            found.append(growth)
    return max(found, key=lambda growth: growth.score, default=None)


def multiplied(steps: Array, values: Array, ratio: float) -> Candidate | None:
    """The take-off that went so far that it is one, however evenly, if decay is a cause."""
    if len(values) < RISE.min_past + 2 or values.min() <= 0.0:
        return None
    smooth = median_of_three(values)
    lowest = int(smooth[:-2].argmin())
    floor = float(smooth[lowest])
    logs = np.log(values)
    at_floor = np.flatnonzero(logs[:-2] <= math.log(floor) + _AT_FLOOR * _noise(logs))
    if values[-2:].min() < ratio**_TIMES_EVEN * floor or not len(at_floor):
        return None
    past = max(int(at_floor[-1]) + 1, RISE.min_past)
    noise = _noise(logs[:past])
    excess = math.log(values[-1] / floor)
    if excess < SCORE * noise:
        return None
    split, score = len(values) - past, excess / noise
    first = int(np.argmax(np.log(smooth) <= math.log(floor) + _AT_FLOOR * noise))
    if _is_even(steps[first:], values[first:]):
        return Candidate("up", split, lowest, excess, score, noise, 0.0, "steady", floor)
    start = past - RISE.min_past  # before it lies what is no part of this growth
    return Candidate("up", split, start, excess, score, noise, 0.0)


def _is_even(steps: Array, values: Array) -> bool:
    """Whether no bend makes the growth much steeper, in the values or in their logarithm."""
    if len(values) < TREND:
        return False
    x = (steps - steps[0]) / (steps[-1] - steps[0])
    return any(_steepening(x, y) < _STEEPER for y in (values, np.log(values)))


def _steepening(x: Array, y: Array) -> float:
    """How many times steeper a series is after the bend that fits it best than before it."""
    best, found = math.inf, 1.0
    for place in _BENDS:
        design = np.stack([np.ones_like(x), x, np.maximum(x - place, 0.0)], axis=1)
        fit = np.linalg.lstsq(design, y, rcond=None)[0]
        error = float(np.square(y - design @ fit).sum())
        if error < best:
            before, after = float(fit[1]), float(fit[1] + fit[2])
            best, found = error, after / before if before > 0.0 else math.inf
    return found


def _at_split(
    kind: Growth, x: Array, logs: Array, smooth: Array, past: int, offset: float
) -> Candidate | None:
    """The growth since snapshot ``past``, unless what was before explains it."""
    noise = _noise(logs[:past])
    # where it had come down to its floor, as far as can be told
    start = int(np.argmax(logs[:past] <= smooth[:past].min() + _AT_FLOOR * noise))
    start = min(start, past - kind.min_past)
    noise = max(noise, _noise(logs[start:past]))
    size = past - start
    recent = past - min(size, max(FEW, int(LATEST * size)))
    needed = max(SCORE * noise, math.log(kind.ratio or 1.0))
    over, score = np.full(2, math.inf), math.inf
    for first, degree in ((recent, 0), (start, 1), (start, 2)):
        found = _explained(x[first:past], smooth[first:past], x[-2:], degree, noise)
        if found is None:
            continue
        explained, sd = found
        over = np.minimum(over, logs[-2:] - explained)
        if over[1] < needed:
            return None
        score = min(score, float(normal_score(over[1] / sd[1], size + _PRIOR_SNAPSHOTS - 2)))
    if over[0] < HALF * over[1]:
        return None
    return Candidate(kind.direction, len(logs) - past, start, float(over[1]), score, noise, offset)


def _noise(logs: Array) -> float:
    """Of a single snapshot, drawn towards what is usual where few have been seen."""
    seen = noise_sd(logs)
    nu, square = (0, 0.0) if math.isnan(seen) else (len(logs) - 2, seen**2)
    return math.sqrt((_PRIOR_SNAPSHOTS * _PRIOR_SD**2 + nu * square) / (_PRIOR_SNAPSHOTS + nu))


def _explained(
    x: Array, smooth: Array, where: Array, degree: int, noise: float
) -> tuple[Array, Array] | None:
    """Forecast at ``where`` and its standard deviations with that of a snapshot."""
    n = len(x)
    if degree == 2 and n < TREND:
        return None
    center, width = x[-1], max(x[-1] - x[0], 1e-12)
    powers = np.arange(degree + 1)
    design = ((x[:, None] - center) / width) ** powers
    inverse = np.linalg.inv(design.T @ design)
    fit = inverse @ (design.T @ smooth)
    residuals = smooth - design @ fit
    sd = max(noise, math.sqrt(float(residuals @ residuals) / max(n - degree - 1, 1)))
    if degree == 1 and fit[1] <= 0.0:
        return None
    if degree == 2 and not fit[2] > _BENT * sd * math.sqrt(inverse[2, 2]):
        return None
    at = ((where - center) / width)[:, None] ** powers
    leverage = np.einsum("ij,jk,ik->i", at, inverse, at)
    return at @ fit, sd * np.sqrt(1.0 + leverage)
