"""Checkpoints as one series: what is known of each, which are the same, one of each step."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from sparsitywatch.checkpoints.base import Checkpoint
from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.checkpoints.step_from_path import path_parts
from sparsitywatch.checkpoints.template import templates
from sparsitywatch.errors import CheckpointError, ConfigurationError, IncompleteCheckpointError
from sparsitywatch.redact import redacted_url
from sparsitywatch.weights.layout import Entry, natural_order


@dataclass(frozen=True, kw_only=True)
class ListedCheckpoint:
    """One checkpoint that is there, or is about to be."""

    url: str  # what ``open_checkpoint`` takes
    step: int | None  # optimizer steps done; None if nothing says so
    step_from: str  # "given", "trainer state", "contents", "name", or "" without a step
    format: str  # empty while that is not known
    #: "complete"; "incomplete": not yet all there, worth a wait; "refused": it will not become
    #: readable; "duplicate": another one of the same step is better; "foreign": it lies beside
    #: weights, and is something else.
    state: str
    reason: str = ""  # why the state is not "complete", in one line
    unit: str = "step"  # what the step counts: "step", or else "epoch" or "save"
    epoch: int | None = None  # that the contents state, if any
    note: str = ""  # what of a complete one is worth a word, in one line
    key: str = ""  # what leads to the model in it
    series: str = ""  # its address without the step; those of one run have the same
    #: Every tensor, in the order of the files; empty while it cannot be opened.
    entries: tuple[Entry, ...] = field(default=(), repr=False, compare=False)
    #: Of files without checksums: what changes while they are written.
    version: str = field(default="", repr=False, compare=False)
    #: Itself, closed, where it was to be kept: its description is not read again.
    checkpoint: Checkpoint | None = field(default=None, repr=False, compare=False)

    @property
    def error(self) -> CheckpointError | None:
        """Why it cannot be read; None if it can."""
        if self.state == "incomplete":
            return IncompleteCheckpointError(self.reason)
        return CheckpointError(self.reason) if self.state == "refused" else None


# ------------------------------------------------------------------ the same weights

#: Tensors that are compared, and bytes of each.
_NUM_COMPARED, COMPARED_BYTES = 32, 4096


def are_same(
    one: str, other: str, storage_options: Mapping[str, Any] | None, key: str | None = None
) -> bool:
    """Whether two checkpoints hold the same weights, by a sample of their bytes."""
    with (
        open_checkpoint(one, storage_options, key) as first,
        open_checkpoint(other, storage_options, key) as second,
    ):
        names = _compared(first.entries(), second.entries())
        return bool(names) and all(begin_of(first, n) == begin_of(second, n) for n in names)


def _compared(one: Sequence[Entry], other: Sequence[Entry]) -> list[str]:
    """Names of tensors to compare; none if the checkpoints differ by what is in them."""
    ours, theirs = ({entry.name: entry for entry in entries} for entries in (one, other))
    names = [name for name in ours if name in theirs]
    for mine in (ours, theirs):
        # of tied weights one name may be stored
        stored = {mine[name].storage for name in names} - {None}
        if any(e.storage not in stored for n, e in mine.items() if n not in names):
            return []
    pairs = [(ours[name], theirs[name]) for name in names]
    if any((a.shape, a.dtype) != (b.shape, b.dtype) for a, b in pairs):
        return []
    return spread([ours[name] for name in names])


def spread(entries: Sequence[Entry]) -> list[str]:
    """Names of the tensors that a sample is taken of: from the largest matrix on down."""
    # what is split between ranks are matrices, and not the smallest of them
    by_size = sorted(entries, key=lambda entry: (len(entry.shape) > 1, entry.num_bytes))
    step = max(1, len(by_size) // _NUM_COMPARED)
    return [entry.name for entry in by_size[::-1][::step]]


def begin_of(checkpoint: Checkpoint, name: str, num_bytes: int = COMPARED_BYTES) -> bytes:
    """The first bytes of a tensor in flat order."""
    chunks = checkpoint.chunks(name, memoryview(bytearray(num_bytes)))
    return bytes(next(chunks, b"")[:num_bytes])


#: Tensors that a mark is made of, and bytes of each: a training moves them all.
_NUM_MARKED, _MARKED_BYTES = 4, 256


def mark_of(checkpoint: Checkpoint, names: Sequence[str]) -> str:
    """What tells these tensors from later ones of their names, by 1 kB: 16 digits."""
    there = {entry.name: entry for entry in checkpoint.entries()}
    some = [name for name in sorted(names) if name in there and not there[name].problem]
    found = hashlib.sha256()
    for name in some[:: -(-len(some) // _NUM_MARKED) or 1]:
        found.update(name.encode() + begin_of(checkpoint, name, _MARKED_BYTES))
    return found.hexdigest()[:16] if some else ""


# ------------------------------------------------------------------ one of each step

#: How the name of an average of the weights tells it: ``step-5_ema.pt``, ``unet_ema``.
_AVERAGE = re.compile(r"(?:^|[._-])(?:ema|swa)(?![A-Za-z])", re.IGNORECASE)

#: Whether two checkpoints hold the same weights, by their URLs.
AreSame = Callable[[str, str], bool]
#: By URL, a checkpoint as it stands once it is compared with the others.
Told = dict[str, ListedCheckpoint]


def one_of_each_step(
    found: Sequence[ListedCheckpoint], known: Collection[str], are_same: AreSame
) -> list[ListedCheckpoint]:
    """The same in the order of their steps, of each series one a step; the others say why not."""
    names = templates({one.url: one.step for one in found if one.step is not None})
    listed = [replace(one, series=names.get(one.url, "")) for one in found]
    listed.sort(key=lambda one: (one.step is None, one.step or 0, natural_order(one.url)))
    for tell in (_foreign, partial(_of_one_step, known, are_same), partial(_copies, are_same)):
        told = tell(_complete(listed))
        listed = [told.get(one.url, one) for one in listed]
    return listed


def _complete(listed: Sequence[ListedCheckpoint]) -> list[ListedCheckpoint]:
    return [one for one in listed if one.state == "complete" and one.step is not None]


def _foreign(complete: Sequence[ListedCheckpoint]) -> Told:
    """What lies beside weights of its step and is something else."""
    reasons = {}
    for one in complete:
        if _AVERAGE.search("/".join(path_parts(one.url)[-2:])):
            reasons[one.url] = "its name says that it is an average"
        elif not any(len(entry.shape) > 1 for entry in one.entries):
            reasons[one.url] = "there is no matrix in it"
    weights = {one.step: redacted_url(one.url) for one in complete if one.url not in reasons}
    told = {}
    for one in complete:
        if one.url in reasons and one.step in weights:
            why = f"{reasons[one.url]}, and {weights[one.step]} is of step {one.step}"
            reason = f"Left out {redacted_url(one.url)}: {why}. Name it to read it."
            told[one.url] = replace(one, state="foreign", reason=reason)
    return told


def _of_one_step(
    known: Collection[str], are_same: AreSame, complete: Sequence[ListedCheckpoint]
) -> Told:
    """Of one step and series the first stays: a whole folder before a file.

    Where others do not hold the same weights, nobody knows which are those of the step.
    """
    by_step: dict[tuple[str, int | None], list[ListedCheckpoint]] = {}
    for one in complete:
        by_step.setdefault((one.series, one.step), []).append(one)
    told: Told = {}
    for several in by_step.values():
        best = next((one for one in several if one.url in known), None)
        best = best or next((one for one in several if one.step_from != "name"), several[0])
        others = [one for one in several if one is not best]
        reason = "" if best.url in known else _unlike(best, others, are_same)
        if reason:
            told[best.url] = replace(best, state="refused", reason=reason)
        taken = "is refused for it" if reason else "is taken"
        told.update((one.url, _duplicate(one, best, taken)) for one in others)
    return told


def _copies(are_same: AreSame, complete: Sequence[ListedCheckpoint]) -> Told:
    """Of several series, those that only hold weights of the longest one are copies of it."""
    (main, *others) = by_series(complete).values() or ([],)
    taken = {one.step: one for one in main}
    told: Told = {}
    for series in others:
        pairs = [(one, taken[one.step]) for one in series if one.step in taken]
        if len(pairs) == len(series) and all(not _unlike(of, [one], are_same) for one, of in pairs):
            told.update((one.url, _duplicate(one, of, "is taken")) for one, of in pairs)
    return told


def _duplicate(one: ListedCheckpoint, of: ListedCheckpoint, taken: str) -> ListedCheckpoint:
    words = f"{redacted_url(of.url)} is of step {one.step} as well and {taken}."
    return replace(one, state="duplicate", reason=words)


def _unlike(best: ListedCheckpoint, others: Sequence[ListedCheckpoint], are_same: AreSame) -> str:
    """Why none of several checkpoints of one step can be taken; empty if all are the same."""
    shown = redacted_url(best.url)
    try:
        other = next((one for one in others if not are_same(best.url, one.url)), None)
    except CheckpointError as error:
        return f"Cannot compare {shown} with others of step {best.step}. {error}"
    if other is None:
        return ""
    return (
        f"Cannot read {shown}: expected one checkpoint of step {best.step}, got "
        f"{redacted_url(other.url)} as well, and they do not hold the same weights: they may be "
        "parts of a model, or one of them is something else. Name those that you mean, or say "
        "which step each is of: `--steps` (sw.replay({0: url, ...}))."
    )


# ------------------------------------------------------------------ one run

#: Series that an error lists.
_MOST_LISTED = 30


def by_series(listed: Sequence[ListedCheckpoint]) -> dict[str, list[ListedCheckpoint]]:
    """What can be measured, by series, the longest first."""
    found: dict[str, list[ListedCheckpoint]] = {}
    for one in _complete(listed):
        found.setdefault(one.series, []).append(one)
    # of two of one length the one that says its steps inside
    order = sorted(found.items(), key=lambda kv: (-len(kv[1]), kv[1][0].step_from == "name"))
    return dict(order)


def expect_one_series(
    listed: Sequence[ListedCheckpoint],
    done: str = "measured",
    each: str = "give `--each` (each=True) for a log of each, ",
) -> None:
    """Raise ConfigurationError where the addresses are those of several runs.

    It says what was not ``done``, and how ``each`` of them can be.
    """
    series = by_series(listed)
    if len(series) < 2:
        return
    raise ConfigurationError(
        "Expected the checkpoints of one run, whose addresses differ in their steps, got "
        f"{len(series):,} series:\n"
        + "\n".join(in_lines(series))
        + f"\nNothing was {done}. Name the checkpoints of one of them, {each}or give `--steps` "
        "({step: address}) if they are of one run."
    )


def in_lines(series: Mapping[str, Sequence[ListedCheckpoint]]) -> list[str]:
    """Each series in a line: its address, how many there are, and their numbers."""
    lines = []
    for name, ones in series.items():
        steps = f"{ones[0].unit}s {ones[0].step:,} to {ones[-1].step:,}"
        lines.append(f"  {redacted_url(name)}: {len(ones):,}, {steps}")
    more = [f"  and {len(lines) - _MOST_LISTED:,} more"] if len(lines) > _MOST_LISTED else []
    return [*lines[:_MOST_LISTED], *more]


def select(
    listed: Sequence[ListedCheckpoint],
) -> tuple[dict[int, ListedCheckpoint], list[ListedCheckpoint]]:
    """What to measure, by rising step, and what not, with the reason.

    A single checkpoint without a step stands for step 0.
    """
    if len(listed) == 1 and listed[0].state == "complete" and listed[0].step is None:
        listed = [replace(listed[0], step=0)]
    complete = {one.step for one in listed if one.state == "complete"}
    pending: dict[int, ListedCheckpoint] = {}
    others: list[ListedCheckpoint] = []
    for one in listed:
        if one.step is None and one.state == "complete":
            reason = one.reason or (
                f"Left out {redacted_url(one.url)}: expected a step in its contents or its name, "
                "found none. Name it as in checkpoint-500."
            )
            others.append(replace(one, reason=reason))
        elif one.step is None or one.state in ("duplicate", "foreign"):
            others.append(one)
        elif one.state == "complete" or one.step not in complete:
            pending.setdefault(one.step, one)
    return dict(sorted(pending.items())), others
