"""Record in, events out, everything to the sinks; cannot tell live from offline."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sparsitywatch.actions import log_event
from sparsitywatch.analysis.chronicle import Changes
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.history import Detector, History
from sparsitywatch.records import Detail, Event, Record, RunInfo, SparsityCurve
from sparsitywatch.sinks.base import Sink

__all__ = ["Detector", "Pipeline", "log_event"]

_logger = logging.getLogger("sparsitywatch")

#: A sink that failed so often in a row is not asked again.
_MAX_FAILURES = 3


class Pipeline:
    """Takes records in the order of their steps and passes on what they mean.

    Nothing that goes wrong in a sink or an action leaves it: the cause is logged, the
    others go on, and a sink that keeps failing is left out.

    Args:
        sinks: told everything, in this order.
        detectors: by the name of the series each one watches.
        on_event: called with each event, after the sinks have it.
        on_record: called with each record, after the sinks have it.
        strict: let what goes wrong out, for tests.
    """

    def __init__(
        self,
        *,
        sinks: Sequence[Sink] = (),
        detectors: Mapping[str, Detector] | None = None,
        on_event: Sequence[Callable[[Event], object]] = (),
        on_record: Sequence[Callable[[Record], object]] = (),
        strict: bool = False,
    ) -> None:
        for name, functions in (("on_event", on_event), ("on_record", on_record)):
            if callable(functions) or not all(callable(f) for f in functions):
                raise ConfigurationError(
                    f"Expected `{name}` to be a sequence of functions, got {functions!r}. "
                    "Put a single function in a list."
                )
        self._sinks = list(sinks)
        self._history = History(detectors or {})
        self._on_event, self._on_record = tuple(on_event), tuple(on_record)
        self._strict = strict
        self._failures: dict[int, int] = {}
        self._unsaid: tuple[Event, ...] = ()  # by actions
        self.publish_s = 0.0

    @property
    def records(self) -> list[Record]:
        """Every record; layers are kept for the latest hundred only."""
        return self._history.records

    @property
    def events(self) -> list[Event]:
        """Every event in its latest version, in the order in which they were seen."""
        return self._history.events

    @property
    def last_curve(self) -> SparsityCurve | None:
        """The curve of the latest record that has one; the same after a resume."""
        return next((r.curve for r in reversed(self.records) if r.curve is not None), None)

    def recall(self, records: Sequence[Record], events: Sequence[Event]) -> None:
        """Take up what an earlier process saw: histories and detectors, but no sink."""
        self._history.recall(records, events)

    def open(self, run: RunInfo) -> None:
        """Open the sinks, before the first record."""
        for sink in self._sinks:
            self._guarded(sink, lambda sink=sink: sink.open(run))  # type: ignore[misc]
        self._history.initial_rms = dict(run.initial_rms)
        late = self._history.finish_recall()
        self._unsaid = late.new
        for sink in self._sinks:
            self._guarded(sink, lambda sink=sink: self._tell(sink, late))  # type: ignore[misc]

    def publish(self, record: Record, detail: Detail) -> list[Event]:
        """Take a record and act on it at once; returns the events seen."""
        events = self.take(record, detail)
        self.act(record, events)
        return events

    def take(self, record: Record, detail: Detail) -> list[Event]:
        """Detect, remember, tell the sinks; returns the new events, for ``act``.

        Sinks are also given what is learned about earlier events; actions are not.

        May run in another thread than ``act``, one record after the other.
        """
        started = time.perf_counter()
        changes = self._history.add(record)
        for sink in self._sinks:
            self._guarded(sink, lambda sink=sink: self._write(sink, record, detail, changes))  # type: ignore[misc]
        events, self._unsaid = [*self._unsaid, *changes.new], ()
        self.publish_s = time.perf_counter() - started
        return events

    def act(self, record: Record, events: Sequence[Event]) -> None:
        """Call the actions, in the thread that they belong to."""
        for event in events:
            self._act(self._on_event, event)
        self._act(self._on_record, record)

    @property
    def is_suspicious(self) -> bool:
        """Whether a detector sees what may become an event."""
        return self._history.is_suspicious

    def close(self) -> None:
        """Close the sinks, then the actions that can be closed."""
        for sink in self._sinks:
            self._guarded(sink, sink.close)
        for action in (*self._on_event, *self._on_record):
            close = getattr(action, "close", None)
            if callable(close):
                self._act_once(lambda _, close=close: close(), None)  # type: ignore[misc]

    def state_dict(self) -> dict[str, Any]:
        """What the detectors and the events of the run go on from; plain data."""
        return self._history.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            StateError: the state of a detector is missing.
        """
        self._history.load_state_dict(state)

    @classmethod
    def _write(cls, sink: Sink, record: Record, detail: Detail, changes: Changes) -> None:
        sink.write(record, detail)
        cls._tell(sink, changes)

    @staticmethod
    def _tell(sink: Sink, changes: Changes) -> None:
        for event in (*changes.amended, *changes.new):
            sink.event(event)

    def _act(self, functions: Sequence[Callable[[Any], object]], argument: object) -> None:
        for function in functions:
            self._act_once(function, argument)

    def _act_once(self, function: Callable[[Any], object], argument: object) -> None:
        try:
            function(argument)
        except Exception:
            if self._strict:
                raise
            _logger.exception("sparsitywatch: %r failed; training goes on", function)

    def _guarded(self, sink: Sink, operation: Callable[[], object]) -> None:
        failures = self._failures.get(id(sink), 0)
        if failures >= _MAX_FAILURES:
            return
        try:
            operation()
            self._failures[id(sink)] = 0
        except Exception:
            if self._strict:
                raise
            self._failures[id(sink)] = failures + 1
            name = type(sink).__name__
            last = failures + 1 >= _MAX_FAILURES
            what = "is switched off" if last else "is tried again at the next record"
            _logger.exception("sparsitywatch: %s failed and %s; training goes on", name, what)
