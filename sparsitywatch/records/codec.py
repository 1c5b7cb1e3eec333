"""The JSON form of everything in this package: strict JSON, one object per dataclass.

NaN and None are ``null``; infinities are the strings "Infinity" and "-Infinity". Reading ignores
keys it does not know, so that newer lines can be read by older code of the same schema version.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from sparsitywatch.errors import StateError
from sparsitywatch.records.record import SCHEMA_VERSION

T = TypeVar("T")

_INFINITIES = {"Infinity": math.inf, "-Infinity": -math.inf}
#: A text, which stays as it is, or one of Python's words that strict JSON does not know.
_UNKNOWN = re.compile(r'"(?:[^"\\]|\\.)*"|NaN|-?Infinity')
_KNOWN = {"NaN": "null", **{word: f'"{word}"' for word in _INFINITIES}}


def to_json(value: Any) -> str:
    """One line of strict JSON for a dataclass of this package, or what is made of some."""
    text = json.dumps(value, default=_plain, separators=(",", ":"))
    if "NaN" in text or "Infinity" in text:
        text = _UNKNOWN.sub(lambda found: _KNOWN.get(found[0], found[0]), text)
    return text


def from_json(cls: type[T], text: str) -> T:
    """The dataclass ``cls`` from what ``to_json`` wrote; a StateError says what is wrong."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise StateError(f"Expected one JSON object for {cls.__name__}: {error}.") from error
    return from_data(cls, data)


def from_data(cls: type[T], data: Any) -> T:
    """``from_json`` of text that is parsed already."""
    schema = data.get("schema", SCHEMA_VERSION) if isinstance(data, dict) else SCHEMA_VERSION
    if schema != SCHEMA_VERSION:
        raise StateError(
            f"Expected a {cls.__name__} of schema version {SCHEMA_VERSION}, got {schema!r}. "
            "Read it with the version of sparsitywatch that wrote it."
        )
    try:
        found: T = _reader(typing.cast("Any", cls)).read(data)
    except _WrongError as error:
        place = cls.__name__ + error.path
        raise StateError(f"Expected {error.expected} {place}, got {error.data!r}.") from None
    return found


def _plain(value: Any) -> Any:
    """What json does not know: a dataclass, an array, a mapping that is no dict, a sequence."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Sequence):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else vars(value)


# ------------------------------------------------------------------ reading
#
# A log has thousands of records, each with some hundred values. So what a type asks for is found
# out once, most values are told by their type alone, and the place of a wrong one is put together
# on its way out.


@dataclasses.dataclass(eq=False)
class _WrongError(Exception):
    """``data`` is not what was expected; ``path`` leads to it from the dataclass that is read."""

    expected: str
    data: Any
    path: str = ""


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Makes what a type hint names out of parsed JSON."""

    passing: frozenset[type]  # types of parsed JSON that are it as they are
    read: Callable[[Any], Any]  # makes it of all others, or raises _WrongError

    def at(self, step: str, key: object, data: Any) -> Any:
        """What ``data`` is; ``step`` with ``key`` is the way to it."""
        if type(data) in self.passing:
            return data
        try:
            return self.read(data)
        except _WrongError as error:
            error.path = step.format(key) + error.path
            raise


@functools.cache
def _reader(hint: Any) -> _Reader:
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (some,) = (_reader(a) for a in arguments if a is not type(None))
        return _Reader(some.passing | {type(None)}, some.read)
    if hint is float:
        return _Reader(frozenset([float]), _read_number)
    if dataclasses.is_dataclass(hint):
        return _Reader(frozenset(), _read_fields(hint))
    if origin is tuple or origin is Sequence:
        return _Reader(frozenset(), functools.partial(_read_list, _reader(arguments[0])))
    if origin is np.ndarray:
        return _Reader(frozenset(), _read_array)
    if origin is Mapping:
        return _Reader(frozenset(), functools.partial(_read_mapping, _reader(arguments[1])))
    return _Reader(frozenset([hint]), functools.partial(_refuse, f"a {hint.__name__} at"))


def _refuse(expected: str, data: Any) -> Any:
    raise _WrongError(expected, data)


def _read_number(data: Any) -> float:
    if data is None:
        return math.nan
    if type(data) is int:
        return float(data)
    if isinstance(data, str) and data in _INFINITIES:
        return _INFINITIES[data]
    raise _WrongError("a number or null at", data)


def _read_array(data: Any) -> np.ndarray:
    try:
        return np.array(data)
    except ValueError:  # rows of unlike lengths
        raise _WrongError("an array at", data) from None


def _read_list(item: _Reader, data: Any) -> tuple[Any, ...]:
    if type(data) is not list:
        raise _WrongError("a list at", data)
    if item.passing.issuperset(map(type, data)):  # most are long columns of numbers
        return tuple(data)
    return tuple(item.at("[{}]", i, x) for i, x in enumerate(data))


def _read_mapping(item: _Reader, data: Any) -> dict[str, Any]:
    if type(data) is not dict:
        raise _WrongError("an object at", data)
    return {key: item.at(".{}", key, x) for key, x in data.items()}


def _read_fields(cls: Any) -> Callable[[Any], Any]:
    """Of a dataclass; a field with a default may be missing."""
    hints = typing.get_type_hints(cls)
    fields = dataclasses.fields(cls)
    readers = {item.name: _reader(hints[item.name]) for item in fields}
    required = [f.name for f in fields if f.default is f.default_factory]  # both are MISSING

    def read(data: Any) -> Any:
        if type(data) is not dict:
            raise _WrongError("an object at", data)
        found = {
            name: reader.at(".{}", name, data[name])
            for name, reader in readers.items()
            if name in data
        }
        for name in required if len(found) < len(fields) else ():
            if name not in found:
                raise _WrongError(f"a field {name!r} in", sorted(data))
        return cls(**found)

    return read
