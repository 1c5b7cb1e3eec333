"""What is drawn over the optimizer steps: which panels there are, and how each is drawn."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sparsitywatch.analysis.estimate import allowed_harm
from sparsitywatch.analysis.run import Run
from sparsitywatch.plots.drawing import (
    BLACK,
    BLUE,
    DASHED,
    DOTTED,
    GREEN,
    GREY,
    LIGHT,
    ORANGE,
    PAPER,
    PURPLE,
    RED,
    SKY,
    value_axis,
)
from sparsitywatch.records import Event
from sparsitywatch.series import describe

__all__ = ["Line", "Panel", "draw_interval", "draw_panel", "label_steps", "panels_of"]

_RULE_COLOURS = (RED, ORANGE, PURPLE, GREEN, SKY, BLACK)
#: With more snapshots than this only lines are drawn.
_FEW_SNAPSHOTS = 40
#: Labels that find room along the steps.
_NUM_TICKS = 9


# ------------------------------------------------------------------ which panels there are


@dataclass(frozen=True, kw_only=True)
class Line:
    """One series in a panel; ``dashes`` as matplotlib has them, ``width`` in points."""

    series: str
    colour: str
    label: str = ""
    dashes: Any = "-"
    width: float = 1.6
    in_legend: bool = True

    @property
    def name(self) -> str:
        """What it is called."""
        return self.label or describe(self.series).label


@dataclass(frozen=True, kw_only=True)
class Panel:
    """What is drawn of one thing.

    Args:
        key: its name for a program.
        title: in a few words.
        lines: of which those are drawn that the run has.
        more: draws what else is in it.
        from_zero, up_to: ends of the vertical axis.
    """

    key: str
    title: str
    lines: Sequence[Line]
    more: Callable[[Any, Run], None] | None = None
    from_zero: bool = True
    up_to: float | None = None


def panels_of(run: Run) -> list[Panel]:
    """Every panel that the run has numbers for."""
    panels = [_near_zero(run), _DORMANT, _essential(run), _RELIANCE, _VALUE]
    return [panel for panel in panels if any(run.has(line.series) for line in panel.lines)]


def _near_zero(run: Run) -> Panel:
    names = [f"near_zero/{rule}" for rule in run.rules]
    return Panel(
        key="near-zero",
        title="Near-zero weights",
        lines=[
            Line(series=name, colour=colour, label=describe(name).short_label)
            for name, colour in zip(names, _RULE_COLOURS * len(names), strict=False)
        ],
    )


_DORMANT = Panel(
    key="dormant",
    title="Dormant weights",
    lines=(
        Line(series="motion/dormant", colour=BLUE),
        Line(series="motion/dormant_by_chance", colour=GREY, dashes=DASHED),
    ),
)


def _essential(run: Run) -> Panel:
    confidence = next(
        (r.essential_sparsity.confidence for r in run.records if r.essential_sparsity), 0.9
    )

    def draw(axes: Any, run: Run) -> None:
        draw_interval(axes, run, GREEN, f"{confidence:.0%} interval")
        steps, value = run.series("essential_sparsity/value")
        for number, ends in enumerate(_gaps(steps, np.isnan(value)), start=1):
            axes.axvspan(
                *ends, color=LIGHT, alpha=0.7, linewidth=0, zorder=-1, gid=f"gap-{number}",
                label="not informative, or not measured" if number == 1 else None,
            )  # fmt: skip

    return Panel(
        key="essential-sparsity",
        title="Essential sparsity",
        lines=(
            Line(series="essential_sparsity/value", colour=GREEN),
            Line(series="essential_sparsity/low", colour=GREEN, width=0.5, in_legend=False),
            Line(series="essential_sparsity/high", colour=GREEN, width=0.5, in_legend=False),
        ),
        more=draw,
        up_to=1.0,
    )


def draw_interval(axes: Any, run: Run, colour: str, label: str | None = None) -> None:
    """The interval of essential sparsity as a band."""
    steps, low = run.series("essential_sparsity/low")
    _, high = run.series("essential_sparsity/high")
    axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0, label=label)


def _gaps(steps: np.ndarray, missing: np.ndarray) -> list[tuple[float, float]]:
    """Where a value is missing, each time up to half-way to the snapshots that have one."""
    edges = _edges_of(steps)
    found: list[tuple[float, float]] = []
    for i in np.flatnonzero(missing):
        if found and found[-1][1] == edges[i]:
            found[-1] = (found[-1][0], edges[i + 1])
        else:
            found.append((edges[i], edges[i + 1]))
    return found


def _edges_of(steps: np.ndarray) -> np.ndarray:
    """Half-way between snapshots, and the first and the last of them: float [T + 1]."""
    return np.concatenate([steps[:1], (steps[1:] + steps[:-1]) / 2, steps[-1:]])


def _draw_allowed(axes: Any, run: Run) -> None:
    steps, dense = run.series("value/dense")
    by_step = {record.step: record.provenance for record in run.records}
    allowed = [
        allowed_harm(x, by_step[step].tolerance, by_step[step].tolerance_mode)
        for step, x in zip(steps.tolist(), dense, strict=True)
    ]
    axes.plot(
        steps, allowed, color=GREY, linestyle=DASHED, linewidth=1.2, gid="allowed",
        marker="_" if len(allowed) == 1 else "", label="harm that is tolerated",
    )  # fmt: skip


_RELIANCE = Panel(
    key="reliance",
    title="Reliance",
    lines=(Line(series="value/reliance", colour=BLACK, label="harm of removing everything"),),
    more=_draw_allowed,
)


_VALUE = Panel(
    key="value",
    title="Value of the model",
    lines=(
        Line(series="value/dense", colour=BLUE, label="as it is"),
        Line(
            series="value/all_removed", colour=GREY, label="without any in-scope weight",
            dashes=DASHED,
        ),
    ),
    from_zero=False,
)  # fmt: skip


# ------------------------------------------------------------------ how each is drawn


def draw_panel(axes: Any, panel: Panel, run: Run, inside: Collection[int] | None = None) -> None:
    """Lines, what else there is, events, and snapshots that failed.

    Args:
        inside: events that get their number in this panel; by default all.
    """
    _limit_steps(axes, run)
    for line in panel.lines:
        if run.has(line.series):
            steps, values = run.series(line.series)
            axes.plot(
                steps, values, color=line.colour, linestyle=line.dashes, marker="o",
                markersize=2.6, markevery=_points(values), linewidth=line.width,
                label=line.name if line.in_legend else None, gid=f"series-{line.series}",
            )  # fmt: skip
    if panel.more is not None:
        panel.more(axes, run)
    _mark_events(axes, run.events, inside)
    _mark_invalid(axes, run)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.0) if panel.from_zero else low, panel.up_to or high)
    value_axis(axes, describe(panel.lines[0].series).unit if panel.lines else "none")


def _points(values: np.ndarray) -> list[int]:
    """Snapshots that are drawn as points: all of a few; a lone one is in no line."""
    known = np.isfinite(values)
    if known.sum() > _FEW_SNAPSHOTS:
        beside = np.concatenate([[False], known, [False]])
        known = known & ~beside[:-2] & ~beside[2:]
    return [int(i) for i in np.flatnonzero(known)]


def _limit_steps(axes: Any, run: Run) -> None:
    first, last = run.steps[[0, -1]]
    pad = 0.02 * (last - first) or 0.5
    axes.set_xlim(first - pad, last + pad)


def label_steps(axes: Any, run: Run) -> None:
    """Optimizer steps from the first snapshot to the last."""
    if len(run.records) == 1:
        axes.set_xticks([run.steps[0]])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(_NUM_TICKS, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.set_xlabel("optimizer step")


def _mark_events(axes: Any, events: Sequence[Event], inside: Collection[int] | None) -> None:
    """Dotted where it began, solid where it was seen; its interval in its own panel alone."""
    for number, event in enumerate(events, start=1):
        is_home = inside is None or number in inside
        _mark_beginning(axes, number, event, is_home=is_home)
        axes.axvline(event.detected_step, color=BLACK, linewidth=1.0, gid=f"seen-{number}")
        if event.reverted_step >= 0:
            axes.axvline(event.reverted_step, color=GREY, linewidth=1.0, linestyle=DASHED)
        if not is_home:
            continue
        # numbers of neighbours stand one above the other
        above, lift = (1.0, 8 + 4 * ((number - 1) % 2))
        if inside is not None:
            above, lift = 0.86 - 0.14 * ((number - 1) % 4), 0
        note = axes.annotate(
            str(number), (event.detected_step, above), xycoords=axes.get_xaxis_transform(),
            xytext=(0, lift), textcoords="offset points", ha="center", va="center", color=PAPER,
            fontsize=8, fontweight="bold", annotation_clip=True,
            bbox={"boxstyle": "circle,pad=0.25", "facecolor": GREY, "edgecolor": "none"},
        )  # fmt: skip
        note.set_gid(f"mark-{number}")


def _mark_beginning(axes: Any, number: int, event: Event, *, is_home: bool) -> None:
    if is_home and event.onset_low < event.onset_high:
        axes.axvspan(
            event.onset_low, event.onset_high, color=ORANGE, alpha=0.25, linewidth=0, zorder=0,
            gid=f"onset-interval-{number}",
        )  # fmt: skip
    axes.axvline(
        event.onset_step, color=BLACK, linewidth=1.0, linestyle=DOTTED, gid=f"onset-{number}"
    )
    if not is_home:
        return
    # which beginning belongs to which number
    height = 0.985 - 0.03 * ((number - 1) % 3)
    axes.plot(
        [event.onset_step, event.detected_step], [height, height], color=BLACK, linewidth=1.0,
        transform=axes.get_xaxis_transform(), gid=f"from-onset-{number}",
    )  # fmt: skip


def _mark_invalid(axes: Any, run: Run) -> None:
    """A cross at the foot for each snapshot that failed."""
    steps = [record.step for record in run.records if not record.valid]
    if steps:
        axes.plot(
            steps, np.zeros(len(steps)), transform=axes.get_xaxis_transform(), linestyle="none",
            marker="x", color=RED, markersize=6, markeredgewidth=1.6, clip_on=False, zorder=5,
            label="a snapshot that failed",
        )  # fmt: skip
