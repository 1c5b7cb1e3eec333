"""What a detector remembers of its series: recent snapshots, fewer older ones, and block averages.

All of it is bounded however long the run is, and all of it is plain data in a ``state_dict``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsitywatch.analysis.detect.change import Array, noise_sd
from sparsitywatch.errors import ConfigurationError, StateError, expect_keys
from sparsitywatch.records import Event

__all__ = ["BlockHistory", "SeriesHistory", "View", "event_of", "or_nan", "or_none"]

#: Bound: recent snapshots are all there, and older ones are thinned out to so few.
_RECENT, _OLDER = 96, 64
#: Blocks are made twice as large when there are more of them: 64 to 128 stand for a whole run.
_MOST_BLOCKS = 2 * _OLDER
#: Bound: the learning rate is known to so many digits, and averages are.
_RATE_DIGITS, _MEAN_DIGITS = 6, 10


@dataclass(frozen=True)
class View:
    """A series as a test reads it, one entry for each snapshot or block of them.

    Args:
        steps: abscissa, in steps.
        values: of the series.
        rates: mean learning rate since the entry before; NaN where it is not known.
        begins, ends: first and last step that an entry stands for.
    """

    steps: Array
    values: Array
    rates: Array
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]


class SeriesHistory:
    """A series so far, by rising step: every recent snapshot, and every so many of the older ones.

    The older ones are evenly spaced over the whole run: what the run was like before shows
    in them at any cadence.
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.values: list[float] = []
        self.rates: list[float] = []
        self._numbers: list[int] = []  # how many snapshots came before each

    def add(self, step: int, value: float, rate: float = math.nan) -> None:
        """One more snapshot; ``rate`` is the mean learning rate since the last one, if known."""
        self._numbers.append(self._numbers[-1] + 1 if self._numbers else 0)
        self.steps.append(int(step))
        self.values.append(float(value))
        self.rates.append(float(f"{rate:.{_RATE_DIGITS}g}"))
        if len(self.steps) > 2 * _RECENT:
            self._thin_out()

    def require_later(self, step: int) -> None:
        """Refuse a step that does not come after the last one."""
        if self.steps and step <= self.steps[-1]:
            raise ConfigurationError(
                f"Expected `step` after {self.steps[-1]}, the last snapshot, got {step!r}."
            )

    def keep(self, number: int) -> None:
        """Forget all but the last ``number`` snapshots, if there are so many recent ones."""
        for column in self._columns():
            del column[: -min(number, _RECENT)]
        self._numbers[:] = range(len(self._numbers))

    def view(self) -> View:
        """As arrays."""
        steps = np.array(self.steps, np.int64)
        values, rates = np.array(self.values), np.array(self.rates)
        return View(steps.astype(np.float64), values, rates, steps, steps)

    def state_dict(self) -> dict[str, Any]:
        """Plain data that ``load_state_dict`` goes on from."""
        rates = [or_none(rate) for rate in self.rates]
        return {
            "steps": list(self.steps),
            "values": list(self.values),
            "rates": rates,
            "numbers": list(self._numbers),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            StateError: a key is missing, or the columns differ in length.
        """
        expect_keys(state, ("steps", "values", "rates"))
        numbers = state.get("numbers", range(len(state["steps"])))  # missing in older states
        for key, column in (("values", state["values"]), ("rates", state["rates"]),
                            ("numbers", numbers)):  # fmt: skip
            if len(column) != len(state["steps"]):
                raise StateError(
                    f"Expected as many {key!r} as 'steps' ({len(state['steps'])}) in a "
                    f"detector's state, got {len(column)}."
                )
        self.steps = [int(step) for step in state["steps"]]
        self.values = [float(value) for value in state["values"]]
        self.rates = [or_nan(rate) for rate in state["rates"]]
        self._numbers = [int(number) for number in numbers]

    def _columns(self) -> Sequence[list[Any]]:
        return self.steps, self.values, self.rates, self._numbers

    def _thin_out(self) -> None:
        older, stride = self._numbers[:-_RECENT], 1
        while sum(number % stride == 0 for number in older) > _OLDER:
            stride *= 2
        kept = [i for i, number in enumerate(older) if number % stride == 0]
        for column in self._columns():
            column[:-_RECENT] = [column[i] for i in kept]


class BlockHistory:
    """Averages over equal blocks of snapshots, 64 to 128 for the whole run.

    Args:
        size: snapshots in a block, a power of two that doubles as the run grows.
    """

    def __init__(self) -> None:
        self.size = 1
        #: First and last step, sums of the values and of the rates; the last one may be partial.
        self._blocks: list[list[float]] = []
        self._num_in_last = 1

    @classmethod
    def of(cls, history: SeriesHistory) -> BlockHistory:
        """The blocks of what is remembered of a series."""
        blocks = cls()
        for step, value, rate in zip(history.steps, history.values, history.rates, strict=True):
            blocks.add(step, value, rate)
        return blocks

    def add(self, step: int, value: float, rate: float) -> bool:
        """One more snapshot; True if it completes a block of several."""
        if self._num_in_last == self.size:
            if len(self._blocks) == _MOST_BLOCKS:
                self._merge()
            self._blocks.append([step, step, 0.0, 0.0])
            self._num_in_last = 0
        block = self._blocks[-1]
        block[1] = step
        block[2], block[3] = (
            _rounded(a + b) for a, b in zip(block[2:], (value, rate), strict=True)
        )
        self._num_in_last += 1
        return self.size > 1 and self._num_in_last == self.size

    def view(self) -> View:
        """The complete blocks, as arrays."""
        complete = self._blocks[: len(self._blocks) - (self._num_in_last < self.size)]
        begins, ends, values, rates = np.array(complete, np.float64).reshape(-1, 4).T
        return View(
            0.5 * (begins + ends), values / self.size, rates / self.size,
            begins.astype(np.int64), ends.astype(np.int64),
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Plain data that ``load_state_dict`` goes on from."""
        blocks = [[*block[:3], or_none(block[3])] for block in self._blocks]
        return {"size": self.size, "blocks": blocks, "num_in_last": self._num_in_last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""
        expect_keys(state, ("size", "blocks", "num_in_last"))
        self.size, self._num_in_last = int(state["size"]), int(state["num_in_last"])
        self._blocks = [
            [int(begin), int(end), float(value), or_nan(rate)]
            for begin, end, value, rate in state["blocks"]
        ]

    def _merge(self) -> None:
        pairs = zip(self._blocks[::2], self._blocks[1::2], strict=True)
        self._blocks = [
            [a[0], b[1], _rounded(a[2] + b[2]), _rounded(a[3] + b[3])] for a, b in pairs
        ]
        self.size *= 2
        self._num_in_last = self.size


def event_of(history: SeriesHistory, onset: tuple[int, int, int], **known: Any) -> Event:
    """The event of the last snapshot, without the name of its series, which is not known here.

    Args:
        onset: step of the onset, and both ends of the interval that it lies in.
        known: more of its fields.
    """
    at, low, high = onset
    before = [
        value for step, value in zip(history.steps, history.values, strict=True) if step <= at
    ]
    return Event(
        series="",
        onset_step=at,
        onset_low=low,
        onset_high=high,
        detected_step=history.steps[-1],
        value=history.values[-1],
        noise=noise_sd(np.array(before)),
        **known,
    )


def or_none(number: float) -> float | None:
    """NaN as None: a state is plain JSON."""
    return None if math.isnan(number) else number


def or_nan(number: float | None) -> float:
    """The reverse of ``or_none``."""
    return math.nan if number is None else float(number)


def _rounded(number: float) -> float:
    return float(f"{number:.{_MEAN_DIGITS}g}")
