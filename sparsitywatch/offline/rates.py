"""What the optimizer did between two checkpoints, as far as the caller knows its schedule."""

from __future__ import annotations

import bisect
import csv
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from sparsitywatch.errors import ConfigurationError, expect_number, is_number
from sparsitywatch.redact import redacted_error
from sparsitywatch.weights.clock import Clock, OptimizerReading

#: A number, a function of the optimizer step (1 is the first), or a CSV file of steps and values.
Rate = float | Callable[[int], float] | str | os.PathLike[str]


class Rates:
    """Learning rate and weight decay at every step, summed as a live watch sums them."""

    def __init__(self, lr: Rate | None, weight_decay: Rate | None) -> None:
        self.is_logged = lr is None  # by the training, as nobody has said it
        #: Whether weight decay is known, and not the learning rate alone.
        self.knows_decay = weight_decay is not None
        self._logged: dict[int, float] = {}
        self._logged_steps: list[int] = []
        self.last_logged = -1  # the latest of them
        self._lr = partial(_value, "lr", self._logged_at if lr is None else _function("lr", lr))
        decay = 0.0 if weight_decay is None else weight_decay
        self._decay = partial(_value, "weight_decay", _function("weight_decay", decay))
        self._step = 0
        self._until = 0  # the checkpoint that is read
        self._clock = Clock()

    def _logged_at(self, step: int) -> float:
        """On a straight line between logged steps; what is logged later changes no clock."""
        steps = self._logged_steps
        at = bisect.bisect_right(steps, step)
        left = self._logged[steps[max(at - 1, 0)]]
        if at in (0, len(steps)) or steps[at] > self._until:
            return left
        part = (step - steps[at - 1]) / (steps[at] - steps[at - 1])
        return left + part * (self._logged[steps[at]] - left)

    @property
    def is_known(self) -> bool:
        """Whether there is a learning rate, given or logged."""
        return not self.is_logged or bool(self._logged)

    def learn(self, rates: Mapping[int, float], where: str) -> None:
        """Add what the training has logged, by step."""
        self._logged |= rates
        self._logged_steps = sorted(self._logged)
        self.last_logged = max(self._logged, default=-1)
        if self.knows_decay and not self.is_known:
            raise ConfigurationError(
                "Expected `lr` beside `weight_decay`, got none, and no trainer_state.json with "
                f"learning rates in {where}: weights shrink by their product."
            )

    def reading(self, step: int, names: Iterable[str]) -> OptimizerReading:
        """What had been done to these weights by a step; cheapest where steps rise."""
        if step < self._step:
            self._step = 0
            self._clock = Clock()
        self._until = step
        for at in range(self._step + 1, step + 1):
            self._clock = self._clock.plus(Clock.of_step(self._lr(at), self._decay(at)))
        self._step = max(step, 0)
        return OptimizerReading(
            decay_clock=self._clock.decay if self.knows_decay else math.nan,
            lr_clock=self._clock.lr,
            lr=self._lr(max(step, 1)),
            clocks=dict.fromkeys(names, self._clock) if self.knows_decay else {},
        )

    def reading_of(self, step: int, sample: Mapping[str, torch.Tensor]) -> OptimizerReading | None:
        """The same if all of it is known; weights of 16 bits are taken for rounded copies."""
        if not (self.is_known and self.knows_decay):
            return None
        masters = frozenset(name for name, tensor in sample.items() if tensor.dtype.itemsize < 4)
        return replace(self.reading(step, sample), masters=masters)


def _value(name: str, function: Callable[[int], float], step: int) -> float:
    try:
        value = function(step)
    except Exception as error:  # whatever a user's function raises
        raise ConfigurationError(
            f"Expected `{name}` to be a number for every step, but `{name}({step})` raised "
            f"{redacted_error(error)}."
        ) from error
    if not is_number(value) or not 0.0 <= value < math.inf:
        raise ConfigurationError(
            f"Expected `{name}` to be finite and 0 or more at every step, got {value!r} at "
            f"step {step}."
        )
    return float(value)


def _function(name: str, rate: Rate) -> Callable[[int], float]:
    if callable(rate):
        _value(name, rate, 1)  # refuse at once what no step can be asked of
        return rate
    if isinstance(rate, str | os.PathLike):
        steps, values = _from_csv(name, Path(rate))
        return lambda step: float(np.interp(step, steps, values))
    what = "a number of 0 or more, a function of the step, or a CSV file of steps and values"
    expect_number(name, rate, lambda r: 0.0 <= r < math.inf, what)
    return lambda _: float(rate)


def _from_csv(name: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rising steps and their values: straight lines between them, beyond them the ends."""
    steps: list[int] = []
    values: list[float] = []
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigurationError(f"Expected `{name}` to be a CSV file, but {error}.") from error
    for number, row in enumerate(rows, 1):
        try:
            step, value = int(float(row[0])), float(row[1])
        except (ValueError, IndexError, OverflowError):
            if number == 1:  # names of the columns
                continue
            raise ConfigurationError(
                f"Expected a step and a number in line {number} of {str(path)!r} (`{name}`), got "
                f"{row!r}."
            ) from None
        if steps and step <= steps[-1]:
            raise ConfigurationError(
                f"Expected rising steps in {str(path)!r} (`{name}`), got {step} after {steps[-1]} "
                f"in line {number}."
            )
        steps.append(step)
        values.append(value)
    if not steps:
        raise ConfigurationError(f"Expected steps and numbers in {str(path)!r} (`{name}`).")
    return np.array(steps, dtype=np.float64), np.array(values)
