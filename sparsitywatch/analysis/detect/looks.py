"""What a detector remembers of its series: every recent look, and fewer of the older ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsitywatch.arguments import expect_keys
from sparsitywatch.errors import StateError

__all__ = ["Looks"]

Array = NDArray[np.float64]

#: When there are so many, every second one of those that are not recent is dropped.
_MOST, _RECENT = 192, 96
#: A change goes on while so many looks still add this part of its size.
_SETTLING_LOOKS, _SETTLING_SHARE = 5, 0.1
#: The rate is known to so many digits.
_RATE_DIGITS = 6


class Looks:
    """Steps, values and learning rates, by rising step; NaN where the rate is not known."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.values: list[float] = []
        self.rates: list[float] = []

    def __len__(self) -> int:
        return len(self.steps)

    def add(self, step: int, value: float, rate: float) -> None:
        """One more look.

        Args:
            step: after that of the last look.
            value: finite.
            rate: mean learning rate since the last look; NaN if it is not known.
        """
        columns = zip(self._columns(), (int(step), float(value), _rounded(rate)), strict=True)
        for column, new in columns:
            column.append(new)
        if len(self) > _MOST:
            for column in self._columns():
                column[:-_RECENT] = column[:-_RECENT:2]

    def has_settled(self, direction: str, baseline: float) -> bool:
        """Whether a change from ``baseline`` is over: the latest looks add little to it."""
        sign = 1.0 if direction == "up" else -1.0
        recent = self.values[-_SETTLING_LOOKS:]
        size = sign * (float(np.median(recent)) - baseline)
        return sign * (recent[-1] - recent[0]) < _SETTLING_SHARE * max(size, 0.0)

    def keep_settled(self) -> None:
        """Forget all but the looks that showed it: a new level, a new baseline."""
        for column in self._columns():
            del column[: max(0, len(column) - _SETTLING_LOOKS)]

    def arrays(self) -> tuple[Array, Array, Array]:
        """Steps, values and rates."""
        return np.array(self.steps, np.float64), np.array(self.values), np.array(self.rates)

    def state_dict(self) -> dict[str, Any]:
        """Plain data that ``load_state_dict`` goes on from."""
        rates = [None if rate != rate else rate for rate in self.rates]
        return {"steps": list(self.steps), "values": list(self.values), "rates": rates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            StateError: a key is missing, or the columns differ in length.
        """
        expect_keys(state, ("steps", "values", "rates"))
        for key in ("values", "rates"):
            if len(state[key]) != len(state["steps"]):
                raise StateError(
                    f"Expected as many {key!r} as 'steps' ({len(state['steps'])}) in a "
                    f"detector's state, got {len(state[key])}."
                )
        self.steps = [int(step) for step in state["steps"]]
        self.values = [float(value) for value in state["values"]]
        self.rates = [float("nan") if rate is None else float(rate) for rate in state["rates"]]

    def _columns(self) -> Sequence[list[Any]]:
        return self.steps, self.values, self.rates


def _rounded(rate: float) -> float:
    return float(f"{rate:.{_RATE_DIGITS}g}")
