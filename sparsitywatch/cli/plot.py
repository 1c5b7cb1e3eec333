"""``sparsitywatch plot``: a run as a picture."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from sparsitywatch.analysis.standing import standing
from sparsitywatch.cli.reading import directory_of, read
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.shown import shown_text
from sparsitywatch.sinks.jsonl import read_manifest

__all__ = ["add_to", "save"]


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of the command line."""
    parser = commands.add_parser("plot", help="draw what happened so far")
    parser.add_argument("logdir", metavar="LOGDIR", type=Path, help="where the run logs to")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        default=Path("overview.png"),
        help="the picture to write; its ending says the format (default: overview.png)",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    # drawing takes a second to import; the other commands should not wait for it
    from sparsitywatch.plots import overview_figure

    records, events = read(arguments.logdir)
    info = read_manifest(directory_of(arguments.logdir))
    trouble = standing(records, info, now=time.time()).trouble
    title = "Sparsity during training" + (f"; {shown_text(trouble)}" if trouble else "")
    save(overview_figure(records, events, title=title), arguments.output)
    print(arguments.output)


def save(figure: Any, path: Path) -> None:
    """Write a figure where the user wants it.

    Raises:
        ConfigurationError: it cannot be written there, or in no such format.
    """
    from sparsitywatch.plots import save_figure

    try:
        save_figure(figure, path)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"Expected `--output` to be a picture that can be written, got {str(path)!r}: {error}."
        ) from error
