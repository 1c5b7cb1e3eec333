"""Changes of a number that is measured with an interval: essential sparsity, reliance.

Such a number moves from snapshot to snapshot by a good part of its interval. The intervals of
neighbouring snapshots are of the same examples, so that averaging snapshots makes none of them
narrower; how much their errors have in common shows in how little the number moves. So the mean
of the latest snapshots has to leave the interval that those before had, and by more than they
scatter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsitywatch.analysis.detect.change import (
    BORNE_OUT,
    TREND,
    Array,
    correlation_of,
    noise_sd,
    onset_of,
)
from sparsitywatch.analysis.detect.history import or_nan, or_none
from sparsitywatch.analysis.detect.jumps import normal_score
from sparsitywatch.errors import (
    StateError,
    expect,
    expect_keys,
    expect_number,
    expect_whole,
    is_number,
)
from sparsitywatch.records import Event

__all__ = ["MeasuredChange"]

#: Grid: snapshots since the change that are tried.
_SPLITS = (2, 3, 4, 6, 8, 12, 16)
#: Bound: what is remembered of those before.
_MOST_PAST = 40
#: Smallest score, and what is enough for what has come to twice its level, or half of it, and for
#: a fall whose cause is seen.
_SCORE, _SCORE_OF_MULTIPLE, _SCORE_WITH_CAUSE = 4.0, 3.0, 1.5
#: So many times is a multiple; reliance that has come to one explains a fall of essential sparsity.
_MULTIPLE = 2.0
#: The interval says as much about the noise as so many snapshots.
_PRIOR_SNAPSHOTS = 4.0
#: Definition: a 90 percent interval is so many standard deviations to each side.
_SIDES = 1.645
#: A change is over when so many snapshots have added less than this part of it.
_SETTLING, _SETTLED = 12, 0.2
_KEYS = ("rows", "ongoing", "decay_clock")


@dataclass(frozen=True)
class _Shift:
    """The latest snapshots against those before."""

    split: int
    level: float
    size: float
    score: float
    noise: float


class MeasuredChange:
    """Watches a number that is measured with an interval, for changes in both directions.

    There is an event when the mean of the last two to eight snapshots lies outside the interval
    that was usual before, further than the scatter of the snapshots explains, correlated as they
    are, and further than a line through them; and when it is ``min_effect`` away, and ``ratio``
    times as large or as small. A fall of essential sparsity needs less proof where reliance has
    come to twice what it was: that is what makes it fall.

    One change is one event until twelve snapshots have added little to it.

    Args:
        min_effect: smallest change worth waking somebody for, in units of the series.
        ratio: of the number to what it was, or the other way round, at least.
        direction: "up", "down" or "both".

    Raises:
        ConfigurationError: an argument is out of range.

    >>> detector = MeasuredChange(min_effect=0.05)
    >>> series = [0.82, 0.79, 0.83, 0.80, 0.78, 0.81, 0.83, 0.80, 0.79, 0.82, 0.55, 0.50, 0.52]
    >>> events = [
    ...     detector.update(25 * i, x, {"low": x - 0.06, "high": x + 0.06})
    ...     for i, x in enumerate(series)
    ... ]
    >>> [(e.direction, e.onset_step, e.detected_step) for e in events if e]
    [('down', 225, 275)]
    """

    def __init__(
        self, min_effect: float = 0.05, *, ratio: float = 1.0, direction: str = "both"
    ) -> None:
        what = "finite and 0 or more, in units of the series"
        expect_number("min_effect", min_effect, lambda x: 0.0 <= x < math.inf, what)
        expect_number("ratio", ratio, lambda x: 1.0 <= x < math.inf, "finite, 1 or more")
        known = ("up", "down", "both")
        expect(direction in known, "direction", f"one of {known}", direction)
        self._min_effect, self._ratio, self._direction = float(min_effect), float(ratio), direction
        self._rows: list[tuple[int, float, float, float, float]] = []
        self._ongoing: dict[str, Any] | None = None
        self._decay_clock = math.nan

    def update(
        self, step: int, value: float, context: Mapping[str, float] | None = None
    ) -> Event | None:
        """One more snapshot.

        Args:
            step: optimizer step, larger at every call.
            value: the number there; what is not finite is a gap.
            context: what else is known: "low" and "high", the ends of its 90 percent interval,
                "reliance", and "decay_clock".

        Returns:
            The event if a change is seen at this snapshot; its series has no name yet.

        Raises:
            ConfigurationError: the step does not come after that of the last snapshot.
        """
        expect_whole("step", step, 0)
        expect(is_number(value), "value", "a number, NaN for a gap", value)
        last = self._rows[-1][0] if self._rows else -1
        expect(step > last, "step", f"after {last}, the last snapshot", step)
        context = context or {}
        self._decay_clock = float(context.get("decay_clock", math.nan))
        if not math.isfinite(value):
            return None
        low, high, cause = (
            float(context.get(name, math.nan)) for name in ("low", "high", "reliance")
        )
        self._rows.append((int(step), float(value), low, high, cause))
        del self._rows[: -_MOST_PAST - _SPLITS[-1]]
        if self._ongoing is not None:
            self._end_if_over(self._ongoing)
            return None
        shifts = [self._shift(split) for split in _SPLITS]
        found = [shift for shift in shifts if shift is not None]
        if not found:
            return None
        return self._event(max(found, key=lambda shift: abs(shift.score)))

    def state_dict(self) -> dict[str, Any]:
        """Everything that ``load_state_dict`` needs to go on, as plain JSON-able data."""
        rows = [[step, *map(or_none, numbers)] for step, *numbers in self._rows]
        ongoing = None if self._ongoing is None else dict(self._ongoing)
        return {"rows": rows, "ongoing": ongoing, "decay_clock": or_none(self._decay_clock)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            StateError: a key is missing, or a row has not five numbers.
        """
        expect_keys(state, _KEYS)
        if any(len(row) != 5 for row in state["rows"]):
            raise StateError("Expected rows of five numbers in a detector's state.")
        self._rows = [
            (int(step), or_nan(value), or_nan(low), or_nan(high), or_nan(cause))
            for step, value, low, high, cause in state["rows"]
        ]
        self._ongoing = None if state["ongoing"] is None else dict(state["ongoing"])
        self._decay_clock = or_nan(state["decay_clock"])

    def _end_if_over(self, ongoing: dict[str, Any]) -> None:
        """Look for the next change once this one is over: the new level is the baseline."""
        values = [row[1] for row in self._rows if row[0] >= ongoing["since"]]
        if len(values) < _SETTLING:
            return
        half = _SETTLING // 2
        added = np.median(values[-half:]) - np.median(values[-_SETTLING:-half])
        size = np.median(values[-half:]) - ongoing["baseline"]
        if abs(added) <= _SETTLED * abs(size):
            self._rows, self._ongoing = self._rows[-_SETTLING:], None

    def _shift(self, split: int) -> _Shift | None:
        """How the last ``split`` snapshots differ from those before, if that is a change."""
        rows = np.array(self._rows)
        if len(rows) < TREND + split:
            return None
        past, late = rows[:-split][-_MOST_PAST:], rows[-split:]
        level, mean = float(np.median(past[:, 1])), float(late[:, 1].mean())
        size = mean - level
        sign = math.copysign(1.0, size)
        direction = "up" if sign > 0 else "down"
        if self._direction not in (direction, "both") or abs(size) < self._min_effect:
            return None
        low, high = (
            np.nanmedian(past[:, 2:4], axis=0)
            if np.isfinite(past[:, 2:4]).any()
            else (level, level)
        )
        is_outside = mean > high if sign > 0 else mean < low
        if not is_outside or not _is_times(late[-2:, 1], level, sign, self._ratio):
            return None
        if (sign * (late[-2:, 1] - level)).min() < BORNE_OUT * abs(size):
            return None
        width = 0.5 * (high - low) / _SIDES
        has_cause = sign < 0 and _is_cause(past[:, 4], late[:, 4])
        score, noise = _score(past[:, :2], late[:, :2], width, sign, level_only=has_cause)
        needed = _SCORE_OF_MULTIPLE if self._ratio >= _MULTIPLE else _SCORE
        if score < (_SCORE_WITH_CAUSE if has_cause else needed):
            return None
        return _Shift(split, level, size, score, noise)

    def _event(self, shift: _Shift) -> Event:
        rows = np.array(self._rows)
        steps, direction = rows[:, 0], "up" if shift.size > 0 else "down"
        found = onset_of(
            steps, rows[:, 1], noise=shift.noise, latest=len(rows) - 3, direction=direction
        )
        at, low, high = (int(steps[i]) for i in found)
        self._ongoing = {"baseline": shift.level, "since": int(steps[-1])}
        return Event(
            series="",
            direction=direction,
            onset_step=at,
            onset_low=low,
            onset_high=high,
            detected_step=int(steps[-1]),
            baseline=shift.level,
            value=float(rows[-1, 1]),
            noise=shift.noise,
            decay_clock=self._decay_clock,
        )


