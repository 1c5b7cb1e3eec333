"""``sparsitywatch plot`` and ``report``: a run as a picture, and as one page of HTML."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from sparsitywatch.cli.summary import read
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.shown import shown_text

__all__ = ["add_to", "save"]


def add_to(commands: Any) -> None:
    """Add both commands to the subparsers of the command line."""
    parser = commands.add_parser("plot", help="draw what happened so far")
    words = "the picture to write; its ending says the format"
    _add_arguments(parser, words, Path("overview.png"))
    parser.set_defaults(run=_plot)
    parser = commands.add_parser("report", help="one page of HTML with everything in it")
    _add_arguments(parser, "the page to write", Path("report.html"))
    parser.set_defaults(run=_report)


def _add_arguments(parser: argparse.ArgumentParser, words: str, output: Path) -> None:
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


def _report(arguments: argparse.Namespace) -> None:
    from sparsitywatch.page import render

    _write(arguments.output, render(read(arguments.logdir)))
    print(arguments.output)


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
