"""Milestones of a run, read off its log: plateau, breakthrough, take-off."""

from __future__ import annotations

from dataclasses import replace

import pytest
from contracts import fake_run
from contracts.made_records import made_record
from milestones import columns, find_breakthrough, find_takeoff

import sparsitywatch as sw
from sparsitywatch.records import Record, SparsityCurve


def _record(step: int, loss: float = 3.0, reliance: float = 0.1, near_zero: float = 0.05, **more):
    curve = SparsityCurve(sparsity=[0, 1], value=[loss, loss + reliance])
    fields = {"curve": curve, "reliance": reliance, **more}
    return replace(made_record(step, near_zero, clock=step / 100), **fields)


def _losses(*losses: float) -> list[Record]:
    """A snapshot every 10 steps."""
    return [_record(10 * i, loss=x) for i, x in enumerate(losses, start=1)]


def test_a_plateau_and_its_end():
    records = _losses(3.4, 3.01, 3.0, 2.98, 3.02, 2.99, 2.97, 2.9, 2.84, 2.7)
    found = find_breakthrough(records, steps=200)
    assert (found.step, found.plateau) == (90, 3.0)  # 2.84 is the first below 3.0 - 0.15
    assert find_breakthrough(records[:8], steps=200) is None


def test_reliance_is_told_before_and_at_the_breakthrough():
    records = [_record(10 * i, reliance=0.1 * i) for i in range(1, 8)]
    records.append(_record(80, loss=2.0, reliance=5.0))
    found = find_breakthrough(records, steps=200)
    assert (found.reliance_before, found.reliance) == (pytest.approx(0.4), 5.0)
    assert found.step == 80


@pytest.mark.parametrize(
    "records",
    [
        _losses(*[3.0] * 20),  # never left
        _losses(*(4.0 - 0.1 * i for i in range(20))),  # falls all the time: no plateau
        _losses(3.0, 3.0, 3.0, 3.0),  # still on it
        [_record(s, loss=x) for s, x in ((20, 3.0), (40, 3.0), (60, 3.0), (100, 1.0))],  # too few
        [],
    ],
)
def test_no_breakthrough(records):
    assert find_breakthrough(records, steps=200) is None


def test_failed_snapshots_are_left_out():
    failed = _record(75, curve=None, valid=False, reason="broke")
    records = [*_losses(*[3.0] * 7), failed, _record(80, loss=2.0)]
    assert find_breakthrough(records, steps=200).step == 80


def _near_zero(*fractions: float) -> list[Record]:
    return [_record(10 * i, near_zero=x) for i, x in enumerate(fractions, start=1)]


def test_the_floor_and_its_doubling():
    takeoff = find_takeoff(_near_zero(0.9, 0.05, 0.04, 0.06, 0.08, 0.081, 0.3))
    assert (takeoff.floor, takeoff.floor_step) == (0.04, 30)
    assert (takeoff.doubling_step, takeoff.decay_clock) == (60, 0.6)


def test_a_fraction_that_only_falls_never_doubles():
    takeoff = find_takeoff(_near_zero(0.08, 0.05, 0.04, 0.03))
    assert (takeoff.floor, takeoff.floor_step, takeoff.doubling_step) == (0.03, 40, None)
    assert find_takeoff([]) is None


@pytest.mark.slow
def test_the_table_of_a_run(tmp_path) -> None:
    fake_run.write_run(tmp_path, fake_run.looks(range(0, 2001, 100)), fake_run.events())
    run = sw.load(tmp_path)
    records, events = run.records, run.events
    found, takeoff = find_breakthrough(records, 2000), find_takeoff(records)
    head, rule, *rows, _ = columns({"run": (records, events)})
    assert (head, rule) == ("|  | run |", "|---|---:|")
    cells = dict(row.strip("| ").split(" | ") for row in rows)
    assert cells["breakthrough: held-out loss 0.15 below its plateau, at step"] == str(found.step)
    doubled = f"{takeoff.doubling_step} ({takeoff.decay_clock:.2f})"
    assert cells["take-off: twice the floor, at step (decay clock)"] == doubled
    rise = next(event for event in fake_run.events() if event.series == "near_zero/initial_0.1")
    told = f"{rise.onset_step}, {rise.detected_step}"
    assert cells["event in near-zero weights: began at step, seen at step"] == told


def test_the_table_of_a_run_that_shows_nothing(tmp_path) -> None:
    fake_run.write_run(tmp_path, fake_run.looks(range(0, 1, 1)), [])
    told = "".join(columns({"run": (sw.load(tmp_path).records, [])}))
    assert "at step | none |" in told
    assert "at step (decay clock) | never |" in told
