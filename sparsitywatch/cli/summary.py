"""``sparsitywatch summary`` and ``scope``: a run in short, and which parameters are watched."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from sparsitywatch.analysis.digest import Digest, digest
from sparsitywatch.analysis.run import Run
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.pipeline.rundir import load
from sparsitywatch.records import LedgerEntry, ledger_in_short, to_json
from sparsitywatch.shown import shown_name, shown_text

__all__ = ["add_scope_to", "add_to", "align", "count", "read"]


#: Of a run that has begun, in the order in which their times say when.
_FILES = ("records.jsonl", "run.json")


def read(logdir: Path, name: str | None = None) -> Run:
    """A run with at least one record.

    Raises:
        ConfigurationError: there is no run, or no record in it yet.
        StateError: the log is damaged.
    """
    run = load(logdir, name=name)
    if run.records:
        return run
    directory = run.directory or logdir
    # a manifest is written anew while it is waited for the first record
    files = [path for file in _FILES if (path := directory / file).exists()]
    begun = datetime.fromtimestamp(files[0].stat().st_mtime, timezone.utc)
    raise ConfigurationError(
        f"Expected records of a watched run at LOGDIR, found none yet in {str(logdir)!r}: the run "
        f"began at {begun:%Y-%m-%d %H:%M:%S} UTC and has taken no snapshot so far. The first one "
        "comes when `every` says so; `sparsitywatch scope` shows what is watched."
    )


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of the command line."""
    parser = commands.add_parser("summary", help="what happened so far")
    parser.add_argument("logdir", metavar="LOGDIR", type=Path, help="where the run logs to")
    parser.add_argument("--json", action="store_true", help="one JSON object, not a table")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    summary = digest(read(arguments.logdir))
    print(to_json(summary) if arguments.json else "\n".join(_table(summary)))


def _table(summary: Digest) -> list[str]:
    snapshots = count(summary.num_records, "snapshot")
    steps = f"{summary.first_step} to {summary.last_step}"
    stall = f"stall {summary.cost.stall_s:.1f} s"
    weights = f"{summary.scope.num_weights:,} weights"
    tensors = count(summary.scope.num_tensors, "tensor")
    pattern, evaluation = summary.provenance.pattern, summary.provenance.evaluation
    lines = [
        *map(shown_text, summary.standing),
        f"{snapshots} at steps {steps}, {summary.num_invalid} invalid; {stall}",
        f"{weights} in {tensors}; pattern {pattern}, {evaluation}",
        "",
    ]
    header = ("series", "first", "last", "lowest", "at step", "highest", "at step")
    rows = [
        (
            name,
            *(f"{x:.4g}" for x in (series.first, series.last, series.lowest)),
            str(series.lowest_step),
            f"{series.highest:.4g}",
            str(series.highest_step),
        )
        for name, series in sorted(summary.series.items())
        # counts of broken weights are worth a line only where there are any
        if not name.startswith("weights/") or series.highest > 0
    ]
    lines += [*align([header, *rows], right=set(range(1, 7))), ""]
    lines += [*_estimate_lines(summary), "", f"{count(len(summary.events), 'event')}"]
    for event in summary.events:
        lines += [f"  {event.describe()}", f"    {event.advice}"]
    notes = [f"  step {step}: {text}" for step, texts in summary.notes.items() for text in texts]
    return lines + (["", count(len(notes), "note"), *notes] if notes else [])


def _estimate_lines(summary: Digest) -> list[str]:
    estimate = summary.essential_sparsity
    if estimate is None and summary.provenance.proxy_hash:
        return ["essential sparsity: not known, no evaluation has succeeded"]
    if estimate is None:
        return ["essential sparsity: not measured, there was no proxy"]
    here = f"essential sparsity at step {summary.estimated_step}:"
    seen = (
        f"evaluated at {summary.num_evaluated}, informative at {summary.num_informative} of "
        f"{count(summary.num_records, 'snapshot')}"
    )
    if not estimate.informative:
        return [f"{here} not informative; {estimate.reason}", seen]
    interval = "without an interval"
    if not math.isnan(estimate.low):
        interval = f"[{estimate.low:.3f}, {estimate.high:.3f}] at {estimate.confidence:.0%}"
    tolerance = f"tolerance {estimate.tolerance:g} {estimate.mode}"
    return [f"{here} {estimate.value:.3f}, {interval}, {tolerance}", seen]


# ------------------------------------------------------------------ which parameters are watched


def add_scope_to(commands: Any) -> None:
    """Add the command ``scope`` to the subparsers of the command line."""
    parser = commands.add_parser("scope", help="which parameters are watched")
    parser.add_argument("logdir", metavar="LOGDIR", type=Path, help="where the run logs to")
    parser.set_defaults(run=_scope)


def _scope(arguments: argparse.Namespace) -> None:
    info = load(arguments.logdir).info
    if info is None:
        raise ConfigurationError(
            f"Expected run.json, which has the scope ledger, found none in "
            f"{str(arguments.logdir)!r}."
        )
    print(f"{ledger_in_short(info.ledger)}\n")
    header = ("scope", "parameter", "shape", "weights", "why")
    print("\n".join(align([header, *map(_ledger_row, info.ledger)], right={3})))


def _ledger_row(entry: LedgerEntry) -> tuple[str, ...]:
    shape = " x ".join(map(str, entry.shape)) or "scalar"
    scope = "in" if entry.in_scope else "out"
    return scope, entry.name, shape, f"{entry.num_weights:,}", entry.why


# ------------------------------------------------------------------ plain-text tables


def count(number: int, noun: str) -> str:
    """A number with its noun.

    >>> count(1, "snapshot"), count(1200, "snapshot")
    ('1 snapshot', '1,200 snapshots')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def align(rows: Sequence[tuple[str, ...]], right: set[int]) -> list[str]:
    """Lines with the cells below each other; the columns in ``right`` end together.

    >>> align([("run", "step"), ("a", "5")], right={1})
    ['run  step', 'a       5']
    """
    rows = [tuple(map(shown_name, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
