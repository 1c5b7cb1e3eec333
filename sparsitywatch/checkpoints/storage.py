"""Bytes of files on any fsspec storage: exactly the ranges asked for, nothing beside them."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ParamSpec, TypeVar

import fsspec
from fsspec.implementations.cached import CachingFileSystem
from fsspec.implementations.local import LocalFileSystem

from sparsitywatch.errors import CheckpointError, IncompleteCheckpointError
from sparsitywatch.shown import shown_error, shown_url

__all__ = [
    "ByteSource",
    "DescriptionFile",
    "Folder",
    "Source",
    "Window",
    "asked",
    "filesystem",
    "may_pass",
    "one_line",
    "url_at",
]

#: Longest piece fetched at once from a remote storage, in bytes: bounds the extra memory.
_PIECE_BYTES = 64 * 2**20
#: Longest name of a file that storages take, as on Linux.
_MAX_NAME = 4096


def one_line(error: BaseException) -> str:
    """The kind and the first words of another library's error."""
    return shown_error(error)[:240]


def filesystem(
    url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the path on it."""
    try:
        fs, path = fsspec.core.url_to_fs(os.fspath(url), **(storage_options or {}))
    except (ImportError, ValueError) as error:
        raise CheckpointError(
            f"Cannot read {shown_url(url)}: expected a URL that fsspec can open "
            f"({one_line(error)}). Install what it names, such as pip install "
            "'sparsitywatch[s3]' or 'sparsitywatch[hub]', or correct the URL."
        ) from error
    return fs, path


def url_at(url: str, fs: fsspec.AbstractFileSystem, path: str, place: str) -> str:
    """The URL of another place on the storage of a URL: its login, host and chain stay.

    Args:
        url: of ``path``.
        fs, path: what ``filesystem`` makes of it.
        place: another path there.
    """
    links = url.split("::")
    if isinstance(fs, LocalFileSystem) and len(links) == 1:
        return place
    # in front of a chain may stand how to read what follows, such as simplecache
    at = next((i for i, link in enumerate(links) if "://" in link), len(links) - 1)
    own, path = links[at].rstrip("/"), path.rstrip("/")
    if not path:
        before = links[at]
    elif own.endswith(path):
        before = own[: -len(path)]
    else:
        before, place = "", str(fs.unstrip_protocol(place))
    return "::".join([*links[:at], before + place, *links[at + 1 :]])


# ------------------------------------------------------------------ what goes wrong

#: Before each further try, in seconds: what passes has mostly passed after a few.
_PAUSES_S = (0.5, 1.0, 2.0, 4.0)
#: Answers of a server that may be another one a moment later.
_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_PASSING_ERRNO = frozenset({errno.EAGAIN, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT,
                            errno.ENETUNREACH, errno.EHOSTUNREACH})  # fmt: skip
#: Errors of clients that need not be installed, by words in their names.
_CLIENTS = ("aiohttp", "botocore", "httpcore", "httpx", "httpx2", "requests", "urllib3")
_PASSING_NAME = re.compile(
    r"Timeout|TimedOut|Disconnected|Connect(?:ion|or|Error)|Protocol(?:Error)?$|ReadError|Payload"
    r"|IncompleteRead|ChunkedEncoding"
)

_Asked = ParamSpec("_Asked")
_Answer = TypeVar("_Answer")


def may_pass(error: BaseException) -> bool:
    """Whether asking again may help: no answer, or a server that is out of order."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        status = _status(cause)
        if status is not None:
            return status in _PASSING_STATUS
        if isinstance(cause, TimeoutError | asyncio.TimeoutError | ConnectionError):
            return True
        if isinstance(cause, OSError) and cause.errno in _PASSING_ERRNO:
            return True
        kind = type(cause)
        if kind.__module__.split(".")[0] in _CLIENTS and _PASSING_NAME.search(kind.__name__):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _status(error: BaseException) -> int | None:
    """The answer of a server by its number, wherever a client's error keeps it."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore's
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(response, "status_code", getattr(error, "status", None))
    return status if isinstance(status, int) and status > 0 else None


def asked(
    what: str, ask: Callable[_Asked, _Answer], *args: _Asked.args, **kwargs: _Asked.kwargs
) -> _Answer:
    """What a storage answers, asked again a few times where the fault may pass.

    Args:
        what: such as "Cannot read s3://bucket/a.pt", for the message.
        ask: asks, with ``args`` and ``kwargs``.

    Raises:
        IncompleteCheckpointError: what is not there, or is out of reach for now.
        CheckpointError: anything else that the storage raises, in one line.
    """
    for pause_s in (*_PAUSES_S, None):
        try:
            return ask(*args, **kwargs)
        except CheckpointError:  # noqa: PERF203 asking again is what this is for
            raise
        except Exception as error:  # whatever a storage raises, such as botocore's own
            if pause_s is None or not may_pass(error):
                raise _explained(what, error) from error
            time.sleep(pause_s)
    raise AssertionError  # the last pause is None


def _explained(what: str, error: Exception) -> CheckpointError:
    if may_pass(error):
        return IncompleteCheckpointError(
            f"{what}: {one_line(_first(error))}, also when asked {len(_PAUSES_S)} more times. The "
            "storage is out of order, or out of reach; try again later."
        )
    if isinstance(error, FileNotFoundError):
        return IncompleteCheckpointError(
            f"{what}: expected a file, found none. It may not be written yet, or may have been "
            "removed."
        )
    if isinstance(error, PermissionError):
        return CheckpointError(
            f"{what}: permission denied ({one_line(error)}). Give read access to it."
        )
    return CheckpointError(f"{what}: {one_line(error)}.")


def _first(error: BaseException) -> BaseException:
    """What a storage made of a fault says less than the fault."""
    return error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error


# ------------------------------------------------------------------ bytes


class ByteSource:
    """Bytes that are read by ranges.

    Args:
        url: how it is shown.
        path: its path, to read in the order of the bytes.
        size: how many bytes there are.
    """

    #: Whether it lies on this machine's own file system, or in memory.
    is_local = True

    def __init__(self, url: str, path: str, size: int) -> None:
        self.url, self.path, self.size = url, path, size

    def read(self, start: int, length: int) -> bytes:
        """``length`` bytes from ``start``; of what there is not, nothing is allocated."""
        self.check_range(start, length)
        buffer = bytearray(length)
        self.fill(memoryview(buffer), start)
        return bytes(buffer)

    def fill(self, buffer: memoryview, start: int) -> None:
        """Fill the writable bytes of ``buffer`` with those from ``start`` on."""
        raise NotImplementedError

    def check_range(self, start: int, length: int) -> None:
        """Raise ``IncompleteCheckpointError`` unless these bytes are there."""
        if start < 0 or length < 0 or start + length > self.size:
            raise IncompleteCheckpointError(
                f"Cannot read {self.url}: expected at least {start + length} bytes, got "
                f"{self.size}. It may be half-written, or truncated."
            )


class Window(ByteSource):
    """A part of a file; of a remote one it is read at once and held in memory."""

    def __init__(self, source: ByteSource, start: int, length: int) -> None:
        super().__init__(source.url, source.path, length)
        source.check_range(start, length)
        self._source, self._start = source, start
        self._data = None if source.is_local else memoryview(source.read(start, length))

    def fill(self, buffer: memoryview, start: int) -> None:
        """As of ``ByteSource``."""
        self.check_range(start, len(buffer))
        if self._data is None:
            self._source.fill(buffer, self._start + start)
        else:
            buffer[:] = self._data[start : start + len(buffer)]


class Source(ByteSource):
    """One file, read by ranges.

    Args:
        fs: the file system that it is on.
        path: its path there.
        url: its URL as it is shown; None: as the file system names it.

    Local files are read, not mapped: a mapped file that a training truncates and rewrites
    in place, as nanoGPT does with ``ckpt.pt``, ends the process that reads it. So a file
    that changes while it is read is noticed instead. ``num_bytes_read`` counts.

    Threads may read side by side. Storages that fsspec drives asynchronously serve them all
    at once, such as s3; others, which need not bear that, one after the other.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, url: str | None = None) -> None:
        super().__init__(_shown(fs, path) if url is None else url, path, 0)
        self.fs = fs
        self._what = f"Cannot read {self.url}"
        self.num_bytes_read = 0
        self._counting = threading.Lock()
        self._seeking = threading.Lock()
        self._fetching: AbstractContextManager[object] = (
            nullcontext() if fs.async_impl else threading.Lock()
        )
        self._file: io.FileIO | None = None
        if isinstance(fs, LocalFileSystem):
            self._file = asked(self._what, io.FileIO, path, "rb")
            stat = os.fstat(self._file.fileno())
            self.size = stat.st_size
            self._version: object = (stat.st_mtime_ns, stat.st_size)
            return
        self.is_local = False
        # where a file is opened for each range, as on the Hub, it must not read ahead of it
        opens = type(fs).cat_file is fsspec.AbstractFileSystem.cat_file and not fs.async_impl
        is_cache = isinstance(fs, CachingFileSystem)
        self._exactly = {"cache_type": "none"} if opens and not is_cache else {}
        size = asked(self._what, fs.info, path)["size"]
        if size is None:
            raise CheckpointError(
                f"{self._what}: expected a server that tells the length of the file, got none. "
                "Copy the file, or put simplecache:: in front of the URL."
            )
        self.size, self._version = int(size), self._remote_version()

    def _remote_version(self) -> object:
        info = asked(self._what, self.fs.info, self.path)
        # what a storage says of a version goes by different names
        keys = ("ETag", "etag", "LastModified", "last_modified", "mtime", "created", "size",
                "blob_id", "xet_hash")  # fmt: skip
        return {key: info.get(key) for key in keys}

    def check_unchanged(self) -> None:
        """Raise ``IncompleteCheckpointError`` if the file was written since it was opened."""
        version: object
        if self._file is not None:
            stat = os.fstat(self._file.fileno())
            version = stat.st_mtime_ns, stat.st_size
        else:
            _forget(self.fs, self.path)
            version = self._remote_version()
        if version != self._version:
            raise IncompleteCheckpointError(
                f"Cannot read {self.url}: expected the file to stay as it is while it is read, "
                "but it was written meanwhile. Read it again once it is complete."
            )

    def fill(self, buffer: memoryview, start: int) -> None:
        """As of ``ByteSource``."""
        self.check_range(start, len(buffer))
        done = 0
        while done < len(buffer):
            part, at = buffer[done:], start + done
            try:
                count = self._read_into(part, at)
            except OSError:  # of a local file, such as one on NFS
                count = asked(self._what, self._read_into, part, at)
            if count == 0:
                raise IncompleteCheckpointError(
                    f"Cannot read {self.url}: expected {len(buffer)} bytes from {start} on, got "
                    f"{done}. It may have been cut off while it was read."
                )
            with self._counting:
                self.num_bytes_read += count
            done += count
        if self._file is not None:
            self.check_unchanged()

    def _read_into(self, buffer: memoryview, start: int) -> int:
        """Some bytes from ``start`` on; how many."""
        if self._file is None:
            end = start + min(len(buffer), _PIECE_BYTES)
            data = asked(self._what, self._fetched, start, end)
            buffer[: len(data)] = data
            return len(data)
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [buffer], start)
        with self._seeking:  # Windows
            self._file.seek(start)
            return self._file.readinto(buffer) or 0

    def _fetched(self, start: int, end: int) -> bytes:
        with self._fetching:
            data: bytes = self.fs.cat_file(self.path, start=start, end=end, **self._exactly)
        if len(data) > end - start:
            raise CheckpointError(
                f"{self._what}: expected the bytes {start} to {end - 1} (an answer of 206), got "
                f"{len(data)} bytes (200): the server sends files as a whole and does not know "
                "ranges. Use one that does, or put simplecache:: in front of the URL."
            )
        return data

    def close(self) -> None:
        """Let go of the file; calling it again does nothing."""
        if self._file is not None:
            self._file.close()


