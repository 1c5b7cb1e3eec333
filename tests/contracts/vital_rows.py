"""The facts of vital signs by tensor, to write them down and to read them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np

from sparsitywatch.vital.judgement import TensorFacts, table_of


class Row(SimpleNamespace):
    """One tensor; its fields are the columns of the facts."""

    def but(self, **fields: Any) -> Row:
        """The same with other facts."""
        return Row(**{**vars(self), **fields})


def _plain(value: Any) -> Any:
    """As Python's own; NaN is one object, so that it equals itself within a row."""
    value = getattr(value, "tolist", lambda: value)()
    value = tuple(value) if isinstance(value, list) else value
    return math.nan if isinstance(value, float) and math.isnan(value) else value


def rows(facts: TensorFacts) -> dict[str, Row]:
    """Each tensor's facts, by its name."""
    names = np.asarray(facts).dtype.names
    return {one.name: Row(**{name: _plain(one[name]) for name in names}) for one in facts}


def stacked(each: Iterable[Row]) -> TensorFacts:
    """The facts of all; intervals that only some have seen are left out."""
    each = list(each)
    num = min((len(one.past_updates) for one in each), default=0)
    facts = table_of([one.name for one in each], num)
    for one, row in zip(each, facts, strict=True):
        for name, value in vars(one).items():
            row[name] = value[:num] if name == "past_updates" else value
    return facts
