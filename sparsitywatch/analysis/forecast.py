"""The near-zero fraction to come, from the weights that are dormant now.

A dormant weight of magnitude m is near zero when the decay clock has advanced by ln(m / t). More
weights go dormant meanwhile: as many again as in the window before, and no more than that. Living
weights stay as they are; how far they drift is part of the band. docs/reports/forecast.md has
what was tried instead and predicts worse.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sparsitywatch.records import DecayProjection, Forecast, Record
from sparsitywatch.records.curve import Array, six_digits

#: Growth of the dormant weights is taken from this much of the decay clock, or three snapshots.
WINDOW = 0.6
_LEAST_SNAPSHOTS = 3
#: One unit of the clock is foreseen in the record, two for the step of doubling.
_RECORDED = 1.0
#: Half the band per root of the clock's advance: share of the living near-zero weights.
DRIFT = 0.2
#: Half the band: share of what weights that are yet to go dormant add.
_GROWTH_DOUBT = 1.0
_NINE_IN_TEN = 1.645
#: Nothing is foreseen farther ahead than this many times the age of the run, in steps.
_FARTHEST = 2.0
_FLOOR_SNAPSHOTS = 5
_ROUNDING = 1e-9


class Forecaster:
    """Makes forecasts from a running state of what the records before say."""

    def __init__(self) -> None:
        self._past: dict[str, _Past] = {}  # by near-zero rule

    def update(self, record: Record) -> None:
        """One more record, by rising step."""
        if record.valid and not record.num_not_finite:
            for rule, fraction in record.near_zero.items():
                self._past.setdefault(rule, _Past()).add(record, fraction)

    def forecast(self, record: Record) -> Forecast | None:
        """What its motion, its clock and the earlier records let one foresee, if anything."""
        past, dormant = self._past.get(next(iter(record.near_zero), "")), record.dormant
        if past is None or not record.decay_clock > past.clock or record.num_not_finite:
            return None  # nothing is known of weights that broke
        if dormant is None or dormant.projection is None or not math.isfinite(dormant.fraction):
            return None
        rule, now = next(iter(record.near_zero.items()))
        rate = (record.decay_clock - past.clock) / (record.step - past.step)
        growth, window = growth_of([*past.dormant, *_dormant(record)])
        fraction, half = near_zero_ahead(
            now, dormant.projection, growth, window, num_sampled=dormant.num_sampled
        )
        advance = np.array(dormant.projection.advance)
        # farther ahead than the run is old nothing of this can be known
        fraction = np.where(advance / rate <= _FARTHEST * record.step, fraction, np.nan)
        ahead = crossing(advance, fraction, 2.0 * past.floor_with(now))
        shown = advance <= _RECORDED + _ROUNDING
        return Forecast(
            rule=rule,
            advance=tuple(advance[shown].tolist()),
            fraction=six_digits(fraction[shown]),
            low=six_digits(np.maximum(fraction - half, 0.0)[shown]),
            high=six_digits(np.minimum(fraction + half, 1.0)[shown]),
            clock_per_step=rate,
            doubling_step=record.step + ahead / rate,
        )


@dataclass
class _Past:
    """What a forecast needs of the snapshots that measured a near-zero rule."""

    step: int = -1  # the latest with a known decay clock, ...
    clock: float = math.nan  # ... and that clock
    latest: deque[float] = field(default_factory=lambda: deque(maxlen=_FLOOR_SNAPSHOTS - 1))
    floor: float = math.nan  # smallest median of five snapshots in a row; NaN before the fifth one
    #: decay clock, and dormant weights above what passes by chance, as far back as growth is taken
    dormant: list[tuple[float, float]] = field(default_factory=list)

    def add(self, record: Record, fraction: float) -> None:
        self.floor = self.floor_with(fraction)
        self.latest.append(fraction)
        if not math.isfinite(record.decay_clock):
            return
        self.step, self.clock = record.step, record.decay_clock
        self.dormant += _dormant(record)
        begin = bisect_left(self.dormant, (self.clock - WINDOW - _ROUNDING,))
        del self.dormant[: max(min(begin, len(self.dormant) - _LEAST_SNAPSHOTS + 1), 0)]

    def floor_with(self, fraction: float) -> float:
        """The floor of the snapshots so far and one with this fraction."""
        if len(self.latest) < _FLOOR_SNAPSHOTS - 1:
            return math.nan
        return float(np.fmin(self.floor, np.median([*self.latest, fraction])))


def _dormant(record: Record) -> list[tuple[float, float]]:
    """Decay clock and dormant fraction above what passes by chance, if it was measured."""
    dormant = record.dormant
    if dormant is None or not math.isfinite(dormant.fraction):
        return []
    chance = dormant.chance if math.isfinite(dormant.chance) else 0.0
    return [(record.decay_clock, max(dormant.fraction - chance * (1.0 - dormant.fraction), 0.0))]


def growth_of(history: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Growth of the dormant fraction per unit of the clock, and the window it was taken from."""
    if len(history) < _LEAST_SNAPSHOTS:
        return 0.0, 0.0
    clock, fraction = np.array(history).T
    first = int(np.searchsorted(clock, clock[-1] - WINDOW - _ROUNDING))
    first = min(first, len(clock) - _LEAST_SNAPSHOTS)
    clock, fraction = clock[first:], fraction[first:]
    window = float(clock[-1] - clock[0])
    if window <= 0.0:
        return 0.0, 0.0
    centred = clock - clock.mean()
    return max(float(round(centred @ fraction / (centred @ centred), 12)), 0.0), window


def near_zero_ahead(
    now: float, projection: DecayProjection, growth: float, window: float, *, num_sampled: int
) -> tuple[Array, Array]:
    """The near-zero fraction at each advance of the clock, and half the width of its band."""
    advance, dormant = np.array(projection.advance), np.array(projection.dormant)
    entering = np.array(projection.entering)
    gone = np.minimum(growth * np.minimum(advance, window), 1.0)  # growth ends with the window
    # those that go dormant at y have shrunk by exp(-(x - y)) at x; near-zero ones are counted
    # among the living already
    added = np.convolve(np.diff(gone, prepend=0.0), entering)[: len(advance)] - gone * entering[0]
    living = max(now - dormant[0], 0.0)
    crossed = dormant - dormant[0]
    sampling = _NINE_IN_TEN * np.sqrt(crossed * (1.0 - crossed) / max(num_sampled, 1))
    drift = DRIFT * living * np.sqrt(advance)
    return now + crossed + added, np.sqrt(sampling**2 + drift**2 + (_GROWTH_DOUBT * added) ** 2)


def crossing(advance: Array, fraction: Array, target: float) -> float:
    """The advance at which a fraction first reaches ``target``; NaN if it does not, or has."""
    reached = np.flatnonzero(fraction >= target)
    if not reached.size or reached[0] == 0:
        return math.nan
    k = int(reached[0])
    share = (target - fraction[k - 1]) / (fraction[k] - fraction[k - 1])
    return float(advance[k - 1] + share * (advance[k] - advance[k - 1]))
