"""What a detector remembers of its series: every recent look, and fewer of the older ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sparsitywatch.analysis.detect.growth import (
    FALL,
    RISE,
    multiplied,
    seen_growth,
    share_left_by_rate,
)
from sparsitywatch.analysis.detect.jumps import WINDOW, Jumps, onset_of
from sparsitywatch.analysis.robust import noise_sd
from sparsitywatch.errors import (
    ConfigurationError,
    StateError,
    expect,
    expect_keys,
    expect_mapping,
    expect_whole,
    is_number,
)
from sparsitywatch.records import Event, renamed

__all__ = [
    "AbruptChange",
    "Candidate",
    "Detector",
    "Limits",
    "Looks",
    "decayed",
    "falls",
    "is_left",
    "jumps_seen",
    "rises",
]

Array = NDArray[np.float64]

#: When there are so many, every second one of those that are not recent is dropped.
_MOST, _RECENT = 192, 96
#: A change goes on while so many looks still add this part of its size.
_SETTLING_LOOKS, _SETTLING_SHARE = 5, 0.1
#: The rate is known to so many digits.
_RATE_DIGITS = 6


class Looks:
    """Steps, values and learning rates, by rising step; NaN where the rate is not known."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.values: list[float] = []
        self.rates: list[float] = []

    def __len__(self) -> int:
        return len(self.steps)

    def add(self, step: int, value: float, rate: float) -> None:
        """One more look.

        Args:
            step: after that of the last look.
            value: finite.
            rate: mean learning rate since the last look; NaN if it is not known.
        """
        columns = zip(self._columns(), (int(step), float(value), _rounded(rate)), strict=True)
        for column, new in columns:
            column.append(new)
        if len(self) > _MOST:
            for column in self._columns():
                column[:-_RECENT] = column[:-_RECENT:2]

    def has_settled(self, direction: str, baseline: float) -> bool:
        """Whether a change from ``baseline`` is over: the latest looks add little to it."""
        sign = 1.0 if direction == "up" else -1.0
        recent = self.values[-_SETTLING_LOOKS:]
        size = sign * (float(np.median(recent)) - baseline)
        return sign * (recent[-1] - recent[0]) < _SETTLING_SHARE * max(size, 0.0)

    def keep_settled(self) -> None:
        """Forget all but the looks that showed it: a new level, a new baseline."""
        for column in self._columns():
            del column[: max(0, len(column) - _SETTLING_LOOKS)]

    def arrays(self) -> tuple[Array, Array, Array]:
        """Steps, values and rates."""
        return np.array(self.steps, np.float64), np.array(self.values), np.array(self.rates)

    def state_dict(self) -> dict[str, Any]:
        """Plain data that ``load_state_dict`` goes on from."""
        rates = [None if rate != rate else rate for rate in self.rates]
        return {"steps": list(self.steps), "values": list(self.values), "rates": rates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            StateError: a key is missing, or the columns differ in length.
        """
        expect_keys(state, ("steps", "values", "rates"))
        for key in ("values", "rates"):
            if len(state[key]) != len(state["steps"]):
                raise StateError(
                    f"Expected as many {key!r} as 'steps' ({len(state['steps'])}) in a "
                    f"detector's state, got {len(state[key])}."
                )
        self.steps = [int(step) for step in state["steps"]]
        self.values = [float(value) for value in state["values"]]
        self.rates = [float("nan") if rate is None else float(rate) for rate in state["rates"]]

    def _columns(self) -> Sequence[list[Any]]:
        return self.steps, self.values, self.rates


def _rounded(rate: float) -> float:
    return float(f"{rate:.{_RATE_DIGITS}g}")


#: Looks that tell the grid of a quantised series.
_GRID_LOOKS = 80
#: Part of the grid that is noise at least, and steps of it that a jump takes.
_GRID_NOISE, _GRID_STEPS = 0.3, 1.5
#: Noise that is allowed for where none is seen: parts of the smallest effect and of the level.
_LEAST_OF_EFFECT, _LEAST_OF_LEVEL = 1e-3, 1e-9
#: A jump is looked for once there are so many looks.
_MIN_LOOKS = 9
#: A fall leaves this part of the running ceiling, at most.
_FALL_RATIO = 1.25
#: The run before a growth takes this part of the run so far at least; less, if weight decay can
#: account for the growth.
_SHARE_BEFORE, _SHARE_BEFORE_DECAY = 1 / 2, 1 / 3
#: Where weight decay can account for it, growth to this power of the ratio is told however evenly
#: it came about.
_TIMES_EVEN = 1.5
#: So much less score is asked of growth that weight decay can account for, and of that so much
#: more with each doubling of the looks beyond a few, up to a limit.
_LESS_SCORE, _FEW_LOOKS, _MORE_SCORE, _MOST_MORE = 1.5, 10, 0.5, 1.0
#: What the learning rate leaves of a change, at least.
_LEAST_LEFT = 0.5
#: Standard deviation of a series' answer to the full learning rate: of the logarithm, and in
#: ranges of the series where a change adds.
_ANSWER_IN_LOG, _ANSWER_IN_RANGES = 0.5, 10.0
#: Looks that tell what the rate leaves of a jump.
_ANSWER_LOOKS = 64


@dataclass(frozen=True)
class Limits:
    """What is required of a change.

    Args:
        min_effect: its smallest size, in units of the series.
        ratio: of a take-off to its running floor.
        jump_score, growth_score: smallest normal scores.
        is_decaying: weight decay has advanced far enough to account for the growth.
    """

    min_effect: float
    ratio: float
    jump_score: float
    growth_score: float
    is_decaying: bool = False

    @property
    def min_share(self) -> float:
        """Part of the run so far that comes before a growth."""
        return _SHARE_BEFORE_DECAY if self.is_decaying else _SHARE_BEFORE

    def growth_score_at(self, num_snapshots: int) -> float:
        """What has a known cause needs less proof; chance has been tried at every look."""
        if not self.is_decaying:
            return self.growth_score
        more = _MORE_SCORE * math.log2(max(num_snapshots / _FEW_LOOKS, 1.0))
        return self.growth_score - _LESS_SCORE + min(more, _MOST_MORE)

    def part(self, share: float) -> Limits:
        """The same with ``share`` of every requirement."""
        return Limits(
            share * self.min_effect,
            1.0 + share * (self.ratio - 1.0),
            share * self.jump_score,
            share * self.growth_score,
            self.is_decaying,
        )


@dataclass(frozen=True)
class Candidate:
    """A change that a member saw.

    Args:
        direction: "up" or "down".
        split: looks since it began.
        start: index of the first look of its baseline.
        size: of the change, in the logarithm for growth.
        noise: standard deviation of a look, in the logarithm for growth.
        offset: added to the series before taking logarithms; None for a jump, which adds.
    """

    direction: str
    split: int
    start: int
    size: float
    noise: float
    offset: float | None = None

    def transformed(self, values: Array) -> Array:
        """The series in which the change is a step or a bend upward or downward."""
        return values if self.offset is None else np.log(values + self.offset)


def jumps_seen(looks: Looks, jumps: Jumps, limits: Limits, num_skipped: int) -> list[Candidate]:
    """What cannot be foreseen from the looks before; ``jumps`` takes one more look.

    Args:
        looks: with the new one.
        jumps: what is known of the series' noise.
        limits: what is required.
        num_skipped: looks at the start that are left out.
    """
    begin = max(num_skipped, len(looks) - _GRID_LOOKS)
    if len(looks) - begin < _MIN_LOOKS:
        return []
    steps, values, _ = looks.arrays()
    grid = _grid(values[begin:])
    first = max(begin, len(looks) - WINDOW)
    x, y = steps[first:], values[first:]
    least = _LEAST_OF_EFFECT * limits.min_effect, _LEAST_OF_LEVEL * float(np.abs(y).max())
    found = jumps.update(
        x / float(np.median(np.diff(x))),
        y,
        min_effect=max(limits.min_effect, _GRID_STEPS * grid),
        threshold=limits.jump_score,
        floor=max(_GRID_NOISE * grid, *least),
    )
    return [
        Candidate("up" if j.score > 0.0 else "down", j.split, first, abs(j.effect), j.noise)
        for j in found
    ]


def rises(looks: Looks, limits: Limits) -> list[Candidate]:
    """Take-offs."""
    steps, values, _ = looks.arrays()
    if values.min() < 0.0 or values[-1] - values.min() < limits.min_effect:
        return []
    offset = limits.min_effect if values.min() == 0.0 else 0.0  # the smallest size that counts
    found = seen_growth(
        RISE,
        steps,
        values + offset,
        ratio=limits.ratio,
        threshold=limits.growth_score_at(len(looks)),
        min_share=limits.min_share,
    )
    if offset:  # what creeps up from zero is not abrupt
        found = [growth for growth in found if growth.split <= FALL.splits[-1]]
    return [Candidate("up", g.split, g.start, g.excess, g.noise, offset) for g in found]


def decayed(looks: Looks, limits: Limits) -> list[Candidate]:
    """A take-off that went so far that it is told, however evenly, if decay is a cause of it."""
    _, values, _ = looks.arrays()
    if not limits.is_decaying or values[-1] - values.min() < limits.min_effect:
        return []
    found = multiplied(RISE, values, factor=limits.ratio**_TIMES_EVEN)
    return [Candidate("up", g.split, g.start, g.excess, g.noise, 0.0) for g in found]


def falls(looks: Looks, limits: Limits) -> list[Candidate]:
    """Falls that are over in a few looks."""
    steps, values, _ = looks.arrays()
    if values.min() < 0.0 or values.max() - values[-1] < limits.min_effect:
        return []
    offset = limits.min_effect if values.min() == 0.0 else 0.0
    found = seen_growth(
        FALL,
        steps,
        1.0 / (values + offset),
        ratio=_FALL_RATIO,
        threshold=limits.growth_score_at(len(looks)),
        min_share=limits.min_share,
    )
    return [Candidate("down", g.split, g.start, g.excess, g.noise, offset) for g in found]


def is_left(candidate: Candidate, looks: Looks, min_effect: float) -> bool:
    """Whether the change is still one when the learning rate has been accounted for."""
    steps, values, rates = looks.arrays()
    y = candidate.transformed(values)
    split = len(y) - candidate.split
    if candidate.offset is None:
        first = max(0, len(y) - _ANSWER_LOOKS)
        needed, strongest = min_effect, _ANSWER_IN_RANGES * float(np.ptp(y[first:]))
    else:
        first, needed, strongest = candidate.start, RISE.min_excess, _ANSWER_IN_LOG
    for shape in _shapes(steps, split, is_jump=candidate.offset is None):
        left = share_left_by_rate(
            steps, y, rates, shape, noise=candidate.noise, strongest=strongest, first=first
        )
        if left >= _LEAST_LEFT and left * candidate.size >= needed:
            return True
    return False


def _shapes(steps: Array, split: int, *, is_jump: bool) -> list[Array]:
    """The change from look ``split`` on: a bend, or also a step; 1 at the last look."""
    bend = np.maximum(steps - steps[split - 1], 0.0)
    bend /= bend[-1]
    return [bend, (bend > 0.0).astype(np.float64)] if is_jump else [bend]


def _grid(values: Array) -> float:
    """Distance of neighbouring values of a quantised series; 0 if it is not one."""
    distinct = np.unique(values)
    if not 1 < len(distinct) <= len(values) / 2:
        return 0.0
    return float(np.diff(distinct).min())


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
_STATE_KEYS = ("history", "jumps", "ongoing", "num_skipped", "lr_clock", "decay_clock", "decayed")


class Detector(Protocol):
    """Watches one series, fed in the order of the steps."""

    def update(
        self, step: int, value: float, context: Mapping[str, float] | None = None
    ) -> Event | None:
        """An event if the change is seen at this point."""

    def state_dict(self) -> dict[str, Any]:
        """Plain data that ``load_state_dict`` goes on from."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""


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
            "history": self._looks.state_dict(),
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
        state = renamed(state, looks="history")
        expect_keys(state, _STATE_KEYS)
        looks, jumps = Looks(), Jumps()
        looks.load_state_dict(state["history"])
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
