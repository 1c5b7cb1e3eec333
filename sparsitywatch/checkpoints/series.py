"""Checkpoints as one series: what is known of each, which are the same, one of each step."""

from __future__ import annotations

import hashlib
import re
from bisect import bisect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from statistics import median

from sparsitywatch.checkpoints.addresses import path_parts, place_of_step, templates
from sparsitywatch.checkpoints.base import Checkpoint, OptimizerState
from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.checkpoints.storage import Options
from sparsitywatch.errors import CheckpointError, ConfigurationError, IncompleteCheckpointError
from sparsitywatch.redact import printable, redacted_url
from sparsitywatch.series import numbered
from sparsitywatch.weights.layout import Entry, natural_order


@dataclass(frozen=True, kw_only=True)
class ListedCheckpoint:
    """One checkpoint that is there, or is about to be."""

    url: str  # what ``open_checkpoint`` takes
    step: int | None  # optimizer steps done; None if nothing says so
    step_from: str  # "given", "trainer state", "contents", "name", or "" without a step
    format: str = ""  # empty while that is not known
    #: "complete"; "incomplete": not yet all there, worth a wait; "refused": it will not become
    #: readable; "duplicate": another one of the same step is better; "foreign": it lies beside
    #: weights, and is something else.
    state: str = "incomplete"
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

    def __repr__(self) -> str:
        at = "an unknown step" if self.step is None else self.place
        told = f": {printable(self.reason)[:150]}" if self.reason else ""
        return f"<{self.state} checkpoint at {at}{told}>"

    @property
    def shown(self) -> str:
        """Its URL for messages."""
        return redacted_url(self.url)

    @property
    def place(self) -> str:
        """Where in its run it is."""
        return numbered(self.unit, self.step or 0)

    @property
    def error(self) -> CheckpointError | None:
        """Why it cannot be read; None if it can."""
        if self.state == "incomplete":
            return IncompleteCheckpointError(self.reason)
        return CheckpointError(self.reason) if self.state == "refused" else None


#: What is there, in the order of the steps, and what of it is to be measured, by step.
Listed = Sequence[ListedCheckpoint]
Pending = Mapping[int, ListedCheckpoint]


# ------------------------------------------------------------------ the same weights

#: Tensors that are compared, and bytes of each.
_NUM_COMPARED, COMPARED_BYTES = 32, 4096


def are_same(one: str, other: str, storage_options: Options, key: str | None = None) -> bool:
    """Whether two checkpoints hold the same weights, by a sample of their bytes."""
    with (
        open_checkpoint(one, storage_options, key) as first,
        open_checkpoint(other, storage_options, key) as second,
    ):
        ours, theirs = ({e.name: e for e in one.entries()} for one in (first, second))
        both = [(entry, theirs[name]) for name, entry in ours.items() if name in theirs]
        if any((a.shape, a.dtype) != (b.shape, b.dtype) for a, b in both):
            return False
        for mine, others in ((ours, theirs), (theirs, ours)):
            # of tied weights one name may be stored
            stored = {mine[entry.name].storage for entry, _ in both} - {None}
            if any(e.storage not in stored for name, e in mine.items() if name not in others):
                return False
        names = spread([entry for entry, _ in both])
        return bool(names) and all(begin_of(first, n) == begin_of(second, n) for n in names)


