"""The charts of the page: each figure twice, for a wide page and a narrow one, and its numbers."""

from __future__ import annotations

import io
import math
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sparsitywatch.analysis.run import Run
from sparsitywatch.page.tables import Number, Table, count, fraction, number_of, plain, printable
from sparsitywatch.plots.curves import MOST, chosen_curves, curves_figure
from sparsitywatch.plots.drawing import COLOURS, NARROW, WIDE, Paper, styled
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

__all__ = ["Chart", "Key", "charts_of"]

#: More rows than these are for a program to read, and are all in records.jsonl.
_MAX_ROWS, _MAX_FORECASTS = 120, 60
_MAP_COLUMNS = 8
#: More strips than this do not fit a screen.
_MAX_STRIPS = 250
#: Variables of the page, by the colours of the drawings.
_NAMES = {colour: name for name, colour in COLOURS.items()}
_BACKGROUND = ("movement", "learning-rate", "decay-clock")


@dataclass(frozen=True)
class Key:
    """A line of a legend, with a colour of the page; "line", "dashed", "band" or "cross"."""

    label: str
    colour: str
    shape: str


@dataclass(frozen=True)
class _Strip:
    """A text that is shown while the pointer is between two values of the horizontal axis."""

    left: float
    right: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What the page shows of one thing: its anchor and words, its drawings and their numbers.

    ``unit`` is that of the vertical axis, or of the colours, which ``scale`` gives the ends of.
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
    strips: Sequence[_Strip] = (),
    **words: Any,
) -> Chart:
    """A chart with the legend that its figure has; a narrow page is touched, and has no strips."""
    key, title = words["key"], words["title"]
    marks = [f"Event {number}: {e.describe()}" for number, e in enumerate(events, start=1)]
    with warnings.catch_warnings():
        # names may be in any script: the browser has the letters that are not measured here
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = draw(WIDE)
        wide = _inline_svg(figure, f"{key}-wide", title, description, strips, marks)
        narrow = _inline_svg(draw(NARROW), f"{key}-narrow", title, description, (), marks)
    legend = zip(*figure.axes[0].get_legend_handles_labels(), strict=True)
    keys = [_key(handle, label) for handle, label in legend]
    return Chart(**{"keys": keys, **words}, wide=wide, narrow=narrow)


def _key(handle: Any, label: str) -> Key:
    """The line of a legend that says what an artist of matplotlib is."""
    if not isinstance(handle, Line2D):
        red, green, blue = np.ravel(handle.get_facecolor())[:3]
        return Key(label, _NAMES[to_hex((red, green, blue))], "band")
    shape = "line" if handle.get_linestyle() == "-" else "dashed"
    if handle.get_marker() == "x":
        shape = "cross"
    return Key(label, _NAMES[to_hex(handle.get_color())], shape)


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
    parts = []
    for line in lines:
        values = run.column(line.series)
        ends = np.flatnonzero(np.isfinite(values))[[0, -1]]
        first, last = (
            f"{number_of(line.series, values[i])} at step {count(run.steps[i])}" for i in ends
        )
        parts.append(f"{line.name}: {first}, {last}")
    return f"Over the optimizer steps, {panel.unit}. {'; '.join(parts)}. The table has all numbers."


def _strips(run: Run, lines: Sequence[Line]) -> list[_Strip]:
    """What is shown of each snapshot, over the part of the chart that is nearest to it."""
    chosen = np.arange(len(run.records))
    if len(chosen) > _MAX_STRIPS:
        chosen = np.unique(np.linspace(0, len(chosen) - 1, _MAX_STRIPS).round().astype(int))
    edges = edges_of(run.steps[chosen])
    if len(chosen) == 1:
        edges = edges + np.array([-0.5, 0.5])
    values = [(line, run.column(line.series)) for line in lines]
    strips = []
    for i, left, right in zip(chosen.tolist(), edges[:-1], edges[1:], strict=True):
        parts = [f"step {count(run.steps[i])}"]
        parts += [f"{line.name}: {number_of(line.series, column[i])}" for line, column in values]
        parts += [] if run.records[i].valid else ["invalid snapshot"]
        strips.append(_Strip(float(left), float(right), "\n".join(parts)))
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


# ------------------------------------------------------------------ a figure inside the page

