"""One histogram per tensor: by all cores on CPU, by one transfer from any other device.

Counting is ``index_add_`` into integers. On CPU it is the fastest serial scatter that torch
has; numpy takes the keys, since its loops are serial too and run outside of the interpreter
lock. Where numba is installed its compiled counter takes the place of both.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from sparsitywatch.weights.snapshot import LazyTensors
from sparsitywatch.weights.spectrum import kernel
from sparsitywatch.weights.spectrum.bins import STORAGES, Storage
from sparsitywatch.weights.spectrum.histogram import Histogram
from sparsitywatch.weights.spectrum.reading import MAX_PIECE, map_pieces, pieces, words_of

__all__ = ["CHUNK", "chunks", "count", "count_on_device", "raw_keys", "raw_keys_on_device"]

#: Weights whose keys are taken at once; their buffer stays in a core's cache.
CHUNK = 1 << 17
#: Weights from which on the compiled counter is worth importing numba for.
MIN_COMPILED = 1 << 18
#: Raw counts that wait on a device for one transfer.
MAX_DEVICE_BINS = 1 << 24


def count(tensors: Mapping[str, torch.Tensor], num_threads: int | None) -> dict[str, Histogram]:
    """One histogram per tensor, in the order of ``tensors``."""
    if isinstance(tensors, LazyTensors):  # stored ones, never all in memory
        one_by_one = (count({name: tensors[name]}, num_threads) for name in tensors)
        return {name: found for counted in one_by_one for name, found in counted.items()}
    words = {name: words_of(name, tensor) for name, tensor in tensors.items()}
    dtypes = {name: tensor.dtype for name, tensor in tensors.items()}
    found: dict[str, Histogram] = {}
    for device, names in _by_device(words).items():
        if device.type == "cpu":
            found |= _count_on_cpu({n: words[n] for n in names}, dtypes, num_threads)
        else:
            for group in _groups(names, dtypes):
                found |= count_on_device({n: words[n] for n in group}, dtypes)
    return {name: _without_inf(found[name], words[name]) for name in tensors}


def chunks(piece: np.ndarray) -> Iterator[np.ndarray]:
    """``piece`` as flat unsigned words, at most CHUNK at once; strided pieces are copied."""
    flat = piece.reshape(-1).view(f"u{piece.itemsize}")
    for start in range(0, len(flat), CHUNK):
        yield flat[start : start + CHUNK]


def raw_keys(chunk: np.ndarray, storage: Storage, out: np.ndarray) -> None:
    """Raw keys of unsigned words, into ``out``: uint32, or uint64 for eight-byte words."""
    if storage.num_bytes <= 2:
        np.copyto(out, chunk)
        return
    word = chunk.dtype.type
    np.bitwise_and(chunk, word((1 << (8 * storage.num_bytes - 1)) - 1), out=out)
    np.add(out, word((1 << storage.bins.shift) - 1), out=out)
    np.right_shift(out, word(storage.bins.shift), out=out)


def raw_keys_on_device(words: torch.Tensor, storage: Storage) -> torch.Tensor:
    """Raw keys of a flat tensor of words, int32 or int64; ``raw_keys`` for any device."""
    if storage.num_bytes == 1:
        return words.to(torch.int32)
    if storage.num_bytes == 2:
        return words.to(torch.int32).bitwise_and_(0xFFFF)
    keys = words.bitwise_and((1 << (8 * storage.num_bytes - 1)) - 1)
    # signed words: the smallest step down before the shift cannot overflow, one up could
    return keys.sub_(1).bitwise_right_shift_(storage.bins.shift).add_(1)


def _by_device(words: Mapping[str, torch.Tensor]) -> dict[torch.device, list[str]]:
    names: dict[torch.device, list[str]] = {}
    for name, tensor in words.items():
        names.setdefault(tensor.device, []).append(name)
    return names


def _count_on_cpu(
    words: Mapping[str, torch.Tensor],
    dtypes: Mapping[str, torch.dtype],
    num_threads: int | None,
) -> dict[str, Histogram]:
    found = {name: Histogram.empty(dtypes[name]) for name in words}
    is_worth_it = sum(w.numel() for w in words.values()) >= MIN_COMPILED
    widths = {dtypes[name].itemsize for name in words} if is_worth_it else ()
    kernels = {width: kernel.load(width) for width in widths}
    # compiled, the smallest piece is done before another thread has started
    worth_a_thread = 4 if any(kernels.values()) else 1
    counted = map_pieces(_Counter(kernels), words, dtypes, num_threads, worth_a_thread)
    for name, parts in itertools.groupby(counted, key=lambda item: item[0]):
        first, *others = (histogram for _, histogram in parts)
        found[name] = sum(others, first)
    return found


class _Counter(threading.local):
    """Counts pieces; each thread keeps its buffers for the next one.

    Fresh memory costs a page fault every 4 KiB, which adds up to a tenth of the time.

    Args:
        kernels: compiled counters by bytes per weight; the plain one where there is none.
    """

    def __init__(self, kernels: Mapping[int, kernel.Kernel | None]) -> None:
        self._kernels = kernels
        self._compiled: dict[int, kernel.Buffers] = {}
        self._plain: dict[torch.dtype, _PlainBuffers] = {}

    def __call__(self, piece: np.ndarray, storage: Storage) -> Histogram:
        compiled = self._kernels.get(storage.num_bytes)
        if compiled is None or not piece.flags.aligned:
            if storage.dtype not in self._plain:
                self._plain[storage.dtype] = _PlainBuffers(storage)
            return self._plain[storage.dtype].count(piece)
        if storage.num_bytes not in self._compiled:
            self._compiled[storage.num_bytes] = kernel.Buffers(storage.num_bytes)
        words = np.ascontiguousarray(piece).reshape(-1)  # a copy only of strided pieces
        keys, counts = compiled(words.view(f"u{piece.itemsize}"), self._compiled[storage.num_bytes])
        return Histogram.from_magnitudes(storage, keys, counts)


class _PlainBuffers:
    """Counts by torch and numpy; the counts are zero between two pieces."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._keys = np.empty(CHUNK, np.uint64 if storage.num_bytes == 8 else np.uint32)
        self._index = torch.from_numpy(self._keys.view(f"i{self._keys.itemsize}"))
        self._ones = torch.ones(1, dtype=torch.int32, device="cpu").expand(CHUNK)
        # torch.zeros would wake its threads
        self._raw_counts = np.zeros(storage.num_raw, np.int32)
        self._counter = torch.from_numpy(self._raw_counts)

    def count(self, piece: np.ndarray) -> Histogram:
        for chunk in chunks(piece):
            size = len(chunk)
            raw_keys(chunk, self._storage, self._keys[:size])
            self._counter.index_add_(0, self._index[:size], self._ones[:size])
        found = Histogram.from_raw(self._storage, self._raw_counts)
        self._raw_counts[:] = 0
        return found


