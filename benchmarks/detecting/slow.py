"""Slow take-offs: a hockey stick over tens of snapshots; and what only resembles one.

A take-off is a positive series that leaves its floor and has doubled 10 to 60 snapshots later,
by exponential or power growth, in time or on the decay clock. It is *due* at the first snapshot
where the series without its noise is twice its lowest value so far. An alarm is a hit from
two fifths of the way there, but not before growth begins, until five snapshots after it or until
the series is 2.5 times its floor, whichever is later. What comes after that and before growth
ends, does not count; what comes before growth begins, is false.

The stable counterparts grow as far, but for a reason that is in the series from its start
(a drift, steady exponential growth, saturation) or that a watch is told (the learning rate).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from detecting.series import (
    LATE,
    Array,
    Series,
    context_of,
    correlated,
    log_uniform,
    rate_of,
    recorded,
    remembered,
    rng_of,
)  # fmt: skip

_LENGTHS = (60.0, 400.0)
_COARSE = (20.0, 40.0)
_FLOORS = (0.02, 0.15)
_NOISES = (0.005, 0.05)
_LOUD = (0.05, 0.15)
_DOUBLINGS = (10.0, 60.0)
#: Growth ends at 5.7 times the floor or before, growth by a power at 17 times.
_FURTHEST = 2.5
_FACTORS = (2.0, 2.5)
_SHARE_OF_WAY = 0.4
_CLOCK_AT_DOUBLING = (2.0, 4.0)
_CLOCK_AT_END = (0.05, 6.0)

TAKEOFFS = (
    "takeoff_exponential", "takeoff_power", "takeoff_drifting", "takeoff_relaxing",
    "takeoff_counted", "takeoff_gaps", "takeoff_coarse", "takeoff_clock_constant",
    "takeoff_clock_cosine", "takeoff_clock_linear", "takeoff_clock_wsd",
)  # fmt: skip
STABLE = (
    "steady_linear", "steady_exponential", "steady_saturating", "steady_relaxing",
    "steady_falling", "steady_white", "steady_noisy", "steady_counted", "steady_ar1",
    "answer_constant", "answer_cosine", "answer_linear", "answer_wsd", "answer_restarts",
)  # fmt: skip


def suite(seeds: Iterable[int]) -> Iterator[Series]:
    """Every family at every seed."""
    for seed in seeds:
        for family in (*TAKEOFFS, *STABLE):
            yield make(family, seed)


def make(family: str, seed: int) -> Series:
    """One series; the same arguments give the same one."""
    if family not in (*TAKEOFFS, *STABLE):
        raise KeyError(family)
    rng = rng_of(f"slow/{family}", seed)
    kind, _, name = family.partition("_")
    made = _takeoff if kind == "takeoff" else _stable
    return recorded(made(family, name, seed, rng), rng)


def due_of(clean: Array, factor: float) -> int | None:
    """First index with ``factor`` times the lowest value so far.

    >>> due_of(np.array([4.0, 2.0, 3.0, 4.0, 5.0]), 2.0)
    3
    """
    reached = clean >= factor * np.minimum.accumulate(clean)
    return int(np.argmax(reached)) if reached.any() else None


def _takeoff(family: str, name: str, seed: int, rng: np.random.Generator) -> Series:
    num = int(log_uniform(rng, *(_COARSE if name == "coarse" else _LENGTHS)))
    time = np.arange(num, dtype=np.float64)
    begin, doubling = _when(rng, num)
    on_clock = name.startswith("clock")
    rate = rate_of(name.rpartition("_")[2] if on_clock else "constant", rng, num)
    clock = np.cumsum(rate)
    # how far the growth is: 0 where it begins, 1 where it has doubled
    way = clock if on_clock else time
    way = np.maximum(way - way[begin], 0.0) / (way[begin + doubling] - way[begin])
    end = int(rng.integers(begin + doubling + 1, num)) if rng.random() < 0.5 else num - 1
    way = np.minimum(way, min(way[end], _FURTHEST))
    clean = _floor(name, rng, np.minimum(time, begin)) * _growth(name, rng, way)
    due, later = (due_of(clean, factor) for factor in _FACTORS)
    assert due is not None  # it is begin + doubling, or before, if the floor rose until then
    last = due + LATE if later is None else max(due + LATE, later - 1)
    context = None
    if on_clock or rng.random() < 0.5:
        at_doubling = rng.uniform(*_CLOCK_AT_DOUBLING)
        context = context_of(rate, rng, at_doubling, at=begin + doubling)
    return Series(
        family=family,
        seed=seed,
        steps=np.arange(1, num + 1),
        values=_seen(name, rng, clean),
        onset=begin + 1,
        settled=int(np.argmax(way == way[-1])),
        due=due,
        window=(max(int(np.ceil(_SHARE_OF_WAY * due)), begin + 1), min(last, num - 1)),
        context=context,
    )


def _when(rng: np.random.Generator, num: int) -> tuple[int, int]:
    """Last index before the growth, and snapshots from there to twice the floor."""
    first = max(5, num // 5)
    most = min(_DOUBLINGS[1], num - 6 - first)
    doubling = int(log_uniform(rng, min(_DOUBLINGS[0], most), most))
    return int(rng.integers(first, num - 5 - doubling)), doubling


def _floor(name: str, rng: np.random.Generator, time: Array) -> Array:
    """What the series would be without growth; it stays where it was when growth begins."""
    level = np.full(len(time), log_uniform(rng, *_FLOORS))
    if name == "drifting":
        level *= 1.0 + rng.uniform(-0.2, 0.2) * time / time[-1]
    elif name in ("relaxing", "coarse") or name.startswith("clock"):
        level *= 1.0 + rng.uniform(0.2, 2.0) * np.exp(
            -time / rng.uniform(1.0, 1.0 + 0.25 * time[-1])
        )
    return level


def _growth(name: str, rng: np.random.Generator, way: Array) -> Array:
    """By what the floor is multiplied; 2 where ``way`` is 1."""
    if name == "power" or (name != "exponential" and rng.random() < 0.4):
        return 1.0 + way ** rng.uniform(1.5, 3.0)
    return np.asarray(np.exp2(way), np.float64)


def _seen(name: str, rng: np.random.Generator, clean: Array) -> Array:
    """The series as measured: with noise, as counts, with gaps."""
    noise = log_uniform(rng, *(_LOUD if name == "noisy" else _NOISES))
    if name == "counted":  # relative noise at the floor is 1 / sqrt(count)
        one = noise**2 * float(clean.min())
        return np.asarray(one * rng.poisson(clean / one), np.float64)
    values = clean * np.maximum(1.0 + noise * rng.standard_normal(len(clean)), 0.01)
    if name == "gaps":
        values[rng.random(len(values)) < rng.uniform(0.05, 0.25)] = np.nan
    return values


def _stable(family: str, name: str, seed: int, rng: np.random.Generator) -> Series:
    num = int(log_uniform(rng, _COARSE[0], _LENGTHS[1]))
    time = np.arange(num, dtype=np.float64)
    answers = family.startswith("answer")
    rate = rate_of(name if answers else "constant", rng, num)
    shape = _answer(rng, rate) if answers else _STEADY[name](rng, time / num)
    values = _seen(name, rng, log_uniform(rng, *_FLOORS) * shape)
    context = None
    if answers or rng.random() < 0.5:
        clock = log_uniform(rng, *_CLOCK_AT_END) if rng.random() < 0.5 else None
        context = context_of(rate, rng, clock)
    return Series(family, seed, np.arange(1, num + 1), values, context=context)


def _answer(rng: np.random.Generator, rate: Array) -> Array:
    """Up to 1.2 to 2.5 times the floor, with or against the rate of the last 4 to 30 snapshots."""
    top = log_uniform(rng, 1.2, 2.5) - 1.0
    answer = remembered(rate, log_uniform(rng, 4.0, 30.0))
    return 1.0 + top * (answer if rng.random() < 0.5 else 1.0 - answer)


def _linear(rng: np.random.Generator, way: Array) -> Array:
    return 1.0 + rng.uniform(0.2, 4.0) * way


def _exponential(rng: np.random.Generator, way: Array) -> Array:
    return np.asarray(np.exp(np.log(log_uniform(rng, 1.3, 6.0)) * way), np.float64)


def _saturating(rng: np.random.Generator, way: Array) -> Array:
    return 1.0 + rng.uniform(0.2, 1.5) * (1.0 - np.exp(-way / rng.uniform(0.1, 0.5)))


def _relaxing(rng: np.random.Generator, way: Array) -> Array:
    return 1.0 + rng.uniform(0.2, 3.0) * np.exp(-way / log_uniform(rng, 0.02, 0.5))


def _falling(rng: np.random.Generator, way: Array) -> Array:
    return 1.0 - rng.uniform(0.2, 0.8) * way


def _flat(rng: np.random.Generator, way: Array) -> Array:
    del rng
    return np.ones_like(way)


def _correlated(rng: np.random.Generator, way: Array) -> Array:
    """AR(1): its noise lasts some snapshots."""
    phi = rng.uniform(0.4, 0.8)
    size = log_uniform(rng, *_NOISES)
    return np.maximum(1.0 + size * correlated(rng, len(way), phi), 0.1)


_STEADY: dict[str, Callable[[np.random.Generator, Array], Array]] = {
    "linear": _linear,
    "exponential": _exponential,
    "saturating": _saturating,
    "relaxing": _relaxing,
    "falling": _falling,
    "white": _flat,
    "noisy": _flat,
    "counted": _flat,
    "ar1": _correlated,
}
