"""The largest weights of groups of two, four and eight on a CPU: which stay, and the rest set to 0.

The plain way takes a pass over its piece of memory for each of its array operations. With numba
(``pip install sparsitywatch[fast]``) all are done in one, at hardly more than the time of a copy.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from sparsitywatch.weights.spectrum.counting import MIN_COMPILED
from sparsitywatch.weights.spectrum.kernel import Compiler, made_by_numba

__all__ = ["GROUPED_AT_ONCE", "WIDTHS", "kept", "pruner", "sizes_of"]


def sizes_of(words: Any) -> Any:
    """Magnitudes as integers, of torch or numpy: in the same order, and NaN beyond all."""
    return words & ((1 << (8 * words.itemsize - 1)) - 1)


def pruner(keep: int, of: int, words: np.ndarray) -> Callable[[np.ndarray, np.ndarray], None]:
    """What writes whole groups to its second argument, all but the largest set to 0.

    Args:
        keep, of: of each group; ``of`` is one of ``WIDTHS``. Of equal weights the last stay.
        words: all that it will be given, int [N], in pieces.
    """
    compiled = load(of, words.itemsize) if len(words) >= MIN_COMPILED else None
    sign_off = words.dtype.type(np.iinfo(words.dtype).max)

    def prune(words: np.ndarray, out: np.ndarray) -> None:
        if compiled is not None:
            compiled(words, out, of - keep, sign_off)
        else:  # as integers: a removed weight is +0, were it infinite
            np.multiply(words, kept(words, keep, of), out=out)

    return prune


#: Groups whose ranks, a byte each, make up one integer; so many of their weights at once.
WIDTHS, GROUPED_AT_ONCE = (2, 4, 8), 1 << 18


def kept(words: np.ndarray, keep: int, of: int) -> np.ndarray:
    """Which words are among the ``keep`` largest of their group, bool [N]; of equal ones the last.

    Each is compared with those after it, all words at once. A group's ranks are the bytes of one
    integer: what one gains and another loses is that integer times a constant.

    Args:
        words: int [N], whole groups.
        keep, of: of each group; ``of`` is 2, 4 or 8.
    """
    sizes, kept = sizes_of(words), np.zeros(len(words), np.bool_)
    larger = kept.view(f"<u{of}")
    integer = larger.dtype.type
    # were all alike, each would exceed those before it
    ranks = np.full(len(larger), sum(place << 8 * place for place in range(of)), larger.dtype)
    for apart in range(1, of):
        np.greater(sizes[:-apart], sizes[apart:], out=kept[:-apart])
        larger &= integer(sum(1 << 8 * place for place in range(of - apart)))
        larger *= integer((1 - (1 << 8 * apart)) % (1 << 8 * of))
        ranks += larger
    return np.greater_equal(ranks.view(np.uint8), of - keep, out=kept)


# ------------------------------------------------------------------ compiled
#
# How many of its group a weight exceeds is written out, so that a compiler takes the same place of
# many groups at once. In loops over places it does not, and takes nine times as long. Sums begin
# with 0, since numpy's booleans alone add up to True.


def prune_2(
    words: np.ndarray, out: np.ndarray, num_removed: int, sign_off: np.integer[Any]
) -> None:
    """Groups of 2."""
    for k in range(len(words) // 2):
        first = 2 * k
        a = words[first] & sign_off
        b = words[first + 1] & sign_off
        rank_a = 0 + (a > b)
        rank_b = 0 + (b >= a)
        out[first] = words[first] * (rank_a >= num_removed)
        out[first + 1] = words[first + 1] * (rank_b >= num_removed)


def prune_4(
    words: np.ndarray, out: np.ndarray, num_removed: int, sign_off: np.integer[Any]
) -> None:
    """Groups of 4."""
    for k in range(len(words) // 4):
        first = 4 * k
        a = words[first] & sign_off
        b = words[first + 1] & sign_off
        c = words[first + 2] & sign_off
        d = words[first + 3] & sign_off
        rank_a = 0 + (a > b) + (a > c) + (a > d)
        rank_b = 0 + (b >= a) + (b > c) + (b > d)
        rank_c = 0 + (c >= a) + (c >= b) + (c > d)
        rank_d = 0 + (d >= a) + (d >= b) + (d >= c)
        out[first] = words[first] * (rank_a >= num_removed)
        out[first + 1] = words[first + 1] * (rank_b >= num_removed)
        out[first + 2] = words[first + 2] * (rank_c >= num_removed)
        out[first + 3] = words[first + 3] * (rank_d >= num_removed)


def prune_8(
    words: np.ndarray, out: np.ndarray, num_removed: int, sign_off: np.integer[Any]
) -> None:
    """Groups of 8."""
    for k in range(len(words) // 8):
        first = 8 * k
        a = words[first] & sign_off
        b = words[first + 1] & sign_off
        c = words[first + 2] & sign_off
        d = words[first + 3] & sign_off
        e = words[first + 4] & sign_off
        f = words[first + 5] & sign_off
        g = words[first + 6] & sign_off
        h = words[first + 7] & sign_off
        rank_a = 0 + (a > b) + (a > c) + (a > d) + (a > e) + (a > f) + (a > g) + (a > h)
        rank_b = 0 + (b >= a) + (b > c) + (b > d) + (b > e) + (b > f) + (b > g) + (b > h)
        rank_c = 0 + (c >= a) + (c >= b) + (c > d) + (c > e) + (c > f) + (c > g) + (c > h)
        rank_d = 0 + (d >= a) + (d >= b) + (d >= c) + (d > e) + (d > f) + (d > g) + (d > h)
        rank_e = 0 + (e >= a) + (e >= b) + (e >= c) + (e >= d) + (e > f) + (e > g) + (e > h)
        rank_f = 0 + (f >= a) + (f >= b) + (f >= c) + (f >= d) + (f >= e) + (f > g) + (f > h)
        rank_g = 0 + (g >= a) + (g >= b) + (g >= c) + (g >= d) + (g >= e) + (g >= f) + (g > h)
        rank_h = 0 + (h >= a) + (h >= b) + (h >= c) + (h >= d) + (h >= e) + (h >= f) + (h >= g)
        out[first] = words[first] * (rank_a >= num_removed)
        out[first + 1] = words[first + 1] * (rank_b >= num_removed)
        out[first + 2] = words[first + 2] * (rank_c >= num_removed)
        out[first + 3] = words[first + 3] * (rank_d >= num_removed)
        out[first + 4] = words[first + 4] * (rank_e >= num_removed)
        out[first + 5] = words[first + 5] * (rank_f >= num_removed)
        out[first + 6] = words[first + 6] * (rank_g >= num_removed)
        out[first + 7] = words[first + 7] * (rank_h >= num_removed)


_PRUNE = {2: prune_2, 4: prune_4, 8: prune_8}


@cache
def load(of: int, num_bytes: int) -> Callable[..., None] | None:
    """The compiled function for groups of this width of such words; None where there is none.

    The first call on a machine compiles, in less than a second, and numba keeps the result.
    """
    word = f"int{8 * num_bytes}"

    def make(compiled: Compiler) -> Callable[..., None]:
        prune = compiled(_PRUNE[of], f"void({word}[::1], {word}[::1], int64, {word})")
        _check(prune, of, np.dtype(word))
        return prune

    return made_by_numba(f"groups of {of} weights of {num_bytes} bytes", make)


def _check(prune: Callable[..., None], of: int, dtype: np.dtype[Any]) -> None:
    """Compare with the plain way: machine code may be wrong, masks may not."""
    scattered = np.arange(1024, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    words = (scattered >> np.uint64(64 - 8 * dtype.itemsize)).astype(f"u{dtype.itemsize}")
    words[::3] = words[0]
    words, out = words.view(dtype), np.empty(len(words), dtype)
    for keep in range(of):
        prune(words, out, of - keep, dtype.type(np.iinfo(dtype).max))
        if not np.array_equal(out, words * kept(words, keep, of)):
            raise RuntimeError("Expected the masks that numpy finds, got others.")
