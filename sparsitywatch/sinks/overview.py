"""The picture of a whole run: what was measured over the steps, and what was detected."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.records import Event, Record
from sparsitywatch.series import describe
from sparsitywatch.sinks.drawing import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LIGHT,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    new_figure,
    percent,
    styled,
)

__all__ = ["gaps", "overview_figure", "series_of"]

_RULE_COLOURS = (RED, ORANGE, PURPLE, GREEN, SKY, BLACK)

Panel = Callable[[Any, Sequence[Record]], None]


@styled
def overview_figure(
    records: Sequence[Record],
    events: Sequence[Event] = (),
    *,
    loss: Sequence[tuple[int, float]] | None = None,
    title: str = "Sparsity during training",
) -> Figure:
    """A run in stacked panels over the optimizer steps, with its events marked.

    Args:
        records: in the order of the steps, at least one.
        events: what was detected.
        loss: (step, training loss) pairs, if they are known.
        title: of the whole picture.

    Raises:
        ConfigurationError: there is no record.
    """
    if not records:
        raise ConfigurationError("Expected `records` with at least one record, got none.")
    panels = _panels(records, loss)
    captions = [
        line for i, event in enumerate(events) for line in _wrapped(i + 1, event)
    ] + _caption(records[-1], events)
    figure = new_figure(9.5, 2.15 * len(panels) + 1.0 + 0.17 * len(captions))
    all_axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, draw) in zip(all_axes, panels.items(), strict=True):
        draw(axes, records)
        _mark_events(axes, name, events)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    _clock_axis(all_axes[0], records)
    all_axes[-1].set_xlabel("optimizer step")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=13)
    figure.supxlabel("\n".join(captions), x=0.01, ha="left", fontsize=8.5, color=GREY)
    return figure


def _panels(
    records: Sequence[Record], loss: Sequence[tuple[int, float]] | None
) -> dict[str, Panel]:
    """What there is to draw, by the first part of the names of its series."""
    names = {name.partition("/")[0] for record in records for name in record.series()}
    panels: dict[str, Panel] = {}
    if loss or "value" in names:
        panels["value"] = lambda axes, rs: _draw_value(axes, rs, loss or ())
    panels["near_zero"] = _draw_near_zero
    if any(record.essential_sparsity is not None for record in records):
        panels["essential_sparsity"] = _draw_essential_sparsity
    if any(math.isfinite(record.reliance) for record in records):
        panels["reliance"] = _draw_reliance
    return panels


def series_of(records: Sequence[Record], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps, int [T], and values, float [T], of one series; NaN where it was not measured.

    Args:
        records: in the order of the steps; those that were not evaluated are left out of what
            an evaluation measures.
        name: as in ``Record.series()``.
    """
    asked = [record for record in records if record.was_asked(name)]
    steps = np.array([record.step for record in asked], dtype=int)
    return steps, np.array([record.series().get(name, math.nan) for record in asked], dtype=float)


def _draw_value(axes: Any, records: Sequence[Record], loss: Sequence[tuple[int, float]]) -> None:
    if loss:
        axes.plot(*zip(*loss, strict=True), color=SKY, linewidth=0.8, label="training loss")
    steps, dense = series_of(records, "value/dense")
    if np.isfinite(dense).any():
        axes.plot(steps, dense, color=BLUE, label="held-out value, dense")
    is_score = any(record.curve and record.curve.higher_is_better for record in records)
    axes.set_ylabel("loss" if loss and not is_score else "value")


def _draw_near_zero(axes: Any, records: Sequence[Record]) -> None:
    rules = dict.fromkeys(rule for record in records for rule in record.near_zero)
    for rule, colour in zip(rules, _RULE_COLOURS * len(rules), strict=False):
        name = f"near_zero/{rule}"
        axes.plot(*series_of(records, name), color=colour, label=describe(name).short_label)
    steps, dormant = series_of(records, "motion/dormant")
    if np.isfinite(dormant).any():
        label = "dormant: no gradient\nsince the last look"
        axes.plot(steps, dormant, color=BLUE, linestyle=(0, (3, 1.5)), label=label)
    axes.set_ylabel("share of weights")
    axes.set_ylim(bottom=0.0)
    percent(axes.yaxis, None)


def _draw_essential_sparsity(axes: Any, records: Sequence[Record]) -> None:
    steps, value = series_of(records, "essential_sparsity/value")
    _, low = series_of(records, "essential_sparsity/low")
    _, high = series_of(records, "essential_sparsity/high")
    axes.plot(
        steps, value, color=GREEN, marker="o", markersize=2.5, label="first crossing\n(zero-shot)"
    )
    if np.isfinite(low).any():
        axes.fill_between(
            steps, low, high, color=GREEN, alpha=0.25, linewidth=0, label="its interval"
        )
    label: str | None = "not informative"
    for start, stop in gaps(steps, np.isnan(value)):
        axes.axvspan(start, stop, color=LIGHT, alpha=0.8, linewidth=0, label=label)
        label = None
    axes.set_ylabel("essential sparsity")
    axes.set_ylim(0.0, 1.0)
    percent(axes.yaxis)


