"""Made-up series beside those of quick and slow rises.

Kinds in which nothing happens: near_zero, a small fraction with noise in proportion;
essential_sparsity, a level of a half and more, its noise of a point to five and correlated, as on a
plateau; loss, a decay that slows down; and a level with noise of one kind: correlated by .5 or .9
(ar_5, ar_9), a correlated one as a probability (logistic), with Student's t of three degrees
(heavy_tails), rounded to a grid as coarse as itself (rounded), or a random walk. And series for the
other detectors, with the context that each needs: measured with an interval, dormant fractions, and
losses.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from detecting.series import Array, Series, correlated, log_uniform, rng_of

KINDS = (
    "near_zero", "essential_sparsity", "loss", "ar_5", "ar_9", "logistic", "heavy_tails", "rounded",
    "walk",
)  # fmt: skip
_LENGTHS = (60.0, 400.0)
_LARGEST_CORRELATION = 0.9

_NUM = 60
_EVERY = 100
_ONSET = 35
#: How wide a measured interval is to each side, and how much of that its centre scatters.
_SIDE = 0.06
_SCATTER = (0.2, 0.6)

MEASURED = ("plateau", "drift", "fall", "slow_fall", "fall_with_cause", "rise", "tripling", "two")
DORMANT = ("alive", "dying", "dying_at_once", "dead_before", "back_and_again", "no_decay")


def quiet(kind: str, seed: int) -> Series:
    """One series without a change; the same arguments give the same one."""
    rng = rng_of(f"kinds/{kind}", seed)
    num = int(log_uniform(rng, *_LENGTHS))
    way = np.arange(num) / num
    rho = {"ar_5": 0.5, "ar_9": 0.9}.get(kind, rng.uniform(0.0, _LARGEST_CORRELATION))
    noise = correlated(rng, num, rho)
    values: Array = {
        "near_zero": lambda: (
            log_uniform(rng, 0.02, 0.15)
            * np.exp(rng.uniform(-0.3, 0.3) * way + log_uniform(rng, 0.005, 0.05) * noise)
        ),
        "essential_sparsity": lambda: (
            rng.uniform(0.5, 0.8) + rng.uniform(-0.05, 0.05) * way + rng.uniform(0.01, 0.05) * noise
        ),
        "loss": lambda: (
            rng.uniform(1.5, 3.5)
            + rng.uniform(0.5, 4.0) * np.exp(-way / log_uniform(rng, 0.02, 0.3))
            + rng.uniform(0.01, 0.05) * noise
        ),
    }.get(kind, lambda: _level_with(kind, noise, rng))()
    return Series(kind, seed, 100 * np.arange(1, num + 1), values)


def _level_with(kind: str, noise: Array, rng: np.random.Generator) -> Array:
    """A level with noise of one kind."""
    num, sd = len(noise), log_uniform(rng, 0.002, 0.05)
    values: Array = {
        "heavy_tails": lambda: rng.standard_t(3, num),
        "rounded": lambda: np.round(noise),
        "walk": lambda: 0.3 * np.cumsum(rng.standard_normal(num)),
    }.get(kind, lambda: noise)()
    if kind == "logistic":
        return np.asarray(1.0 / (1.0 + np.exp(rng.uniform(-2.0, 2.0) - 10.0 * sd * values)))
    return rng.uniform(0.2, 0.8) + sd * values


def quiet_suite(seeds: Iterable[int], kind: str) -> Iterator[Series]:
    """One series a seed."""
    return (quiet(kind, seed) for seed in seeds)


def measured(seeds: Iterable[int]) -> Iterator[Series]:
    """Essential sparsity of every kind at every seed, with its interval and the reliance."""
    for seed in seeds:
        for name in MEASURED:
            rng = rng_of(f"measured/{name}", seed)
            noise = correlated(rng, _NUM, rng.uniform(0.0, 0.8))
            values = _level(name, rng) + _SIDE * rng.uniform(*_SCATTER) * noise
            has_cause = (np.arange(_NUM) >= _ONSET) & (name == "fall_with_cause")
            scatter = np.asarray(np.exp(0.05 * rng.standard_normal(_NUM)))
            reliance = 0.1 * (1.0 + 2.0 * has_cause) * scatter
            context = {"low": values - _SIDE, "high": values + _SIDE, "reliance": reliance}
            yield _series(f"measured_{name}", seed, values, context)


def _level(name: str, rng: np.random.Generator) -> Array:
    late = np.clip((np.arange(_NUM) - _ONSET + 1) / (12 if name.startswith("slow") else 2), 0, 1)
    size = rng.uniform(0.08, 0.3)
    if name == "drift":
        return 0.8 - size * np.arange(_NUM) / _NUM
    if name == "tripling":
        return 0.2 * (1.0 + 2.0 * late)
    if name == "two":
        return 0.8 - size * late - size * np.clip((np.arange(_NUM) - _NUM + 8) / 2, 0, 1)
    sign = {"plateau": 0.0, "rise": 1.0}.get(name, -1.0)
    return np.asarray(0.6 + sign * size * late)


def dormant(seeds: Iterable[int]) -> Iterator[Series]:
    """The dormant fraction of every kind at every seed, with chance and the decay clock."""
    for seed in seeds:
        for name in DORMANT:
            rng = rng_of(f"dormant/{name}", seed)
            chance = 0.01 * np.exp(np.linspace(0.0, rng.uniform(0.0, 1.0), _NUM))
            dead = _dead(name, rng)
            values = (1.0 - dead) * chance * np.exp(0.05 * rng.standard_normal(_NUM)) + dead
            clock = np.arange(1.0, _NUM + 1.0) * (0.0 if name == "no_decay" else 0.01)
            context = {"dormant_by_chance": chance, "decay_clock": clock}
            yield _series(f"dormant_{name}", seed, values, context)


def _dead(name: str, rng: np.random.Generator) -> Array:
    """The share of the weights of dead units."""
    time, most = np.arange(_NUM), rng.uniform(0.06, 0.4)
    length = 2 if name == "dying_at_once" else 20
    dying = most * np.clip((time - 20) / length, 0.0, 1.0)
    if name == "alive":
        return np.zeros(_NUM)
    if name == "dead_before":
        return np.full(_NUM, most)
    if name == "back_and_again":  # revived by what comes between, and dead once more
        return np.where(time < 30, 2.0 * np.minimum(dying, 0.3 * most), dying * (time >= 40))
    return np.asarray(dying)


def _series(family: str, seed: int, values: Array, context: dict[str, Array]) -> Series:
    return Series(family, seed, _EVERY * np.arange(1, _NUM + 1), values, context=context)


def losses(seed: int) -> dict[str, Array]:
    """Losses of one seed that are well, and that get worse from the middle on."""
    rng, time = rng_of("losses", seed), np.arange(2 * _NUM)
    well = 0.2 + 2.0 * np.exp(-time / rng.uniform(8, 15)) + 0.01 * rng.standard_normal(len(time))
    late = np.maximum(time - _NUM, 0)
    return {
        "well": well,
        "jump": well + 0.15 * (late > 0),
        "drift": well + 0.03 * late,
        "chance": np.where(late > 0, 2.3, well),
    }
