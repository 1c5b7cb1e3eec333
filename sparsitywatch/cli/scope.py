"""``sparsitywatch scope``: which parameters are watched, and why."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sparsitywatch.cli.reading import directory_of, nothing_in
from sparsitywatch.cli.tables import align
from sparsitywatch.records import LedgerEntry
from sparsitywatch.sinks.jsonl import read_manifest

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of the command line."""
    parser = commands.add_parser("scope", help="which parameters are watched")
    parser.add_argument("logdir", metavar="LOGDIR", type=Path, help="where the run logs to")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    run = read_manifest(directory_of(arguments.logdir))
    if run is None:
        raise nothing_in(arguments.logdir, "a scope ledger (run.json)")
    watched = [entry for entry in run.ledger if entry.in_scope]
    num_watched, num_all = _num_weights(watched), _num_weights(run.ledger)
    print(
        f"{len(watched)} of {len(run.ledger)} parameters in scope, "
        f"{num_watched:,} of {num_all:,} weights ({num_watched / max(num_all, 1):.1%})\n"
    )
    header = ("scope", "parameter", "shape", "weights", "why")
    print("\n".join(align([header, *map(_ledger_row, run.ledger)], right={3})))


def _num_weights(entries: Iterable[LedgerEntry]) -> int:
    return sum(entry.num_weights for entry in entries)


def _ledger_row(entry: LedgerEntry) -> tuple[str, ...]:
    tied = f"; the same as {', '.join(entry.aliases)}" if entry.aliases else ""
    shape = " x ".join(map(str, entry.shape)) or "scalar"
    scope = "in" if entry.in_scope else "out"
    return scope, entry.name, shape, f"{entry.num_weights:,}", entry.reason + tied
