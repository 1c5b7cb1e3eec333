"""Every number that is followed over time: what it is called, what it says, where it comes from.

``Record.series()`` is a loop over this table. TensorBoard's tags and their descriptions, the
figures, the report, events' words and docs/tags.md read it too. To add a number: compute it, put
it into a field of its record, add its row; ``beside`` puts it wherever another series is shown.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import cycle

_FINITE = "all_finite"
_INFORMATIVE = "essential_sparsity.informative"


@dataclass(frozen=True)
class Series:
    """A number that is followed over time, or a family of them."""

    name: str  # as in ``Record.series()``; a ``*`` at its end stands for what differs in a family
    source: str  # "field" or "field.attribute" of a record; a mapping's keys are ends of names
    unit: str  # such as "fraction", "count", "s", "steps"; "none" for a bare number
    label: str  # in a sentence; ``*`` as in the name, ``*%`` the same as a percentage
    sentence: str  # what it says
    only: str = ""  # where a record says whether the number means anything; always if empty
    direction: str = ""  # where the number goes, "up" or "down", if the model turns sparser
    beside: str = ""  # the series whose charts and tables have it too, named as in ``LEADING``
    tile: str = ""  # its name where the page has it large; ``{kind}`` is loss or score
    is_chart: bool = False  # whether TensorBoard has it, beside what leads

    @property
    def short_label(self) -> str:
        """The label without the part that all of its family share."""
        return self.label.partition(", ")[2] or self.label

    @property
    def subject(self) -> str:
        """The label as a sentence begins with it, the rule in brackets."""
        name, _, rule = self.label.partition(", ")
        name = name if self.label == self.name else name[:1].upper() + name[1:]
        return f"{name} ({rule})" if rule else name

    def shown(self, x: float) -> str:
        """A number of this series as a person reads it: in per cent, with digits that count."""
        if math.isnan(x):
            return "unknown"
        if self.unit == "fraction":
            return percent(x)
        if self.unit in ("count", "steps") and math.isfinite(x):
            return f"{round(x):,}"
        return significant(x) + (" s" if self.unit == "s" else "")

    @property
    def needs_proxy(self) -> bool:
        """Whether only an evaluation of the proxy tells it."""
        return self.source.startswith(("curve.", "essential_sparsity.", "reliance", "xray."))

    def trend(self, direction: str) -> str:
        """Where the model goes with the number: "sparsifying", "densifying", or "" if unsaid."""
        if not self.direction:
            return ""
        return "sparsifying" if direction == self.direction else "densifying"


@dataclass(frozen=True)
class Line:
    """How a chart draws a series, or each of a family."""

    series: str  # ``{rule}`` is the first near-zero rule; ``*`` as in the name of a family
    label: str = ""  # ``{near_zero}`` is what that rule calls small; empty: that of the series
    colour: str = ""  # of the page; empty: the members of a family have one each
    dash: tuple[int, ...] = ()
    among: tuple[int, ...] = ()  # the dash where several runs are drawn
    alone: bool = False  # only the first of several runs
    width: float = 0.0
    scale: str = ""  # "right": it has an axis of its own, and the print leaves its chart out


@dataclass(frozen=True)
class Panel:
    """A chart of the page and of the print, of a figure, of TensorBoard's custom scalars."""

    key: str
    title: str
    lines: tuple[Line, ...]
    on: tuple[str, ...] = ()  # "page", "figure"
    group: str = ""  # what TensorBoard puts it under, if that has it
    note: str = ""  # ``{kind}`` is loss or score, ``{better}`` "lower" or "higher"
    height: int = 0  # in pixels
    band: tuple[str, ...] = ()  # ends of an interval of the first line
    from_zero: bool = True
    top: float | None = None

    def drawn(self, names: Iterable[str], rule: str) -> list[Line]:
        """Its lines, given a run's series and first rule, and those that stand beside one."""
        own: dict[str, Line] = {}
        for line in self.lines:
            stem, is_family, _ = line.series.partition("*")
            found = [name for name in names if is_family and name.startswith(stem)]
            for name, colour in zip(found or [stem.format(rule=rule)], cycle(_COLOURS)):
                label, colour = line.label or describe(name).short_label, line.colour or colour
                own[name] = replace(line, series=name, label=label, colour=colour)
        beside = with_beside(own, names, rule)
        return [own.get(x) or Line(x, describe(x).label, "purple", (2, 2)) for x in beside]


