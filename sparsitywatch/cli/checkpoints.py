"""What is read from checkpoints: what they hold, whether they are what they seem, what one says."""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsitywatch.cli.options import (
    add_checkpoint_options,
    add_command,
    add_json,
    add_measuring_options,
    add_places,
    align,
    model_and_proxy,
    places_of,
    reading_options,
    settings_of,
    write_page,
)
from sparsitywatch.errors import CheckpointError, ConfigurationError, ScopeError
from sparsitywatch.progress import Progress
from sparsitywatch.records import to_json
from sparsitywatch.redact import printable, redacted, redacted_url
from sparsitywatch.series import count, describe, size

if TYPE_CHECKING:  # torch takes a second to import
    from sparsitywatch.analysis.audit import Audit
    from sparsitywatch.checkpoints.series import ListedCheckpoint
    from sparsitywatch.records import Record, SparsityCurve

#: Exit status when something in the list cannot be read, or not yet.
_NOT_ALL_READABLE = 2
#: Columns before the evidence of an audit, or a few more.
_EVIDENCE_BEGINS = 30


def add_to(commands: Any) -> None:
    """Add the commands to the subparsers of the command line."""
    words = "what checkpoints hold, and which of it would count"
    parser = add_command(commands, "inspect", _inspect, words)
    add_checkpoint_options(parser)
    add_json(parser, "one JSON object a checkpoint")
    words = "are these checkpoints what their names say? exit status 0, 1, 2"
    parser = add_command(
        commands, "audit", _audit, words,
        "Look for copies, files of another run or step, swapped, cast and damaged ones "
        "in a series. Exit status 0: none; 1: there are findings; 2: nothing could be audited.",
    )  # fmt: skip
    add_places(parser)
    parser.add_argument("--full", action="store_true", help="read every weight, not a sample")
    add_json(parser, "one JSON object a finding")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write it as a page, too")
    words = "measure one checkpoint, by any pattern"
    parser = add_command(
        commands, "measure", _measure, words,
        "Measure one checkpoint: near-zero weights, and with a model and examples what "
        "removing weights costs. Nothing is written.",
    )  # fmt: skip
    add_measuring_options(parser, "the whole record as a line of JSON")


# ------------------------------------------------------------------ inspect


def _inspect(arguments: argparse.Namespace) -> int:
    from sparsitywatch.checkpoints.discovery import describe, discover

    options = reading_options(arguments)
    listed = discover(places_of(arguments), **options)
    if len(listed) > 1:
        return _list(listed, as_json=arguments.json)
    description = describe(listed[0], settings_of(arguments).scope, **options)
    print(to_json(description) if arguments.json else "\n".join(_described(description)))
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


def _described(description: dict[str, Any]) -> list[str]:
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


# ------------------------------------------------------------------ audit


def _audit(arguments: argparse.Namespace) -> int:
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
    for line in map(to_json, found.findings) if arguments.json else _found(found):
        print(line)
    if arguments.html is not None:
        from sparsitywatch.page.audit import render_audit

        names = [arguments.steps] if arguments.steps else map(redacted_url, arguments.places)
        write_page(arguments.html, render_audit(found, " ".join(map(str, names))), "--html")
        print(arguments.html, file=sys.stderr)
    return found.status


def _found(found: Audit) -> list[str]:
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


# ------------------------------------------------------------------ measure


def _measure(arguments: argparse.Namespace) -> int:
    from sparsitywatch.offline.replay import replay

    model, proxy = model_and_proxy(arguments)
    replayed = replay(
        places_of(arguments),
        logdir=None,
        model=model,
        proxy=proxy,
        settings=settings_of(arguments),
        on_event=(),
        **reading_options(arguments),
    )
    if replayed.failures:
        raise CheckpointError(replayed.failures[0].reason)
    if len(replayed.records) != 1:
        raise ConfigurationError(
            f"Expected one checkpoint to measure, got {len(replayed.records)}. Name one of them, "
            "or use `sparsitywatch replay` for all."
        )
    (record,) = replayed.records
    print(to_json(record) if arguments.json else "\n".join(_measured(record)))
    return 0 if record.valid else 1


def _measured(record: Record) -> list[str]:
    """The record in words and a table or two."""
    estimate = record.essential_sparsity
    lines = [f"{record.place}: {record.scope.describe()}"]
    for rule, part in record.near_zero.items():
        lines.append(f"{describe(f'near_zero/{rule}').label}: {part:.2%}")
    if record.reason:
        lines.append(f"invalid: {printable(record.reason)}")
    if estimate is not None:
        why = f" ({printable(estimate.reason)})" if estimate.reason else ""
        lines.append(
            f"essential sparsity by {printable(record.provenance.pattern)}, zero-shot: "
            f"{estimate.describe()}, tolerance {estimate.tolerance:g} {estimate.mode}{why}"
        )
    if record.curve is not None:
        lines += ["", *_points(record, record.curve)]
    return lines


def _points(record: Record, curve: SparsityCurve) -> list[str]:
    """Each point of the curve, and of the controls at the same level."""
    sign = -1.0 if curve.higher_is_better else 1.0
    controls = [
        dict(zip(control.level or (), control.value, strict=True))
        for control in record.controls.values()
    ]
    names = [f"harm by {printable(name)}" for name in record.controls]
    rows = [("removed", "value", "harm", "+-", *names)]
    errors = curve.stderr or [math.nan] * len(curve.value)
    points = zip(curve.level or curve.sparsity, curve.sparsity, curve.value, errors, strict=True)
    for level, sparsity, value, error in points:
        values = [value, *(control.get(level, math.nan) for control in controls)]
        harm, *others = [f"{sign * (other - curve.dense):.3g}" for other in values]
        rows.append((f"{sparsity:.1%}", f"{value:.5g}", harm, f"{error:.2g}", *others))
    return align(rows, right=set(range(len(rows[0]))))
