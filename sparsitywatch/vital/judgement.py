"""Vital signs judged: what the facts of every tensor prove, and nothing that is merely likely.

Each rule asks for evidence that no healthy training gives. A tensor that stands still is no fault
by itself: it may be frozen, an expert that no token was sent to, a table of tokens that were not
seen, a temperature at its bound. It is one if the optimizer is given a gradient for it and it does
not move, or if nobody is to step on it, or if the gradient ends at it on the way through the model.
docs/alarms.md says what to do.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import takewhile
from types import SimpleNamespace
from typing import Any

import numpy as np

from sparsitywatch.pipeline.measure import Examined, Seen
from sparsitywatch.pipeline.pipeline import Reviewer
from sparsitywatch.records import Event, Finding, Gradient, Record, Vital
from sparsitywatch.series import numbered, percent
from sparsitywatch.vital.samples import FEW
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

#: Names that a finding holds, at most.
MOST_NAMES = 100
#: A learning rate below this share of the highest one is as good as none.
_NO_RATE = 0.01
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
#: Of fewer steps with a gradient, or without, nobody can say that it ended; and it has if it is
#: away for so many times what anything was away and came back.
_FEW_STEPS, _BEYOND_USUAL = 4, 10
#: Weights without a gradient that stand still where decay must move them.
_MIN_NOT_DECAYED = 16
#: Weights that moved away and came back to the bit.
_MIN_RETURNED = 32
#: A tensor blows up if in one interval it changes by this share of its size, and by this factor
#: more than in any of the latest intervals, of which there have to be so many.
FAR, _MORE_THAN_EVER, _MIN_PAST = 0.3, 10.0, 3
#: Parts of names of what is used for some inputs only; and of what may be there for another use,
#: such as a second tower.
_FOR_SOME = re.compile(r"expert|moe|head|branch|adapter|task|classifier|domain|lang", re.IGNORECASE)
_FOR_OTHERS = re.compile(
    r"pooler|tower|vision|visual|image|audio|speech|video|text_|mask_token|unused|aux",
    re.IGNORECASE,
)
#: Steps without a gradient since the attach before it is told; a gate does not wait.
PATIENT_STEPS = 32
#: A learning rate below this share of the highest one now is that of something left behind; and so
#: is a matrix of SGD's that moves by the other share, beside its size, of what most do.
_SLOW, _SLOW_BY_GRADIENT = 1e-5, 1e-4
#: An event is reported again after its kind was gone for this many snapshots.
_GONE_FOR = 3


#: What two snapshots and the optimizer say of each tensor: column, type, and value if nothing is
#: known. Numbers are of sampled weights. Between two snapshots lies an interval.
_COLUMNS: tuple[tuple[str, type | str, Any], ...] = (
    ("name", object, ""),
    ("num_weights", int, 0),
    ("num", int, 0),  # of its weights that are sampled
    ("num_dims", int, 1),
    ("num_not_finite", int, 0),
    ("num_still", int, 0),  # with the bits of the snapshot before
    ("num_still_since_start", int, 0),
    ("update", float, math.nan),  # root mean square of the change in the last interval
    ("unexplained", float, math.nan),  # ... of the part of it that decay does not explain
    ("rms", float, math.nan),  # root mean square of the weights before
    ("from_start", float, math.nan),  # ... of what they had changed by since the first snapshot
    ("began_at_zero", bool, False),  # all of it
    ("is_twin", bool, False),  # began as a copy of an embedding that now differs from it
    # where it moved by much of its size: weights that did by much of that, not to a common value
    ("num_far", int, 0),
    ("reach", float, math.inf),  # how far its optimizer can have moved a weight; or most weights
    ("num_beyond", int, 0),  # that moved farther, and not to a value that many of them have
    ("is_within", bool, False),  # whether most did not
    ("was_within", bool, False),  # ... in the interval before
    ("has_past", bool, True),  # whether there may have been steps before the first snapshot
    ("has_moved", bool, True),  # by more than decay, since the first snapshot
    ("still_for", int, 0),  # intervals up to now in which no bit of it changed
    ("shrinks_for", int, 0),  # ... in which all of it was multiplied by one factor below 1
    ("dead_for", int, 0),  # ... in which it had no gradient, or one of zero, at any step
    ("dead_steps", int, 0),  # optimizer steps in these
    ("alive_steps", int, 0),  # with a gradient, so far
    ("well_at", int, -1),  # last snapshot after which it moved, and had a gradient at some step
    ("is_fading", bool, False),  # in a part of the last interval it may have had no gradient
    ("absence", int, 0),  # most steps without one after which there was one again
    ("is_relieved", bool, False),  # as its gradient ended, another tensor's began
    ("back_at", int, -1),  # step of the earlier snapshot, not the last, whose bits it has again
    # "own": an optimizer steps on it; "master": on a copy of higher precision; "none"; "unknown";
    # "frozen": it requires no grad
    ("trained_by", "U7", "unknown"),
    ("num_steps", int, 0),  # in the last interval, at a learning rate above 0
    ("num_reached", int, 0),  # of these, at which it had a gradient
    ("sized_by", "U8", "unknown"),  # what says how large its updates are, as of ``Kind.size``
    ("momentum", float, 0.0),
    ("lr", float, 0.0),  # mean over the last interval; 0 where it has no group
    ("lr_share", float, 0.0),  # present learning rate / highest that was seen
    ("lr_rise", float, 1.0),  # present learning rate / mean over the last interval
    ("weight_decay", float, 0.0),
    ("shrunk", float, 0.0),  # minus the logarithm of what decay has multiplied it with
    ("gradient", "U7", ""),  # "some", "zero", "none" (no tensor), "unknown"; "": nobody looked
    ("gradient_ratio", float, math.nan),  # its root mean square / that of tensors that move
    ("num_gradients", int, 0),  # with a gradient other than 0
    ("num_lossy", int, 0),  # of these, with updates far below the spacing of their numbers
    # of these, that moved, and that would have if nothing were lost (to a rounding at random or a
    # copy of higher precision); added up over the latest intervals with losses in each
    ("num_lossy_moved", int, 0),
    ("num_lossy_expected", float, 0.0),
    ("num_could_round", int, 0),  # of those with a gradient, whose updates may be lost
    ("num_to_decay", int, 0),  # not 0, without gradient, where decay has to be seen
    ("num_not_decayed", int, 0),  # of these, that stand still
    ("is_not_decayed", bool, False),  # as steps say that were worked out again
)


class TensorFacts(SimpleNamespace):
    """These columns, [T] each, and ``past_updates``: ``update`` in earlier intervals [T, past].

    Made of tensors of which nothing is known but how many intervals are past, the oldest first.
    """

    def __init__(self, names: Sequence[str] = (), num_past: int = 0) -> None:
        num = len(names)
        super().__init__(**{name: np.full(num, x, kind) for name, kind, x in _COLUMNS})
        self.name = np.array([*names], object)
        self.past_updates = np.zeros((num, num_past))

    def __len__(self) -> int:
        return len(self.name)

    def row(self, index: int) -> TensorRow:
        """One tensor, to be read and written."""
        return TensorRow(vars(self), index)


class TensorRow:
    """The facts of one tensor: its place in the columns."""

    def __init__(self, columns: dict[str, np.ndarray], index: int) -> None:
        vars(self).update(columns=columns, index=index)

    def __getattr__(self, name: str) -> Any:
        return self.columns[name][self.index]

    def __setattr__(self, name: str, value: Any) -> None:
        self.columns[name][self.index] = value


@dataclass(frozen=True, kw_only=True)
class VitalReading:
    """What is known of every parameter at one snapshot."""

    facts: TensorFacts = field(default_factory=TensorFacts)  # in the model's order
    since_step: int = -1  # of the snapshot before; -1 if there was none
    reason: str = ""  # why there are no facts; empty if there are
    gradient: Gradient | None = None
    of_tensors: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # as of ``Seen``


#: Kinds that only steps of a rate tell: where that has ended, what was found is not over.
_BY_STEPS = ("rounding", "decay", "no_gradient", "idle", "no_rate", "slow")


def judged(reading: VitalReading, spectrum: MagnitudeSpectrum | None) -> Vital:
    """What is wrong with any parameter, for sure; of weights in scope all are counted."""
    facts = reading.facts
    if spectrum is not None and (spectrum.num_nan or spectrum.num_inf):
        facts = _with_all_not_finite(facts, spectrum)
    findings = findings_of(facts, reading.since_step)
    if reading.reason:
        return Vital(num_tensors=0, num_sampled=0, findings=findings, reason=reading.reason)
    trained = np.where(facts.trained_by == "frozen", 0, facts.num_weights)
    is_first = reading.since_step < 0
    is_known = trained.any() and not is_first
    still, never = facts.num_still / facts.num, facts.num_still_since_start / facts.num
    return Vital(
        num_tensors=len(facts),
        num_sampled=int(facts.num.sum()),
        still=float(np.average(still, weights=trained)) if is_known else math.nan,
        still_since_start=float(np.average(never, weights=trained)) if is_known else math.nan,
        since_step=reading.since_step,
        findings=findings,
        gradient=reading.gradient,
        not_judged=() if is_first or _is_stepped_on(facts).any() else _not_judged(findings),
    )


def _not_judged(findings: tuple[Finding, ...]) -> tuple[str, ...]:
    found = {finding.kind for finding in findings}
    return tuple(kind for kind in _BY_STEPS if kind not in found)


def seen_by(said: Callable[[], VitalReading], spectrum: MagnitudeSpectrum | None) -> Seen:
    """What a look at every parameter has told."""
    reading = said()
    return Seen(judged(reading, spectrum), reading.of_tensors)


def unread(reason: str) -> Examined:
    """What is said where parameters are not compared: only what the weights in scope tell."""
    return partial(seen_by, partial(VitalReading, reason=reason))


def _with_all_not_finite(facts: TensorFacts, spectrum: MagnitudeSpectrum) -> TensorFacts:
    """The facts with the weights in scope that are not finite, all of them, not of a sample."""
    histograms = spectrum.histograms
    if not len(facts):
        facts = TensorFacts(list(histograms))
        facts.num_weights = facts.num = np.array([h.num_weights for h in histograms.values()], int)
    facts = copy.copy(facts)
    known = zip(map(histograms.get, facts.name), facts.num_not_finite.tolist(), strict=True)
    facts.num_not_finite = np.array([n if h is None else h.num_nan + h.num_inf for h, n in known])
    return facts


def findings_of(facts: TensorFacts, since_step: int) -> tuple[Finding, ...]:
    """At most one finding of each kind."""
    findings = []
    for kind, rule in _RULES.items():
        which, why = rule(facts)
        names, num = tuple(facts.name[which[:MOST_NAMES]].tolist()), len(which)
        if num:
            is_late = kind == "untrained" or DECAYS_ALONE in why  # told once it has lasted
            since = int(facts.well_at[which].min(initial=since_step)) if is_late else since_step
            one = Finding(kind=kind, num=num, tensors=names, reason=why, since_step=since)
            findings.append(one)
    return tuple(findings)


#: Which tensors, most first, and why.
_Found = tuple[np.ndarray, str]
_NOTHING: _Found = (np.array([], int), "")


def _found(grounds: Mapping[str, np.ndarray], *keys: np.ndarray) -> _Found:
    """What any of some grounds holds for, the largest by the first key first, and so on."""
    which = np.flatnonzero(np.logical_or.reduce(list(grounds.values())))
    order: np.ndarray = which[np.lexsort([-key[which] for key in reversed(keys)])]
    return order, "; ".join(why for why, holds in grounds.items() if holds.any())


def is_ours(facts: TensorFacts) -> np.ndarray:
    """Whether an optimizer that is known steps on it, or on a copy of it, bool [T]."""
    return np.isin(facts.trained_by, ("own", "master"))


def _is_stepped_on(facts: TensorFacts) -> np.ndarray:
    """Whether the optimizer takes steps for it that count, of a rate that is not near its end."""
    return np.asarray(is_ours(facts) & (facts.lr > 0.0) & (facts.lr_share >= _NO_RATE))


# ------------------------------------------------------------------ untrained

NO_OPTIMIZER = "they have gradients, and no optimizer steps on them"
NOT_STEPPED = "they have gradients and are in the optimizer, and no bit of them moves"
CUT_OFF = "they are in the optimizer, and no gradient reaches them"
LOST = "a gradient reached them, and for {} steps none has"


def _untrained(facts: TensorFacts) -> _Found:
    stands = (facts.still_for > 0) & (facts.gradient == "some")
    by_none = facts.trained_by == "none"
    grounds = {NO_OPTIMIZER: stands & by_none & ~(facts.gradient_ratio < _NEGLIGIBLE)}
    is_stepped_on = _is_stepped_on(facts)
    if (is_stepped_on & ~(facts.still_for > 0)).any():
        # a gradient that counts; once it has moved, that may have ended with what was to be learnt
        is_large = facts.gradient_ratio >= np.where(facts.has_moved, 0.1, _NEGLIGIBLE)
        is_large &= ~facts.has_moved | (facts.still_for >= _PATIENCE)
        # and an update that could be stored
        is_stored = facts.num_could_round < _MOST * facts.num_gradients
        must_move = is_large & is_stored & (facts.num >= FEW)
        grounds[NOT_STEPPED] = stands & is_stepped_on & must_move
        grounds[CUT_OFF] = _is_cut_off(facts, is_stepped_on)
    is_lost = _has_lost_gradient(facts, is_stepped_on)
    if is_lost.any():
        grounds[LOST.format(facts.dead_steps[is_lost].max())] = is_lost
    return _found(grounds, facts.num_weights)


@lru_cache(maxsize=1 << 13)  # the same names at every snapshot
def _is_for_some(name: str) -> bool:
    return _FOR_SOME.search(name) is not None


def _is_dead(facts: TensorFacts) -> np.ndarray:
    return np.asarray((facts.dead_for >= _PATIENCE) & (facts.dead_steps >= _PATIENT_STEPS))


def _is_cut_off(facts: TensorFacts, is_stepped_on: np.ndarray) -> np.ndarray:
    """Tensors that a gradient does not reach on its way through the model."""
    is_dead: np.ndarray = is_stepped_on & _is_dead(facts) & ~facts.has_moved
    if not is_dead.any():
        return is_dead
    # one that is not used for these inputs looks the same. So it has to be most of the model; or
    # the first part of it, in the middle of a list of layers; or whole layers of such a list
    trained = [i for i in np.flatnonzero(is_stepped_on).tolist() if not _is_for_some(facts.name[i])]
    dead = {facts.name[i]: facts.num_weights[i] for i in trained if is_dead[i]}
    found: set[str] = set()
    is_most = sum(dead.values()) >= _MOST * facts.num_weights[trained].sum()
    if is_most and len(dead) >= max(0.25 * len(trained), 3):
        found.update(dead)
    first = list(takewhile(dead.__contains__, facts.name[trained]))
    living = {_place_of(name)[0] for name in facts.name[trained] if name not in dead} - {None}
    if any(_place_of(name)[0] in living for name in first):
        found.update(first)
    for members in _layers(facts, trained):
        cut = [names for names in members if dead.keys() >= set(names)]
        if len(cut) < len(members):
            found.update(name for names in cut for name in names)
    return np.array([name in found for name in facts.name])


def _has_lost_gradient(facts: TensorFacts, is_stepped_on: np.ndarray) -> np.ndarray:
    """Tensors that had a gradient at every step, and now have none for whole intervals."""
    # what comes and goes in a training says how long an absence is usual there: layers dropped at
    # random, experts, heads in turn
    usual = facts.absence[is_stepped_on].max(initial=0)
    is_lost: np.ndarray = is_stepped_on & (facts.dead_for > 0) & ~facts.is_relieved
    is_lost &= (facts.alive_steps >= _FEW_STEPS) & (facts.absence == 0)
    is_lost &= facts.dead_steps >= max(_FEW_STEPS, _BEYOND_USUAL * usual)
    if not is_lost.any() or not (is_stepped_on & (facts.dead_for == 0)).any():
        return is_lost  # nothing is in training any more, whatever it is called
    is_lost &= ~np.array([_is_for_some(name) for name in facts.name])
    return is_lost


def _place_of(name: str) -> tuple[str | None, str, str]:
    """In which outermost list a tensor is, in which member of it, and the rest of its name."""
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdecimal():
            return ".".join(parts[:i]), part, ".".join(parts[i + 1 :])
    return None, "", name


def _layers(facts: TensorFacts, trained: Sequence[int]) -> list[list[list[str]]]:
    """The tensors of each member of each list of layers: alike, and of several parts each."""
    lists: dict[str, dict[str, dict[str, int]]] = {}
    for i in trained:
        of_list, member, rest = _place_of(facts.name[i])
        if of_list is not None:
            lists.setdefault(of_list, {}).setdefault(member, {})[rest] = i
    found = []
    for members in lists.values():
        tensors = list(members.values())
        first, are_alike = tensors[0], len(set(map(frozenset, tensors))) == 1
        has_vector = any(facts.num_dims[i] == 1 and n.endswith("weight") for n, i in first.items())
        if are_alike and len(tensors) > 1 and len(first) >= 4 and has_vector:
            found.append([[facts.name[i] for i in member.values()] for member in tensors])
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
        return _NOTHING
    still = facts.num_still / facts.num
    share = np.average(still[is_losing], weights=facts.num_weights[is_losing])
    bits = f"{percent(share)} of their weights have the bits of the snapshot before"
    return _found({f"{bits}: updates are too small": is_losing}, still, facts.num_weights)


NOT_APPLIED = "weights without a gradient stand still, and weight decay ought to move them"
NOT_IN_STEPS = "steps were worked out again, and the weight decay of their group is not in them"


def _decay(facts: TensorFacts) -> _Found:
    if facts.is_not_decayed.any():
        return _found({NOT_IN_STEPS: facts.is_not_decayed}, facts.num_weights)
    in_part = _is_stepped_on(facts) & ~(facts.still_for > 0)  # all of it is another matter
    to_decay, stand_still = facts.num_to_decay[in_part].sum(), facts.num_not_decayed[in_part].sum()
    if stand_still < max(_MIN_NOT_DECAYED, _MOST * to_decay):
        return _NOTHING
    return _found({NOT_APPLIED: in_part & (facts.num_not_decayed > 0)}, facts.num_weights)


# ------------------------------------------------------------------ not reached, slow

NEVER_REACHED = "they are in the optimizer, and for {} steps no gradient has reached them"
DECAYS_ALONE = "they get no gradient, and weight decay shrinks them"


def _unreached(facts: TensorFacts, *, are_hinted: bool) -> _Found:
    """Tensors that no gradient reaches, beside what is surely cut off; by their names' hints."""
    is_stepped_on = _is_stepped_on(facts)
    is_so = is_stepped_on & _is_dead(facts)
    is_never = is_so & ~facts.has_moved & (facts.alive_steps == 0)
    shrinks = is_so & (facts.gradient == "zero") & (facts.shrinks_for >= _PATIENCE)
    if not (is_never | shrinks).any():
        return _NOTHING
    hints = [_is_for_some(n) or bool(_FOR_OTHERS.search(n)) for n in facts.name]
    is_one = (np.array(hints) == are_hinted) & ~np.isin(np.arange(len(facts)), _untrained(facts)[0])
    is_never &= is_one & ~shrinks
    steps = int(facts.dead_steps[is_never].max(initial=0))
    grounds = {NEVER_REACHED.format(steps): is_never, DECAYS_ALONE: shrinks & is_one}
    return _found(grounds, facts.num_weights)


