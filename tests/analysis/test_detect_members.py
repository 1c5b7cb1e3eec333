"""The parts of the detector against what can be computed in another way."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsitywatch.analysis.detect.detector import Looks
from sparsitywatch.analysis.detect.growth import FALL, RISE, seen_growth, share_left_by_rate
from sparsitywatch.analysis.detect.jumps import (
    MODELS,
    SPLITS,
    WINDOW,
    forecasts,
    normal_score,
    onset_of,
)

RNG = np.random.default_rng(5)


# ------------------------------------------------------------------------- forecasts
def textbook(model, split: int, x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Score and effect by the joint normal distribution of all looks, nothing whitened.

    Without outliers, which nothing is winsorised for.
    """
    n = len(x)
    i = np.arange(n)
    covariance = (model.ar ** np.abs(i[:, None] - i) if model.ar else np.eye(n)) + (
        model.walk**2 * (np.minimum(i[:, None], i) + 1.0)
    )
    before = np.arange(max(0, n - split - model.looks), n - split)
    after = np.arange(n - split, n)
    if model.ar or model.walk:  # then it reads every look there is
        assert before[0] == 0
    design = np.vander(x, model.degree + 1, increasing=True)
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
    nu = len(before) - model.degree - 1
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
        score = float(normal_score(np.float64(t), np.float64(nu)))
        best = max(best, (score, effect), key=lambda pair: abs(pair[0]))
    return best


@pytest.mark.parametrize("index", range(len(MODELS)))
def test_forecasts_are_those_of_the_textbook(index: int) -> None:
    model = MODELS[index]
    # noise of two sizes only: nothing to winsorise
    x = np.cumsum(RNG.uniform(0.8, 1.2, 26))
    y = 0.3 + 0.01 * x + RNG.choice([-0.01, -0.008, 0.008, 0.01], 26)
    y[-3:] += 0.015
    seen = forecasts(x, y, 1e-9)
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


def test_a_model_says_nothing_before_eight_looks() -> None:
    seen = forecasts(np.arange(9.0), RNG.normal(size=9), 1e-9)
    assert np.isfinite(seen.score[:, 0]).all()
    assert np.isnan(seen.score[:, 1:]).all()


def test_scores_of_white_noise_are_normal() -> None:
    scores = []
    for _ in range(400):
        seen = forecasts(np.arange(float(WINDOW)), RNG.normal(size=WINDOW), 1e-9)
        scores.append(seen.score[1, 0])  # one look ahead, a line of thirty-two looks
    assert np.std(scores) == pytest.approx(1.0, abs=0.12)
    assert np.mean(np.abs(scores) > 1.96) == pytest.approx(0.05, abs=0.03)


@pytest.mark.parametrize(
    ("t", "nu", "p"), [(2.228, 10, 0.025), (2.764, 10, 0.01), (2.042, 30, 0.025)]
)
def test_normal_score_agrees_with_tables_of_student(t: float, nu: int, p: float) -> None:
    score = float(normal_score(np.float64(t), np.float64(nu)))
    assert 0.5 * math.erfc(score / math.sqrt(2)) == pytest.approx(p, rel=0.02)
    assert float(normal_score(np.float64(-t), np.float64(nu))) == -score


# ---------------------------------------------------------------------------- growth
def grown(values: np.ndarray, kind=RISE, ratio: float = 1.5) -> bool:
    x = np.arange(float(len(values)))
    return bool(seen_growth(kind, x, values, ratio=ratio, threshold=2.0, min_share=1 / 3))


def test_growth_that_its_past_explains_is_none() -> None:
    time = np.arange(60)
    assert not grown(0.05 * np.exp(time / 20))
    assert not grown(0.05 + 0.01 * time)
    assert grown(0.05 * np.exp(np.maximum(time - 30, 0) / 20))


def test_five_looks_are_enough() -> None:
    assert grown(np.array([0.06, 0.061, 0.06, 0.13, 0.2]))
    assert not grown(np.array([0.06, 0.061, 0.1, 0.2]))
    assert not grown(np.array([0.06, 0.061, 0.06, 0.06, 0.2]))  # one look is not


def test_a_fall_is_growth_of_the_reciprocal_and_takes_eight_looks_at_most() -> None:
    quick = np.concatenate([np.full(12, 0.8), [0.7, 0.6, 0.5]])
    slow = np.concatenate([np.full(40, 0.8), np.linspace(0.8, 0.5, 30)])
    assert grown(1 / quick, FALL, 1.25)
    assert not any(grown(1 / slow[:n], FALL, 1.25) for n in range(42, 71))


@given(st.floats(1e-6, 1e6), st.integers(0, 100))
def test_the_unit_of_the_series_does_not_matter(unit: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.exp(np.cumsum(rng.normal(0.02, 0.05, 30)))
    assert grown(unit * values) == grown(values)


# ------------------------------------------------------------------------------ rate
def share_left(rates: np.ndarray, y: np.ndarray, split: int) -> float:
    x = np.arange(float(len(y)))
    shape = np.maximum(x - (len(y) - split - 1), 0.0) / split
    return share_left_by_rate(x, y, rates, shape, noise=0.01, strongest=0.5, first=0)


def test_a_rate_that_does_not_move_accounts_for_nothing() -> None:
    y = np.concatenate([np.zeros(30), np.linspace(0, 0.5, 10)])
    assert share_left(np.full(40, 3e-3), y, 10) == 1.0
    assert share_left(np.full(40, math.nan), y, 10) == 1.0


def test_a_rate_that_falls_with_the_change_accounts_for_it() -> None:
    rates = np.where(np.arange(40) < 30, 3e-3, 3e-4)
    follows = -0.4 * (1 - np.exp(-np.maximum(np.arange(40) - 29, 0) / 4))
    assert share_left(rates, -follows, 10) < 0.5


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
    assert onset_of(x, y, noise=1e-6, latest=37) == (at, at, at)


def test_the_interval_of_the_onset_holds_it_about_as_often_as_it_says() -> None:
    held = 0
    for _ in range(200):
        late = np.maximum(np.arange(60) - 40, 0)
        y = 0.1 + 0.004 * late + 0.01 * RNG.normal(size=60)
        _, low, high = onset_of(np.arange(60.0), y, noise=0.01, latest=57)
        held += low <= 40 <= high
    assert 0.8 <= held / 200 <= 1.0


# ----------------------------------------------------------------------------- looks
@given(st.integers(0, 700))
def test_recent_looks_are_all_kept_and_older_ones_thinned(number: int) -> None:
    looks = Looks()
    for step in range(number):
        looks.add(step, 0.5 * step, math.nan)
    assert len(looks) <= 192
    recent = min(number, 96)
    assert looks.steps[len(looks) - recent :] == list(range(number - recent, number))
    assert looks.steps == sorted(set(looks.steps))
    assert looks.steps[:1] == [0][:number]
    again = Looks()
    again.load_state_dict(json.loads(json.dumps(looks.state_dict(), allow_nan=False)))
    assert again.steps == looks.steps
    assert again.values == looks.values