class _RangeFile(io.RawIOBase):
    """The first bytes of a source as a file object that the standard library can read."""

    def __init__(self, source: ByteSource, length: int) -> None:
        super().__init__()
        self._source, self.length = source, length
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.length}[whence]
        if base + offset < 0:
            # as files of the system do; zipfile takes it for an end that is not there
            raise OSError(errno.EINVAL, f"a seek to {base + offset}, before the beginning")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self.length - self._position))
        self._source.fill(memoryview(buffer)[:count], self._position)
        self._position += count
        return count


class DescriptionFile(io.BufferedReader):
    """Where a description lies: what it wants to read is bounded, whatever lengths it states.

    Args:
        source: the bytes.
        length: how many of them from the first on.
        max_read: more than this at once is no description.
        buffer_size: bytes that are fetched at once.
    """

    def __init__(self, source: ByteSource, length: int, max_read: int, buffer_size: int) -> None:
        super().__init__(_RangeFile(source, length), buffer_size)
        self._length, self._max_read = length, max_read
        #: Whether something was read that the file is too short for.
        self.is_short = False

    def read(self, size: int | None = -1, /) -> bytes:
        """As in ``io``; nothing is allocated for what there is not, or is too much."""
        left = max(0, self._length - self.tell())
        wanted = left if size is None or size < 0 else size
        self.is_short |= wanted > left
        if min(wanted, left) > self._max_read:
            raise ValueError(f"{wanted} bytes at once in a description")
        return super().read(min(wanted, left))