#: Since the attach: of some tensors, beside others that are trained; of all matrices.
RATE_OF_SOME = "their learning rate has been 0 all the time, and that of others has not"
NO_RATE = "their learning rate has been 0 all the time"
NONE_MOVES = "they have gradients, and no matrix has moved, but by weight decay"
AT_REST = (NO_RATE, NONE_MOVES, RATE_OF_SOME)


def _without_rate(facts: TensorFacts) -> _Found:
    """Tensors that nobody trains yet, as where layers are unfrozen one after another."""
    rests = (facts.lr == 0.0) & (facts.lr_share == 0.0) & (facts.still_for >= _PATIENCE)
    is_so = is_ours(facts) & rests & ~facts.has_moved & _is_stepped_on(facts).any()
    return _found({RATE_OF_SOME: is_so}, facts.num_weights)


@np.errstate(all="ignore")  # what is not finite is told beside
def _slow(facts: TensorFacts) -> _Found:
    """Tensors that move next to nowhere: beside the others, or as all do."""
    trained = is_ours(facts) & (facts.lr > 0.0)
    grounds: dict[str, np.ndarray] = {}
    matrices = is_ours(facts) & (facts.num_dims > 1)
    rests_for = np.maximum(facts.still_for, facts.shrinks_for)
    if (~facts.has_moved & (rests_for >= _PATIENCE))[matrices].all():
        grounds[NO_RATE] = matrices & (facts.lr == 0.0)
        grounds[NONE_MOVES] = matrices & trained & (facts.gradient == "some")
    for unit in np.unique(facts.sized_by[trained]):
        alike = trained & (facts.sized_by == unit)
        # where rates warm up or end one by one, each is judged by the highest it has had
        highest = facts.lr / np.maximum(facts.lr_share, 1e-300)
        share = highest / highest[alike].max()
        is_slow = alike & (share < _SLOW)
        if is_slow.any():
            times = 1.0 / share[is_slow].max()
            grounds[f"their learning rate is {times:.2g} times smaller than that of others"] = (
                is_slow
            )
    moves = trained & (facts.num_dims > 1) & (facts.gradient == "some") & ~facts.began_at_zero
    moves &= facts.sized_by == "gradient"
    if moves.any() and facts.past_updates.shape[1] >= _PATIENCE:
        most = np.fmax(facts.update, facts.past_updates.max(1)) / facts.rms
        usual = float(np.median(most[moves]))
        is_slow = moves & (most < _SLOW_BY_GRADIENT * usual)
        if is_slow.any():
            share = max(most[is_slow].max() / usual, 1e-9)
            grounds[f"beside their size they move at {share:.2g} of what others do"] = is_slow
    return _found(grounds, facts.num_weights) if grounds else _NOTHING


