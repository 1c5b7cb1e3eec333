"""Records in the order of their steps become events, files and actions."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing.util import Finalize
from pathlib import Path
from statistics import NormalDist
from typing import Any

from sparsitywatch.actions import Action
from sparsitywatch.analysis.detect.abrupt import AbruptChange
from sparsitywatch.analysis.detect.detector import SIDES_90, Detector
from sparsitywatch.analysis.events import (
    Changes,
    EventTracker,
    annotated,
    context_of,
    model_changed,
)
from sparsitywatch.analysis.forecast import Forecaster
from sparsitywatch.analysis.height import Heights
from sparsitywatch.errors import (
    LogTakenError,
    Seam,
    StateError,
    contain_faults,
    expect,
    expect_functions,
    listed,
)
from sparsitywatch.pipeline.outlets import Outlet
from sparsitywatch.pipeline.rundir import Claim
from sparsitywatch.records import (
    Began,
    Detail,
    Event,
    Record,
    RunInfo,
    Vital,
    WatchState,
    XRayLayers,
    from_json,
    to_json,
)
from sparsitywatch.records.event import latest_versions
from sparsitywatch.redact import Causes, logger
from sparsitywatch.sinks.base import Sink

#: Records keep their layers this long in memory; the log has all of them.
LAYERS_KEPT = 100
#: A series that was missing from so many records in a row begins anew, for a detector of abrupt
#: changes: what happened meanwhile is not known.
_LONGEST_GAP = 3


class Reviewer(Seam):
    """Looks at whole records by rising step, the seam of vital signs; this one sees nothing."""

    def reviewed(self, record: Record, earlier: Sequence[Record]) -> Vital | None:
        """The vital signs of a record with what the ``earlier`` ones say."""
        return record.vital

    def events(
        self, record: Record, earlier: Sequence[Record], told: Sequence[Event]
    ) -> list[Event]:
        """What is new in it, beside the ``earlier`` records and the events ``told`` so far."""
        return []

    def last_words(self, records: Sequence[Record], told: Sequence[Event]) -> list[Event]:
        """What is new once it is known that no further record comes."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """What it remembers beside the records, plain data."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""


