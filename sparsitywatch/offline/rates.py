"""What the optimizer did between two checkpoints, as far as the caller knows its schedule."""

from __future__ import annotations

import bisect
import csv
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from sparsitywatch.errors import ConfigurationError, is_number
from sparsitywatch.shown import shown_error
from sparsitywatch.weights.clock import DecayClock, GroupClock, OptimizerReading

__all__ = ["LoggedLearningRate", "Rate", "Rates"]

#: A number, a function of the optimizer step (1 is the first), or a CSV file of steps and values.
Rate = float | Callable[[int], float] | str | os.PathLike[str]


class LoggedLearningRate:
    """The learning rate that a training logged, held from one logged step to the next.

    Before the first one it is that of the first. What is logged later changes nothing of before:
    a replay that is taken up again has the clocks of one that was never interrupted.
    """

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._rates: list[float] = []

    @property
    def last_step(self) -> int:
        """The latest step that is known; -1 if there is none."""
        return self._steps[-1] if self._steps else -1

    def learn(self, rates: Mapping[int, float]) -> None:
        """Add what was logged, by step."""
        known = {**dict(zip(self._steps, self._rates, strict=True)), **rates}
        self._steps = sorted(known)
        self._rates = [known[step] for step in self._steps]

    def __call__(self, step: int) -> float:
        """The rate at an optimizer step."""
        return self._rates[max(bisect.bisect_right(self._steps, step) - 1, 0)]


class Rates:
    """Learning rate and weight decay at every step, summed as a live watch sums them.

    Args:
        lr: learning rate of the in-scope weights; ``LoggedLearningRate`` may be learned later.
        weight_decay: decoupled decay of them; None if it is not known.

    Raises:
        ConfigurationError: one of them is no number, function or CSV file of numbers.
    """

    def __init__(self, lr: Rate | LoggedLearningRate, weight_decay: Rate | None) -> None:
        self.logged = lr if isinstance(lr, LoggedLearningRate) else None
        self._lr = self.logged or _function("lr", lr)
        self._decay = None if weight_decay is None else _function("weight_decay", weight_decay)
        self._step, self._clock = 0, GroupClock()

    @property
    def is_known(self) -> bool:
        """Whether there is a learning rate, given or logged."""
        return self.logged is None or self.logged.last_step >= 0

    @property
    def knows_decay(self) -> bool:
        """Whether weight decay is known, and not the learning rate alone."""
        return self._decay is not None

    def learn(self, rates: Mapping[int, float], where: str) -> None:
        """Add what the training has logged, if nobody has said the learning rate.

        Args:
            rates: by step.
            where: the checkpoint beside which they were looked for.

        Raises:
            ConfigurationError: weight decay without a learning rate.
        """
        if self.logged is not None:
            self.logged.learn(rates)
        if self.knows_decay and not self.is_known:
            raise ConfigurationError(
                "Expected `lr` beside `weight_decay`, got none, and no trainer_state.json with "
                f"learning rates in {where}: weights shrink by their product."
            )

    def reading(self, step: int, names: Iterable[str]) -> OptimizerReading:
        """What had been done when ``step`` optimizer steps were done.

        Args:
            step: of a checkpoint; cheapest where they rise.
            names: of the in-scope weights.
        """
        if step < self._step:
            self._step, self._clock = 0, GroupClock()
        for at in range(self._step + 1, step + 1):
            self._clock.advance(self._value("lr", self._lr, at), self._decay_at(at))
        self._step = max(step, 0)
        return OptimizerReading(
            decay_clock=self._clock.decay if self.knows_decay else math.nan,
            lr_clock=self._clock.lr,
            lr=self._value("lr", self._lr, max(step, 1)),
            clock=DecayClock([self._clock]).copy() if self.knows_decay else None,
            membership=dict.fromkeys(names, 0),
        )

    def _decay_at(self, step: int) -> float:
        return 0.0 if self._decay is None else self._value("weight_decay", self._decay, step)

    @staticmethod
    def _value(name: str, function: Callable[[int], float], step: int) -> float:
        try:
            value = function(step)
        except Exception as error:  # whatever a user's function raises
            raise ConfigurationError(
                f"Expected `{name}` to be a number for every step, but `{name}({step})` raised "
                f"{shown_error(error)}."
            ) from error
        if not is_number(value) or not 0.0 <= value < math.inf:
            raise ConfigurationError(
                f"Expected `{name}` to be finite and 0 or more at every step, got {value!r} at "
                f"step {step}."
            )
        return float(value)


def _function(name: str, rate: Rate) -> Callable[[int], float]:
    if callable(rate):
        Rates._value(name, rate, 1)  # refuse at once what no step can be asked of
        return rate
    if isinstance(rate, str | os.PathLike):
        return _from_csv(name, Path(rate))
    if not is_number(rate) or not 0.0 <= rate < math.inf:
        raise ConfigurationError(
            f"Expected `{name}` to be a number of 0 or more, a function of the step, or a CSV file "
            f"of steps and values, got {rate!r}."
        )
    return lambda _: float(rate)


def _from_csv(name: str, path: Path) -> Callable[[int], float]:
    """Straight lines between the rows of a file; beyond them the first and the last value."""
    steps: list[int] = []
    values: list[float] = []
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError) as error:
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

    def at(step: int) -> float:
        after = bisect.bisect_left(steps, step)
        if after in (0, len(steps)):
            return values[min(after, len(steps) - 1)]
        share = (step - steps[after - 1]) / (steps[after] - steps[after - 1])
        return values[after - 1] + share * (values[after] - values[after - 1])

    return at
