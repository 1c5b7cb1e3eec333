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
from typing import NamedTuple

from sparsitywatch.analysis.detect.jumps import MIN_SNAPSHOTS
from sparsitywatch.records import Event, Record, RunInfo, WatchState
from sparsitywatch.records.event import some_of
from sparsitywatch.redact import printable, redacted

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
    advice: str = ""  # what to do about the trouble
    state: str = ""  # "look" or "broken" where there is trouble
    is_end: bool = False  # whether the trouble is an end, after which nothing was seen


class _Finding(NamedTuple):
    """What is wrong with a watch."""

    words: str
    sentence: str
    advice: str


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
    sentences = [one.sentence for one in found]
    if state is not None and lost is None and state.describe() not in sentences:
        sentences.append(state.describe())
    if not found:
        return Standing(sentences=tuple(sentences))
    first = found[0]
    return Standing(
        first.words,
        tuple(sentences),
        first.advice,
        state="broken" if broken else "look",
        is_end=first in (off, lost, ended),
    )


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


#: A new process that watches the same training goes on in the same log.
_GOES_ON = "go on from your last checkpoint. A watch with the same `logdir` continues this log."


def _off(state: WatchState | None) -> _Finding | None:
    if state is None or state.status != "off":
        return None
    advice = "Mend what the reason names, and attach the watch again: it continues this log."
    return _Finding(f"the watch has been off since step {state.step:,}", state.describe(), advice)


def _ended(state: WatchState | None) -> _Finding | None:
    if state is None or state.status != "ended":
        return None
    advice = f"If you did not stop it on purpose, mend the error and {_GOES_ON}"
    return _Finding(f"the training was {state.end}", state.describe(), advice)


def _not_measured(state: WatchState | None, records: Sequence[Record]) -> _Finding | None:
    """A watch that has come to its end without a snapshot, or without an evaluation."""
    if state is None or state.status in ("on", "off"):
        return None
    if not records:
        advice = (
            "Choose a smaller `every`, or a larger `max_overhead`, so that snapshots are taken."
        )
        return _Finding("no snapshot was taken", state.describe(), advice)
    if state.num_evaluated == 0:
        words = "essential sparsity was never measured"
        advice = "Give the proxy fewer examples, or the watch a larger `max_overhead`."
        return _Finding(words, state.describe(), advice)
    return None


def _lost(state: WatchState | None, now: float | None, longest_s: float) -> _Finding | None:
    """A watch that was on at its last sign of life; ``longest_s`` is its longest snapshot."""
    if state is None or state.status != "on" or now is None:
        return None
    sign = f"The last sign of life is of step {state.step:,}, {_moment(state.wall_time)}"
    if _is_gone(state):
        sentence = f"The process {state.pid} of the training is gone, and wrote of no end: it was "
        advice = f"Look for who or what killed it (memory, a time limit), and {_GOES_ON}"
        words = f"the training was killed after step {state.step:,}"
        return _Finding(words, f"{sentence}killed. {sign}.", advice)
    trouble = f"the watch was last heard of at step {state.step:,}"
    step_s = state.step_s if math.isfinite(state.step_s) else 0.0
    silent_s = now - state.wall_time
    if silent_s <= max(_LATE_S, _LATE_STEPS * step_s) + 2.0 * longest_s:
        return None
    due = ""
    if state.next_due_step >= 0:
        due = f" The snapshot of step {state.next_due_step:,} has not come."
    sentence = (
        f"No step was seen for {_duration(silent_s)}: the training stands still, was killed, or "
        f"steps with an optimizer that is not watched. {sign}.{due}"
    )
    return _Finding(trouble, sentence, "Look whether the training still makes steps.")


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


_MEND = "Mend what the reason names; the training itself was not touched."


def _blind(records: Sequence[Record]) -> _Finding | None:
    """Records that say nothing, though they were made."""
    if not records:
        return None
    last_valid = max((i for i, record in enumerate(records) if record.valid), default=-1)
    failed = len(records) - 1 - last_valid
    if failed == len(records) or failed >= _FEW_FAILURES:
        which = "all snapshots" if failed == len(records) else f"the last {failed:,} snapshots"
        reason = records[-1].reason.rstrip(".")
        sentence = f"Blind: {which} failed, the last because of: {reason}."
        return _Finding(f"{which} failed", sentence, _MEND)
    attempts = [r for r in records if r.provenance.proxy_hash and not r.not_evaluated]
    if attempts and all(record.curve is None for record in attempts):
        reason = (attempts[-1].reason or "no reason given").rstrip(".")
        sentence = f"Blind for essential sparsity: none of {len(attempts):,} evaluations succeeded"
        sentence += f", the last because of: {reason}."
        return _Finding("no evaluation has succeeded", sentence, _MEND)
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

