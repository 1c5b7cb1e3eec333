"""Checks of what a caller gave, the same for all of this room."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping
from typing import Any

from sparsitywatch.errors import StateError

__all__ = ["expect_keys", "is_number"]


def is_number(value: object) -> bool:
    """Whether it is a real number; True and False are none.

    >>> is_number(0.5), is_number(True), is_number("0.5")
    (True, False, False)
    """
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def expect_keys(state: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Refuse a detector's state that lacks a key.

    Raises:
        StateError: it does; the key is named.
    """
    for key in keys:
        if key not in state:
            raise StateError(
                f"Expected a detector's state with the key {key!r}, got {sorted(state)}."
            )
