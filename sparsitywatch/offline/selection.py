"""Which checkpoints a replay measures, in which order and when."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from sparsitywatch.checkpoints.discovery import ListedCheckpoint
from sparsitywatch.checkpoints.step_from_path import part_of
from sparsitywatch.errors import expect, expect_number
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

    pending: dict[int, ListedCheckpoint]  # by step, rising
    left_out: list[Failure]  # passed over on purpose
    unreadable: list[Failure]  # neither now nor in its turn, as its step is not known


def select(listed: Sequence[ListedCheckpoint]) -> Selection:
    """What to measure of what is there. A single checkpoint without a step stands for step 0."""
    if len(listed) == 1 and listed[0].state == "complete" and listed[0].step is None:
        listed = [replace(listed[0], step=0)]
    complete = {one.step for one in listed if one.state == "complete"}
    pending: dict[int, ListedCheckpoint] = {}
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
            pending.setdefault(one.step, one)
    return Selection(dict(sorted(pending.items())), left_out, unreadable)


@dataclass(kw_only=True)
class Patience:
    """How long to wait for the checkpoints of a run that goes on, and for what since when."""

    poll_s: float = 5.0  # between two listings of the storage
    idle_timeout_s: float | None = None  # end when nothing new has come for as long; None: never
    until: Callable[[], bool] | None = None  # asked before every listing whether to end
    #: An unfinished checkpoint is given up when a later one has been complete for as long.
    unfinished_s: float = 60.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _since: dict[str, tuple[str, float]] = field(default_factory=dict)  # by URL: for what, when
    _complete: dict[int, ListedCheckpoint] = field(default_factory=dict)  # at the last listing

    def __post_init__(self) -> None:
        expect_number("poll_s", self.poll_s, lambda s: s > 0.0, "seconds > 0")
        if self.idle_timeout_s is not None:
            expect_number("idle_timeout_s", self.idle_timeout_s, lambda s: s > 0.0, "seconds > 0")
        is_good = self.until is None or callable(self.until)
        expect(is_good, "until", "a function or None", self.until)

    def gone(self, selection: Selection) -> list[ListedCheckpoint]:
        """What was complete before and is not there any more."""
        before, self._complete = self._complete, _complete(selection)
        return [one for step, one in before.items() if step not in selection.pending]

    def settled(self, selection: Selection) -> Selection:
        """What may be measured by now; what is still to be waited for is incomplete."""
        last = max(_complete(selection), default=-1)
        pending = {
            step: self._settled(one, is_latest=step > last)
            for step, one in selection.pending.items()
        }
        return selection._replace(pending=pending)

    def _settled(self, one: ListedCheckpoint, *, is_latest: bool) -> ListedCheckpoint:
        if one.state == "complete":
            # a file of one rank counts once none of another has come beside it for a while
            if part_of(one.url) is None or self._waited_s(one, "others") >= self.unfinished_s:
                return one
            words = "others of its step may still be written"
            reason = f"Cannot read {redacted_url(one.url)} yet: {words}."
            return replace(one, reason=reason, state="incomplete")
        if one.state == "refused":
            # what seems damaged may be half-written: it is believed when it stays so
            is_new = self._waited_s(one, one.reason) == 0.0
            return replace(one, state="incomplete") if is_new else one
        if is_latest or self._waited_s(one, "its end") < self.unfinished_s:
            return one
        return replace(one, state="refused")

    def _waited_s(self, one: ListedCheckpoint, what: str) -> float:
        now = self.clock()
        if self._since.get(one.url, ("", 0.0))[0] != what:
            self._since[one.url] = (what, now)
        return now - self._since[one.url][1]


def _complete(selection: Selection) -> dict[int, ListedCheckpoint]:
    return {step: one for step, one in selection.pending.items() if one.state == "complete"}
