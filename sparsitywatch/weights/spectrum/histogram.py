"""Integer counts by magnitude: of one tensor, which add, and of many, which answer.

The bins are intervals of |w| cut from the bits of its magnitude. Read as an integer, the magnitude
bits of an IEEE float sort like its value. bfloat16 and float16 have so few magnitudes that each
one is a bin. float32 and float64 keep the exponent and eight bits of the significand, rounded
*up*: bin ``key`` holds the magnitudes in (edges[key - 1], edges[key]]. Rounding up makes the
largest value of a bin a number of nine significant bits, which survives a cast to float32, and
leaves exact zeros alone in bin 0.

Shapes: T tensors, K thresholds, B occupied bins of all tensors.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from operator import attrgetter

import numpy as np
import torch

from sparsitywatch.records import LogHistogram

__all__ = ["STORAGES", "Bins", "Histogram", "Histograms", "Storage"]

# ------------------------------------------------------------------ bins of each float dtype

#: Which bin of log10|w| zeros are in.
NO_DECADE = np.iinfo(np.int32).min


@dataclass(frozen=True, eq=False)
class Bins:
    """The bins of one family of magnitudes.

    Args:
        name: of the dtype that defines them.
        float_bits: width of that dtype.
        exponent_bias: its exponent bias.
        significand_bits: explicit bits of the significand that a key keeps.
        shift: low bits of the magnitude that a key drops; 0 where a bin is one value.
    """

    name: str
    float_bits: int
    exponent_bias: int
    significand_bits: int
    shift: int

    @cached_property
    def is_exact(self) -> bool:
        """Whether each bin is a single value."""
        return self.shift == 0

    @cached_property
    def inf_key(self) -> int:
        """Key of the infinities in a dense array of counts; the NaN key is one more."""
        inf = (2 * self.exponent_bias + 1) << self.significand_bits
        return inf if self.is_exact else inf + 1

    @cached_property
    def edges(self) -> np.ndarray:
        """Largest magnitude of each bin: float64, rising, from 0 to the largest finite."""
        if self.name == "bfloat16":  # numpy has none: the upper half of a float32
            return (np.arange(self.inf_key, dtype="u4") << 16).view("f4").astype(np.float64)
        magnitudes: np.ndarray = np.arange(self.inf_key, dtype=f"u{self.float_bits // 8}")
        magnitudes <<= magnitudes.dtype.type(self.shift)
        if not self.is_exact:
            magnitudes[-1] -= 1  # the last bin ends at the largest finite value
        return magnitudes.view(self.name).astype(np.float64)

    @cached_property
    def squares(self) -> tuple[np.ndarray, np.ndarray]:
        """Three times the mean square of each bin as integer * 4**exponent: int16, int32.

        A bin is taken as filled evenly: (lo^2 + lo hi + hi^2) / 3. In units of its width that is
        an integer over three, since hi = lo + 1.
        """
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


@lru_cache(maxsize=8)
def decades(bins: Bins, bins_per_decade: int) -> np.ndarray:
    """Which bin of log10|w| each bin lies in by its geometric middle, int32.

    The bin next to zero, which has no geometric middle, counts as its end; zeros have NO_DECADE.
    """
    logs: np.ndarray = np.log10(np.maximum(bins.edges, bins.edges[1]))
    if not bins.is_exact:
        logs[2:] = (logs[1:-1] + logs[2:]) / 2
    found: np.ndarray = np.floor(logs * bins_per_decade).astype(np.int32)
    found[0] = NO_DECADE
    return found


@cache
def common_edges(*kinds: Bins) -> np.ndarray:
    """Magnitudes that end a bin of each kind, and the largest of all.

    Counts at these are exact for weights of every dtype among them, also where a comparison
    casts the threshold to the dtype of the weights.
    """
    edges: np.ndarray = kinds[0].edges
    for bins in kinds[1:]:
        edges = np.intersect1d(edges, bins.edges, assume_unique=True)
    largest = max(float(bins.edges[-1]) for bins in kinds)
    return np.append(edges, largest) if edges[-1] < largest else edges


@dataclass(frozen=True, eq=False)
class Storage:
    """How one torch dtype is stored, and the bins that its magnitudes fall into.

    Counting works on *raw keys*, which are cheap to take from the bits: the whole byte or
    16-bit word, sign included, of small dtypes; the key itself of float32 and float64.

    Args:
        dtype: of torch.
        bins: of its magnitudes.
        name: the dtype's without ``torch.``.
        num_bytes: of a value.
        bits_dtype: integer dtype of the same width.
        sign_off: the bits of a word but the sign.
        inf_bits: magnitude bits of infinity, for float32 and float64.
        num_raw: how many raw keys there are.
    """

    dtype: torch.dtype
    bins: Bins
    name: str
    num_bytes: int
    bits_dtype: torch.dtype
    sign_off: int
    inf_bits: int
    num_raw: int

    @classmethod
    def of(cls, dtype: torch.dtype, bins: Bins) -> Storage:
        """That of a dtype."""
        name, num_bytes = str(dtype).removeprefix("torch."), dtype.itemsize
        bits_dtype = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[num_bytes]
        sign_off, inf_bits = (1 << (8 * num_bytes - 1)) - 1, (bins.inf_key - 1) << bins.shift
        num_raw = 1 << (8 * num_bytes) if num_bytes <= 2 else (sign_off >> bins.shift) + 2
        return cls(dtype, bins, name, num_bytes, bits_dtype, sign_off, inf_bits, num_raw)

    @cached_property
    def key_of_raw(self) -> np.ndarray:
        """Key of each raw key of a one- or two-byte dtype, int32.

        It is a bin, ``bins.inf_key``, or one more for NaN.
        """
        words = np.arange(self.num_raw, dtype=f"u{self.num_bytes}")
        bits = torch.from_numpy(words.view(np.int16 if self.num_bytes == 2 else np.uint8))
        values = bits.view(self.dtype).to(torch.float64).abs().numpy()
        keys = self.bins.edges.searchsorted(values).astype(np.int32)
        keys[np.isnan(values)] = self.bins.inf_key + 1
        return keys


def _storages() -> dict[torch.dtype, Storage]:
    kinds = (
        Bins("bfloat16", 16, 127, 7, 0),
        Bins("float16", 16, 15, 10, 0),
        Bins("float32", 32, 127, 8, 15),
        Bins("float64", 64, 1023, 8, 44),
    )
    bins_of = {bins.name: bins for bins in kinds}
    # every float8 value is a float16 value, but for the powers of two in e8m0
    for name in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"):
        bins_of[name] = bins_of["float16"]
    bins_of["float8_e8m0fnu"] = bins_of["float32"]
    dtypes = {getattr(torch, name): bins for name, bins in bins_of.items() if hasattr(torch, name)}
    return {dtype: Storage.of(dtype, bins) for dtype, bins in dtypes.items()}


#: Every dtype that can be counted.
STORAGES = _storages()


# ------------------------------------------------------------------ counts

#: Bins that are gone through at once, unless one tensor has more: they stay in a core's cache.
BLOCK = 1 << 16


@dataclass(frozen=True, eq=False)
class Histogram:
    """How many weights of one tensor, or of a part of it, have which magnitude.

    Args:
        dtype: of the tensor.
        keys: occupied bins, int32, rising.
        counts: weights in each of them, int64, positive.
        num_inf, num_nan: weights that have no bin.
    """

    dtype: torch.dtype
    keys: np.ndarray
    counts: np.ndarray
    num_inf: int
    num_nan: int

    @classmethod
    def empty(cls, dtype: torch.dtype) -> Histogram:
        """A histogram of nothing."""
        return cls(dtype, np.empty(0, np.int32), np.empty(0, np.int64), 0, 0)

    @classmethod
    def of_raw(cls, storage: Storage, raw_counts: np.ndarray) -> Histogram:
        """From counts by raw key, integers of length ``storage.num_raw``."""
        raw = np.flatnonzero(raw_counts != 0)  # several times faster than of integers
        if storage.num_bytes <= 2:
            return cls._summed(storage.dtype, storage.key_of_raw[raw], raw_counts[raw])
        counts = raw_counts[raw].astype(np.int64)
        end = int(raw.searchsorted(storage.bins.inf_key))  # the infinities share the last bin
        return cls(
            storage.dtype, raw[:end].astype(np.int32), counts[:end], 0, int(counts[end:].sum())
        )

    @classmethod
    def of_keys(cls, storage: Storage, keys: np.ndarray, counts: np.ndarray) -> Histogram:
        """From counts by magnitude, signs and low bits dropped; not for one-byte dtypes.

        Args:
            storage: of the dtype.
            keys: those that occur, int32, rising; beyond the bins follow infinities, where
                they do not share the last bin, and NaN.
            counts: of each key, int64, positive.
        """
        inf_key = storage.bins.inf_key
        end = int(keys.searchsorted(np.int32(inf_key)))
        num_inf, num_nan = 0, int(counts[end:].sum())
        if storage.bins.is_exact and end < len(keys) and keys[end] == inf_key:
            num_inf = int(counts[end])
            num_nan -= num_inf
        return cls(storage.dtype, keys[:end], counts[:end], num_inf, num_nan)

    @classmethod
    def _summed(cls, dtype: torch.dtype, keys: np.ndarray, counts: np.ndarray) -> Histogram:
        inf_key = STORAGES[dtype].bins.inf_key
        dense = np.zeros(inf_key + 2, np.int64)
        np.add.at(dense, keys, counts.astype(np.int64, copy=False))
        occupied = np.flatnonzero(dense[:inf_key] != 0)
        num_inf, num_nan = dense[inf_key:].tolist()
        return cls(dtype, occupied.astype(np.int32), dense[occupied], num_inf, num_nan)

    @property
    def may_hold_inf(self) -> bool:
        """Whether infinities may be among the largest finite values, whose bin they share."""
        storage = STORAGES[self.dtype]
        shares = storage.num_bytes > 2 and len(self.keys) > 0
        return shares and int(self.keys[-1]) == storage.bins.inf_key - 1

    def with_inf(self, num_inf: int) -> Histogram:
        """The same, with ``num_inf`` weights of the last bin known to be infinite."""
        counts = self.counts.copy()
        counts[-1] -= num_inf
        kept = counts > 0
        return Histogram(self.dtype, self.keys[kept], counts[kept], num_inf, self.num_nan)

    def __add__(self, other: Histogram) -> Histogram:
        summed = Histogram._summed(
            self.dtype,
            np.concatenate((self.keys, other.keys)),
            np.concatenate((self.counts, other.counts)),
        )
        num_inf, num_nan = self.num_inf + other.num_inf, self.num_nan + other.num_nan
        return Histogram(self.dtype, summed.keys, summed.counts, num_inf, num_nan)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return (
            (self.dtype, self.num_inf, self.num_nan) == (other.dtype, other.num_inf, other.num_nan)
            and np.array_equal(self.keys, other.keys)
            and np.array_equal(self.counts, other.counts)
        )

    __hash__ = None  # type: ignore[assignment]


class Histograms:
    """The histograms of T tensors, of any dtypes: how many weights lie at or below a magnitude.

    A model has some hundred tensors, and a snapshot asks each of them for its share at each of
    some twenty thresholds. One by one that costs as much as counting the weights; here the bins
    of all tensors lie end to end, and each question is a few array operations. Bins of several
    kinds stay apart, so that no weight is moved.

    Args:
        histograms: one per tensor; answers have their order.
    """

    def __init__(self, histograms: Sequence[Histogram]) -> None:
        rows: dict[Bins, list[int]] = {}
        num_inf, num_nan = [], []
        for i, histogram in enumerate(histograms):
            rows.setdefault(STORAGES[histogram.dtype].bins, []).append(i)
            num_inf.append(histogram.num_inf)
            num_nan.append(histogram.num_nan)
        self.num_inf, self.num_nan = np.array(num_inf, np.int64), np.array(num_nan, np.int64)
        self.num_finite = np.zeros(len(histograms), np.int64)
        self._kinds = []
        for bins in sorted(rows, key=attrgetter("name")):
            kind = _Kind(bins, rows[bins], histograms)
            self.num_finite[rows[bins]] = kind.before[kind.ends] - kind.before[kind.starts]
            self._kinds.append(kind)
        self.num_weights = self.num_finite + self.num_inf + self.num_nan

    def at_most(self, t: np.ndarray) -> np.ndarray:
        """Weights with |w| <= t in each tensor, float64 [T, K]: interpolated within a bin.

        Args:
            t: float64 [K], or [T, K] for thresholds of each tensor's own; no NaN.
        """
        t = np.broadcast_to(t, (len(self.num_weights), t.shape[-1]))
        found = np.empty(t.shape)
        for kind in self._kinds:
            found[kind.rows] = kind.at_most(t[kind.rows])
        return np.where(t == math.inf, (self.num_weights - self.num_nan)[:, None], found)

    def shares(self, num: np.ndarray) -> list[list[float]]:
        """``num`` weights of each tensor, [T, K], as fractions of all that it has."""
        num_weights = self.num_weights[:, None]
        found = np.full(num.shape, math.nan)
        np.divide(num, num_weights, out=found, where=num_weights > 0)
        shares: list[list[float]] = found.tolist()
        return shares

    def at_most_in_all(self, thresholds: Iterable[float]) -> list[float]:
        """Of all weights, those with |w| <= t for each t, by the same rules."""
        found = []
        for t in thresholds:
            num = 0.0
            for kind in self._kinds:
                begins, ends, before = kind.total
                i = ends.searchsorted(t, "right")
                below = before.item(i)
                if i < len(ends) and t > begins[i]:
                    fraction = (t - begins.item(i)) / (ends.item(i) - begins.item(i))
                    below += (before.item(i + 1) - below) * fraction
                num += below
            found.append(num if t < math.inf else float((self.num_weights - self.num_nan).sum()))
        return found

    @cached_property
    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Magnitudes where the count of all weights steps up, and the count from there on.

        float64 and int64, rising. With bins of several kinds, only magnitudes that end a
        bin in each of them: the counts there are exact for every dtype.
        """
        if not self._kinds:
            return np.empty(0), np.empty(0, np.int64)
        if len(self._kinds) == 1:
            _, ends, before = self._kinds[0].total
            return ends, before[1:]
        magnitudes = common_edges(*map(attrgetter("bins"), self._kinds))
        counts = np.zeros(len(magnitudes), np.int64)
        for kind in self._kinds:
            _, ends, before = kind.total
            counts += before[ends.searchsorted(magnitudes, "right")]
        is_step = np.diff(counts, prepend=0) > 0
        return magnitudes[is_step], counts[is_step]

    @cached_property
    def rms(self) -> np.ndarray:
        """Root mean square of the finite weights of each tensor, [T]; NaN without any."""
        found = np.empty(len(self.num_finite))
        for kind in self._kinds:
            found[kind.rows] = _root_mean_squares(*kind.squares, self.num_finite[kind.rows])
        return found

    @cached_property
    def rms_of_all(self) -> float:
        """Root mean square of all finite weights; NaN without any."""
        sums, exponents = [np.empty(0, np.int64)], [np.empty(0, np.int16)]
        for kind in self._kinds:
            sums.append(kind.squares[0])
            exponents.append(kind.squares[1])
        ends, num_finite = [0, sum(map(len, sums))], self.num_finite.sum(keepdims=True)
        return float(
            _root_mean_squares(np.concatenate(sums), np.concatenate(exponents), ends, num_finite)[0]
        )

    def log10_histograms(self, bins_per_decade: int) -> list[LogHistogram]:
        """Counts of the finite non-zero weights by decade fraction, trimmed to what is there."""
        nothing = LogHistogram(edges=np.empty(0), counts=np.empty(0, np.int64))
        found = [nothing] * len(self.num_weights)
        for kind in self._kinds:
            sums, places, ends = kind.sums(decades(kind.bins, bins_per_decade))
            for row, start, end in zip(kind.rows.tolist(), ends, ends[1:], strict=False):
                start += start < end and places[start] == NO_DECADE
                if start < end:
                    lowest, highest = places[start], places[end - 1]
                    counts = np.zeros(highest - lowest + 1, np.int64)
                    counts[places[start:end] - lowest] = sums[start:end]
                    edges = np.arange(lowest, highest + 2) / bins_per_decade
                    found[row] = LogHistogram(edges=edges, counts=counts)
        return found


