"""Where a watched run lies, and what there is to say when nothing does."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.records import Event, Record
from sparsitywatch.sinks.jsonl import read_events, read_records

__all__ = ["directory_of", "nothing_in", "read"]


def read(logdir: Path) -> tuple[list[Record], list[Event]]:
    """The records, at least one, and the events of a run.

    Raises:
        ConfigurationError: there is no record.
        StateError: the log is damaged.
    """
    directory = directory_of(logdir)
    records = list(read_records(directory))
    if not records:
        raise _not_looked_yet(logdir, directory) or nothing_in(logdir, "records")
    return records, list(read_events(directory))


def _not_looked_yet(logdir: Path, directory: Path) -> ConfigurationError | None:
    """The error that a run has begun and has no record yet; None if nothing says that it has."""
    manifest = directory / "run.json"
    if not manifest.is_file():
        return None
    begun = datetime.fromtimestamp(manifest.stat().st_mtime, timezone.utc)
    return ConfigurationError(
        f"Expected records of a watched run at LOGDIR, found none yet in {str(logdir)!r}: the run "
        f"began at {begun:%Y-%m-%d %H:%M:%S} UTC and has taken no snapshot so far. The first one "
        "comes when `every` says so; `sparsitywatch scope` tells already what is watched."
    )


def directory_of(logdir: Path) -> Path:
    """Where the run's files lie: the folder of that name in ``logdir``, or ``logdir``.

    Raises:
        ConfigurationError: it is no directory.
    """
    inner = logdir / "sparsitywatch"
    directory = inner if inner.is_dir() else logdir
    if not directory.is_dir():
        raise nothing_in(logdir, "a directory")
    return directory


def nothing_in(logdir: Path, expected: str) -> ConfigurationError:
    """The error that something of a run is missing; it names the runs that are near."""
    runs = sorted(str(path.parents[1]) for path in logdir.glob("*/sparsitywatch/run.json"))
    hint = f"Watched runs in there: {', '.join(runs)}" if runs else "Is it the run's `logdir`?"
    return ConfigurationError(
        f"Expected {expected} of a watched run at LOGDIR, found none in {str(logdir)!r}. {hint}"
    )
