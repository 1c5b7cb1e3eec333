"""Series with one quick rise, and the same without.

A change is over within a few snapshots (a jump, a logistic rise over 1 to 5 snapshots, a ramp
over 6 to 20) and its height is a multiple of the noise: 20 to 100 standard deviations are
easy, 8 to 30 standard, 4 to 8 hard. What precedes it is what training curves do anyway: drift,
decay, saturation, answers to a schedule, walks, seasons, a violent start, gaps. The onset is the
first snapshot with a twentieth of the change, and it has settled with nineteen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from detecting.series import (
    Array,
    Series,
    context_of,
    correlated,
    log_uniform,
    recorded,
    remembered,
    rng_of,
)  # fmt: skip

#: Heights of the change in standard deviations of the noise.
DIFFICULTIES = {"easy": (20.0, 100.0), "standard": (8.0, 30.0), "hard": (4.0, 8.0)}

_LENGTHS = (40.0, 400.0)
_SIGMAS = (0.002, 0.02)
_LEVELS = (0.05, 0.5)
_FIRST_ONSET = 16
_FIRST_SHARE = 0.2
_LAST_LOOKS = 8
_BEGUN = 0.05
_OVER = 0.95
_LEAST_FROM_ZERO = 0.03


@dataclass
class _Scene:
    """What the pieces of one series have in common; heights are in units of ``sigma``.

    The baseline says here what learning rate it answers, as a part of its peak, if it does.
    """

    rng: np.random.Generator
    num: int
    sigma: float
    height: float
    onset: int
    rate: Array | None = None

    @property
    def time(self) -> Array:
        return np.arange(self.num, dtype=np.float64)

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def sign(self) -> float:
        return float(self.rng.choice((-1.0, 1.0)))

    def normal(self) -> Array:
        return self.rng.standard_normal(self.num)


def _scene(rng: np.random.Generator, difficulty: str) -> _Scene:
    num = int(log_uniform(rng, *_LENGTHS))
    first = max(_FIRST_ONSET, int(_FIRST_SHARE * num))
    return _Scene(
        rng=rng,
        num=num,
        sigma=log_uniform(rng, *_SIGMAS),
        height=log_uniform(rng, *DIFFICULTIES[difficulty]),
        onset=int(rng.integers(first, max(first + 1, num - _LAST_LOOKS))),
    )


# Baselines, in units of sigma and without noise.


def _flat(s: _Scene) -> Array:
    return np.zeros(s.num)


def _linear(s: _Scene) -> Array:
    return s.uniform(-40.0, 40.0) * s.time / s.num


def _decay(s: _Scene) -> Array:
    return s.uniform(10.0, 60.0) * np.exp(-s.time / (s.num * s.uniform(0.1, 0.5)))


def _saturation(s: _Scene) -> Array:
    return s.uniform(10.0, 60.0) * (1.0 - np.exp(-s.time / (s.num * s.uniform(0.1, 0.5))))


def _transient(s: _Scene) -> Array:
    return s.sign() * s.uniform(40.0, 200.0) * np.exp(-s.time / s.uniform(1.0, 3.0))


def _schedule(s: _Scene) -> Array:
    """Warm-up and cosine decay of a learning rate, followed with a delay."""
    warmup = 8.0 + s.num * s.uniform(0.05, 0.2)
    way = np.clip((s.time - warmup) / (s.num - warmup), 0.0, 1.0)
    s.rate = np.minimum(s.time / warmup, 0.5 + 0.5 * np.cos(np.pi * way))
    return s.sign() * s.uniform(10.0, 40.0) * remembered(s.rate, s.uniform(4.0, 12.0))


def _late_kink(s: _Scene) -> Array:
    """Where a stable learning rate begins to fall: a mild change of slope."""
    falling = max(20.0, s.num * s.uniform(0.1, 0.25))
    start = max(s.num - falling, 0.4 * s.num)
    fallen = np.maximum(s.time - start, 0.0)
    s.rate = 1.0 - fallen / (s.num - start)
    return s.sign() * s.uniform(0.05, 0.2) * fallen


def _walk(s: _Scene) -> Array:
    return s.uniform(0.1, 0.4) * np.cumsum(s.normal())


def _season(s: _Scene) -> Array:
    phase = s.time / s.uniform(4.0, 20.0) + s.uniform(0.0, 1.0)
    return _linear(s) + s.uniform(1.0, 3.0) * np.sin(2.0 * np.pi * phase)


# Noise with unit variance.


def _white(s: _Scene) -> Array:
    return s.normal()


def _heavy(s: _Scene) -> Array:
    return np.asarray(s.rng.standard_t(3.0, s.num) / np.sqrt(3.0), np.float64)


def _correlated(s: _Scene) -> Array:
    return correlated(s.rng, s.num, rho=s.uniform(0.4, 0.8))


# Changes from 0 to 1.


def _jump(s: _Scene) -> Array:
    return (s.time >= s.onset).astype(np.float64)


def _logistic(s: _Scene) -> Array:
    """From 5 to 95 % in 1 to 5 snapshots; nothing at all long before."""
    width = s.uniform(1.0, 5.0)
    exponent = 2.0 * np.log(19.0) * ((s.time - s.onset) / width - 0.5)
    rise = 1.0 / (1.0 + np.exp(-np.clip(exponent, -50.0, 50.0)))
    return np.where(rise < 0.01, 0.0, rise)


def _bump(s: _Scene) -> Array:
    """A rise that slowly falls back."""
    later = np.maximum(s.time - s.onset - 5.0, 0.0)
    return _logistic(s) * np.exp(-later / s.uniform(15.0, 60.0))


_Piece = Callable[[_Scene], Array]

#: Baseline, noise and change of each family with a change; others below are special.
_FAMILIES: dict[str, tuple[_Piece, _Piece, _Piece]] = {
    "flat": (_flat, _white, _jump),
    "decay": (_decay, _white, _logistic),
    "saturation": (_saturation, _white, _logistic),
    "linear": (_linear, _white, _logistic),
    "schedule": (_schedule, _white, _logistic),
    "wsd": (_late_kink, _white, _logistic),
    "transient": (_transient, _white, _jump),
    "heavy": (_linear, _heavy, _jump),
    "quantised": (_linear, _white, _logistic),
    "hetero": (_decay, _white, _logistic),
    "walk": (_walk, _white, _logistic),
    "season": (_season, _white, _logistic),
    "ar1": (_flat, _correlated, _jump),
    "missing": (_decay, _white, _logistic),
    "relax": (_linear, _white, _bump),
    "kink": (_linear, _white, _jump),
    "spikes": (_linear, _white, _jump),
    "drop": (_linear, _white, _jump),
}
_ONLY_CHANGING, _ONLY_STABLE = ("kink", "from_zero", "relax"), ("spikes", "drop")
_COMMON = tuple(f for f in _FAMILIES if f not in (*_ONLY_CHANGING, *_ONLY_STABLE))

CHANGING = tuple(f"change_{f}" for f in (*_COMMON, *_ONLY_CHANGING))
STABLE = tuple(f"stable_{f}" for f in (*_COMMON, *_ONLY_STABLE, "zero", "zero_creep"))
#: These follow a learning rate.
ANSWERING = tuple(f"{kind}_{f}" for kind in ("change", "stable") for f in ("schedule", "wsd"))


def suite(seeds: Iterable[int], difficulty: str = "standard") -> Iterator[Series]:
    """Every family at every seed."""
    for seed in seeds:
        for family in (*CHANGING, *STABLE):
            yield make(family, seed, difficulty)


def make(
    family: str, seed: int, difficulty: str = "standard", *, rate_is_told: bool = False
) -> Series:
    """One series; with the rate told the context has the learning rate that it follows."""
    rng = rng_of(f"jumps/{difficulty}/{family}", seed)
    scene = _scene(rng, difficulty)
    kind, _, name = family.partition("_")
    change, height = _change(name, scene) if kind == "change" else (None, 0.0)
    values = _stable(name, scene, height, change)
    onset = settled = None
    if change is not None:
        begun = 0.0 if name == "from_zero" else _BEGUN
        onset = int(np.argmax(change > 0.0 if begun == 0.0 else change >= begun))
        settled = int(np.argmax(change >= _OVER * change.max()))
    context = None
    if rate_is_told and scene.rate is not None:  # its peak is drawn apart
        context = context_of(scene.rate, rng_of(f"rates/{difficulty}/{family}", seed), None)
    steps = np.arange(1, scene.num + 1)
    made = Series(family, seed, steps, values, onset=onset, settled=settled, context=context)
    return recorded(made, rng)


def _change(name: str, s: _Scene) -> tuple[Array, float]:
    """A change from 0 to 1, and its height in units of sigma."""
    if name == "kink":
        length = s.uniform(6.0, 20.0)
        ramp = np.clip((s.time - s.onset + 1.0) / length, 0.0, 1.0)
        return ramp, max(s.height, length * s.uniform(1.0, 2.5))  # a sigma a snapshot or more
    if name == "from_zero":
        return _logistic(s), max(s.height, _LEAST_FROM_ZERO / s.sigma)
    return _FAMILIES[name][2](s), s.height


def _stable(name: str, s: _Scene, height: float, change: Array | None) -> Array:
    """Level, baseline, noise and change together, in natural units."""
    change = np.zeros(s.num) if change is None else change
    if name in ("zero", "zero_creep", "from_zero"):
        return s.sigma * _zero_based(name, s, height * change)
    baseline, noise_of, _ = _FAMILIES[name]
    noise = noise_of(s)
    if name == "hetero":  # the noise grows or shrinks, and the change with it
        trend = np.exp(s.uniform(-1.5, 1.5) * s.time / s.num)
        noise, height = noise * trend, height * float(trend[s.onset])
    elif name == "spikes":
        noise = noise + _glitches(s)
    elif name == "drop":
        change, height = _jump(s), -s.height
    values = s.uniform(*_LEVELS) + s.sigma * (baseline(s) + noise + height * change)
    if name == "quantised":
        grid = s.sigma * s.uniform(1.0, 3.0)
        values = grid * np.round(values / grid)
    elif name == "missing":
        values[s.rng.random(s.num) < s.uniform(0.1, 0.25)] = np.nan
    return values


def _zero_based(name: str, s: _Scene, change: Array) -> Array:
    """Exactly zero until something happens."""
    if name == "zero_creep":
        grown = np.maximum(s.time / s.num - s.uniform(0.1, 0.6), 0.0) * s.uniform(1.0, 4.0)
        return np.maximum(grown * (1.0 + 0.1 * s.normal()), 0.0)
    return change * (1.0 + 0.05 * s.normal())


def _glitches(s: _Scene) -> Array:
    """Single snapshots, no two in a row, that are far off."""
    hit = s.rng.random(s.num) < 0.03
    hit[1:] &= ~hit[:-1]
    sizes = s.rng.uniform(6.0, 30.0, s.num) * s.rng.choice((-1.0, 1.0), s.num)
    return np.where(hit, sizes, 0.0)
