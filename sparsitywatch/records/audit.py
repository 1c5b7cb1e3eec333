"""What an audit of a series of checkpoints says: findings, and what they rest on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sparsitywatch.series import count, size

#: Every finding, and what to do about it.
FINDINGS: Mapping[str, str] = {
    "unreadable": "Upload or copy it again, then audit again.",
    "not finite": "Leave it out. If training diverged there, everything later is lost too.",
    "tensors": "Audit one model at a time, or upload the right model.",
    "shape": "Audit one model at a time, or upload the right model.",
    "dtype": "Save every checkpoint in one dtype: rounding changes small weights.",
    "tie": "Tie the head as in the other checkpoints before you compare them.",
    "copy": "Do not use it. Ask the publisher for the true weights of this checkpoint.",
    "identical": "The files cannot tell whose weights these are: ask who saved them. A training "
    "that had not moved yet, or was rolled back, gives this too.",
    "shard": "Do not use it. Ask the publisher for the true file of this checkpoint.",
    "swapped": "Exchange the two, after a look at the log of the training.",
    "odd one out": "Leave it out until you know where it comes from.",
    "not of this run": "Leave it out, or audit the runs one by one.",
    "return": "Ask whether training was rolled back; if not, this is another checkpoint's file.",
    "jump": "Ask what changed there: the data, the optimizer, or the run.",
    "optimizer": "Do not go on training from it: ask for the state that belongs to these weights.",
    "missing": "Look for them, or say in your paper that they are missing.",
    "step": "Rename the file, or correct the number inside.",
}


@dataclass(frozen=True, kw_only=True)
class AuditFinding:
    """One checkpoint that is not what its name says, or may not be.

    Args:
        step: optimizer steps that it is called by; of steps that are missing the first one.
        finding: what is wrong, in a word or two: one of ``FINDINGS``.
        evidence: what shows it.
        action: what to do.
    """

    step: int | None
    finding: str
    evidence: str
    action: str

    @classmethod
    def of(cls, step: int | None, kind: str, evidence: str) -> AuditFinding:
        """One with what to do about it."""
        return cls(step=step, finding=kind, evidence=evidence, action=FINDINGS[kind])


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What an audit of a series found.

    Args:
        findings: by step; a checkpoint without a finding has none.
        steps: those that there are checkpoints of, as their names or contents count them.
        unit: what these count: "step", or else "epoch" or "save".
        num_checkpoints: how many there are.
        num_audited: of these, the ones that could be read.
        num_without_step: of these, the ones that nothing gives a step to, such as a branch
            "main"; they are not audited.
        num_weight_bytes: size of the weights of all.
        num_bytes_read: bytes of their files that were read, headers included.
        is_full: whether every weight was read.
    """

    findings: tuple[AuditFinding, ...]
    steps: tuple[int, ...]
    unit: str
    num_checkpoints: int
    num_audited: int
    num_without_step: int
    num_weight_bytes: int
    num_bytes_read: int
    is_full: bool

    @property
    def headline(self) -> str:
        """How many findings there are."""
        found, series = count(len(self.findings), "finding"), count(len(self.steps), "checkpoint")
        return f"{found} in {series}"

    @property
    def basis(self) -> str:
        """What was read of how much, and what was not."""
        unread = len(self.steps) - self.num_audited
        words = [
            f"{unread:,} cannot be read; " * bool(unread),
            f"{self.num_without_step:,} left out, as nothing says its {self.unit}; "
            * bool(self.num_without_step),
        ]
        return f"{''.join(words)}{size(self.num_bytes_read)} read of {size(self.num_weight_bytes)}"

    def __repr__(self) -> str:
        return f"<Audit: {self.headline}>"

    @property
    def status(self) -> Literal[0, 1, 2]:
        """0: nothing was found; 1: there are findings; 2: nothing could be audited."""
        if self.num_audited == 0:
            return 2
        return 1 if self.findings else 0
