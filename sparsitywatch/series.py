"""Every number that is followed over time: what it is called, what it says, where it comes from.

``Record.series()`` is a loop over this table. TensorBoard's tags and their descriptions, the
figures, the report, events' words and docs/tags.md read it too. To add a number: compute it, put
it into a field of its record, add its row.
"""

from __future__ import annotations

import contextlib
import functools
import math
from dataclasses import dataclass, replace

__all__ = ["SERIES", "Series", "describe"]

_FINITE, _INFORMATIVE = "all_finite", "essential_sparsity.informative"


@dataclass(frozen=True)
class Series:
    """A number that is followed over time, or a family of them.

    Args:
        name: as in ``Record.series()``. A ``*`` at its end stands for what differs within a family,
            such as the number of a near-zero rule.
        unit: such as "fraction", "count", "s", "steps"; "none" for a bare number.
        label: what it is called in a sentence; ``*`` stands for the same as in the name, and
            ``*%`` for that as a percentage.
        sentence: what it says.
        source: where a record has it: "field" or "field.attribute". Where that is a mapping, each
            of its keys is the last part of a name.
        only: where a record says whether the number means anything; always if empty.
        direction: "up" or "down" if the model turns sparser when the number goes there; empty if
            it does not say.
    """

    name: str
    unit: str
    label: str
    sentence: str
    source: str = ""
    only: str = ""
    direction: str = ""

    @property
    def short_label(self) -> str:
        """The label without the part that all of its family share."""
        return self.label.partition(", ")[2] or self.label

    @property
    def subject(self) -> str:
        """The label as a sentence begins with it, without the part that its family shares."""
        name = self.label.partition(", ")[0]
        return name if self.label == self.name else name[:1].upper() + name[1:]

    def shown(self, x: float) -> str:
        """A number of this series as a person reads it: in per cent, with digits that count.

        >>> describe("near_zero/zero").shown(0.0889), describe("value/dense").shown(2.30258)
        ('8.89 %', '2.303')
        """
        if math.isnan(x):
            return "unknown"
        if self.unit == "fraction":
            return f"{100.0 * x:.3g} %"
        if self.unit in ("count", "steps") and math.isfinite(x):
            return f"{round(x):,}"
        return f"{x:.4g} s" if self.unit == "s" else f"{x:.4g}"

    @property
    def needs_proxy(self) -> bool:
        """Whether only an evaluation of the proxy tells it."""
        return self.source.partition(".")[0] in ("curve", "essential_sparsity", "reliance")

    def trend(self, direction: str) -> str:
        """Where the model goes when the number goes "up" or "down".

        Returns:
            "sparsifying", "densifying", or "" for a series that does not say.
        """
        if not self.direction:
            return ""
        return "sparsifying" if direction == self.direction else "densifying"


