"""The charts of the page: each figure twice, for a wide page and a narrow one, and its numbers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sparsitywatch.analysis.run import Run
from sparsitywatch.page.data import Cell, Number, count, fraction, number_of, plain
from sparsitywatch.page.svg import COLOURS, Strip, inline_svg
from sparsitywatch.plots.curves import MOST, chosen_curves, curves_figure
from sparsitywatch.plots.drawing import NARROW, WIDE, Paper
from sparsitywatch.plots.heatmap import Map, map_figure, maps_of
from sparsitywatch.plots.steps import (
    Line,
    Panel,
    chosen_snapshots,
    edges_of,
    foreseen,
    panel_figure,
    panels_of,
)
from sparsitywatch.records import Event, Record
from sparsitywatch.series import describe

__all__ = ["Chart", "Key", "Table", "charts_of"]

#: More rows than these are for a program to read, and are all in records.jsonl.
_MAX_ROWS, _MAX_FORECASTS = 120, 60
_MAP_COLUMNS = 8
#: More strips than this do not fit a screen.
_MAX_STRIPS = 250
_BACKGROUND = ("movement", "learning-rate", "decay-clock")


@dataclass(frozen=True)
class Key:
    """A line of a legend, with a colour of the page; "line", "dashed", "band" or "cross"."""

    label: str
    colour: str
    shape: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """Numbers in rows.

    Args:
        caption: what they are, with units.
        header: one text a column, and what the column is called in the records, if anything.
        rows: each as long as the header; the first cell names the row.
    """

    caption: str
    header: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What the page shows of one thing.

    Args:
        key: its anchor.
        title: in a few words.
        text: what is seen and in which unit.
        unit: of the vertical axis, or of the colours.
        keys: the legend.
        wide, narrow: the drawings.
        table: the same in numbers.
        scale: colours of a heatmap as the ends of their range; None for lines.
    """

    key: str
    title: str
    text: str
    unit: str
    keys: Sequence[Key]
    wide: Markup
    narrow: Markup
    table: Table
    scale: tuple[Number, Number] | None = None


def charts_of(run: Run) -> list[tuple[str, list[Chart]]]:
    """Every chart that the run has numbers for, by the title of its section."""
    panels = panels_of(run)
    chosen = chosen_curves(run)
    sections = [
        ("Over the steps", [_of_steps(p, run) for p in panels if p.key not in _BACKGROUND]),
        ("What removing weights does", [_of_curves(chosen)] if chosen else []),
        ("Layer by layer", [_of_map(one) for one in maps_of(run)]),
        ("In the background", [_of_steps(p, run) for p in panels if p.key in _BACKGROUND]),
    ]
    return [(title, charts) for title, charts in sections if charts]


def _chart(
    draw: Callable[[Paper], Figure],
    events: Sequence[Event],
    description: str,
    strips: Sequence[Strip] = (),
    **words: Any,
) -> Chart:
    """A chart with the legend that its figure has; a narrow page is touched, and has no strips."""
    key, title = words["key"], words["title"]
    marks = [f"Event {number}: {e.describe()}" for number, e in enumerate(events, start=1)]
    with warnings.catch_warnings():
        # names may be in any script: the browser has the letters that are not measured here
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = draw(WIDE)
        wide = inline_svg(figure, f"{key}-wide", title, description, strips, marks)
        narrow = inline_svg(draw(NARROW), f"{key}-narrow", title, description, (), marks)
    legend = zip(*figure.axes[0].get_legend_handles_labels(), strict=True)
    keys = [_key(handle, label) for handle, label in legend]
    return Chart(**{"keys": keys, **words}, wide=wide, narrow=narrow)


def _key(handle: Any, label: str) -> Key:
    """The line of a legend that says what an artist of matplotlib is."""
    if not isinstance(handle, Line2D):
        red, green, blue = np.ravel(handle.get_facecolor())[:3]
        return Key(label, COLOURS[to_hex((red, green, blue))], "band")
    shape = "line" if handle.get_linestyle() == "-" else "dashed"
    if handle.get_marker() == "x":
        shape = "cross"
    return Key(label, COLOURS[to_hex(handle.get_color())], shape)


# ------------------------------------------------------------------ over the steps


def _of_steps(panel: Panel, run: Run) -> Chart:
    lines = [line for line in panel.lines if run.has(line.series)]
    is_forecast = panel.key == "forecast"
    return _chart(
        lambda paper: panel_figure(panel, run, paper),
        run.events,
        _outlook(run) if is_forecast else _course(panel, lines, run),
        () if is_forecast else _strips(run, lines),
        key=panel.key,
        title=panel.title,
        text=panel.text,
        unit=panel.unit,
        table=_forecasts(run) if is_forecast else _table(run, panel.title, lines),
    )


def _course(panel: Panel, lines: Sequence[Line], run: Run) -> str:
    """What a screen reader says: the ends of every line."""
    told = []
    for line in lines:
        values = run.column(line.series)
        ends = np.flatnonzero(np.isfinite(values))[[0, -1]]
        first, last = (
            f"{number_of(line.series, values[i])} at step {count(run.steps[i])}" for i in ends
        )
        told.append(f"{line.name}: {first}, {last}")
    return f"Over the optimizer steps, {panel.unit}. {'; '.join(told)}. The table has all numbers."


