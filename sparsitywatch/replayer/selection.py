"""Which of the checkpoints that were found are looked at, in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sparsitywatch.checkpoints.discovery import Found
from sparsitywatch.replayer.result import Failure
from sparsitywatch.shown import shown_url

__all__ = ["Selection", "Wanted", "select"]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A checkpoint that has its place in the replay.

    Args:
        url, step: of the checkpoint.
        reason: why it cannot be looked at, in one line; empty if it can.
        is_incomplete: whether it may be worth a wait.
    """

    url: str
    step: int
    reason: str = ""
    is_incomplete: bool = False

    @property
    def failure(self) -> Failure:
        """The same as a failure."""
        return Failure(self.url, self.step, self.reason)


@dataclass(frozen=True)
class Selection:
    """What is looked at, and what is not.

    Args:
        wanted: by rising step, each step once.
        left_out: passed over on purpose, and why.
        unreadable: can be looked at neither now nor in its turn, as its step is not known.
    """

    wanted: tuple[Wanted, ...]
    left_out: tuple[Failure, ...] = ()
    unreadable: tuple[Failure, ...] = ()


def select(found: Sequence[Found]) -> Selection:
    """What to look at of what ``discover`` has found.

    A single checkpoint that tells no step stands for step 0.
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
            is_incomplete = one.state == "incomplete"
            new = Wanted(url=one.url, step=one.step, reason=one.reason, is_incomplete=is_incomplete)
            wanted.setdefault(one.step, new)
    by_step = tuple(wanted[step] for step in sorted(wanted))
    return Selection(by_step, tuple(left_out), tuple(unreadable))
