"""What a detector is, what it remembers of its series, and how noise and onsets are estimated."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsitywatch.errors import Seam, StateError, expect, expect_mapping, expect_whole, is_number
from sparsitywatch.records import Event, from_data, to_json

Array = NDArray[np.float64]

#: Snapshots that show a level and its noise: of a baseline, and of what has settled.
FEW = 5
#: Snapshots that show a trend, or a bend, above their noise.
TREND = 8
#: The latest part of what has been seen that shows where it is now.
LATEST = 1 / 4
#: Half of a change bears it out at the snapshot before the last, since none is seen in one; half of
#: every requirement of an event makes a suspicion; and what has lost half of its peak is back.
HALF = 0.5
#: Normal score, and distance in standard deviations, that chance is not believed to reach.
SCORE = 4.5
#: Definition: standard deviations to each side of a 90 percent interval.
SIDES_90 = NormalDist().inv_cdf(0.95)
#: Definition: which way a change may go.
DIRECTIONS = ("up", "down", "both")
Context = Mapping[str, float] | None


class Detector(Seam, ABC):
    """Watches one series, fed in the order of the steps. Extend it to watch in a way of your own.

    ``update`` has to be written. Where all that is remembered is in ``memory``, a dataclass of
    numbers, texts and tuples, the state needs no code.
    """

    memory: Any
    #: Whether a series that was missing for some snapshots is a new one when it comes back.
    restarts_after_gap: bool = True

    @property
    def is_suspicious(self) -> bool:
        """Whether the last snapshot may become an event: the next one is then taken sooner."""
        return False

    @abstractmethod
    def update(self, step: int, value: float, context: Context = None) -> Event | None:
        """One more snapshot.

        Args:
            step: optimizer step, larger at every call.
            value: the series there; what is not finite is a gap.
            context: what else is known, by name: "lr" and "lr_clock", the learning rate and its sum
                over the steps; "decay_clock", the sum of learning rate times weight decay, and
                where that is not known "estimated_advance", what it advanced by since the last
                snapshot; "dormant_by_chance", the share of living weights that passes as dormant;
                "low" and "high", the ends of the value's 90 percent interval; "reliance", and
                "reliance_low", the lower end of its interval;
                "higher_is_better", 1 if a higher value of the proxy is better and 0 if not.

        Returns:
            The event if a change is seen at this snapshot; its series has no name yet.

        Raises:
            ConfigurationError: the step does not come after that of the last snapshot.
        """

    def state_dict(self) -> dict[str, Any]:
        """Everything that ``load_state_dict`` needs to go on, as plain JSON-able data."""
        return dict(json.loads(to_json(self.memory)))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            StateError: a part is missing, or the parts do not go together.
        """
        self.memory = from_data(type(self.memory), dict(state))


# ------------------------------------------------------------------ what is remembered of a series

#: Bound: recent snapshots that are all kept, and older ones that are left of the rest.
_RECENT, _OLDER = 96, 64
#: Bound: blocks are made twice as large when there are more of them: 64 to 128 stand for a run.
_MOST_BLOCKS = 128


@dataclass(frozen=True)
class View:
    """A series as a test reads it, one entry for each snapshot or block of them."""

    steps: Array  # abscissa, in steps
    values: Array
    rates: Array  # mean learning rate since the entry before; NaN where it is not known
    begins: NDArray[np.int64]  # first step that an entry stands for
    ends: NDArray[np.int64]  # and the last one; of snapshots the same array

    @property
    def is_of_blocks(self) -> bool:
        """Whether its entries are blocks of snapshots."""
        return self.begins is not self.ends


