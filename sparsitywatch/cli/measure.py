"""``sparsitywatch measure``: what one checkpoint says, by any pattern, without a log."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from sparsitywatch.cli.options import (
    add_checkpoint_options,
    add_json,
    add_model_options,
    add_settings_options,
    model_and_proxy,
    places_of,
    reading_options,
    settings_of,
)
from sparsitywatch.cli.summary import align
from sparsitywatch.errors import CheckpointError, ConfigurationError
from sparsitywatch.records import to_json
from sparsitywatch.redact import printable
from sparsitywatch.series import describe

if TYPE_CHECKING:
    from sparsitywatch.records import Record, SparsityCurve


def add_to(commands: Any) -> None:
    """Add the command to the subparsers of the command line."""
    parser = commands.add_parser(
        "measure",
        help="measure one checkpoint, by any pattern",
        description="Measure one checkpoint: near-zero weights, and with a model and examples what "
        "removing weights costs. Nothing is written.",
    )
    add_checkpoint_options(parser)
    add_json(parser, "the whole record as a line of JSON")
    add_settings_options(parser)
    add_model_options(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
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
    print(to_json(record) if arguments.json else "\n".join(_page(record)))
    return 0 if record.valid else 1


def _page(record: Record) -> list[str]:
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
        lines += ["", *_table(record, record.curve)]
    return lines


def _table(record: Record, curve: SparsityCurve) -> list[str]:
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
