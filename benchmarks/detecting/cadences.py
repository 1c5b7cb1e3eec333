"""Growth over half of a run, and growth without a beginning, as seen at any cadence.

One run of 300,000 steps, its snapshots 100 to 3,000: a near-zero fraction that doubles or becomes
fourfold over its last 54 %, and one that grows evenly from .05 to .11 under weight decay.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from detecting.ours import MIN_EFFECT
from detecting.series import DESIGN_SEEDS, Array, Series, rng_of
from sparsitywatch.analysis.detect import AbruptChange
from sparsitywatch.records import Event

__all__ = [
    "NUMBERS", "SHAPES", "Seen", "cadence_rows", "draw_cadences", "growth", "look", "spread_of",
]  # fmt: skip

NUMBERS = (100, 200, 400, 1000, 3000)
SHAPES = ("doubling", "doubling, linear", "fourfold", "fourfold, linear", "steady")
_STEPS, _BEGINS = 300_000, 0.46
_FLOOR, _NOISE = 0.05, 0.01
#: Of the steady one: its growth, and what the decay clock shows at the end.
_STEADY, _CLOCK = 2.2, 4.0
_CURVE, _ALARM, _ONSET, _TRUTH = "#1f4e79", "#1a9641", "#b7dfb9", "#888888"


@dataclass(frozen=True)
class Seen:
    """What came of one growth at one cadence.

    Args:
        shape, number: which growth, and how many snapshots the run has.
        values: at each of them.
        events: that the detector saw.
    """

    shape: str
    number: int
    values: Array
    events: tuple[Event, ...]

    @property
    def is_right(self) -> bool:
        """Whether there is one event, of its kind, whose interval holds the onset to a snapshot."""
        if len(self.events) != 1:
            return False
        (event,), apart = self.events, _STEPS // self.number
        if self.shape == "steady":
            return event.kind == "steady"
        onset = _BEGINS * _STEPS
        holds = event.onset_low - apart <= onset <= event.onset_high + apart
        return holds and event.kind == "abrupt"


def look(seed: int = DESIGN_SEEDS[0]) -> Iterator[Seen]:
    """Every growth at every cadence."""
    for shape in SHAPES:
        for number in NUMBERS:
            series, detector, events = growth(shape, number, seed), AbruptChange(MIN_EFFECT), []
            for i, (step, value) in enumerate(zip(series.steps, series.values, strict=True)):
                event = detector.update(int(step), float(value), series.context_at(i))
                events += [] if event is None else [event]
            yield Seen(shape, number, series.values, tuple(events))


def growth(shape: str, number: int, seed: int) -> Series:
    """One growth at one cadence."""
    rng = rng_of(f"cadences/{shape}/{number}", seed)
    time = np.arange(1, number + 1)
    values = _FLOOR * _growth(shape, time / number) * (1.0 + _NOISE * rng.standard_normal(number))
    context = {"decay_clock": _CLOCK * time / number} if shape == "steady" else None
    return Series(shape, seed, time * (_STEPS // number), values, context=context)


def _growth(shape: str, time: Array) -> Array:
    if shape == "steady":
        return np.asarray(1.0 + (_STEADY - 1.0) * time)
    way = np.maximum(time - _BEGINS, 0.0) / (1.0 - _BEGINS)
    factor = 2.0 if shape.startswith("doubling") else 4.0
    linear = 1.0 + (factor - 1.0) * way
    return np.asarray(linear if shape.endswith("linear") else factor**way)


def spread_of(seen: Sequence[Seen]) -> float:
    """How far the alarms at the cadences are apart, as a part of the earliest; NaN without one."""
    steps = [s.events[0].detected_step if s.events else np.nan for s in seen]
    return float(np.max(steps) / np.min(steps) - 1.0)


def cadence_rows(seen: Sequence[Seen]) -> list[list[str]]:
    """A row for each growth: the step of its alarm at each cadence, and how far they are apart."""
    rows = []
    for shape in SHAPES:
        of = [s for s in seen if s.shape == shape]
        cells = [
            (f"{s.events[0].detected_step // 1000:,}k" if s.events else "missed")
            + ("" if s.is_right else " (not as it should be)")
            for s in of
        ]
        rows.append([shape, *cells, f"{spread_of(of):.0%}"])
    return rows


def draw_cadences(seen: Sequence[Seen], path: Path) -> None:
    """A panel for each growth: the series, and below it alarm and onset at each cadence.

    Args:
        seen: of ``snapshot``.
        path: of a PNG.
    """
    with mpl.rc_context({"font.size": 8, "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(12.5, 3.0), dpi=90)
        axes = figure.subplots(1, len(SHAPES), sharey=False)
        for ax, shape in zip(axes, SHAPES, strict=True):
            _panel(ax, [s for s in seen if s.shape == shape])
        figure.suptitle(
            "Growth over half of a run: alarm (green) and onset interval (pale) with 100 to 3,000 "
            "snapshots; dotted: the true onset",
            fontsize=9,
        )
        figure.tight_layout()
        figure.savefig(path)


def _panel(ax: Axes, of: Sequence[Seen]) -> None:
    finest = max(of, key=lambda s: s.number)
    steps = (_STEPS // 1000) * np.arange(1, finest.number + 1) / finest.number
    ax.plot(steps, 100 * finest.values, color=_CURVE, lw=0.8)
    low, high = 100 * float(finest.values.min()), 100 * float(finest.values.max())
    lane = 0.1 * (high - low)
    for place, one in enumerate(of, 1):
        at = low - lane * place
        for event in one.events:
            first, last = (x / 1000 for x in (event.onset_low, event.onset_high))
            ax.barh(at, max(last - first, 1.0), left=first, height=0.6 * lane, color=_ONSET)
            ax.plot([event.detected_step / 1000], [at], "|", color=_ALARM, ms=7, mew=2)
        ax.text(0, at, f"{one.number:,}", fontsize=6, va="center")
    if of[0].shape != "steady":
        ax.axvline(_BEGINS * _STEPS / 1000, color=_TRUTH, lw=0.8, ls=":")
    ax.set_title(of[0].shape, fontsize=8)
    ax.set_xlabel("1,000 steps")
    ax.yaxis.set_major_formatter(lambda x, _: f"{x:g}%" if x >= low else "")
