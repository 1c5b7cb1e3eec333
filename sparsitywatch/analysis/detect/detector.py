"""Abrupt changes of a watched series, seen live.

Two members look at every series. One knows what healthy series do (`nulls`) and sees what none
of it foresaw: jumps, sigmoids, kinks. The other sees take-offs: growth that is abrupt against
the whole run so far, though no single look is a surprise. What the learning rate accounts for is
left out of both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from sparsitywatch.analysis.detect.candidates import (
    Candidate,
    Limits,
    decayed,
    falls,
    is_left,
    jumps_seen,
    rises,
)
from sparsitywatch.analysis.detect.jumps import Jumps
from sparsitywatch.analysis.detect.looks import Looks
from sparsitywatch.analysis.detect.onset import onset_of
from sparsitywatch.analysis.robust import noise_sd
from sparsitywatch.arguments import expect, expect_keys, expect_mapping, expect_whole, is_number
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.records import Event

__all__ = ["AbruptChange"]

_DIRECTIONS = ("up", "down", "both")
#: Smallest scores at one false alarm per 1000 snapshots, and what each factor of ten less adds;
#: from benchmarks/detecting/calibration.py.
_JUMP_SCORE, _GROWTH_SCORE = (2.66, 0.71), (3.0, 0.5)
#: Looks at the start of a run that jumps are not looked for in: a start is violent.
_SKIPPED = 4
#: Looks up to the onset whose median is the baseline.
_BASELINE_LOOKS = 5
#: The part of every requirement of an event that makes a suspicion of a take-off or a fall.
_SUSPICION = 0.5
_STATE_KEYS = ("looks", "jumps", "ongoing", "num_skipped", "lr_clock", "decay_clock", "decayed")


class AbruptChange:
    """Watches one series for abrupt changes, look by look.

    **Jumps**, sigmoids and kinks, up or down: two looks or more that no model of a healthy
    series foresaw. The models are lines and parabolas with independent, correlated and
    wandering noise; each is believed as far as its forecasts were right so far, and a change is
    as certain as all of them together say. It takes fourteen looks before it can be seen.

    **Take-offs**: the last look is ``ratio`` times the lowest level so far, and the last two are
    above what the whole run before explains, continued: its level, its line and its bend, in the
    logarithm. Growth that is steady from the start is explained by its own past. A fall by a
    fifth that is over in at most eight looks is seen in the same way, a smooth decay is none.
    It takes five looks; where values are negative there are only jumps.

    Where the **decay clock** has come far enough to account for a take-off, less is asked of it,
    and one that is ``ratio ** 1.5`` times its floor on two looks is told however evenly it came.

    What the **learning rate** accounts for, with whatever memory, is no change; it is known from
    ``context``.

    A spike of one look and a value that is not finite give no event. One change is one event
    however long it goes on: the next one is looked for after the series has settled, five looks
    that add less than a tenth of the whole change; the level it settled at is the new baseline.

    Args:
        min_effect: smallest change worth waking somebody for, in units of the series. For a
            fraction, 0.01 is one percentage point.
        ratio: how many times its running floor a take-off must reach.
        direction: "up", "down" or "both".
        false_alarms_per_1000: how often per thousand snapshots a healthy series may alarm. What
            that is measured on is in docs/detection.md; real series differ.

    Raises:
        ConfigurationError: an argument is out of range.

    >>> detector = AbruptChange(min_effect=0.01)
    >>> series = [0.05] * 10 + [0.06, 0.08, 0.11, 0.15]
    >>> events = [detector.update(25 * i, value) for i, value in enumerate(series)]
    >>> [(e.direction, e.onset_step, e.detected_step) for e in events if e]
    [('up', 225, 300)]
    """

    def __init__(
        self,
        min_effect: float = 0.01,
        *,
        ratio: float = 1.5,
        direction: str = "both",
        false_alarms_per_1000: float = 0.1,
    ) -> None:
        if not is_number(min_effect) or not 0.0 < min_effect < math.inf:
            raise ConfigurationError(
                f"Expected `min_effect` to be finite and positive, got {min_effect!r}. It is in "
                "units of the series: 0.01 is one percentage point of a fraction."
            )
        if not is_number(ratio) or not 1.0 < ratio < math.inf:
            raise ConfigurationError(
                f"Expected `ratio` to be finite and above 1, got {ratio!r}. 1.5 is a rise by half."
            )
        if not isinstance(direction, str) or direction not in _DIRECTIONS:
            raise ConfigurationError(
                f"Expected `direction` to be one of {_DIRECTIONS}, got {direction!r}."
            )
        if not is_number(false_alarms_per_1000) or not 0.001 <= false_alarms_per_1000 <= 10.0:
            raise ConfigurationError(
                "Expected `false_alarms_per_1000` to be a number from 0.001 to 10, got "
                f"{false_alarms_per_1000!r}. 0.1 is one in ten thousand snapshots."
            )
        rarity = -math.log10(false_alarms_per_1000)
        self._limits = Limits(
            float(min_effect),
            float(ratio),
            _JUMP_SCORE[0] + _JUMP_SCORE[1] * rarity,
            _GROWTH_SCORE[0] + _GROWTH_SCORE[1] * rarity,
        )
        self._direction = direction
        self._looks, self._jumps = Looks(), Jumps()
        self._ongoing: dict[str, Any] | None = None
        self._num_skipped, self._lr_clock = _SKIPPED, math.nan
        self._decay_clock, self._decayed = math.nan, 0.0

    @property
    def is_suspicious(self) -> bool:
        """Whether the last look may become an event.

        No model foresaw it, though it is alone so far; or it met half of every requirement of a
        take-off or a fall.
        """
        if self._ongoing is not None or len(self._looks) == 0:
            return False
        grown = [c for seen in self._growths(self._limits.part(_SUSPICION)) for c in seen]
        return self._jumps.surprise >= self._limits.jump_score or any(
            self._direction in (c.direction, "both") for c in grown
        )

    def update(
        self, step: int, value: float, context: Mapping[str, float] | None = None
    ) -> Event | None:
        """One more look.

        Args:
            step: optimizer step, larger at every call.
            value: the series there; what is not finite is a gap.
            context: what else is known: "lr" and "lr_clock", the learning rate and its sum over
                the steps, and "decay_clock", the sum of learning rate times weight decay.

        Returns:
            The event if a change is seen at this look; its series has no name yet.

        Raises:
            ConfigurationError: the step does not come after that of the last look.
        """
        expect_whole("step", step, 0)
        expect(is_number(value), "value", "a number, NaN for a gap", value)
        if context is not None:
            expect_mapping("context", context, "numbers by name")
        if len(self._looks) and step <= self._looks.steps[-1]:
            raise ConfigurationError(
                f"Expected `step` after {self._looks.steps[-1]}, the last look, got {step!r}."
            )
        if not math.isfinite(value):
            return None
        context = context or {}
        self._looks.add(step, value, self._mean_rate(step, context))
        self._advance(float(context.get("decay_clock", math.nan)))
        if self._ongoing is not None:
            self._settle(self._ongoing)
            return None
        for candidate in self._candidates():
            event = self._event(candidate, context.get("decay_clock", math.nan))
            if event is not None:
                self._ongoing = {"direction": event.direction, "baseline": event.baseline}
                self._jumps = Jumps()
                return event
        return None

    def state_dict(self) -> dict[str, Any]:
        """Everything that ``load_state_dict`` needs to go on, as plain JSON-able data."""
        return {
            "looks": self._looks.state_dict(),
            "jumps": self._jumps.state_dict(),
            "ongoing": None if self._ongoing is None else dict(self._ongoing),
            "num_skipped": self._num_skipped,
            "lr_clock": None if math.isnan(self._lr_clock) else self._lr_clock,
            "decay_clock": None if math.isnan(self._decay_clock) else self._decay_clock,
            "decayed": self._decayed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            StateError: a key is missing, or the parts do not go together.
        """
        expect_keys(state, _STATE_KEYS)
        looks, jumps = Looks(), Jumps()
        looks.load_state_dict(state["looks"])
        jumps.load_state_dict(state["jumps"])
        self._looks, self._jumps = looks, jumps
        self._ongoing = None if state["ongoing"] is None else dict(state["ongoing"])
        self._num_skipped = int(state["num_skipped"])
        self._lr_clock, self._decay_clock = (
            math.nan if state[key] is None else float(state[key])
            for key in ("lr_clock", "decay_clock")
        )
        self._decayed = float(state["decayed"])

    def _mean_rate(self, step: int, context: Mapping[str, float]) -> float:
        """Mean learning rate since the last look; the one at the look if no sum is known."""
        clock = float(context.get("lr_clock", math.nan))
        before, self._lr_clock = self._lr_clock, clock
        if len(self._looks) and math.isfinite(clock - before):
            return (clock - before) / (step - self._looks.steps[-1])
        return float(context.get("lr", math.nan))

    def _advance(self, clock: float) -> None:
        """How far the decay clock has come since the baseline began."""
        if clock > self._decay_clock:  # False if one of them is not known
            self._decayed += clock - self._decay_clock
        self._decay_clock = clock
        # weights that decay alone shrinks multiply near-zero ones by exp(clock) at most
        is_decaying = self._decayed >= math.log(self._limits.ratio)
        self._limits = replace(self._limits, is_decaying=is_decaying)

    def _candidates(self) -> list[Candidate]:
        """The most certain change that each member sees, if the rate does not account for it."""
        found = [
            jumps_seen(self._looks, self._jumps, self._limits, self._num_skipped),
            *self._growths(self._limits),
        ]
        watched = [[c for c in seen if self._direction in (c.direction, "both")] for seen in found]
        effect = self._limits.min_effect
        left = [seen[0] for seen in watched if seen and is_left(seen[0], self._looks, effect)]
        # the rate's answer is not asked for where decay is the cause
        return left or (decayed(self._looks, self._limits) if self._direction != "down" else [])

    def _growths(self, limits: Limits) -> list[list[Candidate]]:
        """Take-offs and falls."""
        return [rises(self._looks, limits), falls(self._looks, limits)]

    def _event(self, candidate: Candidate, decay_clock: float) -> Event | None:
        """The event, if it is of a size that matters."""
        steps, values, _ = self._looks.arrays()
        first = candidate.start
        onset, low, high = (
            first + i
            for i in onset_of(
                steps[first:],
                candidate.transformed(values)[first:],
                noise=candidate.noise,
                latest=len(values) - 3 - first,
            )
        )
        baseline = float(np.median(values[max(0, onset - _BASELINE_LOOKS + 1) : onset + 1]))
        size = values[-1] - baseline if candidate.direction == "up" else baseline - values[-1]
        if size < self._limits.min_effect:
            return None
        return Event(
            series="",
            direction=candidate.direction,
            onset_step=int(steps[onset]),
            onset_low=int(steps[low]),
            onset_high=int(steps[high]),
            detected_step=int(steps[-1]),
            baseline=baseline,
            value=float(values[-1]),
            noise=noise_sd(values[: onset + 1]),
            decay_clock=float(decay_clock),
        )

    def _settle(self, ongoing: Mapping[str, Any]) -> None:
        """End the ongoing change once it adds little; then only the new level is left."""
        if self._looks.has_settled(ongoing["direction"], ongoing["baseline"]):
            self._looks.keep_settled()
            self._ongoing, self._num_skipped, self._decayed = None, 0, 0.0
