"""What is said once about a run, and what is too large for a line of JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib.metadata import version

import numpy as np

from sparsitywatch.records.record import Layers, Provenance, Record
from sparsitywatch.redact import printable
from sparsitywatch.series import numbered, percent

#: Lists whose innermost member is a block, also within a stage; and those whose outermost one is.
_BLOCK_LIST, _LAYER_LIST = (
    re.compile(r"(?i)(?:^|_)(?:res)?blocks?$"),
    re.compile(r"(?i)layers?$|h$"),
)
_SPELLED_OUT = re.compile(r"(?i)(?:.*_)?(?:block|layer)s?_?\d+$")  # torchvision's encoder_layer_0
#: Of the package, from its installed metadata; every run says which one wrote it.
__version__ = version("sparsitywatch")


@lru_cache(maxsize=1 << 14)  # of the same names at every snapshot
def block_of(name: str) -> str:
    """The block that a tensor is in, by its name; outside of all blocks its module, else itself.

    >>> [block_of(f"{name}.fc.weight") for name in ("h.1.mlp.0", "stages.0.blocks.3", "head")]
    ['h.1', 'stages.0.blocks.3', 'head.fc']
    """
    *parts, _ = name.split(".")
    members = [
        at for at, part in enumerate(parts)
        if part.isdecimal()
        or (_SPELLED_OUT.match(part) and not "".join(parts[at + 1 : at + 2]).isdecimal())
    ]  # fmt: skip
    inner = [at for at in members if at and _BLOCK_LIST.search(parts[at - 1])]
    # a list inside of a block may be of single layers, of which none is a block
    inner = [at for at in inner if at < len(parts) - 1] or inner
    outer = [at for at in members if at and _LAYER_LIST.match(parts[at - 1])]
    end = next(iter(inner[-1:] + outer + members), len(parts) - 1)
    return ".".join(parts[: end + 1]) or name


@dataclass(frozen=True, kw_only=True)
class LedgerEntry:
    """One parameter of the model, in or out of scope, and why."""

    name: str  # the alphabetically first of its names, wrappers' prefixes removed
    shape: tuple[int, ...]
    num_weights: int
    in_scope: bool  # whether its weights count
    reason: str  # why it is in or out, in a few words
    aliases: tuple[str, ...] = ()  # other names of the same storage (tied weights), counted once

    @property
    def block(self) -> str:
        """The block of the model that it is in; its module, if it is in none."""
        return block_of(self.name)

    @property
    def dimensions(self) -> str:
        """The shape as a person reads it: "768 × 3072"."""
        return " × ".join(map(str, self.shape)) or "scalar"

    @property
    def why(self) -> str:
        """The reason, and which names are of the same weights."""
        return self.reason + (f"; the same as {', '.join(self.aliases)}" if self.aliases else "")

    def __repr__(self) -> str:
        verdict = "in" if self.in_scope else "out of"
        return f"<LedgerEntry {printable(self.name)[:80]}: {verdict} scope, {self.reason[:60]}>"


@dataclass(frozen=True, kw_only=True)
class WatchState:
    """How a live watch is: written at every snapshot, once a minute, and when it ends."""

    # "on"; "closed"; "ended" by an exception of the training; "off" if it switched itself off
    status: str
    reason: str = ""  # why it is off, or what has ended it; empty if it was closed by a call
    step: int  # optimizer steps done when this was written; of a watch that is off, since when
    wall_time: float  # when it was written, seconds since the epoch
    num_due: int = 0  # snapshots that were due since the run began: taken, or left out
    num_taken: int = 0  # snapshots in the log
    num_failed: int = 0  # of them, those that are not valid
    num_evaluated: int = -1  # of them, those whose evaluation succeeded; -1 without a proxy
    left_out: str = ""  # how many this process has left out, and why; empty if none
    last_step: int = -1  # the last snapshot; -1 if there is none
    last_evaluated_step: int = -1  # the last one whose evaluation succeeded; -1: none
    next_due_step: int = -1  # at which one is due next, and paid for; -1 if that is not known
    next_evaluation_step: int = -1  # the same of one with its evaluation
    overhead: float = math.nan  # share of the wall time that the watch has taken; NaN if unknown
    apart_s: float = 0.0  # seconds that first looks have taken, which are not in that share
    why_overhead: str = ""  # why it is above its limit, or has none; empty if it is within it
    step_s: float = math.nan  # wall time of a step, on average; NaN before the second one
    unlogged_since: int = -1  # the first snapshot that the log lacks; -1 if it has all
    log: str = ""  # what the log lacks and why, or when it did; empty if it has had all
    pid: int = -1  # the process that trains, on which machine, since which boot of it, in which
    host: str = ""  # container, and when it started; see ``sparsitywatch.processes``
    boot: str = ""
    namespace: str = ""
    started: int = -1

    @property
    def how(self) -> str:
        """Whether it is on, or how it ended, in a few words; its process is another question."""
        at = f"at step {self.step:,}"
        when = f", when {self.reason}" if self.reason else ""
        return {
            "off": f"the watch switched itself off {at}: {self.reason.rstrip('.')}",
            "ended": f"the training was ended by {self.reason} {at}",
            "closed": f"the watch was closed {at}{when}",
        }.get(self.status, f"the watch is on, {at}")

    @property
    def watched(self) -> str:
        """How much of what was due was measured, in a few words."""
        if self.num_due == 0:
            return "nothing yet" if self.status == "on" else "no snapshot was due"
        words = f"weights {self.num_taken:,} of {self.num_due:,}"
        if self.num_evaluated == 0:
            words += ", proxy never evaluated"
        elif self.num_evaluated > 0:
            often = f"{self.num_evaluated:,} times, last" if self.num_evaluated > 1 else "once,"
            words += f", proxy evaluated {often} at step {self.last_evaluated_step:,}"
        return words + (f", {self.num_failed:,} failed" if self.num_failed else "")

    @property
    def coming(self) -> str:
        """What comes next, and when, in a few words; empty if that is not known."""
        if self.status != "on":
            return ""
        steps = {"snapshot": self.next_due_step}
        if self.next_evaluation_step != self.next_due_step:
            steps["evaluation"] = self.next_evaluation_step
        return ", ".join(f"next {what} about step {n:,}" for what, n in steps.items() if n >= 0)

    @property
    def share(self) -> str:
        """The share of the time that it took, and why so much, in a few words; empty if unknown."""
        if not math.isfinite(self.overhead):
            return ""
        why = f", {self.why_overhead}" if self.why_overhead else ""
        looks = f", beside {self.apart_s:.2g} s for first looks" if self.apart_s else ""
        return f"the watch took {percent(min(self.overhead, 1.0))} of the wall time{why}{looks}"

    def describe(self) -> str:
        """The same as ``in_short``, in sentences."""
        return "".join(f"{part[0].upper()}{part[1:]}. " for part in self.in_short()).rstrip()

    def in_short(self, lost: str = "") -> list[str]:
        """All of it, in a few words each; ``lost`` is why it is not on though it says so."""
        parts = [
            lost or self.how,
            f"watched: {self.watched}",
            f"left out: {self.left_out}" if self.left_out else "",
            self.log,
            f"last snapshot at step {self.last_step:,}" if self.last_step >= 0 else "",
            "" if lost else self.coming,
            self.share,
        ]
        return [part for part in parts if part]


@dataclass(frozen=True, kw_only=True)
class Began:
    """How small the weights were when the run began, before any step that was watched."""

    step: int  # optimizer steps done by then
    # Share of its weights that are near zero, by rule and by in-scope tensor.
    near_zero: Mapping[str, Mapping[str, float]]

    @classmethod
    def of(cls, record: Record) -> Began:
        """Where nothing earlier is known: as a record has it."""
        columns = Layers.of(record.layers).columns
        pairs = ((rule, own.tolist()) for rule, own in columns.near_zero.items())
        return cls(
            step=record.step,
            near_zero={rule: dict(zip(columns.names, own, strict=True)) for rule, own in pairs},
        )


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What a sink is given once, before the first record."""

    # Steps done when the watch attached. Records at later steps follow, and whatever the log holds
    # beyond it already belongs to a future that was lost. In a replay the last step that is kept of
    # the log, -1 if there is none.
    initial_step: int
    provenance: Provenance  # as in every record
    ledger: tuple[LedgerEntry, ...] = ()  # every parameter of the model, in or out of scope
    # Root mean square of each in-scope tensor when the watch first saw it.
    initial_rms: Mapping[str, float] = field(default_factory=dict)
    began: Began | None = None  # None in a replay: its first record says it
    replayed_from: tuple[str, ...] = ()  # where the checkpoints lay; empty for a live watch
    state: WatchState | None = None  # how the watch is, as last written; None of a replay

    @property
    def unit(self) -> str:
        """What ``step`` counts: "step", or in a replay also "epoch" or "save"."""
        return self.provenance.unit

    def __repr__(self) -> str:
        kind = "replayed" if self.replayed_from else "live"
        begin = numbered(self.unit, self.initial_step)
        return f"<RunInfo from {begin}: {ledger_in_short(self.ledger)}, {kind}>"


