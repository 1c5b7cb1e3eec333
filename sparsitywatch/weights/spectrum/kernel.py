"""An optional counter for CPU that numba compiles; the same integers in less than half the time.

What is compiled are plain functions, which run without numba, too. What makes them fast:

* Keys are taken and counted in one loop, where numpy needs a pass for each operation.
* Weights are read in packs of eight bytes, and the keys of a pack are taken side by side.
* Four tables, the lanes, take turns. An increment has to wait for the one before if both
  hit the same bin, and equal weights or a narrow distribution do that all the time.
* Signs are dropped, so that the occupied bins of all lanes stay in a core's own cache.
* Packs are asked for long before they are counted. A core stops reading ahead by itself as
  soon as some sixty increments wait to be stored.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from sparsitywatch.errors import reraise_foreign
from sparsitywatch.redact import logger
from sparsitywatch.weights.spectrum.histogram import STORAGES, Storage

#: Packs whose weights are counted in one turn of a loop.
UNROLL = 4
#: How many packs ahead memory is asked for: a page. Half of it is a tenth slower.
AHEAD = 512
#: Weights up to which one lane is enough: emptying four takes longer than counting so few.
FEW = 1 << 14


def prefetch(packs: np.ndarray, index: int) -> None:
    """Ask for ``packs[index]``, which may lie beyond the end; compiled, it has a body."""


def count_16(packs: np.ndarray, rest: np.ndarray, table: np.ndarray) -> None:
    """Add bfloat16 or float16 weights to the lanes of ``table``; keys are the magnitude bits."""
    sign_off, low = np.uint64(0x7FFF7FFF7FFF7FFF), np.uint64(0xFFFF)
    second, third, fourth = np.uint64(16), np.uint64(32), np.uint64(48)
    one = np.uint32(1)
    lane0, lane1, lane2, lane3 = table[0], table[1], table[2], table[3]
    for k in range(packs.size // UNROLL):
        prefetch(packs, UNROLL * k + AHEAD)
        for j in range(UNROLL):
            pack = packs[UNROLL * k + j] & sign_off
            lane0[pack & low] += one
            lane1[(pack >> second) & low] += one
            lane2[(pack >> third) & low] += one
            lane3[pack >> fourth] += one
    for k in range(rest.size):
        lane0[rest[k] & np.uint64(0x7FFF)] += one


def count_32(packs: np.ndarray, rest: np.ndarray, table: np.ndarray) -> None:
    """Add float32 weights; both halves of a pack are rounded up at once, neither overflows."""
    sign_off, up = np.uint64(0x7FFFFFFF7FFFFFFF), np.uint64(0x00007FFF00007FFF)
    low, shift, high = np.uint64(0xFFFFFFFF), np.uint64(15), np.uint64(47)
    one = np.uint32(1)
    lane0, lane1, lane2, lane3 = table[0], table[1], table[2], table[3]
    for k in range(packs.size // UNROLL):  # written out: a loop inside takes a tenth longer
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
    """Add float64 weights, one a pack."""
    sign_off, up = np.uint64(0x7FFFFFFFFFFFFFFF), np.uint64((1 << 44) - 1)
    shift, one = np.uint64(44), np.uint32(1)
    lane0, lane1 = table[0], table[1]
    for k in range(packs.size // UNROLL):
        prefetch(packs, UNROLL * k + AHEAD)
        for j in range(0, UNROLL, 2):
            lane0[((packs[UNROLL * k + j] & sign_off) + up) >> shift] += one
            lane1[((packs[UNROLL * k + j + 1] & sign_off) + up) >> shift] += one
    for k in range(rest.size):
        lane0[((rest[k] & sign_off) + up) >> shift] += one


def drain(table: np.ndarray, pairs: np.ndarray, keys: np.ndarray, counts: np.ndarray) -> int:
    """Move the counts of all lanes to ``keys`` and ``counts``, rising; how many there are."""
    # pairs is the memory of table, two counts at once: most blocks are passed over quickly
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


_COUNT = {2: count_16, 4: count_32, 8: count_64}
_COUNT_SIGNATURE = "void(uint64[::1], uint64[::1], uint32[:, ::1])"
_DRAIN_SIGNATURE = "int64(uint32[:, ::1], uint64[:, ::1], int32[::1], int64[::1])"


@dataclass(frozen=True)
class Kernel:
    """What counts weights of one width into a table, and empties it, without interpreter lock."""

    count: Callable[[np.ndarray, np.ndarray, np.ndarray], None]
    drain: Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], int]


class Table:
    """What one thread counts the bits of one dtype into."""

    def __init__(self, kernel: Kernel, storage: Storage) -> None:
        num_lanes = 2 if storage.num_bytes == 8 else 4  # a table of float64 is eight times as long
        self._kernel = kernel
        self._counts = np.zeros((num_lanes, -(-storage.num_raw // 64) * 64), np.uint32)
        self._num_lanes = 1  # that hold counts
        self._found = np.empty(storage.num_raw, np.int32), np.empty(storage.num_raw, np.int64)

    def add(self, bits: np.ndarray) -> None:
        """Count flat bits, at any address; at most MAX_ADDED until they are drained."""
        width = bits.itemsize
        bits = bits.view(f"u{width}")
        if not bits.flags.aligned:
            bits = bits.copy()
        start = min((-bits.ctypes.data % 8) // width, len(bits))
        num_packs = (len(bits) - start) * width // (8 * UNROLL) * UNROLL
        if len(bits) <= FEW:
            num_packs = 0
        else:
            self._num_lanes = len(self._counts)
        end = start + num_packs * 8 // width
        rest = np.concatenate((bits[:start], bits[end:]), dtype=np.uint64)
        self._kernel.count(bits[start:end].view(np.uint64), rest, self._counts)

    def drain(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys of what was added since the last time, int32, rising, and the count of each."""
        lanes = self._counts[: self._num_lanes]
        num = self._kernel.drain(lanes, lanes.view(np.uint64), *self._found)
        self._num_lanes = 1
        return self._found[0][:num].copy(), self._found[1][:num].copy()


