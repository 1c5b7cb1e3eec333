"""The value of the model as it is: whether it got worse, was lost again, or stands still.

A loss falls for most of a training, so that no level of it is usual. What counts is what the
training has gained so far: a change to the worse matters if it takes a part of that away, and the
value stands still if the latest half of the run gained nothing beyond its noise.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sparsitywatch.analysis.detect.abrupt import AbruptChange, AbruptMemory, Ongoing
from sparsitywatch.analysis.detect.detector import (
    FEW,
    HALF,
    SCORE,
    SIDES_90,
    TREND,
    Array,
    correlation_of,
    median_of_three,
    noise_sd,
    normal_score,
    onset_of,
)
from sparsitywatch.records import Event, Record

#: The part of what was gained, and of the value, that is worth a word.
_SHARE = 0.05


def value_trend(records: Sequence[Record]) -> str:
    """What the proxy's value does now: "better", "worse" or "still"; "" before ten evaluations."""
    seen = [(r.step, r.curve) for r in records if r.curve is not None]
    known = [(step, curve) for step, curve in seen if math.isfinite(curve.dense)]
    harms = np.array([-c.dense if c.higher_is_better else c.dense for _, c in known])
    improving = improves(np.array([float(step) for step, _ in known]), harms)
    if improving is None:
        return ""
    best = float(median_of_three(harms[:-2]).min())
    # a part of what was gained that is worth a word, and that the last two lost
    worth = max(_SHARE * max(float(harms[0]) - best, abs(best)), SCORE * noise_sd(harms[:-2]))
    if float(harms[-2:].min()) - best > worth:
        return "worse"
    return "better" if improving else "still"


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

    first: float  # harm at the first snapshot, the lower the better; NaN before it
    best: float  # the lowest median of three snapshots so far
    is_lost: bool  # half of what was gained is gone, and that is an event already
    stood_at: float  # the best one at the last standstill; infinite before there was one


class ValueChange(AbruptChange):
    """Watches the value of the model as it is, ``value/dense``, for what is no good news.

    **Worse** (``kind`` "abrupt"): a jump or a rise as ``AbruptChange`` sees it, to the worse, by a
    twentieth of what the training has gained so far, and of the value. **Lost** ("lost"): half of
    what it has gained is gone at two snapshots in a row. **Standstill** ("standstill"): the
    latest half of the run gained no such part, and a line through it does not fall beyond its
    noise; told again only after the value improved.

    The context says whether a higher value is better ("higher_is_better", 1 or 0); without it a
    lower one is.

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
            **vars(self.memory), first=math.nan, best=math.inf, is_lost=False, stood_at=math.inf
        )

    def _seen(self, step: int, value: float, known: Mapping[str, float]) -> Event | None:
        if not math.isfinite(value):
            return None
        memory, sign = self.memory, -1.0 if known["higher_is_better"] == 1.0 else 1.0
        if math.isnan(memory.first):
            memory.first = sign * value
        self._direction = "up" if sign > 0.0 else "down"
        least = _SHARE * max(memory.first - memory.best, abs(value))
        self._limits = replace(self._limits, min_effect=max(least, sys.float_info.min))
        worse = super()._seen(step, value, known)
        steps, values, _, _ = memory.history.columns()
        harms = sign * values
        memory.best = min(memory.best, float(np.median(harms[-3:])) if len(harms) > 2 else math.inf)
        event = self._lost(steps, harms, sign) or worse
        if event is not None or memory.is_lost or memory.ongoing is not None:
            return event
        return self._standstill(steps, harms, sign)

    def _lost(self, steps: Array, harms: Array, sign: float) -> Event | None:
        """The event that half of what was gained is gone."""
        memory, noise = self.memory, noise_sd(harms[:-2])
        gained, gone = memory.first - memory.best, float(harms[-2:].min()) - memory.best
        was_lost = memory.is_lost
        memory.is_lost = gone >= max(HALF * gained, self._limits.min_effect)
        if not memory.is_lost or was_lost or not gained > SCORE * noise:
            return None
        found = onset_of(steps, harms, noise=noise, first=int(harms[:-2].argmin()))
        baseline, now = sign * memory.best, memory.history.last_step
        memory.ongoing = Ongoing(self._direction, baseline, FEW, False, now)
        return self._event(self._direction, baseline, steps[list(found)], kind="lost")

    def _standstill(self, steps: Array, harms: Array, sign: float) -> Event | None:
        """The remark that nothing is gained any more, until something is."""
        memory, half = self.memory, len(harms) // 2
        before = float(median_of_three(harms)[:half].min(initial=math.inf))
        gains = [x - memory.best > self._limits.min_effect for x in (memory.stood_at, before)]
        if gains != [True, False] or improves(steps, harms) is not False:
            return None
        memory.stood_at = memory.best
        return self._event("", sign * memory.best, (steps[half],) * 3, kind="standstill")
