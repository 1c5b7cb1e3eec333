"""A whole run in stacked panels over the steps, and several runs side by side."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sparsitywatch.analysis.estimate import allowed_harm
from sparsitywatch.analysis.run import Run
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.plots.drawing import (
    BLACK,
    BLUE,
    DASHED,
    DOTTED,
    GREEN,
    GREY,
    LIGHT,
    ORANGE,
    PAPER,
    PURPLE,
    RED,
    SKY,
    new_figure,
    percent,
    styled,
    value_axis,
)
from sparsitywatch.records import Event, Record
from sparsitywatch.series import describe

__all__ = ["comparison_figure", "overview_figure"]

_RULE_COLOURS = (RED, ORANGE, PURPLE, GREEN, SKY, BLACK)
#: With more snapshots than this only lines are drawn.
_FEW_SNAPSHOTS = 40
#: Labels that find room along the steps.
_NUM_TICKS = 9


# ------------------------------------------------------------------ which panels there are


@dataclass(frozen=True, kw_only=True)
class _Series:
    """One series in a panel; ``dashes`` as matplotlib has them, ``width`` in points."""

    series: str
    colour: str
    label: str = ""
    dashes: Any = "-"
    width: float = 1.6
    in_legend: bool = True

    @property
    def name(self) -> str:
        """What it is called."""
        return self.label or describe(self.series).label


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """What is drawn of one thing.

    Args:
        key: its name for a program.
        title: in a few words.
        lines: of which those are drawn that the run has.
        more: draws what else is in it.
        from_zero, up_to: ends of the vertical axis.
    """

    key: str
    title: str
    lines: Sequence[_Series]
    more: Callable[[Any, Run], None] | None = None
    from_zero: bool = True
    up_to: float | None = None


def _panels_of(run: Run) -> list[_Panel]:
    """Every panel that the run has numbers for."""
    panels = [_near_zero(run), _DORMANT, _essential(run), _RELIANCE, _VALUE]
    return [panel for panel in panels if any(run.has(line.series) for line in panel.lines)]


def _near_zero(run: Run) -> _Panel:
    names = [f"near_zero/{rule}" for rule in run.rules]
    return _Panel(
        key="near-zero",
        title="Near-zero weights",
        lines=[
            _Series(series=name, colour=colour, label=describe(name).short_label)
            for name, colour in zip(names, _RULE_COLOURS * len(names), strict=False)
        ],
    )


_DORMANT = _Panel(
    key="dormant",
    title="Dormant weights",
    lines=(
        _Series(series="motion/dormant", colour=BLUE),
        _Series(series="motion/dormant_by_chance", colour=GREY, dashes=DASHED),
    ),
)


def _essential(run: Run) -> _Panel:
    confidence = next(
        (r.essential_sparsity.confidence for r in run.records if r.essential_sparsity), 0.9
    )

    def draw(axes: Any, run: Run) -> None:
        _draw_interval(axes, run, GREEN, f"{confidence:.0%} interval")
        steps, value = run.series("essential_sparsity/value")
        for number, ends in enumerate(_gaps(steps, np.isnan(value)), start=1):
            axes.axvspan(
                *ends, color=LIGHT, alpha=0.7, linewidth=0, zorder=-1, gid=f"gap-{number}",
                label="not informative, or not measured" if number == 1 else None,
            )  # fmt: skip

    return _Panel(
        key="essential-sparsity",
        title="Essential sparsity",
        lines=(
            _Series(series="essential_sparsity/value", colour=GREEN),
            _Series(series="essential_sparsity/low", colour=GREEN, width=0.5, in_legend=False),
            _Series(series="essential_sparsity/high", colour=GREEN, width=0.5, in_legend=False),
        ),
        more=draw,
        up_to=1.0,
    )


def _draw_interval(axes: Any, run: Run, colour: str, label: str | None = None) -> None:
    """The interval of essential sparsity as a band."""
    steps, low = run.series("essential_sparsity/low")
    _, high = run.series("essential_sparsity/high")
    axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0, label=label)


def _gaps(steps: np.ndarray, missing: np.ndarray) -> list[tuple[float, float]]:
    """Where a value is missing, each time up to half-way to the snapshots that have one."""
    edges = _edges_of(steps)
    found: list[tuple[float, float]] = []
    for i in np.flatnonzero(missing):
        if found and found[-1][1] == edges[i]:
            found[-1] = (found[-1][0], edges[i + 1])
        else:
            found.append((edges[i], edges[i + 1]))
    return found


def _edges_of(steps: np.ndarray) -> np.ndarray:
    """Half-way between snapshots, and the first and the last of them: float [T + 1]."""
    return np.concatenate([steps[:1], (steps[1:] + steps[:-1]) / 2, steps[-1:]])


def _draw_allowed(axes: Any, run: Run) -> None:
    steps, dense = run.series("value/dense")
    by_step = {record.step: record.provenance for record in run.records}
    allowed = [
        allowed_harm(x, by_step[step].tolerance, by_step[step].tolerance_mode)
        for step, x in zip(steps.tolist(), dense, strict=True)
    ]
    axes.plot(
        steps, allowed, color=GREY, linestyle=DASHED, linewidth=1.2, gid="allowed",
        marker="_" if len(allowed) == 1 else "", label="harm that is tolerated",
    )  # fmt: skip


_RELIANCE = _Panel(
    key="reliance",
    title="Reliance",
    lines=(_Series(series="value/reliance", colour=BLACK, label="harm of removing everything"),),
    more=_draw_allowed,
)


_VALUE = _Panel(
    key="value",
    title="Value of the model",
    lines=(
        _Series(series="value/dense", colour=BLUE, label="as it is"),
        _Series(
            series="value/all_removed", colour=GREY, label="without any in-scope weight",
            dashes=DASHED,
        ),
    ),
    from_zero=False,
)  # fmt: skip


# ------------------------------------------------------------------ how each is drawn


def _draw_panel(axes: Any, panel: _Panel, run: Run, inside: Collection[int] | None = None) -> None:
    """Lines, what else there is, events, and snapshots that failed.

    Args:
        inside: events that get their number in this panel; by default all.
    """
    _limit_steps(axes, run)
    for line in panel.lines:
        if run.has(line.series):
            steps, values = run.series(line.series)
            axes.plot(
                steps, values, color=line.colour, linestyle=line.dashes, marker="o",
                markersize=2.6, markevery=_points(values), linewidth=line.width,
                label=line.name if line.in_legend else None, gid=f"series-{line.series}",
            )  # fmt: skip
    if panel.more is not None:
        panel.more(axes, run)
    _mark_events(axes, run.events, inside)
    _mark_invalid(axes, run)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, 0.0) if panel.from_zero else low, panel.up_to or high)
    value_axis(axes, describe(panel.lines[0].series).unit if panel.lines else "none")


def _points(values: np.ndarray) -> list[int]:
    """Snapshots that are drawn as points: all of a few; a lone one is in no line."""
    known = np.isfinite(values)
    if known.sum() > _FEW_SNAPSHOTS:
        beside = np.concatenate([[False], known, [False]])
        known = known & ~beside[:-2] & ~beside[2:]
    return [int(i) for i in np.flatnonzero(known)]


def _limit_steps(axes: Any, run: Run) -> None:
    first, last = run.steps[[0, -1]]
    pad = 0.02 * (last - first) or 0.5
    axes.set_xlim(first - pad, last + pad)


def _label_steps(axes: Any, run: Run) -> None:
    """Optimizer steps from the first snapshot to the last."""
    if len(run.records) == 1:
        axes.set_xticks([run.steps[0]])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(_NUM_TICKS, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.set_xlabel("optimizer step")


def _mark_events(axes: Any, events: Sequence[Event], inside: Collection[int] | None) -> None:
    """Dotted where it began, solid where it was seen; its interval in its own panel alone."""
    for number, event in enumerate(events, start=1):
        is_home = inside is None or number in inside
        _mark_beginning(axes, number, event, is_home=is_home)
        axes.axvline(event.detected_step, color=BLACK, linewidth=1.0, gid=f"seen-{number}")
        if event.reverted_step >= 0:
            axes.axvline(event.reverted_step, color=GREY, linewidth=1.0, linestyle=DASHED)
        if not is_home:
            continue
        # numbers of neighbours stand one above the other
        above, lift = (1.0, 8 + 4 * ((number - 1) % 2))
        if inside is not None:
            above, lift = 0.86 - 0.14 * ((number - 1) % 4), 0
        note = axes.annotate(
            str(number), (event.detected_step, above), xycoords=axes.get_xaxis_transform(),
            xytext=(0, lift), textcoords="offset points", ha="center", va="center", color=PAPER,
            fontsize=8, fontweight="bold", annotation_clip=True,
            bbox={"boxstyle": "circle,pad=0.25", "facecolor": GREY, "edgecolor": "none"},
        )  # fmt: skip
        note.set_gid(f"mark-{number}")


def _mark_beginning(axes: Any, number: int, event: Event, *, is_home: bool) -> None:
    if is_home and event.onset_low < event.onset_high:
        axes.axvspan(
            event.onset_low, event.onset_high, color=ORANGE, alpha=0.25, linewidth=0, zorder=0,
            gid=f"onset-interval-{number}",
        )  # fmt: skip
    axes.axvline(
        event.onset_step, color=BLACK, linewidth=1.0, linestyle=DOTTED, gid=f"onset-{number}"
    )
    if not is_home:
        return
    # which beginning belongs to which number
    height = 0.985 - 0.03 * ((number - 1) % 3)
    axes.plot(
        [event.onset_step, event.detected_step], [height, height], color=BLACK, linewidth=1.0,
        transform=axes.get_xaxis_transform(), gid=f"from-onset-{number}",
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


# ------------------------------------------------------------------ panels over the steps

#: Of all panels, those of an overview.
_PANELS = ("value", "near-zero", "dormant", "essential-sparsity", "reliance")


@styled
def overview_figure(
    records: Sequence[Record],
    events: Sequence[Event] = (),
    *,
    loss: Sequence[tuple[int, float]] | None = None,
    title: str = "Sparsity during training",
) -> Figure:
    """A run in stacked panels over the optimizer steps, with its events marked.

    Args:
        records: in the order of the steps, at least one.
        events: what was detected.
        loss: (step, training loss) pairs, if they are known.
        title: of the whole picture.

    Raises:
        ConfigurationError: there is no record.
    """
    run = Run(records, events)
    run.require_records()
    found = {panel.key: panel for panel in _panels_of(run)}
    if loss:
        found.setdefault("value", _LOSS)
    panels = [found[key] for key in _PANELS if key in found]
    captions = [
        line for i, event in enumerate(events) for line in _wrapped(i + 1, event)
    ] + _caption(records[-1], events)
    figure = new_figure(9.5, 2.15 * max(len(panels), 1) + 1.0 + 0.17 * len(captions))
    all_axes = figure.subplots(max(len(panels), 1), 1, sharex=True, squeeze=False)[:, 0]
    homes = [_home_of(event, panels) for event in events]
    for axes, panel in zip(all_axes, panels, strict=False):
        if loss and panel.key == "value":
            axes.plot(*zip(*loss, strict=True), color=SKY, linewidth=0.8, label="training loss")
        inside = [number for number, home in enumerate(homes, start=1) if home is panel]
        _draw_panel(axes, panel, run, inside)
        axes.set_ylabel(panel.title)
        _add_legend(axes)
    _clock_axis(all_axes[0], records)
    _label_steps(all_axes[-1], run)
    _frame(figure, title, captions)
    return figure


_LOSS = _Panel(key="value", title="Loss", lines=(), from_zero=False)


def _home_of(event: Event, panels: Sequence[_Panel]) -> _Panel | None:
    """The panel that an event gets its number in: of its series, of a kindred one, or the first."""
    rooms = {panel.key: [line.series for line in panel.lines] for panel in panels}
    room = event.series.partition("/")[0]
    exact = (p for p in panels if event.series in rooms[p.key])
    kindred = (p for p in panels if any(name.startswith(f"{room}/") for name in rooms[p.key]))
    return next(exact, None) or next(kindred, None) or next(iter(panels), None)


def _add_legend(axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        wrapped = [textwrap.fill(label, 28) for label in labels]
        axes.legend(handles, wrapped, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _frame(figure: Figure, title: str, captions: Iterable[str]) -> None:
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=13)
    figure.supxlabel("\n".join(captions), x=0.01, ha="left", fontsize=8.5, color=GREY)


def _wrapped(number: int, event: Event) -> list[str]:
    indent = "     "
    return textwrap.wrap(f"({number}) {event.describe()}", 135, subsequent_indent=indent)


def _caption(last: Record, events: Sequence[Event]) -> list[str]:
    lines = []
    if events:
        line = "Events: dotted where they began by estimate, solid where they were seen"
        if any(event.onset_low < event.onset_high for event in events):
            line += ", a band over the interval of the beginning"
        if any(event.reverted_step >= 0 for event in events):
            line += ", dashed where half of it was gone again"
        lines.append(line + ".")
    if last.essential_sparsity is not None:
        lines.append(
            "Essential sparsity is zero-shot: the smallest weights are masked, nothing is "
            "retrained."
        )
    if last.decay_clock > 0:
        lines.append(
            "Decay clock: sum of learning rate x weight decay. Weights that get no gradient shrink "
            "as exp(-clock): they become near-zero by decay alone."
        )
    return [piece for line in lines for piece in textwrap.wrap(line, 135)]


def _clock_axis(axes: Any, records: Sequence[Record]) -> None:
    """The decay clock along the top, where there is one."""
    clock = np.array([record.decay_clock for record in records])
    steps = np.array([record.step for record in records])
    known = np.isfinite(clock)
    steps, clock = steps[known], np.maximum.accumulate(clock[known])
    if not clock.size or clock[-1] <= clock[0]:
        return
    size = 10.0 ** math.floor(math.log10(clock[-1] - clock[0]))
    spacing = next(
        s * size for s in (0.2, 0.5, 1.0, 2.0) if (clock[-1] - clock[0]) / (s * size) <= 8
    )
    ticks = np.arange(math.ceil(clock[0] / spacing), math.floor(clock[-1] / spacing) + 1) * spacing
    top = axes.secondary_xaxis("top")
    top.set_xticks(np.interp(ticks, clock, steps), [f"{tick:.3g}" for tick in ticks])
    top.set_xlabel("decay clock", color=GREY)


# ------------------------------------------------------------------ several runs

_COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY, BLACK)
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1.5, 1.5, 1.5)))
#: Series by panel, with its label.
_COMPARED = {
    "near_zero/initial_0.1": "near zero\n|w| ≤ 0.1 × first rms",
    "motion/dormant": "dormant",
    "essential_sparsity/value": "essential sparsity\n(zero-shot)",
}


@dataclass(frozen=True, kw_only=True)
class _Line:
    """How a run is drawn."""

    name: str
    run: Run
    colour: str
    dashes: Any


@styled
def comparison_figure(
    runs: Mapping[str, tuple[Sequence[Record], Sequence[Event]]],
    *,
    groups: Sequence[str] | None = None,
    weights_only: bool = False,
    title: str = "Runs side by side",
) -> Figure:
    """Runs on top of each other: near-zero, dormant, essential sparsity with its interval.

    A dot is where an event was seen and a tick below it where it began, in the colour of its
    run, in the panel of its series.

    Args:
        runs: records, in the order of the steps, and events, by the name of the run.
        groups: one name a run; runs of a group have one colour, and differ in their dashes.
            By default each run is a group of its own.
        weights_only: leave out what depends on a proxy.
        title: of the whole picture.

    Raises:
        ConfigurationError: there is no run, a run without a record, or not one group a run.
    """
    if not runs or not all(records for records, _ in runs.values()):
        raise ConfigurationError(
            "Expected `runs` with at least one, each with at least one record, got "
            f"{ {name: len(records) for name, (records, _) in runs.items()} }."
        )
    lines = _lines(runs, list(runs) if groups is None else groups)
    panels = [
        name
        for name in _COMPARED
        if not (weights_only and describe(name).needs_proxy)
        and any(line.run.has(name) for line in lines)
    ]
    rows = max(len(panels), 1)
    figure = new_figure(9.5, 2.5 * rows + 0.8)
    all_axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    for axes, name in zip(all_axes, panels, strict=False):
        for line in lines:
            _draw_run(axes, name, line)
        axes.set_ylabel(_COMPARED[name])
        axes.set_ylim(bottom=0.0)
        percent(axes.yaxis)
    all_axes[-1].set_xlabel("optimizer step")
    handles, labels = all_axes[0].get_legend_handles_labels()
    wrapped = [textwrap.fill(label, 28) for label in labels]
    figure.legend(handles, wrapped, loc="outside right upper")
    _frame(figure, title, _comparison_caption(lines, panels))
    return figure


def _lines(
    runs: Mapping[str, tuple[Sequence[Record], Sequence[Event]]], groups: Sequence[str]
) -> list[_Line]:
    if len(groups) != len(runs):
        raise ConfigurationError(
            f"Expected `groups` with one name for each of {len(runs)} runs, got {len(groups)}."
        )
    order = list(dict.fromkeys(groups))
    seen: dict[str, int] = {}
    lines = []
    for (name, (records, events)), group in zip(runs.items(), groups, strict=True):
        place = order.index(group)
        # colours are used up before runs of different groups begin to differ in dashes
        dash = seen.get(group, 0) + place // len(_COLOURS)
        seen[group] = seen.get(group, 0) + 1
        lines.append(
            _Line(
                name=name,
                run=Run(records, events),
                colour=_COLOURS[place % len(_COLOURS)],
                dashes=_DASHES[dash % len(_DASHES)],
            )
        )
    return lines


def _draw_run(axes: Any, name: str, line: _Line) -> None:
    steps, values = line.run.series(name)
    axes.plot(
        steps, values, color=line.colour, linestyle=line.dashes, linewidth=1.4, label=line.name
    )
    if name == "essential_sparsity/value":
        _draw_interval(axes, line.run, line.colour)
    finite = np.isfinite(values)
    for event in line.run.events:
        if name not in (event.series, *event.related) or not finite.any():
            continue
        began, seen = (
            np.interp(step, steps[finite], values[finite])
            for step in (event.onset_step, event.detected_step)
        )
        axes.plot(event.onset_step, began, marker="|", markersize=13, color=line.colour)
        axes.plot(event.detected_step, seen, marker="o", markersize=5, color=line.colour)


def _comparison_caption(lines: Sequence[_Line], panels: Sequence[str]) -> list[str]:
    parts = []
    events = [event for line in lines for event in line.run.events]
    if any({event.series, *event.related} & set(panels) for event in events):
        parts.append("Events of these series: a tick where they began, a dot where they were seen.")
    if "essential_sparsity/value" in panels:
        parts.append("Shaded: the interval of essential sparsity; no line where not informative.")
    return parts
