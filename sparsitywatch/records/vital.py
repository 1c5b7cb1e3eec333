"""Vital signs of a training: what a snapshot says of every parameter, and what follows for sure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sparsitywatch.redact import printable

__all__ = ["VITAL_KINDS", "Finding", "Vital"]

_NAN = float("nan")

#: Kinds of findings, and what is said of their tensors.
VITAL_KINDS: Mapping[str, str] = {
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
        kind: one of ``VITAL_KINDS``.
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
        names = ", ".join(map(printable, self.tensors[:3]))
        return (
            f"<Finding of {self.num} tensors {VITAL_KINDS.get(self.kind, self.kind)}: {names[:80]}>"
        )


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
        known = dict.fromkeys(_ALWAYS_KNOWN if self.reason else VITAL_KINDS, 0.0)
        for finding in self.findings:
            known[finding.kind] = float(finding.num)
        return known

    def __repr__(self) -> str:
        found = ", ".join(f"{f.num} {f.kind}" for f in self.findings) or "nothing wrong"
        if self.reason:
            return f"<Vital: {found}; {self.reason[:80]}>"
        return f"<Vital of {self.num_tensors} tensors: {found}>"
