"""The command line: read watched runs, also while they are still being written, and checkpoints.

``sparsitywatch --help`` lists the commands. Those that read logs load no model and do not import
torch; those that read checkpoints import it when they run. ``run`` runs a script under watch.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from sparsitywatch.cli import run
from sparsitywatch.errors import SparsityWatchError
from sparsitywatch.redact import redacted


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status.

    That is 0; 2 if there is nothing to read or something cannot be read; 130 if it was
    interrupted. `status` and `audit` return 1 and 2 as their answers, too. `run` returns what its
    script does, and lets out what that raises.
    """
    argv = sys.argv[1:] if argv is None else argv
    command = argv[0] if argv else ""
    arguments = _parser(command).parse_args(argv)
    if command == "run":
        return run.run(arguments)
    status = 0
    try:
        status = arguments.run(arguments) or 0  # most commands succeed or raise
        sys.stdout.flush()
    except BrokenPipeError:
        # the reader has seen enough (`| head`); keep the interpreter from flushing again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    except (SparsityWatchError, OSError) as error:
        print(f"sparsitywatch: {redacted(str(error))}", file=sys.stderr)
        return 2
    return status


def _parser(command: str = "") -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sparsitywatch", description="Read watched runs, and measure saved checkpoints."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    run.add_to(commands)
    if command != "run":  # whose script may want to set up what these import
        from sparsitywatch.cli import checkpoints, logs
        from sparsitywatch.records.run import __version__

        words = f"sparsitywatch {__version__}"
        parser.add_argument("--version", action="version", version=words)
        logs.add_to(commands)
        checkpoints.add_to(commands)
    return parser
