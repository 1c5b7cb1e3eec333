"""The detector of any series: when it is looked at for jumps, for take-offs and for falls."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import mul
from statistics import NormalDist

import numpy as np

from sparsitywatch.analysis.detect.detector import (
    FEW,
    HALF,
    LATEST,
    SCORE,
    TREND,
    Array,
    Blocks,
    Candidate,
    Limits,
    SeriesDetector,
    SeriesHistory,
    SeriesMemory,
    View,
    expect_direction,
    median_of_three,
    noise_sd,
    normal_score,
    onset_of,
)
from sparsitywatch.analysis.detect.jumps import MIN_SNAPSHOTS, NO_JUMPS, Jumps
from sparsitywatch.errors import expect_number, expect_whole
from sparsitywatch.records import Event

#: A change goes on while the latest snapshots since its onset still add this part of its size.
_SETTLING_SHARE = 0.1
#: Snapshots at the start of a run that jumps are not looked for in: a start is violent.
_SKIPPED = 4


def in_family(score: float, number: int) -> float:
    """The score that one of several chances needs to be as rare as one alone (Bonferroni)."""
    return -NormalDist().inv_cdf(0.5 * math.erfc(score / math.sqrt(2.0)) / number)


@dataclass(frozen=True)
class Ongoing:
    """A change that is an event already, until it is over."""

    direction: str  # "up" or "down"
    baseline: float  # level before it
    span: int  # entries, snapshots or blocks, that show whether it goes on
    is_in_blocks: bool
    seen_step: int  # the snapshot at which it was seen; a long span lies after it

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


@dataclass
class AbruptMemory(SeriesMemory):
    """What ``AbruptChange`` remembers; beside the history stand the learning rates."""

    past: SeriesHistory  # before that, up to the end of the last change: how it answers to rates
    blocks: Blocks
    jumps: Jumps
    ongoing: Ongoing | None
    num_skipped: int  # snapshots at the start that jumps are not looked for in
    lr_clock: float
    decayed: float  # what the decay clock advanced by since the last event was over


class AbruptChange(SeriesDetector):
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
        family: how many series are watched as one, this one included. Each must be the more
            certain, so that all together alarm no more often by chance than one alone does.

    Raises:
        ConfigurationError: an argument is out of range.

    >>> detector = AbruptChange(min_effect=0.01)
    >>> series = [0.05] * 10 + [0.06, 0.08, 0.11, 0.15]
    >>> events = [detector.update(25 * i, value) for i, value in enumerate(series)]
    >>> [(e.direction, e.onset_step, e.detected_step) for e in events if e]
    [('up', 225, 300)]
    """

    memory: AbruptMemory

    def __init__(
        self,
        min_effect: float = 0.01,
        *,
        ratio: float = 1.5,
        direction: str = "both",
        family: int = 1,
    ) -> None:
        what = "finite and positive, in units of the series (0.01: one point of a fraction)"
        expect_number("min_effect", min_effect, lambda x: 0.0 < x < math.inf, what)
        what = "finite and above 1 (1.5: a rise by half)"
        expect_number("ratio", ratio, lambda x: 1.0 < x < math.inf, what)
        expect_direction(direction)
        expect_whole("family", family, 1)
        scores = (in_family(score, family) for score in (SCORE, GROWTH_SCORE))
        self._limits = Limits(float(min_effect), float(ratio), *scores)
        self._direction = direction
        history = SeriesHistory.empty(4)
        self.memory = AbruptMemory(
            history, math.nan, history, Blocks.of(history), NO_JUMPS, None, _SKIPPED, math.nan, 0.0
        )

    @property
    def is_suspicious(self) -> bool:
        """Whether the last snapshot may become an event.

        No model foresaw it, though it is alone so far; or it met half of every requirement of a
        take-off or a fall.
        """
        memory = self.memory
        if memory.ongoing is not None or not memory.history:
            return False
        if memory.jumps.surprise >= self._limits.score:
            return True
        return bool(self._growths(memory.history.view(), self._limits.part(HALF)))

    def _seen(self, step: int, value: float, known: Mapping[str, float]) -> Event | None:
        if not math.isfinite(value):
            return None
        memory, rate = self.memory, self._advance(step, known)
        memory.history = memory.history.add(step, value, rate)
        memory.blocks = memory.blocks.add(step, value, rate)
        if memory.ongoing is not None:
            self._end_if_over(memory.ongoing)
            return None
        views = [memory.history.view()]
        if memory.blocks.has_completed:
            views.append(memory.blocks.view())
        for view in views:
            for candidate in self._candidates(view):
                event = self._event_of(candidate, view)
                if event is not None:
                    memory.jumps = NO_JUMPS
                    return event
        return None

    @property
    def _is_decaying(self) -> bool:
        """Whether decay can account for a take-off: it multiplies by exp(clock) at most."""
        return self.memory.decayed >= math.log(self._limits.ratio)

    def _advance(self, step: int, known: Mapping[str, float]) -> float:
        """Follow both clocks; returns the mean learning rate since the last snapshot."""
        memory, last, clock = self.memory, self.memory.history.last_step, known["decay_clock"]
        advance = clock - memory.decay_clock
        if math.isnan(clock) and last >= 0:  # as much of it as could be seen
            advance = known["estimated_advance"]
        memory.decayed += advance if advance > 0.0 else 0.0  # NaN: not known
        passed = known["lr_clock"] - memory.lr_clock
        memory.decay_clock, memory.lr_clock = clock, known["lr_clock"]
        # a mean over weights goes back where more of them come into training
        is_known = last >= 0 and 0.0 <= passed < math.inf
        return passed / (step - last) if is_known else known["lr"]

    def _end_if_over(self, ongoing: Ongoing) -> None:
        """Look for the next change once this one is over: a new level, a new baseline."""
        memory, blocks = self.memory, self.memory.blocks
        if ongoing.is_in_blocks and not blocks.has_completed:
            return
        if ongoing.is_over((blocks if ongoing.is_in_blocks else memory.history).view()):
            number = ongoing.span * (blocks.size if ongoing.is_in_blocks else 1)
            latest = memory.history.latest(number)
            for step, *row, _ in memory.history.rows[: -len(latest)].tolist():
                memory.past = memory.past.add(step, *row)
            memory.history = latest
            memory.blocks = Blocks.of(memory.history)
            memory.ongoing = None
            memory.num_skipped = 0
            memory.decayed = 0.0

    def _candidates(self, view: View) -> list[Candidate]:
        """The most certain change of each kind, if the rate does not account for it."""
        limits, values = self._limits, view.values
        found = [*self._jumps(view), *self._growths(view, limits)]
        left = [change for change in found if is_left_by_rate(change, view, limits.min_effect)]
        can_decay = self._is_decaying and self._direction != "down" and not view.is_of_blocks
        if not left and can_decay and values[-1] - values.min() >= limits.min_effect:
            # where decay is the cause the rate is not
            risen = multiplied(view.steps, values, limits.ratio)
            left = [] if risen is None else [risen]
        if not left or not self.memory.past:
            return left
        rows = np.concatenate([self.memory.past.rows, self.memory.history.rows])
        past = SeriesHistory(4, rows).view()
        return [one for one in left if is_left_by_past(one, view, past, limits.min_effect)]

    def _jumps(self, view: View) -> list[Candidate]:
        """The most certain jump, if there is one; they are looked for in single snapshots."""
        skipped, values = self.memory.num_skipped, view.values
        if len(values) - skipped < MIN_SNAPSHOTS or np.ptp(values) == 0.0 or view.is_of_blocks:
            return []
        self.memory.jumps, seen = self.memory.jumps.update(
            view.steps, values, self._limits, num_skipped=skipped
        )
        return [jump for jump in seen if self._direction in (jump.direction, "both")][:1]

    def _growths(self, view: View, limits: Limits) -> list[Candidate]:
        """A take-off or a fall, where the series has moved far enough for one."""
        values, is_decaying = view.values, self._is_decaying
        low, high, found = float(values.min()), float(values.max()), []
        for kind, moved in ((RISE, values[-1] - low), (FALL, high - values[-1])):
            is_watched = low >= 0.0 and self._direction in (kind.direction, "both")
            if is_watched and moved >= limits.min_effect:
                found.append(grown(kind, view.steps, values, limits, is_decaying=is_decaying))
        return [growth for growth in found if growth is not None]

    def _event_of(self, candidate: Candidate, view: View) -> Event | None:
        """The event, if it is of a size that matters."""
        if candidate.kind == "steady":
            first = candidate.start
            onset, low, high, baseline = first, first, len(view.values) - 2, candidate.baseline
        else:
            (onset, low, high), view = self._onset(candidate, view)
            baseline = float(np.median(view.values[max(0, onset - FEW + 1) : onset + 1]))
        size = view.values[-1] - baseline
        if (size if candidate.direction == "up" else -size) < self._limits.min_effect:
            return None
        span = max(FEW, math.ceil(LATEST * (len(view.values) - onset)))
        now = self.memory.history.last_step
        self.memory.ongoing = Ongoing(candidate.direction, baseline, span, view.is_of_blocks, now)
        steps = view.ends[onset], view.begins[low], view.ends[high]
        return self._event(candidate.direction, baseline, steps, kind=candidate.kind)

    def _onset(self, candidate: Candidate, view: View) -> tuple[tuple[int, int, int], View]:
        """Where the change began, both ends of its interval, and the view that these are in."""
        first, noise, is_growth = candidate.start, candidate.noise, candidate.offset is not None
        size = self.memory.blocks.size
        if is_growth and not view.is_of_blocks and size > 1:
            blocks = self.memory.blocks.view()
            since = view.ends[len(view.values) - candidate.split - 1]
            if np.count_nonzero(blocks.begins > since) >= TREND:
                first = int(np.searchsorted(blocks.ends, view.begins[first]))
                view, noise = blocks, noise / math.sqrt(size)
        y, way = candidate.transformed(view.values), candidate.direction
        found = onset_of(
            view.steps, y, noise=noise, first=first, direction=way, multiplies=is_growth
        )
        return found, view


