"""Which scalars a record has, under which names, and which it withholds."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from contracts import fake_run

from sparsitywatch.records import Record

FULL = fake_run.look(2000)[0]
ESTIMATE = {"value", "last_crossing", "low", "high", "knee", "sharpness"}


def test_an_estimate_that_is_not_informative_is_withheld() -> None:
    estimate = replace(FULL.essential_sparsity, informative=False, value=0.9)
    series = replace(FULL, essential_sparsity=estimate).series()
    assert series["essential_sparsity/informative"] == 0.0
    assert not {f"essential_sparsity/{part}" for part in ESTIMATE} & set(series)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("motion/decay_clock", lambda x: replace(FULL, decay_clock=x)),
        ("motion/lr_clock", lambda x: replace(FULL, lr_clock=x)),
        ("motion/lr", lambda x: replace(FULL, lr=x)),
        ("motion/dormant", lambda x: replace(FULL, dormant=replace(FULL.dormant, fraction=x))),
        ("value/reliance", lambda x: replace(FULL, reliance=x)),
        ("near_zero/zero", lambda x: replace(FULL, near_zero={**FULL.near_zero, "zero": x})),
        (
            "essential_sparsity/low",
            lambda x: replace(FULL, essential_sparsity=replace(FULL.essential_sparsity, low=x)),
        ),
    ],
)
def test_what_could_not_be_measured_is_left_out(name: str, change: object, number: float) -> None:
    assert set(FULL.series()) - set(change(number).series()) == {name}


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("curve", {"value/dense", "value/all_removed"}),
        ("dormant", {"motion/dormant", "motion/dormant_by_chance"}),
        ("movement", {"motion/update_to_weight", "motion/sign_flips"}),
        ("masks", {"motion/mask_overlap_0.5", "motion/mask_overlap_0.9"}),
        ("forecast", {name for name in FULL.series() if name.startswith("forecast/")}),
        ("reliance", {"value/reliance"}),
        (
            "essential_sparsity",
            {f"essential_sparsity/{part}" for part in {*ESTIMATE, "informative"}},
        ),
    ],
)
def test_what_was_not_asked_for_is_left_out(part: str, names: set[str]) -> None:
    assert set(FULL.series()) - set(fake_run.without(FULL, part).series()) == names


def test_counts_that_could_not_be_read_are_left_out() -> None:
    unread: Record = replace(FULL, num_nan=-1, num_inf=-1, num_zero=-1, near_zero={}, valid=False)
    series = unread.series()
    assert series["watch/valid"] == 0.0
    assert not [name for name in series if name.startswith(("weights/", "near_zero/"))]
