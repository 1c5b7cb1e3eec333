"""The facts of vital signs by tensor, to write them down and to read them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import make_dataclass
from typing import Any

import numpy as np

from sparsitywatch.records import TensorFacts


def _plain(value: Any) -> Any:
    """As Python's own; NaN is one object, so that it equals itself within a row."""
    if isinstance(value, np.ndarray):
        return tuple(value.tolist())
    value = getattr(value, "tolist", lambda: value)()
    return math.nan if isinstance(value, float) and math.isnan(value) else value


_ONE = vars(TensorFacts(name=np.array(["x"], object), size=np.ones(1), num=np.ones(1)))
#: One tensor; its fields are those of ``TensorFacts``.
Row = make_dataclass(
    "Row",
    [(name, Any, _plain(column[0])) for name, column in _ONE.items()],
    namespace={"is_still": property(lambda row: row.still_for > 0)},
    frozen=True,
)


def rows(facts: TensorFacts) -> dict[str, Any]:
    """Each tensor's facts, by its name."""
    return {
        name: Row(**{field: _plain(column[i]) for field, column in vars(facts).items()})
        for i, name in enumerate(facts.name)
    }


def stacked(each: Iterable[Any]) -> TensorFacts:
    """The facts of all; intervals that only some have seen are left out."""
    each = list(each)
    columns = {name: np.array([getattr(one, name) for one in each])
               for name in _ONE if name not in ("name", "past_updates")}  # fmt: skip
    num = min(len(one.past_updates) for one in each)
    past = np.array([one.past_updates[:num] for one in each])
    names = np.array([one.name for one in each], object)
    return TensorFacts(name=names, past_updates=past, **columns)
