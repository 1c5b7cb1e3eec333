"""What is drawn over the optimizer steps: which panels there are, and how each is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sparsitywatch.analysis.estimate import allowed_harm
from sparsitywatch.analysis.run import Run
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
    Paper,
    new_axes,
    styled,
    value_axis,
)
from sparsitywatch.records import Event
from sparsitywatch.series import describe

__all__ = [
    "Foreseen",
    "Line",
    "Panel",
    "chosen_snapshots",
    "draw_interval",
    "draw_panel",
    "edges_of",
    "foreseen",
    "label_steps",
    "mark_events",
    "panel_figure",
    "panels_of",
]

_RULE_COLOURS = (RED, ORANGE, PURPLE, GREEN, SKY, BLACK)
#: With more snapshots than this only lines are drawn.
_FEW_SNAPSHOTS = 40


def chosen_snapshots(run: Run, most: int) -> list[int]:
    """Indices of snapshots to show: evenly spread, the ends and those with an event.

    Args:
        run: whose snapshots.
        most: how many are spread evenly.
    """
    number = len(run.records)
    if number <= most:
        return list(range(number))
    spread = np.linspace(0, number - 1, most).round().astype(int)
    seen = {event.detected_step for event in run.events}
    marked = [i for i, step in enumerate(run.steps) if int(step) in seen]
    return sorted({*spread.tolist(), *marked})


# ------------------------------------------------------------------ which panels there are


@dataclass(frozen=True, kw_only=True)
class Line:
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
class Panel:
    """What is drawn of one thing.

    Args:
        key: its name for a program.
        title, text: in a few words, and what is seen.
        unit: of the vertical axis.
        lines: of which those are drawn that the run has.
        more: draws what else is in it.
        ahead: up to which step something is foreseen.
        from_zero, up_to: ends of the vertical axis.
        height: in inches.
    """

    key: str
    title: str
    text: str
    unit: str
    lines: Sequence[Line]
    more: Callable[[Any, Run], None] | None = None
    ahead: float = -math.inf
    from_zero: bool = True
    up_to: float | None = None
    height: float = 2.0


def panels_of(run: Run) -> list[Panel]:
    """Every panel that the run has numbers for, in the order of a report."""
    panels = [_near_zero(run), _dormant(run), _essential(run), _RELIANCE, _value(run)]
    panels += [_masks(run), _forecast(run), _MOVEMENT, _LEARNING_RATE, _CLOCK]
    return [panel for panel in panels if any(run.has(line.series) for line in panel.lines)]


def _near_zero(run: Run) -> Panel:
    names = [f"near_zero/{rule}" for rule in run.rules]
    return Panel(
        key="near-zero",
        title="Near-zero weights",
        text="The share of all in-scope weights that are tiny, by several rules of what tiny is. "
        "rms is the root mean square of the tensor that a weight is in: first when the watch "
        "first saw it, or at present. Where this share leaves its floor, the model turns sparse.",
        unit="% of in-scope weights",
        lines=[
            Line(series=name, colour=colour, label=describe(name).short_label)
            for name, colour in zip(names, _RULE_COLOURS * len(names), strict=False)
        ],
        height=2.6,
    )


def _dormant(run: Run) -> Panel:
    text = (
        "The share of weights that only weight decay has moved since the snapshot before: they got "
        "no gradient, so they belong to parts of the model that are dead. Some living weights pass "
        "as dormant by chance; what counts is what lies above that line. Dormant weights can "
        "rise long before near-zero ones do."
    )
    if any(record.dormant is not None and record.dormant.estimated for record in run.records):
        text += (
            " Estimated: what weight decay and the updates were was not known, and was read off "
            "the weights themselves."
        )
    return Panel(
        key="dormant",
        title="Dormant weights",
        text=text,
        unit="% of sampled weights",
        lines=(
            Line(series="motion/dormant", colour=BLUE),
            Line(series="motion/dormant_by_chance", colour=GREY, dashes=DASHED),
        ),
    )


def _essential(run: Run) -> Panel:
    confidence = next(
        (r.essential_sparsity.confidence for r in run.records if r.essential_sparsity), 0.9
    )

    def draw(axes: Any, run: Run) -> None:
        draw_interval(axes, run, GREEN, f"{confidence:.0%} interval")
        steps, value = run.series("essential_sparsity/value")
        for number, ends in enumerate(_gaps(steps, np.isnan(value)), start=1):
            axes.axvspan(
                *ends, color=LIGHT, alpha=0.7, linewidth=0, zorder=-1, gid=f"gap-{number}",
                label="not informative, or not measured" if number == 1 else None,
            )  # fmt: skip

    return Panel(
        key="essential-sparsity",
        title="Essential sparsity",
        text="The largest share of the smallest in-scope weights that can be removed at once "
        "while the value of the model stays within the tolerance of what it was. Zero-shot: "
        "nothing is trained after the removal. Where the model does not rely on these weights "
        "yet, anything can be removed and that says nothing: there is no line, and the "
        "background is grey.",
        unit="% of in-scope weights",
        lines=(
            Line(series="essential_sparsity/value", colour=GREEN),
            Line(series="essential_sparsity/low", colour=GREEN, width=0.5, in_legend=False),
            Line(series="essential_sparsity/high", colour=GREEN, width=0.5, in_legend=False),
        ),
        more=draw,
        up_to=1.0,
    )


def draw_interval(axes: Any, run: Run, colour: str, label: str | None = None) -> None:
    """The interval of essential sparsity as a band."""
    steps, low = run.series("essential_sparsity/low")
    _, high = run.series("essential_sparsity/high")
    axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0, label=label)


def _gaps(steps: np.ndarray, missing: np.ndarray) -> list[tuple[float, float]]:
    """Where a value is missing, each time up to half-way to the snapshots that have one."""
    edges = edges_of(steps)
    found: list[tuple[float, float]] = []
    for i in np.flatnonzero(missing):
        if found and found[-1][1] == edges[i]:
            found[-1] = (found[-1][0], edges[i + 1])
        else:
            found.append((edges[i], edges[i + 1]))
    return found


def edges_of(steps: np.ndarray) -> np.ndarray:
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


_RELIANCE = Panel(
    key="reliance",
    title="Reliance",
    text="How much worse the model gets when all in-scope weights are removed, in units of its "
    "value. Below the dashed line the model does not use these weights yet, and there is no "
    "informative essential sparsity.",
    unit="worse, in units of the value",
    lines=(Line(series="value/reliance", colour=BLACK, label="harm of removing everything"),),
    more=_draw_allowed,
)


def _value(run: Run) -> Panel:
    curve = next((r.curve for r in run.records if r.curve is not None), None)
    is_score = curve is not None and curve.higher_is_better
    better = "higher is better" if is_score else "lower is better"
    number = f" of {curve.num_examples:,}" if curve is not None and curve.num_examples else ""
    label = "without any in-scope weight"
    return Panel(
        key="value",
        title="Value of the model",
        text=f"The mean value{number} held-out examples on the model as it is, and with every "
        f"in-scope weight removed; {better}. The distance of the two is the reliance.",
        unit=f"value ({better})",
        lines=(
            Line(series="value/dense", colour=BLUE, label="as it is"),
            Line(series="value/all_removed", colour=GREY, label=label, dashes=DASHED),
        ),
        from_zero=False,
    )


def _masks(run: Run) -> Panel:
    levels = dict.fromkeys(x for record in run.records if record.masks for x in record.masks.level)
    return Panel(
        key="mask-overlap",
        title="Whether the same weights could go",
        text="Of the weights that removing that share of all would have taken at the snapshot "
        "before, those that it takes now. All of them: the sparse structure stands. That share "
        "itself: the two have nothing in common. Nearer snapshots have more in common.",
        unit="% of the weights that would have gone before",
        lines=[
            Line(series=f"motion/mask_overlap_{x:g}", colour=colour, label=f"of {x:.0%}")
            for x, colour in zip(levels, (SKY, PURPLE, BLUE) * len(levels), strict=False)
        ],
        from_zero=False,
    )


_MOVEMENT = Panel(
    key="movement",
    title="How far the weights moved",
    text="Since the snapshot before: the size of what the updates did (root mean square, beside "
    "that of the weights), and the share of weights that changed their sign. Both grow with the "
    "distance between snapshots.",
    unit="% of the size, and of the number, of the weights",
    lines=(
        Line(series="motion/update_to_weight", colour=PURPLE),
        Line(series="motion/sign_flips", colour=ORANGE),
    ),
)
_LEARNING_RATE = Panel(
    key="learning-rate",
    title="Learning rate",
    text="At the snapshot, averaged over the in-scope weights.",
    unit="learning rate",
    lines=(Line(series="motion/lr", colour=SKY),),
    height=1.2,
)
_CLOCK = Panel(
    key="decay-clock",
    title="Decay clock",
    text="The sum of learning rate times weight decay over the steps so far. A weight that gets no "
    "gradient shrinks as exp(-clock): when the clock has advanced by 2.3, such a weight has a "
    "tenth of its size.",
    unit="decay clock",
    lines=(Line(series="motion/decay_clock", colour=BLACK),),
    height=1.2,
)


# ------------------------------------------------------------------ what was foreseen


@dataclass(frozen=True)
class Foreseen:
    """What one snapshot foresaw for one unit of the decay clock later.

    Args:
        step: of the snapshot.
        due_step: when the clock had advanced, or will have at its present rate.
        fraction, low, high: near-zero fraction, with its band.
        came: near-zero fraction at ``due_step``, between snapshots a straight line; NaN if that
            lies ahead.
    """

    step: int
    due_step: float
    fraction: float
    low: float
    high: float
    came: float


def foreseen(run: Run) -> list[Foreseen]:
    """Every forecast of the run for one unit of the clock, in the order of the snapshots."""
    forecasts = [(record, record.forecast) for record in run.records if record.forecast is not None]
    if not forecasts:
        return []
    clock, rate = run.column("motion/decay_clock"), forecasts[-1][1].clock_per_step
    found = []
    for record, forecast in forecasts:
        middle, low, high = forecast.at(1.0)
        actual = run.column(f"near_zero/{forecast.rule}")
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


def _forecast(run: Run) -> Panel:
    forecasts = sorted(foreseen(run), key=lambda one: one.due_step)
    rule = next((r.forecast.rule for r in run.records if r.forecast is not None), "")
    name = f"near_zero/{rule}"

    def draw(axes: Any, run: Run) -> None:
        due = [one.due_step for one in forecasts]
        axes.plot(
            due, [one.fraction for one in forecasts], color=BLACK, linestyle=DASHED, linewidth=1.4,
            gid="foreseen", label="foreseen one unit of the clock before",
        )  # fmt: skip
        axes.fill_between(
            due, [one.low for one in forecasts], [one.high for one in forecasts],
            color=SKY, alpha=0.4, linewidth=0, zorder=1, label="its band",
        )  # fmt: skip
        axes.axvspan(
            run.steps[-1], axes.get_xlim()[1], color=LIGHT, alpha=0.5, linewidth=0, zorder=-1,
            label="ahead of the last snapshot",
        )  # fmt: skip

    return Panel(
        key="forecast",
        title="Forecast of near-zero weights",
        text="Dormant weights shrink by decay alone, so that their way to zero can be foreseen. "
        "Each point of the dashed line was foreseen one unit of the decay clock earlier; where "
        "the solid line stays in the band, the forecast held. The grey part lies ahead of the last "
        "snapshot, if the clock goes on at its present rate. The band is nominally of nine "
        "in ten.",
        unit="% of in-scope weights",
        lines=[Line(series=name, colour=RED, label=f"what came: {describe(name).label}")]
        if forecasts
        else [],
        more=draw,
        ahead=max((one.due_step for one in forecasts), default=-math.inf),
    )


# ------------------------------------------------------------------ how each is drawn


@styled
def panel_figure(panel: Panel, run: Run, paper: Paper) -> Figure:
    """One panel by itself; what its colours mean is for the page to say."""
    figure, axes = new_axes(paper, panel.height)
    draw_panel(axes, panel, run)
    label_steps(axes, run, paper)
    return figure


def draw_panel(axes: Any, panel: Panel, run: Run, inside: Collection[int] | None = None) -> None:
    """Lines, what else there is, events, and snapshots that failed.

    Args:
        inside: see ``mark_events``.
    """
    _limit_steps(axes, run, panel.ahead)
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
    mark_events(axes, run.events, inside=inside)
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


def _limit_steps(axes: Any, run: Run, ahead: float = -math.inf) -> None:
    first, last = run.steps[[0, -1]]
    pad = 0.02 * (last - first) or 0.5
    axes.set_xlim(first - pad, max(last, ahead) + pad)


def label_steps(axes: Any, run: Run, paper: Paper) -> None:
    """Optimizer steps from the first snapshot to the last."""
    if len(run.records) == 1:
        axes.set_xticks([run.steps[0]])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(paper.num_ticks, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axes.set_xlabel("optimizer step", fontsize=paper.font_size)


def mark_events(
    axes: Any,
    events: Sequence[Event],
    *,
    fill: bool = True,
    inside: Collection[int] | None = None,
) -> None:
    """The interval of the beginning as a band, dotted where it began, solid where it was seen.

    Args:
        fill: whether there is room for more than the line where it was seen.
        inside: events that get their number inside the axes; by default each has its own above.
    """
    for number, event in enumerate(events, start=1):
        if fill:
            _mark_beginning(axes, number, event)
        axes.axvline(
            event.detected_step, color=BLACK if fill else "white", linewidth=1.0,
            gid=f"seen-{number}",
        )  # fmt: skip
        if event.reverted_step >= 0 and fill:
            axes.axvline(event.reverted_step, color=GREY, linewidth=1.0, linestyle=DASHED)
        if inside is not None and number not in inside:
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


def _mark_beginning(axes: Any, number: int, event: Event) -> None:
    if event.onset_low < event.onset_high:
        axes.axvspan(
            event.onset_low, event.onset_high, color=ORANGE, alpha=0.25, linewidth=0, zorder=0,
            gid=f"onset-interval-{number}",
        )  # fmt: skip
    axes.axvline(
        event.onset_step, color=BLACK, linewidth=1.0, linestyle=DOTTED, gid=f"onset-{number}"
    )
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