def gaps(steps: np.ndarray, missing: np.ndarray) -> list[tuple[float, float]]:
    """Stretches without a value, each up to half-way to the looks that have one.

    Args:
        steps: int [T], rising, at least one.
        missing: bool [T].
    """
    edges = np.concatenate([steps[:1], (steps[1:] + steps[:-1]) / 2, steps[-1:]])
    found: list[tuple[float, float]] = []
    for i in np.flatnonzero(missing):
        if found and found[-1][1] == edges[i]:
            found[-1] = (found[-1][0], edges[i + 1])
        else:
            found.append((edges[i], edges[i + 1]))
    return found


def _draw_reliance(axes: Any, records: Sequence[Record]) -> None:
    axes.plot(
        *series_of(records, "value/reliance"),
        color=BLACK,
        label="harm of removing\nall in-scope weights",
    )
    axes.axhline(0.0, color=GREY, linewidth=0.8)
    axes.set_ylabel("reliance")


def _mark_events(axes: Any, panel: str, events: Sequence[Event]) -> None:
    """Onset to detection as a strip, with the event's number where its series is drawn.

    A bar at the foot is the interval of the onset, a dashed line where it fell back.
    """
    for number, event in enumerate(events, start=1):
        room, _, name = event.series.partition("/")
        home = {"motion": "near_zero", "value": "reliance" if name == "reliance" else "value"}
        height = 0.86 - 0.14 * ((number - 1) % 4)  # events of one step stay apart
        is_home = home.get(room, room) == panel
        axes.axvspan(event.onset_step, event.detected_step, color=ORANGE, alpha=0.15, linewidth=0)
        if event.onset_low < event.onset_high:
            foot = 0.03 * ((number - 1) % 4)
            ends = (event.onset_low, event.onset_high)
            axes.axvspan(*ends, ymin=foot, ymax=foot + 0.02, color=BLACK, linewidth=0)
        axes.axvline(event.onset_step, color=BLACK, linewidth=1.0, linestyle=(0, (1, 2)))
        if event.reverted_step >= 0:
            axes.axvline(event.reverted_step, color=GREY, linewidth=1.0, linestyle=(0, (4, 2)))
        axes.axvline(event.detected_step, color=BLACK, linewidth=1.0)
        if is_home:
            box = {"boxstyle": "circle,pad=0.25", "facecolor": BLACK, "edgecolor": "white"}
            axes.annotate(
                str(number), (event.detected_step, height), xycoords=axes.get_xaxis_transform(),
                ha="center", va="center", color="white", fontsize=8, fontweight="bold", bbox=box,
            )  # fmt: skip


def _wrapped(number: int, event: Event) -> list[str]:
    indent = "     "
    return textwrap.wrap(f"({number}) {event.describe()}", 135, subsequent_indent=indent)


def _caption(last: Record, events: Sequence[Event]) -> list[str]:
    lines = []
    if events:
        line = "Events: dotted where they began by estimate, solid where they were seen"
        if any(event.onset_low < event.onset_high for event in events):
            line += ", a bar over the interval of the beginning"
        if any(event.reverted_step >= 0 for event in events):
            line += ", dashed where half of it was gone again"
        lines.append(line + ".")
    if last.essential_sparsity is not None:
        lines.append(
            "Essential sparsity is zero-shot: the smallest weights are masked, nothing is "
            "retrained."
        )
    if last.decay_clock > 0:
        lines.append(
            "Decay clock: sum of learning rate x weight decay. Weights that get no gradient shrink "
            "as exp(-clock): they become near-zero by decay alone."
        )
    return [piece for line in lines for piece in textwrap.wrap(line, 135)]


def _clock_axis(axes: Any, records: Sequence[Record]) -> None:
    """The decay clock along the top, where there is one."""
    clock = np.array([record.decay_clock for record in records])
    steps = np.array([record.step for record in records])
    known = np.isfinite(clock)
    steps, clock = steps[known], np.maximum.accumulate(clock[known])
    if not clock.size or clock[-1] <= clock[0]:
        return
    size = 10.0 ** math.floor(math.log10(clock[-1] - clock[0]))
    spacing = next(
        s * size for s in (0.2, 0.5, 1.0, 2.0) if (clock[-1] - clock[0]) / (s * size) <= 8
    )
    ticks = np.arange(math.ceil(clock[0] / spacing), math.floor(clock[-1] / spacing) + 1) * spacing
    top = axes.secondary_xaxis("top")
    top.set_xticks(np.interp(ticks, clock, steps), [f"{tick:.3g}" for tick in ticks])
    top.set_xlabel("decay clock", color=GREY)
