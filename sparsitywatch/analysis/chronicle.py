"""Which detections are one event, which event announced another, and what became of each.

- Detectors of several series that see the same thing, with the same meaning and at the same
  time, make one event: that of the first to see it, at one look that of the strongest in
  units of its noise. The others become its ``related`` series.
- Dormant weights are an early signal. A near-zero event that follows a dormant one by more
  than a few looks is an event of its own, which names the one that announced it.
- A change that has lost half of its largest size on two looks in a row fell back. That, and
  the detection of the fall itself, is told as an addition to its event, not as a new one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sparsitywatch.records import Event, from_json, to_json

__all__ = ["Changes", "Chronicle"]

_logger = logging.getLogger("sparsitywatch")

#: So many looks after a detection another one may still have seen the same thing.
_FEW_LOOKS = 3
#: What is left of the largest size of a change that fell back.
_LEFT = 0.5
#: Events that are followed; older ones are left as they are.
_MAX_FOLLOWED = 50


@dataclass(frozen=True)
class Changes:
    """What one look adds to the events of a run.

    Args:
        new: events seen for the first time.
        amended: new versions of earlier events.
    """

    new: tuple[Event, ...] = ()
    amended: tuple[Event, ...] = ()


@dataclass
class _Followed:
    """An event, and what its series did since.

    Args:
        event: its latest version.
        looks: looks since it was detected.
        until: step up to which an onset still belongs to it; -1 while that is any.
        peak: its largest size on two looks in a row, positive in its direction.
        last: its size at the last look that had the series.
        low_step: first of the looks in a row with half of the peak or less; -1 if not so.
    """

    event: Event
    looks: int = 0
    until: int = -1
    peak: float = math.nan
    last: float = math.nan
    low_step: int = -1

    @property
    def has_fallen(self) -> bool:
        return self.event.fell_back_step >= 0

    def height(self, value: float) -> float:
        sign = 1.0 if self.event.direction == "up" else -1.0
        return sign * (value - self.event.baseline)

    def follow(self, step: int, values: Mapping[str, float]) -> bool:
        """One more look; True if the event is seen to have fallen back."""
        self.looks += 1
        if self.looks == _FEW_LOOKS:
            self.until = step
        if self.has_fallen or self.event.series not in values:
            return False
        height = self.height(values[self.event.series])
        self.peak = max(self.peak, min(height, self.last))
        self.last = height
        if not (self.peak > 0.0 and height <= _LEFT * self.peak):
            self.low_step = -1
        elif self.low_step < 0:
            self.low_step = step
        else:
            return True
        return False


class Chronicle:
    """Follows the events of a run, look by look."""

    def __init__(self) -> None:
        self._followed: dict[str, _Followed] = {}

    def look(
        self,
        step: int,
        values: Mapping[str, float],
        seen: Sequence[Event],
        told: Sequence[Event] = (),
    ) -> Changes:
        """One more look.

        Args:
            step: of the look.
            values: its series, by name.
            seen: what the detectors saw at it, with series, meaning and noise.
            told: events of this look that a log holds already; they are followed only.
        """
        new: dict[str, Event] = {}
        amended: dict[str, Event] = {}
        for followed in self._followed.values():
            if followed.follow(step, values):
                self._fell_back(followed, step, amended)
        for event in told:
            self._add(event)
        for event in sorted(seen, key=_strength, reverse=True):
            if self._is_fall(event, step, amended):
                continue
            same = self._same(event, step)
            if same is None:
                added = self._add(self._named(event))
                new[added.id] = added
            else:
                self._relate(same, event, step, new, amended)
        return Changes(tuple(new.values()), tuple(amended.values()))

    def state_dict(self) -> dict[str, Any]:
        """Plain data that ``load_state_dict`` goes on from."""
        followed = self._followed.values()
        return {"followed": [{**vars(f), "event": to_json(f.event)} for f in followed]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""
        found = [
            _Followed(**{**saved, "event": from_json(Event, saved["event"])})
            for saved in state["followed"]
        ]
        self._followed = {followed.event.id: followed for followed in found}

    def _add(self, event: Event) -> Event:
        followed = _Followed(event)
        followed.peak = followed.last = followed.height(event.value)
        self._followed[event.id] = followed
        for old in list(self._followed)[:-_MAX_FOLLOWED]:
            del self._followed[old]
        return event

    def _named(self, event: Event) -> Event:
        """The event under an id that no other one has, with the one that announced it."""
        number = 2
        while event.id in self._followed:
            event = replace(event, id=f"{event.series}@{event.onset_step}-{number}")
            number += 1
        if not event.meaning or _is_early(event):
            return event
        for followed in reversed(self._followed.values()):
            earlier = followed.event
            if _is_early(earlier) and earlier.meaning == event.meaning and not followed.has_fallen:
                return replace(event, preceded_by=earlier.id)
        return event

    def _same(self, event: Event, step: int) -> _Followed | None:
        """The event that this detection is a part of, the latest if there are several."""
        if not event.meaning:
            return None
        for followed in reversed(self._followed.values()):
            first = followed.event
            is_other = event.series != first.series and event.series not in first.related
            if not is_other or first.meaning != event.meaning:
                continue
            until = step if followed.until < 0 else followed.until
            touches = event.onset_low <= until and event.onset_high >= first.onset_low
            is_late = followed.looks > _FEW_LOOKS and _is_early(first) != _is_early(event)
            if touches and not is_late:
                return followed
        return None

    def _relate(
        self,
        same: _Followed,
        event: Event,
        step: int,
        new: dict[str, Event],
        amended: dict[str, Event],
    ) -> None:
        first = replace(same.event, related=(*same.event.related, event.series))
        if first.id in new:
            same.event = new[first.id] = first
            return
        same.event = amended[first.id] = replace(first, amended_step=step)
        _logger.info("sparsitywatch: %s is seen in another series: %s", first.id, event.describe())

    def _is_fall(self, event: Event, step: int, amended: dict[str, Event]) -> bool:
        """Whether a detection is the fall of an earlier event, which is told with that one."""
        for followed in reversed(self._followed.values()):
            rise = followed.event
            is_back = event.direction != rise.direction and event.onset_high >= rise.detected_step
            if event.series not in (rise.series, *rise.related) or not is_back:
                continue
            if followed.has_fallen:
                return event.onset_low <= rise.fell_back_step
            if followed.low_step >= 0:
                self._fell_back(followed, step, amended)
                return True
            return False
        return False

    def _fell_back(self, followed: _Followed, step: int, amended: dict[str, Event]) -> None:
        event = replace(followed.event, fell_back_step=followed.low_step, amended_step=step)
        followed.event = amended[event.id] = event
        _logger.info("sparsitywatch: a change fell back: %s", event.describe())


def _is_early(event: Event) -> bool:
    """Whether the event is of the early signal, weights that get no gradient."""
    return event.series.startswith("motion/")


def _strength(event: Event) -> float:
    size = abs(event.size_in_noise)
    return -1.0 if math.isnan(size) else size
