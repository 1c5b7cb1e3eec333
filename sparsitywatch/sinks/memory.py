"""A sink that keeps everything in lists."""

from __future__ import annotations

from sparsitywatch.records import Detail, Event, Record, RunInfo, WatchState, latest_versions
from sparsitywatch.sinks.base import Session, first_lost_step

__all__ = ["MemorySink"]


class MemorySink:
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
        self._session = Session("MemorySink")

    def open(self, run: RunInfo) -> None:
        """Drop the records and events of a future that was lost."""
        with self._session.opening():
            lost = first_lost_step(run)
            pairs = zip(self.records, self.details, strict=True)
            kept = [(record, detail) for record, detail in pairs if record.step < lost]
            self.records[:] = [record for record, _ in kept]
            self.details[:] = [detail for _, detail in kept]
            self._reported[:] = [event for event in self._reported if event.reported_step < lost]
            self.events[:] = latest_versions(self._reported)
            self.runs.append(run)

    def write(self, record: Record, detail: Detail) -> None:
        """Keep one record and its detail."""
        self._session.require()
        self.records.append(record)
        self.details.append(detail)

    def event(self, event: Event) -> None:
        """Keep one event, or a new version of one."""
        self._session.require()
        self._reported.append(event)
        self.events[:] = latest_versions(self._reported)

    def state(self, state: WatchState) -> None:
        """Keep how the watch is."""
        self._session.require()
        self.states.append(state)

    def close(self) -> None:
        """Accept nothing more until the next ``open``; the lists stay."""
        self._session.end()
