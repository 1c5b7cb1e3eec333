"""The value of the model as it is: whether it got worse, was lost again, or stands still.

A loss falls for most of a training, so that no level of it is usual. What counts is what the
training has gained so far: a change to the worse matters if it takes a part of that away, and the
value stands still if the latest half of the run gained nothing beyond its noise. Beside these
judges of change stand two of height: the latest third against the best so far, however slowly it
came away from that, and against the start, which a training has to leave.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from sparsitywatch.analysis.detect.abrupt import AbruptChange, AbruptMemory, Ongoing
from sparsitywatch.analysis.detect.detector import (
    FEW,
    HALF,
    SCORE,
    SIDES_90,
    TREND,
    Array,
    SeriesHistory,
    correlation_of,
    median_of_three,
    noise_sd,
    normal_score,
    onset_of,
)
from sparsitywatch.records import Event, Record

#: The part of what was gained, and of the value, that is worth a word.
SHARE = 0.05
#: So many standard deviations of a snapshot are clearly beyond its noise.
CLEAR = 3.0
#: The part of what was gained that is missed for good.
_MISSED = 0.2
#: Snapshots that say where the value stands, at least: of a longer run a third, up to ``TREND``.
_FEWEST = 3
#: Evaluations at the full learning rate after which something has to be learned.
ENOUGH = 16
#: From this share of the present learning rate on an earlier one is no lower; warm-up ends there.
_FULL = 0.9


def value_trend(records: Sequence[Record]) -> str:
    """What the proxy's value does now: "better", "worse" or "still"; "" before ten evaluations."""
    known = [(r, r.curve) for r in records if r.curve is not None and math.isfinite(r.curve.dense)]
    harms = np.array([-c.dense if c.higher_is_better else c.dense for _, c in known])
    improving = improves(np.array([float(r.step) for r, _ in known]), harms)
    if improving is None:
        return ""
    rates = np.array([r.lr for r, _ in known])
    stand, third = _Stand.of(harms, rates, 2), _third(harms, rates)
    # a part of what was gained that is worth a word, and that the last two lost
    worth = max(SHARE * max(stand.gained, abs(stand.best)), SCORE * stand.noise)
    if float(harms[-2:].min()) - stand.best > worth or (third is not None and third.is_worse):
        return "worse"
    return "better" if improving else "still"


def undone_since(event: Event, records: Sequence[Record]) -> int:
    """Since when what was overwritten or lost is back, the value at its best; -1 if it is not."""
    vital = records[-1].vital if records else None
    for finding in () if vital is None else vital.findings:
        is_whole = finding.kind == "returned" and {*event.layers} <= {*finding.tensors}
        if is_whole and event.kind in ("overwritten", "blew_up"):
            return records[-1].step
    seen = [(r.step, r.curve) for r in records if r.curve is not None]
    known = [(step, c) for step, c in seen if math.isfinite(c.dense)]
    harms = np.array([-c.dense if c.higher_is_better else c.dense for _, c in known])
    num = sum(step <= event.onset_low for step, _ in known)
    if num < 3 or len(known) - num < FEW or known[-FEW][0] <= event.onset_low:
        return -1
    best = float(median_of_three(harms[:num]).min())
    latest = harms[-FEW:]
    # an early fall would pass for noise, and so would a way back from far above
    noise = float(np.fmin(noise_sd(harms[:num]), noise_sd(latest)))
    return known[-FEW][0] if float(latest.max()) <= best + CLEAR * noise else -1


class _Stand(NamedTuple):
    """Where a value stands, beside the best it was at a learning rate no lower than now."""

    first: float  # harm at the first snapshot, the lower the better
    best: float  # the lowest median of three
    at_best: int  # where the lowest single one is
    level: float  # the median of the latest ones
    noise: float  # of a snapshot since the best one; NaN of too few
    num: int  # how many are the latest
    now: float  # the median of the last three

    @classmethod
    def of(cls, harms: Array, rates: Array, num: int) -> _Stand:
        """Of at least one more snapshot than the latest ``num``."""
        # a rate that starts anew takes some back for a while, and has been as high before
        is_alike = ~(rates[:-num] < _FULL * np.fmax.reduce(rates[-num:]))
        places = np.flatnonzero(is_alike if is_alike.any() else ~is_alike)
        smooth = median_of_three(harms[places])
        at_best = int(places[harms[places].argmin()])
        # how fast it fell at first is no noise
        since = harms[min(int(places[smooth.argmin()]), max(len(harms) - num - TREND, 0)) :]
        noise = noise_sd(since[:-num] if num < _FEWEST else since)
        level, now = float(np.median(harms[-num:])), float(np.median(harms[-_FEWEST:]))
        return cls(float(harms[0]), float(smooth.min()), at_best, level, noise, num, now)

    @property
    def gained(self) -> float:
        """What had been gained at best."""
        return self.first - self.best

    @property
    def missed(self) -> float:
        """The smallest loss that is one for good."""
        return max(_MISSED * self.gained, SHARE * abs(self.best))

    @property
    def is_worse(self) -> bool:
        """Whether a good part of what was gained is missing, beyond chance."""
        return self.level - self.best >= max(self.missed, SCORE * self.noise)


