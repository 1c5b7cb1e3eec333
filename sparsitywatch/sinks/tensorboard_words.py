"""The texts of the TensorBoard run, as Markdown: events, what the charts mean, the scope."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from sparsitywatch.records import Event, LedgerEntry, Provenance, ledger_in_short
from sparsitywatch.shown import shown_name

__all__ = ["event_text", "explanation", "notes_text", "scope_table"]


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
