"""Series that come with what chance makes of them: measured with an interval, or dormant by chance.

Essential sparsity and reliance move from snapshot to snapshot by a good part of their interval.
The intervals of neighbouring snapshots are of the same examples, so that averaging snapshots makes
none of them narrower; how much their errors have in common shows in how little the number moves. So
the mean of the latest snapshots has to leave the interval that those before had, and by more than
they scatter.

The dormant fraction grows so evenly once units die that its own past explains it, and drifts with
the learning rate without them. But the share of living weights that passes as dormant by chance is
measured at each snapshot: what is watched is the excess over that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sparsitywatch.analysis.detect.detector import (
    FEW,
    HALF,
    SCORE,
    SIDES_90,
    TREND,
    Array,
    Candidate,
    Course,
    SeriesDetector,
    SeriesHistory,
    SeriesMemory,
    correlation_of,
    expect_direction,
    median_of_three,
    noise_sd,
    normal_score,
    onset_of,
)
from sparsitywatch.errors import expect_number
from sparsitywatch.records import Event

# ------------------------------------------------------------------ measured with an interval

#: Grid: snapshots since the change that are tried.
_SPLITS = (2, 3, 4, 6, 8, 12, 16)
#: Bound: what is remembered of those before.
_MOST_PAST = 40
#: Smallest score for what has come to twice its level, or half of it.
_SCORE_OF_MULTIPLE = 3.0
#: A multiple; reliance that rises to this one explains a fall of essential sparsity.
_MULTIPLE = 2.0
#: Snapshots that the interval is worth as evidence of the noise.
_PRIOR_SNAPSHOTS = 4.0
#: A change is over when the latter half of this many snapshots has added less than this part of it.
_SETTLING, _SETTLED = 12, 0.2


@dataclass
class MeasuredMemory(SeriesMemory):
    """What ``MeasuredChange`` remembers; beside the history: the interval's ends, and reliance."""

    baseline: float  # of a change that is an event already; NaN when it is over
    seen_step: int  # at which that was seen


