"""Abrupt changes of a watched series, seen live.

A near-zero fraction that takes off does not jump: it leaves its floor and grows over tens
of looks, like a hockey stick. What makes that abrupt is that nothing before it, continued,
explains it. So both rules compare the last two looks with what the past explains: a robust
straight line through the looks before a split, continued to now, and never a better value
than the level at which they ended. Splits at many distances are tried, because how long
ago the change began is not known.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsitywatch.analysis.knee import knee_of
from sparsitywatch.analysis.robust import line_at, median_of_three, noise_sd, robust_sd
from sparsitywatch.errors import ConfigurationError, StateError
from sparsitywatch.records import Event

__all__ = ["AbruptChange"]

Array = NDArray[np.float64]

_DIRECTIONS = ("up", "down", "both")
#: Looks since the change began; never more than there were before it.
_SPLITS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192)
#: A fall is abrupt only if it is over in so few looks: what merely decays takes longer.
_LONGEST_FALL = 8
#: Looks before a change without which there is nothing to compare with.
_MIN_PAST = 5
#: A rise exceeds the noise of single looks this often, a fall all past variation.
_NOISE_FACTOR = 4.0
_VARIATION_FACTOR = 6.0
#: A change is at least this part of what the past explains.
_MIN_SHARE = 0.2
#: The part of every requirement of an event that makes a suspicion.
_SUSPICION = 0.5
#: The event goes on while so many looks still add this part of its size.
_SETTLING_LOOKS = 5
_SETTLING_SHARE = 0.1
#: Looks kept: bounds the state and the cost of a long run.
_MAX_LOOKS = 400
#: Looks that an onset is searched in, and the part of the way that is still the baseline.
_ONSET_LOOKS = 80
_NEAR_BASELINE = 0.1


@dataclass(frozen=True)
class _Change:
    """A change that was seen: ``split`` looks before the end, it had not begun."""

    direction: str
    split: int


class AbruptChange:
    """Watches one series for abrupt changes, look by look.

    **Up.** On two looks in a row the value is ``ratio`` times the lowest level so far, and
    exceeds what the past explains by ``min_effect``, by a fifth of it and by four standard
    deviations of the noise of a look. Growth that is steady from the start, linear or
    exponential, is explained by its own past.

    **Down.** On two looks in a row the value is below what the past explains by
    ``min_effect``, by a fifth of it and by six robust standard deviations of everything
    before, and the fall took at most eight looks. A smooth decay is none.

    A spike of one look, a value that is not finite and the first six looks give no event.
    A level, such as an essential sparsity, can hardly rise by half: watch it for falls.
    One change is one event however long it goes on: the next one is looked for after the
    series has settled, five looks that add less than a tenth of the whole change; the
    level it settled at is the new baseline. At most the last 400 looks are remembered.

    Args:
        min_effect: smallest change that matters, in units of the series. For a fraction,
            0.01 is one percentage point.
        ratio: how many times its running floor a rise must reach.
        direction: "up", "down" or "both".

    Raises:
        ConfigurationError: an argument is out of range.

    >>> detector = AbruptChange(min_effect=0.01)
    >>> series = [0.05] * 10 + [0.06, 0.08, 0.11, 0.15]
    >>> events = [detector.update(25 * i, value) for i, value in enumerate(series)]
    >>> [(e.direction, e.onset_step, e.detected_step) for e in events if e]
    [('up', 225, 300)]
    """

    def __init__(
        self, min_effect: float = 0.01, *, ratio: float = 1.5, direction: str = "both"
    ) -> None:
        if not _is_number(min_effect) or not 0.0 < min_effect < math.inf:
            raise ConfigurationError(
                f"Expected `min_effect` to be finite and positive, got {min_effect!r}. It is in "
                "units of the series: 0.01 is one percentage point of a fraction."
            )
        if not _is_number(ratio) or not 1.0 < ratio < math.inf:
            raise ConfigurationError(
                f"Expected `ratio` to be finite and above 1, got {ratio!r}. 1.5 is a rise by half."
            )
        if direction not in _DIRECTIONS:
            raise ConfigurationError(
                f"Expected `direction` to be one of {_DIRECTIONS}, got {direction!r}."
            )
        self._min_effect, self._ratio, self._direction = float(min_effect), float(ratio), direction
        self._steps: list[int] = []
        self._values: list[float] = []
        self._ongoing: dict[str, Any] | None = None
        self._suspicious = False

    @property
    def is_suspicious(self) -> bool:
        """Whether the last look met half of every requirement of an event."""
        return self._suspicious

    def update(
        self, step: int, value: float, context: Mapping[str, float] | None = None
    ) -> Event | None:
        """One more look.

        Args:
            step: optimizer step, larger at every call.
            value: the series there; what is not finite is a gap.
            context: what else is known, such as "decay_clock", which the event carries.

        Returns:
            The event if a change is seen at this look; its series has no name yet.

        Raises:
            ConfigurationError: the step does not come after that of the last look.
        """
        if self._steps and step <= self._steps[-1]:
            raise ConfigurationError(
                f"Expected `step` after {self._steps[-1]}, the last look, got {step!r}."
            )
        if not math.isfinite(value):
            return None
        self._steps = [*self._steps, int(step)][-_MAX_LOOKS:]
        self._values = [*self._values, float(value)][-_MAX_LOOKS:]
        if self._ongoing is not None:
            self._settle(self._ongoing)
            return None
        steps, values = np.array(self._steps, np.float64), np.array(self._values)
        change = self._change(steps, values)
        if change is None:
            self._suspicious = self._change(steps, values, _SUSPICION) is not None
            return None
        self._suspicious = False
        onset = _onset(steps, values, change)
        baseline = _baseline(values, onset)
        self._ongoing = {"direction": change.direction, "baseline": baseline}
        return Event(
            series="",
            direction=change.direction,
            onset_step=self._steps[onset],
            detected_step=self._steps[-1],
            baseline=baseline,
            value=self._values[-1],
            noise=noise_sd(values[: onset + 1]),
            decay_clock=float((context or {}).get("decay_clock", math.nan)),
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that ``load_state_dict`` needs to go on, as plain JSON-able data."""
        return {
            "steps": list(self._steps),
            "values": list(self._values),
            "ongoing": None if self._ongoing is None else dict(self._ongoing),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            StateError: a key is missing, or steps and values do not go together.
        """
        for key in ("steps", "values", "ongoing"):
            if key not in state:
                raise StateError(
                    f"Expected a detector's state with the key {key!r}, got {sorted(state)}."
                )
        if len(state["steps"]) != len(state["values"]):
            raise StateError(
                f"Expected as many 'values' as 'steps' ({len(state['steps'])}) in a detector's "
                f"state, got {len(state['values'])}."
            )
        self._steps = [int(step) for step in state["steps"]]
        self._values = [float(value) for value in state["values"]]
        self._ongoing = None if state["ongoing"] is None else dict(state["ongoing"])

    def _settle(self, ongoing: Mapping[str, Any]) -> None:
        """End the ongoing change once it adds little; then only the new level is left."""
        sign = 1.0 if ongoing["direction"] == "up" else -1.0
        recent = self._values[-_SETTLING_LOOKS:]
        size = sign * (float(np.median(recent)) - ongoing["baseline"])
        if sign * (recent[-1] - recent[0]) < _SETTLING_SHARE * max(size, 0.0):
            self._steps, self._values = self._steps[-_SETTLING_LOOKS:], recent
            self._ongoing = None

    def _change(self, steps: Array, values: Array, part: float = 1.0) -> _Change | None:
        """The change that the last looks show, if they meet ``part`` of each requirement."""
        smooth = median_of_three(values)
        noise = math.nan
        has_risen = self._direction != "down" and self._has_risen(values, smooth, part)
        for split in _SPLITS:
            if len(values) - split < max(_MIN_PAST, split):
                break
            past, past_steps = smooth[:-split], steps[:-split]
            # cheap tests first: nearly every look ends at one of them
            if has_risen and self._exceeds(values, _level(past), 0.0, part):
                noise = noise_sd(values) if math.isnan(noise) else noise
                if self._exceeds(values, _explained(past_steps, past, steps[-1]), noise, part):
                    return _Change("up", split)
            if split > _LONGEST_FALL or self._direction == "up":
                continue
            if self._falls(values, _level(past), 0.0, part):
                noise = noise_sd(values) if math.isnan(noise) else noise
                variation = max(noise, robust_sd(past))
                explained = min(_level(past), line_at(past_steps, past, steps[-1]))
                if self._falls(values, explained, variation, part):
                    return _Change("down", split)
        return None

    def _has_risen(self, values: Array, smooth: Array, part: float) -> bool:
        floor = float(smooth.min())
        return bool(values[-2:].min() - floor >= part * (self._ratio - 1) * abs(floor))

    def _exceeds(self, values: Array, explained: float, noise: float, part: float) -> bool:
        needed = max(self._min_effect, _NOISE_FACTOR * noise, _MIN_SHARE * abs(explained))
        return bool(values[-2:].min() - explained >= part * needed)

    def _falls(self, values: Array, explained: float, variation: float, part: float) -> bool:
        needed = max(self._min_effect, _VARIATION_FACTOR * variation, _MIN_SHARE * abs(explained))
        return bool(explained - values[-2:].max() >= part * needed)


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _level(past: Array) -> float:
    """Where the past ended."""
    return float(np.median(past[-max(4, len(past) // 4) :]))


def _explained(steps: Array, past: Array, step: float) -> float:
    """The most that the past, continued to ``step``, accounts for."""
    explained = max(_level(past), line_at(steps, past, step))
    if past.min() > 0.0:
        explained = max(explained, math.exp(min(line_at(steps, np.log(past), step), 700.0)))
    return explained


def _onset(steps: Array, values: Array, change: _Change) -> int:
    """Index of the last look before the change began.

    A two-segment fit finds the bend. It begins where the floor was reached, so that the way
    down to it is not taken for a segment. A jump has no look in its bend, so what follows
    and is still near the baseline is before the onset too.
    """
    sign = 1.0 if change.direction == "up" else -1.0
    heights = sign * median_of_three(values)
    floor = int(heights.argmin())
    is_above = heights > heights[floor] + _NEAR_BASELINE * (heights[-1] - heights[floor])
    reached = int(np.flatnonzero(is_above[:floor]).max(initial=-1)) + 1
    onset = len(values) - change.split - 1
    start = max(min(reached, onset - _MIN_PAST + 1), len(values) - _ONSET_LOOKS, 0)
    tail = values[start:]
    # growth that multiplies bends at its beginning only in the logarithm
    is_growth = sign > 0.0 and tail.min() > 0.0
    knot, _ = knee_of(steps[start:], np.log(tail) if is_growth else sign * tail)
    if not math.isnan(knot):
        onset = int(np.searchsorted(steps, knot, side="right")) - 1
    baseline = _baseline(values, onset)
    way = sign * (values[onset:] - baseline)
    # the last two looks are the change itself
    return onset + int(np.flatnonzero(way[:-2] <= _NEAR_BASELINE * way[-1]).max(initial=0))


def _baseline(values: Array, onset: int) -> float:
    return float(np.median(values[max(0, onset - _MIN_PAST + 1) : onset + 1]))
