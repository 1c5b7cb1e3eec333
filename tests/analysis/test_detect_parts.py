"""The parts of the detector against what can be computed in another way."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from contracts.made_records import seen_by
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sparsitywatch.analysis.detect import AbruptChange, abrupt
from sparsitywatch.analysis.detect.abrupt import _ANSWER_IN_LOG, FALL, RISE, share_left_by_rate
from sparsitywatch.analysis.detect.detector import (
    Blocks,
    Limits,
    SeriesHistory,
    median_of_three,
    noise_sd,
    normal_score,
    onset_of,
)
from sparsitywatch.analysis.detect.jumps import MODELS, SPLITS, WINDOW, forecasts, season_of
from sparsitywatch.records import from_json, to_json

RNG = np.random.default_rng(5)
#: Of the season of the model that has one, in snapshots; of the noise of the one where it lasts.
PERIOD, CORRELATION = 7.5, 0.6


# ------------------------------------------------------------------------- forecasts
def textbook(model, split: int, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Score and effect by the joint normal distribution of all snapshots, nothing whitened.

    Without outliers, which nothing is winsorised for.
    """
    n = len(x)
    i = np.arange(n)
    covariance = (CORRELATION ** np.abs(i[:, None] - i) if model.lasts else np.eye(n)) + (
        model.walk**2 * (np.minimum(i[:, None], i) + 1.0)
    )
    before = np.arange(max(0, n - split - model.num_fitted), n - split)
    after = np.arange(n - split, n)
    if model.lasts or model.walk:  # then it reads every snapshot there is
        assert before[0] == 0
    design = np.vander(x, model.is_bent + 2, increasing=True)
    if model.has_season:
        phase = 2.0 * math.pi * x / PERIOD
        design = np.column_stack([design, np.cos(phase), np.sin(phase)])
    inner = covariance[np.ix_(before, before)]
    cross = covariance[np.ix_(after, before)] @ np.linalg.inv(inner)
    precision = np.linalg.inv(inner)
    gram = design[before].T @ precision @ design[before]
    fit = np.linalg.solve(gram, design[before].T @ precision @ y[before])
    rest = y[before] - design[before] @ fit
    errors = y[after] - design[after] @ fit - cross @ rest
    moved = design[after] - cross @ design[before]
    spread = (
        covariance[np.ix_(after, after)]
        - cross @ covariance[np.ix_(before, after)]
        + moved @ np.linalg.inv(gram) @ moved.T
    )
    nu = len(before) - design.shape[1]
    lower = np.linalg.cholesky(inner)
    white = np.linalg.solve(lower, rest)
    mad = 1.4826 * np.median(np.abs(white))
    assert np.abs(white).max() < 3 * mad
    sd = max(math.sqrt(white @ white / nu), mad)
    best = (0.0, 0.0)
    for shape in (np.ones(split), np.arange(1, split + 1) / split):
        weight = np.linalg.solve(spread, shape)
        effect = weight @ errors / (weight @ shape)
        t = effect * math.sqrt(weight @ shape) / sd
        score = float(normal_score(t, nu))
        best = max(best, (score, effect), key=lambda pair: abs(pair[0]))
    return best


@pytest.mark.parametrize("index", range(len(MODELS)))
def test_forecasts_are_those_of_the_textbook(index: int) -> None:
    model = MODELS[index]
    # noise of two sizes only: nothing to winsorise
    x = np.cumsum(RNG.uniform(0.8, 1.2, 26))
    y = 0.3 + 0.01 * x + RNG.choice([-0.01, -0.008, 0.008, 0.01], 26)
    y[-3:] += 0.015
    seen = forecasts(x, y, 1e-9, CORRELATION, 1.0 / PERIOD)
    num_compared = 0
    for i, split in enumerate(SPLITS):
        try:
            score, effect = textbook(model, split, x, y)
        except AssertionError:  # an outlier for this model: winsorised
            continue
        assert seen.effect[index, i] == pytest.approx(effect, rel=1e-5)
        assert seen.score[index, i] == pytest.approx(score, rel=1e-5)
        num_compared += 1
    assert num_compared >= 3


