"""Bytes of files on any fsspec storage: exactly the ranges asked for, nothing beside them."""

from __future__ import annotations

import errno
import io
import math
import os
import re
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePath
from typing import Any, ParamSpec, TypeVar

import fsspec
from fsspec.implementations.cached import CachingFileSystem
from fsspec.implementations.local import LocalFileSystem

from sparsitywatch.errors import CheckpointError, IncompleteCheckpointError
from sparsitywatch.redact import redacted_error, redacted_url

#: What names a file or a folder, and what fsspec is given for its storage.
Url = str | os.PathLike[str]
Options = Mapping[str, Any] | None

#: Longest range fetched at once from a remote storage, in bytes: bounds the extra memory.
_MAX_FETCH_BYTES = 64 * 2**20
#: Neighbours that are read at once: how many bytes, and how many may lie between two of them; more
#: where all that lies between is a sixteenth.
_MAX_BATCH_BYTES, _MAX_BETWEEN_BYTES = 2**23, 2**12
#: What lies in a repository in the place of a large file, by how it begins: what fetches it.
_POINTERS = {b"version https://git-lfs.github.com/": "git lfs pull",
             b"/annex/objects/": "git annex get"}  # fmt: skip
_MAX_POINTER_BYTES = 400
#: An ETag that is made of the bytes, as s3 does; those of web servers are of time and size.
_MD5 = re.compile(r'"?([0-9a-f]{32}(?:-\d+)?)"?')
#: Longest name of a file that storages take, as on Linux.
_MAX_NAME = 4096


def one_line(error: BaseException) -> str:
    """The kind and the first words of another library's error."""
    return redacted_error(error)[:240]


# ------------------------------------------------------------------ what goes wrong

#: Before each further try, in seconds: what passes has mostly passed after a few.
_PAUSES_S = (0.5, 1.0, 2.0, 4.0)
#: Why a storage gives no answer, where it may give one a moment later: by the answers of servers,
#: the numbers of the system's errors, and the classes that are raised.
_OUT_OF_ORDER = "The storage is out of order, or out of reach; try again later."
_PASSING: dict[object, str] = {
    429: "The storage limits how often it is asked (429); log in, or try again later.",
    **dict.fromkeys(
        (408, 425, 500, 502, 503, 504, "EAGAIN", "EBUSY", "ESTALE", "ETIMEDOUT", "ENETUNREACH",
         "EHOSTUNREACH", "TimeoutError", "ConnectionError"), _OUT_OF_ORDER),
}  # fmt: skip
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
_NO_SUCH = (
    "there is no repository of this name, or it is private or gated. Check the name; if it is "
    f"right, {_LOG_IN} of an account that may read it"
)
#: The same where waiting helps nothing, with what to do.
_REFUSALS: dict[object, str] = {
    "GatedRepoError": f"the repository is gated. Accept its terms on its page, and {_LOG_IN}",
    "DisabledRepoError": "the hub has disabled the repository. Use a copy of it",
    "RepositoryNotFoundError": _NO_SUCH,
    "BucketNotFoundError": _NO_SUCH,
    "OfflineModeIsEnabled": "the hub is not asked, as HF_HUB_OFFLINE is set. Unset it",
    "PermissionError": "permission denied ({error}). Give read access to it",
    401: "the server asks who you are (401). Log in, or give credentials as `storage_options`",
    403: "permission denied (403). Give these credentials read access, or check the name: some "
    "servers answer so where there is nothing",
}
#: Errors of clients that need not be installed, by words in their names.
_CLIENTS = ("aiohttp", "botocore", "httpcore", "httpx", "httpx2", "requests", "urllib3")
_PASSING_NAME = re.compile(
    r"Timeout|TimedOut|Disconnected|Connect(?:ion|or|Error)|Protocol(?:Error)?$|ReadError|Payload"
    r"|IncompleteRead|ChunkedEncoding"
)

