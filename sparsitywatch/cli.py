"""The command line: read a watched run, also while it is still being written.

::

    sparsitywatch summary runs/demo         what happened so far, as a table (or --json)
    sparsitywatch plot runs/demo -o x.png   the same as a picture
    sparsitywatch scope runs/demo           which parameters are watched, and why

It reads log files only: no model is loaded, and torch is not imported.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsitywatch.errors import ConfigurationError, SparsityWatchError
from sparsitywatch.records import (
    EssentialSparsity,
    Event,
    LedgerEntry,
    Provenance,
    Record,
    ScopeSummary,
    to_json,
)
from sparsitywatch.sinks.jsonl import read_events, read_manifest, read_records
from sparsitywatch.version import __version__

__all__ = ["RunSummary", "SeriesSummary", "main", "summarise"]


@dataclass(frozen=True, kw_only=True)
class SeriesSummary:
    """One series over a run: its ends and its extremes, with the steps of the extremes."""

    first: float
    last: float
    lowest: float
    lowest_step: int
    highest: float
    highest_step: int


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """A run in short.

    Args:
        num_records: looks at the weights so far.
        num_invalid: those whose measurement failed.
        num_informative: those with an informative essential sparsity.
        first_step, last_step: steps of the first and the last look.
        stall_s: time for which all looks together held up the training, in seconds.
        scope, provenance, essential_sparsity: as in the last record.
        series: every series of the records but the watch's own costs, by name.
        events: in the order in which they were seen.
    """

    num_records: int
    num_invalid: int
    num_informative: int
    first_step: int
    last_step: int
    stall_s: float
    scope: ScopeSummary
    provenance: Provenance
    essential_sparsity: EssentialSparsity | None
    series: Mapping[str, SeriesSummary]
    events: tuple[Event, ...]


def summarise(records: Sequence[Record], events: Iterable[Event]) -> RunSummary:
    """A run in short.

    Args:
        records: in the order of the steps, at least one.
        events: in the order in which they were seen.
    """
    points: dict[str, list[tuple[float, int]]] = {}
    for record in records:
        for name, value in record.series().items():
            if not name.startswith("watch/") and name != "essential_sparsity/informative":
                points.setdefault(name, []).append((value, record.step))
    last = records[-1]
    return RunSummary(
        num_records=len(records),
        num_invalid=sum(not record.valid for record in records),
        num_informative=len(points.get("essential_sparsity/value", ())),
        first_step=records[0].step,
        last_step=last.step,
        stall_s=math.fsum(record.cost.stall_s for record in records),
        scope=last.scope,
        provenance=last.provenance,
        essential_sparsity=last.essential_sparsity,
        series={name: _summarise_series(values) for name, values in points.items()},
        events=tuple(events),
    )


def _summarise_series(points: Sequence[tuple[float, int]]) -> SeriesSummary:
    lowest = min(points, key=lambda point: point[0])
    highest = max(points, key=lambda point: point[0])
    return SeriesSummary(
        first=points[0][0],
        last=points[-1][0],
        lowest=lowest[0],
        lowest_step=lowest[1],
        highest=highest[0],
        highest_step=highest[1],
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments without the program's name; by default those of the process.

    Returns:
        The exit status: 0, or 2 if there is nothing to read or it cannot be read.
    """
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # the reader has seen enough (`| head`); keep the interpreter from flushing again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (SparsityWatchError, OSError) as error:
        print(f"sparsitywatch: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparsitywatch", description="Read a watched run, also while it is being written."
    )
    parser.add_argument("--version", action="version", version=f"sparsitywatch {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    logdir = argparse.ArgumentParser(add_help=False)
    logdir.add_argument("logdir", metavar="LOGDIR", type=Path, help="where the run logs to")

    summary = commands.add_parser("summary", parents=[logdir], help="what happened so far")
    summary.add_argument("--json", action="store_true", help="one JSON object, not a table")
    summary.set_defaults(run=_run_summary)

    plot = commands.add_parser("plot", parents=[logdir], help="draw what happened so far")
    plot.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        default=Path("overview.png"),
        help="the picture to write; its ending says the format (default: overview.png)",
    )
    plot.set_defaults(run=_run_plot)

    scope = commands.add_parser("scope", parents=[logdir], help="which parameters are watched")
    scope.set_defaults(run=_run_scope)
    return parser


