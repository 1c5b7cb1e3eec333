"""``sparsitywatch audit``: are these checkpoints what their names say?"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from sparsitywatch.cli.inspect import size
from sparsitywatch.cli.options import add_places, places_of, storage_options
from sparsitywatch.cli.summary import align
from sparsitywatch.progress import Progress
from sparsitywatch.records import to_json
from sparsitywatch.redact import printable, redacted
from sparsitywatch.series import count


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of the command line."""
    parser = commands.add_parser(
        "audit",
        help="are these checkpoints what their names say? exit status 0, 1, 2",
        description="Look for copies, files of another run or step, swapped, cast and damaged ones "
        "in a series. Exit status 0: none; 1: there are findings; 2: nothing could be audited.",
    )
    add_places(parser)
    parser.add_argument("--full", action="store_true", help="read every weight, not a sample")
    parser.add_argument("--json", action="store_true", help="one JSON object a finding")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from sparsitywatch.offline.audit import audit

    progress = Progress("checkpoints")

    def begin(num_checkpoints: int, header_bytes: int, weight_bytes: int) -> None:
        read = "" if arguments.full else ", not read"
        words = f"headers {size(header_bytes)}, weights {size(weight_bytes)}{read}"
        print(f"{count(num_checkpoints, 'checkpoint')}, {words}", file=sys.stderr)

    try:
        found = audit(
            places_of(arguments),
            full=arguments.full,
            key=arguments.key,
            storage_options=storage_options(arguments),
            on_begin=[begin],
            on_progress=[progress.show],
        )
    finally:
        progress.clear()
    if arguments.json:
        for row in found.findings:
            print(to_json(row))
        return found.status
    if found.findings:
        rows = [("step", "finding", "evidence")]
        for one in found.findings:
            step = "-" if one.step is None else f"{one.step:,}"
            rows.append((step, one.finding, redacted(one.evidence)))
        print("\n".join(align(rows, right={0})), end="\n\n")
        for kind, action in {row.finding: row.action for row in found.findings}.items():
            print(printable(f"{kind}: {action}"))
        print()
    no_step = f", {found.num_without_step:,} without a step left out" * bool(found.num_without_step)
    print(
        f"{count(len(found.findings), 'finding')} in {count(found.num_audited, 'checkpoint')}"
        f"{no_step}; {size(found.num_bytes_read)} read of {size(found.num_weight_bytes)}"
    )
    return found.status
