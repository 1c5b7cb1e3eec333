"""Tensors by levels, or by steps: where the removed, the small and the dormant weights are."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sparsitywatch.analysis.run import Run
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.plots.drawing import Paper, new_axes, new_figure, percent, styled
from sparsitywatch.plots.steps import edges_of, label_steps, mark_events
from sparsitywatch.records import LayerShare, Record
from sparsitywatch.series import describe
from sparsitywatch.shown import shown_name

__all__ = ["Map", "heatmap_figure", "map_figure", "maps_of", "on_even_steps", "short_names"]

#: With more tensors than this a row is a block, the mean over its tensors.
_MAX_ROWS = 96
_ROW_INCHES = 0.17
_MIN_ROWS = 5
#: More columns than this are finer than a pixel.
_MAX_COLUMNS = 800
#: Characters of a tensor's name beside the drawing, by paper.
_LONGEST = {"wide": 52, "narrow": 26}

_BLOCK = re.compile(r"\d+")


@styled
def heatmap_figure(record: Record) -> Figure:
    """Which tensors the removed weights come from: share removed, tensor by level.

    Raises:
        ConfigurationError: the record has no curve or no layers.
    """
    layers = [layer for layer in record.layers if layer.removed]
    if record.curve is None or not layers:
        raise ConfigurationError(
            f"Expected `record` with a curve and layers, got the one of step {record.step} "
            "without. A curve needs a proxy."
        )
    names, shares = _rows(
        [layer.name for layer in layers],
        np.array([layer.removed for layer in layers]),
        np.array([layer.num_weights for layer in layers], dtype=float),
    )
    levels = np.array(record.curve.sparsity)  # [K]; shares are [tensors, K]
    # the ends say nothing: at 0 nothing is gone, at 1 everything
    columns = [k for k in np.argsort(levels) if 0.0 < levels[k] < 1.0]
    figure = new_figure(8.0, max(3.2, 1.5 + _ROW_INCHES * len(names)))
    axes = figure.add_subplot()
    labels = [".".join(filter(None, name)) for name in names]
    image = _draw_cells(axes, labels, shares[:, columns], high=1.0, font_size=8)
    axes.set_xticks(range(len(columns)), [f"{level:.0%}" for level in levels[columns]], fontsize=8)
    if len(columns) > 16:
        axes.tick_params(axis="x", labelrotation=90)
    _mark_blocks(axes, [block for block, _ in names])
    axes.set_xlabel("sparsity: share of all in-scope weights removed, smallest first")
    title = f"Step {record.step:,}: where the removed weights come from"
    axes.set_title(title, fontweight="bold", pad=8)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.outline.set_visible(False)
    bar.set_label("share of this tensor's weights removed")
    percent(bar.ax.yaxis)
    return figure


def _draw_cells(
    axes: Any, labels: Sequence[str], cells: np.ndarray, *, high: float, font_size: float,
    **options: Any,
) -> Any:  # fmt: skip
    """Fractions in [0, ``high``] as colours, a row for each label; blank where it is NaN."""
    axes.grid(visible=False)
    image = axes.imshow(
        np.ma.masked_invalid(cells), aspect="auto", cmap="viridis", vmin=0.0, vmax=high, **options
    )
    axes.set_yticks(range(len(labels)), labels, fontsize=font_size)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return image


def _mark_blocks(axes: Any, blocks: Sequence[str]) -> None:
    """A white line between the rows of one block and the next."""
    start = 0
    for _, group in groupby(blocks):
        if start:
            axes.axhline(start - 0.5, color="white", linewidth=1.5)
        start += len(list(group))


# ------------------------------------------------------------------ rows


def _rows(
    tensors: Sequence[str], cells: np.ndarray, num_weights: np.ndarray
) -> tuple[list[tuple[str, str]], np.ndarray]:
    """Names, in two parts, and cells; of very many tensors the means by block.

    Args:
        tensors: names, length N.
        cells: float [N, columns].
        num_weights: by which a tensor counts in its block, float [N].
    """
    names = short_names(tensors)
    if len(names) <= _MAX_ROWS:
        return names, cells
    keys = [block or rest for block, rest in names]
    blocks = list(dict.fromkeys(keys))
    rows = []
    for block in blocks:
        of_block = np.array([key == block for key in keys])
        rows.append(np.average(cells[of_block], axis=0, weights=num_weights[of_block]))
    return [("", f"{block} (mean)") for block in blocks], np.array(rows)


def short_names(names: Sequence[str]) -> list[tuple[str, str]]:
    """(block, rest) for each tensor name, without what all names have in common.

    >>> short_names(["bert.layer.0.query.weight", "bert.layer.1.query.weight"])
    [('0', 'query'), ('1', 'query')]
    """
    parts = [shown_name(name).split(".") for name in names]
    if all(p[-1] == "weight" for p in parts) and all(len(p) > 1 for p in parts):
        parts = [p[:-1] for p in parts]
    while all(len(p) > 1 and p[0] == parts[0][0] for p in parts) and len(parts) > 1:
        if _BLOCK.fullmatch(parts[0][0]):
            break  # all in one block
        parts = [p[1:] for p in parts]
    split = []
    for p in parts:
        block = next((i for i, part in enumerate(p[:-1]) if _BLOCK.fullmatch(part)), None)
        before = [] if block is None else p[: block + 1]
        split.append((".".join(before), ".".join(p[len(before) :])))
    return split


# ------------------------------------------------------------------ over the steps


@dataclass(frozen=True, kw_only=True)
class Map:
    """A heatmap of tensors by snapshots: its words, its rows and a cell for each snapshot.

    ``run`` has the snapshots that could have been measured; ``cells`` is float [rows, T].
    """

    key: str
    title: str
    text: str
    run: Run
    names: Sequence[str]
    cells: np.ndarray

    @property
    def high(self) -> float:
        """The largest share, at which the colours end."""
        return float(np.nanmax(self.cells)) or 1.0


def maps_of(run: Run) -> list[Map]:
    """Every heatmap that the run has numbers for."""
    rule = next((r for x in run.records for layer in x.layers for r in layer.near_zero), "")
    found = [
        _map(
            run,
            "near-zero-by-layer",
            "Near-zero weights, layer by layer",
            "The share of each tensor's own weights that are near zero "
            f"({describe(f'near_zero/{rule}').short_label}): which layers empty out, and when.",
            lambda _, layer: layer.near_zero.get(rule, math.nan),
        ),
        _map(
            run,
            "dormant-by-layer",
            "Dormant weights, layer by layer",
            "The share of each tensor's own sampled weights that only weight decay has moved "
            "since the snapshot before. A layer with many of them has dead units.",
            lambda _, layer: layer.dormant,
        ),
        _removed_map(run),
    ]
    return [one for one in found if one is not None and np.isfinite(one.cells).any()]


def _removed_map(run: Run) -> Map | None:
    """Of the levels that most snapshots asked for the one nearest to a half."""
    evaluated = [record for record in run.records if not record.not_evaluated]
    asked: dict[float, int] = {}
    for record in evaluated:
        if record.curve is not None and any(layer.removed for layer in record.layers):
            for level in record.curve.level or ():
                if 0.0 < level < 1.0:
                    asked[level] = asked.get(level, 0) + 1
    if not asked:
        return None
    candidates = [level for level, number in asked.items() if number == max(asked.values())]
    level = min(candidates, key=lambda level: (abs(level - 0.5), level))

    def removed(record: Record, layer: LayerShare) -> float:
        if record.curve is None or not layer.removed:
            return math.nan
        levels = record.curve.level or record.curve.sparsity
        return dict(zip(levels, layer.removed, strict=True)).get(level, math.nan)

    share = f"{100 * level:.3g}\N{NO-BREAK SPACE}%"
    return _map(
        Run(records=evaluated, events=run.events),
        "removed-by-layer",
        f"Where the smallest {share} are",
        f"If the smallest {share} of all in-scope weights are removed: the share that each tensor "
        "loses. A tensor that loses more than the others holds more of the small weights.",
        removed,
    )


def _map(
    run: Run, key: str, title: str, text: str, cell: Callable[[Record, LayerShare], float]
) -> Map | None:
    tensors = run.tensors
    if not tensors:
        return None
    row = {name: i for i, name in enumerate(tensors)}
    cells = np.full((len(tensors), len(run.records)), math.nan)
    num_weights = np.zeros(len(tensors))
    for t, record in enumerate(run.records):
        for layer in record.layers:
            cells[row[layer.name], t] = cell(record, layer)
            num_weights[row[layer.name]] = layer.num_weights
    names, cells = _rows(tensors, cells, num_weights)
    if len(names) < len(tensors):
        text += f" Of {len(tensors)} tensors a row shows a block, the mean over its weights."
    labels = [".".join(filter(None, name)) for name in names]
    return Map(key=key, title=title, text=text, run=run, names=labels, cells=cells)


@styled
def map_figure(one: Map, paper: Paper) -> Figure:
    """A heatmap over the steps; what its colours mean is for the page to say."""
    figure, axes = new_axes(paper, _ROW_INCHES * max(len(one.names), _MIN_ROWS))
    steps, columns = one.run.steps, on_even_steps(one.run.steps, one.cells)
    # the first and the last column stand around their snapshots
    half = (steps[-1] - steps[0]) / max(columns.shape[1] - 1, 1) / 2 or 0.5
    ends = (steps[0] - half, steps[-1] + half)
    size = 8.0 if paper.name == "wide" else 6.5
    labels = [_shortened(name, _LONGEST[paper.name]) for name in one.names]
    extent = (*ends, len(labels) - 0.5, -0.5)
    _draw_cells(
        axes, labels, columns, high=one.high, font_size=size, interpolation="none", extent=extent
    )
    mark_events(axes, one.run.events, fill=False)
    label_steps(axes, one.run, paper)
    axes.set_xlim(*ends)
    # room for the longest name at the left; half the width at most
    box, whole = axes.get_position(), figure.get_figwidth()
    inches = min(0.56 * size * max(map(len, labels)) / 72.0 + 0.12, whole / 2)
    left = max(box.x0, inches / whole)
    axes.set_position((left, box.y0, box.x1 - left, box.height))
    return figure


def on_even_steps(steps: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Columns of equal width: each is the snapshot that is nearest to its middle.

    Args:
        steps: of the snapshots, rising, int [T].
        cells: float [rows, T].

    Returns:
        float [rows, columns] from the first snapshot to the last; the snapshots themselves where
        they are at even distances.
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


def _shortened(name: str, longest: int) -> str:
    """A name without its middle if it is too long; the table has it whole.

    >>> _shortened("encoder.layers.0.attention.query", 16)
    'encod…tion.query'
    """
    if len(name) <= longest:
        return name
    head = longest // 3
    return f"{name[:head]}…{name[len(name) - longest + head + 1 :]}"