def spread(entries: Sequence[Entry], num: int = _NUM_COMPARED) -> list[str]:
    """Names of tensors that a sample is taken of, about so many: from the largest matrix down."""
    # what is split between ranks are matrices, and not the smallest of them
    by_size = sorted(entries, key=lambda entry: (len(entry.shape) > 1, entry.num_bytes))
    step = max(1, -(-len(by_size) // num))
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


# ------------------------------------------------------------------ one unit


def in_one_unit(listed: Listed) -> list[ListedCheckpoint]:
    """The same checkpoints with what their numbers count, which is one thing."""
    # a number in a name counts epochs where it is that of the epoch in the file, or one less, in
    # every file that states one. Where there are none, the epoch in the file is the number.
    complete = [one for one in listed if one.state == "complete"]
    named = [one for one in complete if one.epoch is not None and is_guess(one)]
    # a file states the epoch that it was saved in, or the one to go on with
    ahead = {(one.epoch or 0) - (one.step or 0) for one in named}
    are_epochs = ahead in ({0}, {1}) and any(one.step for one in named)
    epochs = {one.url: replace(one, unit="epoch") for one in named if are_epochs}
    others = [one for one in complete if one.url not in epochs and one.unit == "step"]
    if any(one.step for one in others):
        epochs = {url: _beside_steps(one) for url, one in epochs.items()}
    elif not are_epochs:
        for one in others:
            if one.step is None and one.epoch is not None:
                epochs[one.url] = replace(one, step=one.epoch, step_from="contents", unit="epoch")
    found = [epochs.get(one.url, one) for one in listed]
    units = {one.unit for one in found if one.state == "complete" and one.step is not None}
    if len(units) == 1:  # what cannot be read says it no other way
        (unit,) = units
        found = [replace(o, unit=unit) if not o.format and is_guess(o) else o for o in found]
    return found


def is_guess(one: ListedCheckpoint) -> bool:
    """Whether a step is no more than a number in a name that says nothing of steps."""
    place = place_of_step(one.url)
    return one.step_from == "name" and not (place and place.is_sure)


def _beside_steps(one: ListedCheckpoint) -> ListedCheckpoint:
    reason = (
        f"Left out {one.shown}: expected a step, as others have, but its contents say "
        f"that it is of epoch {one.epoch}. Give its step: `--steps` (sw.replay({{0: url, ...}}))."
    )
    return replace(one, step=None, step_from="", unit="step", reason=reason)


def as_steps(one: ListedCheckpoint, steps_per_epoch: int | None) -> ListedCheckpoint:
    """The same with optimizer steps, where they are known, for epochs."""
    if steps_per_epoch is None or one.unit != "epoch" or one.step is None:
        return one
    return replace(one, step=one.step * steps_per_epoch, unit="step")


# ------------------------------------------------------------------ one of each step

#: How the name of an average of the weights tells it: ``step-5_ema.pt``, ``unet_ema``.
_AVERAGE = re.compile(r"(?:^|[._-])(?:ema|swa)(?![A-Za-z])", re.IGNORECASE)

#: Whether two checkpoints hold the same weights, by their URLs.
AreSame = Callable[[str, str], bool]
#: By URL, a checkpoint as it stands once it is compared with the others.
Told = dict[str, ListedCheckpoint]


def one_of_each_step(
    found: Listed, known: Collection[str], are_same: AreSame
) -> list[ListedCheckpoint]:
    """The same in the order of their steps, of each series one a step; the others say why not."""
    names = templates({one.url: one.step for one in found if one.step is not None})
    listed = [replace(one, series=names.get(one.url, "")) for one in found]
    listed.sort(key=lambda one: (one.step is None, one.step or 0, natural_order(one.url)))
    same_step, copies = partial(_of_one_step, known, are_same), partial(_copies, are_same)
    for tell in (_foreign, same_step, copies, _layouts):
        told = tell(_complete(listed))
        listed = [told.get(one.url, one) for one in listed]
    return listed


def _complete(listed: Listed) -> list[ListedCheckpoint]:
    return [one for one in listed if one.state == "complete" and one.step is not None]


def _foreign(complete: Listed) -> Told:
    """What lies beside weights of its step and is something else."""
    reasons = {}
    for one in complete:
        # folders around that of the step, such as a run's, say nothing of it
        place, parts = place_of_step(one.url), path_parts(one.url)
        first = "/".join(parts).count("/", 0, place.start) if place else len(parts) - 1
        if _AVERAGE.search("/".join(parts[first:])):
            reasons[one.url] = "its name says that it is an average"
        elif not any(len(entry.shape) > 1 for entry in one.entries):
            reasons[one.url] = "there is no matrix in it"
    weights = {one.step: one.shown for one in complete if one.url not in reasons}
    told = {}
    for one in complete:
        if one.url in reasons and one.step in weights:
            why = f"{reasons[one.url]}, and {weights[one.step]} is of {one.place}"
            told[one.url] = _left_out(one, why)
    return told


def _of_one_step(known: Collection[str], are_same: AreSame, complete: Listed) -> Told:
    """Of one step and series the first stays; none where others do not hold the same weights."""
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


def _copies(are_same: AreSame, complete: Listed) -> Told:
    """Of several series, those that only hold weights of the longest one are copies of it."""
    (main, *others) = by_series(complete).values() or ([],)
    taken = {one.step: one for one in main}
    told: Told = {}
    for series in others:
        pairs = [(one, taken[one.step]) for one in series if one.step in taken]
        if len(pairs) == len(series) and all(not _unlike(of, [one], are_same) for one, of in pairs):
            told.update((one.url, _duplicate(one, of, "is taken")) for one, of in pairs)
    return told


#: What says no more than how a checkpoint is saved: a name of a file in the folder of its step.
_LAYOUT = re.compile(
    r"(?<=\{step\})/(?:pytorch_|diffusion_)?(?:model|weights|checkpoint|ckpt)\.\w+$"
)


def _layouts(complete: Listed) -> Told:
    """Of series whose addresses differ in the way of saving alone, all but the longest."""
    (main, *others) = by_series(complete).values() or ([],)
    told: Told = {}
    for series in others:
        ways = [_LAYOUT.sub("", some[0].series) for some in (main, series)]
        if ways[0] == ways[1] and len(series) < len(main):
            why = f"it is saved in another way than the {len(main):,} at {main[0].series}"
            told.update((one.url, _left_out(one, redacted_url(why))) for one in series)
    return told


def _left_out(one: ListedCheckpoint, why: str) -> ListedCheckpoint:
    reason = f"Left out {one.shown}: {why}. Name it to read it."
    return replace(one, state="foreign", reason=reason)


def _duplicate(one: ListedCheckpoint, of: ListedCheckpoint, taken: str) -> ListedCheckpoint:
    reason = f"{one.reason} {of.shown} is of {one.place} as well and {taken}."
    return replace(one, state="duplicate", reason=reason.strip())


def _unlike(best: ListedCheckpoint, others: Listed, are_same: AreSame) -> str:
    """Why none of several checkpoints of one step can be taken; empty if all are the same."""
    try:
        other = next((one for one in others if not are_same(best.url, one.url)), None)
    except CheckpointError as error:
        return f"Cannot compare {best.shown} with others of {best.place}. {error}"
    if other is None:
        return ""
    return (
        f"Cannot read {best.shown}: expected one checkpoint of {best.place}, got {other.shown} as "
        "well, and they do not hold the same weights: they may be parts of a model, or one of them "
        "is something else. Name those that you mean, or say which step each is of: `--steps` "
        "(sw.replay({0: url, ...}))."
    )


# ------------------------------------------------------------------ one run

#: Series that an error lists.
_MOST_LISTED = 30


def by_series(listed: Listed) -> dict[str, list[ListedCheckpoint]]:
    """What can be measured, by series, the longest first."""
    found: dict[str, list[ListedCheckpoint]] = {}
    for one in _complete(listed):
        found.setdefault(one.series, []).append(one)
    # of two of one length the one that says its steps inside
    return dict(sorted(found.items(), key=lambda kv: (-len(kv[1]), kv[1][0].step_from == "name")))


def expect_one_series(
    listed: Listed,
    done: str = "measured",
    each: str = "give `--each` (each=True) for a log of each, ",
) -> None:
    """Raise, with what was not ``done`` and how ``each`` can be, where there are several runs."""
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


def select(listed: Listed) -> tuple[Pending, list[ListedCheckpoint]]:
    """What to measure, by rising step, and what not, with the reason."""
    # a single checkpoint without a step stands for step 0
    if len(listed) == 1 and listed[0].state == "complete" and listed[0].step is None:
        listed = [replace(listed[0], step=0)]
    complete = {one.step: one for one in listed if one.state == "complete"}
    pending: dict[int, ListedCheckpoint] = {}
    others: list[ListedCheckpoint] = []
    for one in listed:
        if one.step is None and one.state == "complete":
            reason = one.reason or (
                f"Left out {one.shown}: expected a step in its contents or its name, "
                "found none. Name it as in checkpoint-500."
            )
            others.append(replace(one, reason=reason))
        elif one.step is None or one.state in ("duplicate", "foreign"):
            others.append(one)
        elif one.step in complete and one.state != "complete":
            others.append(_duplicate(one, complete[one.step], "is taken"))
        elif one.step in pending:
            others.append(_duplicate(one, pending[one.step], "is tried"))
        else:
            pending[one.step] = one
    return dict(sorted(pending.items())), others


# ------------------------------------------------------------------ optimizers of one run
#
# Two things can be proven, and only where most checkpoints of the series keep to them. The state
# of a parameter has its shape. Between two checkpoints an optimizer counts at most as many updates
# as there are steps, and never fewer than before, unless it began anew.

#: Checkpoints before one that are compared with it.
_AROUND = 64
#: The share of checkpoints whose counts must agree before one that does not is wrong.
_AGREEING = 2 / 3


def unlike_others(
    series: Mapping[int, Mapping[str, OptimizerState]], unit: str = "step"
) -> dict[int, str]:
    """Why the optimizers of some steps are not of the weights beside them, where that is proven."""
    found: dict[int, str] = {}
    for key in dict.fromkeys(key for states in series.values() for key in states):
        own = {step: states[key] for step, states in sorted(series.items()) if key in states}
        fitting = [step for step, state in own.items() if not state.misfit]
        if 2 * len(fitting) <= len(own):
            continue  # such as one that keeps what it knows in other shapes
        rows = {step: state.misfit for step, state in own.items() if state.misfit}
        counts = {step: own[step].num_updates for step in fitting}
        # numbers that count epochs say nothing of the number of updates
        known = {n: num for n, num in counts.items() if num is not None and unit == "step"}
        for step, neighbours in _off_the_line(known).items():
            others = " and ".join(f"{known[n]:,} at step {n:,}" for n in neighbours)
            rows[step] = f"it has made {known[step]:,} updates, beside {others}"
        for step, words in rows.items():
            what = f"the state under {key!r} is of another {unit} or model"
            found.setdefault(step, f"{what}: {words}")
    return found


def _off_the_line(counts: Mapping[int, int]) -> dict[int, list[int]]:
    """Steps that are not in the longest line of counts that go together; and their neighbours."""
    steps = list(counts)
    if len(steps) < 3:
        return {}
    slack = median(b - a for a, b in pairwise(steps)) / 2  # names are rounded
    length, before = dict.fromkeys(steps, 1), dict.fromkeys(steps, -1)
    for at, step in enumerate(steps):
        for earlier in steps[max(0, at - _AROUND) : at]:
            passed, made = step - earlier, counts[step] - counts[earlier]
            goes_on = -slack <= made <= passed + slack
            began_anew = counts[step] <= passed + slack
            if (goes_on or began_anew) and length[earlier] + 1 > length[step]:
                length[step], before[step] = length[earlier] + 1, earlier
    line = [max(steps, key=lambda step: length[step])]
    while before[line[-1]] in length:
        line.append(before[line[-1]])
    if len(line) < max(3, _AGREEING * len(steps)):
        return {}  # such as where a name counts something else
    line.sort()
    places = {step: bisect(line, step) for step in steps if step not in line}
    return {step: line[max(0, at - 1) : at + 1] for step, at in places.items()}
