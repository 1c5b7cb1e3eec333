"""``sparsitywatch report``: a run as one page of HTML."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from sparsitywatch.cli.reading import directory_of, read
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.sinks.jsonl import read_manifest

__all__ = ["add_to"]


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of the command line."""
    parser = commands.add_parser("report", help="one page of HTML with everything in it")
    parser.add_argument("logdir", metavar="LOGDIR", type=Path, help="where the run logs to")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        default=Path("report.html"),
        help="the page to write (default: report.html)",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    # drawing takes a second to import; the other commands should not wait for it
    from sparsitywatch.page import RunLog, render

    records, events = read(arguments.logdir)
    run = RunLog(
        name=_name(arguments.logdir),
        records=records,
        events=events,
        info=read_manifest(directory_of(arguments.logdir)),
        now=time.time(),
    )
    _write(arguments.output, render(run))
    print(arguments.output)


def _name(logdir: Path) -> str:
    """The folder's name; of the folder inside it that of the run around it."""
    place = logdir.absolute()
    name = place.parent.name if place.name == "sparsitywatch" else place.name
    return name or str(logdir)


def _write(path: Path, page: str) -> None:
    """Write the page so that a browser never sees half of one.

    Raises:
        ConfigurationError: it cannot be written there.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(page, encoding="utf-8")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"Expected `--output` to be a file that can be written, got {str(path)!r}: {error}."
        ) from error
