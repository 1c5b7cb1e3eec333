"""What a sparsity-value curve accepts, and its reliance."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.records import SparsityCurve
from sparsitywatch.records.curve import units


def test_columns_become_tuples_of_floats() -> None:
    curve = SparsityCurve(
        sparsity=np.array([0, 1]), value=[np.float32(0.5), 1], stderr=(0, np.float64(2))
    )
    assert (curve.sparsity, curve.value, curve.stderr) == ((0.0, 1.0), (0.5, 1.0), (0.0, 2.0))
    for column in (curve.sparsity, curve.value, curve.stderr, curve.level):
        assert [type(x) for x in column] == [float, float]


def test_the_level_is_the_counted_sparsity_unless_it_is_given() -> None:
    assert SparsityCurve(sparsity=[0.1, 0.9], value=[1, 2]).level == (0.1, 0.9)
    assert SparsityCurve(sparsity=[0.1, 0.9], value=[1, 2], level=[0.0, 1]).level == (0.0, 1.0)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"sparsity": [], "value": []}, "`sparsity` with at least one point, got none"),
        ({"value": [1.0]}, r"`value` of the length of `sparsity` \(2\), got 1 values"),
        ({"stderr": [0.1] * 3}, r"`stderr` of the length of `sparsity` \(2\), got 3 values"),
        ({"level": []}, r"`level` of the length of `sparsity` \(2\), got 0 values"),
        ({"sparsity": [0.0, 1.5]}, r"`sparsity\[1\]` to be a fraction .* got 1\.5"),
        ({"sparsity": [-0.1, 1.0]}, r"`sparsity\[0\]` to be a fraction .* got -0\.1"),
        ({"sparsity": [0.0, math.nan]}, r"`sparsity\[1\]` to be a fraction .* got nan"),
        ({"stderr": [-1.0, 0.0]}, r"`stderr\[0\]` to be a non-negative .* got -1\.0"),
    ],
)
def test_what_is_wrong_is_named(columns: dict, message: str) -> None:
    good = {"sparsity": [0.0, 1.0], "value": [1.0, 2.0]}
    with pytest.raises(ConfigurationError, match=message):
        SparsityCurve(**good | columns)


def test_values_may_break_down() -> None:
    curve = SparsityCurve(
        sparsity=[0.0, 0.5, 1.0], value=[1.0, math.inf, math.nan], stderr=[0, math.nan, math.inf]
    )
    assert curve.value[1] == math.inf
    assert math.isnan(curve.reliance)


FINITE = st.floats(min_value=-1e6, max_value=1e6)


@given(dense=FINITE, removed=FINITE, middle=FINITE, order=st.permutations(range(3)))
def test_reliance_is_harm_whatever_the_direction_and_the_order(
    dense: float, removed: float, middle: float, order: list[int]
) -> None:
    points = [(0.0, dense), (0.5, middle), (1.0, removed)]
    sparsity, value = zip(*(points[i] for i in order), strict=True)
    loss = SparsityCurve(sparsity=sparsity, value=value, higher_is_better=False)
    score = SparsityCurve(sparsity=sparsity, value=value, higher_is_better=True)
    assert loss.reliance == removed - dense
    assert score.reliance == dense - removed


@pytest.mark.parametrize("sparsity", [[0.1, 1.0], [0.0, 0.9], [0.5, 0.6]])
def test_without_both_ends_reliance_is_not_known(sparsity: list[float]) -> None:
    assert math.isnan(SparsityCurve(sparsity=sparsity, value=[1.0, 2.0]).reliance)


def test_tokens_of_one_batch_are_not_independent() -> None:
    assert [units(unit) for unit in ("example", "token", "seed")] == [
        "examples",
        "batches",
        "seeds",
    ]
