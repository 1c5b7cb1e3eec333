"""What numba compiles for the kernel; plain functions, which run without it, too.

What makes them fast once they are compiled:

* Weights are read in packs of eight bytes, and the keys of a pack are taken side by side.
* Four tables, the lanes, take turns. An increment has to wait for the one before if both
  hit the same bin, and equal weights (zeros above all) or a narrow distribution do that all
  the time.
* Signs are dropped, so that the occupied bins of all lanes stay in a core's own cache.
* Packs are asked for long before they are counted. A core stops reading ahead by itself as
  soon as some sixty increments wait to be stored.
"""

from __future__ import annotations

import numpy as np

__all__ = ["UNROLL", "count_16", "count_32", "count_64", "drain", "prefetch"]

#: Packs whose weights are counted in one turn of a loop.
UNROLL = 4
#: How many packs ahead memory is asked for: a page. Half of it is a tenth slower.
AHEAD = 512


def prefetch(packs: np.ndarray, index: int) -> None:
    """Ask for ``packs[index]``, which may lie beyond the end; the kernel gives it a body."""


def count_16(packs: np.ndarray, rest: np.ndarray, table: np.ndarray) -> None:
    """Add bfloat16 or float16 words to the lanes of ``table``; keys are the magnitude bits."""
    sign_off, low = np.uint64(0x7FFF7FFF7FFF7FFF), np.uint64(0xFFFF)
    second, third, fourth = np.uint64(16), np.uint64(32), np.uint64(48)
    one = np.uint32(1)
    lane0, lane1, lane2, lane3 = table[0], table[1], table[2], table[3]
    for k in range(packs.size // UNROLL):
        prefetch(packs, UNROLL * k + AHEAD)
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


def count_32(packs: np.ndarray, rest: np.ndarray, table: np.ndarray) -> None:
    """Add float32 words; both halves of a pack are rounded up at once, neither overflows."""
    sign_off, up = np.uint64(0x7FFFFFFF7FFFFFFF), np.uint64(0x00007FFF00007FFF)
    low, shift, high = np.uint64(0xFFFFFFFF), np.uint64(15), np.uint64(47)
    one = np.uint32(1)
    lane0, lane1, lane2, lane3 = table[0], table[1], table[2], table[3]
    for k in range(packs.size // UNROLL):
        prefetch(packs, UNROLL * k + AHEAD)
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


def count_64(packs: np.ndarray, rest: np.ndarray, table: np.ndarray) -> None:
    """Add float64 words, one a pack."""
    sign_off, up = np.uint64(0x7FFFFFFFFFFFFFFF), np.uint64((1 << 44) - 1)
    shift, one = np.uint64(44), np.uint32(1)
    lane0, lane1 = table[0], table[1]
    for k in range(packs.size // UNROLL):
        prefetch(packs, UNROLL * k + AHEAD)
        a, b = (packs[4 * k] & sign_off) + up, (packs[4 * k + 1] & sign_off) + up
        c, d = (packs[4 * k + 2] & sign_off) + up, (packs[4 * k + 3] & sign_off) + up
        lane0[a >> shift] += one
        lane1[b >> shift] += one
        lane0[c >> shift] += one
        lane1[d >> shift] += one
    for k in range(rest.size):
        lane0[((rest[k] & sign_off) + up) >> shift] += one


def drain(table: np.ndarray, pairs: np.ndarray, keys: np.ndarray, counts: np.ndarray) -> int:
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
