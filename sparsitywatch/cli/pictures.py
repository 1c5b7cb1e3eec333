"""``sparsitywatch plot``: a run as a picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sparsitywatch.cli.summary import read
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.shown import shown_text

__all__ = ["add_arguments", "add_to", "save"]


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of the command line."""
    parser = commands.add_parser("plot", help="draw what happened so far")
    words = "the picture to write; its ending says the format"
    add_arguments(parser, words, Path("overview.png"))
    parser.set_defaults(run=_plot)


def add_arguments(parser: argparse.ArgumentParser, words: str, output: Path) -> None:
    """A log directory, and where to write: ``words`` say what, ``output`` where by default."""
    parser.add_argument("logdir", metavar="LOGDIR", type=Path, help="where the run logs to")
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        type=Path,
        default=output,
        help=f"{words} (default: {output})",
    )


def _plot(arguments: argparse.Namespace) -> None:
    # drawing takes a second to import; the other commands should not wait for it
    from sparsitywatch.plots import overview_figure

    run = read(arguments.logdir)
    trouble = run.standing.trouble
    title = "Sparsity during training" + (f"; {shown_text(trouble)}" if trouble else "")
    save(overview_figure(run.records, run.events, title=title), arguments.output)
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
