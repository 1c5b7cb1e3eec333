"""When to take a snapshot: what the schedule asks for, as the budget allows.

A schedule is any function from the optimizer step to yes or no. It must depend on the step, and on
its alerts, alone, so that every rank of a distributed run and a resumed run decide alike.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any, Protocol

from sparsitywatch.errors import (
    ConfigurationError,
    StateError,
    expect,
    expect_number,
    expect_whole,
    listed,
)

__all__ = [
    "LEFT_OUT",
    "WEIGHTS_SHARE",
    "Adaptive",
    "BudgetedSchedule",
    "Due",
    "OverheadBudget",
    "Schedule",
    "adaptive",
    "as_schedule",
    "at",
    "every",
    "geometric",
    "next_due",
]


class Schedule(Protocol):
    """Any function that says at which steps to take a snapshot."""

    def __call__(self, step: int, /) -> bool:
        """Whether one is due after ``step`` optimizer steps; the first step is 1."""


#: So many steps ahead the next one that is due is searched.
_AHEAD = 10_000


class _Pure:
    """A schedule that is made here: it depends on the step alone, and may be asked ahead."""

    def __init__(self, due: Schedule) -> None:
        self._due = due

    def __call__(self, step: int) -> bool:
        return self._due(step)


def every(interval: int) -> Schedule:
    """A snapshot at every multiple of ``interval`` steps.

    >>> [step for step in range(1, 7) if every(2)(step)]
    [2, 4, 6]
    """
    expect_whole("interval", interval, 1)
    return _Pure(lambda step: step % interval == 0)


def at(steps: Iterable[int]) -> Schedule:
    """Snapshots at exactly these steps.

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
        """Whether a snapshot is due at ``step``."""
        return self._usually(step) or (step <= self._until and self._closely(step))

    def may_be_due(self, step: int) -> bool:
        """Whether a snapshot is due at ``step``, or were after an alert."""
        return self._usually(step) or self._closely(step)

    def alert(self, step: int) -> None:
        """Something may be going on at ``step``: more snapshots from here on, for a while."""
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
    """A snapshot at every multiple of ``interval``, and more often after a suspicion or an event.

    So the onset of a change is located finely without paying for it all the time; the
    budget of the watch holds all the same.

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


def next_due(schedule: Schedule, step: int) -> int:
    """The first step after ``step`` that is due; -1 if that is not known.

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


#: The part of the limit that is kept for snapshots of the weights, if there is an evaluation too.
WEIGHTS_SHARE = 0.2
#: So many snapshots of the weights are paid for ahead before an evaluation may have the rest.
_KEPT_SNAPSHOTS = 10
#: So many may be taken ahead of their share: a start is dearer than what follows, and a busy
#: machine for a while.
_CREDIT_SNAPSHOTS = 10
#: What the next one will cost is the median of the last so many: one busy moment says little.
_NUM_COSTS = 3


