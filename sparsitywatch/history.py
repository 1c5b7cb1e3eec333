"""What a run has shown so far: records, detectors and events; the same after a resume."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from sparsitywatch.analysis.chronicle import Changes, Chronicle
from sparsitywatch.analysis.explanation import explained
from sparsitywatch.errors import StateError
from sparsitywatch.records import Event, Record

__all__ = ["Detector", "History"]

#: Records keep their layers this long in memory; the log has all of them.
_LAYERS_KEPT = 100
#: A series that was missing at so many looks in a row begins anew: what happened meanwhile
#: is not known, so that what comes after it cannot be called abrupt.
_LONGEST_GAP = 3
#: What detectors are told beside their series, if it is known.
_CONTEXT = ("decay_clock", "lr", "lr_clock", "dormant_by_chance")


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


class History:
    """Takes records in the order of their steps; keeps them and the events they hold.

    A series that was missing for three looks or more, such as an essential sparsity that
    was not informative, is a new one to its detector when it comes back. Snapshots whose
    evaluation was left out do not count: what it would have measured has no gap there.

    Args:
        detectors: by the name of the series each one watches.

    Attributes:
        records: every record; layers are kept for the latest hundred only.
        events: every event in its latest version, in the order in which they were seen.
        initial_rms: root mean square of each tensor when the watch first saw it.
    """

    def __init__(self, detectors: Mapping[str, Detector]) -> None:
        self._detectors = dict(detectors)
        self._unused = {name: copy.deepcopy(d.state_dict()) for name, d in detectors.items()}
        self._gaps = dict.fromkeys(detectors, 0)
        self._chronicle = Chronicle()
        self._first_steps: dict[str, int] = {}  # by fingerprint
        self._recalled: tuple[list[Event], list[Event]] | None = None
        self.records: list[Record] = []
        self.events: list[Event] = []
        self.initial_rms: dict[str, float] = {}

    @property
    def is_suspicious(self) -> bool:
        """Whether a detector sees what may become an event."""
        return any(getattr(d, "is_suspicious", False) for d in self._detectors.values())

    def recognised(self, record: Record) -> Record:
        """The record that is to be added, told whether its weights have been seen before."""
        first = self._first_steps.get(record.fingerprint)
        return (
            record if first == record.step else dataclasses.replace(record, same_weights_as=first)
        )

    def add(self, record: Record) -> Changes:
        """One more record; returns what it adds to the events."""
        late = self.finish_recall()
        seen = self._detect(record)
        self._remember(record)
        changes = self._tell(record, seen)
        return Changes((*late.new, *changes.new), (*late.amended, *changes.amended))

    def recall(self, records: Sequence[Record], events: Sequence[Event]) -> None:
        """Take up what an earlier process saw and logged, before the first ``add``.

        Args:
            records: by rising step.
            events: the latest version of each, as of the last record.
        """
        self.events = list(events)
        waiting = sorted(events, key=lambda event: event.detected_step)
        for record in records:
            seen = self._detect(record)
            self._remember(record)
            told = [e for e in waiting if e.detected_step <= record.step]
            waiting = waiting[len(told) :]
            if record is records[-1]:
                self._recalled = (seen, told)
            else:
                self._chronicle.look(record.step, record.series(), (), told)

    def finish_recall(self) -> Changes:
        """What the last record that was recalled holds and the log does not, once.

        A kill between a record and its events leaves it so; nothing was told of them.
        ``initial_rms`` is to be set before.
        """
        if self._recalled is None:
            return Changes()
        (seen, told), self._recalled = self._recalled, None
        record = self.records[-1]
        logged = [e for e in self.events if e.told_step == record.step]
        known = {name for e in logged for name in (e.series, *e.related)}
        return self._tell(record, [e for e in seen if e.series not in known], told)

    def state_dict(self) -> dict[str, Any]:
        """What the detectors and the events go on from; plain data."""
        return {
            "detectors": {name: d.state_dict() for name, d in self._detectors.items()},
            "gaps": dict(self._gaps),
            "fingerprints": dict(self._first_steps),
            "chronicle": self._chronicle.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave.

        Raises:
            StateError: a part, or the state of a detector, is missing.
        """
        missing = [key for key in ("detectors", "gaps", "chronicle") if key not in state]
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
        self._chronicle.load_state_dict(state["chronicle"])
        for mark, step in state.get("fingerprints", {}).items():  # missing in older states
            self._first_steps.setdefault(mark, int(step))

    def _detect(self, record: Record) -> list[Event]:
        """What the detectors see; they know neither their series nor what it means."""
        series = record.series()
        known = {name: series.get(f"motion/{name}") for name in _CONTEXT}
        context = {name: value for name, value in known.items() if value is not None}
        events = []
        for name, detector in self._detectors.items():
            if name not in series:
                self._gaps[name] += record.was_asked(name)
                continue
            if self._gaps[name] >= _LONGEST_GAP:
                detector.load_state_dict(copy.deepcopy(self._unused[name]))
            self._gaps[name] = 0
            event = detector.update(record.step, series[name], context)
            if event is not None:
                events.append(dataclasses.replace(event, series=name))
        return events

    def _tell(self, record: Record, seen: Sequence[Event], told: Sequence[Event] = ()) -> Changes:
        known = [explained(event, self.records, self.initial_rms) for event in seen]
        changes = self._chronicle.look(record.step, record.series(), known, told)
        places = {event.id: i for i, event in enumerate(self.events)}
        for event in (*changes.new, *changes.amended):
            if event.id in places:
                self.events[places[event.id]] = event
            else:
                self.events.append(event)
        return changes

    def _remember(self, record: Record) -> None:
        self.records.append(record)
        if record.fingerprint:
            self._first_steps.setdefault(record.fingerprint, record.step)
        if len(self.records) > _LAYERS_KEPT:
            old = -_LAYERS_KEPT - 1
            self.records[old] = dataclasses.replace(self.records[old], layers=())
