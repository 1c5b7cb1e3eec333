"""Raw keys: what the bits of weights say of the bin they belong to, many at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from sparsitywatch.weights.spectrum.bins import Storage

__all__ = ["CHUNK", "chunks", "raw_keys", "raw_keys_on_device"]

#: Weights whose keys are taken at once; their buffer stays in a core's cache.
CHUNK = 1 << 17


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
