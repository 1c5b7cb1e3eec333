"""When to take a snapshot: what the schedule asks for, as the budget allows.

A schedule is any function from the optimizer step to yes or no. It must depend on the step, and on
its alerts, alone, so that every rank of a distributed run and a resumed run decide alike.
"""

from __future__ import annotations

import bisect
import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum
from typing import Any, Protocol

from sparsitywatch.errors import StateError, expect, expect_number, expect_whole, listed

__all__ = ["Schedule", "adaptive", "at", "every", "geometric"]

_logger = logging.getLogger("sparsitywatch")


class Schedule(Protocol):
    """Any function that says at which steps to take a snapshot."""

    def __call__(self, step: int, /) -> bool:
        """Whether one is due after ``step`` optimizer steps; the first step is 1."""


class StepOnly:
    """A schedule that can say its next step; it may be asked about any step, in any order."""

    def __init__(self, next_due: Callable[[int], int]) -> None:
        self.next_due = next_due  # the first step after one that is due; -1 if nobody knows it

    def __call__(self, step: int) -> bool:
        """Whether a snapshot is due at ``step``."""
        return self.next_due(step - 1) == step

    def may_be_due(self, step: int) -> bool:
        """Whether one is due at ``step``, or would be after an alert."""
        return self(step)

    def alert(self, step: int) -> None:
        """Something may be going on at ``step``."""

    def state_dict(self) -> dict[str, Any]:
        """Plain data that ``load_state_dict`` goes on from."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""


class _AskedOnce(StepOnly):
    """A user's function, which may remember what it was asked: each step is asked about once."""

    def __init__(self, due: Schedule) -> None:
        super().__init__(lambda _: -1)
        self._due = due
        self._step = -1
        self._is_due = False

    def __call__(self, step: int) -> bool:
        if step != self._step:
            self._step = step
            self._is_due = bool(self._due(step))
        return self._is_due


