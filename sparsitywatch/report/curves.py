"""Sparsity curves of a few steps in one chart, in units of what is tolerated."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MultipleLocator

from sparsitywatch.analysis.estimate import allowed_harm
from sparsitywatch.records import Record
from sparsitywatch.report.chart import Chart, Key, Table, on_both_papers
from sparsitywatch.report.numbers import Number, count, fraction, plain
from sparsitywatch.report.runlog import RunLog
from sparsitywatch.report.svg import charted
from sparsitywatch.report.theme import VARIABLES, Paper, new_axes, value_axis
from sparsitywatch.sinks.drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY

__all__ = ["chosen_curves", "curve_chart"]

#: In the order of the steps, cold to warm.
_COLOURS = (BLUE, SKY, GREEN, ORANGE, RED, PURPLE)
#: The chart ends here; a model that loses its weights gets worse by hundreds of tolerances.
_MOST = 5.0


def curve_chart(run: RunLog) -> Chart | None:
    """The chart; None if the run has no curve that can be drawn."""
    chosen = chosen_curves(run)
    if not chosen:
        return None
    title = "Sparsity curves"
    steps = ", ".join(str(count(record.step)) for record in chosen)
    wide, narrow = on_both_papers(
        lambda paper: _draw(chosen, paper),
        "curves",
        title,
        f"Harm, in tolerances, by the share of weights removed, at steps {steps}. The table has "
        "all numbers.",
    )
    keys = [
        Key(label=_label(record), colour=VARIABLES[colour], shape=_shape(record))
        for record, colour in zip(chosen, _COLOURS, strict=False)
    ]
    return Chart(
        key="curves",
        title=title,
        text="At a few of the looks: how much worse the model gets when more and more of its "
        "smallest weights are removed. 1 is the harm that is tolerated. The share at which a "
        "line first crosses it, the ring, is the essential sparsity of that step; a line that "
        "stays below 1 up to the end is of a model that does not rely on these weights. The "
        f"chart is cut off at {_MOST:g} times the tolerance.",
        unit="harm, in tolerances",
        keys=[*keys, Key(label="what is tolerated", colour="grey", shape="dashed")],
        wide=wide,
        narrow=narrow,
        table=_table(chosen),
    )


def chosen_curves(run: RunLog) -> list[Record]:
    """The first look with a curve and the last, those where events were seen, some between."""
    drawable = [r for r in run.records if r.curve is not None and not np.isnan(_harm(r)).all()]
    if len(drawable) <= len(_COLOURS):
        return drawable
    seen = {event.detected_step for event in run.events}
    marked = [i for i, record in enumerate(drawable) if record.step in seen]
    chosen = {0, len(drawable) - 1, *marked[: len(_COLOURS) - 2]}
    while len(chosen) < len(_COLOURS):  # the middle of the widest gap
        ordered = sorted(chosen)
        widths = np.diff(ordered)
        chosen.add(ordered[int(widths.argmax())] + int(widths.max()) // 2)
    return [drawable[i] for i in sorted(chosen)]


def _harm(record: Record) -> np.ndarray:
    """How much worse than dense, in units of what is tolerated: float [K], in the curve's order.

    NaN where the value is not finite, and everywhere without a finite dense value.
    """
    curve = record.curve
    if curve is None:
        return np.array([math.nan])
    values = np.array(curve.value)
    dense = dict(zip(curve.sparsity, curve.value, strict=True)).get(0.0, math.nan)
    allowed = allowed_harm(dense, record.provenance.tolerance, record.provenance.tolerance_mode)
    if not allowed > 0.0:
        return np.full(len(values), math.nan)
    harm = (dense - values) if curve.higher_is_better else (values - dense)
    return np.where(np.isfinite(values), harm / allowed, math.nan)


@charted
def _draw(chosen: Sequence[Record], paper: Paper) -> Figure:
    figure, axes = new_axes(paper, 3.0)
    axes.axhline(1.0, color=GREY, linestyle=(0, (4, 2)), linewidth=1.2)
    for record, colour in zip(chosen, _COLOURS, strict=False):
        if record.curve is None:
            continue
        sparsity, harm = np.array(record.curve.sparsity), _harm(record)
        order = np.argsort(sparsity, kind="stable")
        dashes = "-" if _shape(record) == "line" else (0, (4, 2))
        axes.plot(
            sparsity[order], harm[order], color=colour, linestyle=dashes, marker="o", markersize=3,
            gid=f"curve-{record.step}",
        )  # fmt: skip
        if _shape(record) == "line" and record.essential_sparsity is not None:
            axes.plot(
                record.essential_sparsity.value, 1.0, marker="o", markersize=9, color=colour,
                markerfacecolor="none", markeredgewidth=1.6, zorder=4, gid=f"ring-{record.step}",
            )  # fmt: skip
    axes.set_xlim(-0.02, 1.02)
    lowest = min(float(np.nanmin(_harm(record))) for record in chosen)
    axes.set_ylim(max(min(lowest, 0.0) - 0.3, -_MOST), _MOST)
    axes.xaxis.set_major_locator(MultipleLocator(0.1 if paper.name == "wide" else 0.25))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.0f} %"))
    axes.set_xlabel("sparsity: share of the weights removed", fontsize=paper.font_size)
    value_axis(axes, "plain")
    axes.yaxis.set_major_locator(MultipleLocator(1.0))
    return figure


def _shape(record: Record) -> str:
    estimate = record.essential_sparsity
    is_informative = estimate is not None and estimate.informative and record.valid
    return "line" if is_informative else "dashed"


def _label(record: Record) -> str:
    name = f"step {count(record.step)}"
    estimate = record.essential_sparsity
    if not record.valid:
        return f"{name}: invalid"
    if estimate is None:
        return name
    told = str(fraction(estimate.value)) if estimate.informative else "not informative"
    return f"{name}: {told}"


def _table(chosen: Sequence[Record]) -> Table:
    """Values by the level that was asked for: each look may have asked for others."""
    by_step = {}
    for record in chosen:
        if record.curve is not None:
            levels = record.curve.level or record.curve.sparsity
            by_step[record.step] = dict(zip(levels, record.curve.value, strict=True))
    levels = sorted({level for values in by_step.values() for level in values})
    rows: list[Sequence[Number | str]] = [
        [fraction(level), *(plain(values.get(level, math.nan)) for values in by_step.values())]
        for level in levels
    ]
    header = [
        ("level", "level"),
        *((f"step {count(step)}", f"curve.value@{step}") for step in by_step),
    ]
    caption = "Value of the model by the share of weights that was asked to be removed (level)"
    return Table(caption=caption, header=header, rows=rows)
