"""When to look: a schedule is any function from the optimizer step to yes or no.

It must depend on the step, and what it was told, alone, so that every rank of a distributed
run and a resumed run decide alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sparsitywatch.arguments import expect, expect_number, expect_whole, listed
from sparsitywatch.errors import StateError

__all__ = [
    "Adaptive",
    "Schedule",
    "adaptive",
    "as_schedule",
    "at",
    "every",
    "geometric",
    "next_due",
]

#: True for the steps at which to look. Steps count from 1: the first optimizer step.
Schedule = Callable[[int], bool]

#: So many steps are looked ahead for the next one that is due.
_AHEAD = 10_000


class _Pure:
    """A schedule that is made here: it depends on the step alone, and may be asked ahead."""

    def __init__(self, due: Schedule) -> None:
        self._due = due

    def __call__(self, step: int) -> bool:
        return self._due(step)


def every(interval: int) -> Schedule:
    """Look at every multiple of ``interval`` steps.

    >>> [step for step in range(1, 7) if every(2)(step)]
    [2, 4, 6]
    """
    expect_whole("interval", interval, 1)
    return _Pure(lambda step: step % interval == 0)


def at(steps: Iterable[int]) -> Schedule:
    """Look at exactly these steps.

    >>> [step for step in range(1, 7) if at([1, 5])(step)]
    [1, 5]
    """
    what = "whole numbers >= 1, at least one"
    given = listed("steps", steps, what)
    expect(given, "steps", what, given)
    for index, step in enumerate(given):
        expect_whole(f"steps[{index}]", step, 1)
    chosen = frozenset(given)
    return _Pure(lambda step: step in chosen)


def geometric(first: int = 1, ratio: float = 2.0, max_interval: int | None = None) -> Schedule:
    """Look at steps that grow by ``ratio``: densely in the violent start, sparsely later.

    Args:
        first: the first step to look at.
        ratio: factor between looks, greater than 1.
        max_interval: largest distance of two looks, if given.

    >>> [step for step in range(1, 40) if geometric(first=2, max_interval=10)(step)]
    [2, 4, 8, 16, 26, 36]
    """
    expect_whole("first", first, 1)
    expect_number("ratio", ratio, lambda r: 1.0 < r < math.inf, "a factor > 1")
    if max_interval is not None:
        expect_whole("max_interval", max_interval, 1)
    steps = [first]

    def due(step: int) -> bool:
        while steps[-1] < step:
            ahead = max(1, round(steps[-1] * (ratio - 1.0)))
            steps.append(steps[-1] + (ahead if max_interval is None else min(ahead, max_interval)))
        return step in steps if step < steps[-1] else step == steps[-1]

    return _Pure(due)


class Adaptive:
    """Looks at every multiple of an interval, and for a while more often after an alert.

    The watch alerts it when a detector sees an event, or what may become one. See
    ``adaptive``, which makes it.
    """

    def __init__(self, interval: int, *, closer: int, intervals: int) -> None:
        self._usually = every(interval)
        expect_whole("closer", closer, 2)
        expect_whole("intervals", intervals, 1)
        self._closely = every(max(1, interval // closer))
        self._while_steps = interval * intervals
        self._until = -1

    def __call__(self, step: int) -> bool:
        """Whether to look at ``step``."""
        return self._usually(step) or (step <= self._until and self._closely(step))

    def alert(self, step: int) -> None:
        """Something may be going on at ``step``: look closely from here on, for a while."""
        self._until = max(self._until, step + self._while_steps)

    def state_dict(self) -> dict[str, Any]:
        """Plain data that ``load_state_dict`` goes on from."""
        return {"until": self._until}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            StateError: the key is missing.
        """
        if "until" not in state:
            raise StateError(f"Expected key 'until' in the schedule's state, got {list(state)}.")
        self._until = int(state["until"])


def adaptive(interval: int, *, closer: int = 5, intervals: int = 2) -> Adaptive:
    """Look at every multiple of ``interval``, and more often after a suspicion or an event.

    So the onset of a change is located finely without paying for it all the time; the
    budget of the watch holds all the same.

    Args:
        interval: optimizer steps between looks as long as nothing happens.
        closer: how many times more often after an alert.
        intervals: for how many intervals after it.

    Raises:
        ConfigurationError: an argument is out of range.

    >>> schedule = adaptive(10, intervals=1)
    >>> schedule.alert(20)
    >>> [step for step in range(20, 51) if schedule(step)]
    [20, 22, 24, 26, 28, 30, 40, 50]
    """
    return Adaptive(interval, closer=closer, intervals=intervals)


def next_due(schedule: Schedule, step: int) -> int:
    """The first step after ``step`` that is due; -1 if that cannot be told.

    A function of the user's is not asked: it may remember what it was asked.

    >>> next_due(every(50), 50), next_due(at([3]), 3), next_due(lambda step: True, 3)
    (100, -1, -1)
    """
    if not isinstance(schedule, (_Pure, Adaptive)):
        return -1
    return next((s for s in range(step + 1, step + 1 + _AHEAD) if schedule(s)), -1)


def as_schedule(spec: int | Schedule) -> Schedule:
    """A schedule from an interval in steps, or the schedule itself.

    Raises:
        ConfigurationError: ``spec`` is neither a whole number >= 1 nor callable.
    """
    if isinstance(spec, int):
        expect_whole("every", spec, 1)
        return every(spec)
    is_schedule = callable(spec) and not isinstance(spec, type)
    expect(is_schedule, "every", "a whole number of optimizer steps >= 1 or a schedule", spec)
    return spec
