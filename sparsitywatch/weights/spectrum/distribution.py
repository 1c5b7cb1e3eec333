"""Cumulative counts: how many weights lie below t, and which t reaches k of them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.weights.spectrum.bins import Bins, common_edges
from sparsitywatch.weights.spectrum.layered import root_mean_square

__all__ = ["Distribution", "num_pruned"]


def num_pruned(numel: int, level: float) -> int:
    """How many of ``numel`` weights a sparsity level asks to remove, before ties.

    The only rounding rule of the package: to the nearest integer, halves to even, as
    ``torch.nn.utils.prune`` does.

    Args:
        numel: number of weights.
        level: a fraction in [0, 1].

    Returns:
        An integer in [0, numel].

    Raises:
        ConfigurationError: ``level`` lies outside [0, 1].

    >>> num_pruned(10, 0.25), num_pruned(10, 0.35)
    (2, 4)
    """
    if not 0.0 <= level <= 1.0:
        raise ConfigurationError(
            f"Expected `level` to be a fraction of weights in [0, 1], got {level!r}."
        )
    return round(float(level) * numel)


class Distribution:
    """How many weights of a set of histograms lie at or below a magnitude.

    Bins of one kind are added up; kinds stay apart, so that no weight is moved.

    Args:
        totals: by kind: the occupied bins, int32, rising, and the weights in each, int64.
    """

    def __init__(self, totals: Mapping[Bins, tuple[np.ndarray, np.ndarray]]) -> None:
        kinds = sorted(totals, key=lambda bins: bins.name)
        self._parts = [_Part(bins, *totals[bins]) for bins in kinds]

    def count(self, t: float) -> float:
        """Weights with |w| <= t: whole at the end of a bin, interpolated linearly within."""
        return sum(part.count(t) for part in self._parts)

    @cached_property
    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Magnitudes where the count steps up, and the count from there on.

        float64 and int64, rising. With bins of several kinds, only magnitudes that end a
        bin in each of them: the counts there are exact for every dtype.
        """
        if not self._parts:
            return np.empty(0), np.empty(0, np.int64)
        if len(self._parts) == 1:
            (part,) = self._parts
            return part.bins.edges[part.keys], part.cumulative
        magnitudes = common_edges(tuple(part.bins.name for part in self._parts))
        counts = np.sum([part.counts_at_edges(magnitudes) for part in self._parts], axis=0)
        is_step = np.diff(counts, prepend=0) > 0
        return magnitudes[is_step], counts[is_step]

    @property
    def is_exact(self) -> bool:
        """Whether each step is a single value, so that no second pass can add anything."""
        return len(self._parts) <= 1 and all(part.bins.is_exact for part in self._parts)

    def step_reaching(self, num_weights: int) -> int:
        """Index of the first step at which the count reaches ``num_weights``."""
        return int(self.steps[1].searchsorted(num_weights))

    @cached_property
    def rms(self) -> float:
        """Root mean square of the finite weights, from integers only; NaN without any.

        Exact integer sums per binary exponent, then one correctly rounded sum: the same
        counts give the same bits, in whatever order they were added.
        """
        sums = [item for part in self._parts for item in part.squares]
        num_finite = sum(int(part.cumulative[-1]) for part in self._parts if len(part.keys))
        return root_mean_square(sums, num_finite)


class _Part:
    """Counts in bins of one kind; ``keys`` int32, ``counts`` and ``cumulative`` int64."""

    def __init__(self, bins: Bins, keys: np.ndarray, counts: np.ndarray) -> None:
        self.bins, self.keys, self.counts = bins, keys, counts
        self.cumulative = np.cumsum(self.counts)

    def count(self, t: float) -> float:
        key, fraction = self.bins.place(t)
        # the key has the keys' own dtype, or searchsorted would cast all of them
        index = int(self.keys.searchsorted(key, side="right"))
        below = int(self.cumulative[index - 1]) if index else 0
        if fraction == 0.0 or index == len(self.keys) or self.keys[index] != key + 1:
            return below
        return below + int(self.counts[index]) * fraction

    def counts_at_edges(self, magnitudes: np.ndarray) -> np.ndarray:
        """Weights at or below each of ``magnitudes``, which all end a bin."""
        keys = self.bins.edges.searchsorted(magnitudes, side="right") - 1
        padded = np.concatenate(([0], self.cumulative))
        return padded[self.keys.searchsorted(keys, side="right")]

    @property
    def squares(self) -> list[tuple[int, int]]:
        """Three times the sum of squares per binary exponent: (integer, exponent)."""
        start = int(len(self.keys) > 0 and self.keys[0] == 0)
        keys, counts = self.keys[start:], self.counts[start:]
        if not len(keys):
            return []
        exponents = self.bins.unit_exponents[keys]
        starts = np.concatenate(([0], np.flatnonzero(exponents[1:] != exponents[:-1]) + 1))
        sums = np.add.reduceat(counts * self.bins.second_moments[keys], starts)
        return list(zip(sums.tolist(), exponents[starts].tolist(), strict=True))
