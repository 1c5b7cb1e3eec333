"""Records in the order of their steps become events, files and actions."""

from __future__ import annotations

import atexit
import contextlib
import copy
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

from sparsitywatch.actions import Action, log_event
from sparsitywatch.analysis.detect import Detector, MeasuredChange
from sparsitywatch.analysis.events import Changes, EventTracker, annotated
from sparsitywatch.analysis.forecast import Forecaster
from sparsitywatch.errors import (
    LogTakenError,
    StateError,
    contain_faults,
    expect,
    expect_functions,
    expect_mapping,
    listed,
)
from sparsitywatch.pipeline.parts import Reviewer
from sparsitywatch.pipeline.rundir import Claim
from sparsitywatch.records import (
    Detail,
    Event,
    Record,
    RunInfo,
    WatchState,
)
from sparsitywatch.sinks.base import Sink

__all__ = ["LAYERS_KEPT", "History", "Pipeline", "as_sinks", "log_event"]

#: Records keep their layers this long in memory; the log has all of them.
LAYERS_KEPT = 100
#: A series that was missing from so many records in a row begins anew: what happened meanwhile
#: is not known, so that what comes after it cannot be called abrupt.
_LONGEST_GAP = 3
#: What detectors are given beside their series, if it is known.
_CONTEXT = ("decay_clock", "lr", "lr_clock", "dormant_by_chance")
#: Standard errors to each side of a 90 percent interval.
_SIDES_90 = NormalDist().inv_cdf(0.95)


