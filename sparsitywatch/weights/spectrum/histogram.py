"""Integer counts of one tensor in the bins of its dtype; they add."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sparsitywatch.weights.spectrum.bins import STORAGES, Bins, Storage

__all__ = ["Histogram"]


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
    def from_raw(cls, storage: Storage, raw_counts: np.ndarray) -> Histogram:
        """From counts by raw key, integers of length ``storage.num_raw``."""
        raw = np.flatnonzero(raw_counts != 0)  # several times faster than of integers
        if storage.num_bytes <= 2:
            return cls._summed(storage.dtype, storage.key_of_raw[raw], raw_counts[raw])
        counts = raw_counts[raw].astype(np.int64)
        return cls.from_magnitudes(storage, raw.astype(np.int32), counts)

    @classmethod
    def from_magnitudes(cls, storage: Storage, keys: np.ndarray, counts: np.ndarray) -> Histogram:
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
    def bins(self) -> Bins:
        """The bins that ``keys`` are of."""
        return STORAGES[self.dtype].bins

    @property
    def num_finite(self) -> int:
        """Weights that have a bin."""
        return int(self.counts.sum())

    @property
    def num_weights(self) -> int:
        """All weights, those that are not finite included."""
        return self.num_finite + self.num_inf + self.num_nan

    @property
    def num_zero(self) -> int:
        """Exact zeros of either sign."""
        return int(self.counts[0]) if len(self.keys) and self.keys[0] == 0 else 0

    @property
    def may_hold_inf(self) -> bool:
        """Whether infinities may be among the largest finite values, whose bin they share."""
        shares = STORAGES[self.dtype].num_bytes > 2
        return shares and len(self.keys) > 0 and int(self.keys[-1]) == self.bins.inf_key - 1

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
