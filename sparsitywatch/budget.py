"""How much of the wall time the watch may take, and how much it has taken."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from sparsitywatch.errors import ConfigurationError

__all__ = ["OverheadBudget"]


class OverheadBudget:
    """Keeps the watch's share of the wall time below a limit by leaving looks out.

    The first look is always allowed: until then nobody knows what one costs. After it, a
    look is allowed once the time spent so far, and that of one more look like the last,
    are within the limit. So the interval stretches to what the limit allows.

    It decides by the wall clock. Where several ranks must decide alike, one of them
    decides and tells the others.

    Args:
        max_overhead: largest share of the wall time, in (0, 1]; None for no limit.
        now: seconds of a clock that never goes back.

    Raises:
        ConfigurationError: ``max_overhead`` is not in (0, 1].

    >>> clock = iter([0.0, 12.0, 150.0, 250.0])
    >>> budget = OverheadBudget(0.01, now=lambda: next(clock))
    >>> budget.start()
    >>> budget.allows()  # the first look
    True
    >>> budget.spend(1.0)
    >>> budget.expect(1.0)
    >>> budget.allows(), budget.allows(), budget.allows()  # at 12, 150 and 250 s
    (False, False, True)
    """

    def __init__(
        self, max_overhead: float | None, *, now: Callable[[], float] = time.perf_counter
    ) -> None:
        is_number = isinstance(max_overhead, (int, float)) and not isinstance(max_overhead, bool)
        if max_overhead is not None and not (is_number and 0.0 < max_overhead <= 1.0):
            raise ConfigurationError(
                "Expected `max_overhead` to be a share of the wall time in (0, 1], or None for no "
                f"limit, got {max_overhead!r}. 0.01 is one percent."
            )
        self.max_overhead = max_overhead
        self._now = now
        self._started = math.nan
        self._spent_s = 0.0
        self._next_look_s = math.nan

    def start(self) -> None:
        """The training begins; what came before is neither its time nor the watch's."""
        if math.isnan(self._started):
            self._started = self._now()

    def spend(self, seconds: float, *, is_look: bool = False) -> None:
        """The training was held up this long; ``is_look``: by the latest look, as any will."""
        self._spent_s += seconds
        if is_look:
            self._next_look_s += seconds

    def expect(self, seconds: float) -> None:
        """The next look will cost this much: what the last one did."""
        self._next_look_s = seconds

    def allows(self) -> bool:
        """Whether one more look stays within the limit."""
        if self.max_overhead is None or math.isnan(self._next_look_s):
            return True
        return self._spent_s + self._next_look_s <= self.max_overhead * self._elapsed_s()

    def overhead(self) -> float:
        """The watch's share of the wall time so far; NaN before the training began."""
        elapsed = self._elapsed_s()
        return self._spent_s / elapsed if elapsed > 0.0 else math.nan

    @property
    def next_look_s(self) -> float:
        """What the next look is expected to cost; NaN before the first one."""
        return self._next_look_s

    def _elapsed_s(self) -> float:
        return self._now() - self._started
