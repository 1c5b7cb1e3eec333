"""What stands where in TensorBoard: its tags, and its page "Custom Scalars".

TensorBoard sorts its cards by their tags. What matters most stands under a prefix that sorts first,
in the order of importance; the rest under one that sorts last. There are at most forty tags,
however many tensors a model has: thousands make TensorBoard slow. The log and the page have all.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence

from sparsitywatch.records import Provenance
from sparsitywatch.series import Series, describe

__all__ = [
    "EVENTS",
    "FIRST",
    "IN_EVERY_RECORD",
    "LAST",
    "LEADING",
    "MORE_RULES",
    "OTHER_TAGS",
    "REST",
    "Charts",
    "charts",
    "sentence_of",
    "tag_of",
]

#: Prefixes of tags: TensorBoard puts digits before letters, and z after the user's own.
FIRST, LAST = "0_sparsity", "z_sparsity"
#: Series that stand first, in this order; ``{rule}`` is the first near-zero rule of the run.
LEADING = (
    "near_zero/{rule}", "motion/dormant", "forecast/near_zero_in_1", "essential_sparsity/value",
    "value/dense", "value/reliance", "motion/decay_clock", "motion/lr", "motion/update_to_weight",
)  # fmt: skip
#: Of all other series those that are charts, and as many more near-zero rules.
REST = (
    "essential_sparsity/low", "essential_sparsity/high", "essential_sparsity/last_crossing",
    "essential_sparsity/knee", "motion/dormant_by_chance", "motion/still", "weights/largest",
    "weights/num_nan", "watch/valid", "watch/stall_s", "watch/overhead",
)  # fmt: skip
MORE_RULES = 3

# fmt: off
#: What there is beside series: tags and meanings; the unit is the kind of thing.
OTHER_TAGS = (
    Series(f"{FIRST}/overview", "picture", "overview",
           "The run so far on one picture, with its events. Drawn at an event, whenever there are "
           "twice as many snapshots as before, and at the end."),
    Series(f"{LAST}/sparsity_value_curve", "picture", "sparsity-value curve",
           "The value at rising sparsity, with the tolerance and what was read off the curve."),
    Series(f"{LAST}/removed_per_layer", "picture", "where the removed weights come from",
           "Share of each tensor's weights that goes at each level."),
    Series(f"{LAST}/log10_magnitude/*", "histogram", "magnitudes of *",
           "How large the weights are in all tensors of a kind, such as the queries of all blocks: "
           "histogram of log10|w|, without exact zeros. Mass that wanders to the left is weights "
           "that shrink."),
    Series(f"{FIRST}/events", "text", "events",
           "What happened, and what to do about it; told again, at a later step, when more is "
           "known."),
    Series(f"{FIRST}/watch", "text", "state of the watch",
           "How the watch is: on, off and why, or closed; its last snapshot and evaluation, what "
           "is due next, its share of the time. Reported whenever that changes."),
    Series(f"{LAST}/about", "text", "about", "What the charts mean."),
    Series(f"{LAST}/notes", "text", "notes",
           "What to know beside the numbers of a snapshot: weights that are NaN, or the same as "
           "at an earlier step, a value that is not finite. Reported when it begins; and why a "
           "snapshot is not valid."),
    Series(f"{LAST}/scope", "text", "scope",
           "Every parameter of the model, watched or not, and why."),
    Series("custom_scalars__config__", "layout", "charts",
           'Which charts the page "Custom Scalars" has.'),
    Series("_hparams_/session_start_info", "table", "settings",
           'What was watched, and how: a row in the table of runs on the page "HParams".'),
    Series("_hparams_/session_end_info", "table", "end", "That the watch was closed."),
)
# fmt: on

EVENTS, IN_EVERY_RECORD = f"{FIRST}/events", f"{LAST}/watch/valid"


@functools.lru_cache(maxsize=4096)
def tag_of(series: str, first_rule: str = "") -> str:
    """Tag of a series in TensorBoard; empty if it is none of those that are charts.

    Args:
        series: its name.
        first_rule: the first near-zero rule of the run, whose series is the first of all.

    >>> tag_of("near_zero/rms_0.1", "rms_0.1"), tag_of("near_zero/zero", "rms_0.1")
    ('0_sparsity/1_near_zero/rms_0.1', 'z_sparsity/near_zero/zero')
    >>> tag_of("motion/dormant"), tag_of("watch/publish_s")
    ('0_sparsity/2_motion/dormant', '')
    """
    for place, name in enumerate(LEADING, start=1):
        if series == name.format(rule=first_rule):
            return f"{FIRST}/{place}_{series}"
    return f"{LAST}/{series}" if series in REST or series.startswith("near_zero/") else ""


def sentence_of(tag: str) -> str:
    """What a tag means: its series' sentence, or its own."""
    series = re.sub(rf"^({FIRST}/\d+_|{LAST}/)", "", tag)
    return describe(series).sentence or describe(tag, OTHER_TAGS).sentence


#: Charts by title, by title of their category. A chart is ("margin", [value, low, high]) with
#: three tags, or ("lines", patterns) with regular expressions of tags.
Charts = Mapping[str, Mapping[str, tuple[str, Sequence[str]]]]
_SPARSE: Charts = {
    "Is it turning sparse?": {
        "near-zero weights (beside their first size), and their forecast": (
            "lines",
            [f"{FIRST}/1_near_zero/.+", f"{tag_of('forecast/near_zero_in_1')}$"],
        ),
        "dormant weights (got no gradient)": (
            "lines",
            [tag_of("motion/dormant"), tag_of("motion/dormant_by_chance")],
        ),
    },
}
_RULES: Charts = {
    "Near-zero weights, by every rule": {"near-zero weights": ("lines", [".+near_zero/.+"])}
}
_VALUE: Charts = {
    "How much could be thrown away?": {
        "essential sparsity and its interval": (
            "margin",
            [tag_of(f"essential_sparsity/{part}") for part in ("value", "low", "high")],
        ),
    },
    "What the model needs": {
        "value of the model as it is": ("lines", [tag_of("value/dense")]),
        "reliance: harm of removing all in-scope weights": ("lines", [tag_of("value/reliance")]),
        "first crossing, last crossing, knee": (
            "lines",
            [tag_of(f"essential_sparsity/{part}") for part in ("value", "last_crossing", "knee")],
        ),
    },
}


def charts(provenance: Provenance) -> Charts:
    """The charts of the page "Custom Scalars", what matters most first.

    Without a proxy there are those of weights alone. TensorBoard puts a chart with a band last in
    its category, so it has one of its own.
    """
    return {**_SPARSE, **(_VALUE if provenance.proxy_hash else {}), **_RULES}
