"""One histogram per tensor: by all cores on CPU, by one transfer from any other device.

Stored weights are counted as they are read: each thread reads a little and counts it while it is
still in that core's cache. They go through memory once less than if they were read first, and no
page of it is ever fresh; reading whole tensors takes two to seven times as long
(docs/reports/costs.md).

Counting is ``index_add_`` into integers. On CPU it is the fastest serial scatter that torch
has; numpy takes the keys, since its loops are serial too and run outside of the interpreter
lock. Where numba is installed the compiled counter of ``kernel`` takes the place of both.

Nothing here changes the number of threads that torch uses: ``torch.set_num_threads`` in a
worker would also be the default of every thread that the caller starts later.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from contextlib import closing
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.threads import begun
from sparsitywatch.weights.layout import Entry
from sparsitywatch.weights.sharded import Tensors
from sparsitywatch.weights.snapshot import BITS, LazyTensors
from sparsitywatch.weights.spectrum import kernel
from sparsitywatch.weights.spectrum.histogram import STORAGES, Histogram, Storage, summed

S = TypeVar("S")
T = TypeVar("T")

#: Weights of one task: enough to hide its start, few enough to share out evenly.
MIN_PIECE, MAX_PIECE = 1 << 18, 1 << 24
#: Weights whose keys are taken at once; their buffer stays in a core's cache.
CHUNK = 1 << 17
#: Weights from which on the compiled counter is worth importing numba for.
MIN_COMPILED = 1 << 18
#: Weights that may be added before they are taken out: no count overflows.
MAX_ADDED = 1 << 30
#: Raw counts that wait on a device for one transfer.
MAX_DEVICE_BINS = 1 << 24


class _Task(NamedTuple):
    """What one thread counts: a stored tensor, or a piece of one that lies in memory."""

    name: str
    storage: Storage
    num_weights: int
    #: All of its bits as integers, again at each call; may use the buffer that it is given.
    chunks: Callable[[memoryview], Generator[np.ndarray, None, None]]


def count(tensors: Tensors, num_threads: int) -> dict[str, Histogram]:
    """One histogram per tensor, in the order of ``tensors``."""
    found: dict[str, Histogram] = {}
    if isinstance(tensors, LazyTensors):
        stored = {
            entry.name: _Task(
                name, storage_of(name, entry), entry.num_weights, partial(tensors.chunks, name)
            )
            for name, entry in tensors.entries.items()
        }
        tasks = [stored[name] for name in tensors.store.in_byte_order(stored)]
        chunk_bytes = tensors.store.chunk_bytes
    else:
        there: dict[str, dict[str, torch.Tensor]] = {"cpu": {}}
        for name, tensor in tensors.items():
            there.setdefault(str(tensor.device), {})[name] = bits_of(name, tensor)
        storages = {name: storage_of(name, tensor) for name, tensor in tensors.items()}
        tasks, chunk_bytes = _tasks(there.pop("cpu"), storages, num_threads), 0
        for on_device in there.values():
            found |= _count_on_device(on_device, storages)
    num_weights = sum(map(attrgetter("num_weights"), tasks))
    kernels: dict[int, kernel.Kernel | None] = {}
    for num_bytes in {task.storage.num_bytes for task in tasks}:
        kernels[num_bytes] = kernel.load(num_bytes) if num_weights >= MIN_COMPILED else None
    # compiled, one is done with a piece before another thread has started
    enough = MIN_PIECE * (4 if any(kernels.values()) else 1)
    bench = _Bench(kernels, chunk_bytes)
    counted = map_threads(bench.count, tasks, min(num_threads, -(-num_weights // enough)))
    parts: dict[str, list[Histogram]] = {}
    for task, part in zip(tasks, counted, strict=True):
        parts.setdefault(task.name, []).append(part)
    if isinstance(tensors, LazyTensors):
        tensors.store.check_unchanged()
    return {name: found[name] if name in found else summed(parts[name]) for name in tensors}


def _tasks(tensors: Tensors, storages: Mapping[str, Storage], num_threads: int) -> list[_Task]:
    """Pieces of the bits on the CPU, the largest first: the last thread is then soon done, too."""
    num_weights = sum(map(torch.numel, tensors.values()))
    size = min(max(num_weights // (8 * num_threads), MIN_PIECE), MAX_PIECE)
    tasks: list[_Task] = []
    for name, bits in tensors.items():
        # a piece that is strided or at an odd address is copied by its worker: it has to be small
        is_whole = bits.is_contiguous() and bits.data_ptr() % bits.itemsize == 0
        for piece in pieces(bits, size if is_whole else MIN_PIECE):
            chunks = partial(_flat, piece.numpy())
            tasks.append(_Task(name, storages[name], piece.numel(), chunks))
    return sorted(tasks, key=attrgetter("num_weights"), reverse=True)


def _flat(piece: np.ndarray, _: memoryview) -> Generator[np.ndarray, None, None]:
    yield np.ascontiguousarray(piece).reshape(-1)


def storage_of(name: str, tensor: torch.Tensor | Entry) -> Storage:
    """How a tensor, in memory or in a file, is stored; a ConfigurationError if it has no bins."""
    if tensor.dtype not in STORAGES:
        known = ", ".join(sorted(storage.name for storage in STORAGES.values()))
        what_to_do = f"Leave it out or convert it; known: {known}"
        raise _refusal(name, f"dtype {tensor.dtype}", what_to_do)
    return STORAGES[tensor.dtype]


def bits_of(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The bits of ``tensor`` as integers of its width; a view, dense in memory if it can be."""
    if not isinstance(tensor, torch.Tensor):
        raise _refusal(name, f"an object of type {type(tensor).__name__}", "Pass a torch.Tensor")
    storage_of(name, tensor)
    if tensor.layout is not torch.strided:
        raise _refusal(name, f"layout {tensor.layout}", "Convert it with to_dense()")
    if tensor.device.type == "meta":
        raise _refusal(name, "a meta tensor without data", "Materialize it first")
    if hasattr(tensor, "to_local"):
        raise _refusal(name, type(tensor).__name__, "Pass its local shard, to_local()")
    bits = tensor.detach().resolve_neg().view(BITS[tensor.dtype.itemsize])
    # the order of weights does not matter: walk the memory as it lies
    return bits.permute(sorted(range(bits.dim()), key=bits.stride, reverse=True))


