"""How a run stands, made once and shown everywhere: does its watch see, what happened, what to do.

A watch that sees nothing must not look like a quiet one.
"""

from __future__ import annotations

import math
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone

from sparsitywatch.records import Event, Record, RunInfo, WatchState
from sparsitywatch.series import describe

# ------------------------------------------------------------------ whether its watch sees

#: A watch writes a sign of life once a minute, at a step; after three minutes it is late.
_LATE_S = 180.0
#: Where steps take longer it is late after this many of them.
_LATE_STEPS = 5
#: Failed snapshots at the end of a log that make a watch blind.
_FEW_FAILURES = 3


@dataclass(frozen=True)
class Standing:
    """How a watch is, for whoever looks at its numbers."""

    trouble: str = ""  # in a few words, why its silence means nothing; empty if it is well
    sentences: tuple[str, ...] = ()  # the most important first; none of a replay without faults
    level: str = ""  # "look" or "broken" where there is trouble
    is_end: bool = False  # whether the trouble is an end, after which nothing was seen


#: What is wrong: in a few words, and in a sentence. None if nothing is.
_Finding = tuple[str, str] | None


def standing(
    records: Sequence[Record], info: RunInfo | None = None, *, now: float | None = None
) -> Standing:
    """How the watch of a log is: on, off, closed, gone or blind, and whether it has measured.

    ``now`` is in seconds since the epoch; None takes the manifest's word without asking the clock.
    """
    state = None if info is None else up_to_date(info.state, records)
    lost = _lost(state, now, max((r.cost.stall_s for r in records), default=0.0))
    off, ended = _off(state), _ended(state)
    broken = [f for f in (off, lost, _blind(records)) if f is not None]
    found = [*broken, *(f for f in (ended, _not_measured(state, records)) if f is not None)]
    sentences = [sentence for _, sentence in found]
    if state is not None and lost is None and state.describe() not in sentences:
        sentences.append(state.describe())
    level = "broken" if broken else "look" if found else ""
    is_end = bool(found) and found[0] in (off, lost, ended)
    return Standing(found[0][0] if found else "", tuple(sentences), level, is_end)


def up_to_date(state: WatchState | None, records: Sequence[Record]) -> WatchState | None:
    """The state with what the log knows better: it is not written anew with every record."""
    if state is None or not records or records[-1].step <= state.last_step:
        return state
    last, new = records[-1].step, [r for r in records if r.step > state.last_step]
    evaluated = [r.step for r in new if r.curve is not None]
    return replace(
        state,
        step=max(state.step, last),
        wall_time=max(state.wall_time, records[-1].wall_time),
        num_due=state.num_due + len(new) + sum(r.cost.num_left_out for r in new),
        num_taken=state.num_taken + len(new),
        num_failed=state.num_failed + sum(not r.valid for r in new),
        num_evaluated=state.num_evaluated + len(evaluated),
        last_step=last,
        last_evaluated_step=max([state.last_evaluated_step, *evaluated]),
        next_due_step=-1 if state.next_due_step <= last else state.next_due_step,
        next_evaluation_step=-1,
    )


def _off(state: WatchState | None) -> _Finding:
    if state is None or state.status != "off":
        return None
    return f"the watch has been off since step {state.step:,}", state.describe()


def _ended(state: WatchState | None) -> _Finding:
    if state is None or state.status != "ended":
        return None
    return f"the training was {state.end}", state.describe()


def _not_measured(state: WatchState | None, records: Sequence[Record]) -> _Finding:
    """A watch that has come to its end without a snapshot, or without an evaluation."""
    if state is None or state.status in ("on", "off"):
        return None
    if not records:
        return "no snapshot was taken", state.describe()
    if state.num_evaluated == 0:
        return "essential sparsity was never measured", state.describe()
    return None