# ------------------------------------------------------------------ what broke, what came back


def _not_finite(facts: TensorFacts) -> _Found:
    broken = facts.num_not_finite
    return _found({"weights are NaN or infinite": broken > 0}, broken / facts.num)


def _returned(facts: TensorFacts) -> _Found:
    is_back = facts.back_at >= 0
    # a few weights may swing between neighbouring numbers by themselves
    steps = np.unique(facts.back_at[is_back & (facts.num - facts.num_still >= _MIN_RETURNED)])
    is_back &= np.isin(facts.back_at, steps) & (facts.num_still < _MOST * facts.num)
    which, _ = _found({"": is_back}, facts.num_weights)
    known = dict.fromkeys(facts.back_at[which].tolist())
    return which, "; ".join(f"they have the bits of step {step} again" for step in known)


def _untied(facts: TensorFacts) -> _Found:
    """Heads that began with the bits of the embeddings, and are trained apart from them."""
    is_so = is_ours(facts) & facts.is_twin & facts.has_moved
    why = "they began with the bits of the embeddings, as if they were tied, and now differ"
    return _found({why: is_so}, facts.num_weights)


@np.errstate(all="ignore")  # what is not finite is told beside
def _overwritten(facts: TensorFacts) -> _Found:
    """Tensors whose weights went where no step of their optimizer could take them."""
    # what writes to weights in every interval, such as a bound, is part of the training; and an
    # average, or a state that was earlier, is no farther away than the start
    is_so = is_ours(facts) & facts.was_within & ~facts.is_within & (facts.num >= FEW)
    is_so &= (facts.back_at < 0) & (facts.update > facts.from_start)
    is_so &= ~facts.has_past | (facts.update >= FAR * facts.rms)
    if not is_so.any():
        return _NOTHING
    share = facts.num_weights[is_so].sum() / facts.num_weights.sum()
    times = float(np.median((facts.update / facts.reach)[is_so]))
    why = (
        f"{percent(share)} of the model's weights; in one interval they moved {times:.3g} times as "
        "far as the optimizer's steps can take them"
    )
    return _found({why: is_so}, facts.num_weights)


