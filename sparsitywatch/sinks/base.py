"""The seam to the outside: where records and events go, and what every sink needs for that."""

from __future__ import annotations

import contextlib
import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sparsitywatch.errors import ConfigurationError, Seam, StateError
from sparsitywatch.records import Detail, Event, Record, RunInfo, WatchState, latest_versions


class Sink(Seam, ABC):
    """A place that records and events go to, in the order of the steps. Derive yours from it.

    The pipeline calls ``open`` once, then ``write`` once per record and ``event`` once per
    event after the record that it was seen in, then ``close``. What is learned about an
    event later is given to ``event`` as a new version of it: the same ``id``, and the step
    of the record before as ``revised_step``; the last version counts.

    When ``write`` or ``event`` returns, what was given survives a kill of the process. A
    sink may raise: the caller logs the cause and goes on. At once, then after pauses that grow,
    it calls ``abandon``, ``open`` with the last step that was kept as ``run.initial_step``,
    ``catch_up``, and ``write`` and ``event`` with what came since. Nothing is written after
    ``close``.
    A sink may be a dataclass, and have methods of its own.

    Raises:
        ConfigurationError: a method is called nearly as one of these, a slip.
    """

    @abstractmethod
    def open(self, run: RunInfo) -> None:
        """Get ready; drop what is held beyond ``run.initial_step``, a future that was lost."""

    @abstractmethod
    def write(self, record: Record, detail: Detail) -> None:
        """Keep or show one record."""

    @abstractmethod
    def event(self, event: Event) -> None:
        """Keep or show one event, or a new version of one."""

    @abstractmethod
    def close(self) -> None:
        """Finish; calling it again does nothing."""

    def renew(self, run: RunInfo) -> None:
        """Keep or show what is said once of a model that has changed; by default nothing.

        The records that come are of the scope of ``run``.
        """

    def state(self, state: WatchState) -> None:
        """Keep or show how the watch stands; by default nothing.

        Called at every snapshot and once a minute, from the training's thread, also while
        ``write`` runs in another.
        """

    def deliver(self) -> None:
        """Do what belongs into the training's thread; by default nothing.

        Called there when a record and its events were given; ``write`` may run in another.
        """

    def catch_up(
        self,
        records: Sequence[Record],
        events: Sequence[Event],
        detail_of: Callable[[Record], Detail],
    ) -> None:
        """Keep or show what is known of the run and this sink lacks; by default nothing.

        Called after ``open`` where a run is resumed, or the sink has failed.

        Args:
            records, events: what is known of the run, by rising step.
            detail_of: what can still be known of a record.
        """

    def abandon(self) -> None:
        """End without writing: the log was taken over, or this has failed; by default ``close``."""
        self.close()


def first_lost_step(run: RunInfo) -> int:
    """The first step whose record, if there is one already, is of a future that was lost."""
    is_new = run.initial_step == 0 and not run.replayed_from
    return 0 if is_new else run.initial_step + 1  # one at the initial step is older, and stays


def local_directory(directory: str | os.PathLike[str]) -> Path:
    """``directory`` as a path; a ConfigurationError if it is a URL."""
    if "://" in os.fspath(directory):
        raise ConfigurationError(
            f"Expected `directory` to be a local path, got {os.fspath(directory)!r}. Write to "
            "a local directory and sync it."
        )
    return Path(directory)


class GuardedSink(Sink):
    """Knows whether it is open, and in this process: a forked child must not write."""

    _pid: int | None = None
    _files: contextlib.ExitStack  # that are open while it is

    @contextlib.contextmanager
    def _opening(self, directory: Path | None = None) -> Iterator[None]:
        """Around the work of ``open``: the sink is open if it succeeds."""
        if self._pid is not None:
            name = type(self).__name__
            raise StateError(
                f"Expected a closed {name} in open(), but it is open; close() it first."
            )
        with contextlib.ExitStack() as self._files:
            try:
                yield
            except OSError as error:
                raise ConfigurationError(
                    f"Expected `directory` to be a directory that can be written to, got "
                    f"{str(directory)!r}: {error}."
                ) from error
            self._pid, self._files = os.getpid(), self._files.pop_all()

    def _appending(self, path: Path) -> AppendingFile:
        """A file to append to, as long as the sink is open."""
        file = AppendingFile(path)
        self._files.callback(file.close)
        return file

    def _require(self) -> None:
        """Refuse with a StateError unless this process opened the sink."""
        name = type(self).__name__
        if self._pid is None:
            raise StateError(
                f"Expected an open {name}, but it is closed; call open(run) before writing."
            )
        if self._pid != os.getpid():
            raise StateError(
                f"Expected process {self._pid}, which opened this {name}, got its child "
                f"{os.getpid()}. Attach the watch in the process that trains."
            )

    def _end(self) -> bool:
        """Finish, with its files; False if there is nothing to finish (closed, or another's)."""
        if self._pid != os.getpid():
            return False
        self._pid = None
        self._files.close()
        return True


class AppendingFile:
    """Appends blocks of bytes in order, each handed to the operating system at once."""

    def __init__(self, path: Path) -> None:
        # no buffer: a kill loses nothing, and a forked child neither hangs nor writes twice
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        self._path = path
        self._descriptor = os.open(path, flags, 0o666)
        self.end = os.fstat(self._descriptor).st_size  # where the next block will begin

    def write(self, block: bytes) -> None:
        """Append ``block``; where that raises an OSError, nothing of it is there."""
        if os.fstat(self._descriptor).st_nlink == 0 or not self._path.exists():
            raise FileNotFoundError(errno.ENOENT, "it was deleted or moved", str(self._path))
        rest = memoryview(block)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            self.cut(self.end)
            raise
        self.end += len(block)

    def cut(self, end: int) -> None:
        """Take back what was appended from ``end`` on."""
        os.ftruncate(self._descriptor, end)
        self.end = end

    def close(self) -> None:
        os.close(self._descriptor)


class MemorySink(GuardedSink):
    """Keeps what it is given in lists: for notebooks, and as the fake in tests.

    Attributes:
        runs: what ``open`` and ``renew`` were given, once per call.
        records, details: what ``write`` was given, item by item of the same snapshot.
        events: each event that ``event`` was given, in its last version.
        states: what ``state`` was given.

    >>> sink = MemorySink()
    >>> sink.records
    []
    """

    def __init__(self) -> None:
        self.runs: list[RunInfo] = []
        self.records: list[Record] = []
        self.details: list[Detail] = []
        self.events: list[Event] = []
        self.states: list[WatchState] = []
        self._reported: list[Event] = []

    def open(self, run: RunInfo) -> None:
        """Drop the records and events of a future that was lost."""
        with self._opening():
            lost = first_lost_step(run)
            num_kept = sum(record.step < lost for record in self.records)
            del self.records[num_kept:], self.details[num_kept:]
            self._reported[:] = [event for event in self._reported if event.reported_step < lost]
            self.events[:] = latest_versions(self._reported)
            self.runs.append(run)

    def write(self, record: Record, detail: Detail) -> None:
        self._require()
        self.records.append(record)
        self.details.append(detail)

    def event(self, event: Event) -> None:
        self._require()
        self._reported.append(event)
        self.events[:] = latest_versions(self._reported)

    def renew(self, run: RunInfo) -> None:
        self._require()
        self.runs.append(run)

    def state(self, state: WatchState) -> None:
        self._require()
        self.states.append(state)

    def close(self) -> None:
        """Accept nothing more until the next ``open``; the lists stay."""
        self._end()