@dataclass(frozen=True)
class SeriesHistory:
    """A series so far: every recent snapshot, and older ones evenly spaced over the whole run."""

    width: int
    #: step, value, what is known beside it, and how many snapshots came before: [n, ``width``]
    rows: Array

    @classmethod
    def empty(cls, width: int) -> SeriesHistory:
        """Before the first snapshot."""
        return cls(width, np.empty((0, width)))

    def __post_init__(self) -> None:
        # columns lie in one piece, for a series is read far more often than it grows
        try:
            rows = np.asarray(self.rows, np.float64, order="F")
        except (TypeError, ValueError):
            rows = np.empty(1)
        if rows.shape[1:] != (self.width,) and rows.size:
            raise StateError(f"Expected rows of {self.width} numbers in a detector's state.")
        object.__setattr__(self, "rows", rows if rows.size else np.empty((0, self.width)))

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, step: float, value: float, *beside: float) -> SeriesHistory:
        """With one more snapshot."""
        before, num = self.rows, len(self.rows)
        rows = np.empty((num + 1, self.width), order="F")
        rows[:num] = before
        rows[num] = (step, value, *beside, before[-1, -1] + 1.0 if num else 0.0)
        if num >= 2 * _RECENT:
            places, stride = rows[:-_RECENT, -1], 1
            while np.count_nonzero(places % stride == 0.0) > _OLDER:
                stride *= 2
            rows = np.concatenate([rows[:-_RECENT][places % stride == 0.0], rows[-_RECENT:]])
        return SeriesHistory(self.width, rows)

    @property
    def last_step(self) -> int:
        """Of the last snapshot; -1 before there is one."""
        return int(self.rows[-1, 0]) if len(self.rows) else -1

    def latest(self, number: int) -> SeriesHistory:
        """The last ``number`` snapshots, at most all recent ones."""
        rows = self.rows[-min(number, _RECENT) :].copy()
        rows[:, -1] = np.arange(len(rows))
        return SeriesHistory(self.width, rows)

    def columns(self) -> Array:
        """Steps, values, and what is known beside them, as arrays."""
        columns: Array = self.rows.T
        return columns

    def view(self) -> View:
        """Of one beside which the learning rate is known."""
        steps, values, rates, _ = self.columns()
        at = steps.astype(np.int64)
        return View(steps, values, rates, at, at)


@dataclass(frozen=True)
class Blocks:
    """Averages over equal blocks of snapshots, 64 to 128 for the whole run."""

    size: int  # snapshots in a block, a power of two that doubles as the run grows
    #: first and last step, sums of the values and of the rates; the last one may be partial
    blocks: tuple[tuple[float, ...], ...]
    num_in_last: int

    @classmethod
    def of(cls, history: SeriesHistory) -> Blocks:
        """The blocks of what is remembered of a series."""
        blocks = cls(1, (), 1)
        for step, value, rate, _ in history.rows.tolist():
            blocks = blocks.add(step, value, rate)
        return blocks

    def add(self, step: float, value: float, rate: float) -> Blocks:
        """With one more snapshot."""
        if self.num_in_last < self.size:
            begin, _, *sums = self.blocks[-1]
            block = (begin, step, sums[0] + value, sums[1] + rate)
            return Blocks(self.size, (*self.blocks[:-1], block), self.num_in_last + 1)
        size, blocks = self.size, self.blocks
        if len(blocks) == _MOST_BLOCKS:
            size, pairs = 2 * size, zip(blocks[::2], blocks[1::2], strict=True)
            blocks = tuple((a[0], b[1], a[2] + b[2], a[3] + b[3]) for a, b in pairs)
        return Blocks(size, (*blocks, (step, step, value, rate)), 1)

    @property
    def has_completed(self) -> bool:
        """Whether the last snapshot completed a block of several."""
        return self.size > 1 and self.num_in_last == self.size

    def view(self) -> View:
        """The complete blocks, as arrays."""
        complete = self.blocks[: len(self.blocks) - (self.num_in_last < self.size)]
        begins, ends, values, rates = np.array(complete, np.float64).reshape(-1, 4).T
        return View(
            0.5 * (begins + ends), values / self.size, rates / self.size,
            begins.astype(np.int64), ends.astype(np.int64),
        )  # fmt: skip


def expect_direction(direction: str) -> None:
    """Refuse what is no direction, with a ConfigurationError."""
    is_known = isinstance(direction, str) and direction in DIRECTIONS
    expect(is_known, "direction", f"one of {DIRECTIONS}", direction)


#: What a context may tell, see ``Detector.update``.
_UNKNOWN = dict.fromkeys(
    ("lr", "lr_clock", "decay_clock", "estimated_advance", "dormant_by_chance", "low", "high",
     "reliance", "reliance_low", "higher_is_better"), math.nan,
)  # fmt: skip


@dataclass
class SeriesMemory:
    """What a detector remembers that follows its series snapshot by snapshot."""

    history: SeriesHistory
    decay_clock: float  # at the last snapshot; NaN if it is not known


