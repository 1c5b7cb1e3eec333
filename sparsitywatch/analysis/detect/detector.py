"""The detectors: abrupt changes of any series, and weights that no longer get a gradient.

A series goes in, one snapshot at a time, and at some snapshots an event comes out. The tests for
jumps and for growth have files of their own; here is when they are asked, what is remembered
between snapshots, and when a change is over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from sparsitywatch.analysis.detect.change import (
    Array,
    Candidate,
    Limits,
    is_left_by_rate,
    median_of_three,
    noise_sd,
    onset_of,
)
from sparsitywatch.analysis.detect.growth import FALL, RISE, grown, multiplied
from sparsitywatch.analysis.detect.jumps import MIN_SNAPSHOTS, Jumps
from sparsitywatch.errors import (
    ConfigurationError,
    StateError,
    expect,
    expect_keys,
    expect_mapping,
    expect_number,
    expect_whole,
    is_number,
)
from sparsitywatch.records import Event, renamed

__all__ = ["AbruptChange", "Detector", "DormantRise", "SeriesHistory"]

#: When there are so many, every second one of those that are not recent is dropped.
_MOST, _RECENT = 192, 96
#: A change goes on while so many snapshots still add this part of its size.
_SETTLING_SNAPSHOTS, _SETTLING_SHARE = 5, 0.1
#: The learning rate is known to so many digits.
_RATE_DIGITS = 6
#: The part of every requirement of an event that makes a suspicion.
_SUSPICION = 0.5


class Detector(Protocol):
    """Watches one series, fed in the order of the steps."""

    def update(
        self, step: int, value: float, context: Mapping[str, float] | None = None
    ) -> Event | None:
        """An event if the change is seen at this snapshot."""

    def state_dict(self) -> dict[str, Any]:
        """Plain data that ``load_state_dict`` goes on from."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""


