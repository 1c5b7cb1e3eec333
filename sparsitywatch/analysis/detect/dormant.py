"""The early signal: weights that no longer get a gradient.

A generic detector is of little use on the dormant fraction. It grows over tens of snapshots once
units die, so evenly that its own past explains it, and without dead units it drifts with the
learning rate. But what it should be is known: the share of living weights that passes as dormant
by chance, which the watch measures at each snapshot. So what is watched is the excess over that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sparsitywatch.analysis.detect.detector import (
    FEW,
    NO_HISTORY,
    SUSPICION,
    Context,
    Detector,
    SeriesHistory,
    event_of,
    is_back_by_half,
    known_of,
    median_of_three,
    onset_of,
    peak_of,
)
from sparsitywatch.errors import expect_number
from sparsitywatch.records import Event

#: Snapshots in a row that meet the requirements, or one that does so this many times over.
_IN_A_ROW = 2
#: Guard: noise of a snapshot that the onset's interval allows for at least, in smallest effects.
_LEAST_NOISE = 0.05


@dataclass
class DormantMemory:
    """What ``DormantRise`` remembers."""

    history: SeriesHistory  # its rates are what passes by chance
    baseline: float  # of a rise that is an event already; NaN once half of it is gone
    num_back: int  # snapshots in a row at which half of it was gone
    peak: float  # see ``peak_of``
    last: float  # its size at the last snapshot
    num_above: int  # snapshots in a row that meet the requirements
    share: float  # of what is required that the last snapshot met
    decay_clock: float


class DormantRise(Detector):
    """Watches the dormant fraction, ``motion/dormant``: units die, long before weights shrink.

    There is an event when two snapshots in a row are ``min_effect`` above, and ``ratio`` times,
    what is expected, or one snapshot is above it by twice as much. Expected is the share of living
    weights that passes by chance, or the running floor of the series if that is higher: units
    that were dead before the watch began are no change.

    Where the decay clock stands still, as known or as estimated, nothing is seen: without decay no
    weight shrinks, and a model that has memorised its data gets no gradient anywhere.

    Units die one after the other, and that is one event. The next one is looked for when half of
    what the excess was at its largest is gone, at two snapshots in a row.

    Args:
        min_effect: smallest excess worth waking somebody for, as a fraction of the weights.
        ratio: of the series to what is expected, at least.

    Raises:
        ConfigurationError: an argument is out of range.

    >>> detector = DormantRise()
    >>> series = [0.008] * 8 + [0.02, 0.05, 0.09, 0.15]
    >>> events = [detector.update(25 * i, v, {"dormant_by_chance": 0.01}) for i, v in
    ...           enumerate(series)]
    >>> [(e.direction, e.onset_step, e.detected_step) for e in events if e]
    [('up', 200, 250)]
    """

    memory: DormantMemory

    def __init__(self, min_effect: float = 0.03, *, ratio: float = 2.0) -> None:
        what = "in (0, 1), a fraction of the weights (0.03: three percentage points)"
        expect_number("min_effect", min_effect, lambda x: 0.0 < x < 1.0, what)
        expect_number("ratio", ratio, lambda x: 1.0 <= x < math.inf, "finite, 1 or more")
        self._min_effect = float(min_effect)
        self._ratio = float(ratio)
        self.memory = DormantMemory(
            NO_HISTORY, baseline=math.nan, num_back=0, peak=math.nan, last=math.nan, num_above=0,
            share=0.0, decay_clock=math.nan,
        )  # fmt: skip

    @property
    def is_suspicious(self) -> bool:
        """Whether the last snapshot met half of every requirement of a rise."""
        return self.memory.share >= SUSPICION

    def update(self, step: int, value: float, context: Context = None) -> Event | None:
        """One more snapshot; see ``Detector.update``."""
        memory = self.memory
        known = known_of(step, value, context, memory.history.last_step)
        # False if one of them is not known
        stands_still = known["decay_clock"] <= memory.decay_clock
        stands_still |= known["estimated_advance"] == 0.0
        memory.decay_clock = known["decay_clock"]
        if not math.isfinite(value):
            return None
        by_chance = known["dormant_by_chance"]
        expected = self._expected(by_chance)
        memory.history = memory.history.add(step, value, by_chance)
        if not math.isnan(memory.baseline):
            self._end_if_back(value - memory.baseline)
            return None
        required = max(self._min_effect, (self._ratio - 1.0) * expected)
        share = 0.0 if stands_still or math.isnan(expected) else (value - expected) / required
        memory.share = share
        memory.num_above = memory.num_above + 1 if share >= 1.0 else 0
        if memory.num_above < _IN_A_ROW and share < _IN_A_ROW:
            return None
        return self._event(expected)

    def _event(self, expected: float) -> Event:
        memory, history = self.memory, self.memory.history
        view, size = history.view(), history.values[-1] - expected
        is_known = bool(np.isfinite(view.rates).all())
        found = onset_of(
            view.steps,
            view.values - view.rates if is_known else view.values,
            noise=_LEAST_NOISE * self._min_effect,
            latest=max(len(view.values) - memory.num_above - 1, 0),
        )
        memory.baseline = expected
        memory.peak = memory.last = size
        memory.num_back = memory.num_above = 0
        memory.share = 0.0
        at, low, high = (int(view.ends[i]) for i in found)
        clock = memory.decay_clock
        return event_of(
            history, (at, low, high), direction="up", baseline=expected, decay_clock=clock
        )

    def _end_if_back(self, size: float) -> None:
        """Units die one after the other: it is one rise, unless half of it is gone."""
        memory = self.memory
        memory.peak = peak_of(memory.peak, memory.last, size)
        memory.last = size
        memory.num_back = memory.num_back + 1 if is_back_by_half(memory.peak, size) else 0
        if memory.num_back >= _IN_A_ROW:
            memory.history = memory.history.latest(FEW)
            memory.baseline = math.nan

    def _expected(self, by_chance: float) -> float:
        """What living weights alone would show; NaN as long as nothing says so."""
        values = self.memory.history.values
        before = np.array(values[: len(values) - self.memory.num_above])
        if not len(before):
            return math.nan
        floor = float((median_of_three(before) if len(before) > 2 else before).min())
        return floor if math.isnan(by_chance) else max(by_chance, floor)
