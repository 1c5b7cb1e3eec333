"""Whether to look now, and at how much: what the schedule asks for, as the budget allows."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from enum import Enum
from typing import Any

from sparsitywatch.budget import OverheadBudget
from sparsitywatch.measurement import Effort
from sparsitywatch.schedule import Adaptive, Schedule, next_due

__all__ = ["Due", "Pace"]

_logger = logging.getLogger("sparsitywatch")

#: What a record says that was taken without its evaluation.
LEFT_OUT = "the evaluation was left out to keep within `max_overhead`"


class Due(Enum):
    """What is to be looked at after a step."""

    NOTHING = "nothing"
    WEIGHTS = "weights"
    EVERYTHING = "everything"


class Pace:
    """Decides step by step, and counts the snapshots that were due and are left out.

    Args:
        schedule: when to look.
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

    def due(self, step: int, *, is_busy: bool) -> Due:
        """What to look at after ``step``, an optimizer step that was just taken.

        Args:
            is_busy: whether the snapshot before is still on its way behind the training. With
                a budget this one is left out then; without one it is to wait.
        """
        self.budget.start()
        self._num_steps += 1
        if not self._schedule(step):
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

    def miss(self, steps: range) -> None:
        """Steps that were not seen when they were taken: what was due is left out."""
        self._num_steps += len(steps)
        self._num_left_out += sum(bool(self._schedule(step)) for step in steps)

    def effort(self, publish_s: float, *, evaluates: bool) -> Effort:
        """What the snapshots before cost, and how many were left out since the last one.

        Args:
            publish_s: as of ``Cost``.
            evaluates: whether this one evaluates the proxy, if there is one.
        """
        num_left_out, self._num_left_out = self._num_left_out, 0
        not_evaluated = LEFT_OUT if self.budget.evaluates and not evaluates else ""
        return Effort(publish_s, self.budget.overhead, num_left_out, not_evaluated)

    def next_due(self, step: int) -> int:
        """The first step after ``step`` at which something is due; -1 if that cannot be told."""
        return next_due(self._schedule, step)

    @property
    def step_s(self) -> float:
        """Wall time of a step, on average; NaN before the second one."""
        if self._num_steps < 2:
            return math.nan
        return self.budget.elapsed_s() / (self._num_steps - 1)

    def alert(self, step: int) -> None:
        """Something may be going on: a schedule that can looks more often for a while."""
        if isinstance(self._schedule, Adaptive):
            self._schedule.alert(step)

    def state_dict(self) -> dict[str, Any]:
        """What the schedule was told; plain data. Costs are those of one process."""
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
        costs = [f"looking at the weights {budget.weights_cost_s:.2g} s"]
        if budget.evaluates:
            costs.append(f"evaluating the proxy {budget.evaluation_cost_s:.2g} s")
        _logger.warning(
            "sparsitywatch: so that the watch takes at most %g of the wall time (`max_overhead`) "
            "some of what is due is left out. One snapshot takes: %s. From here on: %s. For more "
            "raise `max_overhead` (None: no limit)%s.",
            budget.max_overhead,
            ", ".join(cost for cost in costs if "nan" not in cost),
            "; ".join(f"{half}: {often}" for half, often in rhythm.items()),
            " or give a smaller proxy" if budget.evaluates else ", or look at longer intervals",
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
