"""The detector of any series: when the tests for jumps and for growth are asked, and what of.

A series goes in, one snapshot at a time, and at some snapshots an event comes out. The tests have
files of their own, as has what is remembered between snapshots.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from sparsitywatch.analysis.detect.change import (
    FEW,
    LATEST,
    SUSPICION,
    TREND,
    Candidate,
    Limits,
    is_left_by_rate,
    onset_of,
)
from sparsitywatch.analysis.detect.growth import FALL, RISE, grown, multiplied
from sparsitywatch.analysis.detect.history import (
    BlockHistory,
    SeriesHistory,
    View,
    event_of,
    or_nan,
    or_none,
)
from sparsitywatch.analysis.detect.jumps import MIN_SNAPSHOTS, Jumps
from sparsitywatch.errors import (
    expect,
    expect_keys,
    expect_mapping,
    expect_number,
    expect_whole,
    is_number,
)
from sparsitywatch.records import Event

__all__ = ["AbruptChange", "Detector"]

#: A change goes on while the latest snapshots since its onset still add this part of its size.
_SETTLING_SHARE = 0.1


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


# ------------------------------------------------------------------ abrupt changes

_DIRECTIONS = ("up", "down", "both")
#: Smallest scores at one false alarm per 1000 snapshots, from benchmarks/detecting/calibration.py.
_JUMP_SCORE, _GROWTH_SCORE, _CAUSED_SCORE = 3.4, 3.0, 1.5
#: What each factor of ten less adds to them, for jumps and for growth.
_RARER_JUMP, _RARER_GROWTH = 0.8, 0.5
#: Snapshots at the start of a run that jumps are not looked for in: a start is violent.
_SKIPPED = 4
_ABRUPT_KEYS = (
    "history", "jumps", "ongoing", "num_skipped", "lr_clock", "decay_clock", "decayed"
)  # fmt: skip


@dataclass(frozen=True)
class _Ongoing:
    """A change that is an event already, until it is over.

    Args:
        direction: "up" or "down".
        baseline: level before it.
        span: entries of the view that it was seen in, snapshots or blocks, that show whether it
            goes on.
        is_in_blocks: whether these are blocks.
        seen_step: the snapshot at which it was seen; a long span lies after it.
    """

    direction: str
    baseline: float
    span: int = FEW
    is_in_blocks: bool = False
    seen_step: int = -1

    def is_over(self, view: View) -> bool:
        """Whether the latest entries add little to it."""
        sign = 1.0 if self.direction == "up" else -1.0
        if self.span > FEW and not view.begins[-self.span :][0] > self.seen_step:
            return False
        recent = view.values[-self.span :]
        size = sign * (float(np.median(recent)) - self.baseline)
        # medians where one entry's noise would decide
        ends = max(int(LATEST * len(recent)), 1)
        added = sign * float(np.median(recent[-ends:]) - np.median(recent[:ends]))
        return added < _SETTLING_SHARE * max(size, 0.0)


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
            jump_score=_JUMP_SCORE + _RARER_JUMP * rarity,
            growth_score=_GROWTH_SCORE + _RARER_GROWTH * rarity,
            caused_score=_CAUSED_SCORE + _RARER_GROWTH * rarity,
        )
        self._suspicion = self._limits.part(SUSPICION)
        self._direction = direction
        self._history, self._blocks, self._jumps = SeriesHistory(), BlockHistory(), Jumps()
        self._ongoing: _Ongoing | None = None
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
        return any(self._growths(self._history.view(), self._suspicion))

    def update(
        self, step: int, value: float, context: Mapping[str, float] | None = None
    ) -> Event | None:
        """One more snapshot.

        Args:
            step: optimizer step, larger at every call.
            value: the series there; what is not finite is a gap.
            context: what else is known: "lr" and "lr_clock", the learning rate and its sum over
                the steps, and "decay_clock", the sum of learning rate times weight decay; where
                that is not known "estimated_advance", what it advanced by since the last snapshot.

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
        rate = self._advance(step, context or {})
        self._history.add(step, value, rate)
        completes_block = self._blocks.add(step, value, rate)
        if self._ongoing is not None:
            self._end_if_over(self._ongoing, completes_block=completes_block)
            return None
        view = self._history.view()
        event = self._first_event(self._candidates(view), view)
        if event is None and completes_block:
            blocks = self._blocks.view()
            found = self._left_by_rate(self._growths(blocks, self._limits), blocks)
            event = self._first_event(found, blocks)
        return event

    def state_dict(self) -> dict[str, Any]:
        """Everything that ``load_state_dict`` needs to go on, as plain JSON-able data."""
        return {
            "history": self._history.state_dict(),
            "blocks": self._blocks.state_dict(),
            "jumps": self._jumps.state_dict(),
            "ongoing": None if self._ongoing is None else asdict(self._ongoing),
            "num_skipped": self._num_skipped,
            "lr_clock": or_none(self._lr_clock),
            "decay_clock": or_none(self._decay_clock),
            "decayed": self._decayed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            StateError: a key is missing, or the parts do not go together.
        """
        expect_keys(state, _ABRUPT_KEYS)
        history, jumps = SeriesHistory(), Jumps()
        history.load_state_dict(state["history"])
        jumps.load_state_dict(state["jumps"])
        blocks = BlockHistory.of(history)
        if "blocks" in state:  # missing in older states
            blocks.load_state_dict(state["blocks"])
        self._history, self._blocks, self._jumps = history, blocks, jumps
        self._ongoing = None if state["ongoing"] is None else _Ongoing(**state["ongoing"])
        self._num_skipped = int(state["num_skipped"])
        self._lr_clock = or_nan(state["lr_clock"])
        self._decay_clock = or_nan(state["decay_clock"])
        self._decayed = float(state["decayed"])

    def _advance(self, step: int, context: Mapping[str, float]) -> float:
        """Follow both clocks; returns the mean learning rate since the last snapshot."""
        clock = float(context.get("decay_clock", math.nan))
        advance, self._decay_clock = clock - self._decay_clock, clock
        if math.isnan(clock) and self._history.steps:  # as much of it as could be seen
            advance = float(context.get("estimated_advance", math.nan))
        self._decayed += advance if advance > 0.0 else 0.0  # NaN where it is not known
        # weights that decay alone shrinks multiply near-zero ones by exp(clock) at most
        self._is_decaying = self._decayed >= math.log(self._limits.ratio)
        clock = float(context.get("lr_clock", math.nan))
        before, self._lr_clock = self._lr_clock, clock
        if self._history.steps and math.isfinite(clock - before):
            return (clock - before) / (step - self._history.steps[-1])
        return float(context.get("lr", math.nan))

    def _first_event(self, found: list[Candidate], view: View) -> Event | None:
        """The event of the first change that makes one; from then on it is going on."""
        for candidate in found:
            event = self._event(candidate, view)
            if event is not None:
                self._jumps = Jumps()
                return event
        return None

    def _end_if_over(self, ongoing: _Ongoing, *, completes_block: bool) -> None:
        """Look for the next change once this one is over: a new level, a new baseline."""
        if ongoing.is_in_blocks and not completes_block:
            return
        if not ongoing.is_over((self._blocks if ongoing.is_in_blocks else self._history).view()):
            return
        self._history.keep(ongoing.span * (self._blocks.size if ongoing.is_in_blocks else 1))
        self._blocks = BlockHistory.of(self._history)
        self._ongoing, self._num_skipped, self._decayed = None, 0, 0.0

    def _candidates(self, view: View) -> list[Candidate]:
        """The most certain change of each kind, if the rate does not account for it."""
        limits, found = self._limits, []
        values = view.values
        if len(values) - self._num_skipped >= MIN_SNAPSHOTS:
            jumps = self._jumps.update(view.steps, values, limits, num_skipped=self._num_skipped)
            found.append([jump for jump in jumps if self._direction in (jump.direction, "both")])
        left = self._left_by_rate([*found, *self._growths(view, limits)], view)
        may_decay = self._is_decaying and self._direction != "down"
        if not left and may_decay and values[-1] - values.min() >= limits.min_effect:
            # where decay is the cause the rate is not
            return multiplied(view.steps, values, limits.ratio)
        return left

    def _left_by_rate(self, found: list[list[Candidate]], view: View) -> list[Candidate]:
        """The first of each kind, if the learning rate does not account for it."""
        left = []
        for seen in found:
            if seen:
                is_jump = seen[0].offset is None
                least = self._limits.min_effect if is_jump else RISE.min_excess
                if is_left_by_rate(seen[0], view.steps, view.values, view.rates, least):
                    left.append(seen[0])
        return left

    def _growths(self, view: View, limits: Limits) -> list[list[Candidate]]:
        """Take-offs and falls, where the series has moved far enough for one."""
        values = view.values
        low, high, found = float(values.min()), float(values.max()), []
        for kind, moved in ((RISE, values[-1] - low), (FALL, high - values[-1])):
            is_watched = low >= 0.0 and self._direction in (kind.direction, "both")
            if is_watched and moved >= limits.min_effect:
                is_decaying = self._is_decaying
                found.append(grown(kind, view.steps, values, limits, is_decaying=is_decaying))
        return found

    def _event(self, candidate: Candidate, view: View) -> Event | None:
        """The event, if it is of a size that matters."""
        if candidate.kind == "steady":
            first = candidate.start
            onset, low, high, baseline = first, first, len(view.values) - 2, candidate.baseline
        else:
            onset, low, high, view = self._onset(candidate, view)
            before = view.values[max(0, onset - FEW + 1) : onset + 1]
            baseline = float(np.median(before))
        latest = view.values[-1]
        size = latest - baseline if candidate.direction == "up" else baseline - latest
        if size < self._limits.min_effect:
            return None
        span = max(FEW, math.ceil(LATEST * (len(view.values) - onset)))
        is_in_blocks, now = view.begins is not view.ends, self._history.steps[-1]
        self._ongoing = _Ongoing(candidate.direction, baseline, span, is_in_blocks, now)
        return event_of(
            self._history,
            (int(view.ends[onset]), int(view.begins[low]), int(view.ends[high])),
            kind=candidate.kind,
            direction=candidate.direction,
            baseline=baseline,
            decay_clock=self._decay_clock,
        )

    def _onset(self, candidate: Candidate, view: View) -> tuple[int, int, int, View]:
        """Where the change began, both ends of its interval, and the view that these are in.

        Growth over many blocks is looked for among them: snapshots are all there only for a while.
        """
        first, noise, is_growth = candidate.start, candidate.noise, candidate.offset is not None
        if is_growth and view.begins is view.ends and self._blocks.size > 1:
            blocks = self._blocks.view()
            since = view.ends[len(view.values) - candidate.split - 1]
            if np.count_nonzero(blocks.begins > since) >= TREND:
                first = int(np.searchsorted(blocks.ends, view.begins[first]))
                view, noise = blocks, noise / math.sqrt(self._blocks.size)
        onset, low, high = onset_of(
            view.steps[first:],
            candidate.transformed(view.values)[first:],
            noise=noise,
            latest=len(view.values) - 3 - first,
            direction=candidate.direction,
            multiplies=is_growth,
        )
        return first + onset, first + low, first + high, view
