from __future__ import annotations

import doctest
import importlib

import pytest
from console import meaning, status
from milestones import find_breakthrough, find_takeoff, summary

from sparsitywatch.records import (
    Cost,
    Dormant,
    EssentialSparsity,
    Event,
    Provenance,
    Record,
    ScopeSummary,
    SparsityCurve,
)

PROVENANCE = Provenance(
    sparsitywatch="0", torch="0", scope_hash="s", proxy_hash="p", dtypes=("float32",),
    tolerance=0.01, tolerance_mode="relative", pattern="global",
)  # fmt: skip


def _record(step: int, loss: float = 3.0, reliance: float = 0.1, near_zero: float = 0.05, **more):
    fields = {
        "step": step,
        "wall_time": 0.0,
        "scope": ScopeSummary(num_tensors=1, num_weights=10),
        "num_nan": 0, "num_inf": 0, "num_zero": 0,
        "near_zero": {"initial_0.1": near_zero, "abs_0.001": near_zero / 2},
        "decay_clock": step / 100,
        "dormant": Dormant(fraction=0.25, num_sampled=10, since_step=step - 1),
        "curve": SparsityCurve(sparsity=[0, 1], value=[loss, loss + reliance]),
        "reliance": reliance,
        "essential_sparsity": EssentialSparsity(
            value=0.62, last_crossing=0.7, low=0.55, high=0.68, informative=True,
            tolerance=0.01, mode="relative",
        ),
        "cost": Cost(
            stall_s=1.0, spectrum_s=0.1, evaluation_s=0.5, publish_s=0.25, num_forwards=3
        ),
        "provenance": PROVENANCE,
    }  # fmt: skip
    return Record(**{**fields, **more})


def _losses(*losses: float) -> list[Record]:
    """One look every 10 of 100 * n steps."""
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
    assert "at step 80" in found.describe()


@pytest.mark.parametrize(
    "losses",
    [
        [3.0] * 20,  # never left
        [4.0 - 0.1 * i for i in range(20)],  # falls all the time: no plateau
        [3.0, 3.0, 3.0, 3.0],  # still on it
        [],
    ],
)
def test_no_breakthrough(losses):
    assert find_breakthrough(_losses(*losses), steps=200) is None


def test_too_few_looks_make_no_plateau():
    records = [_record(s, loss=x) for s, x in ((20, 3.0), (40, 3.0), (60, 3.0), (100, 1.0))]
    assert find_breakthrough(records, steps=200) is None


def test_failed_looks_are_left_out():
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


def test_the_summary_says_what_was_seen():
    records = [_record(10 * i, near_zero=0.05 if i < 15 else 0.2) for i in range(1, 21)]
    records[9] = _record(100, loss=2.5, reliance=0.7)
    records[12] = _record(130, curve=None, valid=False, reason="broke")
    event = Event(
        series="near_zero/initial_0.1", direction="up", onset_step=140, detected_step=160,
        baseline=0.05, value=0.2,
    )  # fmt: skip
    told = summary(records, [event], steps=200, wall_s=50.0)
    rows = {line[:48].strip(): line[48:].split() for line in told.split("\n\n")[0].splitlines()}
    assert rows[""] == ["before", "breakthrough", "after", "end"]
    assert rows["step"] == ["40", "100", "120", "200"]
    assert rows["held-out loss"] == ["3.000", "2.500", "3.000", "3.000"]
    assert rows["near zero: |w| <= 0.001"] == ["0.0250", "0.0250", "0.0250", "0.1000"]
    assert rows["decay clock"] == ["0.40", "1.00", "1.20", "2.00"]
    assert "at step 100 the held-out loss was 0.15 below its plateau of 3.000" in told
    assert "reliance 0.70 against 0.10" in told
    assert "floor 0.0500 at step 10, 0.2000 at the end; twice the floor at step 150" in told
    assert f"Event: {event.describe()}" in told
    assert "Looks that failed: 1, the first at step 130." in told
    assert "50 s, of which the watch took 25 s (50%) for 20 looks" in told


def test_a_summary_without_anything_to_see():
    told = summary(_losses(*[3.0] * 10), [], steps=100, wall_s=20.0)
    assert told.split("\n")[0].split() == ["early", "middle", "end"]
    assert "Breakthrough: none seen" in told
    assert "never twice the floor" in told
    assert "Events: none detected" in told


# ------------------------------------------------------------------ while it runs


def test_the_status_line():
    assert status(2.5, _record(10)) == (
        "loss 2.500, essential sparsity 0.62, near-zero 0.050, dormant 0.25, reliance 0.10"
    )
    unused = EssentialSparsity(
        value=float("nan"), last_crossing=float("nan"), informative=False, reason="unused",
        tolerance=0.01, mode="relative",
    )  # fmt: skip
    assert "essential sparsity not used yet" in status(1.0, _record(1, essential_sparsity=unused))
    assert status(1.0, _record(1, valid=False, reason="it broke")) == (
        "loss 1.000, last look failed: it broke"
    )


@pytest.mark.parametrize(
    ("series", "direction", "words"),
    [
        ("near_zero/initial_0.1", "up", "no proof of the paper's figure"),
        ("near_zero/initial_0.1", "down", "they grow"),
        ("value/reliance", "up", "Breakthrough"),
        ("motion/dormant", "up", "dead units"),
        ("unheard/of", "up", "depends on the run"),
    ],
)
def test_what_an_event_means(series, direction, words):
    event = Event(
        series=series, direction=direction, onset_step=1, detected_step=2, baseline=0, value=1
    )
    assert words in meaning(event)


@pytest.mark.parametrize(
    "module", ["checkpoint", "console", "corpus", "masking", "milestones", "training", "vocabulary"]
)
def test_the_doctests_of_the_example(module):
    assert doctest.testmod(importlib.import_module(module), globs=None).failed == 0
