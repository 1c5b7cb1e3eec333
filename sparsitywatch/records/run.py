"""What is said once about a run, and what is too large for a line of JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from sparsitywatch.records.record import Provenance
from sparsitywatch.shown import shown_name

__all__ = ["Detail", "LedgerEntry", "LogHistogram", "RunInfo"]


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """One parameter of the model, in or out of scope, and why.

    Args:
        name: the alphabetically first of its names, wrappers' prefixes removed.
        shape: its shape.
        num_weights: its number of elements.
        in_scope: whether its weights count.
        reason: why it is in or out, in a few words.
        aliases: other names of the same storage (tied weights), counted once.
    """

    name: str
    shape: tuple[int, ...]
    num_weights: int
    in_scope: bool
    reason: str
    aliases: tuple[str, ...] = ()

    def __repr__(self) -> str:
        verdict = "in" if self.in_scope else "out of"
        return f"<LedgerEntry {shown_name(self.name)[:80]}: {verdict} scope, {self.reason[:60]}>"


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What a sink is told once, before the first record.

    Args:
        initial_step: steps done when the watch attached; records at later steps follow,
            whatever the log already holds beyond it belongs to a future that was lost. In a
            replay the last step that is kept of the log, -1 if there is none.
        provenance: as in every record.
        ledger: every parameter of the model, in or out of scope.
        initial_rms: root mean square of each in-scope tensor when the watch first saw it.
        replayed_from: where the checkpoints lay, as asked for; empty for a live watch.
    """

    initial_step: int
    provenance: Provenance
    ledger: tuple[LedgerEntry, ...] = ()
    initial_rms: Mapping[str, float] = field(default_factory=dict)
    replayed_from: tuple[str, ...] = ()

    def __repr__(self) -> str:
        num = sum(entry.in_scope for entry in self.ledger)
        return (
            f"<RunInfo from step {self.initial_step}: {num} of {len(self.ledger)} parameters in "
            f"scope, {'replayed' if self.replayed_from else 'live'}>"
        )


@dataclass(frozen=True, kw_only=True)
class LogHistogram:
    """Histogram of log10|w| of one tensor; exact zeros and non-finite weights left out.

    Args:
        edges: float64, length B + 1, rising, in decades (log10 of the magnitude).
        counts: int64, length B; the first and last are not zero (trimmed). Both arrays
            are empty for a tensor without finite non-zero weights.
    """

    edges: np.ndarray
    counts: np.ndarray

    def __repr__(self) -> str:
        return f"<LogHistogram of {int(self.counts.sum()):,} weights in {len(self.counts)} bins>"


@dataclass(frozen=True, kw_only=True)
class Detail:
    """What sinks may draw or keep beside a record, too large for a line of JSON.

    Args:
        histograms: one per in-scope tensor.
        spectrum: the arrays that ``MagnitudeSpectrum.from_arrays`` rebuilds a spectrum
            from.
    """

    histograms: Mapping[str, LogHistogram] = field(default_factory=dict)
    spectrum: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Detail: {len(self.histograms)} histograms, {len(self.spectrum)} arrays>"
