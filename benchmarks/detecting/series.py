"""One made-up series with its truth, and what all generators share."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["DESIGN_SEEDS", "REPORT_SEEDS", "Array", "Series", "log_uniform", "recorded", "rng_of"]

Array = NDArray[np.float64]

#: Detectors may be chosen on these seeds, and are reported on those.
DESIGN_SEEDS, REPORT_SEEDS = range(100, 140), range(40)

#: Snapshots that a change may be seen before its onset, and after it or after it is over.
EARLY, LATE = 1, 5
_STRIDES = (100, 200, 500, 1000)
_SHARE_UNEVEN, _SHARE_DROPPED = 0.2, 0.1
_UNIT_DECADES = (-4.0, 1.0)


@dataclass(frozen=True)
class Series:
    """What a detector is shown, and what it should say.

    Args:
        family, seed: of the generator; the same ones give the same series.
        steps: optimizer steps of the snapshots, increasing.
        values: one for each snapshot, NaN where the metric is missing.
        unit: natural size of the values, which a user knows: 1 for a fraction.
        onset: index of the first snapshot of the change; None: nothing happens.
        settled: index of the snapshot where the change is over.
        due: index that delays are counted from, the onset if None.
        window: first and last index where an alarm is a hit, by default from one snapshot
            before the onset to five after it.
        context: what else a watch knows at each snapshot, by key: "lr", "lr_clock" and, if
            there is weight decay, "decay_clock".
    """

    family: str
    seed: int
    steps: NDArray[np.int64]
    values: Array
    unit: float = 1.0
    onset: int | None = None
    settled: int | None = None
    due: int | None = None
    window: tuple[int, int] | None = None
    context: Mapping[str, Array] | None = field(default=None)

    @property
    def hits(self) -> tuple[int, int] | None:
        """First and last index where an alarm is a hit; None if none can be."""
        if self.window is not None or self.onset is None:
            return self.window
        return self.onset - EARLY, self.onset + LATE

    @property
    def excused(self) -> tuple[int, int] | None:
        """First and last index where an alarm is not false: from the change to its end."""
        hits = self.hits
        if hits is None or self.onset is None or self.settled is None:
            return None
        first = self.onset - EARLY if self.window is None else self.onset
        return first, max(hits[1], self.settled + LATE)

    def context_at(self, index: int) -> dict[str, float] | None:
        """What a detector is told along with a value."""
        if self.context is None:
            return None
        return {key: float(values[index]) for key, values in self.context.items()}


def rng_of(name: str, seed: int) -> np.random.Generator:
    """The generator of one series: independent between names and between seeds."""
    return np.random.default_rng([zlib.crc32(name.encode()), seed])


def log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A number whose logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def recorded(series: Series, rng: np.random.Generator) -> Series:
    """The series as a run would log it: in some unit, and now and then with snapshots dropped.

    Indices of the truth are moved along and never dropped.
    """
    unit = float(10.0 ** rng.uniform(*_UNIT_DECADES))
    steps = int(rng.choice(_STRIDES)) * series.steps
    scaled = replace(series, steps=steps, values=series.values * unit, unit=unit)
    if rng.random() >= _SHARE_UNEVEN:
        return scaled
    keep = rng.random(len(steps)) >= _SHARE_DROPPED
    marks = [series.onset, series.settled, series.due]
    keep[[mark for mark in marks if mark is not None]] = True
    return _thinned(scaled, keep)


def _thinned(series: Series, keep: NDArray[np.bool_]) -> Series:
    place = np.cumsum(keep) - 1  # a dropped index becomes the last one kept before it

    def moved(index: int | None) -> int | None:
        return None if index is None else int(place[min(index, len(place) - 1)])

    window = series.window
    if window is not None:
        first, last = (min(max(index, 0), len(place) - 1) for index in window)
        window = int(place[first] + (not keep[first])), int(place[last])
    context = series.context
    return replace(
        series,
        steps=series.steps[keep],
        values=series.values[keep],
        onset=moved(series.onset),
        settled=moved(series.settled),
        due=moved(series.due),
        window=window,
        context=None if context is None else {key: x[keep] for key, x in context.items()},
    )
