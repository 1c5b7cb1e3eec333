"""Tensors in, one histogram each: a pool of threads on CPU, one transfer per other device.

Counting is ``index_add_`` into integers. On CPU it is the fastest serial scatter that torch
has; numpy takes the keys, since its loops are serial too and run outside of the interpreter
lock. Nothing here changes the number of threads that torch uses: ``torch.set_num_threads``
in a worker would also be the default of every thread that the caller starts later.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.weights.spectrum.bins import STORAGES, Storage
from sparsitywatch.weights.spectrum.histogram import Histogram

__all__ = [
    "checked",
    "chunks",
    "count",
    "map_pieces",
    "pieces",
    "raw_keys",
    "words_of",
]

T = TypeVar("T")

#: Weights whose keys are taken at once; their buffer stays in a core's cache.
CHUNK = 1 << 17
#: Weights of one task: enough to hide its start, few enough to share out evenly.
MIN_PIECE, MAX_PIECE = 1 << 18, 1 << 24
#: Raw counts that wait on a device for one transfer.
MAX_DEVICE_BINS = 1 << 24


def count(tensors: Mapping[str, torch.Tensor], num_threads: int | None) -> dict[str, Histogram]:
    """One histogram per tensor, in the order of ``tensors``."""
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


def checked(name: str, tensor: object) -> torch.Tensor:
    """``tensor`` itself, if its weights can be counted.

    Raises:
        ConfigurationError: it is no tensor, not floating point, sparse, without data or
            a distributed tensor.
    """
    if not isinstance(tensor, torch.Tensor):
        raise _refusal(name, f"an object of type {type(tensor).__name__}", "Pass a torch.Tensor")
    if tensor.dtype not in STORAGES:
        known = ", ".join(sorted(storage.name for storage in STORAGES.values()))
        raise _refusal(name, f"dtype {tensor.dtype}", f"Leave it out or convert it; known: {known}")
    if tensor.layout is not torch.strided:
        raise _refusal(name, f"layout {tensor.layout}", "Convert it with to_dense()")
    if tensor.device.type == "meta":
        raise _refusal(name, "a meta tensor without data", "Materialize it first")
    if hasattr(tensor, "to_local"):
        raise _refusal(name, type(tensor).__name__, "Pass its local shard, to_local()")
    return tensor


def _refusal(name: str, got: str, what_to_do: str) -> ConfigurationError:
    return ConfigurationError(
        f"Expected `tensors[{name!r}]` to be a dense floating-point tensor, got {got}. "
        f"{what_to_do}."
    )


def words_of(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The bits of ``tensor`` as integers of its width; a view, dense in memory if it can be."""
    checked(name, tensor)
    words = tensor.detach().resolve_neg().view(STORAGES[tensor.dtype].bits_dtype)
    # the order of weights does not matter: walk the memory as it lies
    return words.permute(sorted(range(words.dim()), key=words.stride, reverse=True))


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


def map_pieces(
    function: Callable[[np.ndarray, Storage], T],
    words: Mapping[str, torch.Tensor],
    dtypes: Mapping[str, torch.dtype],
    num_threads: int | None,
) -> Iterator[tuple[str, T]]:
    """``function`` of each piece of each CPU tensor, in order, from a pool of threads."""
    num_threads = torch.get_num_threads() if num_threads is None else num_threads
    total = sum(w.numel() for w in words.values())
    size = min(max(total // (8 * num_threads), MIN_PIECE), MAX_PIECE)
    tasks = [
        (name, piece.numpy(), STORAGES[dtypes[name]])
        for name, tensor in words.items()
        # a strided piece is copied by its worker, so it has to be small
        for piece in pieces(tensor, size if tensor.is_contiguous() else MIN_PIECE)
    ]
    num_threads = min(num_threads, len(tasks), -(-total // MIN_PIECE))
    arguments = [task[1] for task in tasks], [task[2] for task in tasks]
    if num_threads <= 1:
        yield from zip((task[0] for task in tasks), map(function, *arguments), strict=True)
        return
    with ThreadPoolExecutor(num_threads, thread_name_prefix="sparsitywatch-spectrum") as pool:
        results = pool.map(function, *arguments)
        yield from zip((task[0] for task in tasks), results, strict=True)


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
    counted = map_pieces(_count_piece, words, dtypes, num_threads)
    for name, parts in itertools.groupby(counted, key=lambda item: item[0]):
        first, *others = (histogram for _, histogram in parts)
        found[name] = sum(others, first)
    return found


def _count_piece(piece: np.ndarray, storage: Storage) -> Histogram:
    size = min(piece.size, CHUNK)
    keys = np.empty(size, np.uint64 if storage.num_bytes == 8 else np.uint32)
    index = torch.from_numpy(keys.view(f"i{keys.itemsize}"))
    ones = torch.ones(1, dtype=torch.int32, device="cpu").expand(size)
    raw_counts = np.zeros(storage.num_raw, np.int32)  # torch.zeros would wake its threads
    counter = torch.from_numpy(raw_counts)
    for chunk in chunks(piece):
        raw_keys(chunk, storage, keys[: len(chunk)])
        counter.index_add_(0, index[: len(chunk)], ones[: len(chunk)])
    return Histogram.from_raw(storage, raw_counts)


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
