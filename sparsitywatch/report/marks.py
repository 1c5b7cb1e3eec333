"""What is drawn into every chart over the steps: events, and looks that failed."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sparsitywatch.records import Event
from sparsitywatch.report.runlog import RunLog
from sparsitywatch.report.svg import Strip, mark_id
from sparsitywatch.report.theme import INK, PAPER, Paper
from sparsitywatch.sinks.drawing import GREY, ORANGE, RED

__all__ = ["edges_of", "event_marks", "mark_events", "mark_invalid", "step_axis", "strips_of"]

#: More strips than this do not fit a screen.
_MAX_STRIPS = 250


def step_axis(axes: Any, run: RunLog, paper: Paper) -> None:
    """Optimizer steps from the first look to the last."""
    first, last = run.steps[[0, -1]]
    pad = 0.02 * (last - first) or 0.5
    axes.set_xlim(first - pad, last + pad)
    if first == last:
        axes.set_xticks([first])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(paper.num_ticks, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.set_xlabel("optimizer step", fontsize=paper.font_size)


def mark_events(axes: Any, run: RunLog, *, fill: bool = True) -> None:
    """The interval of the beginning as a band, dotted where it began, solid where it was seen.

    Args:
        fill: whether there is room for a band behind the drawing.
    """
    for number, event in enumerate(run.events, start=1):
        if fill:
            low, high = event.onset_low, event.onset_high
            if low < high:
                axes.axvspan(
                    low, high, color=ORANGE, alpha=0.25, linewidth=0, zorder=0,
                    gid=f"onset-interval-{number}",
                )  # fmt: skip
            axes.axvline(
                event.onset_step, color=INK, linewidth=1.0, linestyle=(0, (1, 2)),
                gid=f"onset-{number}",
            )  # fmt: skip
            # which beginning belongs to which number
            height = 0.985 - 0.03 * ((number - 1) % 3)
            axes.plot(
                [event.onset_step, event.detected_step], [height, height], color=INK,
                linewidth=1.0, transform=axes.get_xaxis_transform(), gid=f"from-onset-{number}",
            )  # fmt: skip
        axes.axvline(
            event.detected_step, color=INK if fill else "white", linewidth=1.0,
            gid=f"seen-{number}",
        )  # fmt: skip
        if event.reverted_step >= 0 and fill:
            axes.axvline(event.reverted_step, color=GREY, linewidth=1.0, linestyle=(0, (4, 2)))
        # a number above the axes; those of neighbours stand one above the other
        lift = 8 + 4 * ((number - 1) % 2)
        note = axes.annotate(
            str(number), (event.detected_step, 1.0), xycoords=axes.get_xaxis_transform(),
            xytext=(0, lift), textcoords="offset points", ha="center", va="center", color=PAPER,
            fontsize=8, fontweight="bold", annotation_clip=True,
            bbox={"boxstyle": "circle,pad=0.25", "facecolor": GREY, "edgecolor": "none"},
        )  # fmt: skip
        note.set_gid(mark_id(number))


def event_marks(events: tuple[Event, ...] | list[Event]) -> list[str]:
    """What the mark of each event tells when it is pointed at."""
    return [f"Event {number}: {e.describe()}" for number, e in enumerate(events, start=1)]


def mark_invalid(axes: Any, run: RunLog) -> bool:
    """A cross at the foot for each look that failed; whether there is any."""
    steps = [record.step for record in run.records if not record.valid]
    if steps:
        axes.plot(
            steps, np.zeros(len(steps)), transform=axes.get_xaxis_transform(), linestyle="none",
            marker="x", color=RED, markersize=6, markeredgewidth=1.6, clip_on=False, zorder=5,
        )  # fmt: skip
    return bool(steps)


def edges_of(steps: np.ndarray) -> np.ndarray:
    """Half-way between looks, and the first and the last of them: float [T + 1]."""
    return np.concatenate([steps[:1], (steps[1:] + steps[:-1]) / 2, steps[-1:]])


def strips_of(run: RunLog, texts: list[str]) -> list[Strip]:
    """What is told of each look, over the part of the chart that is nearest to it."""
    chosen = np.arange(len(texts))
    if len(chosen) > _MAX_STRIPS:
        chosen = np.unique(np.linspace(0, len(texts) - 1, _MAX_STRIPS).round().astype(int))
    edges = edges_of(run.steps[chosen])
    if len(chosen) == 1:
        edges = edges + np.array([-0.5, 0.5])
    return [
        Strip(float(left), float(right), texts[i])
        for i, left, right in zip(chosen, edges[:-1], edges[1:], strict=True)
    ]
