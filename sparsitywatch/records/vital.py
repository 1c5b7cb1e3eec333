"""Vital signs of a training: what a snapshot says of every parameter, and what follows for sure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from sparsitywatch.shown import shown_name

__all__ = ["SIGNS", "Finding", "TensorFacts", "Vital"]

_NAN = float("nan")

#: Kinds of findings, and what is said of their tensors.
SIGNS: Mapping[str, str] = {
    "untrained": "not trained",
    "rounding": "losing their updates in rounding",
    "decay": "not decaying as the optimizer states",
    "not_finite": "not finite",
    "returned": "back at an earlier state",
    "blew_up": "changing far more than ever and than all others",
}

#: What weights in scope say by themselves, where parameters are not compared one by one.
_ALWAYS_KNOWN = ("not_finite", "returned")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is wrong with some tensors, for sure.

    Args:
        kind: one of ``SIGNS``.
        num: tensors that it is about.
        tensors: their names, most first; of very many the first ones.
        reason: what shows it, in words.
        since_step: the last snapshot at which it was not so yet, as far as is known; -1 if that is
            not known.
    """

    kind: str
    num: int
    tensors: tuple[str, ...]
    reason: str = ""
    since_step: int = -1

    def __repr__(self) -> str:
        names = ", ".join(map(shown_name, self.tensors[:3]))
        return f"<Finding of {self.num} tensors {SIGNS.get(self.kind, self.kind)}: {names[:80]}>"


@dataclass(frozen=True, kw_only=True)
class Vital:
    """What was seen of all parameters of the model, in scope or not, since the last snapshot.

    Args:
        num_tensors: that were compared, tied ones once.
        num_sampled: weights that were: all of a small tensor, a fixed sample of a large one.
        still: share of the weights that are to be trained (that require grad; in a replay all)
            whose bits are what they were at the snapshot before; NaN if there was none.
        still_since_start: the same against the first snapshot of all.
        since_step: step of the earlier snapshot; -1 if there was none.
        findings: what is wrong for sure.
        reason: why the parameters were not compared one by one, as those of a checkpoint; empty if
            they were. Then only weights in scope are known: which are not finite, and whether all
            of them are back at an earlier state.
    """

    num_tensors: int
    num_sampled: int
    still: float = _NAN
    still_since_start: float = _NAN
    since_step: int = -1
    findings: tuple[Finding, ...] = ()
    reason: str = ""

    @property
    def counts(self) -> dict[str, float]:
        """Tensors with a finding, by its kind: the kinds that can be known here."""
        known = dict.fromkeys(_ALWAYS_KNOWN if self.reason else SIGNS, 0.0)
        for finding in self.findings:
            known[finding.kind] = float(finding.num)
        return known

    def __repr__(self) -> str:
        found = ", ".join(f"{f.num} {f.kind}" for f in self.findings) or "nothing wrong"
        if self.reason:
            return f"<Vital: {found}; {self.reason[:80]}>"
        return f"<Vital of {self.num_tensors} tensors: {found}>"


#: The same for all tensors.
_ZERO, _ONE, _MINUS_ONE = partial(np.array, 0), partial(np.array, 1), partial(np.array, -1)
_NONE_OF_IT, _NOT_KNOWN = partial(np.array, 0.0), partial(np.array, _NAN)
_UNKNOWN, _UNTOLD = partial(np.array, "unknown"), partial(np.array, "")


