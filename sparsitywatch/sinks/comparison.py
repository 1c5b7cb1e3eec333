"""The picture of several runs, one panel for each thing that is compared."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    ORANGE,
    PURPLE,
    RED,
    SKY,
    new_figure,
    percent,
    styled,
)
from sparsitywatch.sinks.overview import series_of

__all__ = ["comparison_figure"]

_COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY, BLACK)
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1.5, 1.5, 1.5)))
#: Series by panel, with its label.
_PANELS = {
    "near_zero/initial_0.1": "near zero\n|w| ≤ 0.1 × first rms",
    "motion/dormant": "dormant",
    "essential_sparsity/value": "essential sparsity\n(zero-shot)",
}


@dataclass(frozen=True, kw_only=True)
class _Line:
    """How a run is drawn."""

    name: str
    records: Sequence[Record]
    events: Sequence[Event]
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
        for name in _PANELS
        if not (weights_only and describe(name).needs_proxy)
        and any(name in record.series() for line in lines for record in line.records)
    ]
    rows = max(len(panels), 1)
    figure = new_figure(9.5, 2.5 * rows + 0.8)
    all_axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(all_axes, panels, strict=False):
        for line in lines:
            _draw(axes, name, line)
        axes.set_ylabel(_PANELS[name])
        axes.set_ylim(bottom=0.0)
        percent(axes.yaxis, None)
    all_axes[-1].set_xlabel("optimizer step")
    handles, labels = all_axes[0].get_legend_handles_labels()
    wrapped = ["\n".join(textwrap.wrap(label, 28)) for label in labels]
    figure.legend(handles, wrapped, loc="outside right upper")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=13)
    figure.supxlabel(_caption(lines, panels), x=0.01, ha="left", fontsize=8.5, color=GREY)
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
                records=records,
                events=events,
                colour=_COLOURS[place % len(_COLOURS)],
                dashes=_DASHES[dash % len(_DASHES)],
            )
        )
    return lines


def _draw(axes: Any, name: str, line: _Line) -> None:
    steps, values = series_of(line.records, name)
    axes.plot(
        steps, values, color=line.colour, linestyle=line.dashes, linewidth=1.4, label=line.name
    )
    if name == "essential_sparsity/value":
        low, high = (series_of(line.records, f"essential_sparsity/{x}")[1] for x in ("low", "high"))
        axes.fill_between(steps, low, high, color=line.colour, alpha=0.12, linewidth=0)
    finite = np.isfinite(values)
    for event in line.events:
        if name not in (event.series, *event.related) or not finite.any():
            continue
        began, seen = (
            np.interp(step, steps[finite], values[finite])
            for step in (event.onset_step, event.detected_step)
        )
        axes.plot(event.onset_step, began, marker="|", markersize=13, color=line.colour)
        axes.plot(event.detected_step, seen, marker="o", markersize=5, color=line.colour)


def _caption(lines: Sequence[_Line], panels: Sequence[str]) -> str:
    told = []
    events = [event for line in lines for event in line.events]
    if any({event.series, *event.related} & set(panels) for event in events):
        told.append("Events of these series: a tick where they began, a dot where they were seen.")
    if "essential_sparsity/value" in panels:
        told.append("Shaded: the interval of essential sparsity; no line where not informative.")
    return "\n".join(told)
