"""What the members see at a look, the most certain first."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsitywatch.analysis.detect.growth import FALL, RISE, multiplied, seen_growth
from sparsitywatch.analysis.detect.jumps import Jumps
from sparsitywatch.analysis.detect.looks import Looks
from sparsitywatch.analysis.detect.nulls import WINDOW
from sparsitywatch.analysis.detect.response import share_left_by_rate

__all__ = ["Candidate", "Limits", "decayed", "falls", "is_left", "jumps_seen", "rises"]

Array = NDArray[np.float64]

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

    def growth_score_at(self, num_looks: int) -> float:
        """What has a known cause needs less proof; chance has been tried at every look."""
        if not self.is_decaying:
            return self.growth_score
        more = _MORE_SCORE * math.log2(max(num_looks / _FEW_LOOKS, 1.0))
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