# ------------------------------------------------------------------ take-offs and falls
#
# Growth that the whole run before it, continued, does not explain. A near-zero fraction that takes
# off does not jump. It leaves its floor and grows over tens of snapshots. A trend fitted to the
# latest snapshots follows it, so that no single one is a surprise. What makes it abrupt is the run
# before. So the last snapshots are compared with what everything before a *split* explains,
# continued to now. Many splits are tried, because nobody knows how long ago the growth began. All
# of it is in logarithms: growth multiplies.

#: Where weight decay can account for it, growth to this power of the ratio is an event however
#: evenly it came about.
_TIMES_EVEN = 1.5
#: Such growth is steady if no bend makes it steeper by this factor.
_STEEPER = 2.0
#: Grid: bends that are tried, at these parts of its time.
_BENDS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
#: Noise of a single snapshot's logarithm before any is seen, and the snapshots it is worth.
_PRIOR_SD, _PRIOR_SNAPSHOTS = 0.03, 6.0
#: Smallest normal score of growth, if there were one snapshot to see it in.
GROWTH_SCORE = 3.0
#: Distance from the floor, in units of a snapshot's noise, at which it is reached.
_AT_FLOOR = 2.0
#: A parabola explains growth only if its bend is this many standard errors large.
_BENT = 3.0