_SVG, _XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_COLOUR = re.compile("|".join(COLOURS.values()))
_FONT = re.compile(r"(font: [^;'\"]*?\d+(?:\.\d+)?px)[^;]*")
_REFERENCE = re.compile(r"url\(#([^)]*)\)")


@styled
def _inline_svg(
    figure: Figure,
    key: str,
    title: str,
    description: str,
    strips: Sequence[_Strip] = (),
    marks: Sequence[str] = (),
) -> Markup:
    """A figure as an SVG element of a page.

    Args:
        figure: drawn in the style of the page, with one set of axes.
        key: starts every id in it; no other drawing of the page may have it.
        title, description: what a screen reader says.
        strips: what is shown while the pointer is over a part of the axes.
        marks: what is shown of each event that is marked, in their order.
    """
    buffer = io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": key}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    root = ET.fromstring(buffer.getvalue())  # noqa: S314 our own drawing
    _drop(root)
    for element in root.iter():
        _adapt(element, key)
    _name(root, key, title, description)
    _add_strips(root, figure, strips)
    _link_marks(root, key, marks)
    ET.register_namespace("", _SVG)
    ET.register_namespace("xlink", _XLINK)
    return Markup(ET.tostring(root, encoding="unicode"))  # noqa: S704 serialised, so escaped


def _drop(root: ET.Element) -> None:
    """Take out what belongs to a file, and a style sheet that would rule the whole page."""
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)


def _adapt(element: ET.Element, key: str) -> None:
    for name, value in list(element.attrib.items()):
        if name == "id":
            element.set(name, f"{key}-{value}")
        elif name == f"{{{_XLINK}}}href" and value.startswith("#"):
            element.set(name, f"#{key}-{value[1:]}")
        elif name in ("style", "clip-path", "fill", "stroke"):
            value = _REFERENCE.sub(rf"url(#{key}-\1)", value)
            value = _COLOUR.sub(lambda match: f"var(--{_NAMES[match[0]]})", value)
            element.set(name, _FONT.sub(r"\1 var(--font)", value))


def _name(root: ET.Element, key: str, title: str, description: str) -> None:
    for attribute in ("width", "height"):
        root.attrib.pop(attribute, None)  # the page says how wide
    root.set("role", "img")
    root.set("aria-labelledby", f"{key}-title {key}-desc")
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ET.Element(f"{{{_SVG}}}{tag}", {"id": f"{key}-{tag}"})
        element.text = printable(text)
        root.insert(position, element)


def _add_strips(root: ET.Element, figure: Figure, strips: Sequence[_Strip]) -> None:
    if not strips:
        return
    axes: Any = figure.axes[0]
    box = axes.get_window_extent()
    height = figure.get_figheight() * 72.0
    to_points = 72.0 / figure.dpi
    group = ET.Element(f"{{{_SVG}}}g", {"class": "strips"})
    for strip in strips:
        ends = axes.transData.transform([(strip.left, 0.0), (strip.right, 0.0)])[:, 0] * to_points
        place = {
            "x": ends[0],
            "y": height - box.y1 * to_points,
            "width": ends[1] - ends[0],
            "height": box.height * to_points,
        }
        attributes = {name: f"{x:.2f}" for name, x in place.items()}
        rect = ET.SubElement(group, f"{{{_SVG}}}rect", attributes)
        ET.SubElement(rect, f"{{{_SVG}}}title").text = printable(strip.text)
    root.append(group)


def _link_marks(root: ET.Element, key: str, marks: Sequence[str]) -> None:
    """Each mark of an event becomes a link to it, above the strips."""
    parents = {child: parent for parent in root.iter() for child in parent}
    found = {
        element.get("id", ""): element
        for element in root.iter(f"{{{_SVG}}}g")
        if element.get("id", "").startswith(f"{key}-mark-")
    }
    for number, text in enumerate(marks, start=1):
        mark = found.get(f"{key}-mark-{number}")
        if mark is None:
            continue
        parents[mark].remove(mark)
        # for the pointer: a picture has nothing inside for who goes from link to link
        target = {f"{{{_XLINK}}}href": f"#event-{number}", "tabindex": "-1"}
        link = ET.SubElement(root, f"{{{_SVG}}}a", target)
        ET.SubElement(link, f"{{{_SVG}}}title").text = printable(text)
        link.append(mark)
