"""One histogram per tensor: by all cores on CPU, by one transfer from any other device."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch

from sparsitywatch.weights.spectrum.bins import STORAGES
from sparsitywatch.weights.spectrum.counter import Counter, kernels_for
from sparsitywatch.weights.spectrum.histogram import Histogram
from sparsitywatch.weights.spectrum.keys import raw_keys_on_device
from sparsitywatch.weights.spectrum.reading import MAX_PIECE, map_pieces, pieces, words_of
from sparsitywatch.weights.spectrum.stored import LazyTensors, count_stored

__all__ = ["count", "count_on_device"]

#: Raw counts that wait on a device for one transfer.
MAX_DEVICE_BINS = 1 << 24


def count(tensors: Mapping[str, torch.Tensor], num_threads: int | None) -> dict[str, Histogram]:
    """One histogram per tensor, in the order of ``tensors``."""
    if isinstance(tensors, LazyTensors):  # stored ones, never all in memory
        if tensors.store is not None:
            return count_stored(tensors, num_threads)
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
    num_weights = sum(w.numel() for w in words.values())
    counter = Counter(kernels_for(num_weights, (dtypes[name] for name in words)))
    counted = map_pieces(counter, words, dtypes, num_threads, counter.pieces_per_thread)
    for name, parts in itertools.groupby(counted, key=lambda item: item[0]):
        first, *others = (histogram for _, histogram in parts)
        found[name] = sum(others, first)
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
    if not histogram.may_hold_inf:
        return histogram
    storage = STORAGES[histogram.dtype]
    sign_off = (1 << (8 * storage.num_bytes - 1)) - 1
    num_inf = sum(
        int((piece & sign_off).eq(storage.inf_bits).sum()) for piece in pieces(words, MAX_PIECE)
    )
    return histogram.with_inf(num_inf)
