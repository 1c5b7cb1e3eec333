"""Whether weight decay alone could have made near-zero weights grow as they did.

A weight without gradient shrinks as exp(-clock), where the clock is the sum of lr times
weight decay. It is near zero, ``|w| <= t``, once it was below ``t * exp(clock)`` before. So
between two looks decay alone takes a near-zero fraction f at most to the share of weights
below ``t * exp(d)``, d being what the clock advanced: at most ``f * exp(d)`` where small
weights are no rarer than larger ones, as in every bell-shaped distribution. That bound is
reached only if *no* weight gets a gradient. Growth above it has another cause: pruning, a
penalty, a jump. Recorded runs stay far below it where dead units are the cause (a tenth to
a third of the weights would do) and exceed it a thousandfold where weights were pruned or
an L1 penalty was switched on.

The clock is the average over the in-scope weights: where param groups decay at very
different rates, a tensor may outrun it. That growth *could* be decay's is no proof. Weights
that decay alone moves are dormant, and their fraction is measured on its own: where next to
none are dormant, nothing is claimed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sparsitywatch.records import Event, Record

__all__ = ["is_on_clock"]

#: Standard deviations by which one look may exceed the bound, and all together.
_NOISE_FACTOR = 4.0
#: Part of the share of weights that decay must have moved which is seen to be dormant.
_MIN_SEEN = 0.1


def is_on_clock(event: Event, records: Sequence[Record]) -> bool | None:
    """Whether weight decay alone could account for a rise of a near-zero fraction.

    Args:
        event: seen in the last record; its series, onset and noise are used.
        records: by rising step, up to the one that the event was seen in.

    Returns:
        False: it grew faster than decay could make it, between two looks since the onset
        or over all of them; or exact zeros appeared, which decay never makes. True: it did
        not, and weights that decay alone moves were not found missing. None: unknown, or
        the series is no near-zero fraction with a fixed threshold that rose.
    """
    room, _, rule = event.series.partition("/")
    if room != "near_zero" or event.direction != "up" or rule.startswith("rms_"):
        return None
    if rule == "zero":
        return False
    start = max((i for i, r in enumerate(records) if r.step <= event.onset_step), default=0)
    looks = [
        r for r in records[start:] if r.near_zero.get(rule, 0.0) > 0.0 and not r.num_not_finite
    ]
    if len(looks) < 2:
        return None
    clock = np.array([r.decay_clock for r in looks])
    values = np.array([r.near_zero[rule] for r in looks])
    if not (np.isfinite(clock).all() and np.isfinite(values).all()):
        return None
    noise = _relative_noise(values, event.noise, looks[-1].scope.num_weights)
    if _is_faster(values, clock, noise) or _is_faster(values[[0, -1]], clock[[0, -1]], noise[[0]]):
        return False
    return True if _is_seen(looks, values, clock) else None


def _relative_noise(values: np.ndarray, noise: float, num_weights: int) -> np.ndarray:
    """Standard deviation of log(later / earlier) for each value and the one after it."""
    counting = 1.0 / np.sqrt(np.maximum(values[:-1] * num_weights, 1.0))
    known = 0.0 if math.isnan(noise) else noise
    return np.asarray(math.sqrt(2.0) * np.maximum(counting, known / values[:-1]))


def _is_faster(values: np.ndarray, clock: np.ndarray, noise: np.ndarray) -> bool:
    excess = np.diff(np.log(values)) - np.diff(clock)
    return bool((excess > _NOISE_FACTOR * noise).any())


def _is_seen(looks: Sequence[Record], values: np.ndarray, clock: np.ndarray) -> bool:
    """Whether a good part of the weights that decay must have moved are seen to be dormant."""
    advance = math.expm1(float(clock[-1] - clock[0]))
    if advance <= 0.0:
        return False
    needed = float(values[-1] / values[0] - 1.0) / advance
    fractions = [r.dormant.fraction for r in looks if r.dormant is not None]
    seen = [fraction for fraction in fractions if math.isfinite(fraction)]
    return not seen or max(seen) >= _MIN_SEEN * needed
