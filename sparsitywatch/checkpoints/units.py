"""What the numbers of a series count: optimizer steps, epochs or saves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sparsitywatch.checkpoints.series import ListedCheckpoint
from sparsitywatch.checkpoints.step_from_path import says_steps
from sparsitywatch.redact import redacted_url


def in_one_unit(listed: Sequence[ListedCheckpoint]) -> list[ListedCheckpoint]:
    """The same checkpoints with what their numbers count, which is one thing.

    A number in a name counts epochs where it is that of the epoch in the file, or one less, in
    every file that states one; zero is zero in any unit. Where there are no numbers at all,
    the epoch in the file is one. Beside steps, epochs have no place.
    """
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
                number = one.epoch
                epochs[one.url] = replace(one, step=number, step_from="contents", unit="epoch")
    found = [epochs.get(one.url, one) for one in listed]
    units = {one.unit for one in found if one.state == "complete" and one.step is not None}
    if len(units) == 1:  # what cannot be read says it no other way
        (unit,) = units
        found = [replace(o, unit=unit) if not o.format and is_guess(o) else o for o in found]
    return found


def is_guess(one: ListedCheckpoint) -> bool:
    """Whether a step is no more than a number in a name that says nothing of steps."""
    return one.step_from == "name" and not says_steps(one.url)


def _beside_steps(one: ListedCheckpoint) -> ListedCheckpoint:
    reason = (
        f"Left out {redacted_url(one.url)}: expected a step, as others have, but its contents say "
        f"that it is of epoch {one.epoch}. Give its step: `--steps` (sw.replay({{0: url, ...}}))."
    )
    return replace(one, step=None, step_from="", unit="step", reason=reason)


def as_steps(one: ListedCheckpoint, steps_per_epoch: int | None) -> ListedCheckpoint:
    """The same with optimizer steps, where they are known, for epochs."""
    if steps_per_epoch is None or one.unit != "epoch" or one.step is None:
        return one
    return replace(one, step=one.step * steps_per_epoch, unit="step")