@dataclass(frozen=True)
class Growth:
    """What counts as growth; a fall is growth of the reciprocals."""

    direction: str  # "up" or "down"
    splits: tuple[int, ...]  # snapshots since it began that are tried
    min_past: int  # snapshots before it without which there is nothing to compare with
    ratio: float | None = None  # of the last value to the running floor; None: that of the limits


#: Grid: snapshots since a rise began that are tried: it grows over any time.
_RISE_SPLITS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96)
#: Those since a fall: what falls for longer decays, and that is not abrupt.
_FALL_SPLITS = tuple(split for split in _RISE_SPLITS if split <= TREND)
#: It can be seen after so few snapshots.
RISE = Growth("up", _RISE_SPLITS, min_past=3)
#: A fall is one by a fifth of the level, and of what the past explains.
FALL = Growth("down", _FALL_SPLITS, min_past=FEW, ratio=1.25)


def grown(
    kind: Growth, steps: Array, values: Array, limits: Limits, *, is_decaying: bool = False
) -> Candidate | None:
    """Growth since the split at which it is clearest that the past does not explain it, if any."""
    offset = limits.min_effect if values.min() == 0.0 else 0.0  # the smallest size that counts
    y = values + offset if kind is RISE else 1.0 / (values + offset)
    ratio = kind.ratio or limits.ratio
    if len(y) < kind.min_past + 2:
        return None
    smooth = median_of_three(y)
    floor = float(smooth[:-2].min())
    if y[-1] < ratio * floor or y[-2] < ratio**HALF * floor:
        return None
    # chance has been tried at every snapshot; what weight decay can account for needs less proof
    threshold = 0.0 if is_decaying else in_family(limits.growth_score, len(y))
    found, logs = [], np.log(y)
    for split in kind.splits:
        past = len(y) - split
        if past < kind.min_past or steps[past - 1] - steps[0] < HALF * (steps[-1] - steps[0]):
            break  # half of the run so far has to lie before
        if offset and kind is RISE and split > FALL.splits[-1]:
            break  # what creeps up from zero is not abrupt
        growth = _at_split(kind, steps, logs, past, offset)
        if growth is not None and growth.score >= threshold:
            found.append(growth)
    return max(found, key=lambda growth: growth.score, default=None)


