"""``sparsitywatch summary``: a run in short, as a table or as JSON."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsitywatch.cli.reading import read
from sparsitywatch.cli.tables import align, count
from sparsitywatch.records import (
    EssentialSparsity,
    Event,
    Provenance,
    Record,
    ScopeSummary,
    to_json,
)

__all__ = ["RunSummary", "SeriesSummary", "add_to", "summarise"]


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
        notes: what to know beside the numbers, by step, where it begins.
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
    notes: Mapping[int, Sequence[str]] = field(default_factory=dict)


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
        notes={
            record.step: remarks
            for before, record in zip([None, *records], records, strict=False)
            if (remarks := record.remarks(before))
        },
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


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of the command line."""
    parser = commands.add_parser("summary", help="what happened so far")
    parser.add_argument("logdir", metavar="LOGDIR", type=Path, help="where the run logs to")
    parser.add_argument("--json", action="store_true", help="one JSON object, not a table")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    records, events = read(arguments.logdir)
    summary = summarise(records, events)
    print(to_json(summary) if arguments.json else "\n".join(_table(summary)))


def _table(summary: RunSummary) -> list[str]:
    looks = count(summary.num_records, "look")
    steps = f"{summary.first_step} to {summary.last_step}"
    weights = f"{summary.scope.num_weights:,} weights"
    tensors = count(summary.scope.num_tensors, "tensor")
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
    lines += [*align([header, *rows], right=set(range(1, 7))), ""]
    lines += [*_estimate_lines(summary), "", f"{count(len(summary.events), 'event')}"]
    lines += [f"  {event.describe()}" for event in summary.events]
    notes = [f"  step {step}: {text}" for step, texts in summary.notes.items() for text in texts]
    return lines + (["", count(len(notes), "note"), *notes] if notes else [])


def _estimate_lines(summary: RunSummary) -> list[str]:
    estimate = summary.essential_sparsity
    if estimate is None:
        return ["essential sparsity: not measured"]
    here = f"essential sparsity at step {summary.last_step}:"
    seen = f"informative at {summary.num_informative} of {count(summary.num_records, 'look')}"
    if not estimate.informative:
        return [f"{here} not informative; {estimate.reason}", seen]
    interval = "without an interval"
    if not math.isnan(estimate.low):
        interval = f"[{estimate.low:.3f}, {estimate.high:.3f}] at {estimate.confidence:.0%}"
    tolerance = f"tolerance {estimate.tolerance:g} {estimate.mode}"
    return [f"{here} {estimate.value:.3f}, {interval}, {tolerance}", seen]
