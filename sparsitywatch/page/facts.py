"""What stands at the foot of the page: failed snapshots, scope, provenance, costs, words."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from sparsitywatch.analysis.digest import digest
from sparsitywatch.analysis.run import Run
from sparsitywatch.analysis.verdict import up_to_date
from sparsitywatch.records import Provenance, Record, ledger_in_short
from sparsitywatch.redact import printable, redacted

#: Longer lists are for `sparsitywatch scope` and for a program.
_MAX_LEDGER, _MAX_FAILED = 1500, 200

#: A thing, what it is, and what to know about it.
Fact = tuple[str, str, str]

WORDS = (
    ("in-scope weights", ("The weights that count: by default the matrices inside the transformer "
     "blocks. Embeddings, norms, biases and heads do not.")),
    ("snapshot", "One measurement of the weights, at one optimizer step."),
    ("near zero", ("So small that it counts as nothing: |w| at most τ. By the first rule τ is a "
     "tenth of the root mean square (rms) that the weight's tensor had at the first snapshot.")),
    ("dormant", ("Moved by weight decay alone since the snapshot before: without a gradient. "
     "Dormant weights can rise long before near-zero ones do.")),
    ("decay clock", ("The sum of learning rate times weight decay. Weights without gradient shrink "
     "as exp(−clock).")),
    ("forecast", ("The near-zero share to come when the decay clock has advanced by one unit, from "
     "the weights that are dormant now.")),
    ("essential sparsity", ("The largest share of the weights, smallest first, that can go "
     "at once while the value of the model stays within the tolerance. Zero-shot: nothing is "
     "trained after the removal.")),
    ("value", "The mean loss or score on held-out examples that stay the same during the run."),
    ("reliance", ("The harm done by removing every in-scope weight. Where it is within the "
     "tolerance the model does not use these weights yet, and essential sparsity says nothing.")),
    ("event", ("A change that a watched number made, against the whole run before it, and beyond "
     "what the learning rate explains.")),
)  # fmt: skip


def facts_of(run: Run) -> dict[str, Any]:
    """Everything at the foot of the page, as JSON."""
    failed = [
        [record.step, redacted(record.reason) or "no reason given"]
        for record in run.records
        if not record.valid
    ]
    ledger = () if run.info is None else run.info.ledger
    return {
        "failed": failed[:_MAX_FAILED],
        "num_failed": len(failed),
        "notes": _notes(run),
        "scope": ledger_in_short(ledger) if ledger else "",
        "ledger": [
            [
                printable(entry.name),
                "in" if entry.in_scope else "out",
                " × ".join(map(str, entry.shape)) or "scalar",
                entry.num_weights,
                redacted(entry.why),
            ]
            for entry in ledger[:_MAX_LEDGER]
        ],
        "num_ledger": len(ledger),
        "replayed_from": [redacted(place) for place in run.replayed_from],
        "provenance": _provenances(run.records),
        "costs": _costs(run) if run.records else [],
        "words": [list(pair) for pair in WORDS],
    }


def _notes(run: Run) -> list[list[Any]]:
    """What to know beside the numbers, by step, where it begins."""
    pairs = zip([None, *run.records], run.records, strict=False)
    found = [[now.step, text] for before, now in pairs for text in now.remarks(before)]
    return found[:_MAX_FAILED]


# ------------------------------------------------------------------ how the watch is, and when


def watch_line(run: Run) -> list[str]:
    """How the watch is, in a few words each; empty of a replay."""
    state = up_to_date(None if run.info is None else run.info.state, run.records)
    if state is None:
        return ["replayed from saved checkpoints"] if run.replayed_from else []
    trouble = run.verdict.trouble
    is_lost = state.status == "on" and trouble != ""
    words = [trouble if is_lost else f"watch {state.end or 'on'}"]
    words.append(f"watched: {state.watched}")
    if run.records:
        words.append(f"last snapshot {run.records[-1].step:,}")
    if state.coming and not is_lost:
        words.append(state.coming)
    if math.isfinite(state.overhead):
        words.append(f"took {100 * state.overhead:.3g} % of the wall time")
    return words


def snapshots_taken(run: Run) -> str:
    """When the snapshots were taken, of how much, and whether during the training."""
    if not run.records:
        return "No snapshot has been taken yet."
    first, last = run.records[0], run.records[-1]
    weights = f"{last.scope.num_weights:,} weights in {last.scope.num_tensors:,} tensors"
    number, steps = "One snapshot", f"at step {first.step:,}"
    if len(run.records) > 1:
        number = f"{len(run.records):,} snapshots"
        steps = f"from step {first.step:,} to step {last.step:,}"
    later = " They are of saved checkpoints, read later." if run.replayed_from else ""
    return f"{number} of {weights}, {steps}{_taken(first, last)}.{later}"


def _taken(first: Record, last: Record) -> str:
    """When, to the minute; empty if a clock was wrong."""
    try:
        moments = [datetime.fromtimestamp(r.wall_time, timezone.utc) for r in (first, last)]
    except (OverflowError, OSError, ValueError):
        return ""
    began, ended = (moment.strftime("%Y-%m-%d %H:%M") for moment in moments)
    if began == ended:
        return f", taken {began} UTC"
    if moments[0].date() == moments[1].date():
        ended = moments[1].strftime("%H:%M")
    return f", taken {began} to {ended} UTC"


# ------------------------------------------------------------------ what numbers depend on


def _provenances(records: Sequence[Record]) -> list[dict[str, Any]]:
    """What the numbers depend on, once for each chunk of snapshots that share it."""
    chunks: list[tuple[Provenance, list[Record]]] = []
    for record in records:
        if not chunks or chunks[-1][0] != record.provenance:
            chunks.append((record.provenance, []))
        chunks[-1][1].append(record)
    return [
        {"first": own[0].step, "last": own[-1].step, "facts": _provenance(provenance, own)}
        for provenance, own in chunks
    ]


def _provenance(provenance: Provenance, records: Sequence[Record]) -> list[Fact]:
    scope = records[-1].scope
    curve = next((r.curve for r in reversed(records) if r.curve is not None), None)
    examples = "none: nothing was evaluated"
    if provenance.proxy_hash:
        number = None if curve is None else curve.num_examples
        examples = provenance.proxy_hash + ("" if number is None else f", {number:,} examples")
    tolerance = f"{provenance.tolerance:.4g} in units of the value"
    if provenance.tolerance_mode == "relative":
        tolerance = f"{100 * provenance.tolerance:.3g} % of the dense value"
    rows = [
        ("scope", f"{scope.num_weights:,} weights in {scope.num_tensors:,} tensors",
         f"hash {provenance.scope_hash}"),
        ("proxy", examples, "hash of the held-out examples" if provenance.proxy_hash else ""),
        ("tolerance", tolerance, "harm that counts as none"),
        ("pattern", provenance.pattern, "which weights a sparsity removes"),
        ("evaluation", provenance.evaluation, "zero-shot: nothing is trained after removal"),
        ("dtypes", ", ".join(provenance.dtypes) or "none", "of the in-scope weights"),
        ("sparsitywatch", provenance.sparsitywatch, "version"),
        ("torch", provenance.torch, "version"),
    ]  # fmt: skip
    if any(record.dormant is not None and record.dormant.estimated for record in records):
        remark = "weight decay and updates were not known, and were read off the weights"
        rows.append(("dormant weights", "estimated", remark))
    return [(name, redacted(value), redacted(remark)) for name, value, remark in rows]


# ------------------------------------------------------------------ what it cost


def _costs(run: Run) -> list[Fact]:
    """What the watch took from the training; a replay has no training to hold up."""
    summary = digest(run)
    total, state = summary.cost, summary.state
    reading = _seconds(total.spectrum_s)
    evaluating = "evaluating", _seconds(total.evaluation_s), f"{total.num_forwards:,} evaluations"
    if run.replayed_from:
        return [("reading weights", reading, "all snapshots together"), evaluating]
    median_s = statistics.median(record.cost.stall_s for record in run.records)
    facts = [
        ("held up the training", _seconds(total.stall_s), "all snapshots together"),
        ("one snapshot", _seconds(median_s), "median time held up"),
        ("reading weights", reading, "all snapshots, behind the training where it can be"),
        evaluating,
        ("snapshots left out", f"{total.num_left_out:,}", "due, and would have cost too much"),
        ("evaluations left out", f"{total.num_evaluations_left_out:,}", "only weights were read"),
    ]
    if math.isfinite(total.overhead):
        is_later = state is not None and math.isfinite(state.overhead)
        until = f"step {state.step:,}" if state is not None and is_later else "the last snapshot"
        facts.append(("share of the wall time", f"{100 * total.overhead:.3g} %", f"up to {until}"))
    return facts


def _seconds(x: float) -> str:
    """A time in seconds, or in a larger unit where it is long."""
    if x >= 3600.0:
        return f"{x / 3600.0:.3g} h"
    return f"{x / 60.0:.3g} min" if x >= 600.0 else f"{x:.3g} s"
