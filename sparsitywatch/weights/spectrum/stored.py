"""Weights that lie somewhere else: read when they are asked for, and counted as they are read.

Each thread reads a little and counts it while it is still in that core's cache: the weights
go through memory once less than if they were read first, and no page of it is ever fresh. Reading
whole tensors takes two to four times as long (docs/costs.md).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch

from sparsitywatch.weights.layout import Entry
from sparsitywatch.weights.spectrum.bins import Storage
from sparsitywatch.weights.spectrum.counting import MAX_ADDED, Counter, share_out, storage_of
from sparsitywatch.weights.spectrum.histogram import Histogram

__all__ = ["LazyTensors", "Store", "Tap", "count_stored"]


class Tap(Protocol):
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

    def chunks(self, name: str, buffer: memoryview) -> Iterator[memoryview]:
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
        taps: see what is read.
    """

    def __init__(
        self,
        entries: Mapping[str, Entry],
        read: Callable[[str], torch.Tensor],
        store: Store | None = None,
        taps: Sequence[Tap] = (),
    ) -> None:
        self.entries, self.store, self.taps = dict(entries), store, tuple(taps)
        self.dtypes = {name: entry.dtype for name, entry in self.entries.items()}
        self._read = read

    def tapped(self, tap: Tap) -> LazyTensors:
        """The same weights; ``tap``, too, sees what is read of them."""
        return LazyTensors(self.entries, self._read, self.store, (*self.taps, tap))

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.entries:
            raise KeyError(name)
        tensor = self._read(name)
        for tap in self.taps:
            tap.see(name, tensor)
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
        for chunk in store.chunks(stored_name, buffers.own):
            words = np.frombuffer(chunk, f"u{storage.num_bytes}")
            for tap in tensors.taps:
                tap.see_some(name, first, words)
            first += len(words)
            for part in np.split(words, range(MAX_ADDED, len(words), MAX_ADDED)):
                if num_added + len(part) > MAX_ADDED:
                    found.append(table.take())
                    num_added = 0
                table.add(part)
                num_added += len(part)
        return sum(found, table.take())

    num_threads = torch.get_num_threads() if num_threads is None else num_threads
    num_threads = counter.num_threads(num_threads)
    order = store.in_byte_order(own_names)
    by_stored_name = dict(zip(order, share_out(counted, order, num_threads), strict=True))
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