class Adaptive(StepOnly):
    """Due at every multiple of an interval, and more often for a while after an alert."""

    def __init__(self, interval: int, *, closer: int, intervals: int) -> None:
        super().__init__(self._next_due)
        self._usual = every(interval)
        expect_whole("closer", closer, 2)
        expect_whole("intervals", intervals, 1)
        self._closely = every(max(1, interval // closer))
        self._while_steps = interval * intervals
        self._until = -1

    def _next_due(self, step: int) -> int:
        usual, closer = self._usual.next_due(step), self._closely.next_due(step)
        return min(usual, closer) if closer <= self._until else usual

    def may_be_due(self, step: int) -> bool:
        return self._usual(step) or self._closely(step)

    def alert(self, step: int) -> None:
        self._until = max(self._until, step + self._while_steps)

    def state_dict(self) -> dict[str, Any]:
        return {"until": self._until}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave; StateError if a key is missing."""
        if "until" not in state:
            raise StateError(f"Expected key 'until' in the schedule's state, got {list(state)}.")
        self._until = int(state["until"])


def every(interval: int) -> StepOnly:
    """A snapshot at every multiple of ``interval`` steps.

    >>> [step for step in range(1, 7) if every(2)(step)]
    [2, 4, 6]
    """
    expect_whole("interval", interval, 1)
    return StepOnly(lambda step: step - step % interval + interval)


def at(steps: Iterable[int]) -> StepOnly:
    """Snapshots at exactly these steps.

    >>> [step for step in range(1, 7) if at([1, 5])(step)]
    [1, 5]
    """
    what = "whole numbers >= 1, at least one"
    given = listed("steps", steps, what)
    expect(given, "steps", what, given)
    for index, step in enumerate(given):
        expect_whole(f"steps[{index}]", step, 1)
    in_order = [*sorted(given), -1]
    return StepOnly(lambda step: in_order[bisect.bisect_right(in_order, step, hi=len(given))])


def geometric(first: int = 1, ratio: float = 2.0, max_interval: int | None = None) -> StepOnly:
    """Snapshots at steps that grow by ``ratio``: densely in the violent start, sparsely later.

    Args:
        first: the first step.
        ratio: factor between steps, greater than 1.
        max_interval: largest distance of two snapshots, if given.

    >>> [step for step in range(1, 40) if geometric(first=2, max_interval=10)(step)]
    [2, 4, 8, 16, 26, 36]
    """
    expect_whole("first", first, 1)
    expect_number("ratio", ratio, lambda r: 1.0 < r < math.inf, "a factor > 1")
    if max_interval is not None:
        expect_whole("max_interval", max_interval, 1)
    steps = [first]

    def next_due(step: int) -> int:
        while steps[-1] <= step:
            ahead = max(1, round(steps[-1] * (ratio - 1.0)))
            steps.append(steps[-1] + (ahead if max_interval is None else min(ahead, max_interval)))
        return steps[bisect.bisect_right(steps, step)]

    return StepOnly(next_due)


def adaptive(interval: int, *, closer: int = 5, intervals: int = 2) -> Adaptive:
    """A snapshot at every multiple of ``interval``, and more often after a suspicion or an event.

    This locates the onset of a change finely without paying for it all the time. The budget of
    the watch still holds.

    Args:
        interval: optimizer steps between snapshots as long as nothing happens.
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


def as_schedule(spec: int | Schedule) -> StepOnly:
    """What `every=` of a watch means: ConfigurationError for neither an interval nor a function."""
    if isinstance(spec, int):
        expect_whole("every", spec, 1)
        return every(spec)
    what = "a whole number of optimizer steps >= 1 or a schedule"
    expect(callable(spec) and not isinstance(spec, type), "every", what, spec)
    return spec if isinstance(spec, StepOnly) else _AskedOnce(spec)


#: The share of the limit that is for snapshots of the weights, if there is an evaluation too.
_WEIGHTS_SHARE = 0.2
#: How many of them may be taken ahead of their share beside a proxy: the first ones of a run are
#: dearer than those that follow, and so are some on a busy machine.
_CREDIT_SNAPSHOTS = 10
#: The next one is expected to cost the median of this many: one busy moment says little.
_NUM_COSTS = 3


class _Account:
    """What some of the snapshots have cost, in seconds, and what one more is expected to."""

    def __init__(self) -> None:
        self.spent_s = 0.0
        self.dearest_s = 0.0
        self._latest: deque[float] = deque(maxlen=_NUM_COSTS)

    def add(self, seconds: float) -> None:
        self.spent_s += seconds
        self.dearest_s = max(self.dearest_s, seconds)
        self._latest.append(seconds)

    def next_s(self, unknown: float = math.nan) -> float:
        return statistics.median(self._latest) if self._latest else unknown


class OverheadBudget:
    """Keeps the watch's share of the wall time below a limit by leaving things out.

    Two inequalities decide. ``allowed`` is the limit times the time since ``start``:

    - One more evaluation: everything spent so far, plus this snapshot <= allowed.
    - One more snapshot of the weights: those so far, plus this one <= a fifth of allowed, less what
      evaluations have taken of it, plus a credit of ten snapshots and the dearest evaluation. So an
      evaluation that costs a thousand snapshots delays none of them. A snapshot that can be paid
      together with its evaluation is allowed, too.

    What one costs is known after the first, which is always allowed. Without a proxy the weights
    have all of the limit, and no credit.
    """

    def __init__(
        self,
        max_overhead: float | None,
        *,
        evaluates: bool = False,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        if max_overhead is not None:
            what = "a share of the wall time, such as 0.01, in (0, 1], or None for no limit"
            expect_number("max_overhead", max_overhead, lambda share: 0.0 < share <= 1.0, what)
        self.max_overhead = max_overhead
        self.evaluates = evaluates
        self.now = now
        self._started = math.nan
        self._entered = math.nan
        self._depth = 0
        self._reset()

    def _reset(self) -> None:
        self._spent_s = 0.0  # on everything
        self.weights = _Account()
        self.evaluations = _Account()

    # ------------------------------------------------------------------ what is spent

    def start(self) -> None:
        """The training begins; what came before is neither its time nor the watch's."""
        if math.isnan(self._started):
            self._started = self.now()
            self._reset()

    def enter(self) -> None:
        """From here on the training is held up, until ``leave``; may be nested."""
        if self._depth == 0:
            self._entered = self.now()
        self._depth += 1

    def leave(self) -> None:
        """The training goes on."""
        self._depth -= 1
        if self._depth == 0:
            self._spent_s += self.now() - self._entered
            self._entered = math.nan

    def charge(self, seconds: float) -> None:
        """Add seconds taken from the training outside of ``enter`` and ``leave``."""
        self._spent_s += seconds

    def attribute(self, seconds: float, *, evaluated: bool = False) -> None:
        """Say what one snapshot took; what it took above one of the weights is the evaluation's."""
        if not evaluated:
            self.weights.add(seconds)
            return
        # all of it for the first one, which pays for what is done only once
        of_weights_s = min(self.weights.next_s(unknown=0.0), seconds)
        self.weights.spent_s += of_weights_s
        self.evaluations.add(seconds - of_weights_s)

    def overhead(self, beside_s: float = 0.0) -> float:
        """The watch's share of the time until now, with ``beside_s`` not charged yet; or NaN."""
        now, entered = self.now(), self._entered  # another thread may leave meanwhile
        elapsed = now - self._started
        inside = 0.0 if math.isnan(entered) else now - entered
        return (self._spent_s + inside + beside_s) / elapsed if elapsed > 0.0 else math.nan

    # ------------------------------------------------------------------ what is allowed

    def allows_weights(self) -> bool:
        """Whether one more snapshot of the weights is within the limit."""
        cost_s = self.weights.next_s()
        if self.max_overhead is None or math.isnan(cost_s):
            return True
        allowed_s = self.max_overhead * self.elapsed_s()
        if not self.evaluates:
            return self._spent_s + cost_s <= allowed_s
        share_s = _WEIGHTS_SHARE * allowed_s
        evaluations_s = self.evaluations.spent_s - self.evaluations.dearest_s
        borrowed_s = max(evaluations_s - (allowed_s - share_s), 0.0)
        is_within = (
            self.weights.spent_s + borrowed_s + cost_s <= share_s + _CREDIT_SNAPSHOTS * cost_s
        )
        return is_within or self.allows_evaluation()

    def allows_evaluation(self) -> bool:
        """Whether one more evaluation is within the limit, with a snapshot of the weights."""
        cost_s = self.weights.next_s(unknown=0.0) + self.evaluations.next_s()
        if self.max_overhead is None or math.isnan(cost_s):
            return True
        return self._spent_s + cost_s <= self.max_overhead * self.elapsed_s()

    def elapsed_s(self) -> float:
        """Wall time since the beginning; NaN before."""
        return self.now() - self._started

    def rhythm(self, interval: int, num_steps: int) -> dict[str, str]:
        """How often each half is to be expected, given the steps between two that are due."""
        limit = self.max_overhead or math.inf
        share = limit * (_WEIGHTS_SHARE if self.evaluates else 1.0)
        step_s = max(self.elapsed_s() - self._spent_s, 1e-9) / max(num_steps - 1, 1)
        # of a number and NaN, where the cost is not known yet, max and min give the first
        weights = max(interval, self.weights.next_s() / (share * step_s))
        rhythm = {"weights": _in_steps(weights, interval)}
        if self.evaluates:
            left = limit - min(share, self.weights.next_s() / (weights * step_s))
            rhythm["evaluation"] = _in_steps(self.evaluations.next_s() / (left * step_s), interval)
        return rhythm


def _in_steps(steps: float, interval: int) -> str:
    """How often in words; beyond ``interval`` it is an estimate, in whole intervals.

    >>> _in_steps(50, 50), _in_steps(1378.0, 50)
    ('every 50 steps', 'about every 1,400 steps')
    """
    if steps <= interval:
        return f"every {interval:,} steps"
    return f"about every {math.ceil(steps / interval - 1e-6) * interval:,} steps"


#: What a record says that was taken without its evaluation.
LEFT_OUT = "the evaluation was left out to keep within `max_overhead`"


class Due(IntEnum):
    """What a snapshot after a step is to measure."""

    NOTHING = 0
    WEIGHTS = 1
    EVERYTHING = 2


class BudgetedSchedule:
    """Decides step by step, and counts the snapshots that were due and are left out."""

    def __init__(
        self, every: int | Schedule, max_overhead: float | None, *, evaluates: bool = False
    ) -> None:
        self.schedule = as_schedule(every)
        self.budget = OverheadBudget(max_overhead, evaluates=evaluates)
        self._num_left_out = 0
        self._num_steps = 0
        self._last_due = -1
        self._explained: set[str] = set()

    def due(self, step: int, *, is_busy: bool) -> Due | None:
        """What to measure after ``step``; None where no rank, whatever it has seen, wants anything.

        While the snapshot before ``is_busy``, one with a budget is left out; else it is to wait.
        """
        self.budget.start()
        self._num_steps += 1
        if not self.schedule.may_be_due(step):
            return None
        if not self.schedule(step):
            return Due.NOTHING
        interval = step - self._last_due if self._last_due >= 0 else self._num_steps
        self._last_due = step
        budget, is_allowed = self.budget, self.budget.allows_weights()
        evaluates = budget.evaluates and budget.allows_evaluation()
        if not is_allowed:
            self._explain_once("weights", interval)
        elif budget.evaluates and not evaluates:
            self._explain_once("evaluation", interval)
        if not is_allowed or (is_busy and budget.max_overhead is not None):
            self._num_left_out += 1
            return Due.NOTHING
        return Due.EVERYTHING if evaluates or not budget.evaluates else Due.WEIGHTS

    def miss(self, steps: range) -> None:
        """Steps that were not seen when they were taken: what was due is left out."""
        self._num_steps += len(steps)
        self._num_left_out += sum(map(self.schedule, steps))

    def pop_left_out(self) -> int:
        """How many snapshots were due and left out since this was asked last."""
        num_left_out = self._num_left_out
        self._num_left_out = 0
        return num_left_out

    @property
    def step_s(self) -> float:
        """Wall time of a step, on average; NaN before the second one."""
        if self._num_steps < 2:
            return math.nan
        return self.budget.elapsed_s() / (self._num_steps - 1)

    def _explain_once(self, left_out: str, interval: int) -> None:
        """Say, in steps, what comes of the limit; again when it is the weights' turn."""
        if left_out in self._explained:
            return
        self._explained.add(left_out)
        budget = self.budget
        costs = [f"measuring the weights {budget.weights.next_s():.2g} s"]
        if budget.evaluates:
            costs.append(f"evaluating the proxy {budget.evaluations.next_s():.2g} s")
        rhythm = budget.rhythm(max(interval, 1), self._num_steps)
        _logger.warning(
            "sparsitywatch: so that the watch takes at most %g of the wall time (`max_overhead`) "
            "some of what is due is left out. One snapshot takes: %s. From here on: %s. For more "
            "raise `max_overhead` (None: no limit)%s.",
            budget.max_overhead,
            ", ".join(cost for cost in costs if "nan" not in cost),
            "; ".join(f"{half}: {often}" for half, often in rhythm.items()),
            " or give a smaller proxy" if budget.evaluates else ", or take fewer snapshots",
        )