def _third(harms: Array, rates: Array) -> _Stand | None:
    """Where the latest third stands; None before there are ten snapshots."""
    if len(harms) < 2 * FEW:
        return None
    return _Stand.of(harms, rates, min(max(len(harms) // 3, _FEWEST), TREND))


def improves(steps: Array, harms: Array) -> bool | None:
    """Whether a line through the latest half, or the latest few, falls by more than noise."""
    if len(harms) < 2 * FEW:
        return None
    harms = median_of_three(harms)  # one snapshot alone is no standstill
    half = int(np.searchsorted(steps, HALF * (steps[0] + steps[-1])))
    return any(_falls(steps[-n:], harms[-n:]) for n in (max(len(steps) - half, FEW), TREND))


def _falls(steps: Array, harms: Array) -> bool:
    x, y = steps - steps.mean(), harms - harms.mean()
    slope = float(x @ y) / float(x @ x)
    left = y - slope * x
    noise = math.sqrt(float(left @ left) / (len(y) - 2))
    rho = correlation_of(left, noise)
    error = noise * math.sqrt((1.0 + rho) / (1.0 - rho) / float(x @ x))
    # of three neighbours that were smoothed together one is new
    return bool(normal_score(-slope / max(error, 1e-300), (len(y) - 2) / 3) > SIDES_90)


@dataclass
class ValueMemory(AbruptMemory):
    """What ``ValueChange`` remembers."""

    entire: SeriesHistory  # as ``history``, and no event ends it
    best: float  # the lowest median of three snapshots so far, as harm: the lower the better
    is_lost: bool  # half of what was gained is gone, and that is an event already
    told: float  # the harm that was told of last; -infinity where it is back at its best
    is_unlearned: bool  # nothing has been learned, and that is an event already
    stood_at: float  # the best one at the last standstill; infinite before there was one


class ValueChange(AbruptChange):
    """Watches the value of the model as it is, ``value/dense``, for what is no good news.

    **Abrupt** (``kind`` "abrupt"): a jump or a rise as ``AbruptChange`` sees it, to the worse, by a
    twentieth of what the training has gained so far, and of the value. **Lost** ("lost"): half of
    what it has gained is gone at two snapshots in a row. **Worse** ("worse"): a fifth of it is
    missing in the latest third of the snapshots, however slowly it went; again when it is twice as
    much. **Unlearned** ("unlearned"): after sixteen snapshots at the full learning rate the value
    is within a twentieth of where it began, and the watched weights are of no use. **Standstill**
    ("standstill"): the latest half of the run gained no such part, and a line through it does not
    fall beyond its noise; told again only after the value improved.

    The context says whether a higher value is better ("higher_is_better", 1 or 0); without it a
    lower one is. Where the learning rate starts anew the value is compared with what it was at
    rates as high.

    >>> detector = ValueChange()
    >>> series = [2.3, 1.9, 1.5, 1.2, 0.9, 0.7, 0.5, 0.4, 0.3, 0.2, 4.0, 6.0]
    >>> events = [detector.update(25 * i, x) for i, x in enumerate(series)]
    >>> [(e.kind, e.direction, e.severity, e.detected_step) for e in events if e]
    [('lost', 'up', 'act', 275)]
    """

    memory: ValueMemory

    def __init__(self) -> None:
        super().__init__()
        self.memory = ValueMemory(
            **vars(self.memory), entire=self.memory.history, best=math.inf, is_lost=False,
            told=-math.inf, is_unlearned=False, stood_at=math.inf,
        )  # fmt: skip

    def _seen(self, step: int, value: float, known: Mapping[str, float]) -> Event | None:
        if not math.isfinite(value):
            return None
        memory, sign = self.memory, -1.0 if known["higher_is_better"] == 1.0 else 1.0
        first = float(memory.entire.rows[0, 1]) if memory.entire else value
        self._direction = "up" if sign > 0.0 else "down"
        least = SHARE * max(sign * first - memory.best, abs(value))
        self._limits = replace(self._limits, min_effect=max(least, sys.float_info.min))
        worse = super()._seen(step, value, known)
        memory.entire = memory.entire.add(step, value, memory.history.rows[-1, 2])
        steps, values, rates, _ = memory.entire.columns()
        harms = sign * values
        memory.best = min(memory.best, float(np.median(harms[-3:])) if len(harms) > 2 else math.inf)
        event = self._lost(steps, harms, rates) or worse
        stand = _third(harms, rates)
        if event is not None:
            memory.told = float(harms[-_FEWEST:].max())
        elif stand is not None:
            if max(stand.level, stand.now) < stand.best + HALF * stand.missed:
                memory.told = -math.inf
            event = None if memory.is_lost else self._worse(steps, harms, stand)
            if event is None and not memory.is_lost and memory.ongoing is None:
                low = known["reliance_low"]
                relied = known["reliance"] if math.isnan(low) else low
                event = self._unlearned(steps, harms, rates, stand, relied)
                event = event or self._standstill(sign)
        return event

    def _lost(self, steps: Array, harms: Array, rates: Array) -> Event | None:
        """The event that half of what was gained is gone."""
        memory = self.memory
        if len(harms) <= FEW:
            return None
        stand = _Stand.of(harms, rates, 2)
        was_lost, gone = memory.is_lost, float(harms[-2:].min()) - stand.best
        was_gained = was_lost or stand.gained > SCORE * stand.noise
        memory.is_lost = was_gained and gone >= max(HALF * stand.gained, self._limits.min_effect)
        if not memory.is_lost or was_lost:
            return None
        return self._to_the_worse(steps, harms, stand, "lost")

    def _worse(self, steps: Array, harms: Array, stand: _Stand) -> Event | None:
        """The event that a good part of what was gained is missing."""
        memory = self.memory
        is_new = stand.level - stand.best >= 2.0 * (memory.told - stand.best)
        if not (stand.is_worse and is_new):
            return None
        memory.told = max(stand.level, stand.now)
        return self._to_the_worse(steps, harms, stand, "worse")

    def _to_the_worse(self, steps: Array, harms: Array, stand: _Stand, kind: str) -> Event:
        sign = 1.0 if self._direction == "up" else -1.0
        found = onset_of(steps, harms, noise=stand.noise, first=stand.at_best)
        baseline, now = sign * stand.best, int(steps[-1])
        self.memory.ongoing = Ongoing(self._direction, baseline, FEW, False, now)
        return self._event(self._direction, baseline, steps[list(found)], kind=kind)

    def _unlearned(
        self, steps: Array, harms: Array, rates: Array, stand: _Stand, relied: float
    ) -> Event | None:
        """The event that a training has not left its start."""
        memory, first = self.memory, stand.first
        has_left = first - stand.level > max(SHARE * abs(first), SIDES_90 * stand.noise)
        memory.is_unlearned &= not has_left
        full = np.flatnonzero(~(rates < _FULL * np.fmax.reduce(rates)))
        is_warm = len(harms) - full[0] >= ENOUGH and not rates[-1] > rates[-FEW]
        # what was learned before the watch began is relied on
        is_unused = relied <= SHARE * abs(stand.level)
        is_known = memory.is_unlearned or math.isfinite(memory.told)
        if has_left or is_known or not (is_warm and is_unused) or improves(steps, harms):
            return None
        memory.is_unlearned = True
        at = (steps[0], steps[0], steps[0])
        sign = 1.0 if self._direction == "up" else -1.0
        return self._event(self._direction, sign * first, at, kind="unlearned")

    def _standstill(self, sign: float) -> Event | None:
        """The remark that nothing is gained any more, until something is."""
        memory = self.memory
        if memory.is_unlearned:
            return None
        steps, values, _, _ = memory.history.columns()
        harms, half = sign * values, len(values) // 2
        before = float(median_of_three(harms)[:half].min(initial=math.inf))
        gains = [x - memory.best > self._limits.min_effect for x in (memory.stood_at, before)]
        if gains != [True, False] or improves(steps, harms) is not False:
            return None
        memory.stood_at = memory.best
        return self._event("", sign * memory.best, (steps[half],) * 3, kind="standstill")