# ------------------------------------------------------------------ folders


class Folder:
    """The files below one folder, as one listing saw them.

    It holds every file that is opened through it: whoever opens a checkpoint and fails closes
    the folder, and nothing stays open however far a reader came.

    Args:
        fs: the file system.
        path: the folder's path there.
        url: its URL as it is shown; None: as the file system names it.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, url: str | None = None) -> None:
        self.fs, self.path = fs, path.rstrip("/")
        self.url = _shown(fs, self.path) if url is None else url
        self._what = f"Cannot read {self.url}"
        self._opened: list[Source] = []

    def open(self, name: str) -> Source:
        """A file of the folder, by a name that does not lead out of it."""
        parts = name[: _MAX_NAME + 1].replace("\\", "/").split("/")
        is_odd = not name or len(name) > _MAX_NAME or "\0" in name or ":" in name
        if is_odd or name.startswith("/") or ".." in parts:
            raise CheckpointError(
                f"Refused {self.url}: expected names of files inside the folder, got {name[:80]!r}."
            )
        path = f"{self.path}/{name}"
        self._opened.append(Source(self.fs, path, url_at(self.url, self.fs, self.path, path)))
        return self._opened[-1]

    def sub(self, name: str) -> Folder:
        """A folder inside; what is opened through it is held by this one."""
        path = f"{self.path}/{name}"
        inside = Folder(self.fs, path, url_at(self.url, self.fs, self.path, path))
        inside._opened = self._opened
        return inside

    def close(self) -> None:
        """Let go of every file that was opened; calling it again does nothing."""
        for source in self._opened:
            source.close()

    def is_folder(self) -> bool:
        """Whether it is one now."""
        _forget(self.fs, self.path)
        return bool(asked(self._what, self.fs.isdir, self.path))

    def all_names(self) -> list[str]:
        """Names of all files below, relative to it, sorted."""
        _forget(self.fs, self.path)
        found = asked(self._what, self.fs.find, self.path)
        before = f"{self.path}/"
        return sorted(str(path).removeprefix(before) for path in found)

    def names(self) -> list[str]:
        """Names of the files and folders directly inside, sorted."""
        if isinstance(self.fs, LocalFileSystem):  # which would ask for each file what it is
            return sorted(asked(self._what, os.listdir, self.path or "/"))
        self.fs.invalidate_cache(self.path)
        listed = asked(self._what, self.fs.ls, self.path, detail=False)
        return sorted(str(path).rstrip("/").rsplit("/", 1)[-1] for path in listed)


def _shown(fs: fsspec.AbstractFileSystem, path: str) -> str:
    return shown_url(path if isinstance(fs, LocalFileSystem) else fs.unstrip_protocol(path))


def _forget(fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Drop what a storage has kept of a path: it may have been written since."""
    fs.invalidate_cache(path)
    parent = fs._parent(path)
    # of a repository of the Hub the parent is no place
    if parent.strip("/") and ("/" in parent or "hf" not in fs.protocol):
        fs.invalidate_cache(parent)
