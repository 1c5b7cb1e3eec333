"""The JSON Schema of what is logged, made from the dataclasses: for readers in other languages.

It is as open as ``from_json``: what has a default may be missing, what is not known may be there.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from sparsitywatch.records.record import SCHEMA_VERSION, Record

_NAMES = {str: "string", int: "integer", bool: "boolean"}
#: What is not a dataclass, by the name of its definition.
_COMMON: Mapping[str, Any] = {
    "Number": {
        "description": "null is not a number, or could not be measured",
        "anyOf": [{"type": ["number", "null"]}, {"enum": ["Infinity", "-Infinity"]}],
    },
    "Place": {
        "description": "where an array is in layers.npys: offset and size in bytes, CRC-32",
        "type": "array",
        "items": {"type": "integer"},
        "minItems": 3,
        "maxItems": 3,
    },
}
#: The names of an argument in a docstring, and what is said of them.
_ARGUMENT = re.compile(r"^ {4}(\w+(?:, \w+)*): (.+(?:\n {6,}.+)*)", re.M)


def json_schema(*classes: type) -> dict[str, Any]:
    """The schema of one line that holds one of the dataclasses, with their parts in ``$defs``."""
    definitions: dict[str, Any] = {}
    references = [_schema_of(cls, definitions) for cls in classes]
    for cls in classes:
        definitions[cls.__name__]["properties"]["schema"] = {"const": SCHEMA_VERSION}
    names = {name: _COMMON[name] for name in ("Number", "Place")}
    root = references[0] if len(references) == 1 else {"anyOf": references}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:sparsitywatch:{'-'.join(cls.__name__.lower() for cls in classes)}"
        f":{SCHEMA_VERSION}",
        **root,
        "$defs": names | definitions,
    }


def _schema_of(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """What a type hint allows; a dataclass is defined and referred to."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (some,) = (_schema_of(a, definitions) for a in arguments if a is not type(None))
        return {"anyOf": [some, {"type": "null"}]}
    if hint is float:
        return {"$ref": "#/$defs/Number"}
    if origin is tuple or origin is Sequence:
        return {"type": "array", "items": _schema_of(arguments[0], definitions)}
    if origin is Mapping:
        return {"type": "object", "additionalProperties": _schema_of(arguments[1], definitions)}
    if not dataclasses.is_dataclass(hint):
        return {"type": _NAMES[hint]}
    name = typing.cast("type", hint).__name__
    if name not in definitions:
        definitions[name] = {}  # one that holds itself refers to it
        definitions[name] = _definition(hint, definitions)
    return {"$ref": f"#/$defs/{name}"}


def _definition(cls: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """Of a dataclass: what its docstring says, its fields, and those without a default."""
    hints, fields = typing.get_type_hints(cls), dataclasses.fields(cls)
    properties = {field.name: _schema_of(hints[field.name], definitions) for field in fields}
    if cls is Record:  # whole where it is printed; in a log where its numbers are
        place = {"$ref": "#/$defs/Place"}
        places = {
            "properties": {"names": place, "numbers": place},
            "required": ["names", "numbers"],
        }
        shares = properties["layers"]
        properties["layers"] = {"anyOf": [shares, {"type": "object", **places}, {"type": "null"}]}
    words = inspect.getdoc(cls) or ""
    for argument in _ARGUMENT.finditer(words):
        for name in argument[1].split(", "):
            if name in properties:
                properties[name] = {
                    "description": " ".join(argument[2].split()),
                    **properties[name],
                }
    return {
        "description": words.partition("\n")[0],
        "type": "object",
        "properties": properties,
        "required": [f.name for f in fields if f.default is f.default_factory],  # both MISSING
    }