def _refusal(name: str, got: str, what_to_do: str) -> ConfigurationError:
    return ConfigurationError(
        f"Expected `tensors[{name!r}]` to be a dense floating-point tensor, got {got}. "
        f"{what_to_do}."
    )


def pieces(bits: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    """Views that together hold all of ``bits``, each of at most ``size`` elements."""
    bits = bits.squeeze()
    num_weights = bits.numel()
    if num_weights <= size:
        yield bits
    elif bits.is_contiguous():
        yield from torch.split(bits.view(-1), size)
    else:
        num_rows = max(1, size * bits.shape[0] // num_weights)
        for rows in torch.split(bits, num_rows):
            yield from pieces(rows, size)


def map_threads(function: Callable[[S], T], tasks: Sequence[S], num_threads: int) -> list[T]:
    """``function`` of each task, begun in this order, by the caller and other threads."""
    # after a failure no further task is begun; the first one is raised
    num_others = min(num_threads, len(tasks)) - 1
    if num_others <= 0:
        return list(map(function, tasks))
    results: list[Any] = [None] * len(tasks)
    waiting = deque(range(len(tasks)))

    def work() -> None:
        while True:
            try:
                i = waiting.popleft()
            except IndexError:
                return
            try:
                results[i] = function(tasks[i])
            except BaseException:
                waiting.clear()
                raise

    others = [begun(work, "sparsitywatch-spectrum") for _ in range(num_others)]
    try:
        work()
    finally:
        wait(others)
    for other in others:
        other.result()
    return results


class _Bench(threading.local):
    """What one thread counts with; kept from task to task, since fresh memory costs page faults."""

    def __init__(self, kernels: Mapping[int, kernel.Kernel | None], chunk_bytes: int) -> None:
        self._kernels = kernels
        self._buffer = memoryview(bytearray(chunk_bytes))
        self._tables: dict[Storage, PlainTable | kernel.Table] = {}

    def count(self, task: _Task) -> Histogram:
        """One pass; a second one where infinities may be among the largest finite values."""
        storage, num_added, parts = task.storage, 0, []
        if storage not in self._tables:
            compiled = self._kernels[storage.num_bytes]
            self._tables[storage] = (
                kernel.Table(compiled, storage) if compiled else PlainTable(storage)
            )
        table = self._tables[storage]
        # closed whatever happens here: the next one may wait for what it holds
        with closing(task.chunks(self._buffer)) as chunks:
            for chunk in chunks:
                for start in range(0, len(chunk), MAX_ADDED):
                    bits = chunk[start : start + MAX_ADDED]
                    num_added += len(bits)
                    if num_added > MAX_ADDED:
                        parts.append(Histogram.of_keys(storage, *table.drain()))
                        num_added = len(bits)
                    table.add(bits)
        found = summed([*parts, Histogram.of_keys(storage, *table.drain())])
        if found.may_hold_inf:
            with closing(task.chunks(self._buffer)) as chunks:
                return found.with_inf(_num_inf(chunks, storage))
        return found


class PlainTable:
    """Counts the bits of one dtype by torch and numpy."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._keys = np.empty(CHUNK, np.uint64 if storage.num_bytes == 8 else np.uint32)
        self._index = torch.from_numpy(self._keys.view(f"i{self._keys.itemsize}"))
        self._ones = torch.ones(1, dtype=torch.int32, device="cpu").expand(CHUNK)
        # torch.zeros would wake its threads
        self._raw_counts = np.zeros(storage.num_raw, np.int32)
        self._counter = torch.from_numpy(self._raw_counts)

    def add(self, bits: np.ndarray) -> None:
        """Count flat bits; at most MAX_ADDED until they are drained."""
        storage, bits = self._storage, bits.view(f"u{bits.itemsize}")
        shift, width = storage.bins.shift, bits.dtype.type
        for start in range(0, len(bits), CHUNK):
            chunk = bits[start : start + CHUNK]
            keys = self._keys[: len(chunk)]
            if storage.num_bytes == 1:
                np.copyto(keys, chunk)
            else:
                np.bitwise_and(chunk, width(storage.sign_off), out=keys)
                if shift:  # round up
                    np.add(keys, width((1 << shift) - 1), out=keys)
                    np.right_shift(keys, width(shift), out=keys)
            self._counter.index_add_(0, self._index[: len(chunk)], self._ones[: len(chunk)])

    def drain(self) -> tuple[np.ndarray, np.ndarray]:
        """Raw keys of what was added since the last time, rising, and the count of each."""
        keys = np.flatnonzero(self._raw_counts != 0)  # several times faster than of integers
        counts = self._raw_counts[keys]
        self._raw_counts[keys] = 0
        return keys, counts


def _count_on_device(tensors: Tensors, storages: Mapping[str, Storage]) -> dict[str, Histogram]:
    """One histogram for the bits of each tensor of a single device, by few transfers from it."""
    found: dict[str, Histogram] = {}
    waiting: dict[str, torch.Tensor] = {}
    num_bins = 0
    for name, bits in tensors.items():
        storage = storages[name]
        num_bins += storage.num_raw
        if waiting and num_bins > MAX_DEVICE_BINS:
            found |= _transferred(waiting, tensors, storages)
            waiting, num_bins = {}, storage.num_raw
        counter = torch.int64 if bits.numel() >= 1 << 31 else torch.int32
        one = torch.ones(1, dtype=counter, device=bits.device)
        waiting[name] = torch.zeros(storage.num_raw, dtype=counter, device=bits.device)
        for piece in pieces(bits, MAX_PIECE):
            keys = raw_keys_on_device(piece.reshape(-1), storage)
            waiting[name].index_add_(0, keys, one.expand(len(keys)))
    return found | _transferred(waiting, tensors, storages)


def _transferred(
    raw_counts: Tensors, tensors: Tensors, storages: Mapping[str, Storage]
) -> dict[str, Histogram]:
    """Raw counts on a device as histograms; infinities that share a bin are counted there."""
    sizes = [len(own) for own in raw_counts.values()]
    rows = torch.split(torch.cat([*raw_counts.values()]).cpu(), sizes)  # waits for the device
    found = {}
    for name, row in zip(raw_counts, rows, strict=True):
        storage, counts = storages[name], row.numpy()
        keys = np.flatnonzero(counts)
        histogram = Histogram.of_keys(storage, keys, counts[keys])
        if histogram.may_hold_inf:
            num_inf = _num_inf(pieces(tensors[name], MAX_PIECE), storage)
            histogram = histogram.with_inf(num_inf)
        found[name] = histogram
    return found


def _num_inf(chunks: Iterable[Any], storage: Storage) -> int:
    """Infinities among bits, those of numpy or of torch; waits for the device."""
    return sum(int(((bits & storage.sign_off) == storage.inf_bits).sum()) for bits in chunks)


def raw_keys_on_device(bits: torch.Tensor, storage: Storage) -> torch.Tensor:
    """Raw keys of flat bits, int32 or int64, on any device."""
    if storage.num_bytes == 1:
        return bits.to(torch.int32)
    if storage.num_bytes == 2:
        return bits.to(torch.int32).bitwise_and_(storage.sign_off)
    keys = bits.bitwise_and(storage.sign_off)
    # signed: the smallest step down before the shift cannot overflow, one up could
    return keys.sub_(1).bitwise_right_shift_(storage.bins.shift).add_(1)