def _lost(state: WatchState | None, now: float | None, longest_s: float) -> _Finding:
    """A watch that was on at its last sign of life; ``longest_s`` is its longest snapshot."""
    if state is None or state.status != "on" or now is None:
        return None
    sign = f"The last sign of life is of step {state.step:,}, {_moment(state.wall_time)}"
    if _is_gone(state):
        return f"the training was killed after step {state.step:,}", (
            f"The process {state.pid} of the training is gone, and wrote of no end: it was killed. "
            f"{sign}."
        )
    trouble = f"the watch was last heard of at step {state.step:,}"
    step_s = state.step_s if math.isfinite(state.step_s) else 0.0
    silent_s = now - state.wall_time
    if silent_s <= max(_LATE_S, _LATE_STEPS * step_s) + 2.0 * longest_s:
        return None
    due = ""
    if state.next_due_step >= 0:
        due = f" The snapshot of step {state.next_due_step:,} has not come."
    return trouble, (
        f"No step was seen for {_duration(silent_s)}: the training stands still, was killed, or "
        f"steps with an optimizer that is not watched. {sign}.{due}"
    )


def _moment(wall_time: float) -> str:
    try:
        moment = datetime.fromtimestamp(wall_time, timezone.utc)
    except (OverflowError, OSError, ValueError):  # a clock was wrong
        return "at a time that is not known"
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def _is_gone(state: WatchState) -> bool:
    """Whether the process that watched is known to be gone."""
    if sys.platform == "win32" or state.pid <= 0 or state.host != socket.gethostname():
        return False
    try:
        os.kill(state.pid, 0)  # signal 0 asks, and sends nothing
    except ProcessLookupError:
        return True
    except OSError:  # somebody else's
        return False
    return False


def _blind(records: Sequence[Record]) -> _Finding:
    """Records that say nothing, though they were made."""
    if not records:
        return None
    last_valid = max((i for i, record in enumerate(records) if record.valid), default=-1)
    failed = len(records) - 1 - last_valid
    if failed == len(records) or failed >= _FEW_FAILURES:
        which = "all snapshots" if failed == len(records) else f"the last {failed:,} snapshots"
        reason = records[-1].reason.rstrip(".")
        return f"{which} failed", f"Blind: {which} failed, the last because of: {reason}."
    attempts = [r for r in records if r.provenance.proxy_hash and not r.not_evaluated]
    if attempts and all(record.curve is None for record in attempts):
        return "no evaluation has succeeded", (
            f"Blind for essential sparsity: none of {len(attempts):,} evaluations succeeded, the "
            f"last because of: {(attempts[-1].reason or 'no reason given').rstrip('.')}."
        )
    return None


def _duration(seconds: float) -> str:
    """A time in words.

    >>> _duration(200.0), _duration(7300.0), _duration(200_000.0)
    ('3 minutes', '2 hours', '2 days')
    """
    sizes = {"day": 86400.0, "hour": 3600.0, "minute": 60.0}
    name = next((name for name, size in sizes.items() if seconds >= 1.5 * size), "minute")
    number = round(seconds / sizes[name])
    return f"{number} {name}{'' if number == 1 else 's'}"


# ------------------------------------------------------------------ what happened, what to do

#: From good to bad: something happened that a person should see; or the watch, or what it measures,
#: cannot be relied on. With the exit codes of ``sparsitywatch status``.
LEVELS = {"healthy": 0, "too early": 0, "look": 1, "broken": 2}
#: Kinds of events after which, while they last, a training is not worth going on with.
_BROKEN = ("not_finite", "replicas", "untrained")


#: What to do about weights that no step reaches.
_TRAIN = (
    "If they are not frozen on purpose, make the optimizer from the parameters that the model has "
    "now; else choose a `scope` of weights that are trained."
)


@dataclass(frozen=True)
class Verdict:
    """What somebody must know within a minute."""

    level: str  # one of ``LEVELS``
    badge: str  # the same in two or three words
    headline: str  # what happened, a sentence
    action: str  # what to do first, a sentence or two
    event: int = 0  # number of the event that the headline is about, counted from 1; 0 if none


