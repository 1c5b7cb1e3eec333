"""How much of the wall time the watch may take, and how much it has taken."""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable

from sparsitywatch.errors import ConfigurationError

__all__ = ["WEIGHTS_SHARE", "OverheadBudget"]

#: The part of the limit that is kept for looking at the weights, if there is an evaluation too.
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
    limit for looking at the weights, the rest for evaluating the proxy. So an evaluation that
    costs a thousand snapshots of the weights delays the next evaluation, not them. What
    the weights leave unused the evaluation may take, and the other way round. Without a proxy
    there is one account.

    The first of each is always allowed: until then nobody knows what one costs. After it
    one is allowed once its account can pay for one more like the last ones. That of the weights
    may be overdrawn by ten, beside a proxy.

    It decides by the wall clock. Where several ranks must decide alike, one of them
    decides and tells the others.

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
            beside_s: what is being spent behind the training and not told by ``spend`` yet.
        """
        now, entered = self.now(), self._entered  # another thread may leave meanwhile
        elapsed = now - self._started
        inside = 0.0 if math.isnan(entered) else now - entered
        return (self._spent_s + inside + beside_s) / elapsed if elapsed > 0.0 else math.nan

    # ------------------------------------------------------------------ what is allowed

    def allows_weights(self) -> bool:
        """Whether one more look at the weights is within the limit."""
        if self.max_overhead is None or not self._weights_costs:
            return True
        weights, evaluation = self._balances()
        cost = self.weights_cost_s
        # where both can be paid together, what the evaluation has saved up pays for both
        return weights + self._credit_s() >= cost or (
            self.evaluates and weights + evaluation >= cost + _expected(self._evaluation_costs, 0.0)
        )

    def allows_evaluation(self) -> bool:
        """Whether one more evaluation is within the limit, beside a look at the weights."""
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
        """What the next look at the weights is expected to cost; NaN before the first one."""
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
