"""What one thread counts into, plainly or compiled: pieces of words in, a histogram out.

Counting is ``index_add_`` into integers. On CPU it is the fastest serial scatter that torch
has; numpy takes the keys, since its loops are serial too and run outside of the interpreter
lock. Where numba is installed its compiled counter takes the place of both.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping

import numpy as np
import torch

from sparsitywatch.weights.spectrum import kernel
from sparsitywatch.weights.spectrum.bins import Storage
from sparsitywatch.weights.spectrum.histogram import Histogram
from sparsitywatch.weights.spectrum.keys import CHUNK, chunks, raw_keys

__all__ = ["MAX_ADDED", "Counter", "kernels_for"]

#: Weights from which on the compiled counter is worth importing numba for.
MIN_COMPILED = 1 << 18
#: Weights that may be added before they are taken out: no count overflows.
MAX_ADDED = 1 << 30


def kernels_for(num_weights: int, dtypes: Iterable[torch.dtype]) -> dict[int, kernel.Kernel | None]:
    """The compiled counters by bytes per weight, where so many weights are worth one."""
    widths = {dtype.itemsize for dtype in dtypes} if num_weights >= MIN_COMPILED else ()
    return {width: kernel.load(width) for width in widths}


class Counter(threading.local):
    """Counts pieces; each thread keeps its buffers for the next one.

    Fresh memory costs a page fault every 4 KiB, which adds up to a tenth of the time.

    Args:
        kernels: compiled counters by bytes per weight; the plain one where there is none.
    """

    def __init__(self, kernels: Mapping[int, kernel.Kernel | None]) -> None:
        self._kernels = kernels
        self._compiled: dict[int, kernel.Buffers] = {}
        self._plain: dict[torch.dtype, _PlainBuffers] = {}

    @property
    def pieces_per_thread(self) -> int:
        """How many of the smallest pieces are worth the start of a thread."""
        # compiled, one is done before another thread has started
        return 4 if any(self._kernels.values()) else 1

    def __call__(self, piece: np.ndarray, storage: Storage) -> Histogram:
        """The histogram of one piece: words of the dtype's width in any shape and strides."""
        if piece.flags.aligned:
            self.add(piece, storage)
            return self.take(storage)
        # odd addresses are for the plain counter only
        plain = self._plain_buffers(storage)
        plain.add(piece)
        return plain.take()

    def add(self, piece: np.ndarray, storage: Storage) -> None:
        """Count the words of an aligned piece; at most MAX_ADDED until they are taken."""
        compiled = self._kernels.get(storage.num_bytes)
        if compiled is None:
            self._plain_buffers(storage).add(piece)
            return
        if storage.num_bytes not in self._compiled:
            self._compiled[storage.num_bytes] = kernel.Buffers(storage.num_bytes)
        words = np.ascontiguousarray(piece).reshape(-1)  # a copy only of strided pieces
        compiled.add(words.view(f"u{piece.itemsize}"), self._compiled[storage.num_bytes])

    def take(self, storage: Storage) -> Histogram:
        """The histogram of all that was added since the last time; all of this dtype."""
        compiled = self._kernels.get(storage.num_bytes)
        if compiled is None:
            return self._plain_buffers(storage).take()
        if storage.num_bytes not in self._compiled:
            return Histogram.empty(storage.dtype)
        keys, counts = compiled.take(self._compiled[storage.num_bytes])
        return Histogram.from_magnitudes(storage, keys, counts)

    def _plain_buffers(self, storage: Storage) -> _PlainBuffers:
        if storage.dtype not in self._plain:
            self._plain[storage.dtype] = _PlainBuffers(storage)
        return self._plain[storage.dtype]


class _PlainBuffers:
    """Counts by torch and numpy."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._keys = np.empty(CHUNK, np.uint64 if storage.num_bytes == 8 else np.uint32)
        self._index = torch.from_numpy(self._keys.view(f"i{self._keys.itemsize}"))
        self._ones = torch.ones(1, dtype=torch.int32, device="cpu").expand(CHUNK)
        # torch.zeros would wake its threads
        self._raw_counts = np.zeros(storage.num_raw, np.int32)
        self._counter = torch.from_numpy(self._raw_counts)

    def add(self, piece: np.ndarray) -> None:
        for chunk in chunks(piece):
            size = len(chunk)
            raw_keys(chunk, self._storage, self._keys[:size])
            self._counter.index_add_(0, self._index[:size], self._ones[:size])

    def take(self) -> Histogram:
        found = Histogram.from_raw(self._storage, self._raw_counts)
        self._raw_counts[:] = 0
        return found
