"""What is asked of every tensor at once: the answers of each tensor's own histogram.

A model has some hundred tensors, and a look asks each of them for its share at each of some
twenty thresholds. One by one that costs as much as counting the weights; here the bins of
all tensors lie one after another, and each question is one array operation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache, cached_property, lru_cache

import numpy as np

from sparsitywatch.records import LogHistogram
from sparsitywatch.weights.spectrum.bins import BINS, Bins
from sparsitywatch.weights.spectrum.histogram import Histogram

__all__ = ["Layered", "root_mean_square"]

#: Bins that are asked together: arrays of them stay in a core's cache.
GROUP = 1 << 16


class Layered:
    """The histograms of T tensors, of any dtypes; results have their order.

    Args:
        histograms: one per tensor.
    """

    def __init__(self, histograms: Sequence[Histogram]) -> None:
        self.num_weights = np.array([h.num_weights for h in histograms], np.int64)
        self._num_nan = np.array([h.num_nan for h in histograms], np.int64)
        self._groups = [
            (np.array(where), _Group(bins, [histograms[i] for i in where]))
            for bins, where in _in_groups(histograms)
        ]

    @property
    def totals(self) -> dict[Bins, tuple[np.ndarray, np.ndarray]]:
        """The histograms of each kind of bins added up: keys, rising, and counts."""
        dense: dict[Bins, np.ndarray] = {}
        for _, group in self._groups:
            group.add_to(dense.setdefault(group.bins, np.zeros(len(group.bins.edges), np.int64)))
        found = {}
        for bins, counts in dense.items():
            keys = np.flatnonzero(counts != 0).astype(np.int32)
            found[bins] = keys, counts[keys]
        return found

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


def _in_groups(histograms: Sequence[Histogram]) -> Iterator[tuple[Bins, list[int]]]:
    """Positions of histograms of one kind of bins, up to GROUP bins together."""
    by_kind: dict[str, list[int]] = {}
    for i, histogram in enumerate(histograms):
        by_kind.setdefault(histogram.bins.name, []).append(i)
    for name, positions in by_kind.items():
        group: list[int] = []
        num_bins = 0
        for i in positions:
            num_bins += len(histograms[i].keys)
            if group and num_bins > GROUP:
                yield BINS[name], group
                group, num_bins = [], len(histograms[i].keys)
            group.append(i)
        yield BINS[name], group


class _Group:
    """Tensors whose bins are of one kind; their bins end to end."""

    def __init__(self, bins: Bins, histograms: Sequence[Histogram]) -> None:
        self.bins = bins
        lengths = np.array([len(h.keys) for h in histograms])
        self._ends = np.cumsum(lengths)
        self._starts = self._ends - lengths
        self._before = np.zeros(self._ends[-1] + 1, np.int64)
        np.cumsum(np.concatenate([h.counts for h in histograms]), out=self._before[1:])
        # rises throughout: a tensor's keys lie between row * stride and the next row's
        self._stride = len(bins.edges) + 1
        is_short = len(lengths) * self._stride < 1 << 31
        self._bases = np.arange(len(lengths), dtype=np.int32 if is_short else np.int64)
        self._bases *= self._stride
        self._order = np.repeat(self._bases, lengths)
        self._order += np.concatenate([h.keys for h in histograms])

    def _keys(self) -> np.ndarray:
        # made anew: what is kept costs more than what is computed
        return (self._order - np.repeat(self._bases, self._ends - self._starts)).astype(np.intp)

    def add_to(self, dense: np.ndarray) -> None:
        # add.at is fast for indices that need no cast
        np.add.at(dense, self._keys(), np.diff(self._before))

    def num_at_most(self, t: np.ndarray) -> np.ndarray:
        keys, fractions = _places(self.bins, t)
        queries = self._queries(keys + 1)
        index = self._order.searchsorted(queries)
        below: np.ndarray = (self._before[index] - self._before[self._starts][:, None]) + 0.0
        inside = np.flatnonzero((fractions > 0.0) & (index < self._ends[:, None]))
        flat = index.ravel()[inside]
        inside, flat = (x[self._order[flat] == queries.ravel()[inside]] for x in (inside, flat))
        counts = self._before[flat + 1] - self._before[flat]
        below.ravel()[inside] += counts * fractions.ravel()[inside]
        return below

    def _queries(self, keys: np.ndarray) -> np.ndarray:
        """``keys``, [K] or [T, K], of each tensor, as ``_order`` has them; [T, K]."""
        # in the dtype of what is searched, or all of that would be cast
        queries: np.ndarray = self._bases[:, None] + keys.astype(self._order.dtype)
        return queries

    def rms(self) -> list[float]:
        starts, exponents = _exponents(self.bins)
        index, exponents = self._index_of(starts, exponents)
        squares = np.zeros(len(self._before), np.int64)
        squares[1:] = self.bins.second_moments[self._keys()]
        squares[1:] *= np.diff(self._before)
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
        queries = self._queries(starts[begin : end + 1])
        return self._order.searchsorted(queries), values[begin:end]

    @cached_property
    def _span(self) -> tuple[int, int]:
        """The smallest key but 0, and the largest; (stride, 0) if there is none."""
        starts = self._order.searchsorted(self._bases + 1)
        used = starts < self._ends
        first = self._order[starts[used]] - self._bases[used]
        last = self._order[self._ends[used] - 1] - self._bases[used]
        return int(first.min(initial=self._stride)), int(last.max(initial=0))


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


@lru_cache(maxsize=8)
def _log_bins(bins: Bins, bins_per_decade: int) -> tuple[np.ndarray, list[int]]:
    return _classes(np.floor(bins.log10_middles * bins_per_decade).astype(np.int64))


def _classes(value_of_key: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """First key of each run of equal values from key 1 on, and the end; the values."""
    starts = 2 + np.flatnonzero(np.diff(value_of_key[1:]))
    starts = np.concatenate(([1], starts, [len(value_of_key)]))
    return starts, value_of_key[starts[:-1]].tolist()
