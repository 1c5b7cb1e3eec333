"""Stored tensors counted as they are read, so that none is ever in memory as a whole.

Each thread reads a little and counts it while it is still in that core's cache: the weights
go through memory once less than if they were read first, and no page of it is ever fresh.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from sparsitywatch.weights.spectrum.bins import Storage
from sparsitywatch.weights.spectrum.counter import MAX_ADDED, Counter, kernels_for
from sparsitywatch.weights.spectrum.histogram import Histogram
from sparsitywatch.weights.spectrum.reading import share_out, storage_of, worth_threads
from sparsitywatch.weights.stored import Store, Stretch

__all__ = ["BUFFER_BYTES", "count_stored"]

#: What a thread reads before it counts: it stays in a cache, and is long beside the wait for the
#: interpreter lock that comes between two of them.
BUFFER_BYTES = 1 << 21


def count_stored(
    dtypes: Mapping[str, torch.dtype], store: Store, num_threads: int | None
) -> dict[str, Histogram]:
    """One histogram per tensor, in the order of ``dtypes``.

    Args:
        dtypes: the tensors to count, by name.
        store: where they lie.
        num_threads: at most; by default ``torch.get_num_threads()``.

    Raises:
        ConfigurationError: a tensor has a dtype that cannot be counted.
        CheckpointError: one cannot be read, or was written meanwhile.
    """
    storages = {name: storage_of(name, dtype) for name, dtype in dtypes.items()}
    tasks = [(name, stretch) for name in dtypes for stretch in store.stretches(name)]
    tasks.sort(key=lambda task: task[1].position)
    num_weights = sum(stretch.num_bytes // storages[name].num_bytes for name, stretch in tasks)
    counter = Counter(kernels_for(num_weights, dtypes.values()))
    buffers = _Buffer()

    def counted(task: tuple[str, Stretch]) -> Histogram:
        name, stretch = task
        return _count(_words(stretch, storages[name], buffers.view), storages[name], counter)

    num_threads = torch.get_num_threads() if num_threads is None else num_threads
    num_threads = min(num_threads, worth_threads(num_weights, counter.pieces_per_thread))
    parts: dict[str, list[Histogram]] = {name: [] for name in dtypes}
    for (name, _), part in zip(tasks, share_out(counted, tasks, num_threads), strict=True):
        parts[name].append(part)
    found = {name: _sum(dtypes[name], own) for name, own in parts.items()}
    for name, histogram in found.items():
        if histogram.may_hold_inf:
            found[name] = histogram.with_inf(_num_inf(store, name, storages[name]))
    store.check_unchanged()
    return found


class _Buffer(threading.local):
    """What one thread reads into."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(BUFFER_BYTES))


def _count(words: Iterator[np.ndarray], storage: Storage, counter: Counter) -> Histogram:
    found: list[Histogram] = []
    num_added = 0
    for piece in words:
        for start in range(0, len(piece), MAX_ADDED):
            part = piece[start : start + MAX_ADDED]
            if num_added + len(part) > MAX_ADDED:
                found.append(counter.take(storage))
                num_added = 0
            counter.add(part, storage)
            num_added += len(part)
    return _sum(storage.dtype, [*found, counter.take(storage)])


def _sum(dtype: torch.dtype, histograms: Sequence[Histogram]) -> Histogram:
    if not histograms:
        return Histogram.empty(dtype)
    first, *others = histograms
    return sum(others, first)


def _words(stretch: Stretch, storage: Storage, buffer: memoryview) -> Iterator[np.ndarray]:
    """The words of a stretch, flat and aligned, some at once."""
    for piece in stretch.pieces(buffer):
        words = np.frombuffer(piece, f"u{storage.num_bytes}")
        # what is compiled takes no others
        yield words if words.flags.aligned and words.flags.writeable else words.copy()


def _num_inf(store: Store, name: str, storage: Storage) -> int:
    """How many weights are infinite, of a dtype whose bins do not tell; reads them again."""
    buffer = memoryview(bytearray(BUFFER_BYTES))
    sign_off = (1 << (8 * storage.num_bytes - 1)) - 1
    return sum(
        int(np.count_nonzero((words & words.dtype.type(sign_off)) == storage.inf_bits))
        for stretch in store.stretches(name)
        for words in _words(stretch, storage, buffer)
    )
