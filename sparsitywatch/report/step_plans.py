"""The charts over the optimizer steps: which there are, and what they say of themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparsitywatch.analysis.estimate import allowed_harm
from sparsitywatch.analysis.overlap import MASK_LEVELS
from sparsitywatch.report.chart import Key
from sparsitywatch.report.runlog import RunLog
from sparsitywatch.report.theme import INK, VARIABLES
from sparsitywatch.series import describe
from sparsitywatch.sinks.drawing import BLUE, GREEN, GREY, LIGHT, ORANGE, PURPLE, RED, SKY
from sparsitywatch.sinks.overview import gaps

__all__ = ["Line", "Plan", "plans_for"]

_RULE_COLOURS = (RED, ORANGE, PURPLE, GREEN, SKY, INK)
_DASHED: Any = (0, (4, 2))

More = Callable[[Any, RunLog], None]


@dataclass(frozen=True, kw_only=True)
class Line:
    """One series in a chart; ``dashes`` as matplotlib has them, ``width`` in points."""

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

    def key(self) -> Key:
        """Its line of the legend."""
        shape = "line" if self.dashes == "-" else "dashed"
        return Key(label=self.name, colour=VARIABLES[self.colour], shape=shape)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One chart: its words, its lines, and what else is in it; ``height`` in inches."""

    key: str
    title: str
    text: str
    unit: str
    lines: Sequence[Line]
    more: More | None = None
    more_keys: Sequence[Key] = field(default_factory=tuple)
    from_zero: bool = True
    height: float = 2.0

    @property
    def unit_of_axis(self) -> str:
        """What is counted along its vertical axis."""
        return describe(self.lines[0].series).unit


def plans_for(run: RunLog) -> list[Plan]:
    """Every chart that the run has numbers for, in the order of the page."""
    plans = [_near_zero(run), _dormant(run), _essential(run), _reliance(), _value(run)]
    plans += [_MOVEMENT, _masks(run), _LEARNING_RATE, _CLOCK]
    return [plan for plan in plans if any(run.has(line.series) for line in plan.lines)]


def _near_zero(run: RunLog) -> Plan:
    lines = [
        Line(
            series=f"near_zero/{rule}",
            colour=colour,
            label=describe(f"near_zero/{rule}").short_label,
        )
        for rule, colour in zip(run.rules, _RULE_COLOURS * len(run.rules), strict=False)
    ]
    text = (
        "The share of all in-scope weights that are tiny, by several rules of what tiny is. "
        "rms is the root mean square of the tensor that a weight is in: first when the watch "
        "first saw it, or at present. Where this share leaves its floor, the model turns sparse."
    )
    return Plan(
        key="near-zero", title="Near-zero weights", text=text, unit="% of in-scope weights",
        lines=lines, height=2.6,
    )  # fmt: skip


def _dormant(run: RunLog) -> Plan:
    text = (
        "The share of weights that only weight decay has moved since the look before: they got no "
        "gradient, so they belong to parts of the model that are dead. Some living weights pass "
        "as dormant by chance; what counts is what lies above that line. Dormant weights can "
        "rise long before near-zero ones do."
    )
    if any(record.dormant is not None and record.dormant.estimated for record in run.records):
        text += (
            " Estimated: what weight decay and the updates were was not known, and was read off "
            "the weights themselves."
        )
    return Plan(
        key="dormant",
        title="Dormant weights",
        text=text,
        unit="% of sampled weights",
        lines=(
            Line(series="motion/dormant", colour=BLUE),
            Line(series="motion/dormant_by_chance", colour=GREY, dashes=_DASHED),
        ),
    )


def _essential(run: RunLog) -> Plan:
    confidence = next(
        (r.essential_sparsity.confidence for r in run.records if r.essential_sparsity), 0.9
    )
    return Plan(
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
        more=_draw_interval,
        more_keys=(
            Key(label=f"{confidence:.0%} interval", colour="green", shape="band"),
            Key(label="not informative, or not measured", colour="light", shape="band"),
        ),
    )  # fmt: skip