@np.errstate(all="ignore")  # what is not finite is no growth
def _blew_up(facts: TensorFacts) -> _Found:
    """Tensors that changed far more than ever, and by much of their size."""
    past = facts.past_updates
    if past.shape[1] < _MIN_PAST:
        return _NOTHING
    growth = facts.update / past.max(1)
    # of one that began at zero the size says nothing
    is_so = (past.min(1) > 0.0) & ~facts.began_at_zero & (facts.num >= FEW)
    is_so &= np.isfinite(facts.update) & (growth >= _MORE_THAN_EVER)
    is_so &= (facts.update >= FAR * facts.rms) & (facts.num_far > _MOST * facts.num)
    is_so[_overwritten(facts)[0]] = False
    which, _ = _found({"": is_so}, growth)
    if not len(which):
        return _NOTHING
    share, times = facts.update[which[0]] / facts.rms[which[0]], growth[which[0]]
    return which, f"{share:.3g} of its size in one interval, {times:.3g} times its most ever"


_RULES: dict[str, Callable[[TensorFacts], _Found]] = {
    "untrained": _untrained,
    "rounding": _rounding,
    "decay": _decay,
    "no_gradient": partial(_unreached, are_hinted=False),
    "idle": partial(_unreached, are_hinted=True),
    "no_rate": _without_rate,
    "slow": _slow,
    "untied": _untied,
    "not_finite": _not_finite,
    "returned": _returned,
    "overwritten": _overwritten,
    "blew_up": _blew_up,
}