_Asked = ParamSpec("_Asked")
_Answer = TypeVar("_Answer")


class NoAccessError(CheckpointError):
    """A storage that refuses: waiting alone helps nothing."""


def _signs(error: BaseException) -> Iterator[object]:
    """What the tables know an error by, and then what has caused it: the closest first."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield from (kind.__name__ for kind in type(cause).__mro__)
        status = _status(cause)
        if status is not None:
            yield status
        elif isinstance(cause, OSError):
            yield errno.errorcode.get(cause.errno or 0)
        kind = type(cause)
        if kind.__module__.split(".")[0] in _CLIENTS and _PASSING_NAME.search(kind.__name__):
            yield "ConnectionError"
        cause = cause.__cause__ or cause.__context__


def _status(error: BaseException) -> int | None:
    """The answer of a server by its number, wherever a client's error keeps it."""
    response = getattr(error, "response", None)
    if isinstance(response, Mapping):  # botocore's
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(response, "status_code", getattr(error, "status", None))
    return status if isinstance(status, int) and status > 0 else None


def cause_of(error: BaseException) -> tuple[str, bool]:
    """Why a storage gives nothing, if that is known, and whether it may pass."""
    for sign in _signs(error):
        if sign in _PASSING:
            return _PASSING[sign], True
        if sign in _REFUSALS:
            return _REFUSALS[sign].format(error=one_line(error)), False
        if isinstance(sign, int):  # a server has answered
            break
    return "", False


def asked(
    what: str, ask: Callable[_Asked, _Answer], *args: _Asked.args, **kwargs: _Asked.kwargs
) -> _Answer:
    """What a storage answers, asked again where a fault may pass; else an error about ``what``."""
    pauses_s = iter(_PAUSES_S)
    while True:
        try:
            return ask(*args, **kwargs)
        except CheckpointError:  # noqa: PERF203 asking again is what this is for
            raise
        except Exception as error:  # whatever a storage raises, such as botocore's own
            why, may_pass = cause_of(error)
            pause_s = next(pauses_s, None) if may_pass else None
            if pause_s is None:
                raise _explained(what, error, why, may_pass=may_pass) from error
            time.sleep(pause_s)


def _explained(what: str, error: Exception, why: str, *, may_pass: bool) -> CheckpointError:
    is_missing = isinstance(error, FileNotFoundError)
    if may_pass:
        # what a storage made of a fault says less than the fault
        first = (error.__cause__ if is_missing else None) or error
        tries = f"{one_line(first)}, also when asked {len(_PAUSES_S)} more times"
        return IncompleteCheckpointError(f"{what}: {tries}. {why}")
    if why:
        return NoAccessError(f"{what}: {why}.")
    if is_missing:
        return IncompleteCheckpointError(
            f"{what}: expected a file, found none. It may not be written yet, or may have been "
            "removed."
        )
    return CheckpointError(f"{what}: {one_line(error)}.")


# ------------------------------------------------------------------ bytes


@dataclass(frozen=True)
class Range:
    """Bytes that are read next."""

    start: int
    end: int  # at most
    done: int  # at least; of what is read more than once it lies behind the end


@dataclass
class _Batch:
    """Ranges that one request fetches; kept until each has been read."""

    start: int
    end: int
    left: set[int]  # where the ranges end that have not been read
    num_between: int = 0  # bytes that are in none of them
    data: memoryview = field(default_factory=lambda: memoryview(b""))
    lock: threading.Lock = field(default_factory=threading.Lock)


