"""The forecast, against populations of weights that are really shrunk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from contracts import fake_run
from hypothesis import given
from hypothesis import strategies as st

from sparsitywatch.analysis.forecast import (
    Forecaster,
    _Past,
    crossing,
    growth_of,
    near_zero_ahead,
)
from sparsitywatch.records import DecayProjection, Dormant, Record

ADVANCES = tuple(round(0.1 * k, 1) for k in range(21))
TAU = 0.1


class Population:
    """Weights some of which shrink on the clock; more of them go dormant at a steady rate."""

    def __init__(self, share: float = 0.2, growth: float = 0.0, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.weights, self.order = np.abs(rng.normal(size=40_000)), rng.random(40_000)
        self.share, self.growth, self.clock = share, growth, 0.0

    @property
    def dormant(self) -> np.ndarray:
        return self.order < self.share

    @property
    def near_zero(self) -> float:
        return float((self.weights <= TAU).mean())

    def advance(self, by: float) -> None:
        for _ in range(round(by / 0.01)):
            self.weights[self.dormant] *= math.exp(-0.01)
            self.share += 0.01 * self.growth
            self.clock += 0.01

    def projection(self) -> DecayProjection:
        reach = TAU * np.exp(ADVANCES)
        sleeping, living = self.weights[self.dormant], self.weights[~self.dormant]
        return DecayProjection(
            advance=ADVANCES,
            dormant=tuple(float((sleeping <= r).sum()) / len(self.weights) for r in reach),
            entering=tuple(float((living <= r).mean()) for r in reach),
        )

    def record(self, step: int) -> Record:
        dormant = Dormant(
            fraction=float(self.dormant.mean()),
            num_sampled=len(self.weights),
            since_step=0,
            chance=0.0,
            projection=self.projection(),
        )
        return replace(
            fake_run.look(step)[0],
            near_zero={"initial_0.1": self.near_zero},
            decay_clock=self.clock,
            dormant=dormant,
            forecast=None,
        )


def with_forecast(record: Record, earlier: Sequence[Record]) -> Record:
    forecaster = Forecaster()
    for one in earlier:
        forecaster.update(one)
    return replace(record, forecast=forecaster.forecast(record))


def run(population: Population, snapshots: int, every: float = 0.1) -> list[Record]:
    """Records of a run, 100 steps apart."""
    records: list[Record] = []
    for k in range(1, snapshots + 1):
        population.advance(every)
        records.append(with_forecast(population.record(100 * k), records))
    return records


@pytest.mark.parametrize("growth", [0.0, 0.15])
def test_what_is_foreseen_comes(growth: float) -> None:
    population = Population(growth=growth)
    forecast = run(population, 12)[-1].forecast
    assert forecast.rule == "initial_0.1"
    assert forecast.clock_per_step == pytest.approx(1e-3)
    assert forecast.advance == tuple(x for x in ADVANCES if x <= 1)
    for advance in (0.1, 0.5, 1.0):
        fraction, low, high = forecast.at(advance)
        population.advance(advance - (population.clock - 1.2))
        # growth is foreseen for as long as it was seen, 0.6 of the clock
        assert fraction == pytest.approx(population.near_zero, rel=0.02)
        assert low < population.near_zero < high
    assert math.isnan(forecast.at(0.25)[0])


@pytest.mark.slow
def test_the_step_of_doubling() -> None:
    population = Population(share=0.3)
    records = run(population, 40)
    values = np.array([r.near_zero["initial_0.1"] for r in records])
    floor = min(np.median(values[i : i + 5]) for i in range(len(values) - 4))
    actual = records[int(np.argmax(values >= 2 * floor))].step
    foretold = {r.step: r.forecast.doubling_step for r in records if r.forecast}
    for ahead in (1000, 500, 200):
        assert foretold[actual - ahead] == pytest.approx(actual, rel=0.03, abs=100)
    assert math.isnan(foretold[actual + 100])  # it has happened


def test_a_run_without_dormant_weights_foresees_no_doubling() -> None:
    records = run(Population(share=0.0), 20)
    assert all(math.isnan(r.forecast.doubling_step) for r in records[1:])
    last = records[-1].forecast
    assert last.fraction[-1] == pytest.approx(last.fraction[0])
    assert last.low[-1] < last.fraction[-1] < last.high[-1]


def test_nothing_is_foreseen_farther_ahead_than_twice_the_age_of_the_run() -> None:
    population = Population()
    early = run(population, 2, every=0.01)[-1].forecast  # 200 steps old, 1e-4 a step
    assert [math.isfinite(x) for x in early.fraction] == [x <= 0.04 for x in early.advance]


@pytest.mark.parametrize(
    "change",
    [
        lambda r: replace(r, dormant=None),
        lambda r: replace(r, dormant=replace(r.dormant, projection=None)),
        lambda r: replace(r, dormant=replace(r.dormant, fraction=math.nan)),
        lambda r: replace(r, decay_clock=math.nan),
        lambda r: replace(r, decay_clock=0.05),  # it does not run
        lambda r: replace(r, near_zero={}),
    ],
)
def test_without_dormant_weights_or_a_clock_there_is_none(change) -> None:
    population = Population()
    earlier = run(population, 1)
    population.advance(0.1)
    record = population.record(200)
    assert with_forecast(record, earlier).forecast is not None
    assert with_forecast(change(record), earlier).forecast is None
    assert with_forecast(record, []).forecast is None


def test_growth_is_taken_from_the_latest_window_and_never_negative() -> None:
    early = [(0.1 * k, 0.0) for k in range(20)]
    late = [(2.0 + 0.1 * k, 0.05 * k) for k in range(10)]
    growth, window = growth_of(early + late)
    assert growth == pytest.approx(0.5)
    assert window == pytest.approx(0.6)
    assert growth_of([(x, 1.0 - x) for x, _ in early]) == (0.0, pytest.approx(0.6))
    assert growth_of(early[:2]) == (0.0, 0.0)
    # three snapshots at least, however far apart
    assert growth_of([(0.0, 0.0), (1.0, 0.1), (2.0, 0.2)]) == (pytest.approx(0.1), 2.0)


monotone = st.lists(st.floats(0.0, 1.0), min_size=21, max_size=21).map(sorted).map(tuple)


@given(
    now=st.floats(0.0, 1.0),
    dormant=monotone,
    entering=monotone,
    growth=st.floats(0.0, 1.0),
    window=st.floats(0.0, 2.0),
)
def test_shrinking_weights_never_leave(now, dormant, entering, growth, window) -> None:
    projection = DecayProjection(advance=ADVANCES, dormant=dormant, entering=entering)
    fraction, half = near_zero_ahead(now, projection, growth, window, num_sampled=1000)
    assert fraction[0] == pytest.approx(now)
    assert (np.diff(fraction) >= -1e-12).all()
    assert (half >= 0).all()
    still, _ = near_zero_ahead(now, projection, 0.0, window, num_sampled=1000)
    assert (fraction >= still - 1e-12).all()


def test_the_band_is_sampling_drift_and_all_the_growth_together() -> None:
    """By the sum over when each weight goes dormant, one step of the clock after the other."""
    dormant, entering = np.linspace(0.05, 0.3, 21), np.linspace(0.1, 0.6, 21) ** 2
    projection = DecayProjection(advance=ADVANCES, dormant=tuple(dormant), entering=tuple(entering))
    fraction, half = near_zero_ahead(0.2, projection, 0.15, 1.0, num_sampled=500)
    for k, advance in enumerate(ADVANCES):
        gone = [0.15 * min(0.1 * j, 1.0) for j in range(k + 1)]
        added = sum(
            (gone[j] - gone[j - 1]) * (entering[k - j] - entering[0]) for j in range(1, k + 1)
        )
        crossed = dormant[k] - dormant[0]
        sampling = 1.645 * math.sqrt(crossed * (1 - crossed) / 500)
        drift = 0.2 * (0.2 - dormant[0]) * math.sqrt(advance)
        assert fraction[k] == pytest.approx(0.2 + crossed + added)
        assert half[k] == pytest.approx(math.sqrt(sampling**2 + drift**2 + added**2))


@given(st.lists(st.floats(0.0, 1.0), min_size=2, max_size=30), st.floats(0.0, 1.0))
def test_the_crossing_is_where_the_line_is(values, target) -> None:
    advance = np.arange(len(values), dtype=float)
    found = crossing(advance, np.array(values), target)
    if values[0] >= target or max(values) < target:
        assert math.isnan(found)
    else:
        assert np.interp(found, advance, values) == pytest.approx(target, abs=1e-9)
        assert max(values[: math.floor(found)], default=0.0) < target or found == int(found)


def test_the_floor_needs_five_snapshots() -> None:
    past = _Past()
    record = run(Population(share=0.0), 1)[0]
    for fraction, floor in ((9.0, math.nan), (1.0, math.nan), (9.0, math.nan), (9.0, math.nan),
                            (2.0, 9.0), (2.0, 2.0), (8.0, 2.0), (8.0, 2.0)):  # fmt: skip
        assert past.floor_with(fraction) == pytest.approx(floor, nan_ok=True)
        past.add(record, fraction)


def test_weights_that_were_nan_are_not_the_floor() -> None:
    population = Population()
    records = run(population, 12)
    expected = records[-1].forecast
    assert expected is not None
    for at in (4, 5, 6, 7, 8):  # as it comes out when they are NaN for a while
        records[at] = replace(records[at], near_zero={"initial_0.1": 0.0}, num_nan=4096)
    found = with_forecast(replace(records[-1], forecast=None), records[:-1]).forecast
    assert found is not None
    assert found.doubling_step == expected.doubling_step
    assert (
        with_forecast(replace(records[-1], forecast=None, num_inf=1), records[:-1]).forecast is None
    )