def multiplied(steps: Array, values: Array, ratio: float) -> Candidate | None:
    """The take-off that went so far that it is one, however evenly, if decay is a cause."""
    if len(values) < RISE.min_past + 2 or values.min() <= 0.0:
        return None
    smooth = median_of_three(values)
    lowest = int(smooth[:-2].argmin())
    floor = float(smooth[lowest])
    logs = np.log(values)
    at_floor = np.flatnonzero(logs[:-2] <= math.log(floor) + _AT_FLOOR * _noise(logs))
    if values[-2:].min() < ratio**_TIMES_EVEN * floor or not len(at_floor):
        return None
    past = max(int(at_floor[-1]) + 1, RISE.min_past)
    noise = _noise(logs[:past])
    excess = math.log(values[-1] / floor)
    if excess < SCORE * noise:
        return None
    split, score = len(values) - past, excess / noise
    first = int(np.argmax(np.log(smooth) <= math.log(floor) + _AT_FLOOR * noise))
    if _is_even(steps[first:], values[first:]):
        return Candidate("up", split, lowest, excess, score, noise, 0.0, "steady", floor)
    start = past - RISE.min_past  # before it lies what is no part of this growth
    return Candidate("up", split, start, excess, score, noise, 0.0)


def _is_even(steps: Array, values: Array) -> bool:
    """Whether no bend makes the growth much steeper, in the values or in their logarithm."""
    if len(values) < TREND:
        return False
    x = (steps - steps[0]) / (steps[-1] - steps[0])
    return any(_steepening(x, y) < _STEEPER for y in (values, np.log(values)))


def _steepening(x: Array, y: Array) -> float:
    """How many times steeper a series is after the bend that fits it best than before it."""
    best, found = math.inf, 1.0
    for place in _BENDS:
        design = np.stack([np.ones_like(x), x, np.maximum(x - place, 0.0)], axis=1)
        fit = np.linalg.lstsq(design, y, rcond=None)[0]
        error = float(np.square(y - design @ fit).sum())
        if error < best:
            before, after = float(fit[1]), float(fit[1] + fit[2])
            best, found = error, after / before if before > 0.0 else math.inf
    return found


def _at_split(
    kind: Growth, steps: Array, logs: Array, past: int, offset: float
) -> Candidate | None:
    """The growth since snapshot ``past``, unless what was before explains it."""
    before = _Past(kind.min_past, steps[:past].tobytes(), logs[:past].tobytes())
    needed = max(SCORE * before.noise, math.log(kind.ratio or 1.0))
    freedom = past - before.start + _PRIOR_SNAPSHOTS - 2
    first, last, score = math.inf, math.inf, math.inf  # in logarithms above what each fit explains
    for fit in before.fits:
        first = min(first, logs.item(-2) - fit.forecast(steps.item(-2))[0])
        explained, sd = fit.forecast(steps.item(-1))
        last = min(last, logs.item(-1) - explained)
        if last < needed:
            return None
        score = min(score, float(normal_score(last / sd, freedom)))
    if first < HALF * last:
        return None
    start, noise = before.start, before.noise
    return Candidate(kind.direction, len(logs) - past, start, last, score, noise, offset)


