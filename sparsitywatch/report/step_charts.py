"""The charts over the optimizer steps, as they are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from sparsitywatch.records import Record
from sparsitywatch.report.chart import Chart, Key, on_both_papers
from sparsitywatch.report.marks import (
    event_marks,
    mark_events,
    mark_invalid,
    step_axis,
    strips_of,
)
from sparsitywatch.report.numbers import count, number_of
from sparsitywatch.report.runlog import RunLog
from sparsitywatch.report.step_plans import Line, Plan, plans_for
from sparsitywatch.report.step_table import step_table
from sparsitywatch.report.svg import charted
from sparsitywatch.report.theme import Paper, new_axes, value_axis

__all__ = ["step_charts"]

#: With more looks than this only lines are drawn.
_FEW_LOOKS = 40


def step_charts(run: RunLog) -> list[Chart]:
    """Every chart that the run has numbers for, in the order of the page."""
    return [_chart(plan, run) for plan in plans_for(run)]


def _chart(plan: Plan, run: RunLog) -> Chart:
    lines = [line for line in plan.lines if run.has(line.series)]
    wide, narrow = on_both_papers(
        lambda paper: _draw(plan, run, paper),
        plan.key,
        plan.title,
        _description(plan, lines, run),
        strips_of(run, [_told(record, lines) for record in run.records]),
        event_marks(list(run.events)),
    )
    keys = [*(line.key() for line in lines if line.in_legend), *plan.more_keys]
    if not all(record.valid for record in run.records):
        keys.append(Key(label="a look that failed", colour="red", shape="cross"))
    return Chart(
        key=plan.key,
        title=plan.title,
        text=plan.text,
        unit=plan.unit,
        keys=keys,
        wide=wide,
        narrow=narrow,
        table=step_table(run, [line.series for line in lines], plan.title),
    )


@charted
def _draw(plan: Plan, run: RunLog, paper: Paper) -> Figure:
    figure, axes = new_axes(paper, plan.height)
    for line in plan.lines:
        if run.has(line.series):
            asked = run.asked(line.series)
            values = run.series(line.series)[asked]
            axes.plot(
                run.steps[asked], values, color=line.colour, linestyle=line.dashes, marker="o",
                markersize=2.6, markevery=_points(values), linewidth=line.width,
                gid=f"series-{line.series}",
            )  # fmt: skip
    if plan.more is not None:
        plan.more(axes, run)
    mark_events(axes, run)
    mark_invalid(axes, run)
    step_axis(axes, run, paper)
    if plan.from_zero:
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.0) if low < 0.0 else 0.0, high)
    value_axis(axes, plan.unit_of_axis)
    return figure


def _points(values: np.ndarray) -> list[int]:
    """Looks that are drawn as points: all of a few; a lone one is in no line."""
    known = np.isfinite(values)
    if known.sum() > _FEW_LOOKS:
        beside = np.concatenate([[False], known, [False]])
        known = known & ~beside[:-2] & ~beside[2:]
    return [int(i) for i in np.flatnonzero(known)]


def _told(record: Record, lines: Sequence[Line]) -> str:
    series = record.series()
    shown = [
        f"{line.name}: {number_of(line.series, series.get(line.series, math.nan))}"
        for line in lines
    ]
    broken = "" if record.valid else "\ninvalid look"
    return "\n".join([f"step {count(record.step)}", *shown]) + broken


def _description(plan: Plan, lines: Sequence[Line], run: RunLog) -> str:
    """What a screen reader says: the ends of every line."""
    told = []
    for line in lines:
        values = run.series(line.series)
        known = np.flatnonzero(np.isfinite(values))
        first, last = known[[0, -1]]
        told.append(
            f"{line.name}: {number_of(line.series, values[first])} at step "
            f"{count(run.steps[first])}, {number_of(line.series, values[last])} at step "
            f"{count(run.steps[last])}"
        )
    return f"Over the optimizer steps, {plan.unit}. {'; '.join(told)}. The table has all numbers."