class SeriesDetector(Detector):
    """What the detectors here have in common: a history, and the event of its last snapshot."""

    memory: SeriesMemory

    def update(self, step: int, value: float, context: Context = None) -> Event | None:
        """One more snapshot; see ``Detector.update``."""
        last, given = self.memory.history.last_step, {} if context is None else context
        expect_whole("step", step, 0)
        expect(step > last, "step", f"after {last}, the last snapshot", step)
        expect(is_number(value), "value", "a number, NaN for a gap", value)
        expect_mapping("context", given, "numbers by name")
        return self._seen(step, value, _UNKNOWN | {name: float(x) for name, x in given.items()})

    @abstractmethod
    def _seen(self, step: int, value: float, known: Mapping[str, float]) -> Event | None:
        """``update``, with all that a context may tell, NaN for what this one does not."""

    def _event(
        self, direction: str, baseline: float, onset: Iterable[float], **known: Any
    ) -> Event:
        """The event of the last snapshot, from the steps of its onset and of both ends of that."""
        at, low, high = map(int, onset)
        steps, values, *_ = self.memory.history.columns()
        noise = noise_sd(values[steps <= at])
        return Event(
            series="",
            direction=direction,
            onset_step=at,
            onset_low=low,
            onset_high=high,
            detected_step=int(steps[-1]),
            baseline=baseline,
            value=float(values[-1]),
            decay_clock=self.memory.decay_clock,
            **{"noise": noise, **known},
        )


# ------------------------------------------------------------------ a change that may be an event


@dataclass(frozen=True)
class Limits:
    """What is required of a change."""

    min_effect: float  # its smallest size, in units of the series
    ratio: float  # of a take-off to its running floor
    score: float  # smallest normal scores: of a jump, ...
    growth_score: float  # ... and of growth, at its only snapshot

    def part(self, share: float) -> Limits:
        """The same with ``share`` of every requirement."""
        parts = {name: share * value for name, value in vars(self).items()}
        return Limits(**{**parts, "ratio": 1.0 + share * (self.ratio - 1.0)})


@dataclass(frozen=True)
class Candidate:
    """A change that was not foreseen; size and noise of growth are in the logarithm."""

    direction: str  # "up" or "down"
    split: int  # snapshots since it began
    start: int  # index of the first snapshot of its baseline
    size: float
    score: float  # how certain it is, as a normal score
    noise: float  # standard deviation of a snapshot
    offset: float | None = None  # added before taking logarithms; None for a jump, which adds
    kind: str = "abrupt"  # of the event that it makes, or "steady"
    baseline: float = math.nan  # of a steady one: its floor

    def transformed(self, values: Array) -> Array:
        """The series in which the change is a step or a bend upward or downward."""
        return values if self.offset is None else np.log(values + self.offset)


@dataclass
class Course:
    """How large a change was since it was seen, and whether it is back."""

    peak: float  # largest size at two snapshots in a row; NaN before there are two
    last: float  # at the last snapshot
    low_step: int  # first of the snapshots in a row at which so much of the peak was gone; -1: none

    def is_back(self, step: int, size: float, left: float = HALF) -> bool:
        """After one more snapshot: whether at two in a row ``left`` of the peak is left at most."""
        self.peak = float(np.fmax(self.peak, min(size, self.last)))
        self.last = size
        was_low = self.low_step >= 0
        if not (self.peak > 0.0 and size <= left * self.peak):
            self.low_step = -1
        elif not was_low:
            self.low_step = step
        return was_low and self.low_step >= 0


# ------------------------------------------------------------------ level and noise


def normal_score(t: Any, freedom: Any) -> Any:
    """The score of a normal variable as unlikely as Student's t, numbers or arrays (Wallace 1959).

    >>> round(float(normal_score(2.015, 5)), 2)  # 0.95 of t are below, of a normal one below 1.645
    1.64
    """
    size = np.sqrt(freedom * np.log1p(t * t / freedom))
    return np.copysign(size * (8.0 * freedom + 1.0) / (8.0 * freedom + 3.0), t)


#: Definition: standard deviation of a normal sample, in its median absolute deviation.
MAD_TO_SD = 1.0 / NormalDist().inv_cdf(0.75)


def median_of_three(values: Array) -> Array:
    """Each value replaced by the median of itself and the two before: no lone spikes."""
    before = np.concatenate([values[:1], values[:1], values])
    low, high = np.minimum(before[:-2], before[1:-1]), np.maximum(before[:-2], before[1:-1])
    found: Array = np.maximum(low, np.minimum(high, values), dtype=np.float64)
    return found


