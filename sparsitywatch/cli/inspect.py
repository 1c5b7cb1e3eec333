"""``sparsitywatch inspect``: what a checkpoint holds and which of it would count."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from sparsitywatch.cli.options import (
    add_checkpoint_options,
    add_json,
    places_of,
    reading_options,
    settings_of,
)
from sparsitywatch.cli.summary import align
from sparsitywatch.errors import ScopeError
from sparsitywatch.records import to_json
from sparsitywatch.redact import printable, redacted_url
from sparsitywatch.series import count, size

if TYPE_CHECKING:  # torch takes a second to import
    from sparsitywatch.checkpoints.series import ListedCheckpoint

#: Exit status when something in the list cannot be read, or not yet.
_NOT_ALL_READABLE = 2


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of the command line."""
    parser = commands.add_parser(
        "inspect", help="what checkpoints hold, and which of it would count"
    )
    add_checkpoint_options(parser)
    add_json(parser, "one JSON object a checkpoint")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from sparsitywatch.checkpoints.discovery import describe, discover

    options = reading_options(arguments)
    listed = discover(places_of(arguments), **options)
    if len(listed) > 1:
        return _list(listed, as_json=arguments.json)
    description = describe(listed[0], settings_of(arguments).scope, **options)
    print(to_json(description) if arguments.json else "\n".join(_page(description)))
    if description["scope_problem"]:
        raise ScopeError(description["scope_problem"])
    return 0


def _list(listed: Sequence[ListedCheckpoint], *, as_json: bool) -> int:
    from sparsitywatch.checkpoints.series import by_series, in_lines

    if as_json:
        for one in listed:
            said = asdict(replace(one, entries=()))
            del said["version"], said["checkpoint"]
            for address in ("url", "series"):
                said[address] = redacted_url(said[address])
            print(to_json(said))
    else:
        states = [one.state for one in listed]
        kinds = ", ".join(f"{states.count(state):,} {state}" for state in sorted(set(states)))
        rows = [("step", "from", "format", "state", "checkpoint")]
        for one in listed:
            step = "-" if one.step is None else str(one.step)
            step += "" if one.unit == "step" else f" ({one.unit})"
            url = redacted_url(one.url)
            rows.append((step, one.step_from or "-", one.format or "-", one.state, url))
        print(f"{count(len(listed), 'checkpoint')}: {kinds}\n")
        print("\n".join(align(rows, right={0})))
        if len(series := by_series(listed)) > 1 or any(series):
            is_one = len(series) == 1
            how = "one run" if is_one else "a run each: name one of them, or give `--each`"
            print(f"\n{len(series):,} series, in a replay {how}")
            print("\n".join(map(printable, in_lines(series))))
            if keys := sorted({repr(one.key) for one in listed if one.key}):
                print(printable(f"the model is what lies under {', '.join(keys)}"))
        for reason in (one.reason or one.note for one in listed if one.reason or one.note):
            print(f"\n{printable(reason)}")
    is_readable = all(one.state in ("complete", "duplicate", "foreign") for one in listed)
    return 0 if is_readable else _NOT_ALL_READABLE


def _page(description: dict[str, Any]) -> list[str]:
    step = "no step is stated"
    if description["step"] is not None:
        where = description["step_from"]
        step = f"{description['unit']} {description['step']} "
        step += "(as given)" if where == "given" else f"(from its {where})"
    whole, chosen = description["total"], description["in_scope"]
    num_tensors = count(whole["num_tensors"], "tensor")
    if chosen is None:
        counted = f"{num_tensors}, {whole['num_weights']:,} weights, {size(whole['num_bytes'])}"
    else:
        counted = (
            f"{chosen['num_tensors']:,} of {num_tensors} in scope, {chosen['num_weights']:,} of "
            f"{whole['num_weights']:,} weights ({chosen['num_weights'] / whole['num_weights']:.1%})"
            f", {size(chosen['num_bytes'])} of {size(whole['num_bytes'])}; scope "
            f"{description['scope_hash']}"
        )
    rows = [("scope", "tensor", "shape", "dtype", "bytes", "why")]
    for tensor in description["tensors"]:
        tied = f"the same as {', '.join(tensor['aliases'])}" if tensor["aliases"] else ""
        verdict = {True: "in", False: "out", None: "?"}[tensor["in_scope"]]
        shape = " x ".join(map(str, tensor["shape"])) or "scalar"
        why = "; ".join(filter(None, (tensor["reason"], tied)))
        num_bytes = f"{tensor['num_bytes']:,}"
        rows.append((verdict, tensor["name"], shape, tensor["dtype"], num_bytes, why))
    return [
        description["url"],
        f"{description['format']}, {step}",
        counted,
        *_candidates(description),
        f"read to learn this: {size(description['num_bytes_read'])}, no weights",
        "",
        *align(rows, right={4}),
    ]


def _candidates(description: dict[str, Any]) -> list[str]:
    """Which dictionary of tensors was read, and which others might have been."""
    key, among = description["key"], description["candidates"]
    if not key and len(among) < 2:
        return []
    others = [f"{name!r} ({count(num, 'tensor')})" for name, num in among.items() if name != key]
    beside = f"; beside it {', '.join(others)}" if others else ""
    return [printable(f"the model is what lies under {key!r}{beside}")]
