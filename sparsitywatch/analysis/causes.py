"""One cause is one event: what merely follows from it is told beneath it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sparsitywatch.records import LEVEL_KINDS, VITAL_KINDS, Event
from sparsitywatch.records.event import XRAY_KINDS, series_of
from sparsitywatch.records.run import block_of

#: Kinds that say no more of tensors than that they are not trained: one fault shows in many.
_STILL = frozenset({
    "untrained", "rounding", "decay", "no_gradient", "idle", "no_rate", "slow", "unreached",
    "dead_units",
})  # fmt: skip
#: Of these, those that are told after many steps, and have been so since the first one told.
_SINCE_ATTACH = frozenset({"no_gradient", "idle", "no_rate"})
#: What was done to weights: anything may follow from it at once.
_DONE = frozenset({"overwritten", "blew_up"})


def of_one_cause(first: Event, other: Event) -> Event | None:
    """The one event that two are, if one of them follows from the other; else None.

    It is told as the graver one, of equals as what lasts, then as the ``first`` seen; a change of
    a series is never what others are told beneath.
    """
    lead, also = (other, first) if _rank(other) > _rank(first) else (first, other)
    if not (_is_fault(lead) and lead.layers and also.layers) or not _follows(also, lead):
        return None
    known = dict.fromkeys((*lead.consequences, also.id, *also.consequences))
    once = {series_of(name): name for name in reversed(known)}  # the first of each series
    once.pop(lead.series, None)
    whole = replace(lead, consequences=tuple(reversed(once.values())))
    if lead is first:
        return whole
    low, high = min(first.onset_low, lead.onset_low), min(first.onset_high, lead.onset_high)
    return replace(
        whole, id=first.id, onset_low=low, onset_high=high, detected_step=first.detected_step,
        onset_step=min(first.onset_step, lead.onset_step), settled_step=-1,
        before_step=min(first.before_step, lead.before_step), revised_step=lead.detected_step,
    )  # fmt: skip


def folded(events: Iterable[Event]) -> list[Event]:
    """The events of which none follows from another, in the order in which they were seen."""
    found: list[Event] = []
    for event in events:
        for place in reversed(range(len(found))):
            if (whole := of_one_cause(found[place], event)) is not None:
                found[place] = whole
                break
        else:
            found.append(event)
    return found


def _is_fault(event: Event) -> bool:
    return event.kind in _STILL or event.kind in _DONE


def _is_of_weights(event: Event) -> bool:
    return event.series.startswith(("near_zero/", "motion/"))


def _rank(event: Event) -> tuple[bool, int, bool, bool]:
    """What others are told beneath is higher: a fault, the graver, what lasts, what says why."""
    is_still = event.kind in _STILL
    return _is_fault(event), event.gravity, is_still, event.kind != "rounding"


def _began(event: Event) -> tuple[int, int]:
    """Between which steps it began."""
    low, high = event.onset_low, event.onset_high
    if event.kind in _SINCE_ATTACH:  # told only when it has lasted
        return low, low
    return (0 if _is_fault(event) and event.before_step < 0 else low), high


def _follows(also: Event, lead: Event) -> bool:
    """Whether an event may be a mere consequence of a fault."""
    (low, high), (first, last) = _began(also), _began(lead)
    touches, is_same = low <= last and high >= first, {*also.layers} <= {*lead.layers}
    blocks = {*map(block_of, lead.layers)}
    if not is_same and any(block_of(name) not in blocks for name in also.layers):
        return False
    if also.series in map(series_of, lead.consequences):
        return touches or also.direction != "up"  # it goes on, or is on its way back
    if lead.kind in _DONE:
        return touches and (_is_of_weights(also) or also.kind in (*VITAL_KINDS, *XRAY_KINDS))
    lasts = is_same and lead.reverted_step < 0 and high >= first
    if _is_of_weights(also):
        # weights without a gradient decay, and no more; those of dead units are the news
        decays = also.explained_by_decay is True and lead.kind in VITAL_KINDS
        is_dormant = also.series == "motion/dormant" and also.direction == "up"
        return is_same and ((is_dormant and touches) or (decays and lasts))
    return touches if also.kind in _DONE else also.kind in _STILL and (touches or lasts)


# ------------------------------------------------------------------ several series, one thing

NEAR_ZERO = "near_zero/"
#: Rules with a fixed threshold.
FIXED = ("initial_", "abs_")


def joined(first: Event, other: Event) -> Event:
    """The event that two detections are; near-zero rules may have moved against each other."""
    if (whole := of_one_cause(first, other)) is not None:
        return whole
    if other.kind in LEVEL_KINDS:  # of more tensors by now
        return replace(
            first, series=other.series, value=other.value, layers=other.layers,
            reason=other.reason, settled_step=other.detected_step,
        )  # fmt: skip
    if first.direction != other.direction and is_family(first, other):
        opposed = dict.fromkeys((*first.opposed, origin(other)))
        return if_opposed(replace(first, opposed=tuple(opposed)))
    if first.direction == other.direction and is_of_rule(other.series) > is_of_rule(first.series):
        # near-zero weights tell it better than what announced them, and from their own onset on
        names = (first.series, *first.related, origin(other), *other.related)
        first = replace(other, id=first.id, detected_step=first.detected_step)
    else:
        names = (*first.related, origin(other))
    related = tuple(name for name in dict.fromkeys(names) if name != first.series)
    return replace(first, related=related)


def if_opposed(event: Event) -> Event:
    """The event, with what rules that moved against each other say of it."""
    if not event.opposed:
        return event
    rules = [name.removeprefix(NEAR_ZERO) for name in (event.series, *event.opposed)]
    is_mixed = any(r.startswith(FIXED) for r in rules) and any(r.startswith("rms_") for r in rules)
    return replace(event, trend="", change="both" if is_mixed else event.change)


def is_family(first: Event, other: Event) -> bool:
    """Whether both are of near-zero rules, which all count the same weights."""
    return is_of_rule(first.series) and is_of_rule(other.series)


def origin(event: Event) -> str:
    """The series that saw it first, whatever its level is told in by now."""
    return series_of(event.id)


def is_of_rule(series: str) -> bool:
    """Whether it counts near-zero weights."""
    return series.startswith(NEAR_ZERO)