@functools.lru_cache(maxsize=1024)  # the next snapshots ask the same of it at longer splits
class _Past:
    """What the snapshots before a split explain."""

    def __init__(self, min_past: int, abscissa: bytes, logarithms: bytes) -> None:
        steps, logs = np.frombuffer(abscissa), np.frombuffer(logarithms)
        smooth, noise = median_of_three(logs), _noise(logs)
        # where it had come down to its floor, as far as can be told
        start = int(np.argmax(logs <= smooth.min() + _AT_FLOOR * noise))
        self.start = min(start, len(logs) - min_past)
        self.noise = max(noise, _noise(logs[self.start :]))
        size = len(logs) - self.start
        recent = len(logs) - min(size, max(FEW, int(LATEST * size)))
        fits = [
            _Fit.of(steps[first:], smooth[first:], degree, self.noise)
            for first, degree in ((recent, 0), (self.start, 1), (self.start, 2))
        ]
        self.fits = [fit for fit in fits if fit is not None]


def _noise(logs: Array) -> float:
    """Of a single snapshot, drawn towards what is usual where few have been seen."""
    seen = noise_sd(logs)
    nu, square = (0, 0.0) if math.isnan(seen) else (len(logs) - 2, seen**2)
    return math.sqrt((_PRIOR_SNAPSHOTS * _PRIOR_SD**2 + nu * square) / (_PRIOR_SNAPSHOTS + nu))


@dataclass(frozen=True)
class _Fit:
    """A level, a line or a parabola: plain numbers, since they are few and asked often."""

    center: float
    width: float
    coefficients: list[float]
    inverse: list[list[float]]  # of their gram matrix
    sd: float  # of a snapshot

    @classmethod
    def of(cls, x: Array, smooth: Array, degree: int, noise: float) -> _Fit | None:
        """To some snapshots; None where it explains no growth."""
        n = len(x)
        if degree == 2 and n < TREND:
            return None
        center, width = float(x[-1]), max(float(x[-1] - x[0]), 1e-12)
        design = ((x[:, None] - center) / width) ** np.arange(degree + 1)
        inverse = np.linalg.inv(design.T @ design)
        fit = inverse @ (design.T @ smooth)
        residuals = smooth - design @ fit
        sd = max(noise, math.sqrt(float(residuals @ residuals) / max(n - degree - 1, 1)))
        if degree == 1 and fit[1] <= 0.0:
            return None
        if degree == 2 and not fit[2] > _BENT * sd * math.sqrt(inverse[2, 2]):
            return None
        return cls(center, width, fit.tolist(), inverse.tolist(), sd)

    def forecast(self, step: float) -> tuple[float, float]:
        """What it explains there, and the standard deviation of that with that of a snapshot."""
        powers = [((step - self.center) / self.width) ** k for k in range(len(self.coefficients))]
        leverage = sum(map(mul, powers, (sum(map(mul, row, powers)) for row in self.inverse)))
        return sum(map(mul, self.coefficients, powers)), self.sd * math.sqrt(1.0 + leverage)


# ------------------------------------------------------------------ what the learning rate leaves
#
# A series may answer to the learning rate at once or with a memory of many snapshots. What such an
# answer of a usual size can account for is no change.

#: Standard deviation of the logarithm of a series' answer to the full rate. Of a change that adds,
#: the answer may be of any size.
_ANSWER_IN_LOG = 0.5
#: Grid: memories that are tried, in snapshots.
_MEMORIES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
#: Guard: rates that differ by less than this part of the largest are the same.
_SAME = 0.02