class _Kind:
    """Tensors whose bins are of one kind; their bins end to end.

    Args:
        bins: theirs.
        rows: their positions among all tensors.
        histograms: of all tensors.
    """

    def __init__(self, bins: Bins, rows: list[int], histograms: Sequence[Histogram]) -> None:
        self.bins, self.rows = bins, np.array(rows)
        keys, counts, lengths, self._cuts = [], [], [], [0]
        num_bins = 0
        for row in rows:
            keys.append(histograms[row].keys)
            counts.append(histograms[row].counts)
            lengths.append(len(keys[-1]))
            if num_bins + lengths[-1] - self._cuts[-1] > BLOCK:
                self._cuts.append(num_bins)
            num_bins += lengths[-1]
        self._cuts.append(num_bins)
        self.ends = np.cumsum(lengths)
        self.starts = self.ends - lengths
        self.before = np.zeros(self.ends[-1] + 1, np.int64)
        np.concatenate(counts, out=self.before[1:])
        np.cumsum(self.before, out=self.before)
        # rises throughout: the row of a bin above its key
        self._num_key_bits = bins.inf_key.bit_length()
        is_short = len(rows) << self._num_key_bits < 1 << 31
        self._bases = np.arange(len(rows), dtype=np.int32 if is_short else np.int64)
        self._bases <<= self._num_key_bits
        self._order = np.repeat(self._bases, lengths)
        self._order += np.concatenate(keys)

    def at_most(self, t: np.ndarray) -> np.ndarray:
        """Weights with |w| <= t in each of these tensors, [T, K] like ``t``."""
        edges = self.bins.edges
        next_key = edges.searchsorted(t, "right")
        # in the dtype of what is searched, or all of that would be cast
        queries = self._bases[:, None] + next_key.astype(self._order.dtype)
        index = self._order.searchsorted(queries)
        found: np.ndarray = (self.before[index] - self.before[self.starts][:, None]) + 0.0
        if self.bins.is_exact:
            return found
        # the bin around t, where there is one and it holds weights
        inside = np.flatnonzero((next_key > 0) & (index < self.ends[:, None]))
        flat = index.ravel()[inside]
        is_own = self._order[flat] == queries.ravel()[inside]
        inside, flat = inside[is_own], flat[is_own]
        begins, ends = edges[next_key.ravel()[inside] - 1], edges[next_key.ravel()[inside]]
        counts = self.before[flat + 1] - self.before[flat]
        found.ravel()[inside] += counts * ((t.ravel()[inside] - begins) / (ends - begins))
        return found

    @cached_property
    def total(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of these tensors together: begins and ends of the occupied bins, weights before each."""
        dense = np.zeros(self.bins.inf_key, np.int64)
        for start, end, keys in self._blocks():
            np.add.at(dense, keys, np.diff(self.before[start : end + 1]))
        keys = np.flatnonzero(dense != 0)
        ends = self.bins.edges[keys]
        begins = ends if self.bins.is_exact else self.bins.edges[np.maximum(keys - 1, 0)]
        return begins, ends, np.concatenate(([0], np.cumsum(dense[keys])))

    @cached_property
    def squares(self) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Three times the sums of squares by binary exponent, as of ``sums``, in 4**exponent."""
        return self.sums(*self.bins.squares)

    def sums(
        self, class_of_key: np.ndarray, factor_of_key: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, list[int]]:
        """Weights of each tensor, or a multiple of them, by class of their bin.

        Args:
            class_of_key: of each bin there is; classes of rising bins rise.
            factor_of_key: what the weights of a bin are multiplied with, integers; None: 1.

        Returns:
            Sums of one tensor after another; the class of each; how many there are before each
            tensor, and in all.
        """
        sums, classes, firsts = [np.empty(0, np.int64)], [class_of_key[:0]], [np.empty(0, np.int64)]
        for start, end, keys in self._blocks():
            of_bins = class_of_key.take(keys)
            is_first = np.ones(len(keys), np.bool_)
            np.not_equal(of_bins[1:], of_bins[:-1], out=is_first[1:])
            is_first[self.starts[(self.starts >= start) & (self.starts < end)] - start] = True
            first = np.flatnonzero(is_first)
            if factor_of_key is None:
                sums.append(np.diff(self.before[start + first], append=self.before[end]))
            else:
                counts = np.diff(self.before[start : end + 1])
                counts *= factor_of_key.take(keys)
                sums.append(np.add.reduceat(counts, first))
            classes.append(of_bins[first])
            firsts.append(start + first)
        ends = np.concatenate(firsts).searchsorted(self.starts)
        found = np.concatenate(sums)
        return found, np.concatenate(classes), [*ends.tolist(), len(found)]

    def _blocks(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Where a block of whole tensors begins and ends, and the keys of its bins, intp."""
        for start, end in itertools.pairwise(self._cuts):
            keys = self._order[start:end] & ((1 << self._num_key_bits) - 1)
            # most of what takes indices is much faster without a cast
            yield start, end, keys.astype(np.intp)


def _root_mean_squares(
    sums: np.ndarray, exponents: np.ndarray, ends: list[int], num_finite: np.ndarray
) -> np.ndarray:
    """Of the ``num_finite`` weights of each tensor, from the results of ``_Kind.squares``.

    One correctly rounded sum of whole numbers: the same counts give the same bits, in whatever
    order they were added. NaN where there are no weights.
    """
    # behind them one that is no exponent: a tensor without sums may be the last
    tops = np.maximum.reduceat(np.append(exponents, np.iinfo(exponents.dtype).min), ends[:-1])
    shifts = 2 * (exponents - np.repeat(tops, np.diff(ends)))
    terms = np.ldexp(sums.astype(np.float64), shifts).tolist()
    totals = [math.fsum(terms[start:end]) for start, end in itertools.pairwise(ends)]
    found = np.full(len(totals), math.nan)
    np.divide(totals, 3 * num_finite, out=found, where=num_finite > 0)
    return np.asarray(np.ldexp(np.sqrt(found), tops))
