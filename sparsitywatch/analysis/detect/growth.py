"""Take-offs: growth that the whole run before it, continued, does not explain.

A near-zero fraction that takes off does not jump. It leaves its floor and grows over tens of
looks, and a trend fitted to the latest looks follows it, so that no single look is a surprise.
What makes it abrupt is the run before: so the last looks are compared with what everything
before a *split* explains, continued to now, for many splits, because how long ago the growth
began is not known. All of it in logarithms: growth multiplies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsitywatch.analysis.robust import median_of_three, noise_sd

__all__ = ["FALL", "RISE", "Growth", "Kind", "multiplied", "seen_growth", "share_left_by_rate"]

Array = NDArray[np.float64]

#: The look before the last bears out this part of the growth.
_BORNE_OUT = 0.5
#: Noise of a single look's logarithm before any is seen, and the looks that this is worth.
_PRIOR_SD, _PRIOR_LOOKS = 0.03, 6.0
#: The floor is reached within so many times the noise of a look.
_AT_FLOOR = 2.0
#: What is at most so many times the floor is at the floor.
_NEAR_FLOOR = 1.1
#: A parabola explains something only if its bend is so many times its standard error.
_BENT = 3.0
#: Looks that a level, a line and a parabola are fitted to at least.
_MIN_FIT = (1, 3, 8)


@dataclass(frozen=True)
class Kind:
    """What counts as growth.

    Args:
        splits: looks since it began that are tried.
        min_past: looks before it without which there is nothing to compare with.
        min_excess: what the past does not explain, in the logarithm, at least.
        noise_factor: the same in units of the noise of a look.
    """

    splits: tuple[int, ...]
    min_past: int
    min_excess: float
    noise_factor: float


RISE = Kind(
    splits=(2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96),
    min_past=3,
    min_excess=math.log(1.12),
    noise_factor=4.0,
)
#: Of the reciprocals. A series that falls for longer decays, and that is not abrupt.
FALL = Kind(splits=(2, 3, 4, 6, 8), min_past=5, min_excess=math.log(1.2), noise_factor=6.0)


@dataclass(frozen=True)
class Growth:
    """Growth that was seen.

    Args:
        split: looks since it began.
        start: index of the first look that it was compared with.
        excess: logarithm of the last look over what the past explains.
        score: normal score of it.
        noise: standard deviation of a single look's logarithm.
    """

    split: int
    start: int
    excess: float
    score: float
    noise: float


def seen_growth(
    kind: Kind, x: Array, values: Array, *, ratio: float, threshold: float, min_share: float
) -> list[Growth]:
    """Every split at which the last looks are above what the past explains.

    Args:
        kind: what counts as growth.
        x: abscissa of the looks, rising, length N.
        values: positive, length N.
        ratio: of the last value to the running floor, at least.
        threshold: smallest score.
        min_share: of the run so far that comes before the growth, at least.

    Returns:
        The most certain first; empty if nothing grew.
    """
    if len(values) < kind.min_past + 2 or values.min() <= 0.0:
        return []
    smooth = median_of_three(values)
    floor = float(smooth[:-2].min())
    if values[-1] < ratio * floor or values[-2] < ratio**_BORNE_OUT * floor:
        return []
    found = []
    x = (x - x[0]) / (x[-1] - x[0])
    logs, smooth = np.log(values), np.log(smooth)
    for split in kind.splits:
        past = len(values) - split
        if past < kind.min_past or x[past - 1] < min_share:
            break
        growth = _at_split(kind, x, logs, smooth, past)
        if growth is not None and growth.score >= threshold:
            found.append(growth)
    return sorted(found, key=lambda growth: -growth.score)


def multiplied(kind: Kind, values: Array, *, factor: float) -> list[Growth]:
    """Growth to so many times the running floor, however evenly it came about.

    Args:
        kind: what counts as growth.
        values: positive, length N.
        factor: of the last two values to the running floor, at least.

    Returns:
        One, or none. Its score is in units of the noise.
    """
    if len(values) < kind.min_past + 2 or values.min() <= 0.0:
        return []
    smooth = median_of_three(values)
    floor = float(smooth[:-2].min())
    at_floor = np.flatnonzero(values[:-2] <= _NEAR_FLOOR * floor)
    if values[-2:].min() < factor * floor or not len(at_floor):
        return []
    past = max(int(at_floor[-1]) + 1, kind.min_past)
    noise = _noise(np.log(values[:past]))
    excess = math.log(values[-1] / floor)
    if excess < kind.noise_factor * noise:
        return []
    start = past - kind.min_past  # before it lies what is no part of this growth
    return [Growth(len(values) - past, start, excess, excess / noise, noise)]


def _at_split(kind: Kind, x: Array, logs: Array, smooth: Array, past: int) -> Growth | None:
    """The growth since look ``past``, unless what was before explains it."""
    noise = _noise(logs[:past])
    # where it had come down to its floor, as far as can be told
    start = int(np.argmax(logs[:past] <= smooth[:past].min() + _AT_FLOOR * noise))
    start = min(start, past - kind.min_past)
    noise = max(noise, _noise(logs[start:past]))
    size = past - start
    recent = past - min(size, max(4, size // 4))
    windows = ((recent, 0), (start, 1), (start, 2))
    needed = max(kind.min_excess, kind.noise_factor * noise)
    over, score = np.full(2, math.inf), math.inf
    for first, degree in windows:
        found = _explained(x[first:past], smooth[first:past], x[-2:], degree, noise)
        if found is None:
            continue
        explained, sd = found
        over = np.minimum(over, logs[-2:] - explained)
        if over[1] < needed:
            return None
        score = min(score, _normal_score(over[1] / sd[1], size + _PRIOR_LOOKS - 2))
    if over[0] < _BORNE_OUT * over[1]:
        return None
    return Growth(len(logs) - past, start, float(over[1]), score, noise)


def _noise(logs: Array) -> float:
    """Of a single look, drawn towards what is usual where few have been seen."""
    nu = max(len(logs) - 2, 0)
    seen = noise_sd(logs)
    square = 0.0 if math.isnan(seen) else seen**2
    nu = 0 if math.isnan(seen) else nu
    return math.sqrt((_PRIOR_LOOKS * _PRIOR_SD**2 + nu * square) / (_PRIOR_LOOKS + nu))


def _explained(
    x: Array, smooth: Array, where: Array, degree: int, noise: float
) -> tuple[Array, Array] | None:
    """Forecast at ``where`` and its standard deviations with that of a look."""
    n = len(x)
    if n < _MIN_FIT[degree]:
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


def _normal_score(t: float, nu: float) -> float:
    """The score of a normal variable that is as unlikely as ``t`` (Wallace 1959)."""
    size = math.sqrt(nu * math.log1p(t * t / nu)) * (8.0 * nu + 1.0) / (8.0 * nu + 3.0)
    return math.copysign(size, t)


#: Memories that are tried, in looks; only those that are short beside the run so far, as a
#: longer one could not be told from a trend.
_MEMORIES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
_LONGEST = 1 / 4
#: Rates that differ by less than this part of the largest are the same.
_SAME = 0.02
#: So many standard deviations of what the response may be are granted to the rate.
_GRANTED = 0.5


def share_left_by_rate(
    x: Array, y: Array, rates: Array, shape: Array, *, noise: float, strongest: float, first: int
) -> float:
    """The share of a change that remains beside a response to the rate, whatever its memory.

    Args:
        x: abscissa of the looks, rising, length N.
        y: the series, in the units in which the change adds.
        rates: mean learning rate since the look before; NaN where it is not known.
        shape: of the change, 0 before it, 1 at the last look.
        noise: standard deviation of a look.
        strongest: standard deviation of the response to the largest rate, in units of ``y``.
        first: index of the first look that is fitted; those before are the rate's past.

    Returns:
        1 if the rate is not known or has not changed; 0 or less if it may account for all.
    """
    if not np.isfinite(rates).all() or rates.max() <= 0.0:
        return 1.0
    # the first look shows the series at one rate, but not what it did at any other
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
