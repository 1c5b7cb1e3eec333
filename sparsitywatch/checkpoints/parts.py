"""Parts of a file: held in memory, or as a file object of their own."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from typing import Any

from sparsitywatch.checkpoints.storage import ByteSource, check_range, in_pieces

__all__ = ["DescriptionFile", "RangeFile", "Window"]


class Window:
    """A part of a source, read at once and held in memory."""

    def __init__(self, source: ByteSource, start: int, length: int) -> None:
        self.url, self.path = source.url, source.path
        self._data = source.read(start, length)
        self.size = length

    def read(self, start: int, length: int) -> bytes:
        """``length`` bytes from ``start``."""
        check_range(self.url, self.size, start, length)
        return self._data[start : start + length]

    def fill(self, buffer: memoryview, start: int) -> None:
        """Fill the writable bytes of ``buffer`` with those from ``start`` on."""
        check_range(self.url, self.size, start, len(buffer))
        buffer[:] = memoryview(self._data)[start : start + len(buffer)]

    def pieces(self, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        """The bytes from ``start`` on, in order, each piece in ``buffer``."""
        check_range(self.url, self.size, start, length)
        yield from in_pieces(memoryview(self._data)[start : start + length], buffer)


class RangeFile(io.RawIOBase):
    """A source, or a part of it, as a file object that the standard library can read."""

    def __init__(self, source: ByteSource, start: int = 0, length: int | None = None) -> None:
        super().__init__()
        self.source, self.start = source, start
        self.length = source.size - start if length is None else length
        self._position = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As in ``io``."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.length}[whence]
        if base + offset < 0:
            # as files of the system do; zipfile takes it for an end that is not there
            raise OSError(errno.EINVAL, f"a seek to {base + offset}, before the beginning")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """As in ``io``."""
        return self._position

    def readinto(self, buffer: Any) -> int:
        """As in ``io``; fewer bytes at the end."""
        count = max(0, min(len(buffer), self.length - self._position))
        self.source.fill(memoryview(buffer)[:count], self.start + self._position)
        self._position += count
        return count


class DescriptionFile(io.BufferedReader):
    """Where a description lies: what it wants to read is bounded, whatever lengths it states.

    Args:
        file: the bytes.
        max_read: more than this at once is no description.
        buffer_size: bytes that are fetched at once.
    """

    def __init__(self, file: RangeFile, max_read: int, buffer_size: int) -> None:
        super().__init__(file, buffer_size)
        self._length, self._max_read = file.length, max_read
        #: Whether something was read that the file is too short for.
        self.is_short = False

    def read(self, size: int | None = -1, /) -> bytes:
        """As in ``io``; nothing is allocated for what there is not.

        Raises:
            ValueError: there is as much, and it is too much.
        """
        left = max(0, self._length - self.tell())
        wanted = left if size is None or size < 0 else size
        self.is_short |= wanted > left
        if min(wanted, left) > self._max_read:
            raise ValueError(f"{wanted} bytes at once in a description")
        return super().read(min(wanted, left))