class History:
    """Takes records in the order of their steps; keeps them and the events they hold.

    A series that was missing from three records or more, such as an essential sparsity that
    was not informative, is a new one to its detector when it comes back. Snapshots whose
    evaluation was left out do not count: what it would have measured has no gap there.

    Args:
        detectors: by the name of the series each one watches.
        reviewers: look at whole records.

    Attributes:
        records: every record; layers are kept for the latest hundred only.
        events: every event in its latest version, in the order in which they were seen.
        initial_rms: root mean square of each tensor when the watch first saw it.
    """

    def __init__(
        self, detectors: Mapping[str, Detector], reviewers: Sequence[Reviewer] = ()
    ) -> None:
        self._detectors = dict(detectors)
        self._reviewers = reviewers
        self._unused = {name: copy.deepcopy(d.state_dict()) for name, d in detectors.items()}
        # they are watched by default, but states of earlier versions know nothing of them
        self._unused_of_measured = {
            name: self._unused[name]
            for name, detector in detectors.items()
            if isinstance(detector, MeasuredChange)
        }
        self._gaps = dict.fromkeys(detectors, 0)
        self._tracker = EventTracker()
        self._forecaster = Forecaster()
        self._first_steps: dict[str, int] = {}  # by fingerprint
        self._restored: tuple[list[Event], list[Event]] | None = None
        self.records: list[Record] = []
        self.events: list[Event] = []
        self.initial_rms: dict[str, float] = {}

    @property
    def is_suspicious(self) -> bool:
        """Whether a detector sees what may become an event."""
        return any(detector.is_suspicious for detector in self._detectors.values())

    def with_history(self, record: Record) -> Record:
        """The record that is to be added next, with what the earlier ones say about it.

        That is its forecast, whether its weights have been seen before, and what reviewers add.
        """
        first = self._first_steps.get(record.fingerprint)
        if first == record.step:
            first = None
        vital = record.vital
        for reviewer in self._reviewers:
            vital = reviewer.reviewed(vital, record, first, self.records)
        forecast = self._forecaster.forecast(record)
        return dataclasses.replace(record, same_weights_as=first, vital=vital, forecast=forecast)

    def add(self, record: Record) -> Changes:
        """One more record; returns what it adds to the events."""
        late = self.finish_restore()
        series = record.series()
        seen = self._detect(record, series)
        self._remember(record)
        changes = self._track(record.step, series, seen)
        return Changes((*late.new, *changes.new), (*late.revised, *changes.revised))

    def restore(self, records: Sequence[Record], events: Sequence[Event]) -> None:
        """Take up what an earlier process saw and logged, before the first ``add``.

        Args:
            records: by rising step.
            events: the latest version of each, as of the last record.
        """
        self.events[:] = events
        waiting = sorted(events, key=lambda event: event.detected_step)
        for record in records:
            series = record.series()
            seen = self._detect(record, series)
            self._remember(record)
            logged = [e for e in waiting if e.detected_step <= record.step]
            waiting = waiting[len(logged) :]
            if record is records[-1]:
                self._restored = (seen, logged)
            else:
                self._tracker.update(record.step, series, (), logged)

    def finish_restore(self) -> Changes:
        """What the last record that was restored holds and the log does not, once.

        A kill between a record and its events leaves it so.
        ``initial_rms`` is to be set before.
        """
        if self._restored is None:
            return Changes()
        (seen, logged), self._restored = self._restored, None
        record = self.records[-1]
        reported = [e for e in self.events if e.reported_step == record.step]
        known = {name for e in reported for name in (e.series, *e.related)}
        late = [e for e in seen if e.series not in known]
        return self._track(record.step, record.series(), late, logged)

    def state_dict(self) -> dict[str, Any]:
        """What the detectors and the events go on from; plain data."""
        return {
            "detectors": {name: d.state_dict() for name, d in self._detectors.items()},
            "gaps": dict(self._gaps),
            "fingerprints": dict(self._first_steps),
            "tracker": self._tracker.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            StateError: a part, or the state of a detector, is missing.
        """
        missing = [key for key in ("detectors", "gaps", "tracker") if key not in state]
        if missing:
            raise StateError(f"Expected the keys {missing} in the state, got {sorted(state)}.")
        saved = self._unused_of_measured | state["detectors"]
        if any(name not in saved for name in self._detectors):
            raise StateError(
                f"Expected the state of the detectors {sorted(self._detectors)}, got "
                f"{sorted(saved)}. Watch the same series as before."
            )
        for name, detector in self._detectors.items():
            detector.load_state_dict(saved[name])
        self._gaps = {name: int(state["gaps"].get(name, 0)) for name in self._detectors}
        self._tracker.load_state_dict(state["tracker"])
        for mark, step in state.get("fingerprints", {}).items():  # missing in older states
            self._first_steps.setdefault(mark, int(step))

    def _detect(self, record: Record, series: Mapping[str, float]) -> list[Event]:
        """What the detectors see; they know neither their series nor what it means."""
        known = {name: series.get(f"motion/{name}") for name in _CONTEXT}
        known["reliance"] = series.get("value/reliance")
        if record.dormant is not None and math.isfinite(record.dormant.estimated_advance):
            known["estimated_advance"] = record.dormant.estimated_advance
        context = {name: value for name, value in known.items() if value is not None}
        events = []
        for name, detector in self._detectors.items():
            if name not in series:
                self._gaps[name] += record.was_asked(name)
                continue
            if self._gaps[name] >= _LONGEST_GAP:
                detector.load_state_dict(copy.deepcopy(self._unused[name]))
            self._gaps[name] = 0
            event = detector.update(record.step, series[name], context | _interval(record, name))
            if event is not None:
                events.append(dataclasses.replace(event, series=name))
        for reviewer in self._reviewers:
            events += reviewer.events(record, self.records, self.events)
        return events

    def _track(
        self,
        step: int,
        series: Mapping[str, float],
        seen: Sequence[Event],
        logged: Sequence[Event] = (),
    ) -> Changes:
        known = [
            annotated(event, self.records, self.initial_rms) if event.is_of_series else event
            for event in seen
        ]
        changes = self._tracker.update(step, series, known, logged)
        places = {event.id: i for i, event in enumerate(self.events)}
        for event in (*changes.new, *changes.revised):
            if event.id in places:
                self.events[places[event.id]] = event
            else:
                self.events.append(event)
        return changes

    def _remember(self, record: Record) -> None:
        self.records.append(record)
        self._forecaster.update(record)
        if record.fingerprint:
            self._first_steps.setdefault(record.fingerprint, record.step)
        if len(self.records) > LAYERS_KEPT:
            old = -LAYERS_KEPT - 1
            self.records[old] = dataclasses.replace(self.records[old], layers=())


def _interval(record: Record, name: str) -> dict[str, float]:
    """Both ends of the 90 percent interval of a number that has one."""
    estimate, curve = record.essential_sparsity, record.curve
    if name == "essential_sparsity/value" and estimate is not None:
        wider = _SIDES_90 / NormalDist().inv_cdf(0.5 + 0.5 * estimate.confidence)
        low, high = (
            estimate.value + wider * (end - estimate.value) for end in (estimate.low, estimate.high)
        )
        return {"low": low, "high": high}
    if name == "value/reliance" and curve is not None and curve.stderr is not None:
        side = _SIDES_90 * dict(zip(curve.sparsity, curve.stderr, strict=True)).get(1.0, math.nan)
        return {"low": record.reliance - side, "high": record.reliance + side}
    return {}


_logger = logging.getLogger("sparsitywatch")

#: A sink that failed so often in a row is not asked again.
_MAX_FAILURES = 3


class Pipeline:
    """Takes records in the order of their steps and passes on what they mean.

    Nothing that goes wrong in a sink or an action leaves it: the cause is logged, the
    others go on, and a sink that keeps failing is left out. Only a log that another watch has
    taken over ends it: ``take`` raises, and nothing more is written.

    Args:
        claim: to the directory of the log. Sinks write while it is held; None where nobody else
            can write.
        in_log: make the sinks that write into that directory, when it is known at last.
        sinks: given everything after those, in this order.
        detectors: by the name of the series each one watches.
        reviewers: look at whole records.
        on_event: called with each event, after the sinks have it.
        on_record: called with each record, after the sinks have it.
        strict: let what goes wrong out, for tests.

    Attributes:
        records: every record; layers are kept for the latest hundred only.
        events: every event in its latest version, in the order in which they were seen.
        publish_s: seconds that the last record took to be detected in and written.
    """

    def __init__(
        self,
        *,
        claim: Claim | None = None,
        in_log: Sequence[Callable[[Path], Sink]] = (),
        sinks: Sequence[Sink] = (),
        detectors: Mapping[str, Detector] | None = None,
        reviewers: Sequence[Reviewer] = (),
        on_event: Sequence[Callable[[Event], object]] = (),
        on_record: Sequence[Callable[[Record], object]] = (),
        strict: bool = False,
    ) -> None:
        for name, functions in (("on_event", on_event), ("on_record", on_record)):
            expect_functions(name, functions)
        self.claim = Claim(None) if claim is None else claim
        self._in_log = in_log
        self._sinks = as_sinks(sinks)
        self._history = History(_as_detectors(detectors), reviewers)
        self.records, self.events = self._history.records, self._history.events
        self._on_event, self._on_record = tuple(on_event), tuple(on_record)
        self._strict = strict
        self._failures: dict[int, int] = {}
        self._late = Changes()  # of the last record that was restored; not yet in the log
        self._unsaid: tuple[Event, ...] = ()  # by actions
        self._is_open = False
        self.publish_s = 0.0

    def restore(self, records: Sequence[Record], events: Sequence[Event]) -> None:
        """Take up what an earlier process saw: histories and detectors, but no sink."""
        self._history.restore(records, events)

    def lacks_events(self, initial_rms: Mapping[str, float]) -> bool:
        """Whether the log that was restored lacks events of its last record; ``open`` adds them."""
        self._history.initial_rms = dict(initial_rms)
        if not (self._late.new or self._late.revised):
            self._late = self._history.finish_restore()
        return bool(self._late.new or self._late.revised)

    def open(
        self, run: RunInfo, detail_of: Callable[[Record], Detail] = lambda _: Detail()
    ) -> None:
        """Open the sinks, before the first record; those that lag behind the log catch up.

        Args:
            run: what is said once.
            detail_of: what is left of the detail of a record that was restored.

        Raises:
            LogTakenError: another watch has taken the log over.
        """
        if self.claim.directory is not None:
            made = [make(self.claim.directory) for make in self._in_log]
            self._sinks, self._in_log = [*made, *self._sinks], ()
        with self.claim.writing():
            for sink in self._sinks:
                with self._guard(sink):
                    sink.open(run)
                if self.records:
                    with self._guard(sink):
                        sink.catch_up(self.records, self.events, detail_of)
            self.lacks_events(run.initial_rms)
            late, self._late = self._late, Changes()
            self._unsaid = late.new
            for sink in self._working_sinks():
                with self._guard(sink):
                    for event in (*late.revised, *late.new):
                        sink.event(event)
        self._is_open = True
        # what was written is on the disk already; a sink may have a last word, such as a picture
        atexit.register(self._at_exit)

    def publish(self, record: Record, detail: Detail) -> list[Event]:
        """Take a record and act on it at once; returns the events seen."""
        record, events = self.take(record, detail)
        self.act(record, events)
        return events

    def take(self, record: Record, detail: Detail) -> tuple[Record, list[Event]]:
        """Complete a record, detect, remember, write to the sinks.

        Sinks are also given what is learned about earlier events; actions are not.

        May run in another thread than ``act``, one record after the other.

        Returns:
            The record with what the earlier ones say about it, and the new events: for ``act``.

        Raises:
            LogTakenError: another watch has taken the log over; the record is dropped.
        """
        started = time.perf_counter()
        try:
            with self.claim.writing():
                record = self._history.with_history(record)
                previous = self.records[-1] if self.records else None
                for remark in record.remarks(previous):
                    _logger.warning("sparsitywatch: step %d: %s", record.step, remark)
                changes = self._history.add(record)
                for sink in self._working_sinks():
                    with self._guard(sink):
                        sink.write(record, detail)
                        for event in (*changes.revised, *changes.new):
                            sink.event(event)
        except LogTakenError as error:
            _logger.warning(
                "sparsitywatch: the snapshot at step %d is dropped: %s", record.step, error
            )
            raise
        events, self._unsaid = [*self._unsaid, *changes.new], ()
        self.publish_s = time.perf_counter() - started
        return record, events

    def act(self, record: Record, events: Sequence[Event]) -> None:
        """Call the actions, in the thread that they belong to."""
        for event in events:
            for on_event in self._on_event:
                self._call(on_event, event)
        for on_record in self._on_record:
            self._call(on_record, record)

    def report(self, state: WatchState) -> None:
        """Give the sinks that ask for it how the watch stands.

        A sink that fails in this is not held to have failed: no number is lost, and the next
        state says it all again.
        """
        if not self._is_open:
            return
        try:
            with self.claim.writing():
                for sink in self._working_sinks():
                    self._report_to(sink, state)
        except LogTakenError:
            return  # it has a state of its own by now; this end is known at the next snapshot

    def _report_to(self, sink: Sink, state: WatchState) -> None:
        def say(error: BaseException) -> None:
            name = type(sink).__name__
            _logger.warning("sparsitywatch: %s did not take the watch's state: %s", name, error)

        with contain_faults(say, strict=self._strict):
            sink.state(state)

    @property
    def is_suspicious(self) -> bool:
        """Whether a detector sees what may become an event."""
        return self._history.is_suspicious

    def close(self) -> None:
        """Close the sinks, then the actions that can be closed; let go of the log."""
        self._at_exit()
        for action in (*self._on_event, *self._on_record):
            if isinstance(action, Action):
                self._call(action.close)

    def _at_exit(self) -> None:
        self._is_open = False
        atexit.unregister(self._at_exit)
        self._close_sinks()
        self.claim.release()

    def _close_sinks(self) -> None:
        try:
            with self.claim.writing():
                for sink in self._working_sinks():
                    with self._guard(sink):
                        sink.close()
        except LogTakenError as error:
            _logger.warning("sparsitywatch: the log is left as it is: %s", error)
            for sink in self._working_sinks():
                with self._guard(sink):
                    sink.abandon()

    def state_dict(self) -> dict[str, Any]:
        """What the detectors and the events of the run go on from; plain data."""
        return self._history.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            StateError: the state of a detector is missing.
        """
        self._history.load_state_dict(state)

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        def say(_: BaseException) -> None:
            _logger.exception("sparsitywatch: %r failed; training goes on", function)

        with contain_faults(say, strict=self._strict):
            function(*arguments)

    def _working_sinks(self) -> list[Sink]:
        return [s for s in self._sinks if self._failures.get(id(s), 0) < _MAX_FAILURES]

    def _guard(self, sink: Sink) -> contextlib.AbstractContextManager[None]:
        """Where the faults of a sink end; one that keeps failing works no more."""
        failures = self._failures.pop(id(sink), 0)

        def say(_: BaseException) -> None:
            self._failures[id(sink)] = failures + 1
            name = type(sink).__name__
            last = failures + 1 >= _MAX_FAILURES
            what = "is switched off" if last else "is tried again at the next record"
            _logger.exception("sparsitywatch: %s failed and %s; training goes on", name, what)

        return contain_faults(say, strict=self._strict)


def as_sinks(sinks: Sequence[Sink]) -> list[Sink]:
    """Sinks in a list.

    Raises:
        ConfigurationError: one does not derive from ``Sink``, or they are no list.
    """
    found = listed("sinks", sinks, "a list of sinks")
    for index, sink in enumerate(found):
        expect(
            isinstance(sink, Sink), f"sinks[{index}]", "a sink, derived from sw.sinks.Sink", sink
        )
    return found


def _as_detectors(detectors: Mapping[str, Detector] | None) -> dict[str, Detector]:
    if detectors is None:
        return {}
    example = "{'motion/dormant': sw.detectors.DormantRise()}"
    what = f"detectors by name of the series, such as {example}"
    expect_mapping("detectors", detectors, what)
    what = "a detector, derived from sw.detectors.Detector"
    for name, detector in detectors.items():
        expect(isinstance(detector, Detector), f"detectors[{name!r}]", what, detector)
    return dict(detectors)