# fmt: off
SERIES = (
    # essential sparsity
    Series("essential_sparsity/value", "fraction", "essential sparsity",
           "Share of the in-scope weights that could be removed right now, smallest first and "
           "without retraining (zero-shot), before the value leaves its tolerance for the first "
           "time. Only at steps where it is informative.",
           "essential_sparsity.value", only=_INFORMATIVE, direction="up"),
    Series("essential_sparsity/low", "fraction", "lower end of its interval",
           "Lower end of its confidence interval (90 % by default).",
           "essential_sparsity.low", only=_INFORMATIVE, direction="up"),
    Series("essential_sparsity/high", "fraction", "upper end of its interval",
           "Upper end of its confidence interval (90 % by default).",
           "essential_sparsity.high", only=_INFORMATIVE, direction="up"),
    Series("essential_sparsity/last_crossing", "fraction", "last crossing of the tolerance",
           "Largest share that can be removed with the value still within its tolerance; above "
           "the first crossing where the curve is noisy.",
           "essential_sparsity.last_crossing", only=_INFORMATIVE, direction="up"),
    Series("essential_sparsity/knee", "fraction", "knee of the sparsity-value curve",
           "Share at which two straight lines describe the harm best: flat before, steep after.",
           "essential_sparsity.knee", only=_INFORMATIVE, direction="up"),
    Series("essential_sparsity/sharpness", "ratio", "sharpness of the knee",
           "Slope after the knee divided by the slope before it.",
           "essential_sparsity.sharpness", only=_INFORMATIVE),
    Series("essential_sparsity/informative", "0 or 1", "whether essential sparsity is informative",
           "1 where the model relies on the in-scope weights by more than the tolerance. Where "
           "it is 0 any sparsity is free and says nothing, so no essential sparsity is shown.",
           "essential_sparsity.informative"),
    # small weights
    Series("near_zero/initial_*", "fraction", "near-zero weights, |w| ≤ * × first rms",
           "Share of the in-scope weights with |w| at most the number in the name times the "
           "root mean square that their tensor had when the watch first saw it.",
           "near_zero", only=_FINITE, direction="up"),
    Series("near_zero/rms_*", "fraction", "near-zero weights, |w| ≤ * × present rms",
           "Share of the in-scope weights with |w| at most the number in the name times the "
           "present root mean square of their tensor (0.1: about 0.08 for Gaussian weights).",
           "near_zero", only=_FINITE, direction="up"),
    Series("near_zero/abs_*", "fraction", "near-zero weights, |w| ≤ *",
           "Share of the in-scope weights with |w| at most the number in the name.",
           "near_zero", only=_FINITE, direction="up"),
    Series("near_zero/zero", "fraction", "near-zero weights, w = 0",
           "Share of the in-scope weights that are exactly zero.",
           "near_zero", only=_FINITE, direction="up"),
    # motion
    Series("motion/dormant", "fraction", "dormant weights",
           "Share of a fixed random sample of the in-scope weights whose change since the last "
           "snapshot is explained by weight decay alone: they got no gradient.",
           "dormant.fraction", only=_FINITE, direction="up"),
    Series("motion/dormant_by_chance", "fraction", "what passes as dormant by chance",
           "Share of living weights that passes as dormant by chance, because it came back to "
           "where it was. It grows with the distance of the snapshots; dormant weights count "
           "above it.",
           "dormant.chance", only=_FINITE),
    Series("motion/update_to_weight", "fraction", "size of the update, beside that of the weights",
           "Root mean square of the change since the last snapshot that decoupled decay does "
           "not explain, divided by that of the weights before.",
           "movement.update_to_weight", only=_FINITE),
    Series("motion/sign_flips", "fraction", "weights that changed sign",
           "Share of the sampled weights that changed sign since the last snapshot.",
           "movement.sign_flips", only=_FINITE),
    Series("motion/mask_overlap_*", "fraction", "weights that removing *% takes again",
           "Of the weights that pruning at the sparsity in the name would have removed at the "
           "snapshot before, the share that it removes now; without anything in common, that "
           "sparsity.",
           "masks.scalars", only=_FINITE),
    Series("motion/still", "fraction", "weights that stand still to the last bit",
           "Share of the weights that are to be trained, in scope or not, whose bits are those of "
           "the snapshot before: their updates were lost, or there were none.",
           "vital.still"),
    Series("motion/still_since_start", "fraction", "weights that never moved",
           "The same against the first snapshot.",
           "vital.still_since_start"),
    Series("motion/decay_clock", "none", "decay clock",
           "Sum of learning rate times weight decay over the steps so far. A weight that gets "
           "no gradient shrinks as exp(-clock).",
           "decay_clock"),
    Series("motion/lr_clock", "as lr", "sum of the learning rate",
           "Sum of the learning rate over the steps so far, averaged over the weights.",
           "lr_clock"),
    Series("motion/lr", "as lr", "learning rate",
           "Learning rate at the snapshot, averaged over the in-scope weights.",
           "lr"),
    # what is to come
    Series("forecast/near_zero_in_0.5", "fraction",
           "near-zero weights foreseen for half a unit of the decay clock",
           "Near-zero fraction (first rule) when the decay clock will have advanced by 0.5, "
           "from the weights that are dormant now.",
           "forecast.scalars", only=_FINITE),
    Series("forecast/near_zero_in_1", "fraction",
           "near-zero weights foreseen for one unit of the decay clock",
           "The same for one unit of the decay clock.",
           "forecast.scalars", only=_FINITE),
    Series("forecast/near_zero_in_1_low", "fraction", "lower end of the forecast's band",
           "Lower end of its band, nominally of nine in ten.",
           "forecast.scalars", only=_FINITE),
    Series("forecast/near_zero_in_1_high", "fraction", "upper end of the forecast's band",
           "Upper end of its band, nominally of nine in ten.",
           "forecast.scalars", only=_FINITE),
    Series("forecast/doubling_step", "steps",
           "step at which near-zero weights will be twice their floor",
           "Step at which the near-zero fraction will be twice its running floor, at the "
           "present rate of the decay clock. Only where that can be foreseen and has not "
           "happened.",
           "forecast.doubling_step", only=_FINITE),
    # the value of the model
    Series("value/reliance", "of the value", "reliance",
           "Harm done by removing every in-scope weight, in units of the value; positive when "
           "the model needs these weights.",
           "reliance"),
    Series("value/dense", "of the value", "value of the model as it is",
           "Mean value of the proxy's frozen examples on the model as it is.",
           "curve.dense"),
    Series("value/all_removed", "of the value", "value with every in-scope weight removed",
           "The same with every in-scope weight removed.",
           "curve.all_removed"),
    # counts of weights
    Series("weights/num_nan", "count", "weights that are NaN",
           "In-scope weights that are NaN.",
           "num_nan", only="was_read"),
    Series("weights/num_ranks_differing", "count", "ranks that hold other weights than most",
           "Ranks that ought to hold the same weights as others and do not, to the last bit: a "
           "flipped bit, a step that one of them did not take. Only where several ranks watch "
           "together and hold replicas.",
           "replicas.num_differing", only="was_read"),
    Series("weights/num_inf", "count", "weights that are infinite",
           "In-scope weights that are infinite.",
           "num_inf", only="was_read"),
    Series("weights/num_zero", "count", "weights that are exactly zero",
           "In-scope weights that are exactly zero.",
           "num_zero", only="was_read", direction="up"),
    Series("weights/largest", "of a weight", "largest weight",
           "Magnitude that no in-scope weight exceeds: at most 0.4 % above the largest one. It "
           "grows where a training diverges.",
           "largest", only="was_read"),
    Series("vital/*", "count", "tensors with the finding *",
           "Parameters of the model, in scope or not, that are provably untrained, losing their "
           "updates in rounding, not decaying as stated (decay), not finite, returned to an "
           "earlier state, or blowing up alone.",
           "vital.counts"),
    # the watch itself
    Series("watch/valid", "0 or 1", "whether the snapshot is valid",
           "0 where a measurement failed or contradicted itself; records.jsonl says why.",
           "valid"),
    Series("watch/stall_s", "s", "time for which the training was held up",
           "Time for which this snapshot held up the training.",
           "cost.stall_s"),
    Series("watch/spectrum_s", "s", "time for reading the weights",
           "Time that reading the weights took, behind the training if it could.",
           "cost.spectrum_s"),
    Series("watch/evaluation_s", "s", "time for evaluating the proxy",
           "Time that evaluating the proxy took.",
           "cost.evaluation_s"),
    Series("watch/publish_s", "s", "time for detecting and logging",
           "Time that detectors and logging took for the snapshot before this one.",
           "cost.publish_s"),
    Series("watch/num_forwards", "count", "calls of the value function",
           "Calls of the value function in this snapshot.",
           "cost.num_forwards"),
    Series("watch/overhead", "fraction", "share of the wall time that the watch took",
           "Share of the wall time that the watch has taken, this snapshot included but for its "
           "own writing; the last point is from when the watch was closed. Snapshots and "
           "evaluations are left out to keep it below max_overhead.",
           "cost.overhead"),
    Series("watch/num_left_out", "count", "snapshots left out",
           "Snapshots that were due since the one before and were left out to save time.",
           "cost.num_left_out"),
    Series("watch/num_evaluations_left_out", "count", "evaluations left out",
           "1 where the weights were read and the proxy was not evaluated, to save time.",
           "cost.num_evaluations_left_out"),
)
# fmt: on


@functools.lru_cache(maxsize=4096)
def describe(name: str, table: tuple[Series, ...] = SERIES) -> Series:
    """What is known of a series; of one that is not in the table, no more than its name.

    >>> describe("near_zero/initial_0.1").label, describe("motion/mask_overlap_0.7").label
    ('near-zero weights, |w| ≤ 0.1 × first rms', 'weights that removing 70% takes again')
    >>> describe("new/series").label, describe("near_zero/zero").trend("up")
    ('new/series', 'sparsifying')
    """
    for row in table:
        stem, is_family, _ = row.name.partition("*")
        if name == row.name:
            return row
        if is_family and name.startswith(stem):
            return replace(row, name=name, label=_filled(row.label, name.removeprefix(stem)))
    return Series(name, "none", name, "")


def _filled(label: str, rest: str) -> str:
    with contextlib.suppress(ValueError):  # a name that somebody else made up
        label = label.replace("*%", f"{float(rest):.0%}")
    return label.replace("*", rest)
