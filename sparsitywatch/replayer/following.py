"""Waiting for the checkpoints of a run that still goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from sparsitywatch.arguments import expect, expect_number
from sparsitywatch.checkpoints.stated import part_of
from sparsitywatch.replayer.driver import Replayer
from sparsitywatch.replayer.selection import Selection, Wanted
from sparsitywatch.shown import shown_url

__all__ = ["Patience", "follow"]


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait for what.

    Args:
        poll_s: seconds between two looks at the storage.
        idle_timeout_s: end when nothing new has come for so many seconds; None: never.
        until: asked at every look at the storage whether to end; None: never.
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
        """What may be looked at by now; what is still to be waited for is incomplete."""
        last = max((one.step for one in selection.wanted if not one.reason), default=-1)
        wanted = tuple(self._settled(one, last) for one in selection.wanted)
        return replace(selection, wanted=wanted)

    def _settled(self, one: Wanted, last_complete: int) -> Wanted:
        if not one.reason:
            return self._whole_by_now(one)
        if not one.is_incomplete:
            # what looks damaged may be half-written: it is believed when it stays so
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
    """Look at each checkpoint once it is there, until it is time to end.

    What is unfinished at the end fails then.

    Args:
        replayer: looks.
        list_now: lists the checkpoints; None while they cannot be listed.
        patience: how long to wait for what.
    """
    waiting = _Waiting(patience)
    latest_news = patience.clock()
    while True:
        # asked before listing: what is there when it says so is still looked at
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