class OverheadBudget:
    """Keeps the watch's share of the wall time below a limit by leaving things out.

    There are two accounts, each with its share of every second that passes: a fifth of the
    limit for snapshots of the weights, the rest for evaluating the proxy. So an evaluation that
    costs a thousand snapshots of the weights delays the next evaluation, not them. What
    the weights leave unused the evaluation may take, and the other way round. Without a proxy
    there is one account.

    The first of each is always allowed: until then nobody knows what one costs. After it
    one is allowed once its account can pay for one more like the last ones. That of the weights
    may be overdrawn by ten, beside a proxy.

    It decides by the wall clock. Where several ranks must decide alike, one of them
    decides for the others.

    Args:
        max_overhead: largest share of the wall time, in (0, 1]; None for no limit.
        evaluates: whether there is a proxy.
        now: seconds of a clock that never goes back; an attribute, too.

    Raises:
        ConfigurationError: ``max_overhead`` is not in (0, 1].

    >>> clock = iter([0.0, 12.0, 150.0, 250.0])
    >>> budget = OverheadBudget(0.01, now=lambda: next(clock))
    >>> budget.start()
    >>> budget.allows_weights()  # the first snapshot
    True
    >>> budget.spend(1.0)
    >>> budget.book(1.0)
    >>> [budget.allows_weights() for _ in range(3)]  # at 12, 150 and 250 s
    [False, False, True]
    """

    def __init__(
        self,
        max_overhead: float | None,
        *,
        evaluates: bool = False,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        is_number = isinstance(max_overhead, (int, float)) and not isinstance(max_overhead, bool)
        if max_overhead is not None and not (is_number and 0.0 < max_overhead <= 1.0):
            raise ConfigurationError(
                "Expected `max_overhead` to be a share of the wall time in (0, 1], or None for no "
                f"limit, got {max_overhead!r}. 0.01 is one percent."
            )
        self.max_overhead = max_overhead
        self.evaluates = evaluates
        self.now = now
        self._started = self._entered = math.nan
        self._depth = 0
        self._spent_s = self._weights_s = 0.0  # the second is a part of the first
        self._lent_s = 0.0  # by the account of the weights to that of the evaluation
        self._weights_costs: deque[float] = deque(maxlen=_NUM_COSTS)
        self._evaluation_costs: deque[float] = deque(maxlen=_NUM_COSTS)

    # ------------------------------------------------------------------ what is spent

    def start(self) -> None:
        """The training begins; what came before is neither its time nor the watch's."""
        if math.isnan(self._started):
            self._started = self.now()
            self._spent_s = self._weights_s = 0.0
            self._weights_costs.clear()
            self._evaluation_costs.clear()

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

    def spend(self, seconds: float) -> None:
        """So much was taken from the training, beside what is between ``enter`` and ``leave``."""
        self._spent_s += seconds

    def book(self, seconds: float, *, evaluated: bool = False) -> None:
        """Of what is spent, so much was for one snapshot; the next one will cost as much.

        Args:
            seconds: of the whole snapshot.
            evaluated: whether the proxy was evaluated in it. What it costs above a snapshot of
                the weights is the evaluation's; of a first one, which also pays for all
                that is done only once, everything.
        """
        if not evaluated:
            self._weights_s += seconds
            self._weights_costs.append(seconds)
            return
        of_weights = _expected(self._weights_costs, 0.0)
        self._weights_s += min(of_weights, seconds)
        self._evaluation_costs.append(max(seconds - of_weights, 0.0))

    def overhead(self, beside_s: float = 0.0) -> float:
        """The watch's share of the wall time up to now; NaN before the training began.

        Args:
            beside_s: what is being spent behind the training and not given to ``spend`` yet.
        """
        now, entered = self.now(), self._entered  # another thread may leave meanwhile
        elapsed = now - self._started
        inside = 0.0 if math.isnan(entered) else now - entered
        return (self._spent_s + inside + beside_s) / elapsed if elapsed > 0.0 else math.nan

    # ------------------------------------------------------------------ what is allowed

    def allows_weights(self) -> bool:
        """Whether one more snapshot of the weights is within the limit."""
        if self.max_overhead is None or not self._weights_costs:
            return True
        weights, evaluation = self._balances()
        cost = self.weights_cost_s
        # where both can be paid together, what the evaluation has saved up pays for both
        return weights + self._credit_s() >= cost or (
            self.evaluates and weights + evaluation >= cost + _expected(self._evaluation_costs, 0.0)
        )

    def allows_evaluation(self) -> bool:
        """Whether one more evaluation is within the limit, beside a snapshot of the weights."""
        if self.max_overhead is None or not self._evaluation_costs:
            return True
        _, evaluation = self._balances()
        return evaluation + self._unneeded() >= self.evaluation_cost_s

    def settle(self, *, evaluated: bool) -> None:
        """A snapshot is taken: whose account cannot pay borrows from the other one.

        Args:
            evaluated: whether the proxy is evaluated in it.
        """
        if self.max_overhead is None or not self.evaluates:
            return
        weights, evaluation = self._balances()
        cost = _expected(self._weights_costs, 0.0)
        if weights + self._credit_s() < cost <= weights + evaluation:
            self._lent_s -= cost - weights
        elif evaluated and self._evaluation_costs:
            missing = max(self.evaluation_cost_s - evaluation, 0.0)
            self._lent_s += min(missing, self._unneeded())

    @property
    def weights_cost_s(self) -> float:
        """What the next snapshot of the weights is expected to cost; NaN before the first one."""
        return _expected(self._weights_costs, math.nan)

    @property
    def evaluation_cost_s(self) -> float:
        """What the next evaluation is expected to cost; NaN before the first one."""
        return _expected(self._evaluation_costs, math.nan)

    @property
    def weights_share(self) -> float:
        """Share of the wall time that is the weights' own; infinite without a limit."""
        if self.max_overhead is None:
            return math.inf
        return self.max_overhead * (WEIGHTS_SHARE if self.evaluates else 1.0)

    def elapsed_s(self) -> float:
        """Wall time since the beginning; NaN before."""
        return self.now() - self._started

    def training_s(self) -> float:
        """Wall time since the beginning that was not the watch's; NaN before."""
        return self.elapsed_s() - self._spent_s

    def _balances(self) -> tuple[float, float]:
        """What the accounts of the weights and of the evaluation hold, in seconds."""
        allowed_s = (self.max_overhead or 0.0) * self.elapsed_s()
        if not self.evaluates:
            return allowed_s - self._spent_s, 0.0
        weights = WEIGHTS_SHARE * allowed_s - self._weights_s - self._lent_s
        return weights, allowed_s - self._spent_s - weights

    def _credit_s(self) -> float:
        """By how much the account of the weights may be overdrawn, if it is not the only one."""
        return _CREDIT_SNAPSHOTS * _expected(self._weights_costs, 0.0) if self.evaluates else 0.0

    def _unneeded(self) -> float:
        """What the account of the weights holds beyond what is kept for them."""
        kept_s = (1 + _KEPT_SNAPSHOTS) * _expected(self._weights_costs, math.inf)
        return max(self._balances()[0] - kept_s, 0.0)


def _expected(costs: deque[float], unknown: float) -> float:
    return statistics.median(costs) if costs else unknown


_logger = logging.getLogger("sparsitywatch")

#: What a record says that was taken without its evaluation.
LEFT_OUT = "the evaluation was left out to keep within `max_overhead`"


class Due(Enum):
    """What a snapshot after a step is to measure."""

    NOTHING = "nothing"
    WEIGHTS = "weights"
    EVERYTHING = "everything"


class BudgetedSchedule:
    """Decides step by step, and counts the snapshots that were due and are left out.

    Args:
        schedule: when a snapshot is due.
        max_overhead: largest share of the wall time, as of ``OverheadBudget``.
        evaluates: whether a snapshot evaluates a proxy, if there is time for it.

    Raises:
        ConfigurationError: ``max_overhead`` is not in (0, 1].
    """

    def __init__(
        self, schedule: Schedule, max_overhead: float | None, *, evaluates: bool = False
    ) -> None:
        self._schedule = schedule
        self.budget = OverheadBudget(max_overhead, evaluates=evaluates)
        self._num_left_out = 0
        self._num_steps = 0
        self._last_due, self._interval = -1, 0  # the latest step that was due, how long after
        self._explained: set[str] = set()
        self._asked_step, self._may_be_due = -1, False  # a schedule may remember what it was asked

    def due(self, step: int, *, is_busy: bool) -> Due:
        """What to measure after ``step``, an optimizer step that was just taken.

        Args:
            is_busy: whether the snapshot before is still on its way behind the training. With
                a budget this one is left out then; without one it is to wait.
        """
        self.budget.start()
        self._num_steps += 1
        is_due = self._schedule(step)
        self._asked_step, self._may_be_due = step, bool(is_due)
        if not is_due:
            return Due.NOTHING
        self._interval = step - self._last_due if self._last_due >= 0 else self._num_steps
        self._last_due = step
        is_allowed = self.budget.allows_weights()
        evaluates = self.budget.evaluates and self.budget.allows_evaluation()
        if not is_allowed:
            self._explain_once("weights")
        elif self.budget.evaluates and not evaluates:
            self._explain_once("evaluation")
        if not is_allowed or (is_busy and self.budget.max_overhead is not None):
            self._num_left_out += 1
            return Due.NOTHING
        self.budget.settle(evaluated=evaluates)
        return Due.EVERYTHING if evaluates or not self.budget.evaluates else Due.WEIGHTS

    def may_be_due(self, step: int) -> bool:
        """Whether ranks that have seen the same or less could want a snapshot after ``step``.

        The same on every rank: alerts, which may reach one of them earlier, do not count.
        """
        if isinstance(self._schedule, Adaptive):
            return self._schedule.may_be_due(step)
        if step != self._asked_step:
            self._asked_step, self._may_be_due = step, bool(self._schedule(step))
        return self._may_be_due

    def miss(self, steps: range) -> None:
        """Steps that were not seen when they were taken: what was due is left out."""
        self._num_steps += len(steps)
        self._num_left_out += sum(bool(self._schedule(step)) for step in steps)

    def pop_left_out(self) -> int:
        """How many snapshots were due and left out since this was asked last."""
        num_left_out, self._num_left_out = self._num_left_out, 0
        return num_left_out

    def next_due(self, step: int) -> int:
        """The first step after ``step`` at which something is due; -1 if that is not known."""
        return next_due(self._schedule, step)

    @property
    def step_s(self) -> float:
        """Wall time of a step, on average; NaN before the second one."""
        if self._num_steps < 2:
            return math.nan
        return self.budget.elapsed_s() / (self._num_steps - 1)

    def alert(self, step: int) -> None:
        """Something may be going on: an adaptive schedule asks more often for a while."""
        if isinstance(self._schedule, Adaptive):
            self._schedule.alert(step)

    def state_dict(self) -> dict[str, Any]:
        """The alerts so far; plain data. Costs are those of one process."""
        return self._schedule.state_dict() if isinstance(self._schedule, Adaptive) else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""
        if isinstance(self._schedule, Adaptive) and state:
            self._schedule.load_state_dict(state)

    def _explain_once(self, left_out: str) -> None:
        """Say, in steps, what comes of the limit; again when it is the weights' turn."""
        if left_out in self._explained:
            return
        self._explained.add(left_out)
        budget, rhythm = self.budget, self._rhythm()
        costs = [f"measuring the weights {budget.weights_cost_s:.2g} s"]
        if budget.evaluates:
            costs.append(f"evaluating the proxy {budget.evaluation_cost_s:.2g} s")
        _logger.warning(
            "sparsitywatch: so that the watch takes at most %g of the wall time (`max_overhead`) "
            "some of what is due is left out. One snapshot takes: %s. From here on: %s. For more "
            "raise `max_overhead` (None: no limit)%s.",
            budget.max_overhead,
            ", ".join(cost for cost in costs if "nan" not in cost),
            "; ".join(f"{half}: {often}" for half, often in rhythm.items()),
            " or give a smaller proxy" if budget.evaluates else ", or take fewer snapshots",
        )

    def _rhythm(self) -> dict[str, str]:
        """Every how many steps each half comes, at the pace of the training so far."""
        budget = self.budget
        interval = max(self._interval, 1)
        step_s = max(budget.training_s(), 1e-9) / max(self._num_steps - 1, 1)
        weights = max(interval, budget.weights_cost_s / (budget.weights_share * step_s))
        if not weights > interval:  # also where the cost is not known yet
            weights = interval
        rhythm = {"weights": _steps(weights, interval)}
        if budget.evaluates:
            taken = budget.weights_cost_s / (weights * step_s)
            taken = budget.weights_share if math.isnan(taken) else taken
            left = (budget.max_overhead or math.inf) - taken
            rhythm["evaluation"] = _steps(budget.evaluation_cost_s / (left * step_s), interval)
        return rhythm


def _steps(steps: float, interval: int) -> str:
    """How often in words; beyond ``interval`` it is an estimate, in whole intervals.

    >>> _steps(50, 50), _steps(1378.0, 50)
    ('every 50 steps', 'about every 1,400 steps')
    """
    if steps <= interval:
        return f"every {interval:,} steps"
    return f"about every {math.ceil(steps / interval - 1e-6) * interval:,} steps"
