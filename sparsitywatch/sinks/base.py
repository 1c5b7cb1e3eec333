"""The seam to the outside: where records and events go."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from sparsitywatch.records import Detail, Event, Record, RunInfo

__all__ = ["Sink"]


@runtime_checkable
class Sink(Protocol):
    """A place that records and events go to, told in the order of the steps.

    The pipeline calls ``open`` once, then ``write`` once per record and ``event`` once per
    event after the record that it was seen in, then ``close``. What is learned about an
    event later is given to ``event`` as a new version of it: the same ``id``, and the step
    of the record before as ``amended_step``; the last version counts.

    A sink may also have ``state(WatchState)``: it is told how the watch is, at every snapshot and
    once a minute, from the training's thread, also while ``write`` runs in another.

    When ``write`` or ``event`` returns, what was given survives a kill of the process. A
    sink may raise: the caller logs the cause and goes on. Nothing is written after
    ``close``. One that writes into the log's directory may have ``abandon``, which is called
    instead of ``close`` when another watch has taken the log over, and writes nothing. One that
    may lag behind the log has ``catch_up``, called after ``open`` when a run is taken up.
    """

    def open(self, run: RunInfo) -> None:
        """Get ready; drop what is held beyond ``run.initial_step``, a future that was lost."""

    def write(self, record: Record, detail: Detail) -> None:
        """Keep or show one record."""

    def event(self, event: Event) -> None:
        """Keep or show one event, or a new version of one."""

    def close(self) -> None:
        """Finish; calling it again does nothing."""
