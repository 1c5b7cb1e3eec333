"""``sparsitywatch summary`` and ``scope``: a run in short, and which parameters are watched."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsitywatch.analysis.digest import Digest, digest
from sparsitywatch.analysis.run import Run
from sparsitywatch.analysis.verdict import moment
from sparsitywatch.cli.options import add_command, add_json, add_logdir
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.pipeline.rundir import load
from sparsitywatch.records import ledger_in_short, to_json
from sparsitywatch.redact import printable, redacted
from sparsitywatch.series import count

#: Of a run that has begun, in the order in which their times say when.
_FILES = ("records.jsonl", "run.json")


def read(logdir: Path, name: str | None = None) -> Run:
    """A run with at least one record; a ConfigurationError says that there is none yet."""
    run = load(logdir, name=name)
    if run.records:
        return run
    # a manifest is written anew while it is waited for the first record
    files = [path for file in _FILES if (path := (run.directory or logdir) / file).exists()]
    begun = moment(files[0].stat().st_mtime)
    raise ConfigurationError(
        f"Expected records of a watched run at LOGDIR, found none yet in {str(logdir)!r}: the run "
        f"began at {begun} and has taken no snapshot so far. The first one comes when `every` says "
        "so; `sparsitywatch scope` shows what is watched."
    )


def add_to(commands: Any) -> None:
    """Add the commands to the subparsers of the command line."""
    parser = add_command(commands, "summary", _run, "what happened so far")
    add_logdir(parser)
    add_json(parser)
    add_logdir(add_command(commands, "scope", _scope, "which parameters are watched"))


def _run(arguments: argparse.Namespace) -> None:
    summary = digest(read(arguments.logdir))
    print(to_json(summary) if arguments.json else "\n".join(_table(summary)))


def _table(summary: Digest) -> list[str]:
    snapshots = count(summary.num_records, "snapshot")
    unit = summary.provenance.unit
    steps = f"{unit}s {summary.first_step} to {summary.last_step}"
    stall = f"stall {summary.cost.stall_s:.1f} s"
    pattern, evaluation = summary.provenance.pattern, summary.provenance.evaluation
    lines = [
        *map(redacted, summary.verdict.describe().splitlines()),
        *map(redacted, summary.verdict.watch),
        "",
        f"{snapshots} at {steps}, {summary.num_invalid} invalid; {stall}",
        f"{summary.scope.describe()}; pattern {pattern}, {evaluation}",
        "",
    ]
    header = ("series", "first", "last", "lowest", f"at {unit}", "highest", f"at {unit}")
    rows = []
    for name, one in sorted(summary.series.items()):
        # counts of broken weights are worth a line only where there are any
        if not name.startswith("weights/") or one.highest > 0:
            ends = f"{one.first:.4g}", f"{one.last:.4g}"
            lowest = f"{one.lowest:.4g}", str(one.lowest_step)
            highest = f"{one.highest:.4g}", str(one.highest_step)
            rows.append((name, *ends, *lowest, *highest))
    lines += [*align([header, *rows], right=set(range(1, 7))), ""]
    lines += [*_estimate_lines(summary), "", f"{count(len(summary.events), 'event')}"]
    for event in summary.events:
        lines += [f"  {event.describe()}", f"    {event.advice}"]
    notes = [f"  {unit} {step}: {text}" for step, texts in summary.notes.items() for text in texts]
    return lines + (["", count(len(notes), "note"), *notes] if notes else [])


def _estimate_lines(summary: Digest) -> list[str]:
    estimate = summary.essential_sparsity
    if estimate is None and summary.provenance.proxy_hash:
        return ["essential sparsity: not known, no evaluation has succeeded"]
    if estimate is None:
        return ["essential sparsity: not measured, there was no proxy"]
    here = f"essential sparsity at {summary.provenance.unit} {summary.estimated_step}:"
    seen = (
        f"evaluated at {summary.num_evaluated}, informative at {summary.num_informative} of "
        f"{count(summary.num_records, 'snapshot')}"
    )
    if not estimate.informative:
        told = "" if estimate.reason.startswith("cannot say") else "not informative; "
        return [f"{here} {told}{estimate.reason}", seen]
    interval = f"at {estimate.confidence:.0%}"
    if math.isnan(estimate.low):
        interval = "without an interval"
    tolerance = f"tolerance {estimate.tolerance:g} {estimate.mode}"
    return [f"{here} {estimate.describe()} {interval}, {tolerance}", seen]


# ------------------------------------------------------------------ which parameters are watched


def _scope(arguments: argparse.Namespace) -> None:
    info = load(arguments.logdir).info
    if info is None:
        raise ConfigurationError(
            f"Expected run.json, which has the scope ledger, found none in "
            f"{str(arguments.logdir)!r}."
        )
    print(f"{ledger_in_short(info.ledger)}\n")
    header = ("scope", "parameter", "shape", "weights", "why")
    rows = [
        ("in" if one.in_scope else "out", one.name, one.dimensions, f"{one.num_weights:,}", one.why)
        for one in info.ledger
    ]
    print("\n".join(align([header, *rows], right={3})))


# ------------------------------------------------------------------ plain-text tables


def align(rows: Sequence[tuple[str, ...]], right: set[int]) -> list[str]:
    """Lines with the cells below each other; the columns in ``right`` end together."""
    columns = [[printable(cell) for cell in column] for column in zip(*rows, strict=True)]
    for index, column in enumerate(columns):
        width = max(map(len, column))
        pad = str.rjust if index in right else str.ljust
        columns[index] = [pad(cell, width) for cell in column]
    return ["  ".join(row).rstrip() for row in zip(*columns, strict=True)]
