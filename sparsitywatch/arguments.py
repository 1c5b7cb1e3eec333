"""What a caller gave, checked before anything is done with it: each refusal names the argument."""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sparsitywatch.errors import ConfigurationError, StateError

__all__ = [
    "expect",
    "expect_functions",
    "expect_keys",
    "expect_mapping",
    "expect_methods",
    "expect_number",
    "expect_numbers",
    "expect_path",
    "expect_whole",
    "is_number",
    "listed",
]

#: Longest repr of what came that a message repeats.
_LONGEST = 80


def expect(is_good: object, name: str, what: str, came: object) -> None:
    """Refuse an argument unless it is good.

    Raises:
        ConfigurationError: it is not; says what was expected of ``name``, and what came.

    >>> expect(False, "steps", "at least 1", 0)
    Traceback (most recent call last):
    ...
    sparsitywatch.errors.ConfigurationError: Expected `steps` to be at least 1, got 0.
    """
    if not is_good:
        told = repr(came)
        told = told if len(told) <= _LONGEST else f"{told[:_LONGEST]}... ({type(came).__name__})"
        raise ConfigurationError(f"Expected `{name}` to be {what}, got {told}.")


def is_number(value: object) -> bool:
    """Whether it is a real number; True and False are none.

    >>> is_number(0.5), is_number(True), is_number("0.5")
    (True, False, False)
    """
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def expect_number(name: str, value: Any, is_good: Callable[[float], bool], what: str) -> None:
    """Refuse what is no number, or not one for which ``is_good`` holds.

    Raises:
        ConfigurationError: likewise.
    """
    expect(is_number(value) and is_good(value), name, what, value)


def expect_whole(name: str, value: Any, lowest: int) -> None:
    """Refuse what is no whole number, or below ``lowest``.

    Raises:
        ConfigurationError: likewise.
    """
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    expect(is_whole and value >= lowest, name, f"a whole number >= {lowest}", value)


def listed(name: str, values: Any, what: str) -> list[Any]:
    """The members of a list, a tuple or the like; a text is none of them.

    Raises:
        ConfigurationError: there are none to go through.
    """
    is_text = isinstance(values, str | bytes)
    expect(isinstance(values, Iterable) and not is_text and not isinstance(values, type),
           name, what, values)  # fmt: skip
    try:
        return list(values)
    except TypeError:  # such as an array without dimensions
        expect(is_good=False, name=name, what=what, came=values)
        raise


def expect_numbers(name: str, values: Any, what: str) -> tuple[float, ...]:
    """Numbers as floats, out of a list, an array or a tensor.

    Raises:
        ConfigurationError: one is none, or there is no list of them.
    """
    found = []
    for index, value in enumerate(listed(name, values, what)):
        try:
            is_good = not isinstance(value, str | bytes)
            number = float(value) if is_good else math.nan
        except (TypeError, ValueError, RuntimeError, OverflowError):
            is_good, number = False, math.nan
        expect(is_good, f"{name}[{index}]", "a number", value)
        found.append(number)
    return tuple(found)


def expect_functions(name: str, functions: Any) -> None:
    """Refuse what is no sequence of functions.

    Raises:
        ConfigurationError: likewise.
    """
    what = "a sequence of functions"
    is_one = callable(functions)
    members = [] if is_one else listed(name, functions, what)
    hint = f"{what}; put a single function in a list" if is_one else what
    expect(not is_one and all(map(callable, members)), name, hint, functions)


def expect_methods(name: str, thing: object, methods: Iterable[str], what: str) -> None:
    """Refuse an object that lacks one of some methods, and a class in the place of an object.

    Raises:
        ConfigurationError: likewise.
    """
    has_all = all(callable(getattr(thing, method, None)) for method in methods)
    expect(has_all and not isinstance(thing, type), name, what, thing)


def expect_mapping(name: str, value: Any, what: str) -> None:
    """Refuse what is no mapping from texts.

    Raises:
        ConfigurationError: likewise.
    """
    is_good = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    expect(is_good, name, what, value)


def expect_path(name: str, value: Any, what: str) -> None:
    """Refuse what is neither text nor a path.

    Raises:
        ConfigurationError: likewise.
    """
    is_path = isinstance(value, str | os.PathLike) and value != ""
    expect(is_path, name, what, value)


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
