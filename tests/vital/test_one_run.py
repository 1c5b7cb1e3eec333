"""What rules out that neighbouring checkpoints are of one run: each limit from both sides.

tests/offline/test_identity.py replays whole series.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from contracts.made_records import made_record

from sparsitywatch.records import LayerShare, MaskOverlap, Movement, Record
from sparsitywatch.vital.one_run import OneRunReviewer

LEVEL = 0.7


def checkpoint(
    step: int, since: int, *, flipped: float = 0.5, same: float = 0.0, clock: float = math.nan
) -> Record:
    """One of which so many signs differ; ``same`` is the way from chance to the same mask."""
    layer = LayerShare(name="w", num_weights=1000, rms=1.0, near_zero={})
    return replace(
        made_record(step, clock=clock, layers=(layer,)),
        movement=Movement(
            update_to_weight=1.0, sign_flips=flipped, num_sampled=1000, since_step=since
        ),
        masks=MaskOverlap(
            level=(LEVEL,), overlap=(LEVEL + same * (1 - LEVEL),), num_sampled=1000,
            since_step=since,
        ),
    )  # fmt: skip


def kinds(earlier: Sequence[Record], record: Record) -> list[str]:
    """The kinds of the events of a record."""
    return [event.kind for event in OneRunReviewer().events(record, earlier, [])]


@pytest.mark.parametrize(
    ("flipped", "same", "is_unlike"),
    [(0.5, 0.0, True), (0.41, 0.0, True), (0.39, 0.0, False), (0.5, 0.09, True),
     (0.5, 0.11, False)],
)  # fmt: skip
def test_little_in_common_is_four_tenths_of_the_signs_and_a_tenth_of_the_masks(
    flipped: float, same: float, *, is_unlike: bool
) -> None:
    first = checkpoint(0, -1)
    found = kinds([first], checkpoint(100, 0, flipped=flipped, same=same))
    assert found == (["unlike"] if is_unlike else [])


@pytest.mark.parametrize(("left", "is_told"), [(0.46, True), (0.44, False)])
def test_decay_that_leaves_less_than_a_correlation_of_045_explains_it(
    left: float, *, is_told: bool
) -> None:
    first, second = checkpoint(0, -1, clock=0.0), checkpoint(100, 0, clock=-math.log(left))
    assert kinds([first], second) == (["another_run"] if is_told else [])


@pytest.mark.parametrize(
    ("flipped", "since", "kind"),
    [(0.19, 100, "another_run"), (0.21, 100, "unlike"), (0.19, 150, "unlike")],
)
def test_neighbours_as_far_apart_of_which_a_fifth_flips_are_of_one_run(
    flipped: float, since: int, kind: str
) -> None:
    earlier = [checkpoint(since, -1), checkpoint(200, since, flipped=flipped)]
    assert kinds(earlier, checkpoint(300, 200)) == [kind]
