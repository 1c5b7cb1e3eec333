"""What is asked of every tensor at once: the answers of each tensor's own histogram.

A model has some hundred tensors, and a look asks each of them for its share at each of some
twenty thresholds. One by one that costs as much as counting the weights; here the bins of
all tensors lie one after another, and each question is one array operation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache, cached_property, lru_cache

import numpy as np

from sparsitywatch.records import LogHistogram
from sparsitywatch.weights.spectrum.bins import BINS, Bins
from sparsitywatch.weights.spectrum.histogram import Histogram

__all__ = ["Layered", "root_mean_square"]


class Layered:
    """The histograms of T tensors, of any dtypes; results have their order.

    Args:
        histograms: one per tensor.
    """

    def __init__(self, histograms: Sequence[Histogram]) -> None:
        self.num_weights = np.array([h.num_weights for h in histograms], np.int64)
        self._num_nan = np.array([h.num_nan for h in histograms], np.int64)
        places: dict[str, list[int]] = {}
        for i, histogram in enumerate(histograms):
            places.setdefault(histogram.bins.name, []).append(i)
        self._groups = [
            (np.array(where), _Group(BINS[name], [histograms[i] for i in where]))
            for name, where in places.items()
        ]

    @property
    def totals(self) -> dict[Bins, tuple[np.ndarray, np.ndarray]]:
        """The histograms of each kind of bins added up: keys, rising, and counts."""
        return {group.bins: group.total() for _, group in self._groups}

    def num_at_most(self, t: np.ndarray) -> np.ndarray:
        """Weights with |w| <= t in each tensor, float64 [T, K]: interpolated within a bin.

        Args:
            t: float64 [K], or [T, K] for thresholds of each tensor's own; no NaN.
        """
        num_tensors = len(self.num_weights)
        t = np.broadcast_to(t, (num_tensors, t.shape[-1]))
        found = np.empty(t.shape)
        for where, group in self._groups:
            found[where] = group.num_at_most(t[where])
        everything = (self.num_weights - self._num_nan)[:, None]
        return np.where(t == math.inf, everything, found)

    @cached_property
    def rms(self) -> list[float]:
        """Root mean square of the finite weights of each tensor; NaN without any."""
        found = [math.nan] * len(self.num_weights)
        for where, group in self._groups:
            for i, value in zip(where.tolist(), group.rms(), strict=True):
                found[i] = value
        return found

    def log10_histograms(self, bins_per_decade: int) -> list[LogHistogram]:
        """Counts of the finite non-zero weights by decade fraction, trimmed to what is there."""
        found: dict[int, LogHistogram] = {}
        for where, group in self._groups:
            histograms = group.log10_histograms(bins_per_decade)
            found |= dict(zip(where.tolist(), histograms, strict=True))
        return [found[i] for i in range(len(found))]


class _Group:
    """Tensors whose bins are of one kind; their bins end to end.

    These arrays have hundreds of thousands of elements. Results go where they stay: a
    temporary would be fresh memory, which costs more than the arithmetic.
    """

    def __init__(self, bins: Bins, histograms: Sequence[Histogram]) -> None:
        self.bins = bins
        lengths = np.array([len(h.keys) for h in histograms])
        self._ends = np.cumsum(lengths)
        self._starts = self._ends - lengths
        self._keys = np.concatenate([h.keys for h in histograms], dtype=np.intp)
        self._counts = np.concatenate([h.counts for h in histograms])
        self._before = np.zeros(len(self._counts) + 1, np.int64)
        np.cumsum(self._counts, out=self._before[1:])
        # rises throughout: a tensor's keys lie between row * stride and the next row's
        self._stride = len(bins.edges) + 1
        self._order = np.repeat(np.arange(len(lengths)) * self._stride, lengths)
        self._order += self._keys

    def total(self) -> tuple[np.ndarray, np.ndarray]:
        dense = np.zeros(len(self.bins.edges), np.int64)
        np.add.at(dense, self._keys, self._counts)
        keys = np.flatnonzero(dense != 0).astype(np.int32)
        return keys, dense[keys]

    def num_at_most(self, t: np.ndarray) -> np.ndarray:
        keys, fractions = _places(self.bins, t)
        rows = np.arange(len(self._ends))[:, None]
        index = self._order.searchsorted(rows * self._stride + keys, side="right")
        below: np.ndarray = (self._before[index] - self._before[self._starts][:, None]) + 0.0
        inside = np.flatnonzero((fractions > 0.0) & (index < self._ends[:, None]))
        flat = index.ravel()[inside]
        inside, flat = (x[self._keys[flat] == keys.ravel()[inside] + 1] for x in (inside, flat))
        below.ravel()[inside] += self._counts[flat] * fractions.ravel()[inside]
        return below

    def rms(self) -> list[float]:
        starts, exponents = _exponents(self.bins)
        index, exponents = self._index_of(starts, exponents)
        squares = np.zeros(len(self._keys) + 1, np.int64)
        np.take(_moments(self.bins), self._keys, out=squares[1:], mode="clip")
        squares[1:] *= self._counts
        np.cumsum(squares, out=squares)
        sums = np.diff(squares[index], axis=1)
        num_finite = (self._before[self._ends] - self._before[self._starts]).tolist()
        return [
            root_mean_square([(s, e) for s, e in zip(row, exponents, strict=True) if s], num)
            for row, num in zip(sums.tolist(), num_finite, strict=True)
        ]

    def log10_histograms(self, bins_per_decade: int) -> list[LogHistogram]:
        index, places = self._index_of(*_log_bins(self.bins, bins_per_decade))
        sums = np.diff(self._before[index], axis=1)
        return [_log_histogram(row, places, bins_per_decade) for row in sums]

    @cached_property
    def _span(self) -> tuple[int, int]:
        """The smallest key but 0, and the largest; (stride, 0) if there is none."""
        starts = self._order.searchsorted(np.arange(len(self._ends)) * self._stride + 1)
        used = starts < self._ends
        first = self._keys[starts[used]].min(initial=self._stride)
        return int(first), int(self._keys[self._ends[used] - 1].max(initial=0))

    def _index_of(self, starts: np.ndarray, values: list[int]) -> tuple[np.ndarray, list[int]]:
        """Where each class of keys begins and ends in each tensor's bins, [T, C + 1].

        Args:
            starts: first key of each class and one beyond the last class, rising, length
                C + 1; those that no tensor reaches are left out.
            values: what each class stands for.
        """
        first, last = self._span
        begin = max(int(starts.searchsorted(first, side="right")) - 1, 0)
        end = max(int(starts.searchsorted(last, side="right")), begin)
        queries = np.arange(len(self._ends))[:, None] * self._stride + starts[begin : end + 1]
        return self._order.searchsorted(queries), values[begin:end]


def root_mean_square(sums: Sequence[tuple[int, int]], num_finite: int) -> float:
    """From three times the sum of squares per binary exponent: (integer, exponent).

    One correctly rounded sum: the same counts give the same bits, in whatever order they
    were added.
    """
    if num_finite == 0:
        return math.nan
    if not sums:
        return 0.0
    top = max(exponent for _, exponent in sums)
    total = math.fsum(math.ldexp(float(s), 2 * (exponent - top)) for s, exponent in sums)
    return math.ldexp(math.sqrt(total / (3 * num_finite)), top)


def _log_histogram(sums: np.ndarray, places: list[int], bins_per_decade: int) -> LogHistogram:
    occupied = np.flatnonzero(sums)
    if not len(occupied):
        return LogHistogram(edges=np.empty(0), counts=np.empty(0, np.int64))
    start, end = int(occupied[0]), int(occupied[-1]) + 1
    first, last = places[start], places[end - 1]
    counts = np.zeros(last - first + 1, np.int64)
    counts[np.array(places[start:end]) - first] = sums[start:end]
    return LogHistogram(edges=np.arange(first, last + 2) / bins_per_decade, counts=counts)


def _places(bins: Bins, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``bins.place`` of each threshold: int64 and float64, in the shape of ``t``."""
    keys: np.ndarray = bins.edges.searchsorted(t, side="right") - 1
    fractions = np.zeros(t.shape)
    if not bins.is_exact:
        inside = (keys >= 0) & (keys + 1 < len(bins.edges))
        lo, hi = bins.edges[keys[inside]], bins.edges[keys[inside] + 1]
        fractions[inside] = (t[inside] - lo) / (hi - lo)
    return keys, fractions


# cached: these depend on nothing that is counted


@cache
def _exponents(bins: Bins) -> tuple[np.ndarray, list[int]]:
    return _classes(bins.unit_exponents)


@cache
def _moments(bins: Bins) -> np.ndarray:
    return bins.second_moments.astype(np.int64)


@lru_cache(maxsize=8)
def _log_bins(bins: Bins, bins_per_decade: int) -> tuple[np.ndarray, list[int]]:
    return _classes(np.floor(bins.log10_middles * bins_per_decade).astype(np.int64))


def _classes(value_of_key: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """First key of each run of equal values from key 1 on, and the end; the values."""
    starts = 2 + np.flatnonzero(np.diff(value_of_key[1:]))
    starts = np.concatenate(([1], starts, [len(value_of_key)]))
    return starts, value_of_key[starts[:-1]].tolist()