def is_left_by_rate(candidate: Candidate, view: View, min_effect: float) -> bool:
    """Whether the change, a jump by so much, is left where the learning rate accounts for some."""
    is_jump = candidate.offset is None
    steps, y = view.steps, candidate.transformed(view.values)
    first, strongest = (0, math.inf) if is_jump else (candidate.start, _ANSWER_IN_LOG)
    # the change as it may have come, from the split on: a bend, or also a step; 1 at the end
    bend = np.maximum(steps - steps[len(y) - candidate.split - 1], 0.0)
    bend /= bend[-1]
    for shape in [bend, (bend > 0.0).astype(np.float64)] if is_jump else [bend]:
        left = share_left_by_rate(
            steps, y, view.rates, shape, noise=candidate.noise, strongest=strongest, first=first
        )
        if left >= HALF and left * candidate.size >= (min_effect if is_jump else 0.0):
            return True
    return False


def is_left_by_past(candidate: Candidate, view: View, past: View, min_effect: float) -> bool:
    """Whether it is left where the series answers to the rate as it did before its last change."""
    since = view.ends[len(view.values) - candidate.split - 1]
    bend = np.maximum(past.steps - since, 0.0) / (past.steps[-1] - since)
    z = (past.steps - past.steps[-1]) / (past.steps[-1] - past.steps[0])
    has_logs = past.values.min() + (candidate.offset or 0.0) > 0.0
    # an answer in the values or in their logarithm is known by now: it may be of any size
    for y in (past.values, candidate.transformed(past.values)) if has_logs else (past.values,):
        size = y[-1] - float(np.median(y[past.ends <= since][-FEW:]))
        least = HALF * abs(size)
        if candidate.offset is None:
            least = max(least, min_effect)
        for shape in (bend, (bend > 0.0).astype(np.float64)):
            plain = np.stack([np.ones_like(z), z, shape], axis=1)
            for response in _responses(past.steps, past.rates):
                design = np.concatenate([plain, response[:, None]], axis=1)
                fit = np.linalg.lstsq(design, y, rcond=None)[0]
                # what does not describe the past explains nothing
                misfit = float(np.sqrt(np.mean(np.square(y - design @ fit))))
                if fit[2] * size < least * abs(size) and misfit <= LATEST * abs(size):
                    return False
    return True


def share_left_by_rate(
    x: Array, y: Array, rates: Array, shape: Array, *, noise: float, strongest: float, first: int
) -> float:
    """The share of a change of a ``shape`` that remains beside a response to the rate, if any."""
    z = (x - x[-1]) / (x[-1] - x[first])
    plain = np.stack([np.ones_like(z), z, shape], axis=1)[first:]  # before it is the rate's past
    alone = _estimate(plain, y[first:], noise)
    left = []
    for response in _responses(x, rates) if alone else ():
        design = np.concatenate([plain, response[first:, None]], axis=1)
        left.append(_estimate(design, y[first:], noise, strongest) / alone)
    return min(left, default=1.0)


def _responses(x: Array, rates: Array) -> Iterator[Array]:
    """Answers to the rate, one for each memory; none where it is not known, or never changes."""
    if not np.isfinite(rates).all() or rates.max() <= 0.0:
        return
    # the first snapshot shows the series at one rate, but not what it did at any other
    share = np.append(rates[1], rates[1:]) / rates.max()
    if np.ptp(share) < _SAME:
        return
    spacing = float(np.median(np.diff(x)))
    for memory in _MEMORIES:
        if memory > max(LATEST * len(x), _MEMORIES[0]):
            return  # one that is long beside the run so far could not be told from a trend
        yield _remembered(share, x, memory * spacing)


def _remembered(share: Array, x: Array, memory: float) -> Array:
    """The rate as weights with an exponential memory have seen it."""
    out = np.empty_like(share)
    state = out[0] = share[0]
    for i, part in enumerate(1.0 - np.exp(-np.diff(x) / memory), start=1):
        state += part * (share[i] - state)
        out[i] = state
    return out


def _estimate(design: Array, y: Array, noise: float, strongest: float = math.inf) -> float:
    """Size of the change, column 2; the response, column 3, has ``strongest`` as its prior's sd."""
    gram = design.T @ design / noise**2
    gram += np.diag(1e-12 * np.diag(gram))
    gram[-1, -1] += strongest**-2
    return float(np.linalg.solve(gram, design.T @ y / noise**2)[2])
