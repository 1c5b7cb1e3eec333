"""How tensors are read: checked, as integer words, in pieces, by a pool of threads on CPU.

Nothing here changes the number of threads that torch uses: ``torch.set_num_threads`` in a
worker would also be the default of every thread that the caller starts later.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.weights.spectrum.bins import STORAGES, Storage

__all__ = [
    "MAX_PIECE",
    "checked",
    "map_pieces",
    "pieces",
    "share_out",
    "storage_of",
    "words_of",
    "worth_threads",
]

S = TypeVar("S")
T = TypeVar("T")

#: Weights of one task: enough to hide its start, few enough to share out evenly.
MIN_PIECE, MAX_PIECE = 1 << 18, 1 << 24


def checked(name: str, tensor: object) -> torch.Tensor:
    """``tensor`` itself, if its weights can be counted.

    Raises:
        ConfigurationError: it is no tensor, not floating point, sparse, without data or
            a distributed tensor.
    """
    if not isinstance(tensor, torch.Tensor):
        raise _refusal(name, f"an object of type {type(tensor).__name__}", "Pass a torch.Tensor")
    storage_of(name, tensor.dtype)
    if tensor.layout is not torch.strided:
        raise _refusal(name, f"layout {tensor.layout}", "Convert it with to_dense()")
    if tensor.device.type == "meta":
        raise _refusal(name, "a meta tensor without data", "Materialize it first")
    if hasattr(tensor, "to_local"):
        raise _refusal(name, type(tensor).__name__, "Pass its local shard, to_local()")
    return tensor


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


def map_pieces(
    function: Callable[[np.ndarray, Storage], T],
    words: Mapping[str, torch.Tensor],
    dtypes: Mapping[str, torch.dtype],
    num_threads: int | None,
    pieces_per_thread: int = 1,
) -> list[tuple[str, T]]:
    """``function`` of each piece of each CPU tensor, in order, by the caller and a pool.

    Args:
        function: of a piece and its dtype's storage.
        words: of each tensor, by name.
        dtypes: of each tensor, by name.
        num_threads: at most; by default ``torch.get_num_threads()``.
        pieces_per_thread: smallest pieces that are worth the start of a thread.
    """
    num_threads = torch.get_num_threads() if num_threads is None else num_threads
    total = sum(w.numel() for w in words.values())
    size = min(max(total // (8 * num_threads), MIN_PIECE), MAX_PIECE)
    tasks = [
        (name, piece.numpy(), STORAGES[dtypes[name]])
        for name, tensor in words.items()
        # a strided piece is copied by its worker, so it has to be small
        for piece in pieces(tensor, size if tensor.is_contiguous() else MIN_PIECE)
    ]
    # the largest first, or the last thread would finish long after the others
    order = sorted(range(len(tasks)), key=lambda i: -tasks[i][1].size)
    found = share_out(
        lambda i: function(tasks[i][1], tasks[i][2]),
        order,
        min(num_threads, worth_threads(total, pieces_per_thread)),
    )
    results = dict(zip(order, found, strict=True))
    return [(task[0], results[i]) for i, task in enumerate(tasks)]


def worth_threads(num_weights: int, pieces_per_thread: int) -> int:
    """How many threads so many weights are worth.

    Args:
        num_weights: of all tensors.
        pieces_per_thread: smallest pieces that are worth the start of a thread.
    """
    return -(-num_weights // (MIN_PIECE * pieces_per_thread))


def share_out(function: Callable[[S], T], tasks: Sequence[S], num_threads: int) -> list[T]:
    """``function`` of each task, begun in this order, by the caller and a pool of others.

    After a failure no further task is begun; the first one is raised.
    """
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

    num_others = min(num_threads, len(tasks)) - 1
    if num_others <= 0:
        work()
        return results
    with ThreadPoolExecutor(num_others, "sparsitywatch-spectrum") as pool:
        others = [pool.submit(work) for _ in range(num_others)]
        work()
        for other in others:
            other.result()
    return results
