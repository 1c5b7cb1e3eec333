"""The table of every number that is followed: all of it is emitted, and nothing else is."""

from __future__ import annotations

import math

import pytest
import torch
from contracts import fake_run
from torch import nn

import sparsitywatch as sw
from sparsitywatch.series import SERIES, count, describe, numbered, size

FULL = fake_run.look(2000)[0]


def row_of(name: str) -> str:
    """Name of the row that describes a series."""
    (row,) = [
        row
        for row in SERIES
        if row.name == name or (row.name.endswith("*") and name.startswith(row.name[:-1]))
    ]
    return row.name


def test_each_row_is_emitted_and_each_emitted_number_has_one_row() -> None:
    assert {row_of(name) for name in FULL.series()} == {row.name for row in SERIES}
    assert len({row.name for row in SERIES}) == len(SERIES)


@pytest.mark.parametrize("row", SERIES, ids=lambda row: row.name)
def test_each_row_says_everything(row: object) -> None:
    assert row.unit
    assert row.sentence[0].isupper() or row.sentence[0].isdigit()
    assert row.sentence.endswith(".")
    assert row.label[0].islower()
    assert not row.label.endswith(".")
    assert ("*" in row.name) == ("*" in row.label)
    assert row.direction in ("", "up", "down")


def test_a_member_of_a_family_is_described_by_its_name() -> None:
    row = describe("near_zero/abs_0.001")
    assert (row.name, row.unit) == ("near_zero/abs_0.001", "fraction")
    assert row.label == "near-zero weights, |w| ≤ 0.001"
    assert row.short_label == "|w| ≤ 0.001"
    assert (
        describe("motion/mask_overlap_0.5").short_label
        == "share of the weights pruned at 50 % last time that would be pruned again"
    )


@pytest.mark.parametrize(
    "name", ["", "motion", "motion/dormant2", "near_zero/", "motion/mask_overlap_much", "</title>"]
)
def test_whatever_stands_in_a_log_has_a_description(name: str) -> None:
    row = describe(name)
    assert row.name == name
    assert row.trend("up") == ""


@pytest.mark.parametrize(
    ("name", "up", "down"),
    [
        ("near_zero/rms_0.1", "sparsifying", "densifying"),
        ("motion/dormant", "sparsifying", "densifying"),
        ("essential_sparsity/value", "sparsifying", "densifying"),
        ("weights/num_zero", "sparsifying", "densifying"),
        ("value/reliance", "", ""),
        ("motion/dormant_by_chance", "", ""),
        ("essential_sparsity/sharpness", "", ""),
    ],
)
def test_what_a_direction_means(name: str, up: str, down: str) -> None:
    assert (describe(name).trend("up"), describe(name).trend("down")) == (up, down)


def test_what_needs_a_proxy() -> None:
    needing = {name for name in FULL.series() if describe(name).needs_proxy}
    assert needing == {
        name
        for name in FULL.series()
        if name.startswith(("essential_sparsity/", "value/", "xray/"))
    }


@pytest.mark.parametrize(
    ("planted", "told"), [(0.3, 0.3), (-7.0, 7.0), (math.inf, math.inf), (math.nan, math.nan)]
)
def test_the_largest_weight(planted: float, told: float) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8).bfloat16(), nn.Linear(8, 2))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.clamp_(-0.1, 0.1)
        model[0].weight[3, 4] = planted
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sw.watch(model, optimizer, proxy=None, logdir=None, scope="layers") as watcher:
        record = watcher.snapshot()
    assert record.largest == pytest.approx(told, rel=0.004, nan_ok=True)
    assert not record.largest < abs(torch.tensor(told))
    assert ("weights/largest" in record.series()) == math.isfinite(told)


def test_numbers_as_people_read_them() -> None:
    assert describe("near_zero/zero").shown(0.0889) == "8.89 %"
    assert describe("value/dense").shown(2.30258) == "2.303"
    assert [count(1, "snapshot"), count(2000, "event")] == ["1 snapshot", "2,000 events"]
    assert [size(999), size(8_589_934_592)] == ["999 bytes", "8.59 GB"]
    assert numbered("step", 1200) == "step 1,200"
    assert numbered("epoch", 3, 4) == "epochs 3 and 4"
