"""A whole run in stacked panels over the steps: the picture of ``sparsitywatch plot``.

It needs matplotlib, which the extra ``plots`` installs. Importing this takes a second.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sparsitywatch.analysis.estimate import allowed_harm
from sparsitywatch.analysis.run import Run
from sparsitywatch.errors import MissingExtraError
from sparsitywatch.records import Event
from sparsitywatch.redact import redacted
from sparsitywatch.series import PANELS, Panel, describe

try:
    import matplotlib.style
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, MaxNLocator
except ImportError as error:
    raise MissingExtraError("matplotlib", "plots", "drawings") from error

__all__ = ["overview_figure", "save_figure"]

# Okabe and Ito's colours, which colour-blind people can tell apart
BLUE, GREEN, ORANGE, PURPLE = "#0072b2", "#009e73", "#e69f00", "#cc79a7"
RED, SKY, GREY, LIGHT = "#d55e00", "#56b4e9", "#6e6e6e", "#dedede"
BLACK, PAPER = "#101010", "#fefefe"
#: As the page calls them.
_COLOURS = {"blue": BLUE, "green": GREEN, "grey": GREY, "ink": BLACK, "orange": ORANGE,
            "purple": PURPLE, "red": RED, "sky": SKY}  # fmt: skip
DASHED, DOTTED = (0, (4, 2)), (0, (1, 2))

_STYLE: dict[Any, object] = {
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.grid": True,
    "axes.labelcolor": BLACK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": LIGHT,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "path.simplify": False,  # every snapshot is in the picture
    "text.color": BLACK,
    "text.parse_math": False,  # names of tensors are no formulas
    "xtick.color": GREY,
    "xtick.labelcolor": BLACK,
    "ytick.color": GREY,
    "ytick.labelcolor": BLACK,
}


#: The style of this package, for a function that draws; the user's is left untouched.
_styled = matplotlib.style.context(_STYLE, after_reset=True)


@_styled
def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure to a file, whose folder is made if need be; its ending says the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


# ------------------------------------------------------------------ which panels there are


def _panels(run: Run) -> list[Panel]:
    """Every panel that the run has numbers for, with its lines."""
    rule, found = next(iter(run.rules), ""), []
    for panel in PANELS:
        drawn = panel.drawn(run.names, rule) if "figure" in panel.on else []
        lines = tuple(line for line in drawn if line.series in run.names)
        found += [replace(panel, lines=lines)] if lines else []
    return found


def _draw_essential(axes: Any, run: Run) -> None:
    """The interval, and grey where there is no number, up to half-way to snapshots with one."""
    known = (r.essential_sparsity for r in run.records if r.essential_sparsity is not None)
    steps, value = run.series("essential_sparsity/value")
    axes.fill_between(
        steps, run.series("essential_sparsity/low")[1], run.series("essential_sparsity/high")[1],
        color=GREEN, alpha=0.2, linewidth=0.5, label=f"{next(known).confidence:.0%} interval",
    )  # fmt: skip
    missing = np.isnan(value)
    if missing.any():
        edges = np.concatenate([steps[:1], np.repeat((steps[1:] + steps[:-1]) / 2, 2), steps[-1:]])
        axes.fill_between(
            edges, 0.0, 1.0, np.repeat(missing, 2), color=LIGHT, alpha=0.7, linewidth=0, zorder=-1,
            transform=axes.get_xaxis_transform(), label="not informative, or not measured",
        )  # fmt: skip


def _draw_allowed(axes: Any, run: Run) -> None:
    steps, dense = run.series("value/dense")
    by_step = {record.step: record.provenance for record in run.records}
    allowed = [
        allowed_harm(x, by_step[step].tolerance, by_step[step].tolerance_mode)
        for step, x in zip(steps.tolist(), dense, strict=True)
    ]
    axes.plot(
        steps, allowed, color=GREY, linestyle=DASHED, linewidth=1.2,
        marker="_" if len(allowed) == 1 else "", label="harm that is tolerated",
    )  # fmt: skip


#: What else is drawn in some panels.
_MORE = {"essential": _draw_essential, "reliance": _draw_allowed}


# ------------------------------------------------------------------ the picture


@_styled
def overview_figure(run: Run, *, title: str = "") -> Figure:
    """A run in stacked panels over the optimizer steps, with its events marked."""
    run.require_records()
    panels = _panels(run)
    captions = _captions(run)
    num_rows = max(len(panels), 1)
    height = 2.15 * num_rows + 1.0 + 0.17 * len(captions)
    figure = Figure(figsize=(9.5, height), layout="constrained")  # no window knows of it
    all_axes = figure.subplots(num_rows, 1, sharex=True, squeeze=False)[:, 0]
    homes = [_home_of(event, panels) for event in run.events]
    for axes, panel in zip(all_axes, panels, strict=False):
        first, last = run.steps[[0, -1]]
        pad = 0.02 * (last - first) or 0.5
        axes.set_xlim(first - pad, last + pad)
        _draw_panel(axes, panel, run)
        for number, (event, home) in enumerate(zip(run.events, homes, strict=True), start=1):
            _mark_event(axes, number, event, is_home=home is panel)
        _mark_invalid(axes, run)
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, 0.0) if panel.from_zero else low, panel.top or high)
        handles, labels = axes.get_legend_handles_labels()
        labels = [textwrap.fill(label, 28) for label in labels]
        axes.legend(handles, labels, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _add_clock(all_axes[0], run)
    _label_steps(all_axes[-1], run)
    trouble = f"; {redacted(run.verdict.trouble)}" if run.verdict.trouble else ""
    title = title or f"Sparsity during training{trouble}"
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=13)
    figure.supxlabel("\n".join(captions), x=0.01, ha="left", fontsize=8.5, color=GREY)
    return figure


def _draw_panel(axes: Any, panel: Panel, run: Run) -> None:
    for line in panel.lines:
        steps, values = run.series(line.series)
        axes.plot(
            steps, values, color=_COLOURS[line.colour], linewidth=1.6, marker="o", markersize=2.6,
            linestyle=(0, line.dash) if line.dash else "-", markevery=_points(values),
            label=line.label,
        )  # fmt: skip
    if panel.key in _MORE:
        _MORE[panel.key](axes, run)
    axes.set_ylabel(panel.title)
    row = describe(panel.lines[0].series)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda x, _: row.shown(x)))


def _points(values: np.ndarray) -> list[int]:
    """Snapshots that are drawn as points: all of a few; a lone one is in no line."""
    known = np.isfinite(values)
    if known.sum() > 40:
        beside = np.concatenate([[False], known, [False]])
        known = known & ~beside[:-2] & ~beside[2:]
    return [int(i) for i in np.flatnonzero(known)]


def _label_steps(axes: Any, run: Run) -> None:
    if len(run.records) == 1:
        axes.set_xticks([run.steps[0]])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(9, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.set_xlabel("optimizer step" if run.unit == "step" else run.unit)


def _home_of(event: Event, panels: Sequence[Panel]) -> Panel | None:
    """The panel that an event gets its number in: of its series, of a kindred one, or the first."""
    room = f"{event.series.partition('/')[0]}/"

    def kinship(panel: Panel) -> tuple[bool, bool]:
        names = [line.series for line in panel.lines]
        return event.series in names, any(name.startswith(room) for name in names)

    return max(panels, key=kinship, default=None)


def _mark_event(axes: Any, number: int, event: Event, *, is_home: bool) -> None:
    """Dotted where it began, solid where it was seen; interval and number in its own panel."""
    axes.axvline(event.onset_step, color=BLACK, linewidth=1.0, linestyle=DOTTED)
    axes.axvline(event.detected_step, color=BLACK, linewidth=1.0)
    if event.reverted_step >= 0:
        axes.axvline(event.reverted_step, color=GREY, linewidth=1.0, linestyle=DASHED)
    if not is_home:
        return
    if event.onset_low < event.onset_high:
        axes.axvspan(
            event.onset_low, event.onset_high, color=ORANGE, alpha=0.25, linewidth=0, zorder=0
        )
    # which beginning belongs to which number; those of neighbours stand at other heights
    across = axes.get_xaxis_transform()
    height = 0.985 - 0.03 * ((number - 1) % 3)
    steps = [event.onset_step, event.detected_step]
    axes.plot(steps, [height] * 2, color=BLACK, linewidth=1.0, transform=across)
    axes.annotate(
        str(number), (event.detected_step, 0.86 - 0.14 * ((number - 1) % 4)), xycoords=across,
        ha="center", va="center", color=PAPER, fontsize=8, fontweight="bold", annotation_clip=True,
        bbox={"boxstyle": "circle,pad=0.25", "facecolor": GREY, "edgecolor": "none"},
    )  # fmt: skip


def _mark_invalid(axes: Any, run: Run) -> None:
    """A cross at the foot for each snapshot that failed."""
    steps = [record.step for record in run.records if not record.valid]
    if steps:
        axes.plot(
            steps, np.zeros(len(steps)), transform=axes.get_xaxis_transform(), linestyle="none",
            marker="x", color=RED, markersize=6, markeredgewidth=1.6, clip_on=False, zorder=5,
            label="a snapshot that failed",
        )  # fmt: skip


def _add_clock(axes: Any, run: Run) -> None:
    """The decay clock along the top, where there is one."""
    clock = np.array([record.decay_clock for record in run.records])
    known = np.isfinite(clock)
    steps = run.steps[known]
    clock = np.maximum.accumulate(clock[known])
    if not clock.size or clock[-1] <= clock[0]:
        return
    round_numbers = MaxNLocator(9, steps=[1, 2, 5, 10]).tick_values(clock[0], clock[-1])
    ticks = [x for x in round_numbers if clock[0] <= x <= clock[-1]]
    top = axes.secondary_xaxis("top")
    top.set_xticks(np.interp(ticks, clock, steps), [f"{tick:.3g}" for tick in ticks])
    top.set_xlabel("decay clock", color=GREY)


def _captions(run: Run) -> list[str]:
    """Every event in words, then what the marks and the numbers mean."""
    last = run.records[-1]
    lines, notes = [], []
    for number, event in enumerate(run.events, start=1):
        lines += textwrap.wrap(f"({number}) {event.describe()}", 135, subsequent_indent="     ")
    if run.events:
        line = "Events: dotted where they began by estimate, solid where they were seen"
        if any(event.onset_low < event.onset_high for event in run.events):
            line += ", a band over the interval of the beginning"
        if any(event.reverted_step >= 0 for event in run.events):
            line += ", dashed where half of it was gone again"
        notes.append(f"{line}.")
    if last.essential_sparsity is not None:
        notes.append(
            "Essential sparsity is zero-shot: the smallest weights are masked, nothing is "
            "retrained."
        )
    if last.decay_clock > 0:
        notes.append(
            "Decay clock: sum of learning rate x weight decay. Weights that get no gradient shrink "
            "as exp(-clock): they become near-zero by decay alone."
        )
    return lines + [line for note in notes for line in textwrap.wrap(note, 135)]
