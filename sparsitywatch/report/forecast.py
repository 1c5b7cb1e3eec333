"""What was foreseen of near-zero weights, beside what came."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from sparsitywatch.report.chart import Chart, Key, Table, on_both_papers
from sparsitywatch.report.marks import event_marks, mark_events, step_axis
from sparsitywatch.report.numbers import Number, count, fraction
from sparsitywatch.report.runlog import RunLog
from sparsitywatch.report.step_table import chosen_looks
from sparsitywatch.report.svg import charted
from sparsitywatch.report.theme import INK, Paper, new_axes, value_axis
from sparsitywatch.series import describe
from sparsitywatch.sinks.drawing import LIGHT, RED, SKY

__all__ = ["Foreseen", "forecast_chart", "foreseen"]

_MAX_ROWS = 60


@dataclass(frozen=True)
class Foreseen:
    """What one look foresaw for one unit of the decay clock later.

    Args:
        reported_step: the look.
        due_step: when the clock had advanced, or will have at its present rate.
        fraction, low, high: near-zero fraction, with its band.
        came: near-zero fraction at ``due_step``, between looks a straight line; NaN if that
            lies ahead.
    """

    reported_step: int
    due_step: float
    fraction: float
    low: float
    high: float
    came: float


def foreseen(run: RunLog) -> list[Foreseen]:
    """Every forecast of the run for one unit of the clock, in the order of the looks."""
    forecasts = [(record, record.forecast) for record in run.records if record.forecast is not None]
    if not forecasts:
        return []
    clock, rate = run.series("motion/decay_clock"), forecasts[-1][1].clock_per_step
    found = []
    for record, forecast in forecasts:
        middle, low, high = forecast.at(1.0)
        actual = run.series(f"near_zero/{forecast.rule}")
        known = np.isfinite(clock) & np.isfinite(actual)
        clocks, steps, actual = clock[known], run.steps[known], actual[known]
        due = record.decay_clock + 1.0
        if not (math.isfinite(middle) and math.isfinite(due) and clocks.size):
            continue
        if due <= clocks[-1]:
            # the first time: the clock stands still where nothing decays
            at = float(np.interp(due, clocks, steps))
            came = float(np.interp(at, steps, actual))
        elif rate > 0.0:
            at, came = float(steps[-1] + (due - clocks[-1]) / rate), math.nan
        else:
            continue
        found.append(Foreseen(record.step, at, middle, low, high, came))
    return found


def forecast_chart(run: RunLog) -> Chart | None:
    """The chart; None if nothing was foreseen."""
    told = foreseen(run)
    if not told:
        return None
    rule = next(r.forecast.rule for r in run.records if r.forecast is not None)
    title = "Forecast of near-zero weights"
    wide, narrow = on_both_papers(
        lambda paper: _draw(run, rule, told, paper),
        "forecast",
        title,
        "What was foreseen one unit of the decay clock ahead, beside what came. The last one is "
        f"{fraction(told[-1].fraction)} at about step {count(round(told[-1].due_step))}. The table "
        "has all numbers.",
        (),
        event_marks(list(run.events)),
    )
    return Chart(
        key="forecast",
        title=title,
        text="Dormant weights shrink by decay alone, so that their way to zero can be foreseen. "
        "Each point of the dashed line was foreseen one unit of the decay clock earlier; where "
        "the solid line stays in the band, the forecast held. The grey part lies ahead of the last "
        "look, if the clock goes on at its present rate. The band is nominally of nine "
        "in ten.",
        unit="% of in-scope weights",
        keys=(
            Key(label=f"what came: {describe(f'near_zero/{rule}').label}", colour="red"),
            Key(label="foreseen one unit of the clock before", colour="ink", shape="dashed"),
            Key(label="its band", colour="sky", shape="band"),
            Key(label="ahead of the last look", colour="light", shape="band"),
        ),
        wide=wide,
        narrow=narrow,
        table=_table(run, told),
    )


@charted
def _draw(run: RunLog, rule: str, told: Sequence[Foreseen], paper: Paper) -> Figure:
    figure, axes = new_axes(paper, 2.0)
    order = sorted(told, key=lambda one: one.due_step)
    due = [one.due_step for one in order]
    axes.fill_between(
        due, [one.low for one in order], [one.high for one in order],
        color=SKY, alpha=0.4, linewidth=0,
    )  # fmt: skip
    axes.plot(
        due, [one.fraction for one in order], color=INK, linestyle=(0, (4, 2)), gid="foreseen",
        linewidth=1.4,
    )  # fmt: skip
    axes.plot(run.steps, run.series(f"near_zero/{rule}"), color=RED, gid="came")
    mark_events(axes, run)
    step_axis(axes, run, paper)
    first, last = axes.get_xlim()
    axes.set_xlim(first, max(last, max(due) + 0.02 * (last - first)))
    axes.axvspan(run.steps[-1], axes.get_xlim()[1], color=LIGHT, alpha=0.5, linewidth=0, zorder=-1)
    axes.set_ylim(bottom=0.0)
    value_axis(axes, "fraction")
    return figure


def _table(run: RunLog, told: Sequence[Foreseen]) -> Table:
    chosen = {int(run.steps[i]) for i in chosen_looks(run, _MAX_ROWS)}
    rows: list[Sequence[Number | str]] = [
        [count(one.reported_step), count(round(one.due_step)),
         *map(fraction, (one.fraction, one.low, one.high, one.came))]
        for one in told
        if one.reported_step in chosen
    ]  # fmt: skip
    header = [
        ("told at step", "step"), ("for about step", "due"),
        ("foreseen", "forecast/near_zero_in_1"),
        ("low", "forecast/near_zero_in_1_low"), ("high", "forecast/near_zero_in_1_high"),
        ("what came", "came"),
    ]  # fmt: skip
    return Table(caption="What was foreseen, and what came", header=header, rows=rows)
