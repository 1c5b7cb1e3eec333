"""A tensor whose elements lie in one file as they lie in memory."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch

from sparsitywatch.checkpoints.base import refused
from sparsitywatch.checkpoints.storage import ByteSource
from sparsitywatch.weights.entries import Entry

__all__ = ["StridedTensor", "extent"]


def extent(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """How many elements of storage a tensor reaches over, from its first to its last.

    >>> extent((3, 2), (2, 1)), extent((3, 2), (5, 1)), extent((3, 0), (1, 1))
    (6, 12, 0)
    """
    if math.prod(shape) == 0:
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


@dataclass(frozen=True)
class StridedTensor:
    """A tensor whose elements lie in one file as they lie in memory.

    Args:
        source: the file.
        name: name in the file; the one in error messages.
        dtype: its dtype.
        shape: its shape.
        start: the first byte, or a function that finds it when it is needed.
        stride: steps between neighbours in elements; None for a contiguous tensor.
        storage: see ``Entry``.
        crc: the checksum of its bytes that the file itself states, if any.
    """

    source: ByteSource
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int | Callable[[], int]
    stride: tuple[int, ...] | None = None
    storage: Hashable = None
    crc: int | None = None
    order: int = 0

    @property
    def entry(self) -> Entry:
        """What is known without reading."""
        return Entry(name=self.name, shape=self.shape, dtype=self.dtype, storage=self.storage)

    @property
    def position(self) -> tuple[str, int]:
        """Where it lies, to read in the order of the bytes."""
        return self.source.path, self.start if isinstance(self.start, int) else self.order

    def load(self) -> torch.Tensor:
        """Read it; memory: its own size."""
        count = extent(self.shape, self.stride) if self.stride else math.prod(self.shape)
        data = torch.empty(count, dtype=self.dtype)
        if count:
            buffer = memoryview(data.view(torch.uint8).numpy().data)
            start = self.start if isinstance(self.start, int) else self.start()
            self.source.fill(buffer, start)
            if self.crc is not None and zlib.crc32(buffer) != self.crc:
                raise refused(
                    self.source.url, "its bytes do not match the checksum beside them", self.name
                )
        if self.stride is None or count == 0:
            return data.view(self.shape)
        return data.as_strided(self.shape, self.stride)