#: Of the members of a family.
_COLOURS = ("red", "orange", "purple", "green", "sky", "ink")
_TURNING, _NEEDS = "Is it turning sparse?", "What the model needs"
# fmt: off
PANELS = (
    Panel("sparse", "Turning sparse?", (
        Line("near_zero/{rule}", "near zero ({near_zero})", "red", width=2.0),
        Line("motion/dormant", "dormant: no gradient", "blue", among=(2, 2)),
        Line("forecast/near_zero_in_1", "forecast of near zero, one clock unit ahead", "orange",
             (5, 3), alone=True),
    ), ("page",), _TURNING, "share of the in-scope weights", 190),
    Panel("near_zero", "Near-zero weights", (Line("near_zero/*"),), ("figure",), _TURNING),
    Panel("dormant", "Dormant weights", (
        Line("motion/dormant", colour="blue"),
        Line("motion/dormant_by_chance", colour="grey", dash=(5, 3)),
    ), ("figure",), _TURNING),
    # TensorBoard puts a chart with a band last in its group, so it has one of its own
    Panel("essential", "Essential sparsity",
          (Line("essential_sparsity/value", "essential sparsity", "green"),),
          ("page", "figure"), "How much could be thrown away?",
          "share of the weights you could remove now; band: its interval; grey: not measurable, "
          "the cursor says why", 150,
          ("essential_sparsity/low", "essential_sparsity/high"), top=1.0),
    Panel("value", "Model", (
        Line("value/dense", "as it is", "blue"),
        Line("value/all_removed", "without the in-scope weights", "grey", (5, 3), alone=True),
    ), ("page", "figure"), _NEEDS, "{kind} of the held-out examples: {better} is better", 140,
        from_zero=False),
    Panel("reliance", "Reliance", (
        Line("value/reliance", "harm of removing everything", "ink"),
    ), ("figure",), _NEEDS),
    Panel("crossings", "First crossing, last crossing, knee", (
        Line("essential_sparsity/value"),
        Line("essential_sparsity/last_crossing"),
        Line("essential_sparsity/knee"),
    ), (), _NEEDS),
    Panel("clock", "Learning rate and decay clock", (
        Line("motion/lr", "learning rate", "sky"),
        Line("motion/decay_clock", "decay clock (right)", "ink", (2, 2), scale="right"),
    ), ("page",), "", "weights without gradient shrink as exp(−clock)", 110),
)
SERIES = (
    # essential sparsity
    Series("essential_sparsity/value", "essential_sparsity.value", "fraction", "essential sparsity",
           "Share of the in-scope weights that could be removed right now, smallest first and "
           "without retraining (zero-shot), before the value leaves its tolerance. Only "
           "where it is informative.", _INFORMATIVE, "up", tile="essential sparsity"),
    Series("essential_sparsity/low", "essential_sparsity.low", "fraction",
           "lower end of its interval",
           "Lower end of its confidence interval (90 % by default).", _INFORMATIVE, "up",
           is_chart=True),
    Series("essential_sparsity/high", "essential_sparsity.high", "fraction",
           "upper end of its interval",
           "Upper end of its confidence interval (90 % by default).", _INFORMATIVE, "up",
           is_chart=True),
    Series("essential_sparsity/last_crossing", "essential_sparsity.last_crossing", "fraction",
           "last crossing of the tolerance",
           "Largest share that can be removed with the value still within its tolerance; above the "
           "first crossing where the curve is noisy.", _INFORMATIVE, "up", is_chart=True),
    Series("essential_sparsity/knee", "essential_sparsity.knee", "fraction",
           "knee of the sparsity-value curve",
           "Share from which on the value drops much faster; none where a smooth curve tells it as "
           "well.",
           _INFORMATIVE, "up", is_chart=True),
    Series("essential_sparsity/sharpness", "essential_sparsity.sharpness", "ratio",
           "sharpness of the knee",
           "Slope after the knee divided by the slope before it.", _INFORMATIVE),
    Series("essential_sparsity/informative", "essential_sparsity.informative", "0 or 1",
           "whether essential sparsity is informative",
           "1 where the model relies on the in-scope weights by more than the tolerance, and the "
           "tolerance is above the noise. Where it is 0 any sparsity is free, or the examples are "
           "too few to say, so no essential sparsity is shown."),
    # small weights
    Series("near_zero/initial_*", "near_zero", "fraction", "near-zero weights, |w| ≤ * × first rms",
           "Share of the in-scope weights with |w| at most the number in the name times the root "
           "mean square that their tensor had when the watch first saw it.", _FINITE, "up",
           tile="near zero"),
    Series("near_zero/rms_*", "near_zero", "fraction", "near-zero weights, |w| ≤ * × present rms",
           "Share of the in-scope weights with |w| at most the number in the name times the "
           "present root mean square of their tensor (0.1: about 0.08 for Gaussian weights).",
           _FINITE, "up", tile="near zero"),
    Series("near_zero/abs_*", "near_zero", "fraction", "near-zero weights, |w| ≤ *",
           "Share of the in-scope weights with |w| at most the number in the name.", _FINITE, "up",
           tile="near zero"),
    Series("near_zero/zero", "near_zero", "fraction", "near-zero weights, w = 0",
           "Share of the in-scope weights that are exactly zero.", _FINITE, "up", tile="near zero"),
    # motion
    Series("motion/dormant", "dormant.fraction", "fraction", "dormant weights",
           "Share of a fixed random sample of the in-scope weights whose change since the last "
           "snapshot is explained by weight decay alone: they got no gradient.", _FINITE, "up",
           tile="dormant"),
    Series("motion/dormant_by_chance", "dormant.chance", "fraction",
           "what passes as dormant by chance",
           "Share of living weights that passes as dormant by chance, because it came back to "
           "where it was. It grows with the distance of the snapshots; dormant weights count above "
           "it.", _FINITE, is_chart=True),
    Series("motion/update_to_weight", "movement.update_to_weight", "fraction",
           "size of the update, beside that of the weights",
           "Root mean square of the change since the last snapshot that decoupled decay does not "
           "explain, divided by that of the weights before.", _FINITE),
    Series("motion/sign_flips", "movement.sign_flips", "fraction", "weights that changed sign",
           "Share of the sampled weights that changed sign since the last snapshot.", _FINITE),
    Series("motion/mask_overlap_*", "masks.scalars", "fraction",
           "share of the weights pruned at *% last time that would be pruned again",
           "Overlap between the weights pruned at this snapshot and at the last one. Chance level: "
           "the sparsity in the name.", _FINITE),
    Series("motion/still", "vital.still", "fraction", "weights that stand still to the last bit",
           "Share of the weights that are to be trained, in scope or not, whose bits are those of "
           "the snapshot before: their updates were lost, or there were none.", is_chart=True),
    Series("motion/still_since_start", "vital.still_since_start", "fraction",
           "weights that never moved",
           "The same against the first snapshot."),
    Series("motion/decay_clock", "decay_clock", "none", "decay clock",
           "Sum of learning rate times weight decay over the steps so far. A weight that gets no "
           "gradient shrinks as exp(-clock)."),
    Series("motion/lr_clock", "lr_clock", "as lr", "sum of the learning rate",
           "Sum of the learning rate over the steps so far, averaged over the weights."),
    Series("motion/lr", "lr", "as lr", "learning rate",
           "Learning rate at the snapshot, averaged over the in-scope weights that have one."),
    Series("motion/trained", "trained", "fraction", "weights in training",
           "Share of the in-scope weights that a step of any optimizer has reached since the "
           "snapshot before, or in the last ten steps. What is frozen, in no optimizer, or without "
           "a gradient is not reached."),
    # gradients, of all tensors that an optimizer steps on itself
    Series("gradient/norm", "vital.gradients", "as a gradient", "gradient norm",
           "Root of the sum of squares of all gradients as the step at the snapshot used them: of "
           "all its micro-batches and ranks, unscaled, after any clip.", is_chart=True),
    Series("gradient/before_clip", "vital.gradients", "as a gradient",
           "gradient norm before the clip",
           "What `log_loss(..., gradient_norm=...)` said of the step: the norm before the clip."),
    Series("gradient/zeros", "vital.gradients", "fraction", "gradients that are exactly zero",
           "Share of the elements of these gradients that are exactly zero."),
    Series("gradient/change", "vital.gradients", "ratio", "gradient norm beside its own past",
           "The norm, divided by its median at up to eight earlier snapshots."),
    Series("gradient/block/*", "vital.gradients", "as a gradient", "gradient norm of *",
           "The norm of one block, such as `layers.3`; outside of all blocks of a module."),
    # what is to come
    Series("forecast/near_zero_in_0.5", "forecast.scalars", "fraction",
           "near-zero weights foreseen for half a unit of the decay clock",
           "Near-zero fraction (first rule) when the decay clock will have advanced by 0.5, from "
           "the weights that are dormant now.", _FINITE),
    Series("forecast/near_zero_in_1", "forecast.scalars", "fraction",
           "near-zero weights foreseen for one unit of the decay clock",
           "Near-zero fraction (first rule) when the decay clock will have advanced by one unit, "
           "from the weights that are dormant now.", _FINITE, tile="forecast of near zero"),
    Series("forecast/near_zero_in_1_low", "forecast.scalars", "fraction",
           "lower end of the forecast's band",
           "Lower end of its band, nominally of nine in ten.", _FINITE),
    Series("forecast/near_zero_in_1_high", "forecast.scalars", "fraction",
           "upper end of the forecast's band",
           "Upper end of its band, nominally of nine in ten.", _FINITE),
    Series("forecast/doubling_step", "forecast.doubling_step", "steps",
           "step at which near-zero weights will be twice their floor",
           "Step at which the near-zero fraction will be twice its running floor, at the present "
           "rate of the decay clock. Only where that can be foreseen and has not happened.",
           _FINITE),
    # the value of the model
    Series("value/reliance", "reliance", "of the value", "reliance",
           "Harm done by removing every in-scope weight, in units of the value; positive when the "
           "model needs these weights.", tile="reliance on the weights"),
    Series("value/reliance_low", "reliance_low", "of the value",
           "lower end of the interval of reliance",
           "Lower end of its confidence interval (90 % by default)."),
    Series("value/reliance_high", "reliance_high", "of the value",
           "upper end of the interval of reliance",
           "Upper end of its confidence interval (90 % by default)."),
    Series("value/dense", "curve.dense", "of the value", "value of the model as it is",
           "Mean value of the proxy's frozen examples on the model as it is.",
           tile="held-out {kind}"),
    Series("value/all_removed", "curve.all_removed", "of the value",
           "value with every in-scope weight removed",
           "The same with every in-scope weight removed."),
    # counts of weights
    Series("weights/num_nan", "num_nan", "count", "weights that are NaN",
           "In-scope weights that are NaN.", "was_read", is_chart=True),
    Series("weights/num_ranks_differing", "replicas.num_differing", "count",
           "ranks that hold other weights than most",
           "Ranks that ought to hold the same weights as others and do not, to the last bit: a "
           "flipped bit, a step that one of them did not take. Only where several ranks watch "
           "together and hold replicas.", "was_read"),
    Series("weights/num_inf", "num_inf", "count", "weights that are infinite",
           "In-scope weights that are infinite.", "was_read"),
    Series("weights/num_zero", "num_zero", "count", "weights that are exactly zero",
           "In-scope weights that are exactly zero.", "was_read", "up"),
    Series("weights/largest", "largest", "of a weight", "largest weight",
           "Magnitude that no in-scope weight exceeds: at most 0.4 % above the largest one. It "
           "grows where a training diverges.", "was_read", is_chart=True),
    Series("vital/*", "vital.counts", "count", "tensors with the finding *",
           "Parameters of the model, in scope or not, that are provably untrained, losing their "
           "updates in rounding, not decaying as stated (decay), reached by no gradient, idle, "
           "slow, untied, not finite, returned to an earlier state, overwritten, or blowing up; "
           "and, as a note, those that the loop writes to after the steps (written)."),
    # the dense forward
    Series("xray/dead", "xray.dead", "fraction", "dead units",
           "Share of the units, the inputs of linear and convolutional layers, that stay below a "
           "thousandth of the root mean square of their layer's inputs on all held-out examples.",
           is_chart=True),
    Series("xray/dead_units", "xray.dead_units", "fraction", "dead units of the worst layer",
           "The same of the layer that has most."),
    Series("xray/sign_diversity", "xray.sign_diversity", "bits", "sign diversity",
           "Entropy of whether a unit is above zero, over the held-out positions, in bits: mean "
           "over a layer's units, then over layers that read both signs. 1: as often as not."),
    Series("xray/massive", "xray.massive", "ratio", "largest output beside the median",
           "Largest output of an in-scope layer, divided by the median output at its position. "
           "From 1,000 on it is called a massive activation.", is_chart=True),
    Series("xray/super_weights", "xray.num_super_weights", "count", "super weights",
           "Weights that make more than half of a massive activation by themselves; the record "
           "names them."),
    Series("xray/unreached", "xray.num_unreached", "count", "layers that no example reached",
           "Layers that ran for no held-out example, beside others of their list that did: experts "
           "that no token is routed to.", is_chart=True),
    Series("xray/max_violation", "xray.max_violation", "ratio", "overload of the busiest expert",
           "Held-out positions that the busiest expert of a layer gets beyond the mean of all, "
           "divided by that mean, of the layer where it is largest: MaxVio (Wang et al. 2024, "
           "arXiv 2408.15664). 0: all get as many.", is_chart=True),
    # the watch itself
    Series("watch/valid", "valid", "0 or 1", "whether the snapshot is valid",
           "0 where a measurement failed or contradicted itself; records.jsonl says why.",
           is_chart=True),
    Series("watch/stall_s", "cost.stall_s", "s", "time for which the training was held up",
           "Time for which this snapshot held up the training.", is_chart=True),
    Series("watch/spectrum_s", "cost.spectrum_s", "s", "time for reading the weights",
           "Time that reading the weights took, behind the training if it could."),
    Series("watch/evaluation_s", "cost.evaluation_s", "s", "time for evaluating the proxy",
           "Time that evaluating the proxy took."),
    Series("watch/publish_s", "cost.publish_s", "s", "time for detecting and logging",
           "Time that detectors and logging took for the snapshot before this one."),
    Series("watch/num_forwards", "cost.num_forwards", "count", "calls of the value function",
           "Calls of the value function in this snapshot."),
    Series("watch/overhead", "cost.overhead", "fraction",
           "share of the wall time that the watch took",
           "Share of the wall time that the watch has taken, this snapshot included but for its "
           "own writing; the last point is from when the watch was closed. Snapshots and "
           "evaluations are left out to keep it below max_overhead.", is_chart=True),
    Series("watch/num_left_out", "cost.num_left_out", "count", "snapshots left out",
           "Snapshots that were due since the one before and were left out to save time."),
    Series("watch/num_evaluations_left_out", "cost.num_evaluations_left_out", "count",
           "evaluations left out",
           "1 where the weights were read and the proxy was not evaluated, to save time."),
)
# fmt: on
#: Those that stand first, in this order; ``{rule}`` is the first near-zero rule of the run.
LEADING = (
    "near_zero/{rule}",
    "motion/dormant",
    "forecast/near_zero_in_1",
    "essential_sparsity/value",
    "value/dense",
    "value/reliance",
    "motion/decay_clock",
    "motion/lr",
    "motion/update_to_weight",
)  # fmt: skip
#: What the page offers as one more chart, by group, beside what has an event.
CHOICES = {
    "the weights": (
        "motion/update_to_weight", "motion/sign_flips", "motion/mask_overlap_0.9", "motion/still",
        "weights/largest",
    ),
    "removing weights": (
        "value/reliance", "essential_sparsity/knee", "essential_sparsity/last_crossing",
    ),
    "the watch": ("watch/overhead", "watch/stall_s"),
}  # fmt: skip

