"""``--scope``: which weights count, as a preset or as patterns of names."""

from __future__ import annotations

import argparse

__all__ = ["add_scope_option", "scope_of"]


def add_scope_option(parser: argparse.ArgumentParser) -> None:
    """Add the option to a command that decides which weights count."""
    parser.add_argument(
        "--scope",
        metavar="PRESET|PATTERN",
        action="append",
        help="which weights count: blocks (the default), paper, layers, matrices, or a pattern of "
        "tensor names such as '*.query.weight'; patterns may be repeated",
    )


def scope_of(arguments: argparse.Namespace) -> str | list[str]:
    """The preset or the patterns that were given."""
    from sparsitywatch.weights.scope import PRESETS  # imports torch

    given: list[str] = arguments.scope or ["blocks"]
    return given[0] if len(given) == 1 and given[0] in PRESETS else given
