"""The directory of a watched run: read, checked, claimed by one writer, set aside for a new run."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import os
import threading
import time
import uuid
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from sparsitywatch.errors import ConfigurationError, LogTakenError, expect_path
from sparsitywatch.processes import Process, this_process, try_lock, unlock
from sparsitywatch.redact import logger

#: Names the writer of a directory, who keeps it locked while it lives.
_WRITER = ".writer"
#: How long to wait for another writer to finish what it has begun.
_WAIT_S = 30.0


def place(logdir: str | os.PathLike[str]) -> Path:
    """The directory ``<logdir>/sparsitywatch``, not made yet; an error if it is not local."""
    expect_path("logdir", logdir, "a local directory")
    text = os.fspath(logdir)
    if "://" in text:
        raise ConfigurationError(
            f"Expected `logdir` to be a local directory, got {text!r}. Log locally and sync."
        )
    return Path(text) / "sparsitywatch"


def prepare(directory: Path) -> None:
    """Make the directory; a ConfigurationError if it cannot be made or written to."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        probe = directory / f".probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ConfigurationError(
            "Expected `logdir` to be a directory that can be written to, got "
            f"{str(directory.parent)!r}: {error}."
        ) from error


def holds_run(directory: Path) -> bool:
    """Whether a run was logged there; elsewhere others, too, call a file run.json."""
    if (directory / "records.jsonl").exists():
        return True
    try:
        manifest = (directory / "run.json").read_bytes()
        return directory.name.startswith("sparsitywatch") or "ledger" in json.loads(manifest)
    except (OSError, ValueError, TypeError):
        return False


def log_of(logdir: Path) -> Path | None:
    """The folder of the log that a ``logdir`` has, or is; None if there is none."""
    return next(filter(holds_run, (logdir / "sparsitywatch", logdir)), None)


def logs_below(root: Path, prefix: str = "", most: float = math.inf) -> Iterator[tuple[str, Path]]:
    """Each log in a folder, after the name of its run, as TensorBoard would call it."""
    # links are followed, each folder is entered once, and not more than ``most`` of them
    entered: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real, place = os.path.realpath(folder), Path(folder)
        if real in entered or len(entered) >= most:
            folders.clear()
            continue
        entered.add(real)
        is_log = not {"records.jsonl", "run.json"}.isdisjoint(files) and holds_run(place)
        if is_log:
            own = place.parent if place.name == "sparsitywatch" else place
            parts = [prefix, *(own.relative_to(root).parts if own.is_relative_to(root) else ())]
            yield "/".join(filter(None, parts)) or own.absolute().name, place
        # its spectra are many files; what others link to has its own name first
        names = [name for name in folders if name[0] != "." and not (is_log and name == "spectra")]
        folders[:] = sorted(names, key=lambda name: ((place / name).is_symlink(), name))


