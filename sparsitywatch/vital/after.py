"""What something else than the optimizer writes to weights, after a step and before their next use.

A sample of every parameter as the step left it is compared, bit for bit, with the same weights as
the next training forward uses them. Arrays are [N], by sampled weight.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from sparsitywatch.records import Finding, Vital
from sparsitywatch.series import percent
from sparsitywatch.vital.judgement import MOST_NAMES
from sparsitywatch.vital.samples import FEW, Sample, chosen
from sparsitywatch.weights.sharded import Tensors, local_of
from sparsitywatch.weights.snapshot import gather_sample

#: In so many looks, one after another, a tensor has to be put back, or in so many of the latest
#: ones written to, before that is a habit: a rollback, or a mask, may come once.
_HABIT, _LATEST = 2, 8
#: Why nobody can say of such a tensor which of its weights had no gradient.
WRITTEN = "something else than the optimizer writes to them after its steps"
#: Weights that hold no more values than this, and no more than a quarter of their number, are
#: quantised.
_MOST_VALUES = 256

PUT_BACK = "a step moves them, and each time they are put back to the bits that they had"
_MASKED = "{} of their weights set to zero"
_CLIPPED = "{} of their weights held to a bound"
_QUANTISED = "{} of their weights moved to few values"
_RESTORED = "{} of their weights put back"
_SCALED = "{} of their weights multiplied by one factor"
_CHANGED = "{} of their weights changed"


@dataclass
class _Habit:
    """What was done to one tensor at the looks up to now."""

    num_back: int = 0  # in a row, at which all of it was put back
    num_written: int = 0
    written_at: int = -1
    what: str = ""
    share: float = math.nan  # of its weights


class AfterStep:
    """Says whether, and how, something writes to weights after a step; asked at some steps only."""

    def __init__(self) -> None:
        self.num_looks = 0
        self.is_written = False  # whether anything was, at any of them
        self._left, self._used = Sample({}), Sample({})  # by the step; at the look before
        self._habits: dict[str, _Habit] = {}

    def note(self, parameters: Tensors) -> None:
        """Take a sample of the weights as the step has left them."""
        self._left = _sample(parameters)

    def look(self, parameters: Tensors) -> None:
        """Compare it with the weights as they are used next."""
        left, before, now = self._left, self._used, _sample(parameters)
        self._left, self._used, self.num_looks = Sample({}), now, self.num_looks + 1
        if now.kinds != left.kinds:  # another model: what a parameter became is not known
            return
        is_written = now.words != left.words
        is_old = np.zeros_like(is_written)
        if before.kinds == now.kinds:
            is_old = now.words == before.words
        num_written, num_old = now.count(is_written), now.count(is_old)
        self.is_written |= bool(num_written.any())
        for index, name in enumerate(now.tensors):
            habit = self._habits.setdefault(name, _Habit())
            if not num_written[index]:
                habit.num_back = 0
                continue
            where = now.slice_of(index)
            written = is_written[where]
            habit.what = _what(left.values[where], now.values[where], written, is_old[where])
            is_back = habit.what == _RESTORED and num_old[index] == now.num[index]
            habit.num_back = habit.num_back + 1 if is_back else 0
            habit.num_written += 1
            habit.written_at, habit.share = self.num_looks, float(written.mean())

    @property
    def habits(self) -> Mapping[str, _Habit]:
        """Of the tensors that something writes to again and again."""
        return {
            name: habit
            for name, habit in self._habits.items()
            if habit.num_written >= _HABIT and habit.written_at > self.num_looks - _LATEST
        }

    def told(self, vital: Vital | None, trained: Collection[str]) -> Vital | None:
        """The vital signs with what was found of tensors that an optimizer steps on."""
        found = {name: habit for name, habit in self.habits.items() if name in trained}
        if vital is None or not found:
            return vital
        back = [name for name, habit in found.items() if habit.num_back >= _HABIT]
        others = {name: habit for name, habit in found.items() if not habit.num_back}
        # what is written at each step is told as that, not as one that overwrote
        vital = _without(_with(vital, "untrained", back, PUT_BACK), "overwritten", found)
        return _with(vital, "written", [*others], _in_words([*others.values()]))


def _in_words(habits: list[_Habit]) -> str:
    """What is done to tensors, the most common first."""
    return "; ".join(
        what.format(percent(float(np.mean([h.share for h in habits if h.what == what]))))
        for what, _ in Counter(habit.what for habit in habits).most_common()
    )


def _without(vital: Vital, kind: str, names: Collection[str]) -> Vital:
    """The vital signs without these tensors in the finding of a kind."""
    found = []
    for one in vital.findings:
        left = tuple(name for name in one.tensors if name not in names)
        if one.kind == kind and len(left) < len(one.tensors):
            one = replace(one, tensors=left, num=one.num - len(one.tensors) + len(left))  # noqa: PLW2901
        found += [one] if one.num else []
    return replace(vital, findings=tuple(found))


def _with(vital: Vital, kind: str, names: list[str], reason: str) -> Vital:
    """The vital signs with these tensors in the finding of a kind."""
    if not names:
        return vital
    own = next((f for f in vital.findings if f.kind == kind), Finding(kind=kind, num=0, tensors=()))
    new = [name for name in names if name not in own.tensors]
    own = replace(
        own,
        num=own.num + len(new),
        tensors=(*own.tensors, *new)[:MOST_NAMES],
        reason="; ".join(filter(None, (own.reason, reason))),
        since_step=vital.since_step,
    )
    others = tuple(one for one in vital.findings if one.kind != kind)
    return replace(vital, findings=(*others, own))


@np.errstate(all="ignore")  # what is not finite is told beside
def _what(left: np.ndarray, now: np.ndarray, is_written: np.ndarray, is_old: np.ndarray) -> str:
    """What was done to the weights of a tensor that were written to."""
    written, largest = now[is_written], np.abs(now).max()
    ratios = written / left[is_written]
    if not written.any():
        return _MASKED
    if (np.abs(written) == largest).all() and (np.abs(left[is_written]) > largest).all():
        return _CLIPPED
    if len(np.unique(now)) <= min(_MOST_VALUES, len(now) // 4):
        return _QUANTISED
    if is_old[is_written].all():
        return _RESTORED
    if len(written) >= FEW and np.ptp(ratios) <= 1e-5 * np.abs(ratios).max():
        return _SCALED
    return _CHANGED


def _sample(parameters: Tensors) -> Sample:
    """Of those that may be trained, as vital signs choose it."""
    held = {name: local_of(one) for name, one in parameters.items() if _is_trained(one)}
    return Sample(gather_sample(held, {n: chosen(n, one.numel()) for n, one in held.items()}))


def _is_trained(one: torch.Tensor) -> bool:
    return one.requires_grad and one.is_floating_point() and not one.is_meta and one.numel() > 0
