"""The first thing that a page says: how it stands, what happened in one sentence, what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsitywatch.analysis.run import Run
from sparsitywatch.records import Event
from sparsitywatch.series import describe

__all__ = ["LEVELS", "Verdict", "verdict_of"]

#: From good to bad; the place is the exit code of ``sparsitywatch status``.
LEVELS = ("healthy", "look", "broken")
#: Kinds of events after which, while they last, a training is not worth going on with.
_BROKEN = ("not_finite", "replicas", "untrained")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What somebody must know within a minute.

    Args:
        level: "healthy"; "look" if something happened that a person should see; "broken" if the
            watch, or what it measures, cannot be relied on.
        badge: the same in two or three words.
        headline: what happened, a sentence.
        action: what to do first, a sentence or two.
        event: number of the event that the headline tells of, counted from 1; 0 if none.
    """

    level: str
    badge: str
    headline: str
    action: str
    event: int = 0


def verdict_of(run: Run) -> Verdict:
    """The verdict on a run, also on one without a snapshot yet."""
    happened, number = _what_happened(run)
    standing = run.standing
    if standing.trouble:
        trouble = standing.trouble[0].upper() + standing.trouble[1:]
        headline = f"{trouble}; before that: {happened[0].lower()}{happened[1:]}"
        return Verdict(
            level="broken", badge="not watching", headline=headline, action=standing.sentences[0],
            event=number,
        )  # fmt: skip
    if not run.records:
        return Verdict(
            level="healthy", badge="no snapshot yet", headline="Nothing has been measured so far",
            action="The first snapshot comes when `every` says so; nothing to do until then.",
        )  # fmt: skip
    last = run.records[-1]
    if last.num_not_finite:
        return Verdict(
            level="broken", badge="NaN or infinite weights", event=number,
            headline=f"{last.num_not_finite:,} weights are NaN or infinite at step {last.step:,}",
            action="Stop the run and go on from a checkpoint before that.",
        )  # fmt: skip
    if number:
        several, event = len(run.events), run.events[number - 1]
        is_broken = event.kind in _BROKEN and event.reverted_step < 0
        return Verdict(
            level="broken" if is_broken else "look",
            badge=f"{several:,} event{'' if several == 1 else 's'}",
            headline=happened, action=event.advice, event=number,
        )  # fmt: skip
    if not last.valid:
        reason = last.reason.rstrip(".") or "no reason given"
        return Verdict(
            level="look", badge="snapshot failed", headline=happened,
            action=f"The last snapshot, of step {last.step:,}, failed: {reason}.",
        )  # fmt: skip
    return Verdict(
        level="healthy", badge="no events", headline=happened,
        action="Nothing to do: no watched number changed abruptly.",
    )  # fmt: skip


def _what_happened(run: Run) -> tuple[str, int]:
    """A sentence, and the number of the event that it tells of, 0 if of none."""
    number = len(run.records)
    if not run.events:
        snapshots = f"{number:,} snapshot{'' if number == 1 else 's'}"
        return f"No abrupt change in {snapshots}", 0
    event = main_event(run.events)
    return _told(event), run.events.index(event) + 1


def main_event(events: Sequence[Event]) -> Event:
    """The event that matters most: what is wrong with the training, then weights that are gone."""
    lasting = [event for event in events if event.reverted_step < 0] or events
    wrong = sorted((e for e in lasting if not e.is_of_series), key=lambda e: e.kind not in _BROKEN)
    return next((e for e in (*wrong, *lasting) if e in wrong or _is_sparse_now(e)), lasting[0])


def _told(event: Event) -> str:
    if event.kind in ("abrupt", "steady") and _is_sparse_now(event):
        how = "abruptly" if event.kind == "abrupt" else "steadily"
        text = f"Weights turned sparse {how}, from about step {event.onset_step:,} on"
    else:
        text = f"{event.headline}, from about step {event.onset_step:,} on"
    if event.reverted_step >= 0:
        text += f", and back by half at step {event.reverted_step:,}"
    return text


def _is_sparse_now(event: Event) -> bool:
    """Whether weights are gone: dormant ones only announce it."""
    return describe(event.series).trend(event.direction) == "sparsifying" and (
        event.series.startswith("near_zero/")
    )
