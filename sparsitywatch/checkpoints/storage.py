"""Bytes of files on any fsspec storage: exactly the ranges asked for, nothing beside them."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import fsspec
from fsspec.implementations.local import LocalFileSystem

from sparsitywatch.errors import CheckpointError, IncompleteCheckpointError
from sparsitywatch.shown import shown_error, shown_url

__all__ = ["ByteSource", "Folder", "Source", "check_range", "filesystem", "in_pieces", "one_line"]

#: Longest piece fetched at once from a remote storage, in bytes: bounds the extra memory.
_PIECE_BYTES = 64 * 2**20


def one_line(error: BaseException) -> str:
    """The kind and the first words of another library's error."""
    return shown_error(error)[:240]


def filesystem(
    url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the path on it.

    Raises:
        CheckpointError: the protocol is unknown, or its package is not installed.
    """
    try:
        fs, path = fsspec.core.url_to_fs(os.fspath(url), **(storage_options or {}))
    except (ImportError, ValueError) as error:
        raise CheckpointError(
            f"Cannot read {shown_url(url)}: expected a URL that fsspec can open "
            f"({one_line(error)}). Install what it names, such as pip install "
            "'sparsitywatch[s3]', or correct the URL."
        ) from error
    return fs, path


@contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turns every failure of a storage into one line that names the file."""
    try:
        yield
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise IncompleteCheckpointError(
            f"Cannot read {url}: expected a file, found none. It may not be written yet, or "
            "may have been removed."
        ) from error
    except PermissionError as error:
        raise CheckpointError(
            f"Cannot read {url}: permission denied ({one_line(error)}). Give read access to it."
        ) from error
    except Exception as error:  # whatever a storage raises, such as botocore's own
        raise CheckpointError(f"Cannot read {url}: {one_line(error)}.") from error


def in_pieces(data: memoryview, buffer: memoryview) -> Iterator[memoryview]:
    """``data``, copied into ``buffer`` piece by piece."""
    for start in range(0, len(data), len(buffer)):
        piece = buffer[: len(data) - start]
        piece[:] = data[start : start + len(piece)]
        yield piece


class ByteSource(Protocol):
    """Bytes that can be read by ranges."""

    url: str
    path: str
    size: int

    def read(self, start: int, length: int) -> bytes:
        """``length`` bytes from ``start``; of what there is not, nothing is allocated."""

    def fill(self, buffer: memoryview, start: int) -> None:
        """Fill the writable bytes of ``buffer`` with those from ``start`` on."""

    def pieces(self, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        """The same bytes as of ``read``, in order.

        Args:
            start: the first.
            length: how many.
            buffer: writable memory in which the pieces lie, a multiple of eight bytes; each is
                good until the next is asked for.
        """


def check_range(url: str, size: int, start: int, length: int) -> None:
    """Raise ``IncompleteCheckpointError`` unless these bytes are there."""
    if start < 0 or length < 0 or start + length > size:
        raise IncompleteCheckpointError(
            f"Cannot read {url}: expected at least {start + length} bytes, got {size}. It may be "
            "half-written, or truncated."
        )


class Source:
    """One file, read by ranges.

    Args:
        fs: the file system that it is on.
        path: its path there.

    Local files are read, not mapped: a mapped file that a training truncates and rewrites
    in place, as nanoGPT does with ``ckpt.pt``, ends the process that looks at it. So a file
    that changes while it is read is noticed instead. ``num_bytes_read`` counts.

    Threads may read side by side. Storages that fsspec drives asynchronously serve them all
    at once, such as s3; others, which need not bear that, one after the other.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str) -> None:
        self.fs, self.path = fs, path
        self.url = shown_url(path if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(path))
        self.num_bytes_read = 0
        self._counting = threading.Lock()
        self._seeking = threading.Lock()
        self._fetching: AbstractContextManager[object] = (
            nullcontext() if fs.async_impl else threading.Lock()
        )
        self._file: io.FileIO | None = None
        with _explained(self.url):
            if isinstance(fs, LocalFileSystem):
                self._file = io.FileIO(path, "rb")
                self.size = os.fstat(self._file.fileno()).st_size
            else:
                self.size = int(fs.info(path)["size"])
            self._version = self._version_now()

    @property
    def is_local(self) -> bool:
        """Whether it lies on this machine's own file system."""
        return self._file is not None

    def _version_now(self) -> object:
        if self._file is not None:
            stat = os.fstat(self._file.fileno())
            return stat.st_mtime_ns, stat.st_size
        info = self.fs.info(self.path)
        # what a storage tells of a version goes by different names
        keys = ("ETag", "etag", "LastModified", "last_modified", "mtime", "created", "size")
        return {key: info.get(key) for key in keys}

    def check_unchanged(self) -> None:
        """Compare with the version that was opened.

        Raises:
            IncompleteCheckpointError: the file was written meanwhile.
        """
        with _explained(self.url):
            if self._file is None:
                self.fs.invalidate_cache(self.fs._parent(self.path))
            is_same = self._version_now() == self._version
        if not is_same:
            raise IncompleteCheckpointError(
                f"Cannot read {self.url}: expected the file to stay as it is while it is read, "
                "but it was written meanwhile. Read it again once it is complete."
            )

    def read(self, start: int, length: int) -> bytes:
        """``length`` bytes from ``start``; of what there is not, nothing is allocated."""
        check_range(self.url, self.size, start, length)
        buffer = bytearray(length)
        self.fill(memoryview(buffer), start)
        return bytes(buffer)

    def fill(self, buffer: memoryview, start: int) -> None:
        """Fill the writable bytes of ``buffer`` with those from ``start`` on."""
        check_range(self.url, self.size, start, len(buffer))
        done = 0
        while done < len(buffer):
            with _explained(self.url):
                count = self._fill_some(buffer[done:], start + done)
            if count == 0:
                raise IncompleteCheckpointError(
                    f"Cannot read {self.url}: expected {len(buffer)} bytes from {start} on, got "
                    f"{done}. It may have been cut off while it was read."
                )
            self._count(count)
            done += count
        if self._file is not None:
            self.check_unchanged()

    def pieces(self, start: int, length: int, buffer: memoryview) -> Iterator[memoryview]:
        """The bytes from ``start`` on, in order, each piece in ``buffer``."""
        check_range(self.url, self.size, start, length)
        if self.is_local:
            for done in range(0, length, len(buffer)):
                piece = buffer[: length - done]
                self.fill(piece, start + done)
                yield piece
        else:
            for done in range(0, length, _PIECE_BYTES):
                yield from in_pieces(
                    self._fetched(start + done, min(_PIECE_BYTES, length - done)), buffer
                )

    def _fetched(self, start: int, length: int) -> memoryview:
        with _explained(self.url):
            data = self._cat(start, start + length)
        self._count(len(data))
        if len(data) == length:
            return memoryview(data)
        whole = memoryview(bytearray(length))
        whole[: len(data)] = data
        self.fill(whole[len(data) :], start + len(data))
        return whole

    def _fill_some(self, buffer: memoryview, start: int) -> int:
        if self._file is None:
            data = self._cat(start, start + min(len(buffer), _PIECE_BYTES))
            buffer[: len(data)] = data
            return len(data)
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [buffer], start)
        with self._seeking:  # Windows
            self._file.seek(start)
            return self._file.readinto(buffer) or 0

    def _cat(self, start: int, end: int) -> bytes:
        with self._fetching:
            data: bytes = self.fs.cat_file(self.path, start=start, end=end)
        return data[: end - start]

    def _count(self, num_bytes: int) -> None:
        with self._counting:
            self.num_bytes_read += num_bytes

    def close(self) -> None:
        """Let go of the file; calling it again does nothing."""
        if self._file is not None:
            self._file.close()


class Folder:
    """The files below one folder, as one listing saw them.

    Args:
        fs: the file system.
        path: the folder's path there.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str) -> None:
        self.fs, self.path = fs, path.rstrip("/")
        is_local = isinstance(fs, LocalFileSystem)
        self.url = shown_url(self.path if is_local else fs.unstrip_protocol(self.path))

    def open(self, name: str) -> Source:
        """A file of the folder, by its name.

        Raises:
            CheckpointError: the name leads out of the folder, or the file cannot be read.
        """
        parts = name.replace("\\", "/").split("/")
        if not name or name.startswith("/") or ".." in parts or "\0" in name or ":" in name:
            raise CheckpointError(
                f"Refused {self.url}: expected names of files inside the folder, got {name!r}."
            )
        return Source(self.fs, f"{self.path}/{name}")

    def is_folder(self) -> bool:
        """Whether it is one now."""
        with _explained(self.url):
            self.fs.invalidate_cache(self.fs._parent(self.path))
            return bool(self.fs.isdir(self.path))

    def names(self) -> list[str]:
        """Names of the files and folders directly inside, sorted."""
        with _explained(self.url):
            self.fs.invalidate_cache(self.path)
            listed = self.fs.ls(self.path, detail=False)
        return sorted(str(path).rstrip("/").rsplit("/", 1)[-1] for path in listed)
