"""The bins of each float dtype: intervals of |w| cut from the bits of its magnitude.

The magnitude bits of an IEEE float, read as an integer, sort like its value. bfloat16 and
float16 have so few magnitudes that each one is a bin. float32 and float64 keep the
exponent and eight bits of the significand, rounded *up*: bin ``key`` holds the magnitudes
in (edges[key - 1], edges[key]]. Rounding up makes the largest value of a bin a number of
nine significant bits, which survives a cast to float32, and leaves exact zeros alone in
bin 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

import numpy as np
import torch

__all__ = ["NO_DECADE", "STORAGES", "Bins", "Storage", "common_edges", "decades"]

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
        return len(self.edges)

    @cached_property
    def edges(self) -> np.ndarray:
        """Largest magnitude of each bin: float64, rising, from 0 to the largest finite."""
        inf = ((2 * self.exponent_bias + 1) << self.significand_bits) << self.shift
        if self.name == "bfloat16":  # numpy has none: the upper half of a float32
            return (np.arange(inf, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)
        word = np.dtype(f"u{self.float_bits // 8}")
        magnitudes: np.ndarray = np.arange((inf >> self.shift) + (not self.is_exact), dtype=word)
        magnitudes <<= word.type(self.shift)
        if not self.is_exact:
            magnitudes[-1] -= 1  # the last bin ends at the largest finite value
        return magnitudes.view(self.name).astype(np.float64)

    @cached_property
    def unit_exponents(self) -> np.ndarray:
        """Binary exponent of the last kept significand bit in each bin, int16."""
        field: np.ndarray = np.maximum(self._lower >> self.significand_bits, 1)
        field -= self.exponent_bias + self.significand_bits
        return field.astype(np.int16)

    @cached_property
    def second_moments(self) -> np.ndarray:
        """Three times the mean square of a bin in units of 4**unit_exponents, int32.

        A bin is taken as filled evenly: (lo^2 + lo hi + hi^2) / 3, which is an integer
        over three since hi = lo + 1 in these units.
        """
        hidden_bit = np.int32(1 << self.significand_bits)
        lo = self._lower & (hidden_bit - 1)
        lo[self._lower >= hidden_bit] |= hidden_bit
        moments: np.ndarray = 3 * lo**2 if self.is_exact else 3 * lo**2 + 3 * lo + 1
        moments[0] = 0
        return moments

    @property
    def _lower(self) -> np.ndarray:
        """Kept magnitude bits of the lower end of each bin."""
        keys = np.arange(len(self.edges), dtype=np.int32)
        return keys if self.is_exact else np.maximum(keys - 1, 0)


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
    """

    dtype: torch.dtype
    bins: Bins

    @cached_property
    def name(self) -> str:
        """The dtype's name without ``torch.``."""
        return str(self.dtype).removeprefix("torch.")

    @cached_property
    def num_bytes(self) -> int:
        """Bytes per value."""
        return self.dtype.itemsize

    @cached_property
    def bits_dtype(self) -> torch.dtype:
        """Integer dtype of the same width."""
        return {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[self.num_bytes]

    @cached_property
    def sign_off(self) -> int:
        """The bits of a word but the sign."""
        return (1 << (8 * self.num_bytes - 1)) - 1

    @cached_property
    def inf_bits(self) -> int:
        """Magnitude bits of infinity, for float32 and float64."""
        return (self.bins.inf_key - 1) << self.bins.shift

    @cached_property
    def num_raw(self) -> int:
        """Number of raw keys."""
        if self.num_bytes <= 2:
            return 1 << (8 * self.num_bytes)
        return (1 << (8 * self.num_bytes - 1 - self.bins.shift)) + 1

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
    bins_of |= dict.fromkeys(
        ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"), bins_of["float16"]
    )
    bins_of["float8_e8m0fnu"] = bins_of["float32"]
    found = {getattr(torch, name, None): bins for name, bins in bins_of.items()}
    return {dtype: Storage(dtype, bins) for dtype, bins in found.items() if dtype is not None}


#: Every dtype that can be counted.
STORAGES = _storages()
