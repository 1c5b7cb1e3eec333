"""Every line that a test writes into a log is one of the published schema."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

import fastjsonschema

from sparsitywatch.records import Event, Record, RunInfo
from sparsitywatch.records.schema import json_schema


@functools.cache
def validator(cls: type) -> Callable[[Any], Any]:
    """Raises for parsed JSON that is no ``cls`` by its schema."""
    return fastjsonschema.compile(json_schema(cls))


def kind_of(fields: Mapping[str, Any]) -> type:
    """What a line holds."""
    return RunInfo if "ledger" in fields else Event if "series" in fields else Record


def checked(line_of: Callable[[Mapping[str, Any]], bytes]) -> Callable[[Mapping[str, Any]], bytes]:
    """``line_of``, which makes lines, and looks at each."""

    @functools.wraps(line_of)
    def line(fields: Mapping[str, Any]) -> bytes:
        made = line_of(fields)
        validator(kind_of(fields))(json.loads(made))
        return made

    return line
