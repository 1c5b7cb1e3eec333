"""The picture of where the removed weights come from: tensors by levels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.records import Record
from sparsitywatch.shown import shown_name
from sparsitywatch.sinks.drawing import new_figure, percent, styled

__all__ = ["MAX_ROWS", "by_block", "heatmap_figure", "short_names"]

#: With more tensors than this a row is a block, the mean over its tensors.
MAX_ROWS = 96
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
    names = short_names([layer.name for layer in layers])
    shares = np.array([layer.removed for layer in layers])
    num_weights = np.array([layer.num_weights for layer in layers], dtype=float)
    if len(layers) > MAX_ROWS:
        names, shares = by_block(names, shares, num_weights)
    levels = np.array(record.curve.sparsity)  # [K]; shares are [tensors, K]
    # the ends say nothing: at 0 nothing is gone, at 1 everything
    columns = [k for k in np.argsort(levels) if 0.0 < levels[k] < 1.0]
    return _draw(record.step, names, shares[:, columns], levels[columns])


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


def by_block(
    names: Sequence[tuple[str, str]], shares: np.ndarray, num_weights: np.ndarray
) -> tuple[list[tuple[str, str]], np.ndarray]:
    """Mean share by block, each tensor counting by its number of weights.

    Args:
        names: as ``short_names`` gives them, length N.
        shares: float [N, columns].
        num_weights: float [N].
    """
    keys = [block or rest for block, rest in names]
    blocks = list(dict.fromkeys(keys))
    rows = []
    for block in blocks:
        of_block = np.array([key == block for key in keys])
        rows.append(np.average(shares[of_block], axis=0, weights=num_weights[of_block]))
    return [("", f"{block} (mean)") for block in blocks], np.array(rows)


def _draw(
    step: int, names: Sequence[tuple[str, str]], shares: np.ndarray, levels: np.ndarray
) -> Figure:
    num_rows, num_columns = shares.shape
    figure = new_figure(8.0, max(3.2, 1.5 + _ROW_INCHES * num_rows))
    axes = figure.add_subplot()
    axes.grid(visible=False)
    image = axes.imshow(shares, aspect="auto", cmap="viridis", vmin=0.0, vmax=1.0)
    axes.set_xticks(range(num_columns), [f"{level:.0%}" for level in levels], fontsize=8)
    if num_columns > 16:
        axes.tick_params(axis="x", labelrotation=90)
    axes.set_yticks(range(num_rows), [".".join(filter(None, name)) for name in names], fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _mark_blocks(axes, [block for block, _ in names])
    axes.set_xlabel("sparsity: share of all in-scope weights removed, smallest first")
    axes.set_title(f"Step {step:,}: where the removed weights come from", fontweight="bold", pad=8)
    bar = figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02)
    bar.outline.set_visible(False)
    bar.set_label("share of this tensor's weights removed")
    percent(bar.ax.yaxis)
    return figure


def _mark_blocks(axes: Any, blocks: Sequence[str]) -> None:
    """A white line between the rows of one block and the next."""
    start = 0
    for _, group in groupby(blocks):
        if start:
            axes.axhline(start - 0.5, color="white", linewidth=1.5)
        start += len(list(group))
