"""Vital signs judged: what the facts of every tensor prove, and nothing that is merely likely.

Each rule asks for evidence that no healthy training gives. A tensor that stands still is no fault
by itself: it may be frozen, an expert that no token was sent to, a table of tokens that were not
seen, a temperature at its bound. It is one if the optimizer is given a gradient for it and it does
not move, or if nobody is to step on it, or if the gradient ends at it on the way through the model.
docs/alarms.md says what to do.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import takewhile

import numpy as np

from sparsitywatch.records import Event, Finding, Record, TensorFacts

__all__ = ["alarms", "judged", "with_earlier"]

#: Names that a finding holds, at most.
_MAX_NAMES = 100
#: A learning rate below this share of the highest one is as good as none.
_NO_RATE = 0.01
#: A tensor of fewer weights may stand at a bound that it is held to, such as a temperature.
_FEW = 8
#: Below this share of an ordinary gradient nobody misses what does not come of it.
_NEGLIGIBLE = 1e-3
#: Share of a tensor's weights that makes it one which stands still, or loses its updates.
_MOST = 0.5
#: A learning rate that rises by more than this in half an interval has hardly begun to.
_RISES = 1.1
#: Updates that are lost, in the model, before anything is said of them; and the share of what would
#: have moved if none were that may have moved all the same.
_MIN_LOST, _MAX_MOVED = 8.0, 0.2
#: Intervals and steps without a gradient before anything is said of it: at first there may be
#: none, and some trainings leave out layers at random.
_PATIENCE, _PATIENT_STEPS = 2, 8
#: Weights without a gradient that stand still where decay must move them.
_MIN_NOT_DECAYED = 16
#: Weights that moved away and came back to the bit.
_MIN_RETURNED = 32
#: A tensor blows up if in one interval it changes by this share of its size, so many times more
#: than ever, of at least so many intervals, and so many times more than its peers have come to do;
#: and so many times farther than any tensor went. One large gradient after small ones takes Adam
#: 3.2 learning rates far in a step.
_FAR, _MORE_THAN_EVER, _MIN_PAST, _MORE_THAN_PEERS, _FARTHER = 0.5, 10.0, 3, 5.0, 4.0
#: Parts of names of what is used for some inputs only.
_FOR_SOME = re.compile(r"expert|moe|head|branch|adapter|task|classifier|domain|lang", re.IGNORECASE)
#: An event of a kind that has been told is told again after so many snapshots without it.
_GONE_FOR = 3


def judged(facts: Sequence[TensorFacts], since_step: int) -> tuple[Finding, ...]:
    """What is wrong, for sure.

    Args:
        facts: of every parameter, in the order of the model.
        since_step: of the snapshot before; -1 if there was none.

    Returns:
        At most one finding of each kind.
    """
    rules: tuple[tuple[str, Callable[[Sequence[TensorFacts]], _Found]], ...] = (
        ("untrained", _untrained),
        ("rounding", _rounding),
        ("decay", _decay),
        ("not_finite", _not_finite),
        ("returned", _returned),
        ("blew_up", _blew_up),
    )
    findings = []
    for kind, rule in rules:
        found = rule(facts)
        if found:
            names = [one.name for one, _ in found]
            reasons = "; ".join(dict.fromkeys(why for _, why in found))
            findings.append(
                Finding(
                    kind=kind,
                    num=len(names),
                    tensors=tuple(names[:_MAX_NAMES]),
                    reason=reasons,
                    since_step=since_step,
                )
            )
    return tuple(findings)


#: Tensors, most first, each with why.
_Found = list[tuple[TensorFacts, str]]


def _largest_first(found: Iterable[tuple[TensorFacts, str]]) -> _Found:
    return sorted(found, key=lambda pair: -pair[0].size)


def _is_stepped_on(one: TensorFacts) -> bool:
    """Whether the optimizer takes steps for it that count, of a rate that is not near its end."""
    return one.trained_by in ("own", "master") and one.lr > 0.0 and one.lr_share >= _NO_RATE


# ------------------------------------------------------------------ untrained

NO_OPTIMIZER = "they have gradients, and no optimizer steps on them"
NOT_STEPPED = "they have gradients and are in the optimizer, and no bit of them moves"
CUT_OFF = "they are in the optimizer, and no gradient reaches them"


def _untrained(facts: Sequence[TensorFacts]) -> _Found:
    found = {one.name: (one, NO_OPTIMIZER) for one in facts if _is_left_out(one)}
    is_anything_moving = any(_is_stepped_on(one) and not one.is_still for one in facts)
    if is_anything_moving:
        found |= {one.name: (one, NOT_STEPPED) for one in facts if _is_passed_over(one)}
        found |= {one.name: (one, CUT_OFF) for one in _cut_off(facts)}
    return _largest_first(found.values())


def _is_left_out(one: TensorFacts) -> bool:
    return (
        one.trained_by == "none"
        and one.is_still
        and one.gradient == "some"
        and not one.gradient_ratio < _NEGLIGIBLE
    )


def _is_passed_over(one: TensorFacts) -> bool:
    """A gradient that counts, an update that could be stored, and not one bit that moves."""
    if not _is_stepped_on(one) or not one.is_still or one.gradient != "some" or one.num < _FEW:
        return False
    if one.num_could_round >= _MOST * one.num_gradients:
        return False
    least = _NEGLIGIBLE
    if one.has_moved:  # its gradient may have ended with what there was to learn
        if one.still_for < _PATIENCE:
            return False
        least = 0.1
    return one.gradient_ratio >= least


@lru_cache(maxsize=1 << 13)  # the same names at every snapshot
def _is_for_some(name: str) -> bool:
    return _FOR_SOME.search(name) is not None


def _is_dead(one: TensorFacts) -> bool:
    return one.dead_for >= _PATIENCE and one.dead_steps >= _PATIENT_STEPS


def _cut_off(facts: Sequence[TensorFacts]) -> list[TensorFacts]:
    """Tensors that a gradient does not reach on its way through the model.

    One that is not used for these inputs looks the same. So it has to be most of the model; or the
    first part of it, in the middle of a list of layers; or whole layers of such a list.
    """
    if not any(map(_is_dead, facts)):
        return []
    trained = [one for one in facts if _is_stepped_on(one) and not _is_for_some(one.name)]
    dead = {one.name: one for one in trained if _is_dead(one) and not one.has_moved}
    if not dead:
        return []
    if (
        sum(one.size for one in dead.values()) >= _MOST * sum(one.size for one in trained)
        and len(dead) >= 0.25 * len(trained)
        and len(dead) >= 3
    ):
        return list(dead.values())
    first = [one.name for one in takewhile(lambda one: one.name in dead, trained)]
    layers = _layers(trained)
    living = {_Place.of(one.name).list for one in trained if one.name not in dead} - {None}
    found = set()
    if any(_Place.of(name).list in living for name in first):
        found.update(first)
    for members in layers.values():
        cut = [names for names in members if dead.keys() >= set(names)]
        if len(cut) < len(members):
            found.update(name for names in cut for name in names)
    return [one for name, one in dead.items() if name in found]


class _Place(tuple[str | None, str, str]):
    """Where a tensor is: in which outermost list, which member of it, and the rest of its name."""

    __slots__ = ()

    @classmethod
    def of(cls, name: str) -> _Place:
        parts = name.split(".")
        for i, part in enumerate(parts):
            if part.isdecimal():
                return cls((".".join(parts[:i]), part, ".".join(parts[i + 1 :])))
        return cls((None, "", name))

    @property
    def list(self) -> str | None:
        return self[0]


def _layers(trained: Sequence[TensorFacts]) -> dict[str, list[list[str]]]:
    """The tensors of each member of each list of layers: alike, and of several parts each."""
    members: dict[str, dict[str, dict[str, TensorFacts]]] = {}
    for one in trained:
        of_list, member, rest = _Place.of(one.name)
        if of_list is not None:
            members.setdefault(of_list, {}).setdefault(member, {})[rest] = one
    found = {}
    for of_list, by_member in members.items():
        kinds = {frozenset(tensors) for tensors in by_member.values()}
        first = next(iter(by_member.values()))
        has_vector = any(one.num_dims == 1 and n.endswith("weight") for n, one in first.items())
        if len(kinds) == 1 and len(by_member) > 1 and len(first) >= 4 and has_vector:
            found[of_list] = [[one.name for one in t.values()] for t in by_member.values()]
    return found


# ------------------------------------------------------------------ rounding, decay


def _rounding(facts: Sequence[TensorFacts]) -> _Found:
    """Updates too small to change the numbers that they are added to, again and again."""
    lossy = [one for one in facts if _is_losing(one)]
    # a rounding that is random, or a copy that is not seen, would have moved some of them
    expected = sum(one.num_lossy_expected * max(one.still_for, 1) for one in lossy)
    if expected < _MIN_LOST or sum(one.num_lossy_moved for one in lossy) > _MAX_MOVED * expected:
        return []
    still = sum(one.num_still * one.size / one.num for one in lossy)
    share = still / sum(one.size for one in lossy)
    why = (
        f"{share:.0%} of their weights have the bits of the snapshot before: updates are too small"
    )
    return [(one, why) for one in sorted(lossy, key=lambda x: (-x.num_still / x.num, -x.size))]


def _is_losing(one: TensorFacts) -> bool:
    if not _is_stepped_on(one) or one.trained_by != "own" or one.lr_rise > _RISES:
        return False
    if one.gradient != "some" or one.gradient_ratio < _NEGLIGIBLE:
        return False
    is_lossy = one.num_lossy >= max(_MOST * one.num_gradients, 1)
    return is_lossy and one.num_still >= _MOST * one.num


NOT_APPLIED = "weights without a gradient stand still, and weight decay ought to move them"
DECAYS_ALONE = "they get no gradient, and weight decay shrinks them"


def _decay(facts: Sequence[TensorFacts]) -> _Found:
    groups = [one for one in facts if _is_stepped_on(one) and one.num_to_decay]
    groups = [one for one in groups if not one.is_still]  # which is another matter
    to_decay = sum(one.num_to_decay for one in groups)
    stand_still = sum(one.num_not_decayed for one in groups)
    found: _Found = []
    if stand_still >= max(_MIN_NOT_DECAYED, _MOST * to_decay):
        found += [(one, NOT_APPLIED) for one in groups if one.num_not_decayed]
    found += [
        (one, DECAYS_ALONE)
        for one in facts
        if _is_stepped_on(one)
        and one.gradient == "zero"
        and one.shrinks_for >= _PATIENCE
        and _is_dead(one)
        and not _is_for_some(one.name)
    ]
    return _largest_first(found)


# ------------------------------------------------------------------ what broke, what came back


def _not_finite(facts: Sequence[TensorFacts]) -> _Found:
    broken = [one for one in facts if one.num_not_finite]
    broken.sort(key=lambda one: -one.num_not_finite / one.num)
    return [(one, "weights are NaN or infinite") for one in broken]


def _returned(facts: Sequence[TensorFacts]) -> _Found:
    back = [one for one in facts if one.back_at >= 0]
    # a few weights may swing between neighbouring numbers by themselves
    steps = {one.back_at for one in back if one.num - one.num_still >= _MIN_RETURNED}
    return _largest_first(
        (one, f"they have the bits of step {one.back_at} again")
        for one in back
        if one.back_at in steps and one.num_still < _MOST * one.num
    )


def _blew_up(facts: Sequence[TensorFacts]) -> _Found:
    """Tensors that went farther than the optimizer has ever taken any.

    By itself a tensor's own past says little: of one that began at zero the size is small, and what
    gets rounding's noise for a gradient, such as the bias of keys, goes by next to nothing at
    first. Adam makes ordinary steps of any noise, and no larger ones.
    """
    most = {one.name: max(one.past_updates) for one in facts if _has_past(one)}
    if len(most) < 4:
        return []
    known = [one for one in facts if one.name in most]
    growth = {one.name: one.update / most[one.name] for one in known}
    usual = max(float(np.median(list(growth.values()))), 1.0)
    far = _FARTHER * usual * max(most.values())
    found = [
        one
        for one in known
        if one.update >= max(_FAR * one.rms, far)
        and growth[one.name] >= max(_MORE_THAN_EVER, _MORE_THAN_PEERS * usual)
    ]
    if not found:
        return []
    found.sort(key=lambda one: -growth[one.name])
    first = found[0]
    why = (
        f"{first.update / first.rms:.3g} of its size in one interval, "
        f"{growth[first.name]:.3g} times its most ever"
    )
    return [(one, why) for one in found]


def _has_past(one: TensorFacts) -> bool:
    """Whether it has moved in enough intervals to say what is much for it."""
    past = one.past_updates
    if len(past) < _MIN_PAST or one.num < _FEW:
        return False
    return min(past) > 0.0 and one.rms > 0.0 and math.isfinite(one.update)


# ------------------------------------------------------------------ records, events


def with_earlier(record: Record, earlier: Sequence[Record]) -> Record:
    """A record whose parameters were not compared, with what the records before prove.

    Of a replay and of ranks that hold parts that is since when weights are not finite, and whether
    all in scope have the bits of an earlier snapshot again.

    Args:
        record: knows whether its weights were seen before.
        earlier: by rising step.
    """
    vital = record.vital
    if vital is None or not vital.reason:
        return record
    before = next((r for r in reversed(earlier) if r.was_read), None)
    if before is None:
        return record
    findings = [replace(one, since_step=before.step) for one in vital.findings]
    first = record.same_weights_as
    if first is not None and before.fingerprint != record.fingerprint:
        names = [layer.name for layer in record.layers]
        findings.append(
            Finding(
                kind="returned",
                num=len(names),
                tensors=tuple(names[:_MAX_NAMES]),
                reason=f"all weights in scope have the bits of step {first} again",
                since_step=before.step,
            )
        )
    return replace(record, vital=replace(vital, findings=tuple(findings)))


def alarms(record: Record, earlier: Sequence[Record], told: Sequence[Event]) -> list[Event]:
    """The events of what a record found and the ones before it had not.

    Args:
        earlier: the records before, by rising step.
        told: the events so far.
    """
    if record.vital is None:
        return []
    recent = [r.vital for r in earlier[-_GONE_FOR:] if r.vital is not None]
    events = []
    for finding in record.vital.findings:
        before = [f.num for vital in recent for f in vital.findings if f.kind == finding.kind]
        known = [event.value for event in told if event.kind == finding.kind]
        if before and finding.num < 2 * (known[-1] if known else max(before)):
            continue
        events.append(
            Event(
                kind=finding.kind,
                series=f"vital/{finding.kind}",
                direction="",
                onset_step=record.step,
                onset_low=finding.since_step,
                detected_step=record.step,
                baseline=float(max(before, default=0)),
                value=float(finding.num),
                layers=finding.tensors,
                reason=finding.reason,
                before_step=finding.since_step,
            )
        )
    return events
