"""Scale or shape: multiplied weights are the one, weights set to zero the other."""

from __future__ import annotations

import numpy as np
import pytest
from contracts.made_records import counted, made_record
from hypothesis import given
from hypothesis import strategies as st

from sparsitywatch.analysis.events import what_moved

RULES = ("initial_0.1", "rms_0.1", "abs_0.001", "zero")
SERIES = "near_zero/initial_0.1"
KINDS = ("normal", "laplace", "uniform", "sparse", "peaked")


def draw(kind: str, seed: int, scale: float, size: int = 8000) -> np.ndarray:
    """Weights as they are drawn at the start, or as they look later in a training."""
    random = np.random.default_rng(seed)
    if kind == "peaked":  # many small ones, a few large
        return scale * random.normal(size=size) * random.normal(size=size)
    if kind == "sparse":  # a part is zero already
        return scale * random.normal(size=size) * (random.random(size) < 0.8)
    draws = {"normal": random.normal, "laplace": random.laplace}
    values = draws[kind](size=size) if kind in draws else random.uniform(-1, 1, size)
    return scale * values


def rms(weights: dict[str, np.ndarray]) -> dict[str, float]:
    return {name: float(np.sqrt(np.mean(w**2))) for name, w in weights.items()}


def moved(
    weights: dict, later: dict, series: str = SERIES, rules: tuple[str, ...] = RULES, first=None
) -> str:
    initial = rms(weights) if first is None else first
    before, now = counted(0, weights, initial, rules), counted(1, later, initial, rules)
    return what_moved(before, now, series, initial)


@given(
    st.sampled_from(KINDS),
    st.integers(0, 99),
    st.sampled_from([0.02, 0.2]),
    st.floats(0.25, 0.85) | st.floats(1.2, 4.0),
)
def test_all_weights_times_a_constant_is_scale(
    kind: str, seed: int, scale: float, factor: float
) -> None:
    weights = {"a": draw(kind, seed, scale), "b": draw("normal", seed + 1, 2 * scale)}
    later = {name: factor * w for name, w in weights.items()}
    assert moved(weights, later) == "scale"
    assert moved(weights, later, rules=("initial_0.1",)) == "scale"


@given(st.sampled_from(KINDS), st.integers(0, 99), st.floats(0.1, 0.6))
def test_a_random_part_set_to_zero_is_shape(kind: str, seed: int, part: float) -> None:
    weights = {"a": draw(kind, seed, 0.02), "b": draw("normal", seed + 1, 0.05)}
    random = np.random.default_rng(seed)
    later = {name: w * (random.random(w.size) >= part) for name, w in weights.items()}
    for series in (SERIES, "near_zero/rms_0.1", "near_zero/zero", "motion/dormant"):
        assert moved(weights, later, series) == "shape"


@given(st.sampled_from(["normal", "laplace", "uniform"]), st.integers(0, 99))
def test_a_third_of_the_units_that_decay_takes_away_is_shape_even_while_the_rest_grows(
    kind: str, seed: int
) -> None:
    weights = {"a": draw(kind, seed, 0.02).reshape(80, 100)}
    later = {"a": weights["a"] * 1.1}
    later["a"][:27] = weights["a"][:27] * 0.05
    assert moved(weights, later) == "shape"


def test_shrinking_and_pruning_at_once_is_both() -> None:
    weights = {"a": draw("normal", 0, 0.02, 50_000)}
    later = {"a": 0.5 * weights["a"]}
    later["a"][:4000] = 0.0
    # alone, halving adds 7.9 points and pruning 7.4
    assert moved(weights, later) == "both"
    assert moved(weights, later, "near_zero/rms_0.1") == "both"
    assert moved(weights, later, "essential_sparsity/value") == "both"


def test_the_first_sizes_may_be_of_long_ago() -> None:
    """The threshold is then nowhere near a tenth of the present size."""
    weights = {"a": draw("normal", 3, 0.1, 50_000)}
    for factor in (0.3, 0.7):
        later = {"a": factor * weights["a"]}
        assert moved(weights, later, first={"a": 0.02}) == "scale"
        assert moved(weights, later, first={"a": 1.5}) == "scale"


def test_where_nothing_moved_nothing_is_said() -> None:
    weights = {"a": draw("normal", 0, 0.02)}
    assert moved(weights, weights) == ""
    assert moved(weights, weights, "motion/dormant") == ""
    assert moved(weights, weights, "near_zero/zero", rules=("zero",)) == "shape"


def test_records_that_cannot_be_compared_say_nothing() -> None:
    bare = made_record(1, 0.5)
    assert what_moved(bare, bare, SERIES, {}) == ""
    weights = {"a": draw("normal", 0, 0.02)}
    full = counted(0, weights, rms(weights))
    assert what_moved(full, bare, SERIES, {}) == ""
    other = counted(1, {"b": 0.1 * weights["a"]}, {"b": 0.02})
    assert what_moved(full, other, SERIES, {}) == ""


@pytest.mark.parametrize("part", [0.99, 1.0])
def test_nearly_all_or_all_weights_gone_is_shape(part: float) -> None:
    weights = {"a": draw("normal", 0, 0.02)}
    later = {"a": weights["a"] * (np.arange(8000) >= part * 8000)}
    assert moved(weights, later) == "shape"


def test_without_the_first_sizes_a_flat_density_is_assumed() -> None:
    weights = {"a": draw("normal", 0, 0.02, 50_000)}
    initial = rms(weights)
    before, now = counted(0, weights, initial), counted(1, {"a": 0.5 * weights["a"]}, initial)
    assert what_moved(before, now, SERIES, {}) == "scale"
