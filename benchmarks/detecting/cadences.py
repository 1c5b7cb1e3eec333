"""Growth over half of a run, and growth without a beginning, as seen at any cadence.

A near-zero fraction that doubles or becomes fourfold over the last 54 % of 300,000 steps, and one
that grows evenly to 2.2 times its floor while decay accounts for it, with 100 to 3,000 snapshots:
the step of the one event, and how far the steps are apart. The true onset, to a snapshot, lies in
each interval; the even one is told as steady.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from reporting import Goal, table

from detecting.detectors import MIN_EFFECT
from detecting.series import DESIGN_SEEDS, Array, Series, rng_of
from detecting.work import Job, Plan, Results
from sparsitywatch.analysis.detect import AbruptChange
from sparsitywatch.records import Event

TITLE = "Growth at any cadence"
NUMBERS = (100, 200, 400, 1000, 3000)
SHAPES = ("doubling", "doubling, linear", "fourfold", "fourfold, linear", "steady")
_STEPS = 300_000
_BEGINS = 0.46
_FLOOR = 0.05
_NOISE = 0.01
#: Of the steady one: its growth, and what the decay clock shows at the end.
_STEADY = 2.2
_CLOCK = 4.0


@dataclass(frozen=True)
class Seen:
    """What came of one growth at one cadence: the values and the events that the detector saw."""

    shape: str
    number: int
    values: Array
    events: tuple[Event, ...]

    @property
    def is_right(self) -> bool:
        """Whether there is one event, of its kind, whose interval holds the onset to a snapshot."""
        if len(self.events) != 1:
            return False
        (event,) = self.events
        if self.shape == "steady":
            return event.kind == "steady"
        apart = _STEPS // self.number
        holds = event.onset_low - apart <= _BEGINS * _STEPS <= event.onset_high + apart
        return holds and event.kind == "abrupt"


def seen(seed: int = DESIGN_SEEDS[0]) -> list[Seen]:
    """Every growth at every cadence."""
    found = []
    for shape in SHAPES:
        for number in NUMBERS:
            series = growth(shape, number, seed)
            detector = AbruptChange(MIN_EFFECT)
            events = []
            for i, (step, value) in enumerate(zip(series.steps, series.values, strict=True)):
                event = detector.update(int(step), float(value), series.context_at(i))
                events += [] if event is None else [event]
            found.append(Seen(shape, number, series.values, tuple(events)))
    return found


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


def spread_of(of: Sequence[Seen]) -> float:
    """How far the alarms at the cadences are apart, as a part of the earliest; NaN without one."""
    steps = [s.events[0].detected_step if s.events else np.nan for s in of]
    return float(np.max(steps) / np.min(steps) - 1.0)


def _by_shape(found: Sequence[Seen]) -> dict[str, list[Seen]]:
    return {shape: [s for s in found if s.shape == shape] for shape in SHAPES}


def jobs(_: Plan) -> list[Job]:
    """One, and the longest."""
    return [Job(seen)]


def lines(results: Results) -> list[str]:
    """A row for each growth: the step of its alarm at each cadence, and how far they are apart."""
    rows = []
    for shape, of in _by_shape(results.flat(seen)).items():
        steps = [f"{s.events[0].detected_step // 1000}k" if s.events else "missed" for s in of]
        wrong = ["" if s.is_right else " (not as it should be)" for s in of]
        cells = [step + why for step, why in zip(steps, wrong, strict=True)]
        rows.append([shape, *cells, f"{spread_of(of):.0%}"])
    return table(["growth", *(f"{number:,} snapshots" for number in NUMBERS), "apart"], rows)


def goals(results: Results) -> list[Goal]:
    """Of all growths together."""
    found = results.flat(seen)
    wrong = sum(not one.is_right for one in found)
    spread = max(spread_of(of) for of in _by_shape(found).values())
    return [
        Goal(f"growth over half of a run: missed or misdated of {len(found)}", 0, wrong, unit=""),
        Goal("growth over half of a run: alarms apart", 15.0, 100.0 * spread, unit=" %"),
    ]


def draw(results: Results, folder: Path) -> None:
    """A panel for each growth: the series, and below it alarm and onset at each cadence."""
    with mpl.rc_context({"font.size": 8, "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(12.5, 3.0), dpi=90)
        axes = figure.subplots(1, len(SHAPES), sharey=False)
        for ax, of in zip(axes, _by_shape(results.flat(seen)).values(), strict=True):
            _panel(ax, of)
        figure.suptitle(
            "Growth over half of a run: alarm (green) and onset interval (pale) with 100 to 3,000 "
            "snapshots; dotted: the true onset",
            fontsize=9,
        )
        figure.tight_layout()
        figure.savefig(folder / "detection-cadences.png")


def _panel(ax: Axes, of: Sequence[Seen]) -> None:
    finest = max(of, key=lambda s: s.number)
    steps = (_STEPS // 1000) * np.arange(1, finest.number + 1) / finest.number
    ax.plot(steps, 100 * finest.values, color="#1f4e79", lw=0.8)
    low, high = 100 * float(finest.values.min()), 100 * float(finest.values.max())
    lane = 0.1 * (high - low)
    for place, one in enumerate(of, 1):
        at = low - lane * place
        for event in one.events:
            first, last = (x / 1000 for x in (event.onset_low, event.onset_high))
            ax.barh(at, max(last - first, 1.0), left=first, height=0.6 * lane, color="#b7dfb9")
            ax.plot([event.detected_step / 1000], [at], "|", color="#1a9641", ms=7, mew=2)
        ax.text(0, at, f"{one.number:,}", fontsize=6, va="center")
    if of[0].shape != "steady":
        ax.axvline(_BEGINS * _STEPS / 1000, color="#888888", lw=0.8, ls=":")
    ax.set_title(of[0].shape, fontsize=8)
    ax.set_xlabel("1,000 steps")
    ax.yaxis.set_major_formatter(lambda x, _: f"{x:g}%" if x >= low else "")
