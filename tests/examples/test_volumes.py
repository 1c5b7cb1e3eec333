"""Table and conclusion of the data-volume experiment, on made-up runs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from contracts import fake_run
from volumes import VolumeRun, conclusion, read_run, table

ESTIMATE = fake_run.look(2000)[0].essential_sparsity


def _run(fraction, seed, near_zero, essential=0.5, doubled=1000.0, began=900.0):
    estimate = replace(ESTIMATE, value=essential, low=essential - 0.1, high=essential + 0.1)
    return VolumeRun(
        fraction=fraction, seed=seed, near_zero=near_zero, essential_sparsity=estimate,
        doubled=doubled, doubled_clock=0.003 * doubled, began=began, began_clock=0.003 * began,
        records=[], events=[],
    )  # fmt: skip


def _runs(means, spread=0.01):
    return [
        _run(fraction, seed, mean + spread * (seed - 1), doubled=1000.0 + 50 * seed)
        for fraction, mean in means.items()
        for seed in range(3)
    ]


def test_a_run_is_read_from_its_log(tmp_path):
    fake_run.write_run(tmp_path, fake_run.looks(range(0, 2001, 100)), fake_run.events())
    run = read_run(tmp_path, 0.6, 7)
    records = [record for record, _ in fake_run.looks(range(0, 2001, 100))]
    near_zero = [record.near_zero["initial_0.1"] for record in records]
    low = near_zero.index(min(near_zero))
    doubled = next(i for i in range(low, 21) if near_zero[i] > 2 * near_zero[low])
    assert (run.doubled, run.doubled_clock) == (100.0 * doubled, records[doubled].decay_clock)
    assert (run.began, run.began_clock) == (1050.0, pytest.approx(3.15))
    assert (run.near_zero, run.essential) == (near_zero[-1], ESTIMATE.value)
    assert run.name == "60%, seed 7"


@pytest.mark.parametrize(("meaning", "began"), [("sparsifying", 600.0), ("densifying", 1050.0)])
def test_a_rise_that_another_series_saw_first_counts(tmp_path, meaning, began):
    first, second = fake_run.events()
    first = replace(first, related=("near_zero/initial_0.1",), trend=meaning)
    fake_run.write_run(tmp_path, fake_run.looks(range(0, 2001, 100)), [first, second])
    assert read_run(tmp_path, 0.6, 7).began == began


def test_a_run_without_event_or_doubling(tmp_path):
    fake_run.write_run(tmp_path, fake_run.looks(range(0, 1, 1)), [])
    run = read_run(tmp_path, 1.0, 0)
    assert all(math.isnan(x) for x in (run.doubled, run.began, run.began_clock, run.essential))
    row = table([run]).splitlines()[2]
    assert row.count("never") == 2
    assert "not informative" in row


def test_the_table_has_each_run_and_each_share():
    lines = table([_run(1.0, 0, 0.30), _run(1.0, 1, 0.34), _run(0.2, 0, 0.1)]).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[2] == [
        "100%", "0", "0.300", "1000 (3.00)", "900 (2.70)", "0.500 [0.400, 0.600]"
    ]  # fmt: skip
    assert cells[5][:3] == ["**100%**", "mean ± sd", "0.320 ± 0.028"]
    assert cells[6][:3] == ["**20%**", "mean ± sd", "0.100 ± 0.000"]
    assert len({len(row) for row in cells}) == 1


def test_a_measure_that_some_runs_lack_says_how_many_have_it():
    runs = [_run(1.0, 0, 0.3), _run(1.0, 1, 0.3, began=math.nan)]
    assert "900 ± 0 (1 of 2)" in table(runs)
    runs += [_run(0.2, 0, 0.3), _run(0.2, 1, 0.3)]
    assert "event began at step: some runs have none" in conclusion(runs)


def test_shares_that_differ_less_than_seeds():
    told = conclusion(_runs({1.0: 0.300, 0.6: 0.302, 0.2: 0.298}))
    assert "within the spread of the seeds" in told
    assert 'sparser" is not seen' in told


@pytest.mark.parametrize(("most", "words"), [(0.5, "more"), (0.1, "fewer")])
def test_shares_that_differ_more_than_seeds(most, words):
    told = conclusion(_runs({1.0: most, 0.6: 0.3, 0.2: 0.6 - most}))
    assert "The shares differ by more than the seeds do in: near zero at the end (limit" in told
    assert f"With 100% of the text {words} weights end near zero than with 20%." in told
    assert ('sparser" is seen' in told) == (words == "more")


def test_one_seed_or_one_share_says_nothing():
    for runs in ([_run(1.0, 0, 0.3), _run(0.2, 0, 0.1)], _runs({1.0: 0.3})):
        assert conclusion(runs).startswith("Nothing follows")
