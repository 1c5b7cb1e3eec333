"""Integer counts by magnitude: the bins of each float dtype, and what one tensor's counts tell.

The bins are intervals of |w| cut from the bits of its magnitude. Read as an integer, the magnitude
bits of an IEEE float sort like its value. bfloat16 and float16 have so few magnitudes that each
one is a bin. float32 and float64 keep the exponent and eight bits of the significand, rounded
*up*: bin ``key`` holds the magnitudes in (edges[key - 1], edges[key]]. Rounding up makes the
largest value of a bin a number of nine significant bits, which survives a cast to float32, and
leaves exact zeros alone in bin 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from operator import attrgetter

import numpy as np
import torch

from sparsitywatch.records import LogHistogram

#: Bins of log10|w| in each decade, and which one zeros are in.
BINS_PER_DECADE, NO_DECADE = 5, np.iinfo(np.int32).min


@dataclass(frozen=True, eq=False)
class Bins:
    """The bins of one family of magnitudes."""

    name: str  # of the dtype that defines them
    exponent_bias: int
    significand_bits: int  # explicit ones that a key keeps
    shift: int  # low bits of the magnitude that a key drops; 0 where a bin is one value

    @cached_property
    def is_exact(self) -> bool:
        """Whether each bin is a single value."""
        return self.shift == 0

    @cached_property
    def inf_key(self) -> int:
        """One more than the last bin: infinities, where they have a key, have this one."""
        inf = (2 * self.exponent_bias + 1) << self.significand_bits
        return inf if self.is_exact else inf + 1

    @cached_property
    def edges(self) -> np.ndarray:
        """Largest magnitude of each bin: float64, rising, from 0 to the largest finite."""
        # put together from whole numbers: as floats of 32 bits the smallest would be 0 in a process
        # that flushes denormals (torch.set_flush_denormal)
        bits = np.arange(self.inf_key, dtype=np.int64) << self.shift
        if not self.is_exact:
            bits[-1] -= 1  # the last bin ends at the largest finite value
        stored = self.significand_bits + self.shift
        exponents = bits >> stored
        significands = (bits & ((1 << stored) - 1)) | ((exponents > 0).astype(np.int64) << stored)
        powers = np.maximum(exponents, 1) - (self.exponent_bias + stored)
        return np.asarray(np.ldexp(significands.astype(np.float64), powers.astype(np.int32)))

    @cached_property
    def squares(self) -> tuple[np.ndarray, np.ndarray]:
        """Three times the mean square of each bin as integer * 4**exponent: int16, int32."""
        # filled evenly it is lo^2 + lo hi + hi^2; in units of its width hi = lo + 1
        if self.is_exact:
            exponents = np.frexp(self.edges)[1] - (self.significand_bits + 1)
            exponents[0] = exponents[1]
            lo = np.ldexp(self.edges, -exponents).astype(np.int32)
            return exponents.astype(np.int16), 3 * lo**2
        below = np.concatenate(([0.0], self.edges[:-1]))
        exponents = np.frexp(self.edges - below)[1] - 1
        exponents[[0, -1]] = exponents[[1, -2]]  # neither is a power of two wide
        lo = np.ldexp(below, -exponents).astype(np.int32)
        factors = 3 * lo**2 + 3 * lo + 1
        factors[0] = 0
        return exponents.astype(np.int16), factors


@cache
def decades(bins: Bins) -> np.ndarray:
    """Which bin of log10|w| each bin lies in by its geometric middle, int32; zeros: NO_DECADE."""
    # the bin next to zero, which has no middle, counts as its end
    smallest = bins.edges[bins.edges > 0.0][0]  # the first, unless denormals are flushed
    logs: np.ndarray = np.log10(np.maximum(bins.edges, smallest))
    if not bins.is_exact:
        logs[2:] = (logs[1:-1] + logs[2:]) / 2
    found: np.ndarray = np.floor(logs * BINS_PER_DECADE).astype(np.int32)
    found[0] = NO_DECADE
    return found


@cache
def common_edges(*kinds: Bins) -> np.ndarray:
    """Magnitudes that end a bin of each kind, so that counts there are exact, and the largest."""
    edges: np.ndarray = kinds[0].edges
    for bins in kinds[1:]:
        edges = np.intersect1d(edges, bins.edges, assume_unique=True)
    largest = max(float(bins.edges[-1]) for bins in kinds)
    return np.append(edges, largest) if edges[-1] < largest else edges


class Storage:
    """How one torch dtype is stored, and the bins that its magnitudes fall into."""

    def __init__(self, dtype: torch.dtype, bins: Bins) -> None:
        self.dtype = dtype
        self.bins = bins
        self.name = str(dtype).removeprefix("torch.")
        self.num_bytes = dtype.itemsize
        self.sign_off = (1 << (8 * self.num_bytes - 1)) - 1  # all bits but the sign
        self.inf_bits = (bins.inf_key - 1) << bins.shift  # for float32 and float64
        num_keys = (self.sign_off >> bins.shift) + (1 if bins.is_exact else 2)
        #: How many *raw keys* counting works on: keys, but the whole byte of one-byte dtypes.
        self.num_raw = 256 if self.num_bytes == 1 else num_keys

    @cached_property
    def key_of_byte(self) -> np.ndarray:
        """Key of each value of a one-byte dtype, int32: a bin, ``inf_key``, one more for NaN."""
        values = torch.arange(256, dtype=torch.uint8, device="cpu").view(self.dtype)
        magnitudes = values.to(torch.float64).abs().numpy()
        keys = self.bins.edges.searchsorted(magnitudes).astype(np.int32)
        keys[np.isnan(magnitudes)] = self.bins.inf_key + 1
        return keys


def _storages() -> dict[torch.dtype, Storage]:
    kinds = (
        Bins("bfloat16", 127, 7, 0),
        Bins("float16", 15, 10, 0),
        Bins("float32", 127, 8, 15),
        Bins("float64", 1023, 8, 44),
    )
    bins_of = {bins.name: bins for bins in kinds}
    # every float8 value is a float16 value, but for the powers of two in e8m0
    for name in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"):
        bins_of[name] = bins_of["float16"]
    bins_of["float8_e8m0fnu"] = bins_of["float32"]
    dtypes = {getattr(torch, name): bins for name, bins in bins_of.items() if hasattr(torch, name)}
    return {dtype: Storage(dtype, bins) for dtype, bins in dtypes.items()}


#: Every dtype that can be counted.
STORAGES = _storages()


@dataclass(frozen=True, eq=False)
class Histogram:
    """How many weights of one tensor, or of a part of it, have which magnitude."""

    dtype: torch.dtype
    keys: np.ndarray  # occupied bins, int32, rising
    counts: np.ndarray  # weights in each of them, int64, positive
    num_inf: int = 0
    num_nan: int = 0

    @classmethod
    def of_keys(cls, storage: Storage, keys: np.ndarray, counts: np.ndarray) -> Histogram:
        """From counts by rising raw key; float32 and float64 infinities share the last bin."""
        counts = counts.astype(np.int64, copy=False)
        if storage.num_bytes == 1:  # several bytes, as those of either sign, are one magnitude
            of_bytes = counts
            keys, place = np.unique(storage.key_of_byte[keys], return_inverse=True)
            counts = np.zeros(len(keys), np.int64)
            np.add.at(counts, place, of_bytes)
        keys = keys.astype(np.int32, copy=False)
        inf_key = storage.bins.inf_key
        if not len(keys) or keys[-1] < inf_key:  # as of most tensors
            return cls(storage.dtype, keys, counts)
        end, nan = keys.searchsorted([inf_key, inf_key + storage.bins.is_exact]).tolist()
        num_inf, num_nan = int(counts[end:nan].sum()), int(counts[nan:].sum())
        return cls(storage.dtype, keys[:end], counts[:end], num_inf, num_nan)

    @property
    def may_hold_inf(self) -> bool:
        """Whether infinities may be among the largest finite values, whose bin they share."""
        shares = self.dtype.itemsize > 2 and len(self.keys) > 0
        return shares and int(self.keys[-1]) == STORAGES[self.dtype].bins.inf_key - 1

    def with_inf(self, num_inf: int) -> Histogram:
        """The same, with ``num_inf`` weights of the last bin known to be infinite."""
        counts = self.counts.copy()
        counts[-1] -= num_inf
        kept = counts > 0
        return Histogram(self.dtype, self.keys[kept], counts[kept], num_inf, self.num_nan)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return (
            (self.dtype, self.num_inf, self.num_nan) == (other.dtype, other.num_inf, other.num_nan)
            and np.array_equal(self.keys, other.keys)
            and np.array_equal(self.counts, other.counts)
        )

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def num_weights(self) -> int:
        """All, those that are not finite included."""
        return int(self.counts.sum()) + self.num_inf + self.num_nan


def summed(histograms: Sequence[Histogram]) -> Histogram:
    """All weights of some histograms, at least one, as one of the first one's dtype."""
    if len(histograms) == 1:
        return histograms[0]
    num_inf = num_nan = 0
    dense = np.zeros(STORAGES[histograms[0].dtype].bins.inf_key, np.int64)
    for histogram in histograms:
        np.add.at(dense, histogram.keys.astype(np.intp), histogram.counts)
        num_inf += histogram.num_inf
        num_nan += histogram.num_nan
    keys = np.flatnonzero(dense != 0)  # several times faster than of integers
    return Histogram(histograms[0].dtype, keys.astype(np.int32), dense[keys], num_inf, num_nan)


