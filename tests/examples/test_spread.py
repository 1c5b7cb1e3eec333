from __future__ import annotations

import itertools
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from spread import chance_of_gap, gap, mean_and_spread

numbers = st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=5)


@given(numbers)
def test_mean_and_spread_against_numpy(values):
    mean, spread = mean_and_spread(values)
    assert mean == pytest.approx(np.mean(values), abs=1e-9)
    expected = np.std(values, ddof=1) if len(values) > 1 else 0.0
    assert spread == pytest.approx(expected, abs=1e-9)


def _exact(groups):
    """Every deal of the pooled values to groups of these sizes."""
    pooled = [x for values in groups.values() for x in values]
    sizes = [len(values) for values in groups.values()]
    ends = [0, *itertools.accumulate(sizes)]
    gaps = []
    for deal in itertools.permutations(pooled):
        means = [statistics.fmean(deal[i:j]) for i, j in itertools.pairwise(ends)]
        gaps.append(max(means) - min(means) >= gap(groups) - 1e-9)
    return statistics.fmean(gaps)


@pytest.mark.parametrize(
    "groups",
    [
        {"a": [1.0, 2.0], "b": [4.0, 6.0]},
        {"a": [1.0, 5.0, 2.0], "b": [3.0, 4.0]},
        {"a": [1.0, 1.1], "b": [2.0, 2.1], "c": [3.0, 3.3]},
        {"a": [1.0, 3.0], "b": [2.0, 2.5], "c": [1.5, 2.6]},
    ],
)
def test_random_deals_against_all_deals(groups):
    assert chance_of_gap(groups) == pytest.approx(_exact(groups), abs=0.02)


def test_equal_runs_lie_as_far_apart_in_every_deal():
    assert chance_of_gap({"a": [0.1, 0.1], "b": [0.1, 0.1]}) == 1.0


def test_three_shares_of_three_seeds_can_be_told_apart():
    far = {"a": [1.0, 1.1, 1.2], "b": [2.0, 2.1, 2.2], "c": [3.0, 3.1, 3.2]}
    assert chance_of_gap(far) < 0.05 / 4