class SeriesHistory:
    """A series so far, by rising step: every recent snapshot, and fewer of the older ones."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.values: list[float] = []
        self.rates: list[float] = []

    def add(self, step: int, value: float, rate: float = math.nan) -> None:
        """One more snapshot; ``rate`` is the mean learning rate since the last one, if known."""
        self.steps.append(int(step))
        self.values.append(float(value))
        self.rates.append(float(f"{rate:.{_RATE_DIGITS}g}"))
        if len(self.steps) > _MOST:
            for column in self._columns():
                column[:-_RECENT] = column[:-_RECENT:2]

    def require_later(self, step: int) -> None:
        """Refuse a step that does not come after the last one."""
        if self.steps and step <= self.steps[-1]:
            raise ConfigurationError(
                f"Expected `step` after {self.steps[-1]}, the last snapshot, got {step!r}."
            )

    def has_settled(self, direction: str, baseline: float) -> bool:
        """Whether a change from ``baseline`` is over: the latest snapshots add little to it."""
        sign = 1.0 if direction == "up" else -1.0
        recent = self.values[-_SETTLING_SNAPSHOTS:]
        size = sign * (float(np.median(recent)) - baseline)
        return sign * (recent[-1] - recent[0]) < _SETTLING_SHARE * max(size, 0.0)

    def keep_settled(self) -> None:
        """Forget all but the snapshots that showed it: a new level, a new baseline."""
        for column in self._columns():
            del column[:-_SETTLING_SNAPSHOTS]

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
        self.rates = [math.nan if rate is None else float(rate) for rate in state["rates"]]

    def _columns(self) -> Sequence[list[Any]]:
        return self.steps, self.values, self.rates


def _event(history: SeriesHistory, onset: tuple[int, int, int], **known: Any) -> Event:
    """The event of the last snapshot, without the name of its series, which is not known here."""
    at, low, high = onset
    return Event(
        series="",
        onset_step=history.steps[at],
        onset_low=history.steps[low],
        onset_high=history.steps[high],
        detected_step=history.steps[-1],
        value=history.values[-1],
        noise=noise_sd(np.array(history.values[: at + 1])),
        **known,
    )


def _or_none(number: float) -> float | None:
    """NaN as None: a state is plain JSON."""
    return None if math.isnan(number) else number


def _or_nan(number: float | None) -> float:
    return math.nan if number is None else float(number)


# ------------------------------------------------------------------ abrupt changes

_DIRECTIONS = ("up", "down", "both")
#: Smallest scores at one false alarm per 1000 snapshots, and what each factor of ten less adds;
#: from benchmarks/detecting/calibration.py.
_JUMP_SCORE, _GROWTH_SCORE = (2.66, 0.71), (3.0, 0.5)
#: Snapshots at the start of a run that jumps are not looked for in: a start is violent.
_SKIPPED = 4
#: Snapshots up to the onset whose median is the baseline.
_BASELINE_SNAPSHOTS = 5
_ABRUPT_KEYS = (
    "history", "jumps", "ongoing", "num_skipped", "lr_clock", "decay_clock", "decayed"
)  # fmt: skip


class AbruptChange:
    """Watches one series for abrupt changes, snapshot by snapshot.

    **Jumps**, sigmoids and kinks, up or down: two snapshots or more that no model of a healthy
    series foresaw. The models are lines and parabolas with independent, correlated and
    wandering noise. Each is believed as far as its forecasts were right so far, and a change is
    as certain as all of them together say. It takes fourteen snapshots before one can be seen.

    **Take-offs**: the last snapshot is ``ratio`` times the lowest level so far, and the last two
    are above what the whole run before explains, continued: its level, its line and its bend, in
    the logarithm. Growth that is steady from the start is explained by its own past. A fall by a
    fifth that is over in at most eight snapshots is seen in the same way; a smooth decay is none.
    It takes five snapshots. Where values are negative there are only jumps.

    Where the **decay clock** has come far enough to account for a take-off, less is asked of it.
    One that is ``ratio ** 1.5`` times its floor at two snapshots is then an event, however evenly
    it came.

    What the **learning rate** accounts for, with whatever memory, is no change. It is known from
    ``context``.

    A spike of one snapshot and a value that is not finite give no event. One change is one event
    however long it goes on. The next one is looked for after the series has settled: five
    snapshots that add less than a tenth of the whole change. The level it settled at is the new
    baseline.

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
        what = (
            "finite and positive, in units of the series (0.01: a percentage point of a fraction)"
        )
        expect_number("min_effect", min_effect, lambda x: 0.0 < x < math.inf, what)
        what = "finite and above 1 (1.5: a rise by half)"
        expect_number("ratio", ratio, lambda x: 1.0 < x < math.inf, what)
        is_known = isinstance(direction, str) and direction in _DIRECTIONS
        expect(is_known, "direction", f"one of {_DIRECTIONS}", direction)
        what = "a number from 0.001 to 10 (0.1: one in ten thousand snapshots)"
        rate = false_alarms_per_1000
        expect_number("false_alarms_per_1000", rate, lambda x: 0.001 <= x <= 10.0, what)
        rarity = -math.log10(false_alarms_per_1000)
        self._limits = Limits(
            float(min_effect),
            float(ratio),
            _JUMP_SCORE[0] + _JUMP_SCORE[1] * rarity,
            _GROWTH_SCORE[0] + _GROWTH_SCORE[1] * rarity,
        )
        self._suspicion = self._limits.part(_SUSPICION)
        self._direction = direction
        self._history, self._jumps = SeriesHistory(), Jumps()
        self._ongoing: dict[str, Any] | None = None
        self._num_skipped, self._lr_clock = _SKIPPED, math.nan
        self._decay_clock, self._decayed, self._is_decaying = math.nan, 0.0, False

    @property
    def is_suspicious(self) -> bool:
        """Whether the last snapshot may become an event.

        No model foresaw it, though it is alone so far; or it met half of every requirement of a
        take-off or a fall.
        """
        if self._ongoing is not None or not self._history.steps:
            return False
        if self._jumps.surprise >= self._limits.jump_score:
            return True
        steps, values, _ = self._history.arrays()
        return any(self._growths(steps, values, self._suspicion))

    def update(
        self, step: int, value: float, context: Mapping[str, float] | None = None
    ) -> Event | None:
        """One more snapshot.

        Args:
            step: optimizer step, larger at every call.
            value: the series there; what is not finite is a gap.
            context: what else is known: "lr" and "lr_clock", the learning rate and its sum over
                the steps, and "decay_clock", the sum of learning rate times weight decay.

        Returns:
            The event if a change is seen at this snapshot; its series has no name yet.

        Raises:
            ConfigurationError: the step does not come after that of the last snapshot.
        """
        expect_whole("step", step, 0)
        expect(is_number(value), "value", "a number, NaN for a gap", value)
        if context is not None:
            expect_mapping("context", context, "numbers by name")
        self._history.require_later(step)
        if not math.isfinite(value):
            return None
        self._history.add(step, value, self._advance(step, context or {}))
        if self._ongoing is not None:
            if self._history.has_settled(self._ongoing["direction"], self._ongoing["baseline"]):
                self._history.keep_settled()  # only the new level is left
                self._ongoing, self._num_skipped, self._decayed = None, 0, 0.0
            return None
        steps, values, rates = self._history.arrays()
        for candidate in self._candidates(steps, values, rates):
            event = self._event(candidate, steps, values)
            if event is not None:
                self._ongoing = {"direction": event.direction, "baseline": event.baseline}
                self._jumps = Jumps()
                return event
        return None

    def state_dict(self) -> dict[str, Any]:
        """Everything that ``load_state_dict`` needs to go on, as plain JSON-able data."""
        return {
            "history": self._history.state_dict(),
            "jumps": self._jumps.state_dict(),
            "ongoing": None if self._ongoing is None else dict(self._ongoing),
            "num_skipped": self._num_skipped,
            "lr_clock": _or_none(self._lr_clock),
            "decay_clock": _or_none(self._decay_clock),
            "decayed": self._decayed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            StateError: a key is missing, or the parts do not go together.
        """
        state = renamed(state, looks="history")
        expect_keys(state, _ABRUPT_KEYS)
        history, jumps = SeriesHistory(), Jumps()
        history.load_state_dict(state["history"])
        jumps.load_state_dict(state["jumps"])
        self._history, self._jumps = history, jumps
        self._ongoing = None if state["ongoing"] is None else dict(state["ongoing"])
        self._num_skipped = int(state["num_skipped"])
        self._lr_clock = _or_nan(state["lr_clock"])
        self._decay_clock = _or_nan(state["decay_clock"])
        self._decayed = float(state["decayed"])

    def _advance(self, step: int, context: Mapping[str, float]) -> float:
        """Follow both clocks; returns the mean learning rate since the last snapshot."""
        clock = float(context.get("decay_clock", math.nan))
        if clock > self._decay_clock:  # False if one of them is not known
            self._decayed += clock - self._decay_clock
        self._decay_clock = clock
        # weights that decay alone shrinks multiply near-zero ones by exp(clock) at most
        self._is_decaying = self._decayed >= math.log(self._limits.ratio)
        clock = float(context.get("lr_clock", math.nan))
        before, self._lr_clock = self._lr_clock, clock
        if self._history.steps and math.isfinite(clock - before):
            return (clock - before) / (step - self._history.steps[-1])
        return float(context.get("lr", math.nan))

    def _candidates(self, steps: Array, values: Array, rates: Array) -> list[Candidate]:
        """The most certain change of each kind, if the rate does not account for it."""
        limits, found = self._limits, []
        if len(values) - self._num_skipped >= MIN_SNAPSHOTS:
            jumps = self._jumps.update(steps, values, limits, num_skipped=self._num_skipped)
            found.append([jump for jump in jumps if self._direction in (jump.direction, "both")])
        left = []
        for seen in (*found, *self._growths(steps, values, limits)):
            least = limits.min_effect if seen and seen[0].offset is None else RISE.min_excess
            if seen and is_left_by_rate(seen[0], steps, values, rates, least):
                left.append(seen[0])
        may_decay = self._is_decaying and self._direction != "down"
        if not left and may_decay and values[-1] - values.min() >= limits.min_effect:
            return multiplied(values, limits.ratio)  # where decay is the cause the rate is not
        return left

    def _growths(self, steps: Array, values: Array, limits: Limits) -> list[list[Candidate]]:
        """Take-offs and falls, where the series has moved far enough for one."""
        low, high, found = float(values.min()), float(values.max()), []
        for kind, moved in ((RISE, values[-1] - low), (FALL, high - values[-1])):
            is_watched = low >= 0.0 and self._direction in (kind.direction, "both")
            if is_watched and moved >= limits.min_effect:
                found.append(grown(kind, steps, values, limits, is_decaying=self._is_decaying))
        return found

    def _event(self, candidate: Candidate, steps: Array, values: Array) -> Event | None:
        """The event, if it is of a size that matters."""
        first = candidate.start
        onset, low, high = onset_of(
            steps[first:],
            candidate.transformed(values)[first:],
            noise=candidate.noise,
            latest=len(values) - 3 - first,
        )
        onset += first
        baseline = float(np.median(values[max(0, onset - _BASELINE_SNAPSHOTS + 1) : onset + 1]))
        size = values[-1] - baseline if candidate.direction == "up" else baseline - values[-1]
        if size < self._limits.min_effect:
            return None
        return _event(
            self._history,
            (onset, first + low, first + high),
            direction=candidate.direction,
            baseline=baseline,
            decay_clock=self._decay_clock,
        )


# ------------------------------------------------------------------ dormant weights
#
# A generic detector is of little use on the dormant fraction. It grows over tens of snapshots once
# units die, so evenly that its own past explains it, and without dead units it drifts with the
# learning rate. But what it should be is known: the share of living weights that passes as dormant
# by chance, which the watch measures at each snapshot. So what is watched is the excess over that.

#: Snapshots in a row that meet the requirements, or one that does so this many times over.
_IN_A_ROW = 2
#: Noise of a snapshot that the onset's interval allows for at least, in smallest effects.
_LEAST_NOISE = 0.05
_DORMANT_KEYS = ("history", "ongoing", "num_above", "decay_clock")


class DormantRise:
    """Watches the dormant fraction, ``motion/dormant``: units die, long before weights shrink.

    There is an event when two snapshots in a row are ``min_effect`` above, and ``ratio`` times,
    what is expected, or one snapshot is above it by twice as much. A generic detector is of little
    use here: the series grows so evenly once units die that its own past explains it, and without
    dead units it drifts with the learning rate. Expected is the share of living
    weights that passes by chance, or the running floor of the series if that is higher: units
    that were dead before the watch began are no change.

    Where the decay clock is known and stands still, nothing is seen: without decay no weight
    shrinks, and a model that has memorised its data gets no gradient anywhere.

    Units die one after the other, and that is one event. The next one is looked for when the
    series has come back to less than half of what an event takes.

    Args:
        min_effect: smallest excess worth waking somebody for, as a fraction of the weights.
        ratio: of the series to what is expected, at least.

    Raises:
        ConfigurationError: an argument is out of range.

    >>> detector = DormantRise()
    >>> series = [0.008] * 8 + [0.02, 0.05, 0.09, 0.15]
    >>> events = [detector.update(25 * i, v, {"dormant_by_chance": 0.01}) for i, v in
    ...           enumerate(series)]
    >>> [(e.direction, e.onset_step, e.detected_step) for e in events if e]
    [('up', 200, 250)]
    """

    def __init__(self, min_effect: float = 0.03, *, ratio: float = 2.0) -> None:
        what = "in (0, 1), a fraction of the weights (0.03: three percentage points)"
        expect_number("min_effect", min_effect, lambda x: 0.0 < x < 1.0, what)
        expect_number("ratio", ratio, lambda x: 1.0 <= x < math.inf, "finite, 1 or more")
        self._min_effect, self._ratio = float(min_effect), float(ratio)
        self._history = SeriesHistory()
        self._ongoing: dict[str, Any] | None = None
        self._num_above, self._decay_clock = 0, math.nan
        self.is_suspicious = False

    def update(
        self, step: int, value: float, context: Mapping[str, float] | None = None
    ) -> Event | None:
        """One more snapshot.

        Args:
            step: optimizer step, larger at every call.
            value: dormant fraction since the snapshot before, in [0, 1]; what is not finite is a
                gap.
            context: what else is known: "dormant_by_chance", the share of living weights that
                passes by chance, and "decay_clock".

        Returns:
            The event if a rise is seen at this snapshot; its series has no name yet.

        Raises:
            ConfigurationError: the step does not come after that of the last snapshot.
        """
        self._history.require_later(step)
        context = context or {}
        clock = float(context.get("decay_clock", math.nan))
        stands_still = clock <= self._decay_clock  # False if one of them is not known
        self._decay_clock = clock
        if not math.isfinite(value):
            return None
        by_chance = float(context.get("dormant_by_chance", math.nan))
        expected = self._expected(by_chance)
        self._history.add(step, value)
        if self._ongoing is not None:
            self._end_if_back(value, by_chance, self._ongoing)
            return None
        share = 0.0 if stands_still or math.isnan(expected) else self._share(value, expected)
        self._num_above = self._num_above + 1 if share >= 1.0 else 0
        self.is_suspicious = share >= _SUSPICION
        if self._num_above < _IN_A_ROW and share < _IN_A_ROW:
            return None
        steps, values, _ = self._history.arrays()
        latest, noise = len(values) - self._num_above - 1, _LEAST_NOISE * self._min_effect
        onset = onset_of(steps, values, noise=noise, latest=max(latest, 0))
        self._ongoing, self._num_above = {"baseline": expected, "num_back": 0}, 0
        self.is_suspicious = False
        return _event(self._history, onset, direction="up", baseline=expected, decay_clock=clock)

    def state_dict(self) -> dict[str, Any]:
        """Everything that ``load_state_dict`` needs to go on, as plain JSON-able data."""
        return {
            "history": self._history.state_dict(),
            "ongoing": None if self._ongoing is None else dict(self._ongoing),
            "num_above": self._num_above,
            "decay_clock": _or_none(self._decay_clock),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            StateError: a key is missing, or the parts do not go together.
        """
        state = renamed(state, looks="history")
        expect_keys(state, _DORMANT_KEYS)
        history = SeriesHistory()
        history.load_state_dict(state["history"])
        self._history = history
        self._ongoing = None if state["ongoing"] is None else dict(state["ongoing"])
        self._num_above = int(state["num_above"])
        self._decay_clock = _or_nan(state["decay_clock"])
        self.is_suspicious = False

    def _end_if_back(self, value: float, by_chance: float, ongoing: dict[str, Any]) -> None:
        """Units die one after the other: it is one rise, unless the series comes back."""
        expected = max(ongoing["baseline"], 0.0 if math.isnan(by_chance) else by_chance)
        is_back = self._share(value, expected) < _SUSPICION
        ongoing["num_back"] = ongoing["num_back"] + 1 if is_back else 0
        if ongoing["num_back"] >= _IN_A_ROW:
            self._history.keep_settled()
            self._ongoing = None

    def _expected(self, by_chance: float) -> float:
        """What living weights alone would show; NaN as long as nothing says so."""
        values = self._history.values
        before = np.array(values[: len(values) - self._num_above])
        if not len(before):
            return math.nan
        floor = float((median_of_three(before) if len(before) > 2 else before).min())
        return floor if math.isnan(by_chance) else max(by_chance, floor)

    def _share(self, value: float, expected: float) -> float:
        """How much of what is required of a rise is there; 1 or more is all."""
        return (value - expected) / max(self._min_effect, (self._ratio - 1.0) * expected)
