"""Every TensorBoard tag of a watched run, and what it means.

The meanings are shown beside the charts and stand in docs/tags.md, which a test compares
with this file and with what is written.
"""

from __future__ import annotations

__all__ = ["MEANINGS", "describe"]

#: Meaning by tag; ``*`` stands for the rest of a name.
MEANINGS = {
    "essential_sparsity/value": (
        "Share of the in-scope weights that could be removed right now, smallest first and "
        "without retraining (zero-shot), before the value leaves its tolerance for the first "
        "time. Only at steps where it is informative."
    ),
    "essential_sparsity/low": "Lower end of its confidence interval (90 % by default).",
    "essential_sparsity/high": "Upper end of its confidence interval (90 % by default).",
    "essential_sparsity/last_crossing": (
        "Largest share that can be removed with the value still within its tolerance; above "
        "the first crossing where the curve is noisy."
    ),
    "essential_sparsity/knee": (
        "Share at which two straight lines describe the harm best: flat before, steep after."
    ),
    "essential_sparsity/sharpness": "Slope after the knee divided by the slope before it.",
    "essential_sparsity/informative": (
        "1 where the model relies on the in-scope weights by more than the tolerance. Where it "
        "is 0 any sparsity is free and says nothing, so no essential sparsity is shown."
    ),
    "near_zero/initial_*": (
        "Share of the in-scope weights with |w| at most the number in the name times the root "
        "mean square that their tensor had when the watch first saw it."
    ),
    "near_zero/rms_*": (
        "Share of the in-scope weights with |w| at most the number in the name times the "
        "present root mean square of their tensor (0.1: about 0.08 for Gaussian weights)."
    ),
    "near_zero/abs_*": "Share of the in-scope weights with |w| at most the number in the name.",
    "near_zero/zero": "Share of the in-scope weights that are exactly zero.",
    "motion/dormant": (
        "Share of a fixed random sample of the in-scope weights whose change since the last "
        "look is explained by weight decay alone: they got no gradient."
    ),
    "motion/dormant_by_chance": (
        "Share of living weights that passes as dormant by chance, because it came back to where "
        "it was. It grows with the distance of the looks; dormant weights count above it."
    ),
    "motion/update_to_weight": (
        "Root mean square of the change since the last look that decoupled decay does not "
        "explain, divided by that of the weights before."
    ),
    "motion/sign_flips": "Share of the sampled weights that changed sign since the last look.",
    "motion/mask_overlap_*": (
        "Of the weights that pruning at the sparsity in the name would have removed at the look "
        "before, the share that it removes now; without anything in common, that sparsity."
    ),
    "motion/decay_clock": (
        "Sum of learning rate times weight decay over the steps so far. A weight that gets no "
        "gradient shrinks as exp(-clock)."
    ),
    "motion/lr_clock": "Sum of the learning rate over the steps so far, averaged over the weights.",
    "motion/lr": "Learning rate at the look, averaged over the in-scope weights.",
    "forecast/near_zero_in_0.5": (
        "Near-zero fraction (first rule) when the decay clock will have advanced by 0.5, from the "
        "weights that are dormant now."
    ),
    "forecast/near_zero_in_1": "The same for one unit of the decay clock.",
    "forecast/near_zero_in_1_low": "Lower end of its band, nominally of nine in ten.",
    "forecast/near_zero_in_1_high": "Upper end of its band, nominally of nine in ten.",
    "forecast/doubling_step": (
        "Step at which the near-zero fraction will be twice its running floor, at the present "
        "rate of the decay clock. Only where that can be foreseen and has not happened."
    ),
    "value/reliance": (
        "Harm done by removing every in-scope weight, in units of the value; positive when the "
        "model needs these weights."
    ),
    "value/dense": "Mean value of the proxy's frozen examples on the model as it is.",
    "value/all_removed": "The same with every in-scope weight removed.",
    "weights/num_nan": "In-scope weights that are NaN.",
    "weights/num_inf": "In-scope weights that are infinite.",
    "weights/num_zero": "In-scope weights that are exactly zero.",
    "watch/valid": "0 where a measurement failed or contradicted itself; records.jsonl says why.",
    "watch/stall_s": "Time for which this look held up the training.",
    "watch/spectrum_s": "Time that reading the weights took, behind the training if it could.",
    "watch/evaluation_s": "Time that evaluating the proxy took.",
    "watch/publish_s": "Time that detectors and logging took for the look before this one.",
    "watch/num_forwards": "Calls of the value function in this look.",
    "watch/overhead": (
        "Share of the wall time that the watch has taken, this snapshot included but for its "
        "own writing; the last point is from when the watch was closed. Snapshots and "
        "evaluations are left out to keep it below max_overhead."
    ),
    "watch/num_left_out": (
        "Snapshots that were due since the one before and were left out to save time."
    ),
    "watch/num_evaluations_left_out": (
        "1 where the weights were looked at and the proxy was not evaluated, to save time."
    ),
    "log10_magnitude/*": (
        "How large the weights of one tensor are: histogram of log10|w|, without exact zeros. "
        "Mass that wanders to the left is weights that shrink."
    ),
    "pictures/sparsity_value_curve": (
        "The value at rising sparsity, with the tolerance and what was read off the curve."
    ),
    "pictures/removed_per_layer": "Share of each tensor's weights that goes at each level.",
    "events/*": (
        "An abrupt change in the series of that name; told again, at a later step, when more "
        "is known about it."
    ),
    "notes": (
        "What to know beside the numbers of a look: weights that are NaN, or the same as at an "
        "earlier step, a value that is not finite. Told when it begins."
    ),
    "watch/state": (
        "How the watch is: on, off and why, or closed; its last snapshot and evaluation, what is "
        "due next, its share of the time. Told whenever that changes."
    ),
    "watch/reason": "Why a snapshot is not valid.",
    "about": "What the charts mean.",
    "scope": "Every parameter of the model, watched or not, and why.",
    "custom_scalars__config__": 'Which charts the page "Custom Scalars" has.',
}


def describe(tag: str) -> str:
    """The meaning of a tag; empty if it is not known.

    >>> describe("near_zero/zero")
    'Share of the in-scope weights that are exactly zero.'
    """
    for name, meaning in MEANINGS.items():
        if tag == name or (name.endswith("*") and tag.startswith(name[:-1])):
            return meaning
    return ""
