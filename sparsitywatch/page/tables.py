"""Numbers as a person reads them, and the tables of the page.

A number is written as ``<data value="0.3630">36.3 %</data>``: what is shown is rounded, the
attribute is the recorded number.
"""

from __future__ import annotations

import math
import statistics
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from sparsitywatch.analysis.digest import Digest
from sparsitywatch.analysis.run import Run
from sparsitywatch.records import Event, Provenance, Record, ledger_in_short
from sparsitywatch.series import describe
from sparsitywatch.shown import shown_name, shown_text

__all__ = [
    "Cell",
    "Number",
    "Table",
    "cost_facts",
    "count",
    "event_rows",
    "fraction",
    "invalid_table",
    "ledger_table",
    "number_of",
    "plain",
    "printable",
    "provenances",
    "seconds",
    "several",
]

#: Longer ledgers are for `sparsitywatch scope`.
_MAX_LEDGER = 1500
_MAX_INVALID = 200


_NOT_ALLOWED = ("Cc", "Cf", "Cn", "Cs", "Zl", "Zp")
_NO_BREAK = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True)
class Number:
    """A number as it was recorded, NaN if it was not measured, and as it is shown."""

    value: float
    text: str

    def __str__(self) -> str:
        return self.text

    def __html__(self) -> str:
        if math.isnan(self.value):
            return Markup('<span class="none" title="not measured">{}</span>').format(self.text)
        return Markup('<data value="{}">{}</data>').format(repr(self.value), self.text)


#: What stands in a table.
Cell = Number | Markup | str


def fraction(x: float) -> Number:
    """A fraction in per cent, with three digits.

    >>> [str(fraction(x)).split() for x in (0.36301, 1.0, 0.0004)]
    [['36.3', '%'], ['100', '%'], ['0.04', '%']]
    """
    return _shown(x, f"{100 * x:.3g}{_NO_BREAK}%")


def plain(x: float) -> Number:
    """A number without a unit, or in that of the value, with four digits.

    >>> str(plain(2.30258)), str(plain(math.nan))
    ('2.303', '–')
    """
    return _shown(x, f"{x:.4g}")


def count(n: float) -> Number:
    """A whole number: a step, a number of weights.

    >>> str(count(84934656))
    '84,934,656'
    """
    whole = n if math.isnan(n) or math.isinf(n) else int(n)
    return _shown(whole, f"{whole:,}")


def several(number: int, noun: str) -> Markup:
    """So many of something."""
    return Markup("{} {}").format(count(number), noun if number == 1 else f"{noun}s")


def seconds(x: float) -> Number:
    """A time in seconds, or in a larger unit where it is long.

    >>> [str(seconds(x)).split() for x in (0.0123, 75.2, 7300.0)]
    [['0.0123', 's'], ['75.2', 's'], ['2.03', 'h']]
    """
    if x >= 3600.0:
        return _shown(x, f"{x / 3600.0:.3g}{_NO_BREAK}h")
    if x >= 600.0:
        return _shown(x, f"{x / 60.0:.3g}{_NO_BREAK}min")
    return _shown(x, f"{x:.3g}{_NO_BREAK}s")


_UNITS = {"fraction": fraction, "count": count, "steps": count, "s": seconds}


def number_of(series: str, x: float) -> Number:
    """A number of a series, in its unit."""
    return _UNITS.get(describe(series).unit, plain)(x)


def _shown(x: float, text: str) -> Number:
    # a number of numpy writes its type into its exact form
    exact = x if isinstance(x, int) else float(x)
    return Number(exact, "\N{EN DASH}" if math.isnan(x) else text)


def printable(text: str) -> str:
    r"""Text that HTML and SVG can hold: the rest is escaped as on a terminal.

    So are marks that turn the direction of writing. Spaces of every width stay.

    >>> print(printable(chr(0) + "a" + chr(0x202E)))
    \x00a\u202e
    """
    return "".join(c if _is_allowed(c) else shown_name(c) for c in text)


def _is_allowed(character: str) -> bool:
    """Whether XML 1.0 takes a character, browsers do not warn of it, and it moves no other."""
    return character in "\t\n\r" or unicodedata.category(character) not in _NOT_ALLOWED