#: From good to bad, with the exit codes of ``sparsitywatch status``: something happened that a
#: person should see; or the watch, or what it measures, cannot be relied on.
STATES = {"healthy": 0, "too early to tell": 0, "look": 1, "broken": 2}

_TRAIN = (
    "If they are not frozen on purpose, make the optimizer from the parameters that the model has "
    "now; else choose a `scope` of weights that are trained."
)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What somebody must know of a run within a minute; every surface shows this.

    Args:
        state: "healthy", "too early to tell", "look", or "broken".
        badge: the same in two or three words.
        headline: what happened, a sentence.
        since: optimizer step since which it is so; -1 if there is none.
        onset_low, onset_high: steps between which it began; -1 if it did not begin at one.
        where: tensors that it is about, most first; empty if it is about none, or all.
        cause: why, as far as that is known; empty if it is not.
        advice: what to do first, a sentence or two.
        confidence: how sure that is, in a few words.
        not_watched: what nobody watches here, and why, a few words each.
        trouble: why the watch's silence means nothing, in a few words; empty if it is well.
        watch: how the watch itself is, in sentences, the most important first.
        event: number of the event that the headline is about, counted from 1; 0 if none.
    """

    state: str
    badge: str
    headline: str
    since: int = -1
    onset_low: int = -1
    onset_high: int = -1
    where: tuple[str, ...] = ()
    cause: str = ""
    advice: str
    confidence: str = ""
    not_watched: tuple[str, ...] = ()
    trouble: str = ""
    watch: tuple[str, ...] = ()
    event: int = 0

    @property
    def exit_code(self) -> int:
        """Of ``sparsitywatch status``: 0, 1 or 2."""
        return STATES[self.state]

    def describe(self) -> str:
        """All of it but the watch, a line each, for a terminal or a text."""
        lines = [
            f"{self.state}: {self.headline}",
            f"Why: {self.cause}" if self.cause else "",
            f"Where: {some_of(self.where, len(self.where))}" if self.where else "",
            f"How sure: {self.confidence}" if self.confidence else "",
            f"What to do: {self.advice}",
            f"Not watched: {'; '.join(self.not_watched)}" if self.not_watched else "",
        ]
        return "\n".join(line for line in lines if line)


def verdict(records: Sequence[Record], events: Sequence[Event], standing: Standing) -> Verdict:
    """The verdict on a run, also on one without a snapshot yet."""
    found = _of_training(records, events)
    if found is None or (standing.state == "broken" and found.state != "broken"):
        found = _of_watch(found or _quiet(records), standing)
    elif standing.trouble:
        found = replace(found, headline=_with_trouble(standing, found.headline))
    return replace(
        found,
        not_watched=tuple(_not_watched(records)),
        trouble=standing.trouble,
        watch=standing.sentences,
    )


def _of_training(records: Sequence[Record], events: Sequence[Event]) -> Verdict | None:
    """What is wrong with the training, or worth a look; None if nothing is."""
    last = records[-1] if records else None
    if last is not None and last.num_not_finite:
        return _not_finite(records, events)
    if last is not None and last.trained == 0.0:
        headline = f"No optimizer trains the weights in scope at step {last.step:,}"
        return Verdict(
            state="broken", badge="not trained", headline=headline, advice=_TRAIN,
            since=last.step, confidence=_PROVEN,
        )  # fmt: skip
    alarms = [event for event in events if event.severity != "note"]
    if alarms:
        return _of_event(main_event(alarms), events, len(alarms))
    share, most = _trained(records)
    if last is not None and share < most:
        headline = f"Steps reach {share:.1%} of the weights in scope, and reached {most:.1%} before"
        return Verdict(
            state="look", badge="trained in part", headline=headline, advice=_TRAIN,
            since=last.step, confidence=_PROVEN,
        )  # fmt: skip
    return None


_PROVEN = "proven, by what the optimizer and the weights show"


def _not_finite(records: Sequence[Record], events: Sequence[Event]) -> Verdict:
    """Of weights that are NaN or infinite now: since when, and what to go back to."""
    last = records[-1]
    good = max((r.step for r in records if r.was_read and not r.num_not_finite), default=-1)
    signs = [event for event in events if event.kind == "not_finite" and event.reverted_step < 0]
    advice = "Stop the run and go on from a checkpoint before that."
    if good >= 0:
        advice = f"Stop the run and go on from a checkpoint of step {good:,} or before."
    return Verdict(
        state="broken",
        badge="NaN or infinite weights",
        headline=f"{last.num_not_finite:,} weights are NaN or infinite at step {last.step:,}",
        since=next(r.step for r in records if r.step > good and r.num_not_finite),
        onset_low=good,
        onset_high=next(r.step for r in records if r.step > good and r.num_not_finite),
        where=signs[-1].layers if signs else (),
        advice=signs[-1].advice if signs else advice,
        confidence=_PROVEN,
        event=events.index(signs[-1]) + 1 if signs else 0,
    )


def _of_event(event: Event, events: Sequence[Event], number: int) -> Verdict:
    is_over = event.reverted_step >= 0
    headline = event.headline
    if is_over:
        headline += f", and was back by half at step {event.reverted_step:,}"
    causes = [*event.causes, *([redacted(event.reason)] if event.reason else []), *_joined(events)]
    return Verdict(
        state="broken" if event.severity == "act" and not is_over else "look",
        badge=f"{number:,} event{'' if number == 1 else 's'}",
        headline=headline,
        since=event.onset_step,
        onset_low=event.onset_low,
        onset_high=event.onset_high,
        where=tuple(map(printable, event.layers)),
        cause="; ".join(causes),
        advice=event.advice,
        confidence=_confidence(event),
        event=events.index(event) + 1,
    )


def _joined(events: Sequence[Event]) -> list[str]:
    """What two changes that seem to contradict each other say together."""
    going = {
        (event.series.partition("/")[0], event.direction)
        for event in events
        if event.reverted_step < 0
    }
    if going >= {("near_zero", "up"), ("essential_sparsity", "down")}:
        return ["many weights become tiny, yet the model needs more of the rest"]
    return []


def _confidence(event: Event) -> str:
    if not event.is_of_series:
        return _PROVEN
    also = len(event.related)
    return ", ".join(filter(None, (event.in_noise, f"seen in {also + 1} series" if also else "")))


def _of_watch(found: Verdict, standing: Standing) -> Verdict:
    """A verdict that the watch's own trouble comes before, if there is any."""
    if not standing.trouble:
        return found
    why = standing.sentences[0].rstrip(".")
    badges = {
        "broken": "not watching",
        "look": "ended early" if standing.is_end else "not measured",
    }
    happened = found.headline if found.event or found.confidence else ""  # of nothing seen
    return replace(
        found,
        state=standing.state,
        badge=badges[standing.state],
        headline=_with_trouble(standing, happened),
        cause=why,
        confidence="",
        advice=standing.advice,
    )


