"""Record in, events out, everything to the sinks; cannot tell live from offline."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from sparsitywatch.analysis.attribution import accountable_layers
from sparsitywatch.errors import ConfigurationError, StateError
from sparsitywatch.records import Detail, Event, Record, RunInfo, SparsityCurve
from sparsitywatch.sinks.base import Sink

__all__ = ["Detector", "Pipeline", "log_event"]

_logger = logging.getLogger("sparsitywatch")

#: Records keep their layers this long in memory; the log has all of them.
_LAYERS_KEPT = 100
#: A sink that failed so often in a row is not asked again.
_MAX_FAILURES = 3


class Detector(Protocol):
    """Watches one series, fed in the order of the steps."""

    def update(
        self, step: int, value: float, context: Mapping[str, float] | None = None
    ) -> Event | None:
        """An event if the change is seen at this point."""

    def state_dict(self) -> dict[str, Any]:
        """Plain data that ``load_state_dict`` goes on from."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""


def log_event(event: Event) -> None:
    """The default action: a warning through the logger "sparsitywatch"."""
    _logger.warning("sparsitywatch: %s", event.describe())


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
        self._detectors = dict(detectors or {})
        self._on_event, self._on_record = tuple(on_event), tuple(on_record)
        self._strict = strict
        self._failures: dict[int, int] = {}
        self.records: list[Record] = []
        self.events: list[Event] = []
        self.publish_s = 0.0

    @property
    def last_curve(self) -> SparsityCurve | None:
        """The curve of the latest record that has one; the same after a resume."""
        return next((r.curve for r in reversed(self.records) if r.curve is not None), None)

    def recall(self, records: Sequence[Record], events: Sequence[Event]) -> None:
        """Take up what an earlier process saw: histories and detectors, but no sink."""
        self.events = list(events)
        for record in records:
            self._remember(record)
            self._detect(record)

    def open(self, run: RunInfo) -> None:
        """Open the sinks, before the first record."""
        for sink in self._sinks:
            self._guarded(sink, lambda sink=sink: sink.open(run))  # type: ignore[misc]

    def publish(self, record: Record, detail: Detail) -> list[Event]:
        """Take a record and act on it at once; returns the events seen."""
        events = self.take(record, detail)
        self.act(record, events)
        return events

    def take(self, record: Record, detail: Detail) -> list[Event]:
        """Detect, remember, tell the sinks; returns the events, for ``act``.

        May run in another thread than ``act``, one record after the other.
        """
        started = time.perf_counter()
        events = [self._explain(event, record) for event in self._detect(record)]
        self._remember(record)
        self.events.extend(events)
        for sink in self._sinks:
            self._guarded(sink, lambda sink=sink: self._tell(sink, record, detail, events))  # type: ignore[misc]
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
        return any(getattr(d, "is_suspicious", False) for d in self._detectors.values())

    def close(self) -> None:
        """Close the sinks."""
        for sink in self._sinks:
            self._guarded(sink, sink.close)

    def state_dict(self) -> dict[str, Any]:
        """The detectors' state, by series."""
        return {name: detector.state_dict() for name, detector in self._detectors.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            StateError: the state of a detector is missing.
        """
        missing = [name for name in self._detectors if name not in state]
        if missing:
            raise StateError(
                f"Expected the state of the detectors {sorted(self._detectors)}, got "
                f"{sorted(state)}. Watch the same series as before."
            )
        for name, detector in self._detectors.items():
            detector.load_state_dict(state[name])

    @staticmethod
    def _tell(sink: Sink, record: Record, detail: Detail, events: Sequence[Event]) -> None:
        sink.write(record, detail)
        for event in events:
            sink.event(event)

    def _detect(self, record: Record) -> list[Event]:
        series = record.series()
        known = {n: series.get(f"motion/{n}") for n in ("decay_clock", "lr", "lr_clock")}
        context = {name: value for name, value in known.items() if value is not None}
        events = []
        for name, detector in self._detectors.items():
            if name in series:
                event = detector.update(record.step, series[name], context)
                if event is not None:
                    events.append(dataclasses.replace(event, series=name))
        return events

    def _explain(self, event: Event, record: Record) -> Event:
        """The event with the layers that account for it and the clock at that time."""
        earlier = [r for r in self.records if r.step <= event.onset_step and r.layers]
        layers = accountable_layers(earlier[-1], record, event.series) if earlier else ()
        return dataclasses.replace(event, layers=layers, decay_clock=record.decay_clock)

    def _remember(self, record: Record) -> None:
        self.records.append(record)
        if len(self.records) > _LAYERS_KEPT:
            old = -_LAYERS_KEPT - 1
            self.records[old] = dataclasses.replace(self.records[old], layers=())

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