def count_on_device(
    words: Mapping[str, torch.Tensor], dtypes: Mapping[str, torch.dtype]
) -> dict[str, Histogram]:
    """One histogram per tensor of a single device, by a single transfer from it."""
    storages = {name: STORAGES[dtypes[name]] for name in words}
    device = next(iter(words.values())).device
    is_huge = any(tensor.numel() >= 1 << 31 for tensor in words.values())
    counter = torch.int64 if is_huge else torch.int32
    sizes = [storage.num_raw for storage in storages.values()]
    raw_counts = torch.zeros(sum(sizes), dtype=counter, device=device)
    one = torch.ones(1, dtype=counter, device=device)
    for (name, storage), row in zip(storages.items(), torch.split(raw_counts, sizes), strict=True):
        for piece in pieces(words[name], MAX_PIECE):
            keys = raw_keys_on_device(piece.reshape(-1), storage)
            row.index_add_(0, keys, one.expand(len(keys)))
    rows = torch.split(raw_counts.cpu(), sizes)
    return {
        name: Histogram.from_raw(storage, row.numpy())
        for (name, storage), row in zip(storages.items(), rows, strict=True)
    }


def _groups(names: Sequence[str], dtypes: Mapping[str, torch.dtype]) -> Iterator[list[str]]:
    """Names in groups whose raw counts fit on a device beside the weights."""
    group: list[str] = []
    num_bins = 0
    for name in names:
        size = STORAGES[dtypes[name]].num_raw
        if group and num_bins + size > MAX_DEVICE_BINS:
            yield group
            group, num_bins = [], 0
        group.append(name)
        num_bins += size
    if group:
        yield group


def _without_inf(histogram: Histogram, words: torch.Tensor) -> Histogram:
    """Tell infinities from the largest finite values that share a bin with them."""
    storage = STORAGES[histogram.dtype]
    shared = storage.num_bytes > 2 and len(histogram.keys) > 0
    if not shared or histogram.keys[-1] != histogram.bins.inf_key - 1:
        return histogram
    sign_off = (1 << (8 * storage.num_bytes - 1)) - 1
    num_inf = sum(
        int((piece & sign_off).eq(storage.inf_bits).sum()) for piece in pieces(words, MAX_PIECE)
    )
    return histogram.with_inf(num_inf)