@st.composite
def any_series(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Of any length that is looked at: noise on a line, spikes, a step, a wave; uneven steps."""
    n, rng = draw(st.integers(15, WINDOW)), np.random.default_rng(draw(st.integers(0, 2**31)))
    x = np.cumsum(rng.choice([1.0, 1.0, 1.0, 3.0, 10.0], n))
    parts = (
        rng.normal(size=n) * draw(st.sampled_from([0.0, 1e-3, 1.0])),
        draw(st.floats(-3.0, 3.0)) * x,
        draw(st.floats(-3.0, 3.0)) * (np.arange(n) >= draw(st.integers(0, n))),
        draw(st.floats(-30.0, 30.0)) * (rng.random(n) < draw(st.sampled_from([0.0, 0.1]))),
        draw(st.floats(-3.0, 3.0)) * np.sin(x),
    )
    return x, sum(parts)


ON_A_LINE = np.cumsum([10.0, 3, 1, 1, 1, 1, 1, 1, 1, 10, 3, 10, 1, 3, 10])


@settings(max_examples=300)
@given(any_series())
@example((ON_A_LINE, ON_A_LINE))  # each model meets it: what they see is rounding
def test_no_model_sees_more_than_the_bound(series: tuple[np.ndarray, np.ndarray]) -> None:
    """The least size at which no model is asked is above what each of them sees."""
    x, y = series
    whole = forecasts(x, y, 1e-9)
    seen, rounding = float(np.abs(whole.effect).max()), 1e-9 * float(np.abs(y).max())
    # the first split alone is fitted where the bound is below the least size
    if seen > rounding:  # what is left of a line that is met exactly is no change of any size
        assert forecasts(x, y, 1e-9, least=0.999 * seen).effect.shape == whole.effect.shape
    alone = forecasts(x, y, 1e-9, least=1e6 * max(seen, float(np.ptp(y)), 1e-9))
    # it says nothing before each split has its snapshots
    assert alone.effect.shape == (len(MODELS), 1 if np.isfinite(whole.score).all() else len(SPLITS))
    of_whole = whole.effect[:, : alone.effect.shape[1]]
    np.testing.assert_allclose(alone.effect, of_whole, rtol=1e-6, atol=rounding)


def test_a_quiet_series_is_not_asked_about() -> None:
    """The bound is of use: noise of a hundredth of the least size is below it."""
    x, num_alone = np.arange(float(WINDOW)), 0
    for _ in range(100):
        seen = forecasts(x, 5.0 + 0.3 * x + RNG.normal(size=WINDOW), 1e-9, least=100.0)
        num_alone += seen.effect.shape[1] == 1
    assert num_alone >= 95


def test_a_model_says_nothing_before_eight_snapshots() -> None:
    seen = forecasts(np.arange(9.0), RNG.normal(size=9), 1e-9)
    assert np.isfinite(seen.score[:, 0]).all()
    assert np.isnan(seen.score[:, 1:]).all()


@pytest.mark.parametrize("period", [4.4, 7.5, 15.0])
def test_the_season_is_the_wave_that_is_there(period: float) -> None:
    x, noise = np.arange(float(WINDOW)), np.random.default_rng(1).normal(0.0, 0.5, WINDOW)
    y = 0.01 * x + np.sin(2.0 * math.pi * (x / period + 0.2)) + noise
    assert season_of(x, y) == pytest.approx(1.0 / period, abs=0.0125)  # as far apart as they are
    y[-6:] += 100.0  # what comes after a split has no say
    assert season_of(x, y) == pytest.approx(1.0 / period, abs=0.0125)


@pytest.mark.slow
def test_a_jump_is_seen_in_a_season_and_a_season_is_no_jump() -> None:
    steps, num_seen = np.arange(80), 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        wave = 2.0 * np.sin(2.0 * math.pi * (steps / 11 + rng.random()))
        values = wave + rng.normal(size=80) + 9.0 * (steps >= 60)
        events = seen_by(AbruptChange(min_effect=1.0), values, every=1)
        found = [event.detected_step - 1 for event in events]
        assert all(step >= 60 for step in found)
        num_seen += any(step <= 65 for step in found)
    assert num_seen >= 9


@pytest.mark.slow
def test_a_model_that_is_not_believed_has_no_say() -> None:
    """In a bend only a parabola foresees what comes; lines would see a jump always, or never."""
    steps, num_seen = np.arange(60.0), 0
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(size=60)
        values = 0.05 * (steps - 20.0) ** 2 + noise - 100.0 + 6.0 * (steps >= 50)
        events = seen_by(AbruptChange(min_effect=1.0, direction="up"), values, every=1)
        assert all(event.detected_step - 1 > 50 for event in events)
        num_seen += any(events)
    assert num_seen >= 15


def test_a_gross_jump_after_twelve_snapshots_is_seen_within_six() -> None:
    """Half of the weights are pruned while few snapshots tell what noise is."""
    counts = [4, 5, 2, 3, 5, 6, 4, 1, 2, 4, 5, 3, 44, 28, 26, 27, 25, 26, 28]  # of 96 weights
    events = seen_by(AbruptChange(min_effect=0.2), [count / 96 for count in counts], every=5)
    assert [(event.onset_step, event.detected_step) for event in events] == [(60, 90)]


def test_scores_of_white_noise_are_normal() -> None:
    scores = []
    for _ in range(400):
        seen = forecasts(np.arange(float(WINDOW)), RNG.normal(size=WINDOW), 1e-9)
        scores.append(seen.score[1, 0])  # one snapshot ahead, a line of thirty-two snapshots
    assert np.std(scores) == pytest.approx(1.0, abs=0.12)
    assert np.mean(np.abs(scores) > 1.96) == pytest.approx(0.05, abs=0.03)


@pytest.mark.parametrize(
    ("t", "nu", "p"), [(2.228, 10, 0.025), (2.764, 10, 0.01), (2.042, 30, 0.025)]
)
def test_normal_score_agrees_with_tables_of_student(t: float, nu: int, p: float) -> None:
    score = float(normal_score(t, nu))
    assert 0.5 * math.erfc(score / math.sqrt(2)) == pytest.approx(p, rel=0.02)
    assert float(normal_score(-t, nu)) == -score


# ---------------------------------------------------------------------------- growth
def grown(values: np.ndarray, kind=RISE) -> bool:
    limits = Limits(1e-9, ratio=1.5, score=2.0, growth_score=1.0)
    return abrupt.grown(kind, np.arange(float(len(values))), values, limits) is not None


def test_five_snapshots_are_enough() -> None:
    assert grown(np.array([0.06, 0.061, 0.06, 0.13, 0.2]))
    assert not grown(np.array([0.06, 0.061, 0.1, 0.2]))
    assert not grown(np.array([0.06, 0.061, 0.06, 0.06, 0.2]))  # one snapshot is not


def test_a_fall_takes_eight_snapshots_at_most() -> None:
    quick = np.concatenate([np.full(12, 0.8), [0.7, 0.6, 0.5]])
    slow = np.concatenate([np.full(40, 0.8), np.linspace(0.8, 0.5, 30)])
    assert grown(quick, FALL)
    assert not any(grown(slow[:n], FALL) for n in range(42, 71))


# ----------------------------------------------------------------------------- history
def history_of(number: int) -> SeriesHistory:
    history = SeriesHistory.empty(3)
    for step in range(number):
        history = history.add(step, 0.5 * step)
    return history


@given(st.integers(0, 700))
def test_recent_snapshots_are_all_kept_and_older_ones_thinned_evenly(number: int) -> None:
    history = history_of(number)
    steps, recent = [row[0] for row in history.rows], min(number, 96)
    assert len(steps) <= 192
    assert steps[len(steps) - recent :] == list(range(number - recent, number))
    assert steps == sorted(set(steps))
    assert steps[:1] == [0][:number]
    assert repr(from_json(SeriesHistory, to_json(history))) == repr(history)
    older = np.diff([step for step in steps if step < number - 96])
    assert len(set(older[: max(len(older) - 96, 0)])) <= 1  # but for those that just grew old


@given(st.integers(1, 1500))
def test_blocks_are_means_of_equal_parts(number: int) -> None:
    blocks, values = Blocks.of(SeriesHistory.empty(4)), RNG.random(number)
    for i, x in enumerate(values):
        blocks = blocks.add(10 * i, float(x), 2.0 * i)
    size = blocks.size
    assert number <= 128 * size
    assert size == 1 or number > 64 * size
    complete = number // size * size
    view = blocks.view()
    assert view.values == pytest.approx(values[:complete].reshape(-1, size).mean(axis=1), rel=1e-7)
    assert view.begins.tolist() == list(range(0, 10 * complete, 10 * size))
    assert view.ends.tolist() == list(range(10 * (size - 1), 10 * complete, 10 * size))
    assert blocks.has_completed == (size > 1 and number % size == 0)
    assert from_json(Blocks, to_json(blocks)) == blocks


# ----------------------------------------------------------------------------- noise
@pytest.mark.slow
@settings(deadline=None)
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=30))
def test_median_of_three(values: list[int]) -> None:
    smooth = median_of_three(np.array(values, dtype=float))
    assert len(smooth) == len(values)
    assert smooth[0] == values[0]
    for i in range(2, len(values)):
        assert smooth[i] == statistics.median(values[i - 2 : i + 1])


@pytest.mark.parametrize("trend", ["flat", "line", "parabola", "jump"])
def test_noise_is_seen_through_trends(trend: str) -> None:
    t = np.arange(400.0)
    trends = {"flat": 0 * t, "line": t, "parabola": (t / 40) ** 2, "jump": 500.0 * (t > 200)}
    noise = 3 * np.random.default_rng(0).standard_normal(400)
    assert noise_sd(trends[trend] + noise) == pytest.approx(3, rel=0.25)
    assert noise_sd(trends[trend]) < 0.6  # growth that accelerates is not seen through fully


def test_noise_that_wanders_is_seen_too() -> None:
    wander = np.repeat(np.random.default_rng(0).standard_normal(100), 4)
    assert noise_sd(wander) > 0.7


def test_too_few_values_have_no_noise() -> None:
    assert math.isnan(noise_sd(np.arange(4.0)))
    assert noise_sd(np.arange(5.0)) == 0.0


@pytest.mark.parametrize("sd", [0.01, 3.0])
def test_noise_of_white_noise_on_a_smooth_trend_is_its_standard_deviation(sd: float) -> None:
    x = np.linspace(0.0, 1.0, 200_001)
    white = np.random.default_rng(3).normal(0.0, sd, len(x))
    assert noise_sd(white) == pytest.approx(sd, rel=0.01)
    assert noise_sd(white + np.exp(3.0 * x)) == pytest.approx(sd, rel=0.01)


# ------------------------------------------------------------------------------ rate
def share_left(rates: np.ndarray, y: np.ndarray, split: int) -> float:
    x = np.arange(float(len(y)))
    shape = np.maximum(x - (len(y) - split - 1), 0.0) / split
    return share_left_by_rate(x, y, rates, shape, noise=0.01, strongest=0.5, first=0)


def test_a_rate_that_does_not_move_accounts_for_nothing() -> None:
    y = np.concatenate([np.zeros(30), np.linspace(0, 0.5, 10)])
    assert share_left(np.full(40, 3e-3), y, 10) == 1.0
    assert share_left(np.full(40, math.nan), y, 10) == 1.0


def test_a_rate_that_moved_long_before_accounts_for_little() -> None:
    rates = np.minimum(np.arange(1, 81) / 4, 1.0)
    y = np.concatenate([np.zeros(60), np.linspace(0.02, 0.5, 20)])
    assert share_left(rates, y, 20) > 0.9


# ----------------------------------------------------------------------------- onset
@pytest.mark.parametrize("at", [10, 20, 33])
@pytest.mark.parametrize("kind", ["bend", "step"])
def test_the_onset_is_where_it_was_put(at: int, kind: str) -> None:
    x = 25.0 * np.arange(40)
    late = np.maximum(np.arange(40) - at, 0)
    y = 0.1 + (0.01 * late if kind == "bend" else 0.1 * (late > 0))
    assert onset_of(x, y, noise=1e-6) == (at, at, at)


@pytest.mark.slow
def test_the_interval_of_the_onset_holds_it_about_as_often_as_it_says() -> None:
    held = 0
    for _ in range(200):
        late = np.maximum(np.arange(60) - 40, 0)
        y = 0.1 + 0.004 * late + 0.01 * RNG.normal(size=60)
        _, low, high = onset_of(np.arange(60.0), y, noise=0.01)
        held += low <= 40 <= high
    assert 0.8 <= held / 200 <= 1.0


def answer(rates: np.ndarray, memory: float) -> np.ndarray:
    """What weights with an exponential memory have seen of the rate."""
    seen, state = [], rates[0]
    for rate in rates:
        state += (rate - state) * (1.0 - math.exp(-1.0 / memory))
        seen.append(state)
    return np.array(seen)


@pytest.mark.parametrize(("memory", "is_left"), [(8.0, False), (32.0, False), (64.0, True)])
def test_a_memory_of_thirty_two_snapshots_is_allowed_for_and_no_longer_one(
    memory: float, is_left: bool
) -> None:
    rates = np.where(np.arange(400) < 200, 1.0, 0.1)
    assert (share_left(rates, -0.5 * answer(rates, memory), 200) > 0.25) == is_left


@pytest.mark.parametrize(("times", "is_even"), [(1.2, True), (1.9, True), (2.1, False)])
def test_growth_is_even_up_to_a_bend_that_makes_it_twice_as_steep(
    times: float, is_even: bool
) -> None:
    steps = np.linspace(0.0, 1.0, 101)
    for bend in (0.2, 0.5, 0.8):  # so small that its logarithm bends alike
        values = 1.0 + 0.02 * steps + 0.02 * (times - 1.0) * np.maximum(steps - bend, 0.0)
        assert abrupt._steepening(steps, values) == pytest.approx(times)
        assert abrupt._is_even(steps, values) == is_even


def test_an_answer_to_the_rate_is_believed_up_to_its_usual_size() -> None:
    """Twelve noisy snapshots: a prior of half the size leaves most, one of twice none."""
    is_late = np.arange(12) >= 6
    change = 0.9 * is_late
    shape = np.maximum(np.arange(12) - 5, 0) / 6
    left = share_left_by_rate(
        np.arange(12.0), change, np.where(is_late, 0.1, 1.0), shape, noise=0.5,
        strongest=_ANSWER_IN_LOG, first=0,
    )  # fmt: skip
    assert 0.1 < left < 0.5


@pytest.mark.parametrize("strongest", [0.1, 1.0, 30.0])
def test_a_change_is_the_mean_of_what_is_believed_after_all_was_seen(strongest: float) -> None:
    """By the conditional mean of normal numbers, of a prior that says little but of the answer."""
    rng = np.random.default_rng(5)
    design, noise = rng.normal(size=(25, 4)), 0.3
    y = design @ [1.0, -0.5, 0.8, 0.6] + noise * rng.normal(size=25)
    prior = np.diag([1e5, 1e5, 1e5, strongest**2])
    seen = design @ prior @ design.T + noise**2 * np.eye(25)
    expected = prior @ design.T @ np.linalg.solve(seen, y)
    found = abrupt._estimate(design, y, noise, strongest)
    assert found == pytest.approx(expected[2], rel=1e-4)
