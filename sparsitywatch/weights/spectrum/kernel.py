"""An optional counter for CPU that numba compiles; the same integers in less than half the time.

It takes the keys and counts them in one loop, where the plain path needs a pass for each of
its array operations. Nothing is imported before ``load`` is called, and without numba
(``pip install sparsitywatch[fast]``) ``load`` returns None.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from sparsitywatch.errors import let_out
from sparsitywatch.weights.spectrum import loops
from sparsitywatch.weights.spectrum.bins import STORAGES

__all__ = ["Buffers", "Kernel", "load"]

_logger = logging.getLogger("sparsitywatch")

_COUNT = {2: loops.count_16, 4: loops.count_32, 8: loops.count_64}
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
        """(Keys, counts) of ``words``, as ``add`` and ``take`` have them."""
        self.add(words, buffers)
        return self.take(buffers)

    def add(self, words: np.ndarray, buffers: Buffers) -> None:
        """Count flat unsigned words.

        Args:
            words: contiguous and aligned, less than 2**32 of them until they are taken.
            buffers: for words of this width, used by no other thread meanwhile.
        """
        per_pack = 8 // self.num_bytes
        start = min((-words.ctypes.data % 8) // self.num_bytes, len(words))
        num_packs = (len(words) - start) // (per_pack * loops.UNROLL) * loops.UNROLL
        end = start + num_packs * per_pack
        rest = np.concatenate((words[:start], words[end:]), dtype=np.uint64)
        self.count(words[start:end].view(np.uint64), rest, buffers.table)

    def take(self, buffers: Buffers) -> tuple[np.ndarray, np.ndarray]:
        """(Keys, counts) of all that was added: int32, rising, and int64, positive."""
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
            _compiled(numba, loops.drain, _DRAIN_SIGNATURE),
        )
        _check(kernel)
    except BaseException as error:  # noqa: BLE001  sorted, and reported
        let_out(error)
        version = getattr(numba, "__version__", "of unknown version")
        _report(f"numba {version} failed on the counter of {num_bytes}-byte weights", error)
        return None
    return kernel


@cache
def _numba() -> Any:
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        import numba

        if getattr(numba.config, "DISABLE_JIT", False):
            _logger.info("sparsitywatch: counting without numba, NUMBA_DISABLE_JIT is set")
            return None
        _give_prefetch_a_body()
    except BaseException as error:  # noqa: BLE001  sorted, and reported
        let_out(error)
        _report("numba is installed and cannot be used", error)
        return None
    return numba


def _report(what: str, error: BaseException) -> None:
    reason = (str(error).strip().splitlines() or [""])[0]  # numba's go on for pages
    _logger.warning(
        "sparsitywatch: %s (%s: %s); counting goes on without, slower and with the same result",
        what,
        type(error).__name__,
        reason,
    )
    _logger.debug("sparsitywatch: the whole error", exc_info=error)


def _give_prefetch_a_body() -> None:
    """Let compiled calls of ``loops.prefetch`` be the instruction of that name."""
    from llvmlite import ir
    from numba import types
    from numba.extending import intrinsic, overload

    def instruct(typing: Any, packs: Any, index: Any) -> Any:  # noqa: ARG001  numba's order
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            array = context.make_array(signature.args[0])(context, builder, arguments[0])
            byte_pointer, int32 = ir.IntType(8).as_pointer(), ir.IntType(32)
            address = builder.bitcast(builder.gep(array.data, [arguments[1]]), byte_pointer)
            kind = ir.FunctionType(ir.VoidType(), [byte_pointer, int32, int32, int32])
            instruction = builder.module.declare_intrinsic("llvm.prefetch", [byte_pointer], kind)
            # 0: to read; 1: used about once; 1: data
            builder.call(instruction, [address, int32(0), int32(1), int32(1)])
            return context.get_dummy_value()

        return types.void(packs, index), generate

    emit = intrinsic(instruct)

    def choose(packs: Any, index: Any) -> Any:  # noqa: ARG001  numba passes their types
        def body(packs: Any, index: Any) -> Any:
            return emit(packs, index)

        return body

    overload(loops.prefetch)(choose)


def _compiled(numba: Any, function: Callable[..., Any], signature: str) -> Callable[..., Any]:
    # a signature compiles now, not at the first call
    try:
        kept: Callable[..., Any] = numba.njit(signature, nogil=True, cache=True)(function)
    except BaseException as error:
        let_out(error)
        # nowhere to keep it, or what was kept cannot be read
        _logger.info("sparsitywatch: compiled code is not kept on disk: %s", type(error).__name__)
        _logger.debug("sparsitywatch: the whole error", exc_info=True)
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
