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
from functools import cached_property
from pathlib import PurePath
from typing import Any, ParamSpec, TypeVar

import fsspec
from fsspec.implementations.cached import CachingFileSystem
from fsspec.implementations.local import LocalFileSystem

from sparsitywatch.errors import CheckpointError, IncompleteCheckpointError
from sparsitywatch.redact import redacted_error, redacted_url

#: Longest range fetched at once from a remote storage, in bytes: bounds the extra memory.
_MAX_FETCH_BYTES = 64 * 2**20
#: Longest name of a file that storages take, as on Linux.
_MAX_NAME = 4096


def one_line(error: BaseException) -> str:
    """The kind and the first words of another library's error."""
    return redacted_error(error)[:240]


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

    Every other error becomes one of ours, which begins with ``what``: "Cannot read s3://b/a.pt".
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
        # what a storage made of a fault says less than the fault
        is_hidden = isinstance(error, FileNotFoundError) and error.__cause__
        first = error.__cause__ if is_hidden else error
        return IncompleteCheckpointError(
            f"{what}: {one_line(first or error)}, also when asked {len(_PAUSES_S)} more times. The "
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


# ------------------------------------------------------------------ bytes


class ByteSource:
    """Bytes that are read by ranges; ``url`` as it is shown."""

    is_local = True  # on this machine's own file system, or in memory

    def __init__(self, url: str, path: str, size: int) -> None:
        self.url = url
        self.path = path
        self.size = size

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
        self._source = source
        self._start = start
        self._data = None if source.is_local else memoryview(source.read(start, length))

    def fill(self, buffer: memoryview, start: int) -> None:
        """As of ``ByteSource``."""
        self.check_range(start, len(buffer))
        if self._data is None:
            self._source.fill(buffer, self._start + start)
        else:
            buffer[:] = self._data[start : start + len(buffer)]


class Source(ByteSource):
    """One file, read by ranges; counts ``num_bytes_read``.

    Local files are read, not mapped: a mapped file that a training truncates and rewrites
    in place, as nanoGPT does with ``ckpt.pt``, ends the process that reads it. So a file
    that changes while it is read is noticed instead.

    Threads may read side by side. Storages that fsspec drives asynchronously serve them all
    at once, such as s3; others, which need not bear that, one after the other.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, url: str) -> None:
        super().__init__(url, path, 0)
        self.fs = fs
        self._what = f"Cannot read {url}"
        self.num_bytes_read = 0
        self._counting = threading.Lock()
        self._seeking = threading.Lock()
        self._fetching: AbstractContextManager[object] = (
            nullcontext() if fs.async_impl else threading.Lock()
        )
        self._file: io.FileIO | None = None
        if isinstance(fs, LocalFileSystem):
            self._file = asked(self._what, io.FileIO, path, "rb")
            self._version = self._version_now()
            self.size = os.fstat(self._file.fileno()).st_size
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
        self.size = int(size)
        self._version = self._version_now()

    def _version_now(self) -> object:
        if self._file is not None:
            stat = os.fstat(self._file.fileno())
            return stat.st_mtime_ns, stat.st_size
        info = asked(self._what, self.fs.info, self.path)
        # what a storage says of a version goes by different names
        keys = ("ETag", "etag", "LastModified", "last_modified", "mtime", "created", "size",
                "blob_id", "xet_hash")  # fmt: skip
        return {key: info.get(key) for key in keys}

    def check_unchanged(self) -> None:
        """Raise ``IncompleteCheckpointError`` if the file was written since it was opened."""
        if self._file is None:
            _forget(self.fs, self.path)
        if self._version_now() != self._version:
            raise self._written()

    def _written(self) -> IncompleteCheckpointError:
        return IncompleteCheckpointError(
            f"Cannot read {self.url}: expected the file to stay as it is while it is read, but it "
            "was written meanwhile. Read it again once it is complete."
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
        if self._file is not None and self._version_now() != self._version:
            raise self._written()

    def _read_into(self, buffer: memoryview, start: int) -> int:
        """Some bytes from ``start`` on; how many."""
        if self._file is None:
            end = start + min(len(buffer), _MAX_FETCH_BYTES)
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


class DescriptionFile:
    """A source as the file that ``zipfile`` reads a table of contents from.

    What it wants to read is bounded, whatever lengths the table states.
    """

    def __init__(self, source: ByteSource, max_read: int) -> None:
        self._source = source
        self._max_read = max_read
        self._position = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As in ``io``; an end that is not there is taken from the error by ``zipfile``."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._source.size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, f"a seek to {base + offset}, before the beginning")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """As in ``io``."""
        return self._position

    def read(self, size: int = -1) -> bytes:
        """As in ``io``; nothing is allocated for what there is not, or is too much."""
        left = max(0, self._source.size - self._position)
        length = left if size < 0 else min(size, left)
        if length > self._max_read:
            raise ValueError(f"{length} bytes at once in a description")
        data = self._source.read(self._position, length)
        self._position += length
        return data


# ------------------------------------------------------------------ where files lie


class Location:
    """A file or a folder on a storage.

    It keeps every file that is opened through it, or through one that it leads to: whoever opens
    a checkpoint and fails closes it, and nothing stays open however far a reader came.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, url: str) -> None:
        self.fs = fs
        self.path = path.rstrip("/") or path
        self.url = url  # what opens it: with login, host and chain
        self.is_local = isinstance(fs, LocalFileSystem)
        #: What the paths inside of it begin with; of all of an archive nothing.
        self.prefix = self.path and self.path.rstrip("/") + "/"
        self.opened: dict[str, Source] = {}  # by path; open until this is closed

    @cached_property
    def shown(self) -> str:
        """Its URL for messages."""
        return redacted_url(self.url)

    @classmethod
    def of(
        cls, url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
    ) -> Location:
        """The place that a URL names."""
        text = os.fspath(url)
        try:
            folder = re.split(r"[^/]*[*?[]", text, maxsplit=1)[0]
            is_there = os.path.lexists(text) or (folder and os.path.lexists(folder))
            if is_there or (isinstance(url, PurePath) and ":" in text):
                # what is there by this very name is meant, also where it looks like a URL
                fs = fsspec.filesystem("file", **(storage_options or {}))
                path = fs._strip_protocol(os.path.abspath(text))  # noqa: PTH100 links stay
            else:
                fs, path = fsspec.core.url_to_fs(text, **(storage_options or {}))
        except (ImportError, ValueError) as error:
            raise CheckpointError(
                f"Cannot read {redacted_url(text)}: expected a URL that fsspec can open "
                f"({one_line(error)}). Install what it names, such as pip install "
                "'sparsitywatch[s3]' or 'sparsitywatch[hub]', or correct the URL."
            ) from error
        return cls(fs, path, url_at(text, fs, path, path))

    def at(self, path: str) -> Location:
        """Another place on the same storage, by its path there."""
        place = Location(self.fs, path, url_at(self.url, self.fs, self.path, path))
        place.opened = self.opened
        return place

    def inside(self, name: str) -> Location:
        """A place inside this folder, by a name that does not lead out of it."""
        parts = name[: _MAX_NAME + 1].replace("\\", "/").split("/")
        is_odd = not name or len(name) > _MAX_NAME or "\0" in name or ":" in name
        if is_odd or name.startswith("/") or ".." in parts:
            raise CheckpointError(
                f"Refused {self.shown}: expected names of files inside the folder, got "
                f"{name[:80]!r}."
            )
        return self.at(self.prefix + name)

    def source(self) -> Source:
        """The file itself; closing it is up to the caller."""
        return Source(self.fs, self.path, self.shown)

    def open(self) -> Source:
        """The file itself, open until ``close``; the same one each time."""
        if self.path not in self.opened:
            self.opened[self.path] = self.source()
        return self.opened[self.path]

    def close(self) -> None:
        """Let go of every file that was opened; calling it again does nothing."""
        for source in self.opened.values():
            source.close()

    def is_folder(self) -> bool:
        """Whether it is a folder now."""
        _forget(self.fs, self.path)
        return bool(asked(f"Cannot read {self.shown}", self.fs.isdir, self.path))

    def names(self) -> list[str]:
        """Names of the files and folders directly inside, sorted."""
        what = f"Cannot read {self.shown}"
        if self.is_local:  # fsspec would ask for each file what it is
            return sorted(asked(what, os.listdir, self.path))
        self.fs.invalidate_cache(self.path)
        listed = asked(what, self.fs.ls, self.path, detail=False)
        return sorted(str(path).rstrip("/").rsplit("/", 1)[-1] for path in listed)


def url_at(url: str, fs: fsspec.AbstractFileSystem, path: str, place: str) -> str:
    """The URL of ``place``, a path on ``fs``, where ``url`` is that of ``path``.

    Its login, host and chain stay.
    """
    if isinstance(fs, LocalFileSystem):
        return place
    links = url.split("::")
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


def _forget(fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Drop what a storage has kept of a path: it may have been written since."""
    fs.invalidate_cache(path)
    parent = fs._parent(path)
    # of a repository of the Hub the parent is no place
    if parent.strip("/") and ("/" in parent or "hf" not in fs.protocol):
        fs.invalidate_cache(parent)
