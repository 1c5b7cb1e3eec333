"""``sparsitywatch summary``: a run in short, as a table or as JSON."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sparsitywatch.analysis.standing import standing
from sparsitywatch.cli.reading import directory_of, read
from sparsitywatch.cli.tables import align, count
from sparsitywatch.records import (
    EssentialSparsity,
    Event,
    Provenance,
    Record,
    RunInfo,
    ScopeSummary,
    WatchState,
    to_json,
)
from sparsitywatch.shown import shown_text
from sparsitywatch.sinks.jsonl import read_manifest

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
        num_evaluated: those with an evaluation that succeeded.
        scope, provenance: as in the last record.
        essential_sparsity: as in the last record that has one, which is of ``estimated_step``; None
            and -1 if none has.
        standing: sentences on how the watch itself is, the most important one first; nothing of
            a replay without faults.
        state: the watch's own word on that; None of a replay, and in earlier logs.
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
    num_evaluated: int
    scope: ScopeSummary
    provenance: Provenance
    essential_sparsity: EssentialSparsity | None
    estimated_step: int
    standing: tuple[str, ...]
    state: WatchState | None
    series: Mapping[str, SeriesSummary]
    events: tuple[Event, ...]
    notes: Mapping[int, Sequence[str]] = field(default_factory=dict)


def summarise(
    records: Sequence[Record],
    events: Iterable[Event],
    info: RunInfo | None = None,
    *,
    now: float | None = None,
) -> RunSummary:
    """A run in short.

    Args:
        records: in the order of the steps, at least one.
        events: in the order in which they were seen.
        info: what was said about the run; None if that is not known.
        now: seconds since the epoch, to see whether a watch still lives; None to take its word.
    """
    points: dict[str, list[tuple[float, int]]] = {}
    for record in records:
        for name, value in record.series().items():
            if not name.startswith("watch/") and name != "essential_sparsity/informative":
                points.setdefault(name, []).append((value, record.step))
    last = records[-1]
    estimated = [record for record in records if record.essential_sparsity is not None]
    return RunSummary(
        num_records=len(records),
        num_invalid=sum(not record.valid for record in records),
        num_informative=len(points.get("essential_sparsity/value", ())),
        first_step=records[0].step,
        last_step=last.step,
        stall_s=math.fsum(record.cost.stall_s for record in records),
        num_evaluated=sum(record.curve is not None for record in records),
        scope=last.scope,
        provenance=last.provenance,
        essential_sparsity=estimated[-1].essential_sparsity if estimated else None,
        estimated_step=estimated[-1].step if estimated else -1,
        standing=standing(records, info, now=now).sentences,
        state=None if info is None else info.state,
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
    info = read_manifest(directory_of(arguments.logdir))
    summary = summarise(records, events, info, now=time.time())
    print(to_json(summary) if arguments.json else "\n".join(_table(summary)))


def _table(summary: RunSummary) -> list[str]:
    looks = count(summary.num_records, "look")
    steps = f"{summary.first_step} to {summary.last_step}"
    weights = f"{summary.scope.num_weights:,} weights"
    tensors = count(summary.scope.num_tensors, "tensor")
    pattern, evaluation = summary.provenance.pattern, summary.provenance.evaluation
    lines = [
        *map(shown_text, summary.standing),
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
    if estimate is None and summary.provenance.proxy_hash:
        return ["essential sparsity: not known, no evaluation has succeeded"]
    if estimate is None:
        return ["essential sparsity: not measured, there was no proxy"]
    here = f"essential sparsity at step {summary.estimated_step}:"
    seen = (
        f"evaluated at {summary.num_evaluated}, informative at {summary.num_informative} of "
        f"{count(summary.num_records, 'look')}"
    )
    if not estimate.informative:
        return [f"{here} not informative; {estimate.reason}", seen]
    interval = "without an interval"
    if not math.isnan(estimate.low):
        interval = f"[{estimate.low:.3f}, {estimate.high:.3f}] at {estimate.confidence:.0%}"
    tolerance = f"tolerance {estimate.tolerance:g} {estimate.mode}"
    return [f"{here} {estimate.value:.3f}, {interval}, {tolerance}", seen]