# ------------------------------------------------------------------ tables


@dataclass(frozen=True, kw_only=True)
class Table:
    """Numbers in rows; each column has a title, and its name in the records if it has one."""

    caption: str
    header: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Fact:
    """A thing, what it is, and what to know about it."""

    name: str
    value: Cell
    remark: str | Markup = ""


# ------------------------------------------------------------------ events


def event_rows(run: Run) -> list[dict[str, Cell]]:
    """One row an event, by column."""
    numbers = {event.id: i for i, event in enumerate(run.events, start=1)}
    return [_event_row(event, numbers) for event in run.events]


def _event_row(event: Event, numbers: dict[str, int]) -> dict[str, Cell]:
    verb = "rose" if event.direction == "up" else "fell"
    began: Cell = count(event.onset_step)
    if event.onset_low < event.onset_high:
        began = Markup("{} <small>({} to {})</small>").format(
            began, count(event.onset_low), count(event.onset_high)
        )
    size = Markup("{} → {}").format(
        number_of(event.series, event.baseline), number_of(event.series, event.value)
    )
    if math.isfinite(event.size_in_noise):
        size += Markup("<br><small>{} times its noise</small>").format(
            plain(abs(event.size_in_noise))
        )
    return {
        "what": Markup("{} {}<br><small>{}</small>").format(
            describe(event.series).label, verb, event.trend
        ),
        "began": began,
        "seen": count(event.detected_step),
        "size": size,
        "layers": Markup("<br>").join(map(_breakable, event.layers))
        if event.layers
        else "\N{EN DASH}",
        "cause": _cause(event),
        "since": _since(event, numbers),
    }


def _breakable(name: str) -> Markup:
    """A name with dots that a narrow page may break behind them."""
    return Markup(".<wbr>").join(name.split("."))


def _cause(event: Event) -> Markup:
    change = {
        "scale": "the scale of the weights moved",
        "shape": "the shape of their distribution changed",
        "both": "scale and shape changed",
    }.get(event.change, "")
    clock = "weight decay alone could have done it" if event.explained_by_decay else ""
    if event.explained_by_decay is False:
        clock = "faster than weight decay alone could"
    elif event.explained_by_decay is None and event.series.startswith("near_zero/"):
        clock = "whether weight decay alone could have done it is not known"
    parts: list[str | Markup] = [text for text in (change, clock) if text] or ["not known"]
    if math.isfinite(event.decay_clock):
        parts.append(Markup("<small>decay clock {}</small>").format(plain(event.decay_clock)))
    return Markup("<br>").join(parts)


def _since(event: Event, numbers: dict[str, int]) -> Markup:
    parts = []
    if event.preceded_by:
        number = numbers.get(event.preceded_by)
        parts.append(Markup("announced by {}").format(
            f"event {number}" if number else event.preceded_by))  # fmt: skip
    if event.related:
        parts.append(
            Markup("seen in {} too").format(
                "; ".join(describe(series).label for series in event.related)
            )
        )
    if event.reverted_step >= 0:
        parts.append(Markup("half of it gone at step {}").format(count(event.reverted_step)))
    return Markup("<br>").join(parts) if parts else Markup("\N{EN DASH}")


# ------------------------------------------------------------------ provenance


def provenances(run: Run) -> list[tuple[Markup, list[Fact]]]:
    """What the numbers depend on, once for each chunk of snapshots that share it."""
    chunks: list[tuple[Provenance, list[Record]]] = []
    for record in run.records:
        if not chunks or chunks[-1][0] != record.provenance:
            chunks.append((record.provenance, []))
        chunks[-1][1].append(record)
    return [
        (
            Markup("steps {} to {}").format(count(records[0].step), count(records[-1].step)),
            _provenance(provenance, records),
        )
        for provenance, records in chunks
    ]