class Rows:
    """The counts of T tensors whose bins are of one kind, end to end, a tensor a row.

    So each question to a hundred tensors is a few array operations; one by one that takes as long
    as counting small tensors does.
    """

    def __init__(self, histograms: Sequence[Histogram]) -> None:
        self.bins = STORAGES[histograms[0].dtype].bins
        keys = list(map(attrgetter("keys"), histograms))
        self._num_inf = np.array([*map(attrgetter("num_inf"), histograms)])[:, None]
        # what a bin is found by, rising throughout: its key, above those of all rows before
        self._size = 1 << self.bins.inf_key.bit_length()
        self._bases = np.arange(len(histograms), dtype=np.int32)[:, None] * np.int32(self._size)
        lengths = np.array([*map(len, keys)])
        self._order = np.repeat(self._bases, lengths)
        self._order += np.concatenate(keys)
        #: Weights before each bin, and in all of them, int64.
        self.before = np.zeros(len(self._order) + 1, np.int64)
        np.concatenate([*map(attrgetter("counts"), histograms)], out=self.before[1:])
        np.cumsum(self.before, out=self.before)
        ends = lengths.cumsum()
        below = self.before[ends - lengths]
        self.num_finite = self.before[ends] - below  # int64 [T]
        self._before_rows = below[:, None]

    @property
    def keys(self) -> np.ndarray:
        """Of the bins of one row after another."""
        return np.asarray(self._order & np.int32(self._size - 1))

    def _index_of(self, keys: np.ndarray) -> np.ndarray:
        """How many bins lie below some keys of each row: [T, K] for keys [K] or [T, K]."""
        # in the dtype of what is searched, or all of that would be cast
        return np.asarray(self._order.searchsorted(self._bases + keys.astype(np.int32)))

    def at_most(self, t: np.ndarray) -> np.ndarray:
        """Weights with |w| <= t, float64 [T, K] like ``t``, interpolated within a bin; no NaN."""
        edges = self.bins.edges
        key = edges.searchsorted(t, "right")
        index = self._index_of(key)
        found: np.ndarray = (self.before[index] - self._before_rows) + 0.0
        if not self.bins.is_exact and len(self._order):
            # the bin around t, where there is one and it holds weights
            is_own = self._order.take(index, mode="clip") == self._bases + key
            inside = np.nonzero(is_own & (key > 0))
            above, own = key[inside], index[inside]
            begins, ends = edges[above - 1], edges[above]
            counts = self.before[own + 1] - self.before[own]
            found[inside] += counts * ((t[inside] - begins) / (ends - begins))
        return found + np.where(t == math.inf, self._num_inf, 0)

    def log10_histograms(self) -> list[LogHistogram]:
        """Counts of the finite non-zero weights by decade fraction, trimmed to what is there."""
        places, counts = self.by_class(decades(self.bins))
        found = []
        for own in counts:
            occupied = np.flatnonzero(own)
            here = slice(occupied[0], occupied[-1] + 1) if len(occupied) else slice(0)
            ends = np.append(places[here], places[here][-1:] + 1)
            found.append(LogHistogram(edges=ends / BINS_PER_DECADE, counts=own[here]))
        return found

    def root_mean_squares(self) -> np.ndarray:
        """Of the finite weights of each row, [T]; NaN without any."""
        # one correctly rounded sum of whole numbers: the same counts give the same bits, in
        # whatever order they were added
        powers, sums = self.by_class(*self.bins.squares)
        least = powers.min(initial=0)
        tops = np.where(sums > 0, powers, least).max(axis=1, initial=least)
        terms = np.ldexp(sums, 2 * (powers - tops[:, None])).tolist()
        means = list(map(math.fsum, terms)) / np.where(
            self.num_finite, 3.0 * self.num_finite, math.nan
        )
        return np.asarray(np.ldexp(np.sqrt(means), tops))

    def by_class(
        self, class_of_key: np.ndarray, factor_of_key: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rising classes of bins, [C], and weights of each row in them, or a multiple, [T, C]."""
        keys = self.keys
        index = self._index_of(np.array([1, self.bins.inf_key]))
        firsts, ends = index[index[:, 0] < index[:, 1]].T  # where there are weights but zeros
        if not len(firsts):
            return class_of_key[:0], np.zeros((len(index), 0), np.int64)
        lowest, highest = class_of_key[[keys[firsts].min(), keys[ends - 1].max()]]
        classes = np.arange(lowest, highest + 2, dtype=class_of_key.dtype)
        index = self._index_of(class_of_key.searchsorted(classes))
        if factor_of_key is None:
            return classes[:-1], np.diff(self.before[index], axis=1)
        products = np.zeros_like(self.before)
        np.subtract(self.before[1:], self.before[:-1], out=products[:-1])
        products[:-1] *= factor_of_key.take(keys.astype(np.intp))  # three times as fast as of int32
        sums = np.add.reduceat(products, index.ravel()).reshape(index.shape)
        return classes[:-1], np.where(index[:, :-1] < index[:, 1:], sums[:, :-1], 0)