def noise_sd(values: Array) -> float:
    """Standard deviation of single values, trends and jumps left out; NaN of fewer than five."""
    if len(values) < FEW:
        return math.nan
    # second differences see through any smooth trend, those farther apart see noise that wanders
    sizes = [MAD_TO_SD * median_of(np.abs(np.diff(values, 2))) / math.sqrt(6)]
    for lag in (1, 2, 4):
        if len(values) >= 3 * lag + 2:
            wander = values[lag:] - values[:-lag]
            mad = median_of(np.abs(wander - median_of(wander)))
            sizes.append(MAD_TO_SD * mad / math.sqrt(2))
    return max(sizes)


def median_of(values: Array) -> float:
    """The median, in a tenth of the time that numpy takes for a short series."""
    ordered = np.sort(values)
    return float(0.5 * (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]))


# ------------------------------------------------------------------ when a change began

#: Guard: correlation of neighbouring residuals is allowed for up to this one.
_MOST_CORRELATED = 0.9


def onset_of(
    x: Array,
    y: Array,
    *,
    noise: float,
    first: int = 0,
    latest: int | None = None,
    direction: str = "up",
    multiplies: bool = False,
) -> tuple[int, int, int]:
    """Index of the last snapshot before the change, and both ends of the interval it lies in."""
    # ``latest`` at most, by default the one before the last two. Fitted, from ``first`` on, are a
    # line before the change and a bend or a step after it
    last = max(min(len(y) - 3 if latest is None else latest, len(y) - 2) - first, 0)
    z = (x[first:] - x[first]) / (x[-1] - x[first])
    y = y[first:] if direction == "up" else -y[first:]
    candidates = np.arange(min(1, last), last + 1)
    fits = [_left_by_fits(z, y, int(k), multiplies=multiplies) for k in candidates]
    place = int(np.argmin([min(map(_power, plain)) for plain, _ in fits]))
    # the interval holds the onsets whose fit is not clearly worse (90 percent, profile likelihood);
    # correlated residuals make it wider, and no fit can beat the noise of a snapshot
    best = [min((*plain, *gentle), key=_power) for plain, gentle in fits]
    errors = np.array([_power(left) for left in best])
    least = int(errors.argmin())
    variance = max(noise**2, float(errors[least]) / max(len(y) - 4, 1), 1e-300)
    rho = correlation_of(best[least], noise)
    is_inside = (errors - errors[least]) / variance <= SIDES_90**2 * (1.0 + rho) / (1.0 - rho)
    is_inside[place] = True
    inside = candidates[is_inside]
    return first + int(candidates[place]), first + int(inside[0]), first + int(inside[-1])


def _left_by_fits(
    z: Array, y: Array, k: int, *, multiplies: bool
) -> tuple[list[Array], list[Array]]:
    """What fits with a bend or a step after snapshot ``k`` leave, and those with gentler bends."""
    ones = np.ones_like(z)
    bend, step = np.maximum(z - z[k], 0.0), (z > z[k]).astype(np.float64)
    line = [ones, z] if k >= 2 else [ones]
    bends = [np.stack([*line, shape], axis=1) for shape in (bend, bend**2, bend**3)]
    plain, *gentle = (_left(design, y) for design in bends)
    if multiplies:
        level = np.exp(median_of_three(y))  # of a fall it is that of the reciprocal
        gentle += [_left(design / level[:, None], np.exp(y) / level) for design in bends]
    return [plain, _left(np.stack([*line, step], axis=1), y)], gentle


def _power(left: Array) -> float:
    return float(left @ left)


def _left(design: Array, y: Array) -> Array:
    """What the fit leaves, its last column not being used if that would go down."""
    fit = np.linalg.lstsq(design, y, rcond=None)[0]
    if fit[-1] < 0.0:
        design = design[:, :-1]
        fit = np.linalg.lstsq(design, y, rcond=None)[0]
    return np.asarray(y - design @ fit)


def correlation_of(left: Array, noise: float) -> float:
    """Of neighbouring residuals, between 0 and a limit; what is rounding beside the noise is 0."""
    power = _power(left)
    if len(left) < FEW or power <= len(left) * (1e-3 * noise) ** 2:
        return 0.0
    rho = float(left[1:] @ left[:-1]) / power + 1.0 / len(left)
    return min(max(rho, 0.0), _MOST_CORRELATED)
