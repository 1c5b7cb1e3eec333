"""What stands where in TensorBoard: its tags, its page "Custom Scalars", and its texts.

TensorBoard sorts its cards by their tags. What matters most stands under a prefix that sorts first,
in the order of importance; the rest under one that sorts last. There are at most forty tags,
however many tensors a model has: thousands make TensorBoard slow. The log and the page have all.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence

from sparsitywatch.records import Event, LedgerEntry, Provenance, ledger_in_short
from sparsitywatch.series import Series, describe
from sparsitywatch.shown import shown_name

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
    "event_text",
    "explanation",
    "notes_text",
    "scope_table",
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


# ------------------------------------------------------------------ in words, as Markdown


def explanation(provenance: Provenance) -> str:
    """What the charts mean, for somebody who sees them for the first time."""
    of_what = "times the dense value"
    if provenance.tolerance_mode != "relative":
        of_what = "in units of the value"
    proxy = provenance.proxy_hash or "none: nothing is evaluated, so there is no essential sparsity"
    return f"""\
### How much of this model could be thrown away right now?

At every snapshot the smallest in-scope weights are masked, more and more of them, and the same \
held-out examples are evaluated each time. Training itself is not touched.

- **essential sparsity**: the largest share of weights whose removal leaves the value within \
the tolerance ({provenance.tolerance:.3g} {of_what}). The band is its confidence interval. It is \
*zero-shot*, measured without retraining, and so usually lower than what pruning with fine-tuning \
reaches. Its line begins where it means something.
- **reliance**: the harm of removing *all* in-scope weights. It jumps when the model starts to \
use them. Before that anything can be removed, which says nothing, and no essential sparsity is \
shown.
- **near-zero fraction**: the share of weights that are tiny, by several rules of what tiny is.
- **dormant fraction**: the share of weights that only weight decay has moved since the last \
snapshot: they got no gradient. It can rise long before near-zero counts do. What passes \
*by chance* is drawn beside it.
- **decay clock**: the sum of learning rate times weight decay. A weight without gradient shrinks \
as exp(-clock), and becomes near-zero by decay alone.
- **forecast**: the near-zero fraction to come, from the dormant weights and the clock.
- **Images**: the run so far, with its events; the curve that essential sparsity is read off; and \
which tensors the removed weights come from.
- **Histograms**: log10 of the magnitudes in all tensors of a kind; -3 means 0.001.
- **Text**: `events` say what happened and what to do; `watch` how the watch is; `notes` what to \
know beside the numbers, such as weights that are NaN; `scope` which parameters are watched, and \
why.

What matters most stands first, under `0_sparsity`, the rest under `z_sparsity`. The tab \
*Sparsity* has all of it on one page, with its events in the charts, and `sparsitywatch report` \
makes a file of it.

Numbers of different provenance cannot be compared. This run: scope `{provenance.scope_hash}`, \
proxy `{proxy}`, pattern {_code(provenance.pattern)}, weights in {", ".join(provenance.dtypes)}, \
sparsitywatch {provenance.sparsitywatch}, torch {provenance.torch}. \
All of it, and more, is in `records.jsonl` beside this run's event file.
"""


def scope_table(ledger: Sequence[LedgerEntry]) -> str:
    """Every parameter, in or out of scope, and why."""
    rows = []
    for entry in ledger:
        why = _prose(shown_name(entry.reason))
        if entry.aliases:
            why += f"; the same as {', '.join(map(_code, entry.aliases))}"
        rows.append(
            f"| {'**in**' if entry.in_scope else 'out'} | {_code(entry.name)} "
            f"| {'x'.join(map(str, entry.shape)) or 'scalar'} | {entry.num_weights:,} | {why} |"
        )
    head = f"**{ledger_in_short(ledger)}**"
    titles = "| | parameter | shape | weights | why |"
    return "\n".join([head, "", titles, "|---|---|---|---:|---|", *rows])


#: What Markdown and HTML take for a mark; an underscore inside a word is none.
_MARK = re.compile(r"[\\`*\[\]|<&]|(?<!\w)_|_(?!\w)")


def _code(name: str) -> str:
    """A name of whatever characters as a piece of code in Markdown, also in a table."""
    name = shown_name(name)
    return f"<code>{_prose(name)}</code>" if re.search(r"[\\`|<&]", name) else f"`{name}`"


def _prose(text: str) -> str:
    """A text in Markdown in which nothing is a mark."""
    return _MARK.sub(lambda mark: f"&#{ord(mark[0])};", text)


def notes_text(remarks: Sequence[str]) -> str:
    """What to know beside the numbers of a snapshot."""
    return "\n".join(f"- {remark[:1].upper()}{remark[1:]}." for remark in remarks)


def event_text(event: Event) -> str:
    """One event: a sentence or two, then its numbers."""
    facts = [f"{event.baseline:.4g} before, {event.value:.4g} when seen"]
    if not math.isnan(event.noise):
        times = f": {abs(event.size_in_noise):.3g} of them" if event.noise > 0.0 else ""
        facts.append(f"noise before: standard deviation {event.noise:.2g}{times}")
    if not math.isnan(event.decay_clock):
        facts.append(f"decay clock when seen: {event.decay_clock:.2f}")
    facts += [f"much of it in {_code(name)}" for name in event.layers]
    if event.before_step >= 0:
        facts.append(f"spectra to compare: steps {event.before_step} and {event.detected_step}")
    if event.revised_step >= 0:
        facts.append(f"revised at step {event.revised_step}, with what was learned since")
    title = f"**{_prose(event.describe())}**"
    advice = _prose(event.advice)
    return "\n".join([title, "", advice, "", *(f"- {fact}" for fact in facts), "", _code(event.id)])
