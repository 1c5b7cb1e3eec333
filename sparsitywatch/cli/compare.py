"""``sparsitywatch compare``: runs side by side, if they can be compared."""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsitywatch.analysis.comparison import (
    EventDigest,
    RunDigest,
    differences,
    digest,
    require_comparable,
)
from sparsitywatch.analysis.standing import standing
from sparsitywatch.cli.plot import save
from sparsitywatch.cli.reading import directory_of, read
from sparsitywatch.cli.tables import align
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.records import EssentialSparsity, Event, Record, to_json
from sparsitywatch.shown import shown_text
from sparsitywatch.sinks.jsonl import read_manifest

__all__ = ["Comparison", "add_to"]

_RULE = "initial_0.1"

Runs = dict[str, tuple[list[Record], list[Event]]]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Runs side by side.

    Args:
        weights_only: whether what depends on a proxy is left out.
        notes: what to know before reading the numbers.
        runs: what each came to, in the order of the call.
    """

    weights_only: bool
    notes: tuple[str, ...]
    runs: tuple[RunDigest, ...]


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of the command line."""
    parser = commands.add_parser("compare", help="runs side by side, if they can be compared")
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="where a run logs to")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="a picture to write, too")
    parser.add_argument("--json", action="store_true", help="one JSON object, not a table")
    parser.add_argument(
        "--weights-only",
        action="store_true",
        help="compare only what the weights tell by themselves, whatever the proxies were",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    runs = _read_all(arguments.runs)
    records = {name: found for name, (found, _) in runs.items()}
    weights_only: bool = arguments.weights_only
    require_comparable(records, weights_only=weights_only)
    comparison = Comparison(
        weights_only=weights_only,
        notes=(*_troubles(arguments.runs, records), *_notes(records, weights_only=weights_only)),
        runs=tuple(
            digest(name, found, events, weights_only=weights_only)
            for name, (found, events) in runs.items()
        ),
    )
    if arguments.output is not None:
        # drawing takes a second to import
        from sparsitywatch.plots import comparison_figure

        save(comparison_figure(runs, weights_only=weights_only), arguments.output)
    print(to_json(comparison) if arguments.json else "\n".join(_table(comparison)))
    if arguments.output is not None and not arguments.json:
        print(f"\n{arguments.output}")


def _read_all(logdirs: Sequence[Path]) -> Runs:
    """Every run by a short name of its own, in the order of the call."""
    places = [Path(os.path.normpath(logdir.absolute())) for logdir in logdirs]
    if len(places) < 2 or len(set(places)) < len(places):
        raise ConfigurationError(
            "Expected RUN to be two or more different runs, got "
            f"{', '.join(str(logdir) for logdir in logdirs)}."
        )
    common = Path(os.path.commonpath(places))
    return {
        str(place.relative_to(common) if place != common else place): read(logdir)
        for place, logdir in zip(places, logdirs, strict=True)
    }


def _troubles(logdirs: Sequence[Path], records: dict[str, list[Record]]) -> list[str]:
    """Runs whose watch did not see to the end: that they are quiet says nothing."""
    told = []
    for logdir, (name, found) in zip(logdirs, records.items(), strict=True):
        info = read_manifest(directory_of(logdir))
        trouble = standing(found, info, now=time.time()).trouble
        told += [shown_text(f"{name}: {trouble}.")] if trouble else []
    return told


def _notes(records: dict[str, list[Record]], *, weights_only: bool) -> list[str]:
    if not weights_only:
        return []
    notes = ["Weights only: what depends on a proxy is left out."]
    ignored = differences(records)
    if ignored:
        notes.append(f"The runs differ in {', '.join(d.field for d in ignored)}.")
    if any(difference.field == "dtypes" for difference in ignored):
        notes.append("Rounding to another dtype changes which weights pass as dormant.")
    return notes


def _table(comparison: Comparison) -> list[str]:
    header = ("run", "looks", "last step", "near zero", "dormant", "decay clock")
    estimates = () if comparison.weights_only else ("essential sparsity",)
    rows = [_row(run, weights_only=comparison.weights_only) for run in comparison.runs]
    lines = [*comparison.notes, *([""] if comparison.notes else [])]
    lines += ["At the end", *align([(*header, *estimates), *rows], right=set(range(1, 6))), ""]
    events = [_event_row(run.name, event) for run in comparison.runs for event in run.events]
    if not events:
        return [*lines, "Events: none"]
    header = ("run", "series", "", "began", "seen", "decay clock when it began")
    quiet = [(run.name, "none", "", "", "", "") for run in comparison.runs if not run.events]
    return [*lines, "Events", *align([header, *events, *quiet], right={3, 4, 5})]


def _row(run: RunDigest, *, weights_only: bool) -> tuple[str, ...]:
    looks = f"{run.num_snapshots}" + (f" ({run.num_invalid} invalid)" if run.num_invalid else "")
    numbers = (run.near_zero.get(_RULE, math.nan), run.dormant, run.decay_clock)
    cells = (run.name, looks, str(run.last_step), *map(_number, numbers))
    return cells if weights_only else (*cells, _estimate(run.essential_sparsity))


def _event_row(name: str, event: EventDigest) -> tuple[str, ...]:
    steps = str(event.onset_step), str(event.detected_step)
    return name, event.series, event.direction, *steps, _number(event.onset_clock)


def _estimate(estimate: EssentialSparsity | None) -> str:
    return "not measured" if estimate is None else estimate.describe()


def _number(x: float) -> str:
    return "-" if math.isnan(x) else f"{x:.4g}"
