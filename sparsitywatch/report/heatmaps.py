"""Heatmaps of tensors by steps: where the small weights are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.figure import Figure

from sparsitywatch.records import LayerShare, Record
from sparsitywatch.report.chart import Chart, Key, Table, on_both_papers
from sparsitywatch.report.marks import edges_of, event_marks, mark_events, step_axis
from sparsitywatch.report.numbers import Number, count, fraction, printable
from sparsitywatch.report.runlog import RunLog
from sparsitywatch.report.step_table import chosen_looks
from sparsitywatch.report.svg import charted
from sparsitywatch.report.theme import Paper, new_axes
from sparsitywatch.series import describe
from sparsitywatch.sinks.heatmap import MAX_ROWS, by_block, short_names

__all__ = ["heatmaps", "on_even_steps"]

#: More columns than this are finer than a pixel.
_MAX_COLUMNS = 800
_TABLE_COLUMNS = 8
_ROW_INCHES = 0.16
#: Characters of a tensor's name beside the drawing, by paper.
_LONGEST = {"wide": 52, "narrow": 26}
_MIN_ROWS = 5


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """One heatmap: its words, what a cell is, and whether an evaluation tells it."""

    key: str
    title: str
    text: str
    cell: Callable[[Record, LayerShare], float]
    needs_curve: bool = False


def heatmaps(run: RunLog) -> list[Chart]:
    """Every heatmap that the run has numbers for."""
    evaluated = [record for record in run.records if not record.not_evaluated]
    found = []
    for plan in _plans(run):
        seen = replace(run, records=evaluated) if plan.needs_curve else run
        names, cells = _cells(seen, plan)
        if cells.size and np.isfinite(cells).any():
            found.append(_chart(seen, plan, names, cells))
    return found


def _plans(run: RunLog) -> list[_Plan]:
    level = _common_level(run)
    rule = next((r for x in run.records for layer in x.layers for r in layer.near_zero), "")
    plans = [
        _Plan(
            key="near-zero-by-layer",
            title="Near-zero weights, layer by layer",
            text="The share of each tensor's own weights that are near zero "
            f"({describe(f'near_zero/{rule}').short_label}): which layers empty "
            "out, and when.",
            cell=lambda _, layer: layer.near_zero.get(rule, math.nan),
        ),
        _Plan(
            key="dormant-by-layer",
            title="Dormant weights, layer by layer",
            text="The share of each tensor's own sampled weights that only weight decay has moved "
            "since the look before. A layer with many of them has dead units.",
            cell=lambda _, layer: layer.dormant,
        ),
    ]
    if level is not None:
        plans.append(
            _Plan(
                key="removed-by-layer",
                title=f"Where the smallest {fraction(level)} are",
                text=f"If the smallest {fraction(level)} of all in-scope weights are removed: the "
                "share that each tensor loses. A tensor that loses more than the others holds more "
                "of the small weights.",
                cell=lambda record, layer: _removed_at(record, layer, level),
                needs_curve=True,
            )
        )
    return plans


def _common_level(run: RunLog) -> float | None:
    """Of the levels that most looks asked for the one nearest to a half."""
    asked: dict[float, int] = {}
    for record in run.records:
        if record.curve is not None and any(layer.removed for layer in record.layers):
            for level in record.curve.level or ():
                if 0.0 < level < 1.0:
                    asked[level] = asked.get(level, 0) + 1
    most = max(asked.values(), default=0)
    candidates = [level for level, number in asked.items() if number == most]
    return min(candidates, key=lambda level: (abs(level - 0.5), level), default=None)


def _removed_at(record: Record, layer: LayerShare, level: float) -> float:
    if record.curve is None or not layer.removed:
        return math.nan
    levels = record.curve.level or record.curve.sparsity
    return dict(zip(levels, layer.removed, strict=True)).get(level, math.nan)


def _cells(run: RunLog, plan: _Plan) -> tuple[list[str], np.ndarray]:
    """Names of the rows, and a cell for each look: float [rows, T]."""
    tensors = run.tensors
    row = {name: i for i, name in enumerate(tensors)}
    cells = np.full((len(tensors), len(run.records)), math.nan)
    sizes = np.zeros(len(tensors))
    for t, record in enumerate(run.records):
        for layer in record.layers:
            cells[row[layer.name], t] = plan.cell(record, layer)
            sizes[row[layer.name]] = layer.num_weights
    names = short_names(tensors) if tensors else []
    if len(tensors) > MAX_ROWS:
        names, cells = by_block(names, cells, sizes)
    return [".".join(filter(None, name)) for name in names], cells


def on_even_steps(steps: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Columns of equal width: each is the look that is nearest to its middle.

    Args:
        steps: of the looks, rising, int [T].
        cells: float [rows, T].

    Returns:
        float [rows, columns] from the first look to the last; the looks themselves where they
        are at even distances.
    """
    if len(steps) < 2:
        return cells
    distances = np.diff(steps)
    if (distances == distances[0]).all():
        return cells
    number = min(_MAX_COLUMNS, round((steps[-1] - steps[0]) / distances.min()) + 1)
    middles = np.linspace(steps[0], steps[-1], number)
    nearest = np.searchsorted(edges_of(steps)[1:-1], middles, side="right")
    return cells[:, nearest]


