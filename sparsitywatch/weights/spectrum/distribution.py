"""Cumulative counts: how many weights lie below t, and which t reaches k of them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import numpy as np

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.weights.spectrum.bins import BINS, Bins, common_edges
from sparsitywatch.weights.spectrum.histogram import Histogram
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
        histograms: of any dtypes.
    """

    def __init__(self, histograms: Iterable[Histogram]) -> None:
        by_bins: dict[str, list[Histogram]] = {}
        for histogram in histograms:
            by_bins.setdefault(histogram.bins.name, []).append(histogram)
        self._parts = [_Part(BINS[name], by_bins[name]) for name in sorted(by_bins)]

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

    def __init__(self, bins: Bins, histograms: list[Histogram]) -> None:
        self.bins = bins
        if len(histograms) == 1:
            self.keys, self.counts = histograms[0].keys, histograms[0].counts
        else:
            dense = np.zeros(len(bins.edges), np.int64)
            # add.at is fast for indices that need no cast
            keys = np.concatenate([h.keys for h in histograms]).astype(np.intp)
            np.add.at(dense, keys, np.concatenate([h.counts for h in histograms]))
            self.keys = np.flatnonzero(dense != 0).astype(np.int32)
            self.counts = dense[self.keys]
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
