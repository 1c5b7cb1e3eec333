"""A whole run in stacked panels over the steps, and several runs side by side."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sparsitywatch.analysis.run import Run
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.plots.drawing import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    new_figure,
    percent,
    styled,
)
from sparsitywatch.plots.steps import (
    Panel,
    draw_interval,
    draw_panel,
    label_steps,
    panels_of,
)
from sparsitywatch.records import Event, Record
from sparsitywatch.series import describe

__all__ = ["comparison_figure", "overview_figure"]

#: Of all panels, those of an overview.
_PANELS = ("value", "near-zero", "dormant", "essential-sparsity", "reliance")


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
    run = Run(records, events)
    run.require_records()
    found = {panel.key: panel for panel in panels_of(run)}
    if loss:
        found.setdefault("value", _LOSS)
    panels = [found[key] for key in _PANELS if key in found]
    captions = [
        line for i, event in enumerate(events) for line in _wrapped(i + 1, event)
    ] + _caption(records[-1], events)
    figure = new_figure(9.5, 2.15 * max(len(panels), 1) + 1.0 + 0.17 * len(captions))
    all_axes = figure.subplots(max(len(panels), 1), 1, sharex=True, squeeze=False)[:, 0]
    homes = [_home_of(event, panels) for event in events]
    for axes, panel in zip(all_axes, panels, strict=False):
        if loss and panel.key == "value":
            axes.plot(*zip(*loss, strict=True), color=SKY, linewidth=0.8, label="training loss")
        inside = [number for number, home in enumerate(homes, start=1) if home is panel]
        draw_panel(axes, panel, run, inside)
        axes.set_ylabel(panel.title)
        _add_legend(axes)
    _clock_axis(all_axes[0], records)
    label_steps(all_axes[-1], run)
    _frame(figure, title, captions)
    return figure


_LOSS = Panel(key="value", title="Loss", lines=(), from_zero=False)


def _home_of(event: Event, panels: Sequence[Panel]) -> Panel | None:
    """The panel that an event gets its number in: of its series, of a kindred one, or the first."""
    rooms = {panel.key: [line.series for line in panel.lines] for panel in panels}
    room = event.series.partition("/")[0]
    exact = (p for p in panels if event.series in rooms[p.key])
    kindred = (p for p in panels if any(name.startswith(f"{room}/") for name in rooms[p.key]))
    return next(exact, None) or next(kindred, None) or next(iter(panels), None)


def _add_legend(axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        wrapped = [textwrap.fill(label, 28) for label in labels]
        axes.legend(handles, wrapped, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _frame(figure: Figure, title: str, captions: Iterable[str]) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=13)
    figure.supxlabel("\n".join(captions), x=0.01, ha="left", fontsize=8.5, color=GREY)


def _wrapped(number: int, event: Event) -> list[str]:
    indent = "     "
    return textwrap.wrap(f"({number}) {event.describe()}", 135, subsequent_indent=indent)


def _caption(last: Record, events: Sequence[Event]) -> list[str]:
    lines = []
    if events:
        line = "Events: dotted where they began by estimate, solid where they were seen"
        if any(event.onset_low < event.onset_high for event in events):
            line += ", a band over the interval of the beginning"
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


# ------------------------------------------------------------------ several runs

_COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY, BLACK)
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1.5, 1.5, 1.5)))
#: Series by panel, with its label.
_COMPARED = {
    "near_zero/initial_0.1": "near zero\n|w| ≤ 0.1 × first rms",
    "motion/dormant": "dormant",
    "essential_sparsity/value": "essential sparsity\n(zero-shot)",
}


@dataclass(frozen=True, kw_only=True)
class _Line:
    """How a run is drawn."""

    name: str
    run: Run
    colour: str
    dashes: Any


@styled
def comparison_figure(
    runs: Mapping[str, tuple[Sequence[Record], Sequence[Event]]],
    *,
    groups: Sequence[str] | None = None,
    weights_only: bool = False,
    title: str = "Runs side by side",
) -> Figure:
    """Runs on top of each other: near-zero, dormant, essential sparsity with its interval.

    A dot is where an event was seen and a tick below it where it began, in the colour of its
    run, in the panel of its series.

    Args:
        runs: records, in the order of the steps, and events, by the name of the run.
        groups: one name a run; runs of a group have one colour, and differ in their dashes.
            By default each run is a group of its own.
        weights_only: leave out what depends on a proxy.
        title: of the whole picture.

    Raises:
        ConfigurationError: there is no run, a run without a record, or not one group a run.
    """
    if not runs or not all(records for records, _ in runs.values()):
        raise ConfigurationError(
            "Expected `runs` with at least one, each with at least one record, got "
            f"{ {name: len(records) for name, (records, _) in runs.items()} }."
        )
    lines = _lines(runs, list(runs) if groups is None else groups)
    panels = [
        name
        for name in _COMPARED
        if not (weights_only and describe(name).needs_proxy)
        and any(line.run.has(name) for line in lines)
    ]
    rows = max(len(panels), 1)
    figure = new_figure(9.5, 2.5 * rows + 0.8)
    all_axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(all_axes, panels, strict=False):
        for line in lines:
            _draw_run(axes, name, line)
        axes.set_ylabel(_COMPARED[name])
        axes.set_ylim(bottom=0.0)
        percent(axes.yaxis)
    all_axes[-1].set_xlabel("optimizer step")
    handles, labels = all_axes[0].get_legend_handles_labels()
    wrapped = [textwrap.fill(label, 28) for label in labels]
    figure.legend(handles, wrapped, loc="outside right upper")
    _frame(figure, title, _comparison_caption(lines, panels))
    return figure


def _lines(
    runs: Mapping[str, tuple[Sequence[Record], Sequence[Event]]], groups: Sequence[str]
) -> list[_Line]:
    if len(groups) != len(runs):
        raise ConfigurationError(
            f"Expected `groups` with one name for each of {len(runs)} runs, got {len(groups)}."
        )
    order = list(dict.fromkeys(groups))
    seen: dict[str, int] = {}
    lines = []
    for (name, (records, events)), group in zip(runs.items(), groups, strict=True):
        place = order.index(group)
        # colours are used up before runs of different groups begin to differ in dashes
        dash = seen.get(group, 0) + place // len(_COLOURS)
        seen[group] = seen.get(group, 0) + 1
        lines.append(
            _Line(
                name=name,
                run=Run(records, events),
                colour=_COLOURS[place % len(_COLOURS)],
                dashes=_DASHES[dash % len(_DASHES)],
            )
        )
    return lines


def _draw_run(axes: Any, name: str, line: _Line) -> None:
    steps, values = line.run.series(name)
    axes.plot(
        steps, values, color=line.colour, linestyle=line.dashes, linewidth=1.4, label=line.name
    )
    if name == "essential_sparsity/value":
        draw_interval(axes, line.run, line.colour)
    finite = np.isfinite(values)
    for event in line.run.events:
        if name not in (event.series, *event.related) or not finite.any():
            continue
        began, seen = (
            np.interp(step, steps[finite], values[finite])
            for step in (event.onset_step, event.detected_step)
        )
        axes.plot(event.onset_step, began, marker="|", markersize=13, color=line.colour)
        axes.plot(event.detected_step, seen, marker="o", markersize=5, color=line.colour)


def _comparison_caption(lines: Sequence[_Line], panels: Sequence[str]) -> list[str]:
    parts = []
    events = [event for line in lines for event in line.run.events]
    if any({event.series, *event.related} & set(panels) for event in events):
        parts.append("Events of these series: a tick where they began, a dot where they were seen.")
    if "essential_sparsity/value" in panels:
        parts.append("Shaded: the interval of essential sparsity; no line where not informative.")
    return parts
