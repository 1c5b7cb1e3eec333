"""Whether to look now: what the schedule asks for, as far as the budget allows."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

from sparsitywatch.budget import OverheadBudget
from sparsitywatch.measurement import Effort
from sparsitywatch.schedule import Adaptive, Schedule

__all__ = ["Pace"]

_logger = logging.getLogger("sparsitywatch")


class Pace:
    """Decides step by step, and counts the looks that were due and are left out.

    Args:
        schedule: when to look.
        max_overhead: largest share of the wall time, as of ``OverheadBudget``.

    Raises:
        ConfigurationError: ``max_overhead`` is not in (0, 1].
    """

    def __init__(self, schedule: Schedule, max_overhead: float | None) -> None:
        self._schedule = schedule
        self.budget = OverheadBudget(max_overhead)
        self._num_left_out = 0
        self._has_explained = False

    def is_due(self, step: int, *, is_busy: bool) -> bool:
        """Whether to look at ``step``, an optimizer step that was just taken.

        Args:
            is_busy: whether the look before is still on its way behind the training. With
                a budget this one is left out then; without one it is to wait.
        """
        self.budget.start()
        if not self._schedule(step):
            return False
        if self.budget.max_overhead is None:
            return True
        is_allowed = self.budget.allows()
        if not is_allowed:
            self._explain_once(self.budget.max_overhead)
        if is_allowed and not is_busy:
            return True
        self._num_left_out += 1
        return False

    def effort(self, publish_s: float) -> Effort:
        """What the looks before cost, and how many were left out since the last one."""
        num_left_out, self._num_left_out = self._num_left_out, 0
        overhead = self.budget.overhead()
        return Effort(publish_s, overhead, num_left_out)

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

    def _explain_once(self, max_overhead: float) -> None:
        if self._has_explained:
            return
        self._has_explained = True
        look_s = self.budget.next_look_s
        _logger.warning(
            "sparsitywatch: a look takes %.2g s; looks are left out so that the watch takes at "
            "most %g of the wall time: one in about %.0f s. For more looks raise `max_overhead` "
            "(None: no limit) or give a smaller proxy.",
            look_s,
            max_overhead,
            math.ceil(look_s / max_overhead),
        )
