"""The whole command line: its commands, its exit status."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from sparsitywatch.cli import compare, inspect, plot, replay, report, scope, summary
from sparsitywatch.errors import SparsityWatchError
from sparsitywatch.records.run import __version__
from sparsitywatch.shown import shown_text

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments without the program's name; by default those of the process.

    Returns:
        The exit status: 0; 2 if there is nothing to read or something cannot be read; 130 if it
        was interrupted.
    """
    arguments = _parser().parse_args(argv)
    status = 0
    try:
        status = arguments.run(arguments) or 0  # most commands succeed or raise
        sys.stdout.flush()
    except BrokenPipeError:
        # the reader has seen enough (`| head`); keep the interpreter from flushing again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (SparsityWatchError, OSError) as error:
        print(f"sparsitywatch: {shown_text(str(error))}", file=sys.stderr)
        return 2
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparsitywatch", description="Read watched runs, and look at saved checkpoints."
    )
    parser.add_argument("--version", action="version", version=f"sparsitywatch {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (summary, plot, report, compare, scope, inspect, replay):
        command.add_to(commands)
    return parser
