"""Vital signs of a training: what a snapshot says of every parameter, and what follows for sure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
        reason: why the parameters were not compared one by one; empty if they were. Then only
            weights in scope are known: which are not finite, and whether all of them are back at
            an earlier state.
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


@dataclass(frozen=True, kw_only=True)
class TensorFacts:
    """What two snapshots and the optimizer say of one tensor.

    Counts are of sampled weights. Between two snapshots lies an interval.

    Args:
        name, size: of the tensor; ``size`` is its number of weights.
        num: how many are sampled.
        num_dims: of its shape.
        num_not_finite: that are NaN or infinite.
        num_still, num_still_since_start: whose bits are those of the snapshot before, and of the
            first one.
        update, rms: root mean square of the change since, and of the weights before.
        past_updates: the same change in earlier intervals, the latest last; at most eight.
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
        num_lossy_moved: of these, that moved all the same.
        num_lossy_expected: of these, that would have if nothing were lost: by a rounding that is
            random, or by a copy of higher precision that is not seen.
        num_could_round: of ``num_gradients``, whose updates may be lost.
        num_not_decayed: that have no gradient, are not 0, and stand still though decay has to be
            seen.
        num_to_decay: that have no gradient and are not 0, where decay has to be seen.
    """

    name: str
    size: int
    num: int
    num_dims: int = 1
    num_not_finite: int = 0
    num_still: int = 0
    num_still_since_start: int = 0
    update: float = _NAN
    rms: float = _NAN
    past_updates: tuple[float, ...] = ()
    has_moved: bool = True
    still_for: int = 0
    shrinks_for: int = 0
    dead_for: int = 0
    dead_steps: int = 0
    back_at: int = -1
    trained_by: str = "unknown"
    num_steps: int = 0
    lr: float = 0.0
    lr_share: float = 0.0
    lr_rise: float = 1.0
    weight_decay: float = 0.0
    gradient: str = ""
    gradient_ratio: float = _NAN
    num_gradients: int = 0
    num_lossy: int = 0
    num_lossy_moved: int = 0
    num_lossy_expected: float = 0.0
    num_could_round: int = 0
    num_not_decayed: int = 0
    num_to_decay: int = 0

    @property
    def is_unmoved(self) -> bool:
        """Whether nothing but decay has moved it since the last snapshot."""
        return self.still_for > 0 or self.shrinks_for > 0

    @property
    def is_still(self) -> bool:
        """Whether no bit of it has changed since the last snapshot."""
        return self.still_for > 0
