"""Which scalars a record has, under which names, and which it withholds."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from contracts import fake_run

from sparsitywatch.records import Record

FULL = fake_run.look(2000)[0]
ESTIMATE = {"value", "last_crossing", "low", "high", "knee", "sharpness"}


def test_a_full_record_by_hand() -> None:
    estimate, cost, curve = FULL.essential_sparsity, FULL.cost, FULL.curve
    assert FULL.series() == {
        "watch/stall_s": cost.stall_s,
        "watch/spectrum_s": cost.spectrum_s,
        "watch/evaluation_s": cost.evaluation_s,
        "watch/publish_s": cost.publish_s,
        "watch/num_forwards": 26.0,
        "watch/overhead": 0.009,
        "watch/num_left_out": 3.0,
        "watch/num_evaluations_left_out": 0.0,
        "watch/valid": 1.0,
        "motion/decay_clock": FULL.decay_clock,
        "motion/lr_clock": FULL.lr_clock,
        "motion/lr": 0.003,
        "motion/dormant": FULL.dormant.fraction,
        "motion/dormant_by_chance": 0.007,
        "motion/update_to_weight": 0.25,
        "motion/sign_flips": 0.06,
        "motion/mask_overlap_0.5": 0.8,
        "motion/mask_overlap_0.9": 0.95,
        "forecast/near_zero_in_0.5": FULL.forecast.fraction[1],
        "forecast/near_zero_in_1": FULL.forecast.fraction[2],
        "forecast/near_zero_in_1_low": FULL.forecast.low[2],
        "forecast/near_zero_in_1_high": FULL.forecast.high[2],
        "forecast/doubling_step": 2310.5,
        "value/reliance": FULL.reliance,
        "value/dense": curve.value[0],
        "value/all_removed": curve.value[-1],
        "weights/num_ranks_differing": 0.0,
        "weights/num_nan": 0.0,
        "weights/num_inf": 0.0,
        "weights/num_zero": 0.0,
        "weights/largest": 0.11,
        "near_zero/initial_0.1": FULL.near_zero["initial_0.1"],
        "near_zero/rms_0.1": FULL.near_zero["rms_0.1"],
        "near_zero/abs_0.001": FULL.near_zero["abs_0.001"],
        "near_zero/zero": 0.0,
        "essential_sparsity/informative": 1.0,
        "essential_sparsity/value": estimate.value,
        "essential_sparsity/last_crossing": estimate.last_crossing,
        "essential_sparsity/low": estimate.low,
        "essential_sparsity/high": estimate.high,
        "essential_sparsity/knee": estimate.knee,
        "essential_sparsity/sharpness": estimate.sharpness,
    }
    assert all(type(value) is float for value in FULL.series().values())


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