def ledger_in_short(ledger: Sequence[LedgerEntry]) -> str:
    """How much of the model is watched, in a few words."""
    watched = [entry.num_weights for entry in ledger if entry.in_scope]
    total = sum(entry.num_weights for entry in ledger)
    return (
        f"{len(watched):,} of {len(ledger):,} parameters in scope, {sum(watched):,} of {total:,} "
        f"weights ({percent(sum(watched) / max(total, 1))})"
    )


@dataclass(frozen=True, kw_only=True)
class LogHistogram:
    """Histogram of log10|w| of a tensor's finite non-zero weights; empty if there are none."""

    edges: np.ndarray  # float64 [B + 1], rising, in decades (log10 of the magnitude)
    counts: np.ndarray  # int64 [B]; the first and last are not zero (trimmed)

    def __repr__(self) -> str:
        return f"<LogHistogram of {int(self.counts.sum()):,} weights in {len(self.counts)} bins>"


@dataclass(frozen=True, kw_only=True)
class Detail:
    """What sinks may draw or keep beside a record, too large for a line of JSON."""

    # Makes ``histograms``; few records show them.
    make_histograms: Callable[[], Mapping[str, LogHistogram]] = dict
    # The arrays that ``MagnitudeSpectrum.from_arrays`` rebuilds a spectrum from.
    spectrum: Mapping[str, np.ndarray] = field(default_factory=dict)

    @cached_property
    def histograms(self) -> Mapping[str, LogHistogram]:
        """By in-scope tensor, made when they are first asked for."""
        return self.make_histograms()

    def __repr__(self) -> str:
        return f"<Detail: {len(self.spectrum)} arrays>"