class MeasuredChange(SeriesDetector):
    """Watches a number that is measured with an interval, for changes in both directions.

    There is an event when the mean of the last two to eight snapshots lies outside the interval
    that was usual before, further than the scatter of the snapshots explains, correlated as they
    are, and further than a line through them; and when it is ``min_effect`` away, and ``ratio``
    times as large or as small. A fall of essential sparsity that leaves the interval needs no more
    proof where reliance has come to twice what it was: that is what makes it fall.

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

    memory: MeasuredMemory

    def __init__(
        self, min_effect: float = 0.05, *, ratio: float = 1.0, direction: str = "both"
    ) -> None:
        what = "finite and 0 or more, in units of the series"
        expect_number("min_effect", min_effect, lambda x: 0.0 <= x < math.inf, what)
        expect_number("ratio", ratio, lambda x: 1.0 <= x < math.inf, "finite, 1 or more")
        expect_direction(direction)
        self._min_effect = float(min_effect)
        self._ratio = float(ratio)
        self._direction = direction
        self.memory = MeasuredMemory(SeriesHistory.empty(6), math.nan, math.nan, -1)

    def _seen(self, step: int, value: float, known: Mapping[str, float]) -> Event | None:
        memory = self.memory
        memory.decay_clock = known["decay_clock"]
        if not math.isfinite(value):
            return None
        beside = known["low"], known["high"], known["reliance"]
        memory.history = memory.history.add(step, value, *beside)
        if not math.isnan(memory.baseline):
            self._end_if_over()
            return None
        rows = np.array(memory.history.rows[-_MOST_PAST - _SPLITS[-1] :], order="C")
        found = [self._shift(rows, split) for split in _SPLITS]
        shifts = [shift for shift in found if shift is not None]
        if not shifts:
            return None
        shift = max(shifts, key=lambda shift: shift.score)
        steps, way, noise = rows[:, 0], shift.direction, shift.noise
        onset = onset_of(steps, rows[:, 1], noise=noise, direction=way)
        memory.baseline = shift.baseline
        memory.seen_step = step
        return self._event(way, shift.baseline, steps[list(onset)], noise=noise)

    def _end_if_over(self) -> None:
        """Look for the next change once this one is over: the new level is the baseline."""
        memory = self.memory
        steps, values, *_ = memory.history.columns()
        values = values[steps >= memory.seen_step]
        if len(values) < _SETTLING:
            return
        half = _SETTLING // 2
        added = np.median(values[-half:]) - np.median(values[-_SETTLING:-half])
        size = np.median(values[-half:]) - memory.baseline
        if abs(added) <= _SETTLED * abs(size):
            memory.history = memory.history.latest(_SETTLING)
            memory.baseline = math.nan

    def _shift(self, rows: Array, split: int) -> Candidate | None:
        """How the last ``split`` snapshots differ from those before, if that is a change."""
        if len(rows) < TREND + split:
            return None
        past, late = rows[:-split][-_MOST_PAST:], rows[-split:]
        level, mean = float(np.median(past[:, 1])), float(late[:, 1].mean())
        size = mean - level
        sign = math.copysign(1.0, size)
        direction = "up" if sign > 0 else "down"
        if self._direction not in (direction, "both") or abs(size) < self._min_effect:
            return None
        has_interval = np.isfinite(past[:, 2:4]).any()
        low, high = np.nanmedian(past[:, 2:4], axis=0) if has_interval else (level, level)
        is_outside = mean > high if sign > 0 else mean < low
        latest = late[-2:, 1]
        least, most = latest.min(), self._ratio * latest.max()
        is_times = least >= self._ratio * level if sign > 0 else most <= level
        is_borne_out = (sign * (latest - level)).min() >= HALF * abs(size)
        if not (is_outside and is_times and is_borne_out):
            return None
        width = 0.5 * (high - low) / SIDES_90
        has_cause = sign < 0 and _is_cause(past[:, 4], late[:, 4])
        score, noise = _score(past[:, :2], late[:, :2], width, sign)
        needed = _SCORE_OF_MULTIPLE if self._ratio >= _MULTIPLE else SCORE
        if score < needed and not has_cause:
            return None
        start = len(rows) - split - len(past)
        return Candidate(direction, split, start, size, score, noise, baseline=level)


def _is_cause(before: Array, now: Array) -> bool:
    """Whether reliance has come to several times what it was."""
    if not (np.isfinite(before).all() and np.isfinite(now).all()):
        return False
    return bool(np.median(now) >= _MULTIPLE * np.median(before) > 0.0)


def _score(past: Array, late: Array, width: float, sign: float) -> tuple[float, float]:
    """How certain it is that the late snapshots go on otherwise, and the noise of a snapshot."""
    x, y = (past[:, 0] - past[-1, 0]) / (past[-1, 0] - past[0, 0]), past[:, 1]
    at = float(((late[:, 0] - past[-1, 0]) / (past[-1, 0] - past[0, 0])).mean())
    scores, noise = [], math.nan
    for degree in (0, 1):
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
        scores.append(float(normal_score(t, nu + _PRIOR_SNAPSHOTS)))
        noise = math.sqrt(variance)
    return min(scores), noise


# ------------------------------------------------------------------ weights without a gradient

#: Snapshots in a row that meet the requirements, or one that does so this many times over.
_IN_A_ROW = 2
#: Guard: noise of a snapshot that the onset's interval allows for at least, in smallest effects.
_LEAST_NOISE = 0.05


@dataclass
class DormantMemory(SeriesMemory):
    """What ``DormantRise`` remembers; beside the history stands what passes by chance."""

    baseline: float  # of the last rise
    course: Course | None  # of a rise that is an event already, until half of it is gone
    num_above: int  # snapshots in a row that meet the requirements
    share: float  # of what is required that the last snapshot met


class DormantRise(SeriesDetector):
    """Watches the dormant fraction, ``motion/dormant``: units die, long before weights shrink.

    There is an event when two snapshots in a row are ``min_effect`` above, and ``ratio`` times,
    what is expected, or one snapshot is above it by twice as much. Expected is the share of living
    weights that passes by chance, or the running floor of the series if that is higher: units
    that were dead before the watch began are no change.

    Where the decay clock stands still, as known or as estimated, nothing is seen: without decay no
    weight shrinks, and a model that has memorised its data gets no gradient anywhere.

    Units die one after the other, and that is one event. The next one is looked for when half of
    what the excess was at its largest is gone, at two snapshots in a row.

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

    memory: DormantMemory
    restarts_after_gap = False  # a share that is higher than before is so whatever came between

    def __init__(self, min_effect: float = 0.03, *, ratio: float = 2.0) -> None:
        what = "in (0, 1), a fraction of the weights (0.03: three percentage points)"
        expect_number("min_effect", min_effect, lambda x: 0.0 < x < 1.0, what)
        expect_number("ratio", ratio, lambda x: 1.0 <= x < math.inf, "finite, 1 or more")
        self._min_effect = float(min_effect)
        self._ratio = float(ratio)
        self.memory = DormantMemory(SeriesHistory.empty(4), math.nan, math.nan, None, 0, 0.0)

    @property
    def is_suspicious(self) -> bool:
        """Whether the last snapshot met half of every requirement of a rise."""
        return self.memory.share >= HALF

    def _seen(self, step: int, value: float, known: Mapping[str, float]) -> Event | None:
        memory = self.memory
        # False if one of them is not known
        stands_still = known["decay_clock"] <= memory.decay_clock
        stands_still |= known["estimated_advance"] == 0.0
        memory.decay_clock = known["decay_clock"]
        if not math.isfinite(value):
            return None
        by_chance = known["dormant_by_chance"]
        expected = self._expected(by_chance)
        memory.history = memory.history.add(step, value, by_chance)
        if memory.course is not None:
            # units die one after the other: it is one rise, unless half of it is gone
            if memory.course.is_back(step, value - memory.baseline):
                memory.history = memory.history.latest(FEW)
                memory.course = None
            return None
        required = max(self._min_effect, (self._ratio - 1.0) * expected)
        share = 0.0 if stands_still or math.isnan(expected) else (value - expected) / required
        memory.share = share
        memory.num_above = memory.num_above + 1 if share >= 1.0 else 0
        if memory.num_above < _IN_A_ROW and share < _IN_A_ROW:
            return None
        steps, values, chances, _ = memory.history.columns()
        excess = values - chances if np.isfinite(chances).all() else values
        latest = max(len(values) - memory.num_above - 1, 0)
        noise = _LEAST_NOISE * self._min_effect
        found = onset_of(steps, excess, noise=noise, latest=latest)
        memory.baseline = expected
        memory.course = Course(value - expected, value - expected, -1)
        memory.num_above = 0
        memory.share = 0.0
        return self._event("up", expected, steps[list(found)])

    def _expected(self, by_chance: float) -> float:
        """What living weights alone would show; NaN as long as nothing says so."""
        _, values, *_ = self.memory.history.columns()
        before = values[: len(values) - self.memory.num_above]
        if not len(before):
            return math.nan
        floor = float((median_of_three(before) if len(before) > 2 else before).min())
        return floor if math.isnan(by_chance) else max(by_chance, floor)
