"""How a run stands, made once and shown everywhere: does its watch see, what happened, what to do.

A watch that sees nothing must not look like a quiet one: its trouble comes before all else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import NamedTuple

from sparsitywatch.analysis.detect.jumps import MIN_SNAPSHOTS
from sparsitywatch.processes import Process
from sparsitywatch.records import (
    SERIES_KINDS,
    VITAL_KINDS,
    Event,
    Record,
    RunInfo,
    WatchState,
    of_one_model,
)
from sparsitywatch.records.event import XRAY_KINDS, some_of
from sparsitywatch.redact import printable, redacted
from sparsitywatch.series import count, describe, numbered, percent

# ------------------------------------------------------------------ whether its watch sees

#: A watch writes a sign of life once a minute, at a step; after three minutes it is late.
_LATE_S = 180.0
#: Where steps take longer it is late after this many of them.
_LATE_STEPS = 5
#: Failed snapshots at the end of a log that make a watch blind.
_FEW_FAILURES = 3


class _Trouble(NamedTuple):
    """Why the silence of a watch means nothing."""

    state: str  # "look" or "broken"
    badge: str
    words: str
    sentence: str
    advice: str
    is_end: bool = False  # after which nothing was seen


def _watched(
    records: Sequence[Record], state: WatchState | None, now: float | None
) -> tuple[list[_Trouble], list[str]]:
    """What is wrong with the watch, the worst first, and sentences on how it is."""
    found, own = [_blind(records)], ""
    if state is not None:
        lost = _lost(state, now, max((r.cost.stall_s for r in records), default=0.0))
        found = [_ended(state), _unlogged(state), lost, *found, _not_measured(state, records)]
        own = state.describe() if lost is None else ""
    troubles = [trouble for trouble in found if trouble is not None]
    troubles.sort(key=lambda trouble: trouble.state != "broken")
    sentences = dict.fromkeys([*(trouble.sentence for trouble in troubles), own])
    return troubles, [sentence for sentence in sentences if sentence]


def up_to_date(state: WatchState | None, records: Sequence[Record]) -> WatchState | None:
    """The state with what the log knows better: it is not written anew with every record."""
    if state is None or not records or records[-1].step <= state.last_step:
        return state
    last, new = records[-1].step, [r for r in records if r.step > state.last_step]
    evaluated = [r.step for r in new if r.curve is not None]
    later = [r.cost.overhead for r in new if r.wall_time > state.wall_time]
    shares = [x for x in later if math.isfinite(x)]
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
        overhead=shares[-1] if shares else state.overhead,
    )


def _standing(
    records: Sequence[Record], info: RunInfo | None, state: WatchState | None, lost: str
) -> list[str]:
    """How the watch is, in a few words each; ``lost`` is why it is not on though it says so."""
    if state is not None:
        return state.in_short(lost)
    words = []
    if info is not None and info.replayed_from:
        by = "" if info.unit == "step" else f", numbered by {info.unit}s"
        words = [f"replayed from saved checkpoints{by}"]
    return words + [f"last snapshot at {last.place}" for last in records[-1:]]


#: A new process that watches the same training goes on in the same log.
_GOES_ON = "go on from your last checkpoint. A watch with the same `logdir` continues this log."


def _ended(state: WatchState) -> _Trouble | None:
    """A watch that switched itself off, or that an error of the training has ended."""
    if state.status == "off":
        words = f"the watch has been off since step {state.step:,}"
        advice = "Mend what the reason names, and attach the watch again: it continues this log."
        return _Trouble("broken", "not watching", words, state.describe(), advice, is_end=True)
    if state.status == "ended":
        words = state.how
        advice = f"If you did not stop it on purpose, mend the error and {_GOES_ON}"
        return _Trouble("look", "ended early", words, state.describe(), advice, is_end=True)
    return None


def _unlogged(state: WatchState) -> _Trouble | None:
    """A log that lacks what was measured, as on a full disk."""
    if state.unlogged_since < 0:
        return None
    words = f"the log lacks what was measured since step {state.unlogged_since:,}"
    goes_on = " The watch tries again, and writes what is lacking." * (state.status == "on")
    advice = f"Mend what the reason names.{goes_on}"
    return _Trouble("broken", "log is lost", words, state.describe(), advice)


def _not_measured(state: WatchState, records: Sequence[Record]) -> _Trouble | None:
    """A watch that cannot evaluate, or has come to its end without a snapshot or an evaluation."""
    if records and (why := records[-1].why_blind):
        words = "essential sparsity is not measured"
        sentence = f"No evaluation at {records[-1].place}: {why.rstrip('.')}."
        advice = "Mend what the reason names; the weights are watched all the same."
        return _Trouble("look", "not measured", words, sentence, advice)
    if state.status in ("on", "off") or (records and state.num_evaluated):
        return None
    words = "essential sparsity was never measured"
    advice = "Give the proxy fewer examples, or the watch a larger `max_overhead`."
    if not records:
        words = "no snapshot was taken"
        advice = "Choose a smaller `every`: the run ended before a snapshot was due."
        if state.num_due:  # then `every` was not why
            advice = "Choose a larger `max_overhead` (None: no limit): what was due was left out."
    return _Trouble("look", "not measured", words, state.describe(), advice)


def _lost(state: WatchState, now: float | None, longest_s: float) -> _Trouble | None:
    """A watch that was on at its last sign of life; ``longest_s`` is its longest snapshot."""
    if state.status != "on" or now is None:
        return None
    sign = f"The last sign of life is of step {state.step:,}, {moment(state.wall_time)}"
    silent_s, step_s = now - state.wall_time, state.step_s if math.isfinite(state.step_s) else 0.0
    is_gone = has_died(state)
    if not (is_gone or silent_s > max(_LATE_S, _LATE_STEPS * step_s) + 2.0 * longest_s):
        return None
    words = f"the watch was last heard of at step {state.step:,}"
    sentence = (
        f"No step was seen for {duration(silent_s)}: the training stands still, has ended without "
        f"closing its watch, or steps with an optimizer that is not watched. {sign}."
    )
    advice = "Look whether the training still makes steps."
    if is_gone:
        # at its very end, or long before: nothing of it tells
        words = f"the training ended without closing its watch, after step {state.step:,}"
        sentence = f"The process {state.pid} of the training is gone, and wrote of no end. {sign}."
        advice = "If it had not come to its end, look for who or what ended it (memory, a time "
        advice += f"limit, os._exit), and {_GOES_ON}"
    elif state.next_due_step >= 0:
        sentence += f" The snapshot of step {state.next_due_step:,} has not come."
    return _Trouble("broken", "not watching", words, sentence, advice, is_end=True)


def moment(wall_time: float) -> str:
    """A time in words, also where a clock was wrong."""
    try:
        found = datetime.fromtimestamp(wall_time, timezone.utc)
    except (OverflowError, OSError, ValueError):  # a clock was wrong
        return "at a time that is not known"
    return f"{found:%Y-%m-%d %H:%M:%S} UTC"


def has_died(state: WatchState) -> bool:
    """Whether the process that watched is known to be gone."""
    return Process(*(getattr(state, name) for name in Process._fields)).has_died


_MEND = "Mend what the reason names; the training itself was not touched."


def _blind(records: Sequence[Record]) -> _Trouble | None:
    """Records that say nothing, though they were made."""
    last_valid = max((i for i, record in enumerate(records) if record.valid), default=-1)
    failed = len(records) - 1 - last_valid
    attempts = [r for r in records if r.provenance.proxy_hash and not r.not_evaluated]
    if failed and (failed == len(records) or failed >= _FEW_FAILURES):
        which = "all snapshots" if failed == len(records) else f"the last {failed:,} snapshots"
        words, reason = f"{which} failed", records[-1].reason
        sentence = f"Blind: {which} failed"
    elif attempts and all(record.curve is None for record in attempts):
        words, reason = "no evaluation has succeeded", attempts[-1].reason or "no reason given"
        sentence = f"Blind for essential sparsity: none of {len(attempts):,} evaluations succeeded"
    else:
        return None
    sentence += f", the last because of: {reason.rstrip('.')}."
    return _Trouble("broken", "not watching", words, sentence, _MEND)


def duration(seconds: float) -> str:
    """A time in words.

    >>> duration(200.0), duration(7300.0), duration(200_000.0)
    ('3 minutes', '2 hours', '2 days')
    """
    sizes = {"day": 86400.0, "hour": 3600.0, "minute": 60.0}
    name = next((name for name, size in sizes.items() if seconds >= 1.5 * size), "minute")
    return count(round(seconds / sizes[name]), name)


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
    """What somebody must know of a run within a minute; every surface shows this."""

    state: str  # "healthy", "too early to tell", "look", or "broken"
    badge: str  # the same in two or three words
    headline: str  # what happened, a sentence
    since: int = -1  # optimizer step since which it is so; -1 if there is none
    onset_low: int = -1  # steps between which it began; -1 if it did not begin at one
    onset_high: int = -1
    where: tuple[str, ...] = ()  # tensors, most first; empty if it is about none, or all
    cause: str = ""  # why, as far as that is known; empty if it is not
    advice: str  # what to do first, a sentence or two
    confidence: str = ""  # how sure that is, in a few words
    not_watched: tuple[str, ...] = ()  # what nobody watches here, and why, a few words each
    trouble: str = ""  # why the watch's silence means nothing, in a few words; empty if it is well
    watch: tuple[str, ...] = ()  # how the watch itself is, in sentences, the most important first
    standing: tuple[str, ...] = ()  # the same in a few words each
    training: tuple[str, ...] = ()  # what trains, how far it moves, and what does not, likewise
    numbers: tuple[str, ...] = ()  # the latest numbers, and how many events there are, likewise
    last_step: int = -1  # of the last snapshot; -1 if there is none
    heard: float = -1.0  # last sign of life, seconds since the epoch; -1 if there is none
    num_events: int = 0
    event: int = 0  # number of the event that the headline is about, counted from 1; 0 if none

    @property
    def exit_code(self) -> int:
        """Of ``sparsitywatch status``: 0, 1 or 2."""
        return STATES[self.state]

    @property
    def urgency(self) -> tuple[int, float]:
        """Sorts what to look at first last: by the state, and of equals by the latest sign."""
        return list(STATES).index(self.state), self.heard

    def describe(self) -> str:
        """All of it, a line each, for a terminal or a text."""
        lines = [
            f"{self.state}: {self.headline}",
            f"Why: {self.cause}" if self.cause else "",
            f"Where: {some_of(self.where, len(self.where))}" if self.where else "",
            f"How sure: {self.confidence}" if self.confidence else "",
            f"What to do: {self.advice}",
            f"Not watched: {'; '.join(self.not_watched)}" if self.not_watched else "",
            f"Training: {'; '.join(self.training)}" if self.training else "",
            f"Now: {'; '.join(self.numbers)}" if self.numbers else "",
            "; ".join(self.standing),
        ]
        return "\n".join(line for line in lines if line)


def verdict(
    records: Sequence[Record],
    events: Sequence[Event],
    info: RunInfo | None = None,
    *,
    now: float | None = None,
) -> Verdict:
    """The verdict on a run, also on one without a snapshot yet; ``now`` as of ``Run``."""
    state = None if info is None else up_to_date(info.state, records)
    troubles, sentences = _watched(records, state, now)
    own = of_one_model(records)
    of_training = _of_training(own, events)
    found = of_training or _quiet(own)
    if troubles:
        trouble = troubles[0]  # comes first, and then what was seen, if anything was
        headline = trouble.words[0].upper() + trouble.words[1:]
        if found.event or found.confidence:
            before = " before that:" if trouble.is_end else ""
            headline += f";{before} {found.headline[0].lower()}{found.headline[1:]}"
        found = replace(found, headline=headline, trouble=trouble.words)
        is_worse = trouble.state == "broken" and found.state != "broken"
        if of_training is None or is_worse:
            found = replace(
                found, state=trouble.state, badge=trouble.badge, advice=trouble.advice,
                cause=sentences[0].rstrip("."), confidence="",
            )  # fmt: skip
    # what is said of tensors names them, and they may be any of the model's
    is_of_scope = not found.event or events[found.event - 1].is_of_series
    if own and is_of_scope and (which := own[-1].scope.which):
        found = replace(found, headline=f"{found.headline} ({which})")
    is_lost = state is not None and state.status == "on"
    lost = next((one.words for one in troubles if is_lost and one.is_end), "")
    times = [one.wall_time for one in records[-1:]] + ([] if state is None else [state.wall_time])
    return replace(
        found,
        not_watched=tuple(_not_watched(own)),
        watch=tuple(sentences),
        standing=tuple(_standing(records, info, state, lost)),
        training=tuple(_training(own)),
        numbers=tuple(_numbers(own, events) if records else _at_attach(info)),
        last_step=records[-1].step if records else -1,
        heard=max(times, default=-1.0),
        num_events=len(events),
    )


def _training(records: Sequence[Record]) -> list[str]:
    """What does not train, how far the rest moves, and which part most and least."""
    found: list[str] = []
    last = records[-1] if records else None
    if last is not None and last.vital is not None:
        named = [(count(f.num, "tensor"), f) for f in last.vital.findings]
        found += [
            f"{n} {VITAL_KINDS.get(f.kind, f.kind)}: {some_of(f.tensors, f.num)}" for n, f in named
        ]
    for record in reversed(records):
        moved = record.movement
        if moved is not None and math.isfinite(moved.update_to_weight):
            steps = count(record.step - moved.since_step, record.provenance.unit)
            words = f"update to weight {percent(moved.update_to_weight)} in {steps}"
            ends = [f"{printable(k)} {percent(x)}" for k, x in moved.by_block.items()]
            words += f", least {ends[0]}, most {ends[-1]}" if len(ends) > 1 else ""
            found.append(f"{words}{_where(record, records)}")
            break
    return found


def _numbers(records: Sequence[Record], events: Sequence[Event]) -> list[str]:
    """The latest of what matters most, in a few words each; older than the last snapshot: where."""
    found = []
    for record in reversed(records):
        share = next(iter(record.near_zero.values()), math.nan)
        if record.all_finite and math.isfinite(share):
            found.append(f"near zero {percent(share)}{_where(record, records)}")
            if record.dormant is not None and math.isfinite(record.dormant.fraction):
                found.append(f"dormant {percent(record.dormant.fraction)}{_where(record, records)}")
            break
    value, why, seen = essential_sparsity_of(records)
    if seen is not None:
        reason = f": {why}" if why else ""
        found.append(f"essential sparsity {value}{_where(seen, records)}{reason}")
    vital = records[-1].vital if records else None
    if vital is not None and vital.gradient is not None and (far := vital.gradient.describe()):
        found.append(far)
    return [*found, count(len(events), "event")]


def _at_attach(info: RunInfo | None) -> list[str]:
    """What is known before the first snapshot: how small the weights were when the watch began."""
    if info is None or info.began is None or not info.began.near_zero:
        return []
    own = next(iter(info.began.near_zero.values()))
    sizes = {entry.name: entry.num_weights for entry in info.ledger if entry.name in own}
    share = sum(own[name] * size for name, size in sizes.items()) / max(sum(sizes.values()), 1)
    return [f"near zero {percent(share)} at step {info.began.step:,}, as the watch began"]


def _where(record: Record, records: Sequence[Record]) -> str:
    return "" if record is records[-1] else f" at {record.place}"


def essential_sparsity_of(records: Sequence[Record]) -> tuple[str, str, Record | None]:
    """The latest essential sparsity with its interval, why there is none, and of which snapshot."""
    for record in reversed(records):
        estimate = record.essential_sparsity
        if estimate is not None:
            why = "" if estimate.informative else estimate.reason.removeprefix("cannot say: ")
            return estimate.describe(percent), redacted(why), record
    if records and records[-1].provenance.proxy_hash:
        return "not known", "no evaluation has succeeded", records[-1]
    return "", "", None


def _of_training(records: Sequence[Record], events: Sequence[Event]) -> Verdict | None:
    """What is wrong with the training, or worth a look; None if nothing is."""
    last = records[-1] if records else None
    if last is not None and last.num_not_finite:
        return _not_finite(records, events)
    alarms = [event for event in events if event.severity != "note"]
    # the share of the weights that steps reach, in either of the last two snapshots; and at most
    known = [record.trained for record in records if math.isfinite(record.trained)]
    share, most = max(known[-2:], default=math.nan), max(known, default=math.nan)
    if last is not None and last.trained == 0.0:
        state, badge = "broken", "not trained"
        headline = f"No optimizer trains the weights in scope at {last.place}"
    elif alarms:
        return _of_event(main_event(alarms, records), events)
    elif last is not None and share < most:
        state, badge = "look", "trained in part"
        now, before = percent(share), percent(most)
        headline = f"Steps reach {now} of the weights in scope, and reached {before} before"
    else:
        return None
    return Verdict(
        state=state, badge=badge, headline=headline, advice=_TRAIN, since=records[-1].step,
        confidence=_PROVEN,
    )  # fmt: skip


_PROVEN = "proven, by what the optimizer and the weights show"


def _not_finite(records: Sequence[Record], events: Sequence[Event]) -> Verdict:
    """Of weights that are NaN or infinite now: since when, and what to go back to."""
    last = records[-1]
    good = max((r.step for r in records if r.was_read and not r.num_not_finite), default=-1)
    since = next(r.step for r in records if r.step > good and r.num_not_finite)
    signs = [event for event in events if event.kind == "not_finite" and event.reverted_step < 0]
    unit, back, cause = last.provenance.unit, "before that", ""
    if good >= 0:
        back = f"of {numbered(unit, good)} or before"
        cause = f"it began between {numbered(unit, good, since)}"
    advice = f"Stop the run and go on from a checkpoint {back}."
    return Verdict(
        state="broken",
        badge="NaN or infinite weights",
        headline=f"{last.num_not_finite:,} weights are NaN or infinite at {last.place}",
        since=since,
        onset_low=good,
        onset_high=since,
        where=signs[-1].layers if signs else (),
        cause=cause,
        advice=signs[-1].advice if signs else advice,
        confidence=_PROVEN,
        event=events.index(signs[-1]) + 1 if signs else 0,
    )


def _of_event(event: Event, events: Sequence[Event]) -> Verdict:
    is_over = event.reverted_step >= 0
    seen_in = f"seen in {len(event.related) + 1} series" if event.related else ""
    confidence = ", ".join(filter(None, (event.in_noise, seen_in)))
    causes = [*event.causes, *([redacted(event.reason)] if event.reason else [])]
    lasting = [one for one in events if one.reverted_step < 0]
    going = {(one.series.partition("/")[0], one.direction) for one in lasting}
    if going >= {("near_zero", "up"), ("essential_sparsity", "down")}:  # which is no contradiction
        causes.append("many weights become tiny, yet the model needs more of the rest")
    return Verdict(
        state="broken" if event.severity == "act" and not is_over else "look",
        badge=count(len(events), "event"),
        headline=event.headline + (f", and was {event.end}" if is_over else ""),
        since=event.onset_step,
        onset_low=event.onset_low,
        onset_high=event.onset_high,
        where=tuple(map(printable, event.layers)),
        cause="; ".join(causes),
        advice=event.advice,
        confidence=confidence if event.is_of_series or event.kind == "unlike" else _PROVEN,
        event=events.index(event) + 1,
    )


def _quiet(records: Sequence[Record]) -> Verdict:
    """The verdict where nothing is known to be wrong, and the watch is well."""
    if not records:
        advice = "The first snapshot comes when `every` says so; no action needed until then."
        return Verdict(
            state="too early to tell", badge="no snapshot yet",
            headline="Nothing has been measured so far", advice=advice,
        )  # fmt: skip
    last, number = records[-1], sum(record.valid for record in records)
    rests_on = {"valid snapshot": number, "evaluation": sum(r.curve is not None for r in records)}
    found = Verdict(
        state="healthy", badge="healthy", advice="No action needed.",
        headline=f"No alarm in {count(len(records), 'snapshot')}",
        confidence=", ".join(count(n, what) for what, n in rests_on.items() if n),
    )  # fmt: skip
    if not last.valid:
        reason = redacted(last.reason.rstrip(".")) or "no reason given"
        why = f"the last snapshot, of {last.place}, failed: {reason}"
        return replace(
            found, state="look", badge="snapshot failed", since=last.step, cause=why, advice=_MEND
        )
    if number < MIN_SNAPSHOTS:
        return replace(
            found, state="too early to tell", badge="too early to tell",
            headline=f"{number:,} of about {MIN_SNAPSHOTS} snapshots so far",
            advice="No action needed: a change can be told from more snapshots.",
        )  # fmt: skip
    return found


def main_event(events: Sequence[Event], records: Sequence[Record] = ()) -> Event:
    """The event that explains the others: the gravest, no symptom, the largest; then what lasts."""

    def weight(event: Event) -> tuple[int, bool, float, bool]:
        lasts = event.reverted_step < 0
        is_rise = event.series.startswith("near_zero/") and event.direction == "up"
        is_cause = is_rise or event.series == "value/dense"
        is_cause |= lasts and not (event.is_of_series or event.kind in XRAY_KINDS)
        return min(event.gravity, 1 + lasts), is_cause, _share_of(event, records), lasts

    return max(events, key=weight)


def _share_of(event: Event, records: Sequence[Record]) -> float:
    """How much of the watched weights an event is of, or of the number that changed, by now."""
    is_over = event.reverted_step >= 0  # then it is what is left of it
    is_whole = not event.is_of_series or event.series == "value/dense"  # nothing of it is left
    if event.kind in SERIES_KINDS or (is_over and is_whole):
        return float(not is_over)
    if not event.is_of_series:
        total = max((record.scope.num_tensors for record in records), default=0)
        return min(event.value / total, 1.0) if total and math.isfinite(event.value) else 0.0
    top = event.value if is_over or math.isnan(event.peak) else event.peak
    whole = 1.0 if describe(event.series).unit == "fraction" else max(abs(top), abs(event.baseline))
    return abs(top - event.baseline) / whole if whole > 0.0 and math.isfinite(top) else 0.0


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
        found.append(f"{percent(1.0 - last.trained)} of the weights in scope: no step reaches them")
    if last.scope.which:
        found.append(f"what is frozen or in no optimizer: it is about {last.scope.describe()}")
    return found
