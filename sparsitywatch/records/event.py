"""An abrupt change in a watched series."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Event"]

_NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class Event:
    """An abrupt change in a watched series.

    Args:
        series: name of the series, as in ``Record.series()``.
        direction: "up" or "down".
        onset_step: where the change began, as estimated when it was seen.
        detected_step: the snapshot at which it was seen.
        baseline: level of the series before the onset, in its own units.
        value: the series at ``detected_step``.
        noise: standard deviation of the series around its baseline; NaN if unknown.
        layers: tensors that account for most of the change, most first; empty if unknown.
        decay_clock: sum of lr times weight decay at ``detected_step``; NaN if unknown.
    """

    series: str
    direction: str
    onset_step: int
    detected_step: int
    baseline: float
    value: float
    noise: float = _NAN
    layers: tuple[str, ...] = ()
    decay_clock: float = _NAN

    @property
    def size(self) -> float:
        """``value`` minus ``baseline``, in units of the series."""
        return self.value - self.baseline

    def describe(self) -> str:
        """One sentence for a person."""
        where = f", most in {', '.join(self.layers[:3])}" if self.layers else ""
        clock = "" if math.isnan(self.decay_clock) else f", decay clock {self.decay_clock:.2f}"
        verb = "rose" if self.direction == "up" else "fell"
        return (
            f"{self.series} {verb} abruptly: {self.baseline:.4g} -> {self.value:.4g}, began at "
            f"step {self.onset_step}, seen at step {self.detected_step}{where}{clock}"
        )
