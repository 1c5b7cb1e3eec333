"""Which checkpoints a replay measures, in which order and when."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from sparsitywatch.checkpoints.discovery import ListedCheckpoint, discover
from sparsitywatch.checkpoints.formats import learning_rates
from sparsitywatch.checkpoints.step_from_path import part_of
from sparsitywatch.errors import expect, expect_number
from sparsitywatch.offline.jobs import PendingCheckpoint
from sparsitywatch.offline.rates import Rates
from sparsitywatch.redact import printable, redacted_url


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
        return f"<Failure at step {self.step}: {printable(self.reason)[:150]}>"


class Selection(NamedTuple):
    """What is measured, and what is not."""

    pending: list[PendingCheckpoint]  # by rising step, each step once
    left_out: list[Failure]  # passed over on purpose
    unreadable: list[Failure]  # neither now nor in its turn, as its step is not known


def select(listed: Sequence[ListedCheckpoint]) -> Selection:
    """What to measure of what is there. A single checkpoint without a step stands for step 0."""
    if len(listed) == 1 and listed[0].state == "complete" and listed[0].step is None:
        listed = [replace(listed[0], step=0)]
    complete = {one.step for one in listed if one.state == "complete"}
    pending: dict[int, PendingCheckpoint] = {}
    left_out, unreadable = [], []
    for one in listed:
        if one.state == "duplicate":
            left_out.append(Failure(one.url, one.step, one.reason))
        elif one.step is None and one.state == "complete":
            reason = (
                f"Left out {redacted_url(one.url)}: expected a step in its contents or its name, "
                "found none. Name it as in checkpoint-500."
            )
            left_out.append(Failure(one.url, None, reason))
        elif one.step is None:
            unreadable.append(Failure(one.url, None, one.reason))
        elif one.state == "complete" or one.step not in complete:
            new = PendingCheckpoint(
                url=one.url,
                step=one.step,
                entries=one.entries,
                reason=one.reason,
                is_incomplete=one.state == "incomplete",
            )
            pending.setdefault(one.step, new)
    return Selection([pending[step] for step in sorted(pending)], left_out, unreadable)


@dataclass(kw_only=True)
class Listing:
    """What is there and has to be measured, listed again and again."""

    urls: Sequence[str | os.PathLike[str]]
    storage_options: Mapping[str, Any]
    duplicates: str
    rates: Rates  # learns what a Trainer has logged
    _known: dict[str, ListedCheckpoint] = field(default_factory=dict)

    def now(self, done: Container[int | None]) -> Selection:
        """What to measure; steps that are done are neither listed nor opened again each time."""
        known = {url: one for url, one in self._known.items() if one.step in done}
        listed = discover(self.urls, self.storage_options, known, self.duplicates)
        self._known.update({one.url: one for one in listed})
        complete = [one for one in listed if one.state == "complete" and one.step is not None]
        logged = self.rates.logged
        # its latest checkpoint has all of them
        if logged is not None and complete and (complete[-1].step or 0) > logged.last_step:
            url = complete[-1].url
            self.rates.learn(learning_rates(url, self.storage_options), redacted_url(url))
        return select(listed)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait for the checkpoints of a run that goes on."""

    poll_s: float = 5.0  # between two listings of the storage
    idle_timeout_s: float | None = None  # end when nothing new has come for as long; None: never
    until: Callable[[], bool] | None = None  # asked before every listing whether to end
    #: An unfinished checkpoint is given up when a later one has been complete for as long.
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
class Waiting:
    """What has been waited for, and since when."""

    patience: Patience
    since: dict[str, tuple[str, float]] = field(default_factory=dict)  # by URL: for what, and when
    complete: dict[int, PendingCheckpoint] = field(default_factory=dict)

    def gone(self, selection: Selection) -> list[PendingCheckpoint]:
        """What was complete before and is not there any more."""
        there = {one.step for one in selection.pending}
        gone = [one for step, one in self.complete.items() if step not in there]
        self.complete = {one.step: one for one in selection.pending if not one.reason}
        return gone

    def settled(self, selection: Selection) -> Selection:
        """What may be measured by now; what is still to be waited for is incomplete."""
        last = max((one.step for one in selection.pending if not one.reason), default=-1)
        return selection._replace(pending=[self._settled(one, last) for one in selection.pending])

    def _settled(self, one: PendingCheckpoint, last_complete: int) -> PendingCheckpoint:
        unfinished_s = self.patience.unfinished_s
        if not one.reason:
            # a file of one rank counts once none of another has come beside it for a while
            if part_of(one.url) is None or self._waited_s(one, "others") >= unfinished_s:
                return one
            words = "others of its step may still be written"
            reason = f"Cannot read {redacted_url(one.url)} yet: {words}."
            return replace(one, reason=reason, is_incomplete=True)
        if not one.is_incomplete:
            # what seems damaged may be half-written: it is believed when it stays so
            return replace(one, is_incomplete=self._waited_s(one, one.reason) == 0.0)
        if one.step > last_complete or self._waited_s(one, "its end") < unfinished_s:
            return one
        return replace(one, is_incomplete=False)

    def _waited_s(self, one: PendingCheckpoint, what: str) -> float:
        now = self.patience.clock()
        if self.since.get(one.url, ("", 0.0))[0] != what:
            self.since[one.url] = (what, now)
        return now - self.since[one.url][1]
