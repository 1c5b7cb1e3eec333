"""Tensors by levels: which of them the removed weights come from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.plots.drawing import new_figure, percent, styled
from sparsitywatch.records import Record
from sparsitywatch.shown import shown_name

__all__ = ["heatmap_figure", "short_names"]

#: With more tensors than this a row is a block, the mean over its tensors.
_MAX_ROWS = 96
_ROW_INCHES = 0.17

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
