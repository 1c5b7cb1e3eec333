"""Series of three kinds in which nothing happens, for what a rate of false alarms is asked of.

Near-zero-like: a small fraction, its noise in proportion. Essential-sparsity-like: a level of a
half and more, noise of a point to five, and correlated, as on a plateau. Loss-like: a decay that
slows down, with noise of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from detecting.series import Array, Series, log_uniform, rng_of

__all__ = ["KINDS", "correlated", "make", "suite"]

KINDS = ("near_zero", "essential_sparsity", "loss")
_LENGTHS = (60.0, 400.0)
_LARGEST_CORRELATION = 0.9


def make(kind: str, seed: int) -> Series:
    """One series without a change; the same arguments give the same one.

    Raises:
        KeyError: there is no such kind.
    """
    rng = rng_of(f"kinds/{kind}", seed)
    num = int(log_uniform(rng, *_LENGTHS))
    way = np.arange(num) / num
    noise = correlated(rng, num, rng.uniform(0.0, _LARGEST_CORRELATION))
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
    }[kind]()
    return Series(kind, seed, 100 * np.arange(1, num + 1), values)


def suite(seeds: Iterable[int], kind: str) -> Iterator[Series]:
    """One series a seed."""
    return (make(kind, seed) for seed in seeds)


def correlated(rng: np.random.Generator, num: int, rho: float) -> Array:
    """Noise of variance 1 whose neighbours are correlated by ``rho``."""
    noise = rng.standard_normal(num)
    for i in range(1, num):
        noise[i] = rho * noise[i - 1] + np.sqrt(1.0 - rho**2) * noise[i]
    return np.asarray(noise, np.float64)
