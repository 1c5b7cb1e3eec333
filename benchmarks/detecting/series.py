"""One made-up series with its truth, the learning rate that it answers, what generators share."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Detectors may be chosen on these seeds, and are reported on those.
DESIGN_SEEDS = range(100, 140)
REPORT_SEEDS = range(40)

#: Snapshots that a change may be seen before its onset, and after it or after it is over.
EARLY = 1
LATE = 5
_STRIDES = (100, 200, 500, 1000)
_SHARE_UNEVEN = 0.2
_SHARE_DROPPED = 0.1
_UNIT_DECADES = (-4.0, 1.0)
SCHEDULES = ("constant", "cosine", "linear", "wsd", "restarts")
_WARMUP = (0.02, 0.1)
_PEAKS = (1e-4, 1e-2)


@dataclass(frozen=True)
class Series:
    """What a detector is shown, and what it should say."""

    # of the generator; the same ones give the same series
    family: str
    seed: int
    # optimizer steps of the snapshots, increasing; the value at each, NaN where it is missing
    steps: NDArray[np.int64]
    values: Array
    # natural size of the values, which a user knows: 1 for a fraction
    unit: float = 1.0
    # indices of the first snapshot of the change, and of that where it is over; None: there is none
    onset: int | None = None
    settled: int | None = None
    # index that delays are counted from; None: the onset
    due: int | None = None
    # first and last index where an alarm is a hit; None: from EARLY before the onset to LATE after
    window: tuple[int, int] | None = None
    # what else a watch knows at each snapshot: "lr", "lr_clock" and with decay "decay_clock"
    context: Mapping[str, Array] | None = None

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


def correlated(rng: np.random.Generator, num: int, rho: float) -> Array:
    """Noise of variance 1 whose neighbours are correlated by ``rho``."""
    noise = rng.standard_normal(num)
    for i in range(1, num):
        noise[i] = rho * noise[i - 1] + np.sqrt(1.0 - rho**2) * noise[i]
    return np.asarray(noise, np.float64)


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


# ------------------------------------------------------------------ learning rates


def rate_of(schedule: str, rng: np.random.Generator, num: int) -> Array:
    """The learning rate at each snapshot as a part of its peak, after a warm-up."""
    time = np.arange(1, num + 1, dtype=np.float64)
    warmup = max(1.0, num * rng.uniform(*_WARMUP))
    way = np.clip((time - warmup) / (num - warmup), 0.0, 1.0)
    shape = {
        "constant": np.ones(num),
        "cosine": 0.5 + 0.5 * np.cos(np.pi * way),
        "linear": 1.0 - way,
        "wsd": _stable_then_down(way, rng.uniform(0.5, 0.85)),
        "restarts": 0.5 + 0.5 * np.cos(np.pi * (0.999 * way * rng.integers(2, 5) % 1.0)),
    }[schedule]
    return np.asarray(np.minimum(time / warmup, shape), np.float64)


def _stable_then_down(way: Array, start: float) -> Array:
    return 1.0 - np.maximum(way - start, 0.0) / (1.0 - start)


def remembered(rate: Array, memory: float) -> Array:
    """The rate as weights answer to it: an exponential mean over some snapshots."""
    answer, last = np.empty_like(rate), 0.0
    for i, value in enumerate(rate):
        last += (value - last) / memory
        answer[i] = last
    return answer


def context_of(
    rate: Array, rng: np.random.Generator, clock: float | None, at: int = -1
) -> dict[str, Array]:
    """Learning rate and clocks as a watch tells them; the decay clock is at ``clock`` at ``at``."""
    lr = log_uniform(rng, *_PEAKS) * rate
    lr_clock = float(rng.choice((25, 50, 100, 200, 500))) * np.cumsum(lr)
    context = {"lr": lr, "lr_clock": lr_clock}
    if clock is not None:
        context["decay_clock"] = clock / lr_clock[at] * lr_clock
    return context
