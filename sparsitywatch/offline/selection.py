"""Which checkpoints a replay measures, in which order and when, and what it gives back."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sparsitywatch.checkpoints.discovery import ListedCheckpoint
from sparsitywatch.checkpoints.step_from_path import part_of
from sparsitywatch.errors import expect, expect_number
from sparsitywatch.records import Event, Record, html_of
from sparsitywatch.shown import shown_name, shown_url
from sparsitywatch.weights.layout import Entry

if TYPE_CHECKING:
    from sparsitywatch.offline.driver import Replayer

__all__ = ["Failure", "Patience", "Replayed", "Selection", "Wanted", "follow", "select"]


@dataclass(frozen=True)
class Failure:
    """A checkpoint that could not be measured, or not in full.

    Args:
        url: where it lies, as it can be opened: logins and signatures included.
        step: optimizer steps done; None if that is not known.
        reason: one line that names the file, the tensor where there is one, and the cause.
    """

    url: str
    step: int | None
    reason: str

    def __repr__(self) -> str:
        return f"<Failure at step {self.step}: {shown_name(self.reason)[:150]}>"


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What a replay saw.

    Args:
        records: by step, those of earlier replays into the same log directory included;
            layers are kept for the latest hundred only, the log has them all.
        events: in the order in which they were seen.
        failures: checkpoints that could not be measured. Those whose step is known have an
            invalid record too.
        left_out: checkpoints that were passed over on purpose, and why: another one of the
            same step was taken, or no step is known.
        num_snapshots: checkpoints that were measured now; the others were in the log already.
        directory: where the log lies, or None.
    """

    records: list[Record]
    events: list[Event]
    failures: list[Failure]
    left_out: list[Failure]
    num_snapshots: int
    directory: Path | None

    def __repr__(self) -> str:
        steps = (
            f" of steps {self.records[0].step} to {self.records[-1].step}" if self.records else ""
        )
        return (
            f"<Replayed {len(self.records)} records{steps}, {len(self.events)} events, "
            f"{len(self.failures)} failures>"
        )

    def _repr_html_(self) -> str:
        return html_of(repr(self)[1:-1], self.records, self.events)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A checkpoint that has its place in the replay.

    Args:
        url, step: of the checkpoint.
        reason: why it cannot be read, in one line; empty if it can.
        is_incomplete: whether it may be worth a wait.
        entries: every tensor that it holds; empty while it cannot be opened.
    """

    url: str
    step: int
    reason: str = ""
    is_incomplete: bool = False
    entries: tuple[Entry, ...] = field(default=(), repr=False)

    @property
    def failure(self) -> Failure:
        """The same as a failure."""
        return Failure(self.url, self.step, self.reason)


@dataclass(frozen=True)
class Selection:
    """What is measured, and what is not.

    Args:
        wanted: by rising step, each step once.
        left_out: passed over on purpose, and why.
        unreadable: can be measured neither now nor in its turn, as its step is not known.
    """

    wanted: tuple[Wanted, ...]
    left_out: tuple[Failure, ...] = ()
    unreadable: tuple[Failure, ...] = ()


def select(found: Sequence[ListedCheckpoint]) -> Selection:
    """What to measure of what ``discover`` has found.

    A single checkpoint without a step stands for step 0.
    """
    if len(found) == 1 and found[0].state == "complete" and found[0].step is None:
        found = [replace(found[0], step=0)]
    complete = {one.step for one in found if one.state == "complete"}
    wanted: dict[int, Wanted] = {}
    left_out, unreadable = [], []
    for one in found:
        if one.state == "duplicate":
            left_out.append(Failure(one.url, one.step, one.reason))
        elif one.step is None and one.state == "complete":
            reason = (
                f"Left out {shown_url(one.url)}: expected a step in its contents or its name, "
                "found none. Name it as in checkpoint-500."
            )
            left_out.append(Failure(one.url, None, reason))
        elif one.step is None:
            unreadable.append(Failure(one.url, None, one.reason))
        elif one.state == "complete" or one.step not in complete:
            new = Wanted(
                url=one.url,
                step=one.step,
                reason=one.reason,
                is_incomplete=one.state == "incomplete",
                entries=one.entries,
            )
            wanted.setdefault(one.step, new)
    by_step = tuple(wanted[step] for step in sorted(wanted))
    return Selection(by_step, tuple(left_out), tuple(unreadable))


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait for what.

    Args:
        poll_s: seconds between two listings of the storage.
        idle_timeout_s: end when nothing new has come for so many seconds; None: never.
        until: asked before every listing whether to end; None: never.
        unfinished_s: an unfinished checkpoint is given up when a later one has been complete
            for so many seconds.
        clock, sleep: of time; for tests.
    """

    poll_s: float = 5.0
    idle_timeout_s: float | None = None
    until: Callable[[], bool] | None = None
    unfinished_s: float = 60.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        expect_number("poll_s", self.poll_s, lambda s: s > 0.0, "seconds > 0")
        if self.idle_timeout_s is not None:
            expect_number("idle_timeout_s", self.idle_timeout_s, lambda s: s > 0.0, "seconds > 0")
        is_good = self.until is None or callable(self.until)
        expect(is_good, "until", "a function or None", self.until)


