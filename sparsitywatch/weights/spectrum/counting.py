"""One histogram per tensor: by all cores on CPU, by one transfer from any other device.

Stored weights are counted as they are read: each thread reads a little and counts it while it is
still in that core's cache. They go through memory once less than if they were read first, and no
page of it is ever fresh; reading whole tensors takes two to seven times as long (docs/costs.md).

Counting is ``index_add_`` into integers. On CPU it is the fastest serial scatter that torch
has; numpy takes the keys, since its loops are serial too and run outside of the interpreter
lock. Where numba is installed the compiled counter of ``kernel`` takes the place of both.

Nothing here changes the number of threads that torch uses: ``torch.set_num_threads`` in a
worker would also be the default of every thread that the caller starts later.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from operator import itemgetter
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.weights.layout import Entry
from sparsitywatch.weights.spectrum import kernel
from sparsitywatch.weights.spectrum.histogram import STORAGES, Histogram, Storage

__all__ = ["LazyTensors", "ReadObserver", "Store", "count", "count_stored"]

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


def count(tensors: Mapping[str, torch.Tensor], num_threads: int | None) -> dict[str, Histogram]:
    """One histogram per tensor, in the order of ``tensors``.

    Raises:
        ConfigurationError: a tensor cannot be counted.
    """
    num_threads = torch.get_num_threads() if num_threads is None else num_threads
    words: dict[str, torch.Tensor] = {}
    storages: dict[str, Storage] = {}
    on_cpu: dict[str, torch.Tensor] = {}
    on_device: dict[torch.device, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        words[name] = own = bits_of(name, tensor)
        storages[name] = STORAGES[tensor.dtype]
        (on_cpu if own.device.type == "cpu" else on_device.setdefault(own.device, {}))[name] = own
    found: dict[str, Histogram] = {}
    for others in on_device.values():
        found |= _count_on_device(others, storages)
    num_weights = sum(map(torch.numel, on_cpu.values()))
    counter = Counter(num_weights, map(storages.__getitem__, on_cpu))

    def counted(task: tuple[int, str, np.ndarray]) -> Histogram:
        table = counter.table(storages[task[1]])
        table.add(task[2])
        return table.take()

    size = min(max(num_weights // (8 * num_threads), MIN_PIECE), MAX_PIECE)
    tasks = _tasks(on_cpu, size)
    num = min(counter.num_threads(num_threads), len(tasks))
    parts = map_threads(counted, tasks, num) if num > 1 else map(counted, tasks)
    for (_, name, _), part in zip(tasks, parts, strict=True):
        found[name] = found[name] + part if name in found else part
    for name, histogram in found.items():
        if histogram.may_hold_inf:  # among the largest finite values
            num_inf, storage = 0, storages[name]
            for piece in pieces(words[name], MAX_PIECE):
                num_inf += int((piece & storage.sign_off).eq(storage.inf_bits).sum())
            found[name] = histogram.with_inf(num_inf)
    return {n: found[n] if n in found else Histogram.empty(s.dtype) for n, s in storages.items()}


def _tasks(words: Mapping[str, torch.Tensor], size: int) -> list[tuple[int, str, np.ndarray]]:
    """Pieces of at most ``size`` weights: how many each has, its tensor's name, and itself."""
    tasks: list[tuple[int, str, np.ndarray]] = []
    for name, tensor in words.items():
        # a piece that is strided or at an odd address is copied by its worker: it has to be small
        is_whole = tensor.is_contiguous() and tensor.data_ptr() % tensor.itemsize == 0
        for piece in map(torch.Tensor.numpy, pieces(tensor, size if is_whole else MIN_PIECE)):
            tasks += [(piece.size, name, piece)]
    # the largest first, or the last thread would finish long after the others
    return sorted(tasks, key=itemgetter(0), reverse=True)


