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
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any, Protocol

from sparsitywatch.errors import StateError, expect, expect_number, expect_whole, listed
from sparsitywatch.processes import this_process
from sparsitywatch.records import Record, WatchState
from sparsitywatch.series import percent

__all__ = ["Schedule", "adaptive", "at", "every", "geometric"]

_logger = logging.getLogger("sparsitywatch")


class Schedule(Protocol):
    """Any function that says at which steps to take a snapshot."""

    def __call__(self, step: int, /) -> bool:
        """Whether one is due after ``step`` optimizer steps; the first step is 1."""


class StepOnly:
    """A schedule that can say its next step; it may be asked about any step, in any order."""

    heeds_alerts = False  # else nobody need ask whether something may be going on
    first_looks: frozenset[int] = frozenset()  # steps that no budget leaves out

    def __init__(self, next_due: Callable[[int], int], due: Schedule | None = None) -> None:
        self.next_due = next_due  # the first step after one that is due; -1 if nobody knows it
        self._due = due  # a user's function, which may remember: each step is asked about once

    def __call__(self, step: int) -> bool:
        """Whether a snapshot is due at ``step``."""
        return self.next_due(step - 1) == step if self._due is None else bool(self._due(step))

    def is_due_after_alert(self, _: int, /) -> bool:
        """Whether one that is not due at a step would be after an alert."""
        return False

    def alert(self, step: int) -> None:
        """Something may be going on at ``step``."""

    def state_dict(self) -> dict[str, Any]:
        """Plain data that ``load_state_dict`` goes on from."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""


class Adaptive(StepOnly):
    """Due at every multiple of an interval, and more often for a while after an alert."""

    heeds_alerts = True

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

    def is_due_after_alert(self, step: int, /) -> bool:
        return self._closely(step)

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


#: Steps of a script at which everybody sees a number, whatever `every` says; and as it begins.
_FIRST_LOOKS = (8, 32, 128)


def with_first_looks(interval: int) -> StepOnly:
    """A snapshot at every multiple of ``interval``, and early ones that no budget leaves out.

    >>> [step for step in range(1, 300) if with_first_looks(100)(step)]
    [8, 32, 100, 128, 200]
    """
    usual, first = every(interval).next_due, at(_FIRST_LOOKS).next_due
    found = StepOnly(lambda step: min(n for n in (usual(step), first(step)) if n > 0))
    found.first_looks = frozenset(_FIRST_LOOKS)
    return found


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
    return spec if isinstance(spec, StepOnly) else StepOnly(lambda _: -1, spec)


class Due(IntEnum):
    """What a snapshot after a step is to measure."""

    NOTHING = 0
    WEIGHTS = 1
    EVERYTHING = 2


#: The share of the limit that snapshots of the weights may take where there is an evaluation too.
_WEIGHTS_SHARE = 0.2
#: The share of the limit that counting steps leaves to snapshots, however short the steps are.
_LEAST_SHARE = 0.2
#: Steps farther ahead than this are not foreseen.
_FAR = 1e7
#: The next one is expected to cost the median of this many: one busy moment says little.
_NUM_COSTS = 3


class _Account:
    """What one kind of work has cost, in seconds, and what one more is expected to."""

    def __init__(self) -> None:
        self.spent_s = 0.0
        self._latest: deque[float] = deque(maxlen=_NUM_COSTS)

    def expect(self, seconds: float) -> None:
        """Say what one is expected to cost, as the attach has seen it."""
        self._latest.append(seconds)

    def add(self, seconds: float) -> None:
        """Say what one has cost."""
        self.spent_s += seconds
        self._latest.append(seconds)

    @property
    def price_s(self) -> float:
        """What one more is expected to cost; 0 if nobody has said anything yet."""
        return statistics.median(self._latest) if self._latest else 0.0


class OverheadBudget:
    """Keeps the watch's share of the wall time below a limit: nothing is done before it is paid."""

    # what snapshots have cost, plus what one more costs, is at most the limit times the time since
    # ``start``, less what counting the steps has taken. Beside evaluations they have a fifth of it,
    # and these the rest, so that neither waits for the other. The attach tells what one costs.

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
        self.weights = _Account()
        self.evaluations = _Account()
        self.inline_s = 0.0  # what the last one takes, which is waited for, if others are not
        self._spent_s = 0.0  # on everything
        self.apart: set[int] = set()  # steps whose snapshots no limit counts
        self.apart_s = 0.0  # what these have taken; none of the rest holds it
        self.once_s = 0.0  # of it with the first step, on the log and such: no later one takes it
        self._is_first_step = False
        self._started = math.nan
        self._entered = math.nan
        self._depth = 0

    def start(self) -> None:
        """The training begins; what came before is neither its time nor the watch's."""
        if math.isnan(self._started):
            self._started, self._is_first_step = self.now(), True
            self._spent_s = self.weights.spent_s = self.evaluations.spent_s = self.apart_s = 0.0

    def enter(self, since_s: float = 0.0) -> None:
        """Since so many seconds the training is held up, until ``leave``; may be nested."""
        if self._depth == 0:
            self._entered = self.now() - since_s
        self._depth += 1

    def leave(self) -> None:
        """The training goes on."""
        self._depth -= 1
        if self._depth == 0:
            self._spent_s += self.now() - self._entered
            self._entered = math.nan
            if self._is_first_step:
                self.once_s, self._is_first_step = self._counting_s(), False

    def charge(self, seconds: float) -> None:
        """Add seconds taken from the training outside of ``enter`` and ``leave``."""
        self._spent_s += seconds

    def attribute(self, seconds: float, *, evaluated: bool = False, step: int = -1) -> None:
        """Say what one snapshot took; what it took above one of the weights is the evaluation's."""
        of_weights_s = min(self.weights.price_s, seconds)
        if step in self.apart:
            self.apart_s += seconds
            self._spent_s -= seconds
            if evaluated:
                self.evaluations.expect(seconds - of_weights_s)
            return
        if not evaluated:
            self.weights.add(seconds)
            return
        self.weights.spent_s += of_weights_s
        self.evaluations.add(seconds - of_weights_s)

    def overhead(self, beside_s: float = 0.0) -> float:
        """The watch's share of the time until now, with ``beside_s`` not charged yet; or NaN."""
        now, entered = self.now(), self._entered  # another thread may leave meanwhile
        elapsed = now - self._started - self.apart_s
        inside = 0.0 if math.isnan(entered) else now - entered
        spent = max(self._spent_s + inside + beside_s, 0.0)
        share = spent / elapsed if elapsed > 0.0 else math.nan
        return min(share, 1.0)  # what is done beside the training may take longer than it

    def why_over(self) -> str:
        """Why its share of the time is above the limit, in a few words; empty if it is not."""
        if self.max_overhead is None:
            return "without a limit (`max_overhead` is None)"
        if not self.overhead() > self.max_overhead:
            return ""
        spent_s = self.weights.spent_s, self.evaluations.spent_s, self._counting_s()
        most = ("the weights", "evaluations", "counting and logging")[spent_s.index(max(spent_s))]
        limit, all_s = percent(self.max_overhead), f"{self.elapsed_s():.2g} s"
        return f"above `max_overhead` ({limit}): {self._spent_s:.2g} s of {all_s}, most for {most}"

    def _counting_s(self) -> float:
        """What was spent beside snapshots."""
        return max(self._spent_s - self.weights.spent_s - self.evaluations.spent_s, 0.0)

    def wait_s(self, due: Due, *, is_last: bool = False) -> float:
        """Seconds until one more is paid for, 0 or less if it is; the last one may take all."""
        if self.max_overhead is None:
            return 0.0
        elapsed_s = self.elapsed_s()
        if not elapsed_s > 0.0:
            return math.inf
        weights_s = self.weights.spent_s + self.weights.price_s
        evaluations_s = self.evaluations.spent_s
        if due is Due.EVERYTHING:
            evaluations_s += max(self.evaluations.price_s, self.inline_s * is_last)
        needed_s = weights_s + evaluations_s
        if self.evaluates and not is_last:
            needed_s = weights_s / _WEIGHTS_SHARE
            if due is Due.EVERYTHING:
                needed_s = max(needed_s, evaluations_s / (1.0 - _WEIGHTS_SHARE))
        counting_s = self._counting_s()
        left_s = self.max_overhead * elapsed_s - counting_s
        # what the steps to come leave; what the first one took is taken once
        per_s = max(counting_s - self.once_s, 0.0) / max(elapsed_s - self.once_s, 1e-9)
        rate = self.max_overhead - per_s
        at_least_s = needed_s / (_LEAST_SHARE * self.max_overhead) - elapsed_s
        return min((needed_s - left_s) / rate, at_least_s) if rate > 0.0 else at_least_s

    def elapsed_s(self) -> float:
        """Wall time since the beginning, without first looks; NaN before."""
        return self.now() - self._started - self.apart_s