def _strips(run: Run, lines: Sequence[Line]) -> list[Strip]:
    """What is told of each snapshot, over the part of the chart that is nearest to it."""
    chosen = np.arange(len(run.records))
    if len(chosen) > _MAX_STRIPS:
        chosen = np.unique(np.linspace(0, len(chosen) - 1, _MAX_STRIPS).round().astype(int))
    edges = edges_of(run.steps[chosen])
    if len(chosen) == 1:
        edges = edges + np.array([-0.5, 0.5])
    values = [(line, run.column(line.series)) for line in lines]
    strips = []
    for i, left, right in zip(chosen.tolist(), edges[:-1], edges[1:], strict=True):
        told = [f"step {count(run.steps[i])}"]
        told += [f"{line.name}: {number_of(line.series, column[i])}" for line, column in values]
        told += [] if run.records[i].valid else ["invalid snapshot"]
        strips.append(Strip(float(left), float(right), "\n".join(told)))
    return strips


def _table(run: Run, title: str, lines: Sequence[Line]) -> Table:
    """Every snapshot, or of very many some, with several series."""
    chosen = chosen_snapshots(run, _MAX_ROWS)
    columns = [(line.series, run.column(line.series)) for line in lines]
    caption = f"{title}, by step"
    if len(chosen) < len(run.records):
        caption += (
            f": {len(chosen)} of {len(run.records):,} snapshots, evenly chosen, and those with an "
            "event; records.jsonl has all"
        )
    return Table(
        caption=caption,
        header=[("step", "step"), *((describe(name).label, name) for name, _ in columns)],
        rows=[
            [count(run.steps[i]), *(number_of(name, column[i]) for name, column in columns)]
            for i in chosen
        ],
    )


def _outlook(run: Run) -> str:
    last = foreseen(run)[-1]
    return (
        "What was foreseen one unit of the decay clock ahead, beside what came. The last one is "
        f"{fraction(last.fraction)} at about step {count(round(last.due_step))}. The table "
        "has all numbers."
    )


def _forecasts(run: Run) -> Table:
    chosen = {int(run.steps[i]) for i in chosen_snapshots(run, _MAX_FORECASTS)}
    return Table(
        caption="What was foreseen, and what came",
        header=[
            ("foreseen at step", "step"),
            ("for about step", "due"),
            ("foreseen", "forecast/near_zero_in_1"),
            ("low", "forecast/near_zero_in_1_low"),
            ("high", "forecast/near_zero_in_1_high"),
            ("what came", "came"),
        ],
        rows=[
            [
                count(one.step),
                count(round(one.due_step)),
                *map(fraction, (one.fraction, one.low, one.high, one.came)),
            ]
            for one in foreseen(run)
            if one.step in chosen
        ],
    )


# ------------------------------------------------------------------ curves


def _of_curves(chosen: Sequence[Record]) -> Chart:
    steps = ", ".join(str(count(record.step)) for record in chosen)
    return _chart(
        lambda paper: curves_figure(chosen, paper),
        (),
        f"Harm, in tolerances, by the share of weights removed, at steps {steps}. The table has "
        "all numbers.",
        key="curves",
        title="Sparsity curves",
        text="At a few of the snapshots: how much worse the model gets when more and more of its "
        "smallest weights are removed. 1 is the harm that is tolerated. The share at which a "
        "line first crosses it, the ring, is the essential sparsity of that step; a line that "
        "stays below 1 up to the end is of a model that does not rely on these weights. The "
        f"chart is cut off at {MOST:g} times the tolerance.",
        unit="harm, in tolerances",
        table=_values(chosen),
    )


def _values(chosen: Sequence[Record]) -> Table:
    """Values by the level that was asked for: each snapshot may have asked for others."""
    by_step = {}
    for record in chosen:
        if record.curve is not None:
            levels = record.curve.level or record.curve.sparsity
            by_step[record.step] = dict(zip(levels, record.curve.value, strict=True))
    levels = sorted({level for values in by_step.values() for level in values})
    return Table(
        caption="Value of the model by the share of weights that was asked to be removed (level)",
        header=[
            ("level", "level"),
            *((f"step {count(step)}", f"curve.value@{step}") for step in by_step),
        ],
        rows=[
            [fraction(level), *(plain(values.get(level, math.nan)) for values in by_step.values())]
            for level in levels
        ],
    )


# ------------------------------------------------------------------ heatmaps


def _of_map(one: Map) -> Chart:
    row, t = np.unravel_index(np.nanargmax(one.cells), one.cells.shape)
    chosen, steps = chosen_snapshots(one.run, _MAP_COLUMNS), one.run.steps
    blank = [Key("blank: not measured", "light", "band")] if np.isnan(one.cells).any() else []
    return _chart(
        lambda paper: map_figure(one, paper),
        one.run.events,
        f"A map of {len(one.names)} rows by {len(steps)} snapshots. The largest share is "
        f"{fraction(one.high)}, of {one.names[int(row)]} at step {count(steps[t])}. The table has "
        "numbers.",
        key=one.key,
        title=one.title,
        text=one.text,
        unit="% of the weights of each tensor",
        keys=blank,
        scale=(fraction(0.0), fraction(one.high)),
        table=Table(
            caption=f"{one.title}, at {len(chosen)} of {len(steps):,} snapshots",
            header=[
                ("tensor", "tensor"),
                *((f"step {count(steps[i])}", f"step@{steps[i]}") for i in chosen),
            ],
            rows=[
                [name, *(fraction(float(cells[i])) for i in chosen)]
                for name, cells in zip(one.names, one.cells, strict=True)
            ],
        ),
    )