def _batches(ranges: Iterable[Range]) -> list[_Batch]:
    """Neighbours together, as long as little lies between them and a request stays small."""
    found: list[_Batch] = []
    for one in sorted(ranges, key=lambda one: one.start):
        last = found[-1] if found else None
        if last is not None and max(one.end, last.end) - last.start <= _MAX_BATCH_BYTES:
            between = one.start - last.end
            if between <= max(_MAX_BETWEEN_BYTES, (one.end - last.start) // 16 - last.num_between):
                last.num_between += max(0, between)
                last.end = max(one.end, last.end)
                last.left.add(one.done)
                continue
        found.append(_Batch(one.start, one.end, {one.done}))
    return found


class ByteSource:
    """Bytes that are read by ranges; ``url`` as it is shown."""

    is_local = True  # on this machine's own file system, or in memory

    url: str
    size: int

    def read(self, start: int, length: int) -> bytes:
        """``length`` bytes from ``start``; of what there is not, nothing is allocated."""
        self.check_range(start, length)
        buffer = bytearray(length)
        self.fill(memoryview(buffer), start)
        return bytes(buffer)

    def fill(self, buffer: memoryview, start: int) -> None:
        """Fill the writable bytes of ``buffer`` with those from ``start`` on."""
        raise NotImplementedError

    def expect(self, ranges: Iterable[Range]) -> None:
        """Be told what is read next; what is far away is then asked for with fewer requests."""

    def range_of(self, start: int, length: int) -> tuple[ByteSource, Range]:
        """What is to be expected, and where, before these bytes are read."""
        return self, Range(start, start + length, start + length)

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
        self.url, self.size = source.url, length
        source.check_range(start, length)
        self._source = source
        self._start = start
        self._data = None if source.is_local else memoryview(source.read(start, length))

    def fill(self, buffer: memoryview, start: int) -> None:
        self.check_range(start, len(buffer))
        if self._data is None:
            self._source.fill(buffer, self._start + start)
        else:
            buffer[:] = self._data[start : start + len(buffer)]


class SourceFile(ByteSource):
    """One file, read by ranges, by threads side by side; counts ``num_bytes_read``."""

    # local files are not mapped: one that a training truncates and rewrites in place, as nanoGPT
    # does with ckpt.pt, would end the process that reads it. So it is noticed instead.

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, url: str) -> None:
        self.fs, self.path, self.url = fs, path, url
        self._what = f"Cannot read {url}"
        #: Of all bytes, as the storage has it: files with the same are the same.
        self.stated_hash = ""
        self.num_bytes_read = 0
        self._counting = threading.Lock()
        # storages that fsspec does not drive asynchronously need not bear threads
        self._fetching: AbstractContextManager[object] = (
            nullcontext() if fs.async_impl else threading.Lock()
        )
        self._file: io.FileIO | None = None
        self._expected: list[_Batch] = []  # by where they begin
        if isinstance(fs, LocalFileSystem):
            if fs.exists(path) and not fs.isfile(path):  # to open a pipe may take for ever
                raise CheckpointError(
                    f"{self._what}: expected a file, got a pipe, a device or a folder. Write the "
                    "checkpoint to a file."
                )
            self._file = asked(self._what, io.FileIO, path, "rb")
            self.size = os.fstat(self._file.fileno()).st_size
            #: What tells it from what is written over it later.
            self.version = self._version_now()
            return
        self.is_local = False
        # where a file is opened for each range, as on the Hub, it must not read ahead of it
        opens = type(fs).cat_file is fsspec.AbstractFileSystem.cat_file and not fs.async_impl
        is_cache = isinstance(fs, CachingFileSystem)
        self._exactly = {"cache_type": "none"} if opens and not is_cache else {}
        size = asked(self._what, fs.info, path)["size"]
        if size is None and is_cache:
            with asked(self._what, fs.open, path, "rb") as copy:
                size = copy.seek(0, os.SEEK_END)
        if size is None:
            raise CheckpointError(
                f"{self._what}: expected a server that tells the length of the file, got none. "
                f"Copy the file, or put simplecache:: in front of its own URL: "
                f"simplecache::{self.url}."
            )
        self.size = int(size)
        self.version = self._version_now()

    @property
    def modified_s(self) -> float:
        """When a local file was last written, in seconds since the epoch; of others NaN."""
        return math.nan if self._file is None else os.fstat(self._file.fileno()).st_mtime

    def _version_now(self) -> str:
        if self._file is not None:
            stat = os.fstat(self._file.fileno())
            return f"{stat.st_mtime_ns} {stat.st_size}"
        info = asked(self._what, self.fs.info, self.path)
        md5 = _MD5.fullmatch(str(info.get("ETag", "")))
        self.stated_hash = (info.get("lfs") or {}).get("sha256") or (md5[1] if md5 else "")
        # what a storage says of a version goes by different names
        keys = ("ETag", "etag", "LastModified", "last_modified", "mtime", "created", "size",
                "blob_id", "xet_hash")  # fmt: skip
        return " ".join(str(info.get(key)) for key in keys)

    def check_unchanged(self) -> None:
        """Raise ``IncompleteCheckpointError`` if the file was written since it was opened."""
        if self._file is None:
            _forget(self.fs, self.path)
        if self._version_now() != self.version:
            raise IncompleteCheckpointError(
                f"{self._what}: expected the file to stay as it is while it is read, but it was "
                "written meanwhile. Read it again once it is complete."
            )

    def expect(self, ranges: Iterable[Range]) -> None:
        if self._file is None:
            self._expected = _batches(ranges)

    def _from_batch(self, buffer: memoryview, start: int) -> int:
        """Fill the beginning of ``buffer`` with what is read ahead; how much of it."""
        at = bisect_right(self._expected, start, key=lambda batch: batch.start) - 1
        if at < 0:
            return 0
        batch = self._expected[at]
        with batch.lock:
            end = start + len(buffer)
            if not batch.left or start >= batch.end or (end > batch.end and not batch.data):
                return 0
            if not batch.data:
                data = asked(self._what, self._fetched, batch.start, batch.end)
                batch.data = memoryview(data)
                with self._counting:
                    self.num_bytes_read += len(data)
            part = batch.data[start - batch.start :][: len(buffer)]
            buffer[: len(part)] = part
            batch.left -= {one for one in batch.left if start < one <= end}
            if not batch.left:
                batch.data = memoryview(b"")
            return len(part)

    def fill(self, buffer: memoryview, start: int) -> None:
        self.check_range(start, len(buffer))
        done = self._from_batch(buffer, start) if self._file is None else 0
        while done < len(buffer):
            count = asked(self._what, self._read_into, buffer[done:], start + done)
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
            data = self._fetched(start, start + min(len(buffer), _MAX_FETCH_BYTES))
            buffer[: len(data)] = data
            return len(data)
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [buffer], start)
        with self._counting:  # Windows; to seek and to read are two
            self._file.seek(start)
            return self._file.readinto(buffer) or 0

    def _fetched(self, start: int, end: int) -> bytes:
        with self._fetching:
            data: bytes = self.fs.cat_file(self.path, start=start, end=end, **self._exactly)
        if len(data) > end - start:
            raise CheckpointError(
                f"{self._what}: expected the bytes {start} to {end - 1} (an answer of 206), got "
                f"{len(data)} bytes (200): the server sends files as a whole and does not know "
                "ranges. Use one that does, or put simplecache:: in front of the URL of each "
                f"file: simplecache::{self.url}."
            )
        return data

    def close(self) -> None:
        """Let go of the file; calling it again does nothing."""
        self._expected = []
        if self._file is not None:
            self._file.close()

    def reopen(self) -> None:
        """Open it again, if it was closed; it must be as it was."""
        if self._file is not None and self._file.closed:
            self._file = asked(self._what, io.FileIO, self.path, "rb")
            self.check_unchanged()


