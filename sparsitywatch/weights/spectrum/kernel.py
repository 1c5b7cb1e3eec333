"""An optional counter for CPU that numba compiles; the same integers, about half the time.

It takes the keys and counts them in one loop, where the plain path needs a pass for each of
its array operations. Nothing is imported before ``load`` is called, and without numba
(``pip install sparsitywatch[fast]``) ``load`` returns None.

What makes it fast:

* Weights are read in packs of eight bytes; the keys of a pack are taken side by side.
* Four tables, the lanes, take turns. An increment has to wait for the one before if both
  hit the same bin, and equal weights (zeros above all) or a narrow distribution do that all
  the time.
* Signs are dropped, so that the occupied bins of all four tables stay in a core's own cache.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from sparsitywatch.weights.spectrum.bins import STORAGES

__all__ = ["Buffers", "Kernel", "load"]

_logger = logging.getLogger("sparsitywatch")

#: Packs of eight bytes that are read before their weights are counted.
UNROLL = 4


def _count_16(packs: np.ndarray, rest: np.ndarray, table: np.ndarray) -> None:
    """Add bfloat16 or float16 words to the lanes of ``table``; keys are the magnitude bits."""
    sign_off, low = np.uint64(0x7FFF7FFF7FFF7FFF), np.uint64(0xFFFF)
    second, third, fourth = np.uint64(16), np.uint64(32), np.uint64(48)
    one = np.uint32(1)
    lane0, lane1, lane2, lane3 = table[0], table[1], table[2], table[3]
    for k in range(packs.size // 4):
        a, b = packs[4 * k] & sign_off, packs[4 * k + 1] & sign_off
        c, d = packs[4 * k + 2] & sign_off, packs[4 * k + 3] & sign_off
        lane0[a & low] += one
        lane1[(a >> second) & low] += one
        lane2[(a >> third) & low] += one
        lane3[a >> fourth] += one
        lane0[b & low] += one
        lane1[(b >> second) & low] += one
        lane2[(b >> third) & low] += one
        lane3[b >> fourth] += one
        lane0[c & low] += one
        lane1[(c >> second) & low] += one
        lane2[(c >> third) & low] += one
        lane3[c >> fourth] += one
        lane0[d & low] += one
        lane1[(d >> second) & low] += one
        lane2[(d >> third) & low] += one
        lane3[d >> fourth] += one
    for k in range(rest.size):
        lane0[rest[k] & np.uint64(0x7FFF)] += one


def _count_32(packs: np.ndarray, rest: np.ndarray, table: np.ndarray) -> None:
    """Add float32 words; both halves of a pack are rounded up at once, neither overflows."""
    sign_off, up = np.uint64(0x7FFFFFFF7FFFFFFF), np.uint64(0x00007FFF00007FFF)
    low, shift, high = np.uint64(0xFFFFFFFF), np.uint64(15), np.uint64(47)
    one = np.uint32(1)
    lane0, lane1, lane2, lane3 = table[0], table[1], table[2], table[3]
    for k in range(packs.size // 4):
        a, b = (packs[4 * k] & sign_off) + up, (packs[4 * k + 1] & sign_off) + up
        c, d = (packs[4 * k + 2] & sign_off) + up, (packs[4 * k + 3] & sign_off) + up
        lane0[(a & low) >> shift] += one
        lane1[a >> high] += one
        lane2[(b & low) >> shift] += one
        lane3[b >> high] += one
        lane0[(c & low) >> shift] += one
        lane1[c >> high] += one
        lane2[(d & low) >> shift] += one
        lane3[d >> high] += one
    for k in range(rest.size):
        lane0[((rest[k] & np.uint64(0x7FFFFFFF)) + np.uint64(0x7FFF)) >> shift] += one


def _count_64(packs: np.ndarray, rest: np.ndarray, table: np.ndarray) -> None:
    """Add float64 words, one a pack."""
    sign_off, up = np.uint64(0x7FFFFFFFFFFFFFFF), np.uint64((1 << 44) - 1)
    shift, one = np.uint64(44), np.uint32(1)
    lane0, lane1 = table[0], table[1]
    for k in range(packs.size // 4):
        a, b = (packs[4 * k] & sign_off) + up, (packs[4 * k + 1] & sign_off) + up
        c, d = (packs[4 * k + 2] & sign_off) + up, (packs[4 * k + 3] & sign_off) + up
        lane0[a >> shift] += one
        lane1[b >> shift] += one
        lane0[c >> shift] += one
        lane1[d >> shift] += one
    for k in range(rest.size):
        lane0[((rest[k] & sign_off) + up) >> shift] += one


def _drain(table: np.ndarray, pairs: np.ndarray, keys: np.ndarray, counts: np.ndarray) -> int:
    """Move the counts of all lanes to ``keys`` and ``counts``, rising; how many there are.

    ``table`` is empty afterwards. ``pairs`` is the same memory, two counts at once: most
    blocks hold nothing and are passed over quickly.
    """
    nothing = np.uint64(0)
    found = 0
    for block in range(table.shape[1] // 64):
        some = nothing
        for lane in range(table.shape[0]):
            for k in range(32):
                some |= pairs[lane, 32 * block + k]
        if some == nothing:
            continue
        for lane in range(1, table.shape[0]):
            for key in range(64 * block, 64 * block + 64):
                table[0, key] += table[lane, key]
                table[lane, key] = 0
        for key in range(64 * block, 64 * block + 64):
            if table[0, key] > 0:
                keys[found] = key
                counts[found] = table[0, key]
                table[0, key] = 0
                found += 1
    return found


_COUNT = {2: _count_16, 4: _count_32, 8: _count_64}
_COUNT_SIGNATURE = "void(uint64[::1], uint64[::1], uint32[:, ::1])"
_DRAIN_SIGNATURE = "int64(uint32[:, ::1], uint64[:, ::1], int32[::1], int64[::1])"


class Buffers:
    """What one thread counts words of one width into; empty between two pieces."""

    def __init__(self, num_bytes: int) -> None:
        num_keys = {2: 1 << 15, 4: (1 << 16) + 1, 8: (1 << 19) + 1}[num_bytes]
        num_lanes = 2 if num_bytes == 8 else 4  # a table of float64 is eight times as long
        self.table = np.zeros((num_lanes, -(-num_keys // 64) * 64), np.uint32)
        self.pairs = self.table.view(np.uint64)
        self.keys = np.empty(num_keys, np.int32)
        self.counts = np.empty(num_keys, np.int64)


@dataclass(frozen=True)
class Kernel:
    """A counter of words of one width, outside of the interpreter lock.

    Args:
        num_bytes: of a word.
        count: adds packs and single words to a table.
        drain: empties a table.
    """

    num_bytes: int
    count: Callable[[np.ndarray, np.ndarray, np.ndarray], None]
    drain: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], int]

    def __call__(self, words: np.ndarray, buffers: Buffers) -> tuple[np.ndarray, np.ndarray]:
        """(Keys, counts) of flat unsigned words: int32, rising, and int64, positive.

        Args:
            words: contiguous and aligned, less than 2**32 of them.
            buffers: for words of this width, used by no other thread meanwhile.
        """
        per_pack = 8 // self.num_bytes
        start = min((-words.ctypes.data % 8) // self.num_bytes, len(words))
        num_packs = (len(words) - start) // (per_pack * UNROLL) * UNROLL
        end = start + num_packs * per_pack
        rest = np.concatenate((words[:start], words[end:]), dtype=np.uint64)
        self.count(words[start:end].view(np.uint64), rest, buffers.table)
        found = self.drain(buffers.table, buffers.pairs, buffers.keys, buffers.counts)
        return buffers.keys[:found].copy(), buffers.counts[:found].copy()


@cache
def load(num_bytes: int) -> Kernel | None:
    """The compiled counter for words of this width; None where there is none.

    The first call on a machine compiles, in about a second, and numba keeps the result on
    disk. A watch counts once at attach, so that no training step waits for it.
    """
    count = _COUNT.get(num_bytes)
    numba = _numba() if count else None
    if count is None or numba is None:
        return None
    try:
        kernel = Kernel(
            num_bytes,
            _compiled(numba, count, _COUNT_SIGNATURE),
            _compiled(numba, _drain, _DRAIN_SIGNATURE),
        )
        _check(kernel)
    except Exception:
        _logger.warning(
            "sparsitywatch: numba %s failed on the counter of %d-byte weights; counting goes "
            "on without, slower and with the same result",
            getattr(numba, "__version__", "of unknown version"),
            num_bytes,
            exc_info=True,
        )
        return None
    return kernel


@cache
def _numba() -> Any:
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        import numba
    except Exception:
        _logger.warning(
            "sparsitywatch: numba is installed and cannot be imported; counting goes on "
            "without, slower and with the same result",
            exc_info=True,
        )
        return None
    if getattr(numba.config, "DISABLE_JIT", False):
        _logger.info("sparsitywatch: counting without numba, NUMBA_DISABLE_JIT is set")
        return None
    return numba


def _compiled(numba: Any, function: Callable[..., Any], signature: str) -> Callable[..., Any]:
    # a signature compiles now, not at the first call
    try:
        kept: Callable[..., Any] = numba.njit(signature, nogil=True, cache=True)(function)
    except Exception as error:
        # nowhere to keep it, or what was kept cannot be read
        _logger.info("sparsitywatch: compiled code is not kept on disk: %r", error, exc_info=True)
        kept = numba.njit(signature, nogil=True)(function)
    return kept


def _check(kernel: Kernel) -> None:
    """Compare with a count by numpy: machine code may be wrong, counts may not."""
    storage = next(s for s in STORAGES.values() if s.num_bytes == kernel.num_bytes)
    bits, shift = 8 * kernel.num_bytes, np.uint64(storage.bins.shift)
    scattered = np.arange(1025, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    words = (scattered >> np.uint64(64 - bits)).astype(f"u{kernel.num_bytes}")
    words[::3] = 0
    magnitudes = words & np.uint64((1 << (bits - 1)) - 1)
    rounded_up = (magnitudes + ((np.uint64(1) << shift) - np.uint64(1))) >> shift
    expected = np.unique(rounded_up, return_counts=True)
    buffers = Buffers(kernel.num_bytes)
    for _ in range(2):  # the second time into what the first one left
        if not all(map(np.array_equal, kernel(words, buffers), expected)):
            raise RuntimeError("Expected the counts that numpy finds, got others.")
