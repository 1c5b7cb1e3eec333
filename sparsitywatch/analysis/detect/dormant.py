"""The early signal: weights that no longer get a gradient.

A generic detector is of little use on the dormant fraction. It grows over tens of snapshots once
units die, so evenly that its own past explains it, and without dead units it drifts with the
learning rate. But what it should be is known: the share of living weights that passes as dormant
by chance, which the watch measures at each snapshot. So what is watched is the excess over that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsitywatch.analysis.detect.change import (
    FEW,
    SUSPICION,
    Array,
    is_back_by_half,
    median_of_three,
    onset_of,
    peak_of,
)
from sparsitywatch.analysis.detect.history import SeriesHistory, event_of, or_nan, or_none
from sparsitywatch.errors import expect_keys, expect_number
from sparsitywatch.records import Event

__all__ = ["DormantRise"]

#: Snapshots in a row that meet the requirements, or one that does so this many times over.
_IN_A_ROW = 2
#: Guard: noise of a snapshot that the onset's interval allows for at least, in smallest effects.
_LEAST_NOISE = 0.05
_DORMANT_KEYS = ("history", "ongoing", "num_above", "decay_clock")


class DormantRise:
    """Watches the dormant fraction, ``motion/dormant``: units die, long before weights shrink.

    There is an event when two snapshots in a row are ``min_effect`` above, and ``ratio`` times,
    what is expected, or one snapshot is above it by twice as much. A generic detector is of little
    use here: the series grows so evenly once units die that its own past explains it, and without
    dead units it drifts with the learning rate. Expected is the share of living
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

    def __init__(self, min_effect: float = 0.03, *, ratio: float = 2.0) -> None:
        what = "in (0, 1), a fraction of the weights (0.03: three percentage points)"
        expect_number("min_effect", min_effect, lambda x: 0.0 < x < 1.0, what)
        expect_number("ratio", ratio, lambda x: 1.0 <= x < math.inf, "finite, 1 or more")
        self._min_effect, self._ratio = float(min_effect), float(ratio)
        self._history = SeriesHistory()
        self._ongoing: dict[str, Any] | None = None
        self._num_above, self._decay_clock = 0, math.nan
        self.is_suspicious = False

    def update(
        self, step: int, value: float, context: Mapping[str, float] | None = None
    ) -> Event | None:
        """One more snapshot.

        Args:
            step: optimizer step, larger at every call.
            value: dormant fraction since the snapshot before, in [0, 1]; what is not finite is a
                gap.
            context: what else is known: "dormant_by_chance", the share of living weights that
                passes by chance, and "decay_clock" or, where that is not known,
                "estimated_advance", what it advanced by since the last snapshot.

        Returns:
            The event if a rise is seen at this snapshot; its series has no name yet.

        Raises:
            ConfigurationError: the step does not come after that of the last snapshot.
        """
        self._history.require_later(step)
        context = context or {}
        clock = float(context.get("decay_clock", math.nan))
        stands_still = clock <= self._decay_clock  # False if one of them is not known
        stands_still |= context.get("estimated_advance") == 0.0
        self._decay_clock = clock
        if not math.isfinite(value):
            return None
        by_chance = float(context.get("dormant_by_chance", math.nan))
        expected = self._expected(by_chance)
        self._history.add(step, value, by_chance)
        if self._ongoing is not None:
            self._end_if_back(value, self._ongoing)
            return None
        share = 0.0 if stands_still or math.isnan(expected) else self._share(value, expected)
        self._num_above = self._num_above + 1 if share >= 1.0 else 0
        self.is_suspicious = share >= SUSPICION
        if self._num_above < _IN_A_ROW and share < _IN_A_ROW:
            return None
        view = self._history.view()
        latest, noise = len(view.values) - self._num_above - 1, _LEAST_NOISE * self._min_effect
        excess = _excess(view.values, view.rates)
        found = onset_of(view.steps, excess, noise=noise, latest=max(latest, 0))
        size = value - expected
        self._ongoing = {"baseline": expected, "num_back": 0, "peak": size, "last": size}
        self._num_above = 0
        self.is_suspicious = False
        at, low, high = (int(view.ends[i]) for i in found)
        return event_of(
            self._history, (at, low, high), direction="up", baseline=expected, decay_clock=clock
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that ``load_state_dict`` needs to go on, as plain JSON-able data."""
        return {
            "history": self._history.state_dict(),
            "ongoing": None if self._ongoing is None else dict(self._ongoing),
            "num_above": self._num_above,
            "decay_clock": or_none(self._decay_clock),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            StateError: a key is missing, or the parts do not go together.
        """
        expect_keys(state, _DORMANT_KEYS)
        history = SeriesHistory()
        history.load_state_dict(state["history"])
        self._history = history
        self._ongoing = None if state["ongoing"] is None else dict(state["ongoing"])
        self._num_above = int(state["num_above"])
        self._decay_clock = or_nan(state["decay_clock"])
        self.is_suspicious = False

    def _end_if_back(self, value: float, ongoing: dict[str, Any]) -> None:
        """Units die one after the other: it is one rise, unless half of it is gone."""
        size = value - ongoing["baseline"]
        peak = peak_of(ongoing.get("peak", size), ongoing.get("last", size), size)
        num_back = ongoing["num_back"] + 1 if is_back_by_half(peak, size) else 0
        ongoing.update(peak=peak, last=size, num_back=num_back)
        if num_back >= _IN_A_ROW:
            self._history.keep(FEW)
            self._ongoing = None

    def _expected(self, by_chance: float) -> float:
        """What living weights alone would show; NaN as long as nothing says so."""
        values = self._history.values
        before = np.array(values[: len(values) - self._num_above])
        if not len(before):
            return math.nan
        floor = float((median_of_three(before) if len(before) > 2 else before).min())
        return floor if math.isnan(by_chance) else max(by_chance, floor)

    def _share(self, value: float, expected: float) -> float:
        """How much of what is required of a rise is there; 1 or more is all."""
        return (value - expected) / max(self._min_effect, (self._ratio - 1.0) * expected)


def _excess(values: Array, chances: Array) -> Array:
    """What the series has beyond chance; all of it where chance is not known at each snapshot."""
    return values - chances if np.isfinite(chances).all() else values
