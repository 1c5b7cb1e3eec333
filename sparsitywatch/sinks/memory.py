"""A sink that keeps everything in lists."""

from __future__ import annotations

from sparsitywatch.records import Detail, Event, Record, RunInfo
from sparsitywatch.sinks.session import Session, first_lost_step

__all__ = ["MemorySink"]


class MemorySink:
    """Keeps what it is told in lists: for notebooks, and as the fake in tests.

    Attributes:
        runs: what ``open`` was told, once per call.
        records, details: what ``write`` was told, item by item of the same look.
        events: what ``event`` was told.

    >>> sink = MemorySink()
    >>> sink.records
    []
    """

    def __init__(self) -> None:
        self.runs: list[RunInfo] = []
        self.records: list[Record] = []
        self.details: list[Detail] = []
        self.events: list[Event] = []
        self._session = Session("MemorySink")

    def open(self, run: RunInfo) -> None:
        """Drop the records and events of a future that was lost."""
        with self._session.opening():
            lost = first_lost_step(run)
            looks = zip(self.records, self.details, strict=True)
            kept = [(record, detail) for record, detail in looks if record.step < lost]
            self.records[:] = [record for record, _ in kept]
            self.details[:] = [detail for _, detail in kept]
            self.events[:] = [event for event in self.events if event.detected_step < lost]
            self.runs.append(run)

    def write(self, record: Record, detail: Detail) -> None:
        """Keep one record and its detail."""
        self._session.require()
        self.records.append(record)
        self.details.append(detail)

    def event(self, event: Event) -> None:
        """Keep one event."""
        self._session.require()
        self.events.append(event)

    def close(self) -> None:
        """Accept nothing more until the next ``open``; the lists stay."""
        self._session.end()
