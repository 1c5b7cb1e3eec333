"""A tensor whose elements lie in one file as they lie in memory."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass

import torch

from sparsitywatch.checkpoints.base import refused
from sparsitywatch.checkpoints.storage import ByteSource
from sparsitywatch.weights.layout import Entry
from sparsitywatch.weights.stored import LoadedStretch, Stretch

__all__ = ["STRETCH_BYTES", "StridedTensor", "extent"]

#: Bytes that one thread reads of a tensor, so that threads can share a large one.
STRETCH_BYTES = 16 * 2**20


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

    @property
    def first_byte(self) -> int:
        """Where its bytes begin; may have to read it."""
        return self.start if isinstance(self.start, int) else self.start()

    def load(self) -> torch.Tensor:
        """Read it; memory: its own size."""
        count = extent(self.shape, self.stride) if self.stride else math.prod(self.shape)
        data = torch.empty(count, dtype=self.dtype, device="cpu")
        if count:
            buffer = memoryview(data.view(torch.uint8).numpy().data)
            self.source.fill(buffer, self.first_byte)
            self.check(zlib.crc32(buffer) if self.crc is not None else None)
        if self.stride is None or count == 0:
            return data.view(self.shape)
        return data.as_strided(self.shape, self.stride)

    def check(self, crc: int | None) -> None:
        """Compare the checksum of all its bytes, where the file states one.

        Raises:
            CheckpointError: it is another.
        """
        if crc != self.crc:
            raise refused(
                self.source.url, "its bytes do not match the checksum beside them", self.name
            )

    def stretches(self) -> Sequence[Stretch]:
        """What together holds each of its elements once; their memory is the buffer's."""
        num_bytes = math.prod(self.shape) * self.dtype.itemsize
        if num_bytes == 0:
            return []
        if self.stride is not None and not _is_dense(self.shape, self.stride):
            return [LoadedStretch(self.position, num_bytes, self.load)]
        # a checksum is of all bytes in their order; a place that has to be found is found once
        is_one = self.crc is not None or not isinstance(self.start, int)
        size = num_bytes if is_one else STRETCH_BYTES
        return [
            _Span(self, begin, min(size, num_bytes - begin)) for begin in range(0, num_bytes, size)
        ]


@dataclass(frozen=True)
class _Span:
    """Bytes of a dense tensor, from the first one's offset on."""

    tensor: StridedTensor
    begin: int
    num_bytes: int

    @property
    def position(self) -> tuple[str, int]:
        file, start = self.tensor.position
        return file, start + self.begin

    @property
    def offset(self) -> int | None:
        shape, stride = self.tensor.shape, self.tensor.stride
        return self.begin if stride is None or _is_in_order(shape, stride) else None

    def pieces(self, buffer: memoryview) -> Iterator[memoryview]:
        tensor = self.tensor
        crc = None if tensor.crc is None else 0
        start = tensor.first_byte + self.begin
        for piece in tensor.source.pieces(start, self.num_bytes, buffer):
            crc = None if crc is None else zlib.crc32(piece, crc)
            yield piece
        tensor.check(crc)


def _is_in_order(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether the elements of a dense tensor lie as in a contiguous one.

    >>> _is_in_order((2, 1, 3), (3, 9, 1)), _is_in_order((2, 3), (1, 2))
    (True, False)
    """
    own = [step for size, step in zip(shape, stride, strict=True) if size != 1]
    return own == sorted(own, reverse=True)


def _is_dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether the elements lie side by side, in any order, each in its own place."""
    step = 1
    for size, own in sorted(zip(shape, stride, strict=True), key=lambda pair: pair[1]):
        if size != 1:
            if own != step:
                return False
            step *= size
    return True
