"""What of a change the learning rate accounts for.

Weights follow the learning rate with a memory: when it warms up, decays or jumps, a series may
rise with it, and nobody wants to be woken for that. So a change that was seen is estimated twice,
alone and beside a response to the rate, for every memory in a range. The response that the past
of the series shows is known; where the past shows none, how strong it may be is limited, so that
a rate that has hardly moved since the warm-up cannot account for anything.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["share_left_by_rate"]

Array = NDArray[np.float64]

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