def _provenance(provenance: Provenance, records: Sequence[Record]) -> list[Fact]:
    last = records[-1]
    weights = Markup("{} weights in {} tensors").format(
        count(last.scope.num_weights), count(last.scope.num_tensors)
    )
    curve = next((r.curve for r in reversed(records) if r.curve is not None), None)
    examples: Cell = "none: nothing was evaluated"
    what = ""
    if provenance.proxy_hash:
        number = None if curve is None else curve.num_examples
        what = "hash of the held-out examples"
        examples = f"{provenance.proxy_hash}" + ("" if number is None else f", {number:,} examples")
    relative = provenance.tolerance_mode == "relative"
    tolerance = Markup("{} {}").format(
        fraction(provenance.tolerance) if relative else plain(provenance.tolerance),
        "of the dense value" if relative else "in units of the value",
    )
    return [
        Fact("scope", weights, f"hash {provenance.scope_hash}"),
        Fact("proxy", examples, what),
        Fact("tolerance", tolerance, "harm that counts as none"),
        Fact("pattern", provenance.pattern, "which weights a sparsity removes"),
        Fact("evaluation", provenance.evaluation, "zero-shot: nothing is trained after removal"),
        Fact("dtypes", ", ".join(provenance.dtypes) or "none", "of the in-scope weights"),
        Fact("sparsitywatch", provenance.sparsitywatch, "version"),
        Fact("torch", provenance.torch, "version"),
    ]


def ledger_table(run: Run) -> Table | None:
    """Every parameter, in or out of scope, and why; None if that was not logged."""
    if run.info is None or not run.info.ledger:
        return None
    ledger = run.info.ledger
    rows: list[Sequence[Cell]] = [
        [
            entry.name,
            "in" if entry.in_scope else "out",
            " × ".join(map(str, entry.shape)) or "scalar",
            count(entry.num_weights),
            entry.why,
        ]
        for entry in ledger[:_MAX_LEDGER]
    ]  # fmt: skip
    caption = ledger_in_short(ledger)
    if len(ledger) > _MAX_LEDGER:
        caption += f"; the first {_MAX_LEDGER:,} are shown, sparsitywatch scope lists all"
    header = [("parameter", "name"), ("scope", "in_scope"), ("shape", "shape"),
              ("weights", "num_weights"), ("why", "reason")]  # fmt: skip
    return Table(caption=caption, header=header, rows=rows)


# ------------------------------------------------------------------ what it cost, what failed


def cost_facts(run: Run, digest: Digest) -> list[Fact]:
    """What the watch took from the training; a replay has no training to hold up."""
    total, state = digest.cost, digest.state
    reading, evaluating = seconds(total.spectrum_s), seconds(total.evaluation_s)
    evaluations = Markup("{} evaluations").format(count(total.num_forwards))
    if run.replayed_from:
        return [
            Fact("reading weights", reading, "all snapshots together"),
            Fact("evaluating", evaluating, evaluations),
        ]
    median_s = statistics.median(record.cost.stall_s for record in run.records)
    facts = [
        Fact("held up the training", seconds(total.stall_s), "all snapshots together"),
        Fact("one snapshot", seconds(median_s), "median time held up"),
        Fact("reading weights", reading, "all snapshots, behind the training where it can be"),
        Fact("evaluating", evaluating, evaluations),
        Fact("snapshots left out", count(total.num_left_out),
             "they were due, and would have cost too much"),
        Fact("evaluations left out", count(total.num_evaluations_left_out),
             "only the weights were read"),
    ]  # fmt: skip
    if math.isfinite(total.overhead):
        is_later = state is not None and math.isfinite(state.overhead)
        until = f"step {state.step:,}" if state is not None and is_later else "the last snapshot"
        facts.append(Fact("share of the wall time", fraction(total.overhead), f"up to {until}"))
    return facts


def invalid_table(run: Run) -> Table | None:
    """The snapshots that failed, with the reason; None if there is none."""
    failed = [record for record in run.records if not record.valid]
    if not failed:
        return None
    rows: list[Sequence[Cell]] = [
        [count(record.step), shown_text(record.reason) or "no reason given"]
        for record in failed[:_MAX_INVALID]
    ]
    caption = "Snapshots that failed or contradicted themselves"
    if len(failed) > _MAX_INVALID:
        caption += f": the first {_MAX_INVALID} of {len(failed):,}"
    return Table(caption=caption, header=[("step", "step"), ("why", "reason")], rows=rows)