class Claim:
    """The right to write into the directory of a log, if there is one. The last claim counts.

    A file in the directory names the holder, who keeps it locked while it lives. Everything is
    written inside ``writing``, which locks the directory and reads that name. So a later claim
    waits for what is being written, and an earlier holder writes nothing after it. Without locks
    (Windows, some network file systems) an earlier holder still finds another name there, but a
    write that has begun is not waited for, and nobody knows whether a holder lives.
    """

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory
        self._first = directory
        self._number = 1  # of the last sibling that was tried
        self._token = ""
        self._pid = 0
        self._close_writer: weakref.finalize[..., Claim] | None = None
        self._lock = threading.RLock()
        self._depth = 0

    @property
    def name(self) -> str:
        """Of the directory; empty if there is none."""
        return "" if self.directory is None else self.directory.name

    @property
    def lost(self) -> str:
        """Who has taken the directory over since; empty if nobody has."""
        if self.directory is None or not self._token:
            return ""
        holder = _Holder.of(self.directory)
        if holder.token in ("", self._token):
            return ""
        return f"{holder} has taken over {str(self.directory)!r}"

    def acquire(self, *, over: Literal["none", "own", "all"]) -> None:
        """Claim the directory, over no holder that lives, those of this process, or all."""
        # a ConfigurationError (where ``over`` is "none") or a LogTakenError for one that stays
        directory = self.directory
        if directory is None or self._token or not directory.is_dir():
            return
        with self._lock, _locked(directory):
            holder = _Holder.of(directory)
            lives = holder.token and _is_locked(directory / _WRITER)
            if lives and over == "none":
                raise ConfigurationError(
                    f"Expected `logdir` for this replay alone, but another one writes to "
                    f"{str(directory)!r} ({holder}). Wait for its end, or give another one."
                )
            if lives and over == "own" and not holder.is_here:
                raise LogTakenError(f"{holder} writes to {str(directory)!r}")
            self._sign(directory)

    def set_aside(self, why: str, *, is_expected: bool = False) -> Path | None:
        """Claim an empty directory of this name; where a run that it held is kept, if it did."""
        directory, target = self.directory, None
        if directory is None:
            return None
        with self.writing():
            if holds_run(directory):
                places = (f"{directory.name}-earlier-{n}" for n in itertools.count(1))
                target = next(t for t in map(directory.with_name, places) if not t.exists())
                directory.rename(target)
                (target / _WRITER).unlink(missing_ok=True)
                directory.mkdir()
                message = "%s held an earlier run, %s; the earlier one is now %s"
                level = logging.INFO if is_expected else logging.WARNING
                logger.log(level, message, directory, why, target)
            self._sign(directory)
        return target

    def resume_in(self, name: str) -> None:
        """Claim the directory ``name`` beside it next, if a run was logged there."""
        if self._first is None or not name.startswith(self._first.name):
            return
        logged = self._first.with_name(name)
        if not self._token and holds_run(logged):
            self.directory = logged

    def use_sibling(self) -> None:
        """Claim a directory beside it next, one that holds no run."""
        assert self._first is not None  # noqa: S101 for the type checker
        while True:
            self._number += 1
            beside = self._first.with_name(f"{self._first.name}-{self._number}")
            if not holds_run(beside):
                beside.mkdir(exist_ok=True)
                self.directory = beside
                return

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Around all that is written: nobody else writes; LogTakenError if another took over."""
        if not self._token or self.directory is None:
            yield
            return
        with self._lock, contextlib.ExitStack() as stack:
            if self._depth == 0:  # a signal's handler may close the watch in the midst of a write
                stack.enter_context(_locked(self.directory))
            if self.lost:
                raise LogTakenError(self.lost)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1

    def renew(self) -> None:
        """Sign the directory again if it was deleted."""
        if self._token and self.directory and not (self.directory / _WRITER).exists():
            self.directory.mkdir(parents=True, exist_ok=True)
            self._sign(self.directory)

    def release(self) -> None:
        """Let go; calling it again, or in a forked child, does nothing."""
        if self._pid != os.getpid():
            return
        # the name stays in the file, so that no earlier holder takes the log for its own again
        self._token = ""
        if self._close_writer is not None:
            self._close_writer()

    def _sign(self, directory: Path) -> None:
        """Put a file with this holder's name in place, locked."""
        token, process = uuid.uuid4().hex, this_process()
        temporary = directory / f"{_WRITER}-{token}"
        with contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(temporary.open("xb", buffering=0))
                stack.callback(unlock, file.fileno())
                file.write(json.dumps({"token": token, **process._asdict()}).encode())
                if try_lock(file.fileno()) is None:
                    file.close()  # Windows cannot rename a file that is open
                temporary.replace(directory / _WRITER)
            except OSError as error:  # such as a full disk, which the sinks will report, too
                temporary.unlink(missing_ok=True)
                logger.warning("%s could not be claimed: %s", directory, error)
                return
            self.release()
            self._token, self._pid = token, process.pid
            self._close_writer = weakref.finalize(self, stack.pop_all().close)
            self._close_writer.atexit = False


class _Holder(NamedTuple):
    """Whoever signed a directory last, if anybody did."""

    token: str = ""
    process: Process = Process()

    @classmethod
    def of(cls, directory: Path) -> _Holder:
        try:
            said = json.loads((directory / _WRITER).read_bytes())
            return cls(said.pop("token"), Process(**said))
        except (OSError, ValueError, TypeError, LookupError, AttributeError):
            return cls()

    @property
    def is_here(self) -> bool:
        return self.process == this_process()

    def __str__(self) -> str:
        if not self.token:
            return "another process"
        here = "another one in this process"
        return here if self.is_here else f"process {self.process.pid} on {self.process.host}"


def _is_locked(path: Path) -> bool:
    """Whether somebody holds the lock of a file; False where there are no locks."""
    try:
        with path.open("r+b") as file:
            is_free = try_lock(file.fileno())
            if is_free:
                unlock(file.fileno())
            return is_free is False
    except OSError:  # it has just been taken away
        return False


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Nobody else is inside this for the same directory; a LogTakenError if somebody stays."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:  # it is gone, or closed to us: so is every file in it, as the sinks will report
        yield
        return
    give_up = time.monotonic() + _WAIT_S
    try:
        while try_lock(descriptor) is False:
            if time.monotonic() > give_up:
                raise LogTakenError(f"{_Holder.of(directory)} keeps {str(directory)!r} locked")
            time.sleep(0.005)
        yield
    finally:
        unlock(descriptor)
        os.close(descriptor)
