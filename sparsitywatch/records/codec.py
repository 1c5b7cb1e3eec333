"""The JSON form of everything in this package: strict JSON, one object per dataclass.

NaN and None are ``null``; infinities are the strings "Infinity" and "-Infinity".
Reading ignores keys it does not know, so that newer lines can be read by older code of
the same schema version. Logs of schema version 1 are read too: fields had other names there.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from sparsitywatch.errors import StateError
from sparsitywatch.records.record import SCHEMA_VERSION

__all__ = ["READABLE_SCHEMAS", "from_json", "renamed", "to_json"]

T = TypeVar("T")

#: Schema versions that can be read; what is written has the last one.
READABLE_SCHEMAS = (1, SCHEMA_VERSION)
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
    """One line of strict JSON for a dataclass of this package."""
    text = json.dumps(value, default=_as_dict, separators=(",", ":"))
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
    if isinstance(data, dict) and "schema" in data:
        if data["schema"] not in READABLE_SCHEMAS:
            raise StateError(
                f"Expected a {cls.__name__} of schema version {SCHEMA_VERSION}, "
                f"got {data['schema']!r}. Read it with the version of sparsitywatch that wrote it."
            )
        data["schema"] = SCHEMA_VERSION
    return typing.cast("T", _decode(cls, data, cls.__name__))


def renamed(state: Mapping[str, Any], **names: str) -> dict[str, Any]:
    """A saved state whose keys have their present names, given by the ones they had before."""
    return {names.get(key, key): value for key, value in state.items()}


def _as_dict(value: Any) -> dict[str, Any]:
    """What json does not know: a dataclass, or a mapping that is no dict."""
    return dict(value) if isinstance(value, Mapping) else vars(value)


def _decode(hint: Any, data: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if data is None:
            return None
        (hint,) = (a for a in arguments if a is not type(None))
        return _decode(hint, data, where)
    if hint is float:
        return _decode_float(data, where)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _decode_dataclass(hint, data, where)
    if origin is tuple or origin is Sequence:
        _expect(isinstance(data, list), "a list", data, where)
        return tuple(_decode(arguments[0], x, f"{where}[{i}]") for i, x in enumerate(data))
    if origin is Mapping:
        _expect(isinstance(data, dict), "an object", data, where)
        return {key: _decode(arguments[1], x, f"{where}.{key}") for key, x in data.items()}
    _expect(type(data) is hint, f"a {hint.__name__}", data, where)
    return data


def _decode_float(data: Any, where: str) -> float:
    if data is None:
        return math.nan
    if isinstance(data, str) and data in _INFINITIES:
        return _INFINITIES[data]
    _expect(type(data) in (int, float), "a number or null", data, where)
    return float(data)


def _decode_dataclass(cls: type, data: Any, where: str) -> Any:
    _expect(isinstance(data, dict), "an object", data, where)
    hints, old_names = _hints(cls), _OLD_NAMES.get(cls.__name__, {})
    fields = {}
    for item in dataclasses.fields(cls):
        name = item.name if item.name in data else old_names.get(item.name, item.name)
        if name in data:
            fields[item.name] = _decode(hints[item.name], data[name], f"{where}.{name}")
        elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
            raise StateError(f"Expected a field {item.name!r} in {where}, got {sorted(data)}.")
    return cls(**fields)


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    """Types of the fields; looking them up takes longer than all the rest."""
    return typing.get_type_hints(cls)


def _expect(is_good: bool, expected: str, data: Any, where: str) -> None:
    if not is_good:
        raise StateError(f"Expected {expected} at {where}, got {data!r}.")