def _chart(run: RunLog, plan: _Plan, names: Sequence[str], cells: np.ndarray) -> Chart:
    high = float(np.nanmax(cells)) or 1.0
    row, look = np.unravel_index(np.nanargmax(cells), cells.shape)
    wide, narrow = on_both_papers(
        lambda paper: _draw(run, names, cells, high, paper),
        plan.key,
        plan.title,
        f"A map of {len(names)} rows by {len(run.records)} looks. The largest share is "
        f"{fraction(high)}, of {names[int(row)]} at step {count(run.steps[look])}. The table has "
        "numbers.",
        (),
        event_marks(list(run.events)),
    )
    text = plan.text
    if len(run.tensors) > len(names):
        text += f" Of {len(run.tensors)} tensors a row shows a block, the mean over its weights."
    return Chart(
        key=plan.key,
        title=plan.title,
        text=text,
        unit="% of the weights of each tensor",
        keys=(Key(label="blank: not measured", colour="light", shape="band"),)
        if np.isnan(cells).any()
        else (),
        wide=wide,
        narrow=narrow,
        table=_table(run, plan, names, cells),
        scale=(fraction(0.0), fraction(high)),
    )


@charted
def _draw(
    run: RunLog, names: Sequence[str], cells: np.ndarray, high: float, paper: Paper
) -> Figure:
    figure, axes = new_axes(paper, _ROW_INCHES * max(len(names), _MIN_ROWS))
    axes.grid(visible=False)
    steps, columns = run.steps, on_even_steps(run.steps, cells)
    # the first and the last column stand around their looks
    half = (steps[-1] - steps[0]) / max(columns.shape[1] - 1, 1) / 2 or 0.5
    ends = (steps[0] - half, steps[-1] + half)
    axes.imshow(
        np.ma.masked_invalid(columns), aspect="auto", cmap="viridis", vmin=0.0, vmax=high,
        interpolation="none", extent=(*ends, len(names) - 0.5, -0.5),
    )  # fmt: skip
    mark_events(axes, run, fill=False)
    step_axis(axes, run, paper)
    axes.set_xlim(*ends)
    size = 8.0 if paper.name == "wide" else 6.5
    names = [_shortened(printable(name), _LONGEST[paper.name]) for name in names]
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _widen_margin(figure, axes, [len(name) for name in names], size)
    return figure


def _shortened(name: str, longest: int) -> str:
    """A name without its middle if it is too long; the table has it whole.

    >>> _shortened("encoder.layers.0.attention.query", 16)
    'encod…tion.query'
    """
    if len(name) <= longest:
        return name
    head = longest // 3
    return f"{name[:head]}…{name[len(name) - longest + head + 1 :]}"


def _widen_margin(figure: Figure, axes: object, lengths: Sequence[int], size: float) -> None:
    """Room for the longest name at the left; half the width at most."""
    box = axes.get_position()  # type: ignore[attr-defined]
    inches = min(0.56 * size * max(lengths) / 72.0 + 0.12, figure.get_figwidth() / 2)
    left = max(box.x0, inches / figure.get_figwidth())
    axes.set_position((left, box.y0, box.x1 - left, box.height))  # type: ignore[attr-defined]


def _table(run: RunLog, plan: _Plan, names: Sequence[str], cells: np.ndarray) -> Table:
    looks = chosen_looks(run, _TABLE_COLUMNS)
    rows: list[Sequence[Number | str]] = [
        [name, *(fraction(float(cells[i, t])) for t in looks)] for i, name in enumerate(names)
    ]
    header = [
        ("tensor", "tensor"),
        *((f"step {count(run.steps[t])}", f"step@{run.steps[t]}") for t in looks),
    ]
    caption = f"{plan.title}, at {len(looks)} of {len(run.records):,} looks"
    return Table(caption=caption, header=header, rows=rows)
