"""Whether weight decay alone explains a rise of near-zero weights.

A weight without gradient shrinks as exp(-clock). It is near zero, |w| <= t, once it was below
t * exp(clock) before. So between two snapshots decay alone takes a near-zero fraction f at most
to f * exp(d), d being what the clock advanced, where small weights are no rarer than larger ones,
as in every bell-shaped distribution. Growth above that bound has another cause: pruning, a
penalty, a jump. That growth could be decay's is no proof: weights that decay alone moves are
dormant, and where next to none are, nothing is claimed. The clock is an average over the in-scope
weights: where param groups decay at very different rates, a tensor may outrun it. Where it is not
known, what weights without gradient shrank by says how far it has come at least: growth within
the bound of that is within the true one, and growth above it says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sparsitywatch.records import Event, Record

#: Standard deviations by which one snapshot may exceed the bound, and all together.
NOISE_FACTOR = 4.0
#: Part of the share of weights that decay must have moved which is seen to be dormant.
_MIN_SEEN = 0.1


def explained_by_decay(event: Event, records: Sequence[Record]) -> bool | None:
    """Whether decay alone could account for a rise of near-zero weights; None if not known."""
    room, _, rule = event.series.partition("/")
    if room != "near_zero" or event.direction != "up" or rule.startswith("rms_"):
        return None
    if rule == "zero":
        return False
    records = since_onset(event, records)
    if any(r.why_no_clock for r in records):  # such as a decay that Adam divides by the gradient
        return None
    since = [r for r in records if r.near_zero.get(rule, 0.0) > 0.0 and not r.num_not_finite]
    values = np.array([r.near_zero[rule] for r in since])
    if len(since) < 2 or not np.isfinite(values).all():
        return None
    clock = np.array([r.decay_clock for r in since])
    is_known = bool(np.isfinite(clock).all())
    if not is_known:  # how far decay has come at least, by what weights shrank
        seen = [math.nan if r.dormant is None else r.dormant.estimated_advance for r in records]
        come = np.nancumsum(seen)  # where nothing was seen it may have stood still
        clock = come[np.searchsorted([r.step for r in records], [r.step for r in since])]
    if records[0].step > event.onset_step:  # it began at the attach, where the clock is 0
        at_first = max(event.baseline, 1.0 / since[-1].scope.num_weights)
        values, clock = np.append(at_first, values), np.append(0.0, clock)
    # standard deviation of log(later / earlier), for each value and the one after it
    counting = 1.0 / np.sqrt(np.maximum(values[:-1] * since[-1].scope.num_weights, 1.0))
    known = 0.0 if math.isnan(event.noise) else event.noise
    noise = math.sqrt(2.0) * np.maximum(counting, known / values[:-1])
    if _is_faster(values, clock, noise) or _is_faster(values[[0, -1]], clock[[0, -1]], noise[[0]]):
        return False if is_known else None
    return True if _is_seen(since, values, clock) else None


def _is_faster(values: np.ndarray, clock: np.ndarray, noise: np.ndarray) -> bool:
    excess = np.diff(np.log(values)) - np.diff(clock)
    return bool((excess > NOISE_FACTOR * noise).any())


def _is_seen(since: Sequence[Record], values: np.ndarray, clock: np.ndarray) -> bool:
    """Whether a good part of the weights that decay must have moved are seen to be dormant."""
    advance = math.expm1(float(clock[-1] - clock[0]))
    if advance <= 0.0:
        return False
    needed = float(values[-1] / values[0] - 1.0) / advance
    fractions = [r.dormant.fraction for r in since if r.dormant is not None]
    seen = [fraction for fraction in fractions if math.isfinite(fraction)]
    return not seen or max(seen) >= _MIN_SEEN * needed


def since_onset(event: Event, records: Sequence[Record]) -> Sequence[Record]:
    """The last record before the change, and all after it."""
    at = max((i for i, r in enumerate(records) if r.step <= event.onset_step), default=0)
    return records[at:]
