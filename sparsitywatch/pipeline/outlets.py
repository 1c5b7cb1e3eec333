"""A sink as the pipeline has it: one that fails is opened again, and given what it lacks."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile

from sparsitywatch.errors import contain_faults, reraise_foreign
from sparsitywatch.pipeline.rundir import Claim
from sparsitywatch.records import Detail, Event, Record, RunInfo, WatchState
from sparsitywatch.redact import logger, redacted_error
from sparsitywatch.sinks.base import Sink, first_lost_step

#: What has failed is tried again at once, then after this pause, which doubles up to the longest.
_FIRST_S, _LONGEST_S = 0.1, 60.0
#: Of the time trying takes at most this share: to open a long log again is slow.
_SHARE = 0.01

DetailOf = Callable[[Record], Detail]


class _Patience:
    """When what has failed is tried again."""

    def __init__(self, name: str) -> None:
        self._name, self._pause_s, self.until = name, 0.0, -math.inf

    def failed(self, began: float) -> None:
        """It has failed once more, tried since ``began``; of several times in a row one is told."""
        now = time.monotonic()
        if not self._pause_s:
            logger.exception("%s failed and is tried again; training goes on", self._name)
        self.until = now + (self._pause_s and max(self._pause_s, (now - began) / _SHARE))
        self._pause_s = min(2.0 * self._pause_s or _FIRST_S, _LONGEST_S)


class Outlet:
    """A sink, and what it lacks of the records and events in memory."""

    def __init__(
        self, sink: Sink, memory: tuple[Sequence[Record], Sequence[Event]], *,
        claim: Claim | None, strict: bool,
    ) -> None:  # fmt: skip
        self._sink, self._name = sink, type(sink).__name__
        self._records, self._events = memory
        self.claim = claim  # to the directory that it writes into, if that is the log's
        self._strict = strict
        self._kept = self._told = -1  # the last step that it has a record of, and the events
        self._writing, self._delivering = _Patience(self._name), _Patience(self._name)
        self._reason, self._is_closed = "", False
        self.lost_since = -1  # step of the first record that it lacks; -1 if it has all
        self.was_lost = ""  # from when to when, in a few words

    @property
    def lost(self) -> str:
        """What it lacks, and why, in a few words; empty if it has all."""
        words = f"{self._name} lacks all since step {self.lost_since:,}: {self._reason.rstrip('.')}"
        return words if self.lost_since >= 0 else ""

    def open(self, run: RunInfo, detail_of: DetailOf, late: Sequence[Event]) -> None:
        """Open the sink for the first time; ``late`` is what its log does not have yet."""
        self._run, self._detail_of = run, detail_of
        self._kept = self._told = first_lost_step(run) - 1
        self._try(run.initial_step, partial(self._fill, detail_of, late))

    def renew(self, run: RunInfo) -> None:
        """Say of a model that has changed what is said once."""
        kept = self._run
        run = self._run = replace(run, initial_step=kept.initial_step, state=kept.state)
        if self.lost_since < 0:  # else it is said when the sink is opened again
            self._try(max(self._told, 0), partial(self._sink.renew, run))

    def tell(self, record: Record, detail: Detail, events: Sequence[Event]) -> None:
        """Give the sink the latest record, and what it says of events."""

        def detail_of(one: Record) -> Detail:
            return detail if one is record else self._detail_of(one)

        if self.lost_since < 0:
            self._try(record.step, partial(self._give, detail_of, events))
        may_try = time.monotonic() >= self._writing.until and not self._is_closed
        if self.lost_since >= 0 and may_try:
            self._try(record.step, partial(self._fill, detail_of, latest=events))

    def say(self, events: Sequence[Event]) -> None:
        """Give the sink events that no record has brought."""

        def act() -> None:
            for event in events:
                self._sink.event(event)

        if events and self.lost_since < 0:
            self._try(events[-1].reported_step, act)

    def state(self, state: WatchState) -> None:
        """Give the sink how the watch stands; what fails is said again with the next one."""
        self._run = replace(self._run, state=state)
        say = logger.debug if self.lost else logger.warning  # what is lost was told
        words = f"{self._name} did not take the watch's state: %s"
        with contain_faults(partial(say, words), strict=self._strict):
            self._sink.state(state)

    def deliver(self) -> None:
        """Let the sink do what belongs into the training's thread."""
        began = time.monotonic()
        if self.lost_since < 0 and began >= self._delivering.until:
            with contain_faults(lambda _: self._delivering.failed(began), strict=self._strict):
                self._sink.deliver()
                self._delivering = _Patience(self._name)

    def retry(self, step: int) -> None:
        """Give the sink what it lacks, whatever the pause: the end has come."""
        if self.lost_since >= 0 and not self._strict:
            self._try(step, partial(self._fill, self._detail_of))

    def close(self, *, is_taken: bool = False) -> None:
        """Close the sink, or abandon it where another watch has taken the log over."""
        self._is_closed = True
        words = "%s failed at its end; training goes on"
        with contain_faults(lambda _: logger.exception(words, self._name), strict=self._strict):
            self._sink.abandon() if is_taken else self._sink.close()

    def _fill(
        self, detail_of: DetailOf, late: Sequence[Event] = (), latest: Sequence[Event] | None = None
    ) -> None:
        """Open the sink, again if it has failed, and give it what it lacks."""
        if self.lost_since >= 0:
            with contextlib.suppress(Exception):  # what cannot be closed may be opened all the same
                self._sink.abandon()
            if self.claim is not None:
                self.claim.renew()
        run = replace(self._run, initial_step=max(self._kept, self._run.initial_step))
        self._sink.open(run)
        self._kept = min(self._kept, first_lost_step(run) - 1)  # what it has not dropped
        self._told = min(self._told, self._kept)
        new = {event.id for event in late}
        events = [e for e in self._events if e.reported_step <= self._told and e.id not in new]
        if known := [record for record in self._records if record.step <= self._kept]:
            self._sink.catch_up(known, events, detail_of)
        for event in late:
            self._sink.event(event)
        self._give(detail_of, latest)

    def _give(self, detail_of: DetailOf, latest: Sequence[Event] | None) -> None:
        """Give the sink what came after what it has; ``latest`` is what the last record says."""
        new = list(takewhile(lambda one: one.step > self._told, reversed(self._records)))
        for record in reversed(new):
            if record.step > self._kept:
                self._sink.write(record, detail_of(record))
                self._kept = record.step
            own = [e for e in self._events if self._told < e.reported_step <= record.step]
            for event in own if latest is None or record is not self._records[-1] else latest:
                self._sink.event(event)
            self._told = record.step

    def _try(self, step: int, act: Callable[[], None]) -> None:
        """Where the faults of a sink end; since when it lacks what it was given is known."""
        began = time.monotonic()
        try:
            act()
        except BaseException as error:  # noqa: BLE001 sorted by reraise_foreign
            self.lost_since = step if self.lost_since < 0 else self.lost_since
            self._reason = redacted_error(error)
            reraise_foreign(error, strict=self._strict)
            self._writing.failed(began)
            return
        self._writing = _Patience(self._name)
        if self.lost_since >= 0:
            until = f" to {step:,}" if step > self.lost_since else ""
            self.was_lost = f"{self._name} was lost at step {self.lost_since:,}{until}, and is back"
            logger.warning("%s with all that it lacked", self.was_lost)
            self.lost_since = -1
