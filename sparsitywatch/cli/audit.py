"""``sparsitywatch audit``: are these checkpoints what their names say?"""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsitywatch.cli.options import (
    add_json,
    add_places,
    places_of,
    reading_options,
    write_page,
)
from sparsitywatch.cli.summary import align
from sparsitywatch.progress import Progress
from sparsitywatch.records import to_json
from sparsitywatch.redact import printable, redacted, redacted_url
from sparsitywatch.series import count, size

if TYPE_CHECKING:
    from sparsitywatch.records.audit import Audit

#: Columns before the evidence, or a few more.
_EVIDENCE_BEGINS = 30


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
    add_json(parser, "one JSON object a finding")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write it as a page, too")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from sparsitywatch.offline.audit import audit

    progress = Progress("checkpoints")

    def begin(num_checkpoints: int, header_bytes: int, weight_bytes: int) -> None:
        read = "" if arguments.full else ", not read"
        words = f"headers {size(header_bytes)}, weights {size(weight_bytes)}{read}"
        print(f"{count(num_checkpoints, 'checkpoint')}, {words}", file=sys.stderr)

    places = places_of(arguments)
    try:
        found = audit(
            places,
            full=arguments.full,
            on_begin=[begin],
            on_progress=[progress.show],
            **reading_options(arguments),
        )
    finally:
        progress.clear()
    for line in map(to_json, found.findings) if arguments.json else _lines(found):
        print(line)
    if arguments.html is not None:
        from sparsitywatch.page.audit import render_audit

        names = [arguments.steps] if arguments.steps else map(redacted_url, arguments.places)
        write_page(arguments.html, render_audit(found, " ".join(map(str, names))), "--html")
        print(arguments.html, file=sys.stderr)
    return found.status


def _lines(found: Audit) -> list[str]:
    """The findings as a table, what to do about each kind, and what they rest on."""
    lines = []
    if found.findings:
        rows = [(found.unit, "finding", "evidence")]
        for one in found.findings:
            step = "-" if one.step is None else f"{one.step:,}"
            first, *more = _wrapped(redacted(one.evidence))
            rows += [(step, one.finding, first), *(("", "", line) for line in more)]
        lines += [*align(rows, right={0}), ""]
        actions = {one.finding: one.action for one in found.findings}
        lines += [*(printable(f"{kind}: {action}") for kind, action in actions.items()), ""]
    return [*lines, f"{found.headline}; {found.basis}"]


def _wrapped(text: str) -> list[str]:
    """The evidence in lines of its column on a terminal; for other programs in one."""
    if not sys.stdout.isatty():
        return [text]
    return textwrap.wrap(text, max(30, shutil.get_terminal_size().columns - _EVIDENCE_BEGINS))