def _draw_interval(axes: Any, run: RunLog) -> None:
    asked = run.asked("essential_sparsity/value")
    steps = run.steps[asked]
    value, low, high = (
        run.series(f"essential_sparsity/{x}")[asked] for x in ("value", "low", "high")
    )
    axes.fill_between(steps, low, high, color=GREEN, alpha=0.2, linewidth=0)
    for number, ends in enumerate(gaps(steps, np.isnan(value)), start=1):
        axes.axvspan(*ends, color=LIGHT, alpha=0.7, linewidth=0, zorder=-1, gid=f"gap-{number}")
    axes.set_ylim(0.0, 1.0)


def _reliance() -> Plan:
    return Plan(
        key="reliance",
        title="Reliance",
        text="How much worse the model gets when all in-scope weights are removed, in units of its "
        "value. Below the dashed line the model does not use these weights yet, and there is no "
        "informative essential sparsity.",
        unit="worse, in units of the value",
        lines=(Line(series="value/reliance", colour=INK, label="harm of removing everything"),),
        more=_draw_allowed,
        more_keys=(Key(label="harm that is tolerated", colour="grey", shape="dashed"),),
    )


def _draw_allowed(axes: Any, run: RunLog) -> None:
    dense, asked = run.series("value/dense"), run.asked("value/dense")
    allowed = [
        allowed_harm(x, record.provenance.tolerance, record.provenance.tolerance_mode)
        for x, record, was_asked in zip(dense, run.records, asked, strict=True)
        if was_asked
    ]
    marker = "_" if len(allowed) == 1 else ""
    axes.plot(
        run.steps[asked], allowed, color=GREY, linestyle=_DASHED, linewidth=1.2, marker=marker,
        gid="allowed",
    )  # fmt: skip


def _value(run: RunLog) -> Plan:
    curve = next((r.curve for r in run.records if r.curve is not None), None)
    is_score = curve is not None and curve.higher_is_better
    better = "higher is better" if is_score else "lower is better"
    number = f" of {curve.num_examples:,}" if curve is not None and curve.num_examples else ""
    return Plan(
        key="value",
        title="Value of the model",
        text=f"The mean value{number} held-out examples on the model as it is, and with every "
        f"in-scope weight removed; {better}. The distance of the two is the reliance.",
        unit=f"value ({better})",
        lines=(
            Line(series="value/dense", colour=BLUE, label="as it is"),
            Line(series="value/all_removed", colour=GREY, label="without any in-scope weight",
                  dashes=_DASHED),
        ),
        from_zero=False,
    )  # fmt: skip


def _masks(run: RunLog) -> Plan:
    series = {level: f"motion/mask_overlap_{level:g}" for level in MASK_LEVELS}
    lines = [
        Line(series=series[level], colour=colour, label=f"of {level:.0%}")
        for level, colour in zip(MASK_LEVELS, (SKY, BLUE, PURPLE), strict=True)
        if run.has(series[level])
    ]
    return Plan(
        key="mask-overlap",
        title="Whether the same weights could go",
        text="Of the weights that removing that share of all would have taken at the look before, "
        "those that it takes now. All of them: the sparse structure stands. That share itself: the "
        "two have nothing in common. Nearer looks have more in common.",
        unit="% of the weights that would have gone before",
        lines=lines,
        from_zero=False,
    )


_MOVEMENT = Plan(
    key="movement",
    title="How far the weights moved",
    text="Since the look before: the size of what the updates did (root mean square, beside that "
    "of the weights), and the share of weights that changed their sign. Both grow with the "
    "distance between looks.",
    unit="% of the size, and of the number, of the weights",
    lines=(
        Line(series="motion/update_to_weight", colour=PURPLE),
        Line(series="motion/sign_flips", colour=ORANGE),
    ),
)
_LEARNING_RATE = Plan(
    key="learning-rate",
    title="Learning rate",
    text="At the look, averaged over the in-scope weights.",
    unit="learning rate",
    lines=(Line(series="motion/lr", colour=SKY),),
    height=1.2,
)
_CLOCK = Plan(
    key="decay-clock",
    title="Decay clock",
    text="The sum of learning rate times weight decay over the steps so far. A weight that gets no "
    "gradient shrinks as exp(-clock): when the clock has advanced by 2.3, such a weight has a "
    "tenth of its size.",
    unit="decay clock",
    lines=(Line(series="motion/decay_clock", colour=INK),),
    height=1.2,
)
