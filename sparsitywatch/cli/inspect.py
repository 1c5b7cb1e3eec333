"""``sparsitywatch inspect``: what a checkpoint holds and which of it would count."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from sparsitywatch.cli.options import add_checkpoint_options, settings_of, storage_options
from sparsitywatch.cli.summary import align, count
from sparsitywatch.errors import ScopeError
from sparsitywatch.records import to_json
from sparsitywatch.redact import printable, redacted_url

if TYPE_CHECKING:  # torch takes a second to import
    from sparsitywatch.checkpoints.discovery import (
        Description,
        ListedCheckpoint,
        StoredTensorDescription,
    )

__all__ = ["add_to"]

#: Exit status when something in the list cannot be read, or not yet.
_NOT_ALL_READABLE = 2


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of the command line."""
    parser = commands.add_parser(
        "inspect", help="what checkpoints hold, and which of it would count"
    )
    add_checkpoint_options(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a checkpoint")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from sparsitywatch.checkpoints.discovery import describe, discover

    options = storage_options(arguments)
    found = discover(arguments.places, options, duplicates=arguments.duplicates)
    if len(found) > 1:
        return _list(found, as_json=arguments.json)
    description = describe(found[0], settings_of(arguments).scope, options)
    print(to_json(description) if arguments.json else "\n".join(_page(description)))
    if description.scope_problem:
        raise ScopeError(description.scope_problem)
    return 0


# ------------------------------------------------------------------ several


def _list(found: Sequence[ListedCheckpoint], *, as_json: bool) -> int:
    from sparsitywatch.checkpoints.discovery import step_source

    if as_json:
        shown = [
            {
                **asdict(replace(one, entries=())),
                "url": redacted_url(one.url),
                "step_from": step_source(one),
            }
            for one in found
        ]
        print("\n".join(map(to_json, shown)))
    else:
        states = [one.state for one in found]
        kinds = ", ".join(
            f"{states.count(state):,} {state}" for state in dict.fromkeys(sorted(states))
        )
        header = ("step", "from", "format", "state", "checkpoint")
        rows = [
            ("-" if one.step is None else str(one.step), step_source(one) or "-", one.format or "-",
             one.state, redacted_url(one.url))
            for one in found
        ]  # fmt: skip
        print(f"{count(len(found), 'checkpoint')}: {kinds}\n")
        print("\n".join(align([header, *rows], right={0})))
        for reason in (one.reason for one in found if one.reason):
            print(f"\n{printable(reason)}")
    is_readable = all(one.state in ("complete", "duplicate") for one in found)
    return 0 if is_readable else _NOT_ALL_READABLE


# ------------------------------------------------------------------ one


def _page(description: Description) -> list[str]:
    step = "no step is stated"
    if description.step is not None:
        step = f"step {description.step} (from its {description.step_from})"
    whole, chosen = description.total, description.in_scope
    lines = [description.url, f"{description.format}, {step}"]
    if chosen is None:
        lines.append(
            f"{count(whole.num_tensors, 'tensor')}, {whole.num_weights:,} weights, "
            f"{_size(whole.num_bytes)}"
        )
    else:
        lines.append(
            f"{chosen.num_tensors:,} of {count(whole.num_tensors, 'tensor')} in scope, "
            f"{chosen.num_weights:,} of {whole.num_weights:,} weights "
            f"({chosen.num_weights / whole.num_weights:.1%}), "
            f"{_size(chosen.num_bytes)} of {_size(whole.num_bytes)}; "
            f"scope {description.scope_hash}"
        )
    lines.append(f"read to learn this: {_size(description.num_bytes_read)}, no weights")
    header = ("scope", "tensor", "shape", "dtype", "bytes", "why")
    rows = [_row(tensor) for tensor in description.tensors]
    return [*lines, "", *align([header, *rows], right={4})]


def _row(tensor: StoredTensorDescription) -> tuple[str, ...]:
    tied = f"the same as {', '.join(tensor.aliases)}" if tensor.aliases else ""
    verdict = {True: "in", False: "out", None: "?"}[tensor.in_scope]
    shape = " x ".join(map(str, tensor.shape)) or "scalar"
    why = "; ".join(filter(None, (tensor.reason, tied)))
    return verdict, tensor.name, shape, tensor.dtype, f"{tensor.num_bytes:,}", why


def _size(num_bytes: int) -> str:
    """A size for people.

    >>> _size(999), _size(8_589_934_592)
    ('999 bytes', '8.59 GB')
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return count(num_bytes, "byte")
