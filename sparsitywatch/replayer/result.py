"""What a replay gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparsitywatch.records import Event, Record, html_of
from sparsitywatch.shown import shown_name

__all__ = ["Failure", "Replayed"]


@dataclass(frozen=True)
class Failure:
    """A checkpoint that could not be looked at, or not in full.

    Args:
        url: where it lies, as it can be opened: logins and signatures included.
        step: optimizer steps done; None if that is not known.
        reason: one line that names the file, the tensor where there is one, and the cause.
    """

    url: str
    step: int | None
    reason: str

    def __repr__(self) -> str:
        return f"<Failure at step {self.step}: {shown_name(self.reason)[:150]}>"


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What a replay saw.

    Args:
        records: by step, those of earlier replays into the same log directory included;
            layers are kept for the latest hundred only, the log has them all.
        events: in the order in which they were seen.
        failures: checkpoints that could not be looked at. Those whose step is known have an
            invalid record too.
        left_out: checkpoints that were passed over on purpose, and why: another one of the
            same step was taken, or no step is known.
        num_looks: checkpoints that were looked at now; the others were in the log already.
        directory: where the log lies, or None.
    """

    records: list[Record]
    events: list[Event]
    failures: list[Failure]
    left_out: list[Failure]
    num_looks: int
    directory: Path | None

    def __repr__(self) -> str:
        steps = (
            f" of steps {self.records[0].step} to {self.records[-1].step}" if self.records else ""
        )
        return (
            f"<Replayed {len(self.records)} records{steps}, {len(self.events)} events, "
            f"{len(self.failures)} failures>"
        )

    def _repr_html_(self) -> str:
        return html_of(repr(self)[1:-1], self.records, self.events)
