"""``--storage-option KEY=VALUE``: what a storage needs to know, such as an endpoint."""

from __future__ import annotations

import argparse
import json
from typing import Any

from sparsitywatch.errors import ConfigurationError

__all__ = ["add_duplicates_option", "add_storage_option", "storage_options"]


def add_storage_option(parser: argparse.ArgumentParser) -> None:
    """Add the option to a command that reads from any storage."""
    parser.add_argument(
        "--storage-option",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="what fsspec is told of the storage, such as endpoint_url=http://... or anon=true; "
        "VALUE is taken as JSON where it is JSON; may be repeated",
    )


def add_duplicates_option(parser: argparse.ArgumentParser) -> None:
    """Add the option to a command that finds checkpoints."""
    parser.add_argument(
        "--duplicates",
        choices=("refuse", "first"),
        default="refuse",
        help="of several checkpoints of one step that do not hold the same weights, such as one "
        "for each rank, take none (default), or the first",
    )


def storage_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that were given.

    Raises:
        ConfigurationError: one is not of the form KEY=VALUE, or a key is there twice.
    """
    options: dict[str, Any] = {}
    for given in arguments.storage_option:
        key, equals, value = given.partition("=")
        if not key or not equals:
            # the value may be a secret: it is not repeated
            raise ConfigurationError(
                "Expected `--storage-option` of the form KEY=VALUE, got one without a key or '='."
            )
        if key in options:
            raise ConfigurationError(
                f"Expected `--storage-option` {key} once, got it twice. Give one value."
            )
        options[key] = _value(value)
    return options


def _value(text: str) -> Any:
    """JSON where it is JSON, else the text itself.

    >>> _value("true"), _value('{"region_name": "eu"}'), _value("http://localhost:9000")
    (True, {'region_name': 'eu'}, 'http://localhost:9000')
    """
    try:
        return json.loads(text)
    except ValueError:
        return text