class History:
    """Takes records in the order of their steps; keeps them and the events they hold."""

    def __init__(
        self, detectors: Mapping[str, Detector], reviewers: Sequence[Reviewer] = ()
    ) -> None:
        self._detectors = dict(detectors)
        self._reviewers = reviewers
        near_zero = {n: d for n, d in detectors.items() if n.startswith("near_zero/")}
        watched = [name for name, one in near_zero.items() if isinstance(one, AbruptChange)]
        self._rules = [name.removeprefix("near_zero/") for name in watched]
        self._heights: Heights | None = None
        self._unused = {name: copy.deepcopy(d.state_dict()) for name, d in detectors.items()}
        # snapshots whose evaluation was left out do not count: nothing is missing there
        self._gaps = dict.fromkeys(detectors, 0)
        self._tracker = EventTracker()
        self._forecaster = Forecaster()
        self._first_steps: dict[str, int] = {}  # by fingerprint
        self._begin = 0  # of the records, the first one of the model as it is
        self._left = list[Event]()  # of the model as it was, what is not told yet
        self.records: list[Record] = []  # layers are kept for the latest hundred only
        self.events: list[Event] = []  # in their latest versions, in the order they were seen in
        self.initial_rms: dict[str, float] = {}  # of each tensor when the watch first saw it
        self.began: Began | None = None  # how small they were then; None: the first record says it
        #: What the last record that was restored holds and its log, after a kill, lacks.
        self.late = Changes()

    @property
    def is_suspicious(self) -> bool:
        """Whether a detector sees what may become an event."""
        suspicious = [detector.is_suspicious for detector in self._detectors.values()]
        return any(suspicious)

    def with_history(self, record: Record) -> Record:
        """The record that is to be added next, with what the earlier ones say about it."""
        first = self._first_steps.get(record.fingerprint)
        if first == record.step:
            first = None
        forecast = self._forecaster.forecast(record)
        record = dataclasses.replace(record, same_weights_as=first, forecast=forecast)
        earlier = self._earlier(record)
        for reviewer in self._reviewers:
            record = dataclasses.replace(record, vital=reviewer.reviewed(record, earlier))
        return record

    def _earlier(self, record: Record) -> Sequence[Record]:
        """The records before one that are about the same weights."""
        if self.records and not record.is_comparable(self.records[-1]):
            return []
        return self.records[self._begin :] if self._begin else self.records

    def add(self, record: Record) -> Changes:
        """One more record; returns what it adds to the events."""
        series = record.series()
        seen = self._detect(record, series)
        self._remember(record)
        return self._track(record.step, series, seen)

    def restore(
        self,
        records: Sequence[Record],
        events: Sequence[Event],
        initial_rms: Mapping[str, float],
        began: Began | None = None,
    ) -> Changes:
        """Take up what an earlier process saw and logged, before the first ``add``: ``late``.

        ``events`` are all versions, as they were logged.
        """
        self.initial_rms = dict(initial_rms)
        self.events[:] = latest_versions(events)
        waiting = sorted(events, key=lambda event: event.reported_step)
        for record in records:
            series = record.series()
            is_past = record is not records[-1]  # whose layers are not read
            if not is_past:
                self.began = began
            seen = self._detect(record, series, is_past=is_past)
            self._remember(record)
            logged = [e for e in waiting if e.reported_step <= record.step]
            waiting = waiting[len(logged) :]
            if record is records[-1]:
                known = {name for e in logged for name in (e.series, *e.related, *e.opposed)}
                # of what was seen late, or is told beneath another
                known |= {name for e in self.events for name in (e.id, *e.consequences)}
                untold = [e for e in seen if e.series not in known and e.id not in known]
                self.late = self._track(record.step, series, untold, logged)
            else:
                self._tracker.update(record.step, series, (), logged)
        return self.late

    def last_words(self) -> list[Event]:
        """What the records say once no further one comes, in new events."""
        if not self.records:
            return []
        unit = self.records[-1].provenance.unit
        seen = [e for one in self._reviewers for e in one.last_words(self.records, self.events)]
        return [dataclasses.replace(event, unit=unit) for event in seen]

    def close(self) -> list[Event]:
        """The events that have not settled, as they stay when no further record comes."""
        if not self.records:
            return []
        left = self._leave(self.records[-1].step)
        self.events[:] = latest_versions([*self.events, *left])
        return left

    def _leave(self, step: int) -> list[Event]:
        """The events that have not settled, as the last record leaves them."""
        return self._tracker.close(step, self.records[self._begin :], self.initial_rms)

    def state_dict(self) -> dict[str, Any]:
        """What the detectors and the events go on from; plain data."""
        return {
            "detectors": {name: d.state_dict() for name, d in self._detectors.items()},
            "gaps": dict(self._gaps),
            "fingerprints": dict(self._first_steps),
            "began": self.began and to_json(self.began),
            "tracker": self._tracker.state_dict(),
            "reviewers": [reviewer.state_dict() for reviewer in self._reviewers],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave; StateError if a part is missing."""
        missing = [key for key in self.state_dict() if key not in state]
        if missing:
            raise StateError(f"Expected the keys {missing} in the state, got {sorted(state)}.")
        saved = state["detectors"]
        if any(name not in saved for name in self._detectors):
            raise StateError(
                f"Expected the state of the detectors {sorted(self._detectors)}, got "
                f"{sorted(saved)}. Watch the same series as before."
            )
        for name, detector in self._detectors.items():
            detector.load_state_dict(saved[name])
        self._gaps = {name: int(state["gaps"].get(name, 0)) for name in self._detectors}
        self._tracker.load_state_dict(state["tracker"], self.events)
        for reviewer, own in zip(self._reviewers, state["reviewers"], strict=False):
            reviewer.load_state_dict(own)
        self.began = state["began"] and from_json(Began, state["began"])
        for mark, step in state["fingerprints"].items():
            self._first_steps.setdefault(mark, int(step))

    def _judged(
        self, record: Record, earlier: Sequence[Record], seen: Sequence[Event]
    ) -> list[Event]:
        """What the near-zero weights are beside those that the run began with."""
        first = earlier[0] if earlier else record
        if self.began is None and first.all_finite and first.layers:
            self.began = Began.of(first)
        if self._heights is None and self.began is not None:
            self._heights = Heights(self.began, self.initial_rms, self._rules)
        told = [e for e in self.events if e.detected_step >= first.step]
        return self._heights.events(record, earlier, [*told, *seen]) if self._heights else []

    def _detect(
        self, record: Record, series: Mapping[str, float], *, is_past: bool = False
    ) -> list[Event]:
        """What the detectors see; they know neither their series nor what it means."""
        context = context_of(record, series)
        intervals = _intervals(record)
        events, earlier = list[Event](), self._earlier(record)
        if self.records and not earlier:
            events.append(model_changed(self.records[-1], record))
            self._begin_anew(record.step)
        for name, detector in self._detectors.items():
            if name not in series:
                self._gaps[name] += record.was_asked(name)
                continue
            if self._gaps[name] >= _LONGEST_GAP and detector.restarts_after_gap:
                detector.load_state_dict(copy.deepcopy(self._unused[name]))
            self._gaps[name] = 0
            own = context | intervals.get(name, {})
            event = detector.update(record.step, series[name], own)
            if event is not None:
                events.append(dataclasses.replace(event, series=name))
        for reviewer in self._reviewers:
            events += reviewer.events(record, earlier, self.events)
        if self._rules and not is_past:
            events += self._judged(record, earlier, events)
        return [dataclasses.replace(event, unit=record.provenance.unit) for event in events]

    def _begin_anew(self, step: int) -> None:
        """What comes is about other weights: nothing is compared with what was."""
        self._left = self._leave(step)
        for name, detector in self._detectors.items():
            detector.load_state_dict(copy.deepcopy(self._unused[name]))
        self._gaps = dict.fromkeys(self._detectors, 0)
        self._tracker, self._forecaster = EventTracker(), Forecaster()
        self.began = self._heights = None
        self._begin = len(self.records)

    def _track(
        self,
        step: int,
        series: Mapping[str, float],
        seen: Sequence[Event],
        logged: Sequence[Event] = (),
    ) -> Changes:
        own = self.records[self._begin :]
        known = [
            annotated(event, own, self.initial_rms) if event.is_of_series else event
            for event in seen
        ]
        changes = self._tracker.update(
            step, series, known, logged, records=own, initial_rms=self.initial_rms
        )
        told, left, self._left = {event.id for event in logged}, self._left, []
        left = [event for event in left if event.id not in told]
        changes = dataclasses.replace(changes, revised=(*left, *changes.revised))
        self.events[:] = latest_versions([*self.events, *changes.new, *changes.revised])
        return changes

    def _remember(self, record: Record) -> None:
        self.records.append(record)
        self._forecaster.update(record)
        if record.fingerprint:
            self._first_steps.setdefault(record.fingerprint, record.step)
        if len(self.records) > LAYERS_KEPT:
            old = -LAYERS_KEPT - 1
            x, none = self.records[old].xray, XRayLayers()
            xray = x and dataclasses.replace(x, layers=none, expert_load={})
            self.records[old] = dataclasses.replace(self.records[old], layers=(), xray=xray)


def _intervals(record: Record) -> dict[str, dict[str, float]]:
    """Both ends of the 90 percent interval of each number that has one, by its series."""
    estimate, curve = record.essential_sparsity, record.curve
    found = {}
    if estimate is not None:
        wider = SIDES_90 / NormalDist().inv_cdf(0.5 + 0.5 * estimate.confidence)
        low = estimate.value + wider * (estimate.low - estimate.value)
        high = estimate.value + wider * (estimate.high - estimate.value)
        found["essential_sparsity/value"] = {"low": low, "high": high}
    if curve is not None and curve.stderr is not None:
        low, high = curve.reliance_interval(0.9)
        found["value/reliance"] = {"low": low, "high": high}
    return found


class Pipeline:
    """Takes records in the order of their steps and passes on what they mean.

    Nothing that goes wrong in a sink or an action leaves it, unless ``strict``. Only a log that
    another watch has taken over ends it: ``take`` raises, and nothing more is written.
    """

    def __init__(
        self,
        *,
        claim: Claim | None = None,  # to the directory of the log; sinks write while it is held
        in_log: Sequence[Callable[[Path], Sink]] = (),  # make the sinks that write into it
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
        self._strict = strict
        self.history = History(detectors or {}, reviewers)
        self.records = self.history.records
        self.events = self.history.events
        self._on_event = tuple(on_event)
        self._on_record = tuple(on_record)
        self._outlets = [self._outlet(sink) for sink in as_sinks(sinks)]
        self._unsaid: tuple[Event, ...] = ()  # by actions
        self._is_open = False
        self._at_exit: Finalize | None = None  # not called in a forked child
        self.causes = Causes()
        self.publish_s = 0.0  # what the last record took to be detected in and written

    def open(
        self, run: RunInfo, detail_of: Callable[[Record], Detail] = lambda _: Detail()
    ) -> None:
        """Open the sinks, before the first record; those that lag behind the log catch up."""
        if self.claim.directory is not None:
            made = [make(self.claim.directory) for make in self._in_log]
            of_log = [self._outlet(sink, self.claim) for sink in made]
            self._outlets, self._in_log = [*of_log, *self._outlets], ()
        with self.claim.writing():
            late, self.history.late = self.history.late, Changes()
            self._unsaid = _news(late)
            for outlet in self._outlets:
                outlet.open(run, detail_of, (*late.revised, *late.new))
        self.history.initial_rms = dict(run.initial_rms)
        self.history.began = run.began or self.history.began
        self._is_open = True
        # what was written is on the disk already; a sink may have a last word, such as a picture
        self._at_exit = Finalize(None, partial(_end_of, weakref.ref(self)), exitpriority=0)

    def renew(self, run: RunInfo) -> None:
        """The records that come are of a model that has changed."""
        if self._is_open:
            with self.claim.writing():
                for outlet in self._outlets:
                    outlet.renew(run)
            self.history.initial_rms = dict(run.initial_rms)

    def take(self, record: Record, detail: Detail) -> tuple[Record, list[Event]]:
        """Complete a record, detect, remember, write to the sinks; gives what ``act`` is to say."""
        # a LogTakenError if another watch has taken the log over; the record is dropped
        started = time.perf_counter()
        try:
            with self.claim.writing():
                record = self.history.with_history(record)
                previous = self.records[-1] if self.records else None
                for remark in record.remarks(previous):
                    logger.warning("%s: %s", record.place, remark)
                changes = self.history.add(record)
                for outlet in self._outlets:
                    outlet.tell(record, detail, (*changes.revised, *changes.new))
        except LogTakenError as error:
            logger.warning("the snapshot at %s is dropped: %s", record.place, error)
            raise
        events, self._unsaid = [*self._unsaid, *_news(changes)], ()
        self.publish_s = time.perf_counter() - started
        return record, events

    def act(self, record: Record, events: Sequence[Event]) -> None:
        """Call the actions, in the thread that they belong to."""
        for event in events:
            for on_event in self._on_event:
                self._call(on_event, event)
        for on_record in self._on_record:
            self._call(on_record, record)
        for outlet in self._outlets:
            outlet.deliver()

    @property
    def lost(self) -> str:
        """What the log lacks of what was measured, and why; empty if it has all."""
        return "; ".join(o.lost for o in self._outlets if o.claim and o.lost)

    def tell(self, events: Sequence[Event]) -> None:
        """Write down events that no record has brought, and call the actions."""
        self.events[:] = latest_versions([*self.events, *events])
        with self.claim.writing():
            for outlet in self._outlets:
                outlet.say(events)
        for event in events:
            for on_event in self._on_event:
                self._call(on_event, event)

    def settle(self) -> None:
        """Say how the events stand that have not settled: no further record comes."""
        with contextlib.suppress(LogTakenError):
            self.tell(self.history.close())

    def report(self, state: WatchState) -> None:
        """Give the sinks that ask for it how the watch stands."""
        if not self._is_open:
            return
        # one that has taken the log over has a state of its own; that is known at the next snapshot
        with contextlib.suppress(LogTakenError), self.claim.writing():
            self._is_open = state.status == "on"
            for outlet in () if self._is_open else self._outlets:
                outlet.retry(state.step)  # for the last time
            of_log = [outlet for outlet in self._outlets if outlet.claim]
            since = min((outlet.lost_since for outlet in of_log if outlet.lost), default=-1)
            past = "; ".join(outlet.was_lost for outlet in of_log if outlet.was_lost)
            state = dataclasses.replace(state, unlogged_since=since, log=self.lost or past)
            for outlet in self._outlets:
                outlet.state(state)

    def close(self) -> None:
        """Close the sinks, then the actions that can be closed; let go of the log."""
        with self.causes.counted():
            self._end()
            for action in (*self._on_event, *self._on_record):
                if isinstance(action, Action):
                    self._call(action.close)
        self.causes.tell()

    def _end(self) -> None:
        was_open, self._is_open = self._is_open, False
        if self._at_exit is not None:
            self._at_exit.cancel()
        try:
            with self.claim.writing():
                for outlet in self._outlets:
                    if was_open and self.records:  # a replay, which reports nothing
                        outlet.retry(self.records[-1].step)
                    outlet.close()
        except LogTakenError as error:
            logger.warning("the log is left as it is: %s", error)
            for outlet in self._outlets:
                outlet.close(is_taken=True)
        self.claim.release()

    def _outlet(self, sink: Sink, claim: Claim | None = None) -> Outlet:
        return Outlet(sink, (self.records, self.events), claim=claim, strict=self._strict)

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        words = "%r failed; training goes on"
        with contain_faults(lambda _: logger.exception(words, function), strict=self._strict):
            function(*arguments)


def _news(changes: Changes) -> tuple[Event, ...]:
    """What actions are called with: events that are new, graver than they were, or settled."""
    graver = [event for event in changes.revised if event.is_news or event.id in changes.graver]
    return (*changes.new, *graver)


def _end_of(ref: weakref.ref[Pipeline]) -> None:
    """End one with its process."""
    if (pipeline := ref()) is not None:
        pipeline._end()


def as_sinks(sinks: Sequence[Sink]) -> list[Sink]:
    """Sinks in a list; ConfigurationError for what is none."""
    found = listed("sinks", sinks, "a list of sinks")
    what = "a sink, derived from sw.sinks.Sink"
    for index, sink in enumerate(found):
        expect(isinstance(sink, Sink), f"sinks[{index}]", what, sink)
    return found