@dataclass(frozen=True, kw_only=True)
class TensorFacts:
    """What two snapshots and the optimizer say of each tensor: columns with an entry for each.

    A single value stands for all of them. Counts are of sampled weights. Between two snapshots lies
    an interval.

    Args:
        name, size: of the tensor; ``size`` is its number of weights. Names are Python's strings.
        num: how many are sampled.
        num_dims: of its shape.
        num_not_finite: that are NaN or infinite.
        num_still, num_still_since_start: whose bits are those of the snapshot before, and of the
            first one.
        update, rms: root mean square of the change since, and of the weights before.
        past_updates: [T, I], the same change in earlier intervals, the latest last; at most eight.
        has_moved: whether more than decay has moved it since the first snapshot.
        still_for: intervals up to now in which no bit of it changed.
        shrinks_for: the same for those in which all of it was multiplied by one factor below 1.
        dead_for: the same for those in which it moved in neither way or in that one alone, with
            no gradient to be seen while others had one.
        dead_steps: optimizer steps in these.
        back_at: step of the earlier snapshot whose bits it has again, not the one before; -1 if
            there is none.
        trained_by: "own": its optimizer steps on it; "master": on a copy of higher precision;
            "other": an optimizer that is not watched; "none"; "unknown"; "frozen": it requires no
            grad.
        num_steps: of its param group in the interval, with a learning rate above 0.
        lr: mean learning rate over the interval; 0 where it has no group.
        lr_share: the learning rate as it stands, of the highest that was seen.
        lr_rise: the learning rate as it stands, of its mean over the interval.
        weight_decay: of its group.
        gradient: "some", "zero" (all of it), "none" (there is no tensor), "unknown", or empty
            where nobody needed to look.
        gradient_ratio: root mean square of its gradient, of the median of tensors that move.
        num_gradients: that have a gradient which is not 0.
        num_lossy: of these, whose updates are far below the spacing of their numbers.
        num_lossy_moved: of these, that moved all the same; added up over the intervals up to now
            in each of which some of its updates were lost.
        num_lossy_expected: of these, that would have if nothing were lost: by a rounding that is
            random, or by a copy of higher precision that is not seen; added up likewise.
        num_could_round: of ``num_gradients``, whose updates may be lost.
        num_not_decayed: that have no gradient, are not 0, and stand still though decay has to be
            seen.
        num_to_decay: that have no gradient and are not 0, where decay has to be seen.
    """

    name: np.ndarray
    size: np.ndarray
    num: np.ndarray
    num_dims: np.ndarray = field(default_factory=_ONE)
    num_not_finite: np.ndarray = field(default_factory=_ZERO)
    num_still: np.ndarray = field(default_factory=_ZERO)
    num_still_since_start: np.ndarray = field(default_factory=_ZERO)
    update: np.ndarray = field(default_factory=_NOT_KNOWN)
    rms: np.ndarray = field(default_factory=_NOT_KNOWN)
    past_updates: np.ndarray = field(default_factory=partial(np.array, ()))
    has_moved: np.ndarray = field(default_factory=partial(np.array, True))
    still_for: np.ndarray = field(default_factory=_ZERO)
    shrinks_for: np.ndarray = field(default_factory=_ZERO)
    dead_for: np.ndarray = field(default_factory=_ZERO)
    dead_steps: np.ndarray = field(default_factory=_ZERO)
    back_at: np.ndarray = field(default_factory=_MINUS_ONE)
    trained_by: np.ndarray = field(default_factory=_UNKNOWN)
    num_steps: np.ndarray = field(default_factory=_ZERO)
    lr: np.ndarray = field(default_factory=_NONE_OF_IT)
    lr_share: np.ndarray = field(default_factory=_NONE_OF_IT)
    lr_rise: np.ndarray = field(default_factory=partial(np.array, 1.0))
    weight_decay: np.ndarray = field(default_factory=_NONE_OF_IT)
    gradient: np.ndarray = field(default_factory=_UNTOLD)
    gradient_ratio: np.ndarray = field(default_factory=_NOT_KNOWN)
    num_gradients: np.ndarray = field(default_factory=_ZERO)
    num_lossy: np.ndarray = field(default_factory=_ZERO)
    num_lossy_moved: np.ndarray = field(default_factory=_ZERO)
    num_lossy_expected: np.ndarray = field(default_factory=_NONE_OF_IT)
    num_could_round: np.ndarray = field(default_factory=_ZERO)
    num_not_decayed: np.ndarray = field(default_factory=_ZERO)
    num_to_decay: np.ndarray = field(default_factory=_ZERO)

    def __post_init__(self) -> None:
        num = len(self.name)
        for column, value in vars(self).items():
            shape = (num, np.shape(value)[-1]) if column == "past_updates" else (num,)
            if np.shape(value) != shape:
                object.__setattr__(self, column, np.broadcast_to(value, shape))

    def __len__(self) -> int:
        return len(self.name)

    @property
    def is_still(self) -> np.ndarray:
        """Whether no bit of it has changed since the last snapshot."""
        still: np.ndarray = self.still_for > 0
        return still

    @property
    def is_unmoved(self) -> np.ndarray:
        """Whether nothing but decay has moved it since the last snapshot."""
        return self.is_still | (self.shrinks_for > 0)
