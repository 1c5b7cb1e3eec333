"""The facts of vital signs by tensor, to write them down and to read them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from sparsitywatch.vital.judgement import TensorFacts


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
    columns = vars(facts).items()
    return {
        name: Row(**{key: _plain(column[i]) for key, column in columns})
        for i, name in enumerate(facts.name)
    }


def stacked(each: Iterable[Row]) -> TensorFacts:
    """The facts of all; intervals that only some have seen are left out."""
    each = list(each)
    num = min((len(one.past_updates) for one in each), default=0)
    facts = TensorFacts([one.name for one in each], num)
    for index, one in enumerate(each):
        for name, value in vars(one).items():
            setattr(facts.row(index), name, value[:num] if name == "past_updates" else value)
    return facts
