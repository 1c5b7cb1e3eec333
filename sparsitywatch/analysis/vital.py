"""Vital signs judged: what the facts of every tensor prove, and nothing that is merely likely.

Each rule asks for evidence that no healthy training gives. A tensor that stands still is no fault
by itself: it may be frozen, an expert that no token was sent to, a table of tokens that were not
seen, a temperature at its bound. It is one if the optimizer is given a gradient for it and it does
not move, or if nobody is to step on it, or if the gradient ends at it on the way through the model.
docs/alarms.md says what to do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
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
#: Tensors that say what is usual, at least.
_MIN_KNOWN = 4
#: Parts of names of what is used for some inputs only.
_FOR_SOME = re.compile(r"expert|moe|head|branch|adapter|task|classifier|domain|lang", re.IGNORECASE)
#: An event of a kind that has been told is told again after so many snapshots without it.
_GONE_FOR = 3


def judged(facts: TensorFacts, since_step: int) -> tuple[Finding, ...]:
    """What is wrong, for sure.

    Args:
        facts: of every parameter, in the order of the model.
        since_step: of the snapshot before; -1 if there was none.

    Returns:
        At most one finding of each kind.
    """
    findings = []
    for kind, rule in _RULES.items():
        which, why = rule(facts)
        if len(which):
            findings.append(
                Finding(
                    kind=kind,
                    num=len(which),
                    tensors=tuple(facts.name[which[:_MAX_NAMES]].tolist()),
                    reason=why,
                    since_step=since_step,
                )
            )
    return tuple(findings)


#: Which tensors, most first, and why.
_Found = tuple[np.ndarray, str]
_NONE: _Found = (np.array([], int), "")


def _most_first(is_found: np.ndarray, *keys: np.ndarray) -> np.ndarray:
    """Those that are found, the largest by the first key first, and so on."""
    which = np.flatnonzero(is_found)
    order: np.ndarray = which[np.lexsort([-key[which] for key in reversed(keys)])]
    return order


def _is_stepped_on(facts: TensorFacts) -> np.ndarray:
    """Whether the optimizer takes steps for it that count, of a rate that is not near its end."""
    is_ours = (facts.trained_by == "own") | (facts.trained_by == "master")
    is_so: np.ndarray = is_ours & (facts.lr > 0.0) & (facts.lr_share >= _NO_RATE)
    return is_so


# ------------------------------------------------------------------ untrained

NO_OPTIMIZER = "they have gradients, and no optimizer steps on them"
NOT_STEPPED = "they have gradients and are in the optimizer, and no bit of them moves"
CUT_OFF = "they are in the optimizer, and no gradient reaches them"


def _untrained(facts: TensorFacts) -> _Found:
    stands = facts.is_still & (facts.gradient == "some")
    by_none = facts.trained_by == "none"
    found = {NO_OPTIMIZER: stands & by_none & ~(facts.gradient_ratio < _NEGLIGIBLE)}
    is_stepped_on = _is_stepped_on(facts)
    if (is_stepped_on & ~facts.is_still).any():
        found[NOT_STEPPED] = stands & is_stepped_on & _must_move(facts)
        found[CUT_OFF] = _is_cut_off(facts, is_stepped_on)
    is_found = np.logical_or.reduce(list(found.values()))
    if not is_found.any():
        return _NONE
    return _most_first(is_found, facts.size), "; ".join(w for w, f in found.items() if f.any())


def _must_move(facts: TensorFacts) -> np.ndarray:
    """A gradient that counts, and an update that could be stored."""
    # once it has moved, its gradient may have ended with what there was to learn
    least = np.where(facts.has_moved, 0.1, _NEGLIGIBLE)
    patient = ~facts.has_moved | (facts.still_for >= _PATIENCE)
    is_stored = facts.num_could_round < _MOST * facts.num_gradients
    must: np.ndarray = is_stored & patient & (facts.gradient_ratio >= least) & (facts.num >= _FEW)
    return must


@lru_cache(maxsize=1 << 13)  # the same names at every snapshot
def _is_for_some(name: str) -> bool:
    return _FOR_SOME.search(name) is not None


def _is_dead(facts: TensorFacts) -> np.ndarray:
    is_dead: np.ndarray = (facts.dead_for >= _PATIENCE) & (facts.dead_steps >= _PATIENT_STEPS)
    return is_dead


def _is_cut_off(facts: TensorFacts, is_stepped_on: np.ndarray) -> np.ndarray:
    """Tensors that a gradient does not reach on its way through the model.

    One that is not used for these inputs looks the same. So it has to be most of the model; or the
    first part of it, in the middle of a list of layers; or whole layers of such a list.
    """
    is_dead: np.ndarray = is_stepped_on & _is_dead(facts) & ~facts.has_moved
    if not is_dead.any():
        return is_dead
    trained = [i for i in np.flatnonzero(is_stepped_on).tolist() if not _is_for_some(facts.name[i])]
    dead = {facts.name[i]: facts.size[i] for i in trained if is_dead[i]}
    found: set[str] = set()
    if (
        sum(dead.values()) >= _MOST * facts.size[trained].sum()
        and len(dead) >= 0.25 * len(trained)
        and len(dead) >= 3
    ):
        found.update(dead)
    first = list(takewhile(dead.__contains__, facts.name[trained]))
    living = {_Place.of(name).list for name in facts.name[trained] if name not in dead} - {None}
    if any(_Place.of(name).list in living for name in first):
        found.update(first)
    for members in _layers(facts, trained).values():
        cut = [names for names in members if dead.keys() >= set(names)]
        if len(cut) < len(members):
            found.update(name for names in cut for name in names)
    return np.array([name in found for name in facts.name])


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


def _layers(facts: TensorFacts, trained: Sequence[int]) -> dict[str, list[list[str]]]:
    """The tensors of each member of each list of layers: alike, and of several parts each."""
    members: dict[str, dict[str, dict[str, int]]] = {}
    for i in trained:
        of_list, member, rest = _Place.of(facts.name[i])
        if of_list is not None:
            members.setdefault(of_list, {}).setdefault(member, {})[rest] = i
    found = {}
    for of_list, by_member in members.items():
        kinds = {frozenset(tensors) for tensors in by_member.values()}
        first = next(iter(by_member.values()))
        has_vector = any(facts.num_dims[i] == 1 and n.endswith("weight") for n, i in first.items())
        if len(kinds) == 1 and len(by_member) > 1 and len(first) >= 4 and has_vector:
            found[of_list] = [[facts.name[i] for i in t.values()] for t in by_member.values()]
    return found


# ------------------------------------------------------------------ rounding, decay


def _rounding(facts: TensorFacts) -> _Found:
    """Updates too small to change the numbers that they are added to, again and again."""
    is_losing = (
        _is_stepped_on(facts)
        & (facts.trained_by == "own")
        & (facts.lr_rise <= _RISES)
        & (facts.gradient == "some")
        & ~(facts.gradient_ratio < _NEGLIGIBLE)
        & (facts.num_lossy >= np.maximum(_MOST * facts.num_gradients, 1))
        & (facts.num_still >= _MOST * facts.num)
    )
    # a rounding that is random, or a copy that is not seen, would have moved some of them
    expected = facts.num_lossy_expected[is_losing].sum()
    if expected < _MIN_LOST or facts.num_lossy_moved[is_losing].sum() > _MAX_MOVED * expected:
        return _NONE
    still = facts.num_still / facts.num
    share = np.average(still[is_losing], weights=facts.size[is_losing])
    why = (
        f"{share:.0%} of their weights have the bits of the snapshot before: updates are too small"
    )
    return _most_first(is_losing, still, facts.size), why


NOT_APPLIED = "weights without a gradient stand still, and weight decay ought to move them"
DECAYS_ALONE = "they get no gradient, and weight decay shrinks them"


def _decay(facts: TensorFacts) -> _Found:
    is_stepped_on = _is_stepped_on(facts)
    in_part = is_stepped_on & ~facts.is_still  # all of it is another matter
    to_decay, stand_still = facts.num_to_decay[in_part].sum(), facts.num_not_decayed[in_part].sum()
    found: dict[str, np.ndarray] = {}
    if stand_still >= max(_MIN_NOT_DECAYED, _MOST * to_decay):
        found[NOT_APPLIED] = in_part & (facts.num_not_decayed > 0)
    shrinks = is_stepped_on & _is_dead(facts) & (facts.gradient == "zero")
    shrinks &= facts.shrinks_for >= _PATIENCE
    if shrinks.any():
        shrinks &= ~np.array([_is_for_some(name) for name in facts.name])
        found[DECAYS_ALONE] = shrinks
    if not found:
        return _NONE
    is_found = np.logical_or.reduce(list(found.values()))
    return _most_first(is_found, facts.size), "; ".join(w for w, f in found.items() if f.any())


# ------------------------------------------------------------------ what broke, what came back


def _not_finite(facts: TensorFacts) -> _Found:
    broken = facts.num_not_finite
    return _most_first(broken > 0, broken / facts.num), "weights are NaN or infinite"


def _returned(facts: TensorFacts) -> _Found:
    is_back = facts.back_at >= 0
    # a few weights may swing between neighbouring numbers by themselves
    steps = np.unique(facts.back_at[is_back & (facts.num - facts.num_still >= _MIN_RETURNED)])
    is_back &= np.isin(facts.back_at, steps) & (facts.num_still < _MOST * facts.num)
    which = _most_first(is_back, facts.size)
    known = dict.fromkeys(facts.back_at[which].tolist())
    return which, "; ".join(f"they have the bits of step {step} again" for step in known)


@np.errstate(all="ignore")  # what is not finite is no growth
def _blew_up(facts: TensorFacts) -> _Found:
    """Tensors that went farther than the optimizer has ever taken any.

    By itself a tensor's own past says little: of one that began at zero the size is small, and what
    gets rounding's noise for a gradient, such as the bias of keys, goes by next to nothing at
    first. Adam makes ordinary steps of any noise, and no larger ones.
    """
    past = facts.past_updates
    if past.shape[1] < _MIN_PAST:
        return _NONE
    is_known = (past.min(1) > 0.0) & (facts.rms > 0.0) & (facts.num >= _FEW)
    is_known &= np.isfinite(facts.update)
    if is_known.sum() < _MIN_KNOWN:
        return _NONE
    most = past.max(1)
    growth = facts.update / most
    usual = max(float(np.median(growth[is_known])), 1.0)
    is_far = facts.update >= _FARTHER * usual * most[is_known].max()
    is_far &= facts.update >= _FAR * facts.rms
    is_far &= growth >= max(_MORE_THAN_EVER, _MORE_THAN_PEERS * usual)
    which = _most_first(is_far & is_known, growth)
    if not len(which):
        return _NONE
    first = which[0]
    why = (
        f"{facts.update[first] / facts.rms[first]:.3g} of its size in one interval, "
        f"{growth[first]:.3g} times its most ever"
    )
    return which, why


_RULES: dict[str, Callable[[TensorFacts], _Found]] = {
    "untrained": _untrained,
    "rounding": _rounding,
    "decay": _decay,
    "not_finite": _not_finite,
    "returned": _returned,
    "blew_up": _blew_up,
}


# ------------------------------------------------------------------ records, events


def with_earlier(record: Record, earlier: Sequence[Record]) -> Record:
    """A record whose parameters were not compared, with what the records before prove.

    Of a replay that is since when weights are not finite, and whether all in scope have the bits of
    an earlier snapshot again.

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
