"""What something else than the optimizer writes to weights, after a step and before their next use.

A sample of every parameter as the step left it is compared, bit for bit, with the same weights as
the next training forward uses them. Arrays are [N], by sampled weight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from sparsitywatch.records import Finding, Vital
from sparsitywatch.series import percent
from sparsitywatch.vital.judgement import MOST_NAMES
from sparsitywatch.vital.reading import has_numbers
from sparsitywatch.vital.samples import FEW, Sample, chosen
from sparsitywatch.weights.sharded import Tensors, local_of
from sparsitywatch.weights.snapshot import gather_sample

#: It is a habit where a tensor was written to, or put back, at so many looks one after another. A
#: rollback, or a pruning, comes once. It lasts until nothing was written at so many of the latest.
_HABIT, _LATEST = 2, 8
#: Weights that hold at most so many values, a quarter of their number, are quantised.
_MOST_VALUES = 256

WRITTEN = "something else than the optimizer writes to them after its steps"
PUT_BACK = "steps move them, and each time they are put back to the bits that they had"
_SET_TO_ZERO = "{} of their weights set to zero"
_CLIPPED = "{} of their weights held to a bound"
_QUANTISED = "{} of their weights moved to few values"
_RESTORED = "{} of their weights put back"
_SCALED = "{} of their weights multiplied by one factor"
_CHANGED = "{} of their weights changed"


class Habit(NamedTuple):
    """What was done to a tensor at the looks up to now."""

    num_looks: int = 0  # in a row, at which it was written to; of a habit all
    latest: int = 0  # of these
    num_back: int = 0  # in a row, up to now, at which all of it was put back
    what: str = ""
    share: float = 0.0  # of its weights


class AfterStep:
    """Says whether, and how, something writes to weights after a step; asked at some steps only."""

    def __init__(self) -> None:
        self.num_looks = 0
        self.is_written = False  # whether anything was, at any of them
        self._left, self._used = Sample({}), Sample({})  # by the step; at the look before
        self._habits: dict[str, Habit] = {}

    def note(self, parameters: Tensors, sampled: Tensors) -> None:
        """Keep a sample of the weights as the step has left them, which may have been taken."""
        self._left = Sample(sampled) if sampled else _sample(parameters)

    def look(self, parameters: Tensors) -> None:
        """Compare it with the weights as they are used next."""
        left, before, now = self._left, self._used, _sample(parameters)
        self._left, self._used, self.num_looks = Sample({}), now, self.num_looks + 1
        if now.kinds != left.kinds:  # another model: what a parameter became is not known
            return
        is_written = now.words != left.words
        is_old = now.words == (before.words if before.kinds == now.kinds else left.words)
        self.is_written |= bool(is_written.any())
        for index in np.flatnonzero(now.count(is_written)).tolist():
            name, where = [*now.tensors][index], now.slice_of(index)
            written, old = is_written[where], is_old[where]
            what = _what(left.values[where], now.values[where], written, old)
            last = self._habits.get(name, Habit())
            if last.latest < self.num_looks - 1:
                last = last._replace(
                    num_back=0, num_looks=last.num_looks * (last.num_looks >= _HABIT)
                )
            num_back = last.num_back + 1 if what == _RESTORED and old.all() else 0
            share = float(written.mean())
            self._habits[name] = Habit(last.num_looks + 1, self.num_looks, num_back, what, share)

    def habits(self, trained: Collection[str]) -> dict[str, Habit]:
        """Of those tensors that something writes to again and again, as of the latest look."""
        earliest = max(self.num_looks - _LATEST + 1, 1)
        known = {name: self._habits[name] for name in self._habits if name in trained}
        return {
            name: habit if habit.latest == self.num_looks else habit._replace(num_back=0)
            for name, habit in known.items()
            if habit.num_looks >= _HABIT and habit.latest >= earliest
        }


def with_habits(vital: Vital | None, habits: Mapping[str, Habit]) -> Vital | None:
    """The vital signs with what was found of tensors that an optimizer steps on."""
    if vital is None or not habits:
        return vital
    back = [name for name, habit in habits.items() if habit.num_back >= _HABIT]
    others = {name: habit for name, habit in habits.items() if not habit.num_back}
    whats = Counter(habit.what for habit in others.values())
    shares = {x: np.mean([h.share for h in others.values() if h.what == x]) for x in whats}
    why = "; ".join(what.format(percent(float(shares[what]))) for what, _ in whats.most_common())
    vital = _with(_with(vital, "untrained", back, PUT_BACK), "written", [*others], why)
    # what is written at each step is told as that, not as one that overwrote
    kept = [f for f in vital.findings if f.kind != "overwritten" or not habits.keys() & f.tensors]
    return replace(vital, findings=tuple(kept))


def _with(vital: Vital, kind: str, names: list[str], reason: str) -> Vital:
    """The vital signs with these tensors in the finding of a kind."""
    none = Finding(kind=kind, num=0, tensors=(), since_step=vital.since_step)
    known = next((f for f in vital.findings if f.kind == kind), none)
    new = tuple(name for name in names if name not in known.tensors)
    if not new:
        return vital
    both = (*known.tensors, *new)[:MOST_NAMES], "; ".join(filter(None, (known.reason, reason)))
    one = replace(known, num=known.num + len(new), tensors=both[0], reason=both[1])
    others = [f for f in vital.findings if f.kind != kind]
    return replace(vital, findings=(*others, one))


@np.errstate(all="ignore")  # what is not finite is told beside
def _what(left: np.ndarray, now: np.ndarray, is_written: np.ndarray, is_old: np.ndarray) -> str:
    """What was done to the weights of a tensor that were written to."""
    before, written, largest = np.abs(left[is_written]), np.abs(now[is_written]), np.abs(now).max()
    ratios = now[is_written] / left[is_written]
    is_one_factor = len(ratios) >= FEW and np.ptp(ratios) <= 1e-5 * np.abs(ratios).max()
    grounds = {
        _SET_TO_ZERO: not written.any(),
        _CLIPPED: bool((written == largest).all() and (before > largest).all()),
        _QUANTISED: len(np.unique(now)) <= min(_MOST_VALUES, len(now) // 4),
        _RESTORED: bool(is_old[is_written].all()),
        _SCALED: bool(is_one_factor),
    }
    return next((what for what, is_so in grounds.items() if is_so), _CHANGED)


def _sample(parameters: Tensors) -> Sample:
    """As vital signs choose it."""
    held = {name: local_of(one) for name, one in parameters.items() if has_numbers(one)}
    return Sample(gather_sample(held, {n: chosen(n, one.numel()) for n, one in held.items()}))
