"""One snapshot: the value at rising sparsity, and which tensors the removed weights come from."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from itertools import groupby
from statistics import NormalDist
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from sparsitywatch.analysis.estimate import allowed_harm
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.plots.drawing import (
    BLUE,
    DASHED,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    new_figure,
    percent,
    styled,
)
from sparsitywatch.records import EssentialSparsity, Record, SparsityCurve
from sparsitywatch.shown import shown_name

__all__ = ["curve_figure", "heatmap_figure", "short_names"]


@styled
def curve_figure(record: Record) -> Figure:
    """The sparsity-value curve of one record and what was read off it.

    Raises:
        ConfigurationError: the record has no curve.
    """
    curve, estimate = record.curve, record.essential_sparsity
    if curve is None:
        raise ConfigurationError(
            f"Expected `record` with a curve, got the one of step {record.step} without. "
            "A curve needs a proxy."
        )
    figure = new_figure(8.0, 5.0)
    axes = figure.add_subplot()
    dense = curve.dense
    if math.isfinite(dense):
        axes.axhline(dense, color=GREY, linestyle=DASHED, linewidth=1.2, label="dense model")
        if estimate is not None:
            _draw_tolerance(axes, curve, dense, estimate)
    _limit_values(axes, curve, dense)
    _draw_points(axes, curve, 0.9 if estimate is None else estimate.confidence)
    _draw_controls(axes, record)
    if estimate is not None:
        _draw_estimate(axes, estimate)
    better = "higher" if curve.higher_is_better else "lower"
    count = "" if curve.num_examples is None else f", mean of {curve.num_examples:,} examples"
    pattern = record.provenance.pattern
    order = "smallest first" if pattern == "global" else f"by {shown_name(pattern)}"
    axes.set_xlabel(f"sparsity: share of the in-scope weights removed, {order}")
    axes.set_ylabel(f"value ({better} is better{count})")
    axes.set_xlim(-0.02, 1.02)
    axes.xaxis.set_major_locator(MultipleLocator(0.1))
    percent(axes.xaxis)
    axes.set_title(f"Step {record.step:,}: {_headline(estimate)}", fontweight="bold")
    corner: Any = "lower left" if curve.higher_is_better else "upper left"
    axes.legend(loc=corner, frameon=True, framealpha=0.85, edgecolor="none")
    return figure


def _headline(estimate: EssentialSparsity | None) -> str:
    if estimate is None:
        return "sparsity-value curve (zero-shot)"
    if not estimate.informative or math.isnan(estimate.value):
        return "no informative essential sparsity yet"
    return f"essential sparsity {estimate.value:.1%} (zero-shot)"


def _draw_tolerance(
    axes: Any, curve: SparsityCurve, dense: float, estimate: EssentialSparsity
) -> None:
    width = allowed_harm(dense, estimate.tolerance, estimate.mode)
    limit = dense - width if curve.higher_is_better else dense + width
    size = f"{estimate.tolerance:.3g}"
    if estimate.mode == "relative":
        size = f"{100 * estimate.tolerance:.3g}% of dense"
    label = f"within the tolerance ({size})"
    axes.axhspan(dense, limit, color=GREEN, alpha=0.2, linewidth=0, label=label)


def _limit_values(axes: Any, curve: SparsityCurve, dense: float) -> None:
    """Keep the range of values legible when a masked model breaks down far beyond all others."""
    values = np.array([v for v in curve.value if math.isfinite(v)])
    if not values.size or not math.isfinite(dense):
        return
    harm = (dense - values) if curve.higher_is_better else (values - dense)
    reliance = abs(curve.reliance) if math.isfinite(curve.reliance) else 0.0
    worst = min(harm.max(), max(1.5 * reliance, 3 * float(np.median(harm)), 1e-12))
    span = max(worst - min(harm.min(), 0.0), 1e-3 * abs(dense), 1e-12)
    low, high = min(harm.min(), 0.0) - 0.12 * span, worst + 0.3 * span
    limits = (dense - high, dense - low) if curve.higher_is_better else (dense + low, dense + high)
    axes.set_ylim(*limits)


def _draw_points(axes: Any, curve: SparsityCurve, confidence: float) -> None:
    order = np.argsort(curve.sparsity)
    sparsity, value = np.array(curve.sparsity)[order], np.array(curve.value)[order]
    finite = np.isfinite(value)
    error = None
    label = "value when masked"
    if curve.stderr is not None:
        # NaN errors are of values that are not finite, and not drawn
        error = NormalDist().inv_cdf(0.5 + confidence / 2) * np.array(curve.stderr)[order]
        error = np.nan_to_num(error[finite])
        label += f", {confidence:.0%} interval of the difference to dense"
    axes.errorbar(
        sparsity[finite], value[finite], yerr=error, color=BLUE, ecolor=BLUE, elinewidth=1.2,
        capsize=2.5, marker="o", markersize=4, linewidth=1.6, zorder=3, label=label,
    )  # fmt: skip
    if curve.num_seen is not None:
        seen = np.array(curve.num_seen)[order]
        few = finite & (seen < (curve.num_examples or seen.max()))
        if few.any():
            axes.plot(
                sparsity[few], value[few], color=BLUE, linestyle="none", marker="o", markersize=4,
                markerfacecolor="white", zorder=4,
                label=f"estimated from {seen[few].min():,} examples or more",
            )  # fmt: skip
    low, high = axes.get_ylim()
    beyond = ~finite | (value < low) | (value > high)
    if beyond.any():
        edge = low if curve.higher_is_better else high
        axes.plot(
            sparsity[beyond], np.full(beyond.sum(), edge), color=RED, linestyle="none",
            marker="v" if curve.higher_is_better else "^", clip_on=False, zorder=4,
            label="beyond this chart, or not finite",
        )  # fmt: skip


def _draw_controls(axes: Any, record: Record) -> None:
    """What other patterns cost at the same levels, within the range of the chart."""
    for (name, control), marker in zip(record.controls.items(), "sDvP*X" * 9, strict=False):
        order = np.argsort(control.sparsity)
        sparsity, value = np.array(control.sparsity)[order], np.array(control.value)[order]
        axes.plot(
            sparsity, value, color=PURPLE, linestyle=DASHED, linewidth=1.2, marker=marker,
            markersize=3.5, zorder=2, label=f"control: {shown_name(name)}",
        )  # fmt: skip


def _draw_estimate(axes: Any, estimate: EssentialSparsity) -> None:
    if not estimate.informative or math.isnan(estimate.value):
        reason = f"not informative: {estimate.reason or 'no reason given'}"
        axes.text(
            0.03, 0.5, textwrap.fill(reason, 50), transform=axes.transAxes, va="center", color=RED,
        )  # fmt: skip
        return
    if math.isfinite(estimate.low) and math.isfinite(estimate.high):
        label = f"{estimate.confidence:.0%} interval: {estimate.low:.1%} to {estimate.high:.1%}"
        axes.axvspan(
            estimate.low, estimate.high, color=ORANGE, alpha=0.25, linewidth=0, label=label
        )
    first = f"first crossing: {estimate.value:.1%} = essential sparsity"
    axes.axvline(estimate.value, color=ORANGE, linewidth=2, label=first)
    if math.isfinite(estimate.last_crossing):
        axes.axvline(
            estimate.last_crossing, color=RED, linewidth=1.4, linestyle=(0, (2, 2)),
            label=f"last crossing: {estimate.last_crossing:.1%}",
        )  # fmt: skip


# ------------------------------------------------------------------ tensors by levels

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