@cache
def load(num_bytes: int) -> Kernel | None:
    """The compiled counter for weights of this width; None where there is none, or it fails."""
    # the first call on a machine compiles, in about a second, and numba keeps the result on disk. A
    # watch counts once at attach, so that no training step waits for it.
    numba = _numba() if num_bytes in _COUNT else None
    if numba is None:
        return None
    try:
        count = _compiled(numba, _COUNT[num_bytes], _COUNT_SIGNATURE)
        kernel = Kernel(count, _compiled(numba, drain, _DRAIN_SIGNATURE))
        _check(kernel, num_bytes)
    except BaseException as error:  # noqa: BLE001  sorted, and reported
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
            logger.info("counting without numba, NUMBA_DISABLE_JIT is set")
            return None
        _give_prefetch_a_body()
    except BaseException as error:  # noqa: BLE001  sorted, and reported
        _report("numba is installed and cannot be used", error)
        return None
    return numba


def _report(what: str, error: BaseException) -> None:
    reraise_foreign(error)
    reason = (str(error).strip().splitlines() or [""])[0]  # numba's go on for pages
    message = "%s (%s: %s); it goes on without, slower and with the same result"
    logger.warning(message, what, type(error).__name__, reason)
    logger.debug("the whole error", exc_info=error)


def _compiled(numba: Any, function: Callable[..., Any], signature: str) -> Callable[..., Any]:
    # a signature compiles now, not at the first call
    try:
        kept: Callable[..., Any] = numba.njit(signature, nogil=True, cache=True)(function)
    except BaseException as error:
        reraise_foreign(error)
        # nowhere to keep it, or what was kept cannot be read
        logger.info("compiled code is not kept on disk: %s", type(error).__name__)
        logger.debug("the whole error", exc_info=True)
        kept = numba.njit(signature, nogil=True)(function)
    return kept


def _give_prefetch_a_body() -> None:
    """Let compiled calls of ``prefetch`` be the instruction of that name."""
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

    overload(prefetch)(choose)


def _check(kernel: Kernel, num_bytes: int) -> None:
    """Compare with a count by numpy: machine code may be wrong, counts may not."""
    storage = next(s for s in STORAGES.values() if s.num_bytes == num_bytes)
    scattered = np.arange(FEW + 1025, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    bits = (scattered >> np.uint64(64 - 8 * num_bytes)).astype(f"u{num_bytes}")
    bits[::3] = 0
    magnitudes, shift = bits & np.uint64(storage.sign_off), np.uint64(storage.bins.shift)
    rounded_up = (magnitudes + ((np.uint64(1) << shift) - np.uint64(1))) >> shift
    expected = np.unique(rounded_up, return_counts=True)
    table = Table(kernel, storage)
    for _ in range(2):  # the second time into what the first one left
        table.add(bits[:1025])
        table.add(bits[1025:])
        if not all(map(np.array_equal, table.drain(), expected)):
            raise RuntimeError("Expected the counts that numpy finds, got others.")