#: What the page's map shows of each tensor: numbers of ``LayerShare``, and others of a record.
OF_TENSORS = {
    "alone": "essential sparsity alone",
    "near_zero": "near zero",
    "dormant": "dormant",
    "dead": "dead inputs",
    "removed": "removed",
    "gradient": "gradient norm beside that of all",
    "gradient_zeros": "gradient exactly zero",
    "update_to_weight": "update beside the weights",
}


def with_beside(shown: Iterable[str], names: Iterable[str], rule: str = "") -> list[str]:
    """The series that are ``shown``, each followed by those of ``names`` that stand beside it."""
    beside: dict[str, list[str]] = {}
    for name in names:
        beside.setdefault(describe(name).beside.format(rule=rule), []).append(name)
    return [one for name in shown for one in (name, *beside.get(name, ()))]


def percent(share: float) -> str:
    """A share in per cent, with the three digits that count; the page has the same function."""
    return f"{Decimal(f'{100.0 * share:.3g}'):,f} %"


def significant(x: float, digits: int = 4) -> str:
    """The digits that count; an exponent only of what is tiny."""
    text = f"{x:.{digits}g}"
    return f"{Decimal(text):,f}" if 1.0 <= abs(x) < math.inf else text


def count(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size(num_bytes: int) -> str:
    """A size for people."""
    for unit, one in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= one:
            return f"{num_bytes / one:.3g} {unit}"
    return count(num_bytes, "byte")


def numbered(unit: str, *steps: int) -> str:
    """Where in a run something is; its unit is "step", or in a replay also "epoch" or "save"."""
    return f"{unit}{'s' * (len(steps) > 1)} {' and '.join(f'{step:,}' for step in steps)}"


@functools.lru_cache(maxsize=4096)
def describe(name: str, table: tuple[Series, ...] = SERIES) -> Series:
    """What is known of a series; of one that is not in the table, no more than its name."""
    for row in table:
        stem, is_family, _ = row.name.partition("*")
        if name == stem or (is_family and name.startswith(stem)):
            rest = name.removeprefix(stem)
            label = row.label
            with contextlib.suppress(ValueError):  # a name that somebody else made up
                label = label.replace("*%", f"{100.0 * float(rest):.0f} %")
            return replace(row, name=name, label=label.replace("*", rest))
    return Series(name, "", "none", name, "")