@dataclass
class _Waiting:
    """What has been waited for, and since when."""

    patience: Patience
    overtaken_since: dict[str, float] = field(default_factory=dict)
    part_since: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    complete: dict[int, Wanted] = field(default_factory=dict)

    def gone(self, selection: Selection) -> list[Wanted]:
        """What was complete before and is not there any more."""
        there = {one.step for one in selection.wanted}
        gone = [one for step, one in self.complete.items() if step not in there]
        self.complete = {one.step: one for one in selection.wanted if not one.reason}
        return gone

    def settled(self, selection: Selection) -> Selection:
        """What may be measured by now; what is still to be waited for is incomplete."""
        last = max((one.step for one in selection.wanted if not one.reason), default=-1)
        wanted = tuple(self._settled(one, last) for one in selection.wanted)
        return replace(selection, wanted=wanted)

    def _settled(self, one: Wanted, last_complete: int) -> Wanted:
        if not one.reason:
            return self._whole_by_now(one)
        if not one.is_incomplete:
            # what seems damaged may be half-written: it is believed when it stays so
            is_same = self.refused.get(one.url) == one.reason
            self.refused[one.url] = one.reason
            return one if is_same else replace(one, is_incomplete=True)
        if one.step > last_complete:
            return one
        since = self.overtaken_since.setdefault(one.url, self.patience.clock())
        is_given_up = self.patience.clock() - since >= self.patience.unfinished_s
        return replace(one, is_incomplete=False) if is_given_up else one

    def _whole_by_now(self, one: Wanted) -> Wanted:
        """A file of one rank counts once none of another has come beside it for a while."""
        if part_of(one.url) is None:
            return one
        now = self.patience.clock()
        if now - self.part_since.setdefault(one.url, now) >= self.patience.unfinished_s:
            return one
        reason = f"Cannot read {shown_url(one.url)} yet: others of its step may still be written."
        return replace(one, reason=reason, is_incomplete=True)


def follow(
    replayer: Replayer, list_now: Callable[[], Selection | None], patience: Patience
) -> None:
    """Measure each checkpoint once it is there, until it is time to end.

    What is unfinished at the end fails then.

    Args:
        replayer: measures.
        list_now: lists the checkpoints; None while they cannot be listed.
        patience: how long to wait for what.
    """
    waiting = _Waiting(patience)
    latest_news = patience.clock()
    while True:
        # asked before listing: what is there when it says so is still measured
        is_over = patience.until is not None and patience.until()
        selection = list_now()
        if selection is not None:
            replayer.report_gone(waiting.gone(selection))
            if replayer.see(waiting.settled(selection), is_final=False):
                latest_news = patience.clock()
        idle_s = patience.clock() - latest_news
        if is_over or (patience.idle_timeout_s is not None and idle_s >= patience.idle_timeout_s):
            break
        patience.sleep(patience.poll_s)
    selection = list_now()
    if selection is not None:
        replayer.see(selection)