class DescriptionFile(io.RawIOBase):
    """A source as the file that ``zipfile`` reads a table of contents of bounded length from."""

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
    """A file or a folder on a storage; it keeps and closes all that is opened through it."""

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, url: str) -> None:
        self.fs = fs
        self.path = path.rstrip("/") or path
        self.url = url  # what opens it: with login, host and chain
        self.is_local = isinstance(fs, LocalFileSystem)
        #: What the paths inside of it begin with; of all of an archive nothing.
        self.prefix = self.path and self.path.rstrip("/") + "/"
        self.opened: dict[str, SourceFile] = {}  # by path; open until this is closed

    @cached_property
    def shown(self) -> str:
        """Its URL for messages."""
        return redacted_url(self.url)

    @classmethod
    def of(cls, url: Url, storage_options: Options = None) -> Location:
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

    def source(self) -> SourceFile:
        """The file itself; closing it is up to the caller."""
        source = SourceFile(self.fs, self.path, self.shown)
        if source.size <= _MAX_POINTER_BYTES:
            start = source.read(0, min(source.size, max(map(len, _POINTERS))))
            how = next((how for begin, how in _POINTERS.items() if start.startswith(begin)), "")
            if how:
                source.close()
                raise CheckpointError(
                    f"Cannot read {self.shown}: expected the file, got a pointer to it, as it was "
                    f"not downloaded. Run `{how}` there."
                )
        return source

    def open(self) -> SourceFile:
        """The file itself, open until ``close``; the same one each time."""
        if self.path not in self.opened:
            self.opened[self.path] = self.source()
        return self.opened[self.path]

    def close(self) -> None:
        """Let go of every file that was opened; calling it again does nothing."""
        for source in self.opened.values():
            source.close()

    def reopen(self) -> None:
        """Open again what was closed."""
        for source in self.opened.values():
            source.reopen()

    def is_folder(self) -> bool:
        """Whether it is a folder now."""
        _forget(self.fs, self.path)
        return self.kind() == "directory"

    def kind(self) -> str:
        """What it is, such as "file" or "directory"; empty where nothing is."""
        return asked(f"Cannot read {self.shown}", self._kind)

    def _kind(self) -> str:
        if self.prefix == "":  # all of an archive
            return "directory"
        info, is_http = None, "http" in self.fs.protocol
        for path in (self.path, *([self.prefix] if is_http else [])):  # some want the slash
            try:
                info = info or self.fs.info(path)  # isdir and exists swallow refusals
            except (FileNotFoundError, NotADirectoryError) as error:  # noqa: PERF203 both are asked
                if cause_of(error)[0]:
                    raise
        if info is None:
            return ""
        # over http a folder is a page of links; of a file that is none this would fetch it all
        kind = info.get("mimetype") or ("text/html" if self.url.endswith("/") else "")
        is_page = is_http and kind == "text/html"
        return "directory" if is_page and self.fs.isdir(self.prefix) else str(info["type"])

    def names(self) -> list[str]:
        """Names of the files and folders directly inside, sorted."""
        self.fs.invalidate_cache(self.path)
        return sorted(name for name, *_ in asked(f"Cannot read {self.shown}", self.children))

    def children(self) -> list[tuple[str, bool, bool]]:
        """What is directly inside: its name, whether it is a folder, whether it is a local link."""
        if self.is_local:  # fsspec would ask for each file what it is
            with os.scandir(self.path) as entries:
                return [(entry.name, entry.is_dir(), entry.is_symlink()) for entry in entries]
        found = []
        where = self.prefix if "http" in self.fs.protocol else self.path
        for info in self.fs.ls(where, detail=True):
            path = info["name"].rstrip("/")
            if path.startswith(self.prefix) and path != self.path:  # some list the folder itself
                is_link = info["type"] not in ("file", "directory") or info.get("islink")
                is_folder = self.fs.isdir(path) if is_link else info["type"] == "directory"
                found.append((path.removeprefix(self.prefix), is_folder, False))
        return found


def url_at(url: str, fs: fsspec.AbstractFileSystem, path: str, place: str) -> str:
    """The URL of ``place``, a path on ``fs``, with login, host and chain of that of ``path``."""
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