#: Why a snapshot was left out.
_UNPAID, _BUSY, _UNSEEN = (
    "to keep within `max_overhead`",
    "since the one before was on its way",
    "since their steps were seen too late",
)
#: Snapshots of the weights for each one that was left out beside an evaluation.
_NUM_OWED = 4


class BudgetedSchedule:
    """Decides step by step, and counts the snapshots that were due and are left out."""

    def __init__(
        self,
        every: int | Schedule,
        max_overhead: float | None,
        *,
        evaluates: bool = False,
        tells: bool = True,
    ) -> None:
        self.schedule = as_schedule(every)
        self._tells = tells  # of several ranks the one whose clock decides
        self.budget = OverheadBudget(max_overhead, evaluates=evaluates)
        self.budget.apart |= self.schedule.first_looks
        self.left_out: Counter[str] = Counter()  # snapshots by the reason, since the attach
        self.num_left_out = 0  # of them since the last snapshot
        self._num_owed = 0  # snapshots of the weights before the next evaluation
        self.last_step = 0  # that was asked about
        self._num_steps = 0
        self._explained: set[Due] = set()
        self._attached_at = self.budget.now()
        self._attach_s = math.nan

    def due(
        self, step: int, *, is_busy: bool, is_apart: bool = False, is_new: bool = False
    ) -> Due | None:
        """What to measure after ``step``; None where no rank wants anything, whatever it saw."""
        self.budget.start()
        if is_new and not self.last_step and self.budget.max_overhead is not None:
            self.budget.apart.add(step)  # the first one of a log: else no number comes soon
        self.last_step = step
        self._num_steps += 1
        is_due = self.schedule(step)
        if step in self.budget.apart:
            return Due.EVERYTHING
        if not is_due:
            return Due.NOTHING if self.schedule.is_due_after_alert(step) else None
        if is_busy and self.budget.max_overhead is not None:  # else it is to wait
            self._num_owed += _NUM_OWED * is_apart
            return self._leave_out(_BUSY)
        if not self._num_owed and self.budget.wait_s(Due.EVERYTHING) <= 0.0:
            return Due.EVERYTHING
        if self.budget.evaluates and self.budget.wait_s(Due.WEIGHTS) <= 0.0:
            if not self._num_owed:
                self._explain_once(Due.EVERYTHING, step)
            self._num_owed = max(self._num_owed - 1, 0)
            return Due.WEIGHTS
        self._explain_once(Due.WEIGHTS, step)
        return self._leave_out(_UNPAID)

    @property
    def is_waited_for(self) -> bool:
        """Whether one after the latest step is done before the next, which comes soon."""
        return self.last_step in self.schedule.first_looks

    def _leave_out(self, why: str, number: int = 1) -> Due:
        self.left_out[why] += number
        self.num_left_out += number
        return Due.NOTHING

    def miss(self, steps: range) -> None:
        """Steps that were not seen when they were taken: what was due is left out."""
        self._num_steps += len(steps)
        self._leave_out(_UNSEEN, sum(map(self.schedule, steps)))

    def pop_left_out(self) -> int:
        """How many snapshots were due and left out since this was asked last."""
        num_left_out, self.num_left_out = self.num_left_out, 0
        return num_left_out

    @property
    def step_s(self) -> float:
        """Wall time of a step, on average; NaN before the second one."""
        if self._num_steps < 2:
            return math.nan
        return (self.budget.elapsed_s() - self.budget.once_s) / (self._num_steps - 1)

    def next_step(self, due: Due, step: int) -> int:
        """The step after ``step`` at which one more is due and paid for; -1 if nobody knows."""
        steps = 0.0
        if self.budget.max_overhead is not None:
            steps = self.budget.wait_s(due) / self.step_s if self.step_s > 0.0 else math.inf
        return self.schedule.next_due(step + max(math.ceil(steps) - 1, 0)) if steps < _FAR else -1

    def attached(self) -> None:
        """Say what the attach took, and what is to be expected."""
        self._attach_s = self.budget.now() - self._attached_at
        told = "everything that is due is done"
        if self.budget.max_overhead is not None:
            told = f"{self._prices()}; the first step takes them beside `max_overhead`"
        _logger.info("sparsitywatch: the attach took %.2g s; %s", self._attach_s, told)

    def describe(self, step: int) -> str:
        """What comes next, and what the attach took."""
        coming = self.state((), step).coming
        return f"{coming}{'; ' if coming else ''}the attach took {self._attach_s:.2g} s"

    def state(self, records: Sequence[Record], step: int) -> WatchState:
        """How the watch stands after ``step``, given all records of its log."""
        evaluated = [r.step for r in records if r.curve is not None]
        num_left_out = self.num_left_out + sum(r.cost.num_left_out for r in records)
        blind = Counter(record.why_blind.partition(". ")[0] for record in records)
        return WatchState(
            status="on",
            step=step,
            wall_time=time.time(),
            num_due=len(records) + num_left_out,
            num_taken=len(records),
            num_failed=sum(not r.valid for r in records),
            num_evaluated=len(evaluated) if self.budget.evaluates else -1,
            left_out=", ".join(
                [f"{num:,} {why}" for why, num in self.left_out.items() if num]
                + [f"{num:,} evaluations: {why}" for why, num in blind.items() if why]
            ),
            last_step=records[-1].step if records else -1,
            last_evaluated_step=evaluated[-1] if evaluated else -1,
            next_due_step=self.next_step(Due.WEIGHTS, step),
            next_evaluation_step=self.next_step(Due.EVERYTHING, step),
            overhead=self.budget.overhead(),
            apart_s=self.budget.apart_s,
            why_overhead=self.budget.why_over(),
            step_s=self.step_s,
            **this_process()._asdict(),
        )

    def made_up(self, records: Sequence[Record], step: int) -> Due:
        """What of that left out since the last snapshot is paid for at the end, at ``step``."""
        looks = self.budget.apart
        if looks and all(record.step <= max(looks) for record in records):
            looks.add(step)  # a training that ends before its first usual one
            return Due.EVERYTHING
        if not self.num_left_out and not (records and records[-1].not_evaluated):
            return Due.NOTHING
        if self.budget.wait_s(Due.EVERYTHING, is_last=True) <= 0.0:
            return Due.EVERYTHING
        if self.num_left_out and self.budget.wait_s(Due.WEIGHTS, is_last=True) <= 0.0:
            return Due.WEIGHTS
        _logger.info("sparsitywatch: nothing is made up for at step %d: %s", step, self._prices())
        return Due.NOTHING

    def _prices(self) -> str:
        told = f"a snapshot of the weights takes about {self.budget.weights.price_s:.2g} s"
        if self.budget.evaluates:
            told += f", evaluating the proxy about {self.budget.evaluations.price_s:.2g} s"
        return told

    def _explain_once(self, left_out: Due, step: int) -> None:
        """Say what comes of the limit, and when; again when it is the weights' turn."""
        if left_out in self._explained or not self._tells:
            return
        self._explained.add(left_out)
        if left_out is Due.WEIGHTS:  # beside them the evaluation is left out too
            self._explained.add(Due.EVERYTHING)
        words = (
            "sparsitywatch: the watch takes at most %g of the wall time (`max_overhead`), so it "
            "leaves out what is not paid for yet: %s; %s. For more raise `max_overhead` (None: no "
            "limit)%s."
        )
        next_one = self.state((), step).coming or "when the next comes is not known yet"
        other = " or give a smaller proxy" if self.budget.evaluates else ", or take fewer snapshots"
        _logger.warning(words, self.budget.max_overhead, self._prices(), next_one, other)