# ------------------------------------------------------------------ records, events


class VitalReviewer(Reviewer):
    """Completes what checkpoints say by themselves, and makes events of findings that are new.

    What no gradient has reached is told after so many steps.
    """

    def __init__(self, patience: int = PATIENT_STEPS) -> None:
        self._patience = patience

    def reviewed(self, record: Record, earlier: Sequence[Record]) -> Vital | None:
        """Of parameters that were not compared: since when some are not finite, or all are back."""
        vital, before = record.vital, next((r for r in reversed(earlier) if r.was_read), None)
        if vital is None or not vital.reason or before is None:
            return vital
        findings = [*vital.findings]
        if record.same_weights_as is not None and before.fingerprint != record.fingerprint:
            names = tuple(layer.name for layer in record.layers)
            first = numbered(record.provenance.unit, record.same_weights_as)
            why = f"all weights in scope have the bits of {first} again, as in a copied file"
            back = Finding(kind="returned", num=len(names), tensors=names[:MOST_NAMES], reason=why)
            findings.append(back)
        since = tuple(replace(one, since_step=before.step) for one in findings)
        return replace(vital, findings=since)

    def events(
        self, record: Record, earlier: Sequence[Record], told: Sequence[Event]
    ) -> list[Event]:
        """Of replicas that differ, and of findings that the records before had not, or half."""
        events = _disagreement(record, earlier[-1] if earlier else None)
        recent = [r.vital for r in earlier[-_GONE_FOR:] if r.vital is not None]
        for finding in () if record.vital is None else record.vital.findings:
            before = [f.num for vital in recent for f in vital.findings if f.kind == finding.kind]
            known = [event.value for event in told if event.kind == finding.kind]
            since = finding.since_step
            # unless decay wears them down meanwhile
            is_never = (
                finding.kind in ("no_gradient", "idle") and DECAYS_ALONE not in finding.reason
            )
            if is_never or finding.reason in AT_REST:
                if not known and record.step - _since(finding, earlier) < self._patience:
                    continue
                before = before if known else []
                since = earlier[0].step if earlier else since  # they never were
            if finding.reason == NOT_IN_STEPS and earlier:
                since = earlier[0].step  # when it began nobody has looked at
            if before and finding.num < 2 * (known[-1] if known else max(before)):
                continue
            # a file that is a copy stays one, whatever comes
            is_of_files = finding.kind == "returned" and record.source is not None
            event = event_at(
                record,
                since,
                kind=finding.kind,
                series=f"{'files' if is_of_files else 'vital'}/{finding.kind}",
                direction="",
                baseline=float(max(before, default=0)),
                value=float(finding.num),
                layers=finding.tensors,
                reason=finding.reason,
            )
            events.append(event)
        return events


def _since(finding: Finding, earlier: Sequence[Record]) -> int:
    """The snapshot before the first of those in a row that had a finding of its kind."""
    since = finding.since_step
    for record in reversed(earlier):
        found = () if record.vital is None else record.vital.findings
        if not any(one.kind == finding.kind for one in found):
            return since
        since = next(one.since_step for one in found if one.kind == finding.kind)
    return since


def _disagreement(record: Record, before: Record | None) -> list[Event]:
    """The event of replicas that differ; none where they agree, or differed alike ``before``."""
    now, then = record.replicas, None if before is None else before.replicas
    if now is None or not now.ranks or (then is not None and then.ranks == now.ranks):
        return []
    event = event_at(
        record,
        -1 if before is None else before.step,
        kind="replicas",
        series="weights/num_ranks_differing",
        direction="up",
        baseline=float(then.num_differing) if then is not None else 0.0,
        value=float(now.num_differing),
        layers=now.tensors,
        ranks=now.ranks,
    )
    return [event]


def event_at(record: Record, since: int, **fields: Any) -> Event:
    """What is so at a record, and was not at the step ``since``."""
    step = record.step
    return Event(onset_step=step, onset_low=since, detected_step=step, before_step=since, **fields)