def _is_times(latest: Array, level: float, sign: float, ratio: float) -> bool:
    """Whether each of the latest is ``ratio`` times the level, or the other way round."""
    return bool(latest.min() >= ratio * level if sign > 0 else ratio * latest.max() <= level)


def _is_cause(before: Array, now: Array) -> bool:
    """Whether reliance has come to several times what it was."""
    if not (np.isfinite(before).all() and np.isfinite(now).all()):
        return False
    return bool(np.median(now) >= _MULTIPLE * np.median(before) > 0.0)


def _score(
    past: Array, late: Array, width: float, sign: float, *, level_only: bool
) -> tuple[float, float]:
    """How certain it is that the late snapshots go on otherwise, and the noise of a snapshot."""
    x, y = (past[:, 0] - past[-1, 0]) / (past[-1, 0] - past[0, 0]), past[:, 1]
    at = float(((late[:, 0] - past[-1, 0]) / (past[-1, 0] - past[0, 0])).mean())
    scores, noise = [], math.nan
    for degree in (0,) if level_only else (0, 1):
        design = x[:, None] ** np.arange(degree + 1)
        fit = np.linalg.lstsq(design, y, rcond=None)[0]
        left = y - design @ fit
        nu = len(y) - degree - 1
        seen = max(float(left @ left) / nu, noise_sd(y) ** 2)
        variance = (_PRIOR_SNAPSHOTS * width**2 + nu * seen) / (_PRIOR_SNAPSHOTS + nu)
        rho = correlation_of(left, math.sqrt(variance))
        inflated = (1.0 + rho) / (1.0 - rho)
        here = at ** np.arange(degree + 1)
        leverage = float(here @ np.linalg.solve(design.T @ design, here))
        error = math.sqrt(variance * (min(inflated / len(late), 1.0) + inflated * leverage))
        t = sign * (float(late[:, 1].mean()) - float(here @ fit)) / max(error, 1e-300)
        scores.append(float(normal_score(np.float64(t), np.float64(nu + _PRIOR_SNAPSHOTS))))
        noise = math.sqrt(variance)
    return min(scores), noise
