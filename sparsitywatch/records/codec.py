"""The JSON form of everything in this package: strict JSON, one object per dataclass.

NaN and None are ``null``; infinities are the strings "Infinity" and "-Infinity".
Reading ignores keys it does not know, so that newer lines can be read by older code of
the same schema version. Logs of earlier schema versions are read too: version 1 had other names
for some fields, and up to version 2 a record's layers stood in its line.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from sparsitywatch.errors import StateError
from sparsitywatch.records.record import SCHEMA_VERSION

__all__ = ["READABLE_SCHEMAS", "from_data", "from_json", "renamed", "to_json"]

T = TypeVar("T")

#: Schema versions that can be read; what is written has the last one.
READABLE_SCHEMAS = (1, 2, SCHEMA_VERSION)
#: By class, each field that had another name in schema version 1, and that name.
_OLD_NAMES: dict[str, dict[str, str]] = {
    "Event": {
        "trend": "meaning",
        "explained_by_decay": "on_clock",
        "reverted_step": "fell_back_step",
        "revised_step": "amended_step",
    },
    "Dormant": {"projection": "outlook"},
}
_INFINITIES = {"Infinity": math.inf, "-Infinity": -math.inf}
_WORDS = {word: word for word in _INFINITIES}


def to_json(value: Any) -> str:
    """One line of strict JSON for a dataclass of this package, or what is made of some."""
    text = json.dumps(value, default=_plain, separators=(",", ":"))
    if "NaN" in text or "Infinity" in text:  # which strict JSON has no word for
        strict = json.loads(text, parse_constant={"NaN": None, **_WORDS}.get)
        text = json.dumps(strict, separators=(",", ":"))
    return text


def from_json(cls: type[T], text: str) -> T:
    """The dataclass ``cls`` from what ``to_json`` wrote.

    Raises:
        StateError: the text is not JSON, lacks a field, holds one of the wrong type, or
            was written with a schema version that is not read.
    """
    try:
        data = json.loads(text)
    except ValueError as error:
        raise StateError(f"Expected one JSON object for {cls.__name__}: {error}.") from error
    return from_data(cls, data)


def from_data(cls: type[T], data: Any) -> T:
    """The same from what JSON's text was parsed to.

    Raises:
        StateError: likewise.
    """
    if isinstance(data, dict) and "schema" in data:
        if data["schema"] not in READABLE_SCHEMAS:
            raise StateError(
                f"Expected a {cls.__name__} of schema version {SCHEMA_VERSION}, "
                f"got {data['schema']!r}. Read it with the version of sparsitywatch that wrote it."
            )
        data["schema"] = SCHEMA_VERSION
    try:
        found: T = _reader(typing.cast("Any", cls))(data)
    except _WrongError as error:
        where = cls.__name__ + "".join(reversed(error.path))
        raise StateError(error.message.format(where=where, data=error.data)) from None
    return found


def renamed(state: Mapping[str, Any], **names: str) -> dict[str, Any]:
    """A saved state whose keys have their present names, given by the ones they had before."""
    return {names.get(key, key): value for key, value in state.items()}


def _plain(value: Any) -> Any:
    """What json does not know: a dataclass, a mapping that is no dict, a sequence likewise."""
    if isinstance(value, Sequence):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else vars(value)


# ------------------------------------------------------------------ reading
#
# A log has thousands of records, each with some hundred values: what a type asks for is found out
# once, and where in a record something is wrong only once it is.

_Reader = Callable[[Any], Any]


class _WrongError(Exception):
    """Something that was not expected; its place is put together on the way out."""

    def __init__(self, message: str, data: Any) -> None:
        super().__init__(message)
        self.message, self.data = message, data
        self.path: list[str] = []

    def within(self, place: str) -> _WrongError:
        self.path.append(place)
        return self


def _unexpected(expected: str, data: Any) -> _WrongError:
    return _WrongError(f"Expected {expected} at {{where}}, got {{data!r}}.", data)


@functools.cache
def _reader(hint: Any) -> _Reader:
    """A function that makes what ``hint`` names out of parsed JSON."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (some,) = (a for a in arguments if a is not type(None))
        return _optional(_reader(some))
    if hint is float:
        return _read_float
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _fields_of(hint)
    if origin is tuple or origin is Sequence:
        return _items(_reader(arguments[0]))
    if origin is Mapping:
        return _values(_reader(arguments[1]))
    return _exactly(hint)


def _optional(some: _Reader) -> _Reader:
    return lambda data: None if data is None else some(data)


def _exactly(kind: type) -> _Reader:
    def read(data: Any) -> Any:
        if type(data) is not kind:
            raise _unexpected(f"a {kind.__name__}", data)
        return data

    return read


def _read_float(data: Any) -> float:
    if type(data) is float:
        return data
    if data is None:
        return math.nan
    if type(data) is int:
        return float(data)
    if isinstance(data, str) and data in _INFINITIES:
        return _INFINITIES[data]
    raise _unexpected("a number or null", data)


def _items(item: _Reader) -> _Reader:
    def read(data: Any) -> tuple[Any, ...]:
        if type(data) is not list:
            raise _unexpected("a list", data)
        if item is _read_float and set(map(type, data)) <= {float}:
            return tuple(data)
        found, index = [None] * len(data), 0
        try:
            for index, x in enumerate(data):
                found[index] = item(x)
        except _WrongError as error:
            raise error.within(f"[{index}]") from None
        return tuple(found)

    return read


def _values(value: _Reader) -> _Reader:
    def read(data: Any) -> dict[str, Any]:
        if type(data) is not dict:
            raise _unexpected("an object", data)
        found: dict[str, Any] = {}
        key = ""
        try:
            for key, x in data.items():
                found[key] = value(x)
        except _WrongError as error:
            raise error.within(f".{key}") from None
        return found

    return read


def _passing(hint: Any) -> frozenset[type]:
    """Types of parsed JSON that are what ``hint`` names as they are: most values need no reader."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return frozenset().union(*map(_passing, typing.get_args(hint)))
    return frozenset([hint] if hint in (bool, float, int, str, type(None)) else [])


def _fields_of(cls: type) -> _Reader:
    hints, old_names = typing.get_type_hints(cls), _OLD_NAMES.get(cls.__name__, {})
    fields = [
        (
            item.name,
            old_names.get(item.name, item.name),
            _reader(hints[item.name]),
            _passing(hints[item.name]),
            item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING,
        )
        for item in dataclasses.fields(cls)
    ]

    def read(data: Any) -> Any:
        if type(data) is not dict:
            raise _unexpected("an object", data)
        found: dict[str, Any] = {}
        key = ""
        try:
            for name, old_name, reader, passing, _ in fields:
                key = name if name in data else old_name
                if key in data:
                    x = data[key]
                    found[name] = x if type(x) in passing else reader(x)
        except _WrongError as error:
            raise error.within(f".{key}") from None
        for name, *_, is_required in fields if len(found) < len(fields) else ():
            if is_required and name not in found:
                message = f"Expected a field {name!r} in {{where}}, got {{data}}."
                raise _WrongError(message, sorted(data))
        return cls(**found)

    return read
