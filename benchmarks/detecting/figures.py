"""Every recorded run with its alarms, in one picture."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator
from PIL import Image
from recording.labels import running_floor

from detecting.recorded import EVERY, RULES, Alarm, Verdict

_RUNS_A_ROW = 2
_PANEL_INCHES = (3.1, 2.2)
_DPI = 80
_HEAD_INCHES = 1.35
#: The part of a panel below the curve, one lane for each cadence.
_LANES = 0.34
_LANE = _LANES / (len(EVERY) + 0.5)
_CURVE, _FLOOR, _MARK = "#1f4e79", "#888888", "#444444"
_CAUGHT, _FALSE, _LATE, _NEITHER = "#1a9641", "#d7191c", "#f08c00", "#7a7a7a"
_ONSET = "#b7dfb9"
_TITLES = {
    "initial_0.1": "0.1 of initial scale",
    "rms_0.1": "0.1 of current scale",
    "abs_0.001": "0.001",
}


def draw_runs(verdicts: Sequence[Verdict], path: Path) -> None:
    """A contact sheet of one detector's verdicts: three panels a run, one for each rule."""
    names = list(dict.fromkeys(v.case.name for v in verdicts))
    rows, columns = -(-len(names) // _RUNS_A_ROW), _RUNS_A_ROW * len(RULES)
    width, height = _PANEL_INCHES
    total = height * rows + _HEAD_INCHES
    with mpl.rc_context({"font.size": 8, "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(width * columns, total), dpi=_DPI)
        axes = figure.subplots(rows, columns, squeeze=False)
        for i, name in enumerate(names):
            first = len(RULES) * (i % _RUNS_A_ROW)
            for j, rule in enumerate(RULES):
                of = [v for v in verdicts if (v.case.name, v.case.rule) == (name, rule)]
                _panel(axes[i // _RUNS_A_ROW, first + j], of, is_first=j == 0)
        for ax in axes.flat[len(names) * len(RULES) :]:
            ax.set_axis_off()
        _explain(figure, total)
        figure.tight_layout(rect=(0, 0, 1, 1 - _HEAD_INCHES / total), h_pad=2.0, w_pad=0.4)
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png")
    # a third of the bytes; this way of choosing 256 colours keeps rare ones apart
    image = Image.open(drawn).convert("RGB").quantize(method=Image.Quantize.FASTOCTREE)
    image.save(path, optimize=True)


def _panel(ax: Axes, verdicts: Sequence[Verdict], *, is_first: bool) -> None:
    case = next(v.case for v in verdicts if v.case.every == min(EVERY))
    truth, values = case.truth, case.values
    ax.set_yscale("log")
    ax.plot(case.steps, values, color=_CURVE, lw=1.3)
    ax.plot(case.steps, running_floor(values), color=_FLOOR, lw=0.9, ls="--")
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    high = max(high, 2.5 * low)
    span = math.log(high / low)
    ax.set_ylim(low * math.exp(-_LANES / (1 - _LANES) * 1.1 * span), high * math.exp(0.08 * span))
    ax.set_xlim(0, case.steps[-1] * 1.02)
    nice = [m * 10.0**e for e in range(-5, 1) for m in (1, 2, 5)]
    ax.set_yticks([x for x in nice if low <= x <= high], minor=False)
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(lambda x, _: f"{100 * x:g}%")
    if truth.kind == "take-off":
        for step, text, side in ((truth.doubled, "2 x ", "right"), (truth.limit, " 2.5 x", "left")):
            if math.isfinite(step):
                ax.axvline(step, ymin=_LANES, color=_MARK, lw=0.7, ls=":")
                ax.annotate(
                    text, (step, 0.99), xycoords=("data", "axes fraction"), ha=side, va="top",
                    fontsize=6.5, color=_MARK,
                )  # fmt: skip
        ax.axvspan(0, truth.began, color="0.93", zorder=0)
    _draw_alarms(ax, verdicts)
    _label(ax, verdicts, is_first=is_first)


def _draw_alarms(ax: Axes, verdicts: Sequence[Verdict]) -> None:
    for lane, every in enumerate(EVERY):
        at = _LANES - _LANE * (lane + 1)
        ax.plot([0, 1], [at, at], transform=ax.transAxes, color="0.85", lw=0.5)
        ax.text(
            0.01, at + 0.45 * _LANE, str(every), va="center", transform=ax.transAxes, fontsize=6,
            color=_MARK,
        )  # fmt: skip
        for verdict in (v for v in verdicts if v.case.every == every):
            for alarm in verdict.alarms:
                ax.plot(
                    [alarm.step] * 2, [at + 0.1 * _LANE, at + 0.85 * _LANE],
                    transform=ax.get_xaxis_transform(), color=_color(verdict, alarm), lw=1.6,
                )  # fmt: skip
    finest = next(v for v in verdicts if v.case.every == min(EVERY))
    for alarm in finest.alarms:
        if alarm.onset is None:
            continue
        first, last = alarm.onset_low or alarm.onset, alarm.onset_high or alarm.onset
        half = finest.case.every / 2.0
        ax.axvspan(first - half, last + half, ymin=_LANES, color=_ONSET, zorder=0)


def _color(verdict: Verdict, alarm: Alarm) -> str:
    kind = verdict.case.truth.kind
    if kind == "control" or (kind == "take-off" and alarm.step <= verdict.case.truth.began):
        return _FALSE
    if kind == "ambiguous":
        return _NEITHER
    if verdict.caught is None:
        return _LATE
    return _CAUGHT if alarm == verdict.caught else _NEITHER


def _label(ax: Axes, verdicts: Sequence[Verdict], *, is_first: bool) -> None:
    case = verdicts[0].case
    kind = case.truth.kind
    false = sum(v.num_false for v in verdicts)
    caught = sum(v.caught is not None for v in verdicts)
    told = [f"caught {caught} of {len(verdicts)}"] * (kind == "take-off")
    told += [f"{false} false"] * (false > 0) or ["silent"] * (kind == "control")
    told += ["counts neither way"] * (kind == "ambiguous")
    is_good = not false and (kind != "take-off" or caught == len(verdicts))
    color = _NEITHER if kind == "ambiguous" else _CAUGHT if is_good else _FALSE
    ax.set_title(", ".join(told), loc="right", fontsize=8, pad=3, color=color)
    ax.set_title(_TITLES[case.rule], loc="left", fontsize=8, pad=3)
    if is_first:
        since = "" if case.known_step is None else f" at {case.known_step}"
        name = ax.annotate(
            f"{case.name} ({case.kind}{since}; {case.split})", (0, 1), xytext=(0, 15),
            xycoords="axes fraction", textcoords="offset points", fontsize=9, fontweight="bold",
        )  # fmt: skip
        name.set_in_layout(False)  # it may be wider than its panel
    ax.tick_params(labelsize=7, pad=1.5)


def _explain(figure: Figure, total: float) -> None:
    title = "Share of weights near zero in every recorded run, by step, and the detector's alarms"
    text = (
        "Near zero: below 0.1 of a tensor's scale when the run began, or of its scale now, or "
        "0.001. Below each curve a lane for snapshots every 25, 50, 100 and 200 steps: a tick for "
        "the\nalarm from each possible first one, 15 in all. 2 x: twice the lowest level so far. "
        "Too late: 2.5 times that, or the fifth snapshot that can show it, is reached."
    )
    figure.text(0.01, 1 - 0.12 / total, title, fontsize=14, fontweight="bold", va="top")
    figure.text(0.01, 1 - 0.45 / total, text, fontsize=10, va="top")
    alarms = {
        _CAUGHT: "alarm in time", _LATE: "alarm too late", _FALSE: "false alarm",
        _NEITHER: "alarm that counts neither way",
    }  # fmt: skip
    handles = [
        Line2D([], [], color=_CURVE, label="share of weights"),
        Line2D([], [], color=_FLOOR, ls="--", label="its lowest level so far"),
        Patch(color="0.93", label="before a rise begins: alarms are false"),
        Patch(color=_ONSET, label="since when it rises, says the alarm at 25 steps"),
        *(Line2D([], [], color=color, lw=2, label=label) for color, label in alarms.items()),
    ]
    place = (0.005, 1 - 0.85 / total)
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=place, ncol=8, frameon=False, fontsize=9
    )
