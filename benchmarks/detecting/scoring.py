"""What alarms are worth: hits, false alarms, delays, and how sure that is.

Alarms no more than three snapshots after the first of a group are one. In a series with a
change the first group within its window is a hit, and what comes from the change until it is
over counts no further; any other group is false, and so is every one in a series without.
Intervals are 90 % bootstrap intervals over seeds: all series of a seed are drawn together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from detecting.series import Array, Series
from sparsitywatch.records import Event

#: Indices of the snapshots at which a series is alarmed, with what is said there if it is known.
Detector = Callable[[Series], "Sequence[int] | Mapping[int, object]"]

_SAME_GROUP = 3
_RESAMPLES = 1000
_LEVEL = 90.0


@dataclass(frozen=True)
class Outcome:
    """One series judged."""

    family: str
    seed: int
    # whether something happens in it
    changes: bool
    # snapshots from when it is due to the alarm that caught it; None: not caught
    delay: int | None
    num_false: int
    # snapshots at which an alarm would be false
    num_quiet: int
    # snapshots by which the true onset, the first one that is changed, lies outside the interval of
    # the alarm that caught it: from its lower end, after which the change may have begun, to the
    # snapshot after its upper end. None: not caught, or no interval.
    outside: int | None = None


def grouped(alarms: Iterable[int]) -> list[int]:
    """The first of each group of alarms.

    >>> grouped([4, 5, 7, 8, 30])
    [4, 8, 30]
    """
    firsts: list[int] = []
    for alarm in sorted(alarms):
        if not firsts or alarm - firsts[-1] > _SAME_GROUP:
            firsts.append(int(alarm))
    return firsts


def judge(series: Series, alarms: Iterable[int], tolerance: int | None = None) -> Outcome:
    """Hold the alarms of one series against its truth.

    Args:
        series: with its truth.
        alarms: indices of snapshots, with their events if these are known.
        tolerance: for change points that were found with the whole series at hand: they hit
            a quick change if they are so many snapshots from its onset at most.
    """
    groups, num = grouped(alarms), len(series.values)
    hits, excused = series.hits, series.excused
    if hits is None or excused is None or series.onset is None:
        return Outcome(series.family, series.seed, False, None, len(groups), num)
    due = series.onset if series.due is None else series.due
    if tolerance is not None and series.window is None:
        due, hits = series.onset, (series.onset - tolerance, series.onset + tolerance)
        excused = min(hits[0], excused[0]), max(hits[1], excused[1])
    caught = [alarm for alarm in groups if hits[0] <= alarm <= hits[1]]
    delay = caught[0] - due if caught else None
    if delay is not None and series.window is None:
        delay = max(delay, 0)
    false = [alarm for alarm in groups if not excused[0] <= alarm <= excused[1]]
    quiet = num - (min(excused[1], num - 1) - max(excused[0], 0) + 1)
    said = alarms.get(caught[0]) if caught and isinstance(alarms, Mapping) else None
    outside = _outside(series, said) if isinstance(said, Event) else None
    return Outcome(series.family, series.seed, True, delay, len(false), quiet, outside)


def _outside(series: Series, event: Event) -> int:
    assert series.onset is not None
    low = int(np.searchsorted(series.steps, event.onset_low))
    # what begins after one snapshot has begun at the next
    high = int(np.searchsorted(series.steps, event.onset_high, side="right"))
    return max(low - series.onset, series.onset - high, 0)


def score(detector: Detector, suite: Iterable[Series], tolerance: int | None = None) -> Score:
    """Run a detector over a suite."""
    return Score(tuple(judge(series, detector(series), tolerance) for series in suite))


@dataclass(frozen=True)
class Score:
    """What a detector did on a suite."""

    outcomes: tuple[Outcome, ...]

    @cached_property
    def figures(self) -> dict[str, float]:
        """Of "recall", "precision", "f1" and "false_per_1000"; 0 where nothing is to be counted."""
        return dict(zip(_FIGURES, map(float, _figures(self._by_seed.sum(axis=0))), strict=True))

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """Of the same."""
        by_seed = self._by_seed
        drawn = np.random.default_rng(0).integers(len(by_seed), size=(_RESAMPLES, len(by_seed)))
        figures = _figures(by_seed[drawn].sum(axis=1).T)
        tails = (50.0 - _LEVEL / 2.0, 50.0 + _LEVEL / 2.0)
        ends = np.percentile(figures, tails, axis=1).T.tolist()
        return {name: (low, high) for name, (low, high) in zip(_FIGURES, ends, strict=True)}

    def shown(self, name: str) -> str:
        """One of the figures with its interval."""
        low, high = self.intervals[name]
        return f"{self.figures[name]:.3f} ({low:.3f} to {high:.3f})"

    def delay(self, percentile: float) -> float:
        """A percentile of the delays of what was caught, in snapshots; NaN if nothing was."""
        delays = [o.delay for o in self.outcomes if o.delay is not None]
        return float(np.percentile(delays, percentile)) if delays else math.nan

    def held(self) -> tuple[int, int]:
        """How many onset intervals hold the onset, and how many there are."""
        outside = [o.outside for o in self.outcomes if o.outside is not None]
        return outside.count(0), len(outside)

    @cached_property
    def _by_seed(self) -> Array:
        """Caught, missed, false and quiet, a row for each seed."""
        rows: dict[int, Array] = {}
        for o in self.outcomes:
            caught = o.changes and o.delay is not None
            row = rows.setdefault(o.seed, np.zeros(4))
            row += (caught, o.changes and not caught, o.num_false, o.num_quiet)
        return np.array(list(rows.values())).reshape(-1, 4)


_FIGURES = ("recall", "precision", "f1", "false_per_1000")


def _figures(sums: Array) -> Array:
    caught, missed, false, quiet = sums
    return np.array(
        [
            caught / np.maximum(caught + missed, 1),
            caught / np.maximum(caught + false, 1),
            2 * caught / np.maximum(2 * caught + false + missed, 1),
            1000 * false / np.maximum(quiet, 1),
        ]
    )
