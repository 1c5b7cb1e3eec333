"""Pictures of the benchmark: every recorded run with its alarms, and asked against told."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
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

from detecting.calibration import Told
from detecting.recorded import EVERY, RULES, Alarm, Verdict

__all__ = ["draw_calibration", "draw_runs"]

_RUNS_A_ROW = 2
_PANEL_INCHES, _DPI = (3.1, 2.2), 80
_HEAD_INCHES = 1.35
_LANES = 0.34  # the part of a panel below the curve, one lane for each cadence
_CURVE, _FLOOR, _MARK = "#1f4e79", "#888888", "#444444"
_CAUGHT, _FALSE, _LATE, _NEITHER = "#1a9641", "#d7191c", "#f08c00", "#7a7a7a"
_ONSET = "#b7dfb9"
_TITLES = {
    "initial_0.1": "0.1 of initial scale",
    "rms_0.1": "0.1 of current scale",
    "abs_0.001": "0.001",
}


def draw_runs(verdicts: Sequence[Verdict], path: Path) -> None:
    """A contact sheet: three panels a run, one for each rule.

    Args:
        verdicts: of one detector on every case.
        path: of a PNG.
    """
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
        _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    """With 256 colours, a third of the bytes; this way of choosing them keeps rare ones apart."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    Image.open(drawn).convert("RGB").quantize(method=Image.Quantize.FASTOCTREE).save(
        path, optimize=True
    )


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
    lanes = ax.get_xaxis_transform()
    height = _LANES / (len(EVERY) + 0.5)
    for lane, every in enumerate(EVERY):
        at = _LANES - height * (lane + 1)
        ax.plot([0, 1], [at, at], transform=ax.transAxes, color="0.85", lw=0.5)
        for verdict in (v for v in verdicts if v.case.every == every):
            for alarm in verdict.alarms:
                color = _color(verdict, alarm)
                ax.plot(
                    [alarm.step] * 2, [at + 0.1 * height, at + 0.85 * height],
                    transform=lanes, color=color, lw=1.6,
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
    ax.set_title(
        ", ".join(told), loc="right", fontsize=8, pad=3,
        color=_NEITHER if kind == "ambiguous" else _CAUGHT if is_good else _FALSE,
    )  # fmt: skip
    ax.set_title(_TITLES[case.rule], loc="left", fontsize=8, pad=3)
    if is_first:
        since = "" if case.known_step is None else f" at {case.known_step}"
        name = ax.annotate(
            f"{case.name} ({case.kind}{since}; {case.split})", (0, 1), xytext=(0, 15),
            xycoords="axes fraction", textcoords="offset points", fontsize=9, fontweight="bold",
        )  # fmt: skip
        name.set_in_layout(False)  # it may be wider than its panel
    height = _LANES / (len(EVERY) + 0.5)
    for lane, every in enumerate(EVERY):
        ax.text(
            0.01, _LANES - height * (lane + 1) + 0.45 * height, str(every), va="center",
            transform=ax.transAxes, fontsize=6, color=_MARK,
        )  # fmt: skip
    ax.tick_params(labelsize=7, pad=1.5)


def _explain(figure: Figure, total: float) -> None:
    figure.text(
        0.01, 1 - 0.12 / total,
        "Share of weights near zero in every recorded run, by step, and the alarms of the detector",
        fontsize=14, fontweight="bold", va="top",
    )  # fmt: skip
    figure.text(
        0.01, 1 - 0.45 / total,
        "Near zero: below 0.1 of a tensor's scale when the run began, or of its scale now, or "
        "0.001. Below each curve a lane for snapshots every 25, 50, 100 and 200 steps: a tick for "
        "the\nalarm from each possible first one, 15 in all. 2 x: twice the lowest level so far. "
        "Too late: 2.5 times that, or the fifth snapshot that can show it, is reached.",
        fontsize=10, va="top",
    )  # fmt: skip
    handles = [
        Line2D([], [], color=_CURVE, label="share of weights"),
        Line2D([], [], color=_FLOOR, ls="--", label="its lowest level so far"),
        Patch(color="0.93", label="before a rise begins: alarms are false"),
        Patch(color=_ONSET, label="since when it rises, says the alarm at 25 steps"),
        Line2D([], [], color=_CAUGHT, lw=2, label="alarm in time"),
        Line2D([], [], color=_LATE, lw=2, label="alarm too late"),
        Line2D([], [], color=_FALSE, lw=2, label="false alarm"),
        Line2D([], [], color=_NEITHER, lw=2, label="alarm that counts neither way"),
    ]
    figure.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(0.005, 1 - 0.85 / total), ncol=8,
        frameon=False, fontsize=9,
    )  # fmt: skip


def draw_calibration(told: Iterable[Told], path: Path) -> None:
    """False alarms asked for and told, with the band of a factor of two."""
    with mpl.rc_context({"font.size": 9, "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(5.2, 4.4), dpi=110, layout="constrained")
        ax = figure.subplots()
        groups: dict[str, list[Told]] = {}
        for each in sorted(told, key=lambda t: t.asked):
            groups.setdefault(each.where, []).append(each)
        asked = np.array(sorted({t.asked for of in groups.values() for t in of}))
        ax.fill_between(asked, asked / 2, asked * 2, color="0.9", label="within a factor of two")
        ax.plot(asked, asked, color=_FLOOR, ls="--", lw=1, label="as asked for")
        least = float(asked.min()) / 10.0  # none at all is drawn here
        colors = (_CURVE, _LATE, _CAUGHT, _FALSE, _NEITHER)
        for (where, of), color in zip(sorted(groups.items()), colors, strict=False):
            at = np.array([t.asked for t in of])
            y = np.maximum([t.told for t in of], least)
            ends = np.maximum([[t.low for t in of], [t.high for t in of]], least)
            bars = np.abs(ends - y)
            ax.errorbar(at, y, yerr=bars, fmt="o-", color=color, capsize=3, label=where)
        ax.set(xscale="log", yscale="log", ylim=(least * 0.9, float(asked.max()) * 4))
        ax.set_xlabel("false alarms asked for, per 1000 snapshots")
        ax.set_ylabel(f"false alarms told, per 1000 snapshots ({least:g}: none or fewer)")
        ax.legend(frameon=False, fontsize=8)
        _save(figure, path)