def _run_summary(arguments: argparse.Namespace) -> None:
    records, events = _read(arguments.logdir)
    summary = summarise(records, events)
    print(to_json(summary) if arguments.json else "\n".join(_table(summary)))


def _run_plot(arguments: argparse.Namespace) -> None:
    # drawing takes a second to import; the other commands should not wait for it
    from sparsitywatch.sinks.figures import overview_figure, save_figure

    records, events = _read(arguments.logdir)
    try:
        save_figure(overview_figure(records, events), arguments.output)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"Expected `--output` to be a picture that can be written, got "
            f"{str(arguments.output)!r}: {error}."
        ) from error
    print(arguments.output)


def _run_scope(arguments: argparse.Namespace) -> None:
    run = read_manifest(_directory(arguments.logdir))
    if run is None:
        raise _nothing_in(arguments.logdir, "a scope ledger (run.json)")
    watched = [entry for entry in run.ledger if entry.in_scope]
    num_watched, num_all = _num_weights(watched), _num_weights(run.ledger)
    print(
        f"{len(watched)} of {len(run.ledger)} parameters in scope, "
        f"{num_watched:,} of {num_all:,} weights ({num_watched / max(num_all, 1):.1%})\n"
    )
    header = ("scope", "parameter", "shape", "weights", "why")
    print("\n".join(_align([header, *map(_ledger_row, run.ledger)], right={3})))


def _num_weights(entries: Iterable[LedgerEntry]) -> int:
    return sum(entry.num_weights for entry in entries)


def _ledger_row(entry: LedgerEntry) -> tuple[str, ...]:
    tied = f"; the same as {', '.join(entry.aliases)}" if entry.aliases else ""
    shape = " x ".join(map(str, entry.shape)) or "scalar"
    scope = "in" if entry.in_scope else "out"
    return scope, entry.name, shape, f"{entry.num_weights:,}", entry.reason + tied


def _read(logdir: Path) -> tuple[list[Record], list[Event]]:
    directory = _directory(logdir)
    records = list(read_records(directory))
    if not records:
        raise _nothing_in(logdir, "records")
    return records, list(read_events(directory))


def _directory(logdir: Path) -> Path:
    """Where the run's files lie: the folder of that name in ``logdir``, or ``logdir``."""
    inner = logdir / "sparsitywatch"
    directory = inner if inner.is_dir() else logdir
    if not directory.is_dir():
        raise _nothing_in(logdir, "a directory")
    return directory


def _nothing_in(logdir: Path, expected: str) -> ConfigurationError:
    runs = sorted(str(path.parents[1]) for path in logdir.glob("*/sparsitywatch/run.json"))
    hint = f"Watched runs in there: {', '.join(runs)}" if runs else "Is it the run's `logdir`?"
    return ConfigurationError(
        f"Expected {expected} of a watched run at LOGDIR, found none in {str(logdir)!r}. {hint}"
    )


def _table(summary: RunSummary) -> list[str]:
    looks = _count(summary.num_records, "look")
    steps = f"{summary.first_step} to {summary.last_step}"
    weights = f"{summary.scope.num_weights:,} weights"
    tensors = _count(summary.scope.num_tensors, "tensor")
    pattern, evaluation = summary.provenance.pattern, summary.provenance.evaluation
    lines = [
        f"{looks} at steps {steps}, {summary.num_invalid} invalid; stall {summary.stall_s:.1f} s",
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
    lines += [*_align([header, *rows], right=set(range(1, 7))), ""]
    lines += [*_estimate_lines(summary), "", f"{_count(len(summary.events), 'event')}"]
    return lines + [f"  {event.describe()}" for event in summary.events]


def _estimate_lines(summary: RunSummary) -> list[str]:
    estimate = summary.essential_sparsity
    if estimate is None:
        return ["essential sparsity: not measured"]
    here = f"essential sparsity at step {summary.last_step}:"
    seen = f"informative at {summary.num_informative} of {_count(summary.num_records, 'look')}"
    if not estimate.informative:
        return [f"{here} not informative; {estimate.reason}", seen]
    interval = "without an interval"
    if not math.isnan(estimate.low):
        interval = f"[{estimate.low:.3f}, {estimate.high:.3f}] at {estimate.confidence:.0%}"
    tolerance = f"tolerance {estimate.tolerance:g} {estimate.mode}"
    return [f"{here} {estimate.value:.3f}, {interval}, {tolerance}", seen]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _align(rows: Sequence[tuple[str, ...]], right: set[int]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
