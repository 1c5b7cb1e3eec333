"""The model's own value: what made it worse, what was lost, and whether it still gets better."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from contracts.families import some_of
from contracts.made_records import made_record, seen_by
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsitywatch.analysis.detect import ValueChange
from sparsitywatch.analysis.detect.value import _third, improves, value_trend
from sparsitywatch.pipeline.pipeline import History
from sparsitywatch.records import Event, SparsityCurve

TIME = np.arange(80)
#: Snapshots after which each fault below is made.
AT = 40


def learning(seed: int = 0, end: float = 0.13, start: float = 2.3, noise: float = 0.01):
    """A loss that falls and levels off."""
    scatter = noise * np.random.default_rng(seed).standard_normal(len(TIME))
    return end + (start - end) * np.exp(-TIME / 8) + scatter


def watch(losses, *, higher_is_better: bool = False) -> list[Event]:
    """Events at steps 1, 2, ...; of a score the mirror image of the losses is shown."""
    values = [3.0 - x if higher_is_better else x for x in losses]
    known = [{"higher_is_better": float(higher_is_better)}] * len(values)
    return seen_by(ValueChange(), values, known, every=1)


def faulty(kind: str, seed: int) -> np.ndarray:
    values, rng = learning(seed), np.random.default_rng(100 + seed)
    late = len(TIME) - AT
    values[AT:] = {
        "labels shuffled": lambda: np.minimum(0.13 + np.arange(1, late + 1), 7.0),
        "inputs zero": lambda: 2.3 + 0.01 * rng.standard_normal(late),
        "half forgotten": lambda: values[AT:] + 1.2,
        "drifting back": lambda: values[AT:] + np.linspace(0.0, 2.2, late),
    }[kind]()
    return values


@pytest.mark.part(5)
@pytest.mark.parametrize("kind", ["labels shuffled", "inputs zero", "half forgotten"])
@pytest.mark.parametrize("higher_is_better", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_what_was_gained_and_is_lost_is_told_within_three_snapshots(
    kind: str, higher_is_better: bool, seed: int
) -> None:
    events = watch(faulty(kind, seed), higher_is_better=higher_is_better)
    (lost,) = (e for e in events if e.kind == "lost")
    assert (lost.direction, lost.severity) == ("down" if higher_is_better else "up", "act")
    assert lost.onset_step == AT
    assert AT < lost.detected_step <= AT + 3
    best = 3.0 - lost.baseline if higher_is_better else lost.baseline
    assert best == pytest.approx(0.13, abs=0.05)
    assert [e.kind for e in events if e.detected_step > lost.detected_step] == []


def test_what_is_lost_slowly_is_told_as_it_grows_and_once_as_lost() -> None:
    events = [e for e in watch(faulty("drifting back", 0)) if e.kind != "standstill"]
    told = [(e.kind, e.severity) for e in events]
    assert told == [("abrupt", "look"), ("worse", "look"), ("lost", "act")]
    # half of 2.17 is gone 20 snapshots into a drift of 2.2 in 40
    assert AT + 18 <= events[2].detected_step <= AT + 23


@pytest.mark.parametrize(("size", "is_told"), [(0.6, True), (0.3, False)])
def test_a_jump_by_a_twentieth_of_what_was_gained_is_told(size: float, is_told: bool) -> None:
    values = learning(1, end=2.0, start=10.8, noise=0.02)  # 8.8 gained: a twentieth is 0.44
    values[60:] += size
    events = [e for e in watch(values) if e.kind != "standstill"]
    assert [(e.kind, e.severity, e.onset_step) for e in events] == (
        [("abrupt", "look", 60)] if is_told else []
    )


@pytest.mark.parametrize(("factor", "is_told"), [(0.6, True), (0.4, False)])
def test_half_of_what_was_gained_makes_it_lost(factor: float, is_told: bool) -> None:
    values = learning(noise=0.0)
    values[AT:] += factor * 2.17
    assert ("lost" in [e.kind for e in watch(values)]) == is_told


@pytest.mark.parametrize(("noises", "is_told"), [(6.0, True), (3.0, False)])
def test_what_is_within_the_noise_was_not_gained(noises: float, is_told: bool) -> None:
    rng = np.random.default_rng(4)
    values = np.concatenate([[1.0 + 0.1 * noises], 1.0 + 0.1 * rng.standard_normal(40), [9.0] * 2])
    assert ("lost" in [e.kind for e in watch(values)]) == is_told


@pytest.mark.part(5)
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("noise", [0.003, 0.03])
def test_healthy_learning_gives_remarks_at_most(seed: int, noise: float) -> None:
    power = 2.0 + 8.0 * (TIME + 1.0) ** -0.4
    plateau = np.where(TIME < 30, 2.0, 0.5 + 1.5 * np.exp(-(TIME - 30) / 6))
    scatter = noise * np.random.default_rng(seed).standard_normal(len(TIME))
    for values in (learning(seed, noise=noise), power + scatter, plateau + scatter):
        assert {e.severity for e in watch(values)} <= {"note"}


def test_a_spike_of_one_snapshot_is_none() -> None:
    values = learning(2)
    values[AT] = 7.0
    assert {e.kind for e in watch(values)} <= {"standstill"}


def test_a_standstill_is_told_once_and_again_after_the_next_fall() -> None:
    levels = np.concatenate([np.geomspace(4, 2, 20), np.full(60, 2.0), np.geomspace(2, 1, 20)])
    levels = np.concatenate([levels, np.full(100, 1.0)])
    events = watch(levels + 0.01 * np.random.default_rng(0).standard_normal(len(levels)))
    assert [(e.kind, e.severity, e.direction) for e in events] == [("standstill", "note", "")] * 2
    assert 20 < events[0].detected_step < 80
    assert events[1].detected_step > 100
    assert events[1].baseline == pytest.approx(1.0, abs=0.05)


def test_a_value_that_never_moves_stands_still() -> None:
    values = 2.3 + 0.01 * np.random.default_rng(3).standard_normal(40)
    assert [e.kind for e in watch(values)] == ["standstill"]


# ------------------------------------------------------------------ whether it still improves


@pytest.mark.slow
@settings(deadline=None)
@given(st.integers(20, 200), st.floats(0.001, 0.1), st.integers(0, 999), st.sampled_from([0, 1, 3]))
def test_the_answer_is_that_of_the_slope_of_the_latest_half(
    num: int, noise: float, seed: int, slope: int
) -> None:
    """A fall of many standard errors is one; so is none, but for one in twenty."""
    steps = 100.0 * np.arange(num)
    error = noise * math.sqrt(12.0 / (0.5 * num) ** 3)  # of the slope a snapshot, of white noise
    values = noise * np.random.default_rng(seed).standard_normal(num)
    values -= 10.0 * slope * error * np.arange(num)
    said = improves(steps, values)
    assert said is True or slope == 0
    assert improves(steps, 5.0 * values + 7.0) == said  # neither unit nor level matter


@pytest.mark.slow
@pytest.mark.parametrize("num", [10, 20, 60])
def test_white_noise_improves_in_one_run_of_seven_at_most(num: int) -> None:
    """Each of two lines may fall by chance, one in twenty times."""
    rng, steps = np.random.default_rng(8), np.arange(float(num))
    share = np.mean([improves(steps, rng.standard_normal(num)) for _ in range(600)])
    assert share < 1 / 7


def evaluated(step: int, value: float, *, higher_is_better: bool):
    curve = SparsityCurve([0.0, 1.0], [value, 9.0], higher_is_better=higher_is_better)
    return replace(made_record(step), curve=curve)


@pytest.mark.parametrize("higher_is_better", [False, True])
def test_records_say_whether_their_value_still_improves(higher_is_better: bool) -> None:
    sign = -1.0 if higher_is_better else 1.0
    falling = [
        evaluated(i, sign * x, higher_is_better=higher_is_better)
        for i, x in enumerate(np.geomspace(2.0, 1.0, 20))
    ]
    between = [made_record(100), evaluated(101, math.nan, higher_is_better=higher_is_better)]
    flat = [evaluated(200 + i, sign, higher_is_better=higher_is_better) for i in range(400)]
    assert value_trend(falling) == "better"
    assert value_trend([*falling, *between]) == "better"
    assert value_trend([*falling, *flat]) == "still"
    assert value_trend(falling[:9]) == ""
    assert value_trend(falling[:10]) == "better"
    assert value_trend([made_record(i) for i in range(30)]) == ""


@pytest.mark.parametrize(("lost", "trend"), [(0.2, "worse"), (0.04, "better")])
@pytest.mark.parametrize("higher_is_better", [False, True])
def test_what_lost_a_twentieth_is_worse(lost: float, trend: str, higher_is_better: bool) -> None:
    """Of one that had gained 1.0, at two snapshots in a row, though a line still falls."""
    sign = -1.0 if higher_is_better else 1.0
    values = [*np.geomspace(2.0, 1.0, 20), 1.0 + lost, 1.0 + lost]
    records = [
        evaluated(i, sign * x, higher_is_better=higher_is_better) for i, x in enumerate(values)
    ]
    assert value_trend(records) == trend
    assert value_trend(records[:-1]) == "better"


# ------------------------------------------------------------------ judges of height


def run_of(num: int, start: float, best: float, end: float, shape: str, noise: float, seed: int):
    """A loss that falls within the first tenth and then goes to its end, and stays there."""
    time = np.arange(num)
    values = best + (start - best) * np.exp(-30.0 * time / num)
    way = {
        "jump": (time >= num // 2) * 1.0,
        "ramp": np.clip((time - num / 3) / (num / 3), 0.0, 1.0),
        "creep": np.clip((time - num / 4) / (num / 2), 0.0, 1.0) ** 2,
    }[shape]
    scatter = noise * np.random.default_rng(seed).standard_normal(num)
    return values + (end - best) * way + scatter


@pytest.mark.part(5)
@pytest.mark.parametrize("num", some_of((24, 40, 90, 200), 2))
@pytest.mark.parametrize("shape", ["jump", "ramp", "creep"])
@pytest.mark.parametrize(
    "sizes", [(2.3, 0.48, 1.12), (1.6, 0.97, 1.15), (3.4, 2.11, 2.5), (1.0, 1.0, 1.5)]
)
@pytest.mark.parametrize("noise", [0.002, 0.02])
@pytest.mark.parametrize("higher_is_better", [False, True])
def test_what_got_worse_for_good_is_told_however_it_came(
    num: int, shape: str, sizes: tuple[float, float, float], noise: float, higher_is_better: bool
) -> None:
    values = run_of(num, *sizes, shape, noise, num)
    events = [e for e in watch(values, higher_is_better=higher_is_better) if e.severity != "note"]
    assert events
    assert len(events) <= 4  # told again only where it is twice as much
    assert {e.kind for e in events} <= {"abrupt", "worse", "lost"}
    sign = -1.0 if higher_is_better else 1.0
    records = [
        evaluated(i, sign * x, higher_is_better=higher_is_better) for i, x in enumerate(values)
    ]
    assert value_trend(records) == "worse"


@pytest.mark.parametrize(("part", "is_told"), [(0.25, True), (0.15, False)])
def test_a_fifth_of_what_was_gained_is_worse(part: float, is_told: bool) -> None:
    """So slowly that no change is seen."""
    values = run_of(60, 2.0, 1.0, 1.0 + part, "creep", 0.0, 0)
    values[1:] = np.maximum(values[1:], 1.0)
    assert ("worse" in [e.kind for e in watch(values)]) == is_told


def test_the_early_fall_is_no_noise() -> None:
    values = np.concatenate([np.geomspace(2.3, 0.48, 12), np.linspace(0.5, 1.12, 12)])
    (event,) = (e for e in watch(values) if e.kind != "standstill")
    assert event.severity == "look"
    assert event.detected_step <= 20


@pytest.mark.parametrize("seed", some_of(range(40), 8))
def test_no_plateau_is_worse_than_its_best(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num, noise = int(rng.integers(20, 200)), 10.0 ** rng.uniform(-3.0, -1.0)
    values = run_of(num, 2.0, 0.5, 0.5, "jump", noise, seed)
    assert {e.kind for e in watch(values)} <= {"standstill"}


@pytest.mark.parametrize("shape", ["cosine", "triangle", "step"])
def test_a_rate_that_starts_anew_takes_back_what_it_gave(shape: str) -> None:
    """Of what a high rate costs nothing is missing: it was so at that rate before."""
    time = np.arange(120)
    part = (time % 30) / 30
    lr = {
        "cosine": 0.5 + 0.5 * np.cos(math.pi * part), "triangle": 1.0 - part,
        "step": np.where(part < 0.5, 1.0, 0.1),
    }[shape]  # fmt: skip
    values = 0.4 + 1.9 * np.exp(-time / 10) + 0.7 * lr
    clock = np.cumsum(lr)
    known = [{"lr": r, "lr_clock": c} for r, c in zip(lr, clock, strict=True)]
    told = seen_by(ValueChange(), values, known, every=1)
    assert not [e for e in told if e.kind in ("worse", "lost")]
    # the same where the rate does not say so
    told = seen_by(ValueChange(), values, [{"lr": 1.0, "lr_clock": c} for c in time], every=1)
    assert [e for e in told if e.severity != "note"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rate", [0.1, 1.0])
def test_what_got_worse_began_after_the_best_at_such_a_rate(rate: float, seed: int) -> None:
    """For ten snapshots a low rate gives more; from snapshot 70 on it gets worse, slowly."""
    time = np.arange(120)
    lr = np.where((time >= 40) & (time < 50), rate, 1.0)
    values = 0.5 + 1.8 * np.exp(-time / 8) - 0.4 * (lr < 1.0)
    values += 0.8 * np.clip((time - 70) / 40, 0.0, 1.0)
    values += 0.005 * np.random.default_rng(seed).standard_normal(120)
    known = [{"lr": r, "lr_clock": c} for r, c in zip(lr, np.cumsum(lr), strict=True)]
    told = seen_by(ValueChange(), values, known, every=1)
    worse = next(event for event in told if event.kind == "worse")
    assert worse.onset_low >= 65
    assert worse.baseline == pytest.approx(0.5, abs=0.02)


def begun(values, reliance: float = 0.0, rates=None, low: float = math.nan) -> list[Event]:
    rates = np.ones(len(values)) if rates is None else rates
    known = [
        {"lr": r, "lr_clock": c, "reliance": reliance, "reliance_low": low}
        for r, c in zip(rates, np.cumsum(rates), strict=True)
    ]
    return [e for e in seen_by(ValueChange(), values, known, every=1) if e.kind != "standstill"]


@pytest.mark.parametrize("rate", [0.0, 1e-3])
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_what_never_leaves_its_start_is_told_after_sixteen_evaluations(
    rate: float, noise: float
) -> None:
    values = 2.3 + noise * np.random.default_rng(0).standard_normal(40)
    (event,) = begun(values, -0.01, np.full(40, rate))
    assert (event.kind, event.severity, event.baseline) == ("unlearned", "look", values[0])
    assert 16 <= event.detected_step <= 24
    assert not begun(values[:15], -0.01)


def test_what_was_learned_before_the_watch_began_is_relied_on() -> None:
    assert not begun(np.full(40, 0.35), 2.0)
    assert not begun(np.full(40, 0.35), 0.05, low=0.02)
    assert begun(np.full(40, 0.35), 0.05, low=0.01)  # a twentieth of the value is 0.0175
    assert not begun(np.full(40, 0.35), math.nan)  # where nobody knows it nothing is said


def test_warm_up_is_no_training_yet() -> None:
    values = np.full(60, 2.3)
    assert not begun(values, rates=np.linspace(0.0, 1.0, 60))
    (event,) = begun(values, rates=np.minimum(np.arange(60) / 20, 1.0))
    assert 34 <= event.detected_step <= 38


@pytest.mark.parametrize(("gained", "is_told"), [(0.04, True), (0.06, False)])
def test_a_twentieth_of_where_it_began_is_learned(gained: float, is_told: bool) -> None:
    values = np.full(40, 1.0 - gained)
    values[0] = 1.0
    assert bool(begun(values)) == is_told


def test_a_slow_fall_is_no_standing_at_the_start() -> None:
    assert not begun(np.linspace(2.3, 2.2, 40))


def test_it_is_over_when_something_is_learned() -> None:
    values = [*np.full(20, 2.3), *np.geomspace(2.3, 1.0, 20)]
    history = History({"value/dense": ValueChange()})
    for step, x in enumerate(values):
        curve = SparsityCurve([0.0, 1.0], [x, 2.3], higher_is_better=False)
        history.add(replace(made_record(step), curve=curve, lr=1.0, reliance=2.3 - x))
    (event,) = (e for e in history.events if e.kind == "unlearned")
    assert 20 < event.reverted_step < 30


def test_a_third_of_a_short_run_says_where_it_stands() -> None:
    stand = _third(np.linspace(2.0, 1.0, 12), np.ones(12))
    assert stand is not None
    assert stand.num == 4
