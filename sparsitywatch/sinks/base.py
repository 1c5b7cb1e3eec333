"""The seam to the outside: where records and events go, and what every sink needs for that."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sparsitywatch.errors import ConfigurationError, StateError
from sparsitywatch.records import Detail, Event, Record, RunInfo, WatchState, latest_versions


class Sink(ABC):
    """A place that records and events go to, in the order of the steps. Derive yours from it.

    The pipeline calls ``open`` once, then ``write`` once per record and ``event`` once per
    event after the record that it was seen in, then ``close``. What is learned about an
    event later is given to ``event`` as a new version of it: the same ``id``, and the step
    of the record before as ``revised_step``; the last version counts.

    When ``write`` or ``event`` returns, what was given survives a kill of the process. A
    sink may raise: the caller logs the cause and goes on. Nothing is written after ``close``.
    Names of your own begin with an underscore, so that a slip in one of these is an error.

    Raises:
        ConfigurationError: a class has a public name that no sink is asked for.
    """

    def __init_subclass__(cls) -> None:
        known = {name for name in vars(Sink) if not name.startswith("_")}
        for name in vars(cls):
            if not (name.startswith("_") or name in known):
                raise ConfigurationError(
                    f"Expected the sink {cls.__name__} to have the methods "
                    f"{', '.join(sorted(known))}, got {name!r}. Begin a name of your own with an "
                    "underscore."
                )

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

    def state(self, state: WatchState) -> None:  # noqa: B027 optional
        """Keep or show how the watch stands; by default nothing.

        Called at every snapshot and once a minute, from the training's thread, also while
        ``write`` runs in another.
        """

    def deliver(self) -> None:  # noqa: B027 optional
        """Do what belongs into the training's thread; by default nothing.

        Called there when a record and its events were given; ``write`` may run in another.
        """

    def catch_up(  # noqa: B027 optional
        self,
        records: Sequence[Record],
        events: Sequence[Event],
        detail_of: Callable[[Record], Detail],
    ) -> None:
        """Keep or show what the log of a resumed run holds and this sink lacks; by default nothing.

        Called after ``open``.

        Args:
            records, events: what is known of the run, by rising step.
            detail_of: what can still be known of a record.
        """

    def abandon(self) -> None:
        """End without writing: another watch has taken over the log; by default ``close``."""
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

    @contextmanager
    def _opening(self, directory: Path | None = None) -> Iterator[None]:
        """Around the work of ``open``: the sink is open if it succeeds."""
        if self._pid is not None:
            name = type(self).__name__
            raise StateError(
                f"Expected a closed {name} in open(), but it is open; close() it first."
            )
        try:
            yield
        except OSError as error:
            raise ConfigurationError(
                f"Expected `directory` to be a directory that can be written to, got "
                f"{str(directory)!r}: {error}."
            ) from error
        self._pid = os.getpid()

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
        """Finish; False if there is nothing to finish here (closed, or another's)."""
        if self._pid != os.getpid():
            return False
        self._pid = None
        return True


class AppendingFile:
    """Appends blocks of bytes in order, each handed to the operating system at once."""

    def __init__(self, path: Path) -> None:
        # no buffer: a kill loses nothing, and a forked child neither hangs nor writes twice
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
        self._descriptor = os.open(path, flags, 0o666)
        self._pending = bytearray()
        self.end = os.fstat(self._descriptor).st_size  # where the next block will begin

    def write(self, block: bytes) -> None:
        """Append ``block``, after anything that is still pending; raises OSError as ``flush``."""
        self.hold(block)
        self.flush()

    def hold(self, block: bytes) -> None:
        """Let ``block`` be pending: it is written when the next one is."""
        self._pending += block
        self.end += len(block)

    def flush(self) -> None:
        """Write what is pending; what the system refuses is an OSError, and stays pending."""
        while self._pending:
            num_written = os.write(self._descriptor, self._pending)
            del self._pending[:num_written]

    def close(self) -> None:
        """Try once more to write what is pending, and close the file in any case."""
        try:
            self.flush()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close the file without what is pending."""
        os.close(self._descriptor)


class MemorySink(GuardedSink):
    """Keeps what it is given in lists: for notebooks, and as the fake in tests.

    Attributes:
        runs: what ``open`` was given, once per call.
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

    def state(self, state: WatchState) -> None:
        self._require()
        self.states.append(state)

    def close(self) -> None:
        """Accept nothing more until the next ``open``; the lists stay."""
        self._end()
