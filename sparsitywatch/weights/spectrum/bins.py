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
