"""``sparsitywatch compare``: runs side by side, if they can be compared."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sparsitywatch.analysis.digest import Digest, digest, mismatches, require_comparable
from sparsitywatch.analysis.run import Run
from sparsitywatch.cli.options import add_command, add_json
from sparsitywatch.cli.summary import align, read
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.records import Event, to_json
from sparsitywatch.redact import printable, redacted


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of the command line."""
    words = "runs side by side, if they can be compared"
    parser = add_command(commands, "compare", _run, words)
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="where a run logs to")
    parser.add_argument(
        "--weights-only", action="store_true",
        help="compare only what the weights tell by themselves, whatever the proxies were",
    )  # fmt: skip
    add_json(parser)


def _run(arguments: argparse.Namespace) -> None:
    runs = _read_all(arguments.runs)
    weights_only: bool = arguments.weights_only
    require_comparable(runs, weights_only=weights_only)
    digests = [digest(run, weights_only=weights_only) for run in runs]
    # that a run is quiet says nothing where its watch did not see to the end
    troubles = [
        redacted(f"{one.name}: {one.verdict.trouble}.") for one in digests if one.verdict.trouble
    ]
    notes = [*troubles, *_on_units(digests), *(_notes(runs) if weights_only else ())]
    if arguments.json:
        print(to_json({"weights_only": weights_only, "notes": notes, "runs": digests}))
        return
    lines = [*notes, *([""] if notes else []), *_table(digests, weights_only=weights_only)]
    print("\n".join(lines))


def _read_all(logdirs: Sequence[Path]) -> list[Run]:
    """Every run by a short name of its own, in the order of the call."""
    places = [Path(os.path.normpath(logdir.absolute())) for logdir in logdirs]
    if len(places) < 2 or len(set(places)) < len(places):
        raise ConfigurationError(
            "Expected RUN to be two or more different runs, got "
            f"{', '.join(str(logdir) for logdir in logdirs)}."
        )
    common = Path(os.path.commonpath(places))
    return [
        read(logdir, str(place.relative_to(common) if place != common else place))
        for place, logdir in zip(places, logdirs, strict=True)
    ]


def _on_units(runs: Sequence[Digest]) -> list[str]:
    """What the numbers of a replay's checkpoints count, where runs differ in that."""
    units = {run.name: run.provenance.unit for run in runs}
    if len(set(units.values())) == 1:
        return []
    words = ", ".join(f"{printable(name)} by {unit}s" for name, unit in units.items())
    return [f"The runs are numbered by different things: {words}."]


def _notes(runs: Sequence[Run]) -> list[str]:
    """What to know of runs of which only the weights are compared."""
    notes = ["Weights only: what depends on a proxy is left out."]
    ignored = mismatches(runs)
    if ignored:
        notes.append(f"The runs differ in {', '.join(ignored)}.")
    if "dtypes" in ignored:
        notes.append("Rounding to another dtype changes which weights pass as dormant.")
    return notes


def _table(runs: Sequence[Digest], *, weights_only: bool) -> list[str]:
    units = "/".join(sorted({run.provenance.unit for run in runs}))
    header = ("run", "snapshots", f"last {units}", "near zero", "dormant", "decay clock")
    estimates = () if weights_only else ("essential sparsity",)
    rows = [_row(run, weights_only=weights_only) for run in runs]
    lines = ["At the end", *align([(*header, *estimates), *rows], right=set(range(1, 6))), ""]
    events = [_event_row(run, event) for run in runs for event in run.events]
    if not events:
        return [*lines, "Events: none"]
    header = ("run", "series", "", "began", "seen", "decay clock when it began")
    quiet = [(run.name, "none", "", "", "", "") for run in runs if not run.events]
    return [*lines, "Events", *align([header, *events, *quiet], right={3, 4, 5})]


def _row(run: Digest, *, weights_only: bool) -> tuple[str, ...]:
    snapshots = f"{run.num_records}" + (f" ({run.num_invalid} invalid)" if run.num_invalid else "")
    watched = ("near_zero/initial_0.1", "motion/dormant", "motion/decay_clock")
    cells = (run.name, snapshots, str(run.last_step), *(_number(run.last(s)) for s in watched))
    estimate = run.essential_sparsity
    essential = "not measured" if estimate is None else estimate.describe()
    return cells if weights_only else (*cells, essential)


def _event_row(run: Digest, event: Event) -> tuple[str, ...]:
    steps = str(event.onset_step), str(event.detected_step)
    return run.name, event.series, event.direction, *steps, _number(run.onset_clock[event.id])


def _number(x: float) -> str:
    return "-" if math.isnan(x) else f"{x:.4g}"