def bits_of(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The bits of ``tensor`` as integers of its width; a view, dense in memory if it can be.

    Raises:
        ConfigurationError: it is no tensor, not floating point, sparse, without data or
            a distributed tensor.
    """
    if not isinstance(tensor, torch.Tensor):
        raise _refusal(name, f"an object of type {type(tensor).__name__}", "Pass a torch.Tensor")
    storage = storage_of(name, tensor.dtype)
    if tensor.layout is not torch.strided:
        raise _refusal(name, f"layout {tensor.layout}", "Convert it with to_dense()")
    if tensor.device.type == "meta":
        raise _refusal(name, "a meta tensor without data", "Materialize it first")
    if hasattr(tensor, "to_local"):
        raise _refusal(name, type(tensor).__name__, "Pass its local shard, to_local()")
    words = tensor.detach().resolve_neg().view(storage.bits_dtype)
    # the order of weights does not matter: walk the memory as it lies
    return words.permute(sorted(range(words.dim()), key=words.stride, reverse=True))


def storage_of(name: str, dtype: torch.dtype) -> Storage:
    """How ``dtype``, that of the tensor of this name, is stored.

    Raises:
        ConfigurationError: it cannot be counted.
    """
    if dtype not in STORAGES:
        known = ", ".join(sorted(storage.name for storage in STORAGES.values()))
        raise _refusal(name, f"dtype {dtype}", f"Leave it out or convert it; known: {known}")
    return STORAGES[dtype]


def _refusal(name: str, got: str, what_to_do: str) -> ConfigurationError:
    return ConfigurationError(
        f"Expected `tensors[{name!r}]` to be a dense floating-point tensor, got {got}. "
        f"{what_to_do}."
    )


def pieces(words: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
    """Views that together hold all of ``words``, each of at most ``size`` elements."""
    words = words.squeeze()
    num_weights = words.numel()
    if num_weights <= size:
        if num_weights > 0:
            yield words
    elif words.is_contiguous():
        yield from torch.split(words.view(-1), size)
    else:
        num_rows = max(1, size * words.shape[0] // num_weights)
        for rows in torch.split(words, num_rows):
            yield from pieces(rows, size)


def map_threads(function: Callable[[S], T], tasks: Sequence[S], num_threads: int) -> list[T]:
    """``function`` of each task, begun in this order, by the caller and ``num_threads - 1`` others.

    After a failure no further task is begun; the first one is raised.
    """
    num_threads = min(num_threads, len(tasks))
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

    if num_threads <= 1:  # a pool of nobody is refused
        work()
        return results
    with ThreadPoolExecutor(num_threads - 1, "sparsitywatch-spectrum") as pool:
        others = [pool.submit(work) for _ in range(num_threads - 1)]
        work()
        for other in others:
            other.result()
    return results


class Counter:
    """Has a table for each thread and dtype, compiled where that is worth it.

    A thread keeps its tables from piece to piece: fresh memory costs a page fault every 4 KiB,
    which adds up to a tenth of the time.

    Args:
        num_weights: that will be counted.
        storages: of their dtypes.
    """

    def __init__(self, num_weights: int, storages: Iterable[Storage]) -> None:
        self._num_weights = num_weights
        self._kernels: dict[int, kernel.Kernel | None] = {}
        if num_weights >= MIN_COMPILED:
            for storage in storages:
                if storage.num_bytes not in self._kernels:
                    self._kernels[storage.num_bytes] = kernel.load(storage.num_bytes)
        self._own = threading.local()

    def num_threads(self, at_most: int) -> int:
        """How many threads the weights are worth."""
        # compiled, one is done with a piece before another thread has started
        num_pieces = 4 if any(self._kernels.values()) else 1
        return min(at_most, -(-self._num_weights // (MIN_PIECE * num_pieces)))

    def table(self, storage: Storage) -> PlainTable | kernel.Table:
        """What the calling thread counts words of this dtype into."""
        tables = self._own.__dict__
        if storage.name not in tables:
            compiled = self._kernels.get(storage.num_bytes)
            tables[storage.name] = (
                kernel.Table(compiled, storage) if compiled else PlainTable(storage)
            )
        found: PlainTable | kernel.Table = tables[storage.name]
        return found


class PlainTable:
    """Counts words of one dtype by torch and numpy; empty after each ``take``."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._keys = np.empty(CHUNK, np.uint64 if storage.num_bytes == 8 else np.uint32)
        self._index = torch.from_numpy(self._keys.view(f"i{self._keys.itemsize}"))
        self._ones = torch.ones(1, dtype=torch.int32, device="cpu").expand(CHUNK)
        # torch.zeros would wake its threads
        self._raw_counts = np.zeros(storage.num_raw, np.int32)
        self._counter = torch.from_numpy(self._raw_counts)

    def add(self, piece: np.ndarray) -> None:
        """Count words in any shape and strides; at most MAX_ADDED until they are taken."""
        flat = piece.reshape(-1).view(f"u{piece.itemsize}")
        for start in range(0, len(flat), CHUNK):
            chunk = flat[start : start + CHUNK]
            size = len(chunk)
            raw_keys(chunk, self._storage, self._keys[:size])
            self._counter.index_add_(0, self._index[:size], self._ones[:size])

    def take(self) -> Histogram:
        """The histogram of all that was added since the last time."""
        found = Histogram.of_raw(self._storage, self._raw_counts)
        self._raw_counts[:] = 0
        return found


def raw_keys(chunk: np.ndarray, storage: Storage, out: np.ndarray) -> None:
    """Raw keys of unsigned words, into ``out``: uint32, or uint64 for eight-byte words."""
    if storage.num_bytes <= 2:
        np.copyto(out, chunk)
        return
    word = chunk.dtype.type
    np.bitwise_and(chunk, word(storage.sign_off), out=out)
    np.add(out, word((1 << storage.bins.shift) - 1), out=out)
    np.right_shift(out, word(storage.bins.shift), out=out)


def _count_on_device(
    words: Mapping[str, torch.Tensor], storages: Mapping[str, Storage]
) -> dict[str, Histogram]:
    """One histogram per tensor of a single device, by few transfers from it."""
    found: dict[str, Histogram] = {}
    for group in _groups(list(words), storages):
        device = words[group[0]].device
        is_huge = any(words[name].numel() >= 1 << 31 for name in group)
        counter = torch.int64 if is_huge else torch.int32
        sizes = [storages[name].num_raw for name in group]
        raw_counts = torch.zeros(sum(sizes), dtype=counter, device=device)
        one = torch.ones(1, dtype=counter, device=device)
        for name, row in zip(group, torch.split(raw_counts, sizes), strict=True):
            for piece in pieces(words[name], MAX_PIECE):
                keys = raw_keys_on_device(piece.reshape(-1), storages[name])
                row.index_add_(0, keys, one.expand(len(keys)))
        for name, row in zip(group, torch.split(raw_counts.cpu(), sizes), strict=True):
            found[name] = Histogram.of_raw(storages[name], row.numpy())
    return found


def _groups(names: Sequence[str], storages: Mapping[str, Storage]) -> list[list[str]]:
    """Names in groups whose raw counts fit on a device beside the weights."""
    groups: list[list[str]] = []
    num_bins = MAX_DEVICE_BINS
    for name in names:
        num_bins += storages[name].num_raw
        if num_bins > MAX_DEVICE_BINS:
            groups.append([])
            num_bins = storages[name].num_raw
        groups[-1].append(name)
    return groups


def raw_keys_on_device(words: torch.Tensor, storage: Storage) -> torch.Tensor:
    """Raw keys of a flat tensor of words, int32 or int64; ``raw_keys`` for any device."""
    if storage.num_bytes == 1:
        return words.to(torch.int32)
    if storage.num_bytes == 2:
        return words.to(torch.int32).bitwise_and_(0xFFFF)
    keys = words.bitwise_and(storage.sign_off)
    # signed words: the smallest step down before the shift cannot overflow, one up could
    return keys.sub_(1).bitwise_right_shift_(storage.bins.shift).add_(1)


# ------------------------------------------------------------------ stored weights


class ReadObserver(Protocol):
    """Who sees stored weights while they are read for somebody else."""

    def see(self, name: str, tensor: torch.Tensor) -> None:
        """All of a tensor that is read as a whole."""

    def see_some(self, name: str, first: int, words: np.ndarray) -> None:
        """The bits, as integers, of weights from index ``first`` on in the flat tensor.

        From several threads, each weight once.
        """


class Store(Protocol):
    """Where stored weights lie; a ``Checkpoint`` is one. Threads may read side by side."""

    @property
    def chunk_bytes(self) -> int:
        """How long the buffer for ``chunks`` should be."""

    def in_byte_order(self, names: Iterable[str]) -> list[str]:
        """Names of tensors in the order in which they are best read."""

    def chunks(self, name: str, buffer: memoryview) -> Generator[memoryview, None, None]:
        """The bytes of a tensor in flat order, a number of whole weights at once.

        Args:
            name: of the tensor.
            buffer: memory that chunks may lie in; each is good until the next is asked for.

        Raises:
            CheckpointError: they cannot be read, or are not what was stored.
        """

    def check_unchanged(self) -> None:
        """Raise if something was written since it was opened."""


class LazyTensors(Mapping[str, torch.Tensor]):
    """Name to weights, each read when it is asked for and not kept.

    Args:
        entries: what is known of each, in the order of the scope; an entry's own name is the
            one in the store.
        read: reads one tensor by its name.
        store: gives the same weights in chunks, to be counted while they are read; None:
            each tensor is read first and counted then.
        observers: see what is read.
    """

    def __init__(
        self,
        entries: Mapping[str, Entry],
        read: Callable[[str], torch.Tensor],
        store: Store | None = None,
        observers: Sequence[ReadObserver] = (),
    ) -> None:
        self.entries, self.store, self.observers = dict(entries), store, tuple(observers)
        self.dtypes = {name: entry.dtype for name, entry in self.entries.items()}
        self._read = read

    def observed(self, observer: ReadObserver) -> LazyTensors:
        """The same weights; ``observer``, too, sees what is read of them."""
        return LazyTensors(self.entries, self._read, self.store, (*self.observers, observer))

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.entries:
            raise KeyError(name)
        tensor = self._read(name)
        for observer in self.observers:
            observer.see(name, tensor)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def count_stored(tensors: LazyTensors, num_threads: int | None) -> dict[str, Histogram]:
    """One histogram per tensor, in the order of the scope; each is read by one thread.

    Args:
        tensors: of a store.
        num_threads: at most; by default ``torch.get_num_threads()``.

    Raises:
        ConfigurationError: a tensor has a dtype that cannot be counted.
        CheckpointError: one cannot be read, or was written meanwhile.
    """
    store = tensors.store
    assert store is not None  # noqa: S101 for the type checker
    storages = {name: storage_of(name, dtype) for name, dtype in tensors.dtypes.items()}
    num_weights = sum(math.prod(entry.shape) for entry in tensors.entries.values())
    counter = Counter(num_weights, storages.values())
    own_names = {entry.name: name for name, entry in tensors.entries.items()}
    buffers = threading.local()

    def counted(stored_name: str) -> Histogram:
        if not hasattr(buffers, "own"):
            buffers.own = memoryview(bytearray(store.chunk_bytes))
        name = own_names[stored_name]
        storage, num_added, first = storages[name], 0, 0
        table = counter.table(storage)
        found: list[Histogram] = []
        # closed whatever happens here: the next one may wait for what it holds
        with closing(store.chunks(stored_name, buffers.own)) as chunks:
            for chunk in chunks:
                words = np.frombuffer(chunk, f"u{storage.num_bytes}")
                for observer in tensors.observers:
                    observer.see_some(name, first, words)
                first += len(words)
                for part in np.split(words, range(MAX_ADDED, len(words), MAX_ADDED)):
                    if num_added + len(part) > MAX_ADDED:
                        found.append(table.take())
                        num_added = 0
                    table.add(part)
                    num_added += len(part)
        return sum(found, table.take())

    num_threads = torch.get_num_threads() if num_threads is None else num_threads
    order = store.in_byte_order(own_names)
    num = min(counter.num_threads(num_threads), len(order))
    parts = map_threads(counted, order, num) if num > 1 else map(counted, order)
    by_stored_name = dict(zip(order, parts, strict=True))
    histograms = {}
    for name, entry in tensors.entries.items():
        histogram = by_stored_name[entry.name]
        if histogram.may_hold_inf:
            histogram = histogram.with_inf(_num_inf(store, entry.name, storages[name]))
        histograms[name] = histogram
    store.check_unchanged()
    return histograms


def _num_inf(store: Store, stored_name: str, storage: Storage) -> int:
    """How many weights are infinite, of a dtype whose bins do not tell; reads them again."""
    buffer = memoryview(bytearray(store.chunk_bytes))
    found = 0
    for chunk in store.chunks(stored_name, buffer):
        words = np.frombuffer(chunk, f"u{storage.num_bytes}")
        found += int(
            np.count_nonzero((words & words.dtype.type(storage.sign_off)) == storage.inf_bits)
        )
    return found