def verdict(records: Sequence[Record], events: Sequence[Event], standing: Standing) -> Verdict:
    """The verdict on a run, also on one without a snapshot yet."""
    number, several = len(records), len(events)
    happened, place = "", 0
    if number:
        happened = f"No abrupt change in {number:,} snapshot{'' if number == 1 else 's'}"
    if events:
        event = main_event(events)
        happened, place = _told(event), events.index(event) + 1
    headline = _with_trouble(standing, happened)
    if standing.level == "broken":
        return Verdict("broken", "not watching", headline, standing.sentences[0], place)
    last = records[-1] if records else None
    if last is not None and last.num_not_finite:
        happened = f"{last.num_not_finite:,} weights are NaN or infinite at step {last.step:,}"
        action = "Stop the run and go on from a checkpoint before that."
        return Verdict("broken", "NaN or infinite weights", happened, action, place)
    if last is not None and last.trained == 0.0:
        happened = f"No optimizer trains the weights in scope at step {last.step:,}"
        return Verdict("broken", "not trained", happened, _TRAIN, place)
    if events:
        level = "broken" if event.kind in _BROKEN and event.reverted_step < 0 else "look"
        badge = f"{several:,} event{'' if several == 1 else 's'}"
        return Verdict(level, badge, headline, event.advice, place)
    if standing.level:
        badge = "ended early" if standing.is_end else "not measured"
        return Verdict("look", badge, headline, standing.sentences[0])
    return _quiet(records, happened)


def _quiet(records: Sequence[Record], happened: str) -> Verdict:
    """The verdict where nothing is known to have happened, and the watch is well."""
    number, last = len(records), records[-1] if records else None
    share, most = _trained(records)
    if share < most:
        happened = f"Steps reach {share:.1%} of the weights in scope, and reached {most:.1%} before"
        return Verdict("look", "trained in part", happened, _TRAIN)
    if last is None:
        action = "The first snapshot comes when `every` says so; nothing to do until then."
        return Verdict("too early", "no snapshot yet", "Nothing has been measured so far", action)
    if not last.valid:
        reason = last.reason.rstrip(".") or "no reason given"
        action = f"The last snapshot, of step {last.step:,}, failed: {reason}."
        return Verdict("look", "snapshot failed", happened, action)
    if number == 1:
        action = "A change is seen from the second snapshot on; nothing to do until then."
        return Verdict("too early", "one snapshot", "One snapshot shows no change", action)
    action = "Nothing to do: no watched number changed abruptly."
    return Verdict("healthy", "no events", happened, action)


def _trained(records: Sequence[Record]) -> tuple[float, float]:
    """Which share of the weights steps reach, in either of the last two snapshots; and at most."""
    known = [record.trained for record in records if math.isfinite(record.trained)]
    return max(known[-2:], default=math.nan), max(known, default=math.nan)


def _with_trouble(standing: Standing, happened: str) -> str:
    """A headline with the trouble first, if there is any; nothing may have ``happened``."""
    if not standing.trouble:
        return happened
    trouble = standing.trouble[0].upper() + standing.trouble[1:]
    if not happened:
        return trouble
    before = " before that:" if standing.is_end else ""
    return f"{trouble};{before} {happened[0].lower()}{happened[1:]}"


def main_event(events: Sequence[Event]) -> Event:
    """The event that matters most: what is wrong with the training, then weights that are gone."""
    lasting = [event for event in events if event.reverted_step < 0] or events
    wrong = sorted((e for e in lasting if not e.is_of_series), key=lambda e: e.kind not in _BROKEN)
    sparse = [event for event in lasting if _is_sparse_now(event)]
    return [*wrong, *sparse, *lasting][0]


def _told(event: Event) -> str:
    text = f"{event.headline}, from about step {event.onset_step:,} on"
    if event.is_of_series and _is_sparse_now(event):
        how = "abruptly" if event.kind == "abrupt" else "steadily"
        text = f"Weights turned sparse {how}, from about step {event.onset_step:,} on"
    if event.reverted_step >= 0:
        text += f", and back by half at step {event.reverted_step:,}"
    return text


def _is_sparse_now(event: Event) -> bool:
    """Whether weights are gone: dormant ones only announce it."""
    is_sparsifying = describe(event.series).trend(event.direction) == "sparsifying"
    return is_sparsifying and event.series.startswith("near_zero/")