def _quiet(records: Sequence[Record]) -> Verdict:
    """The verdict where nothing is known to be wrong, and the watch is well."""
    last = records[-1] if records else None
    if last is None:
        advice = "The first snapshot comes when `every` says so; no action needed until then."
        return Verdict(
            state="too early to tell", badge="no snapshot yet",
            headline="Nothing has been measured so far", advice=advice,
        )  # fmt: skip
    number = sum(record.valid for record in records)
    seen = f"{len(records):,} snapshot{'' if len(records) == 1 else 's'}"
    happened = f"No alarm in {seen}"
    if not last.valid:
        reason = redacted(last.reason.rstrip(".")) or "no reason given"
        return Verdict(
            state="look", badge="snapshot failed", headline=happened, since=last.step,
            cause=f"the last snapshot, of step {last.step:,}, failed: {reason}", advice=_MEND,
            confidence=_measured(records),
        )  # fmt: skip
    if number < MIN_SNAPSHOTS:
        headline = f"{number:,} of about {MIN_SNAPSHOTS} snapshots so far"
        return Verdict(
            state="too early to tell", badge="too early to tell", headline=headline,
            advice="No action needed: a change can be told from more snapshots.",
            confidence=_measured(records),
        )  # fmt: skip
    return Verdict(
        state="healthy", badge="healthy", headline=happened,
        advice="No action needed.", confidence=_measured(records),
    )  # fmt: skip


def _measured(records: Sequence[Record]) -> str:
    """How much silence rests on."""
    numbers = {
        "valid snapshot": sum(record.valid for record in records),
        "evaluation": sum(record.curve is not None for record in records),
    }
    return ", ".join(f"{n:,} {what}{'' if n == 1 else 's'}" for what, n in numbers.items() if n)


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
    """The event that matters most: what is wrong with the training, then near-zero weights."""
    lasting = [event for event in events if event.reverted_step < 0] or events
    wrong = [event for event in lasting if event.severity == "act"]
    odd = [event for event in lasting if not event.is_of_series]
    small = [e for e in lasting if e.series.startswith("near_zero/") and e.direction == "up"]
    return [*wrong, *odd, *small, *lasting][0]


# ------------------------------------------------------------------ what nobody watches


def _not_watched(records: Sequence[Record]) -> list[str]:
    """What the numbers do not cover, and why, a few words each."""
    if not records:
        return []
    last, found = records[-1], []
    if not last.provenance.proxy_hash:
        found.append("essential sparsity and reliance: no proxy was given")
    if last.why_no_clock:
        found.append(f"weight decay as a cause: {redacted(last.why_no_clock)}")
    if last.vital is not None and last.vital.reason:
        found.append(f"parameters out of scope: {redacted(last.vital.reason)}")
    if 0.0 < last.trained < 1.0:
        found.append(f"{1.0 - last.trained:.1%} of the weights in scope: no step reaches them")
    return found
