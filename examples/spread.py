"""How much a number differs from run to run, and whether groups differ by more than that."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["chance_of_gap", "gap", "mean_and_spread"]

_DRAWS = 9_999


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (of a sample) of one value or more; 0.0 for a single one.

    >>> mean_and_spread([1.0, 3.0, 5.0])
    (3.0, 2.0)
    """
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def gap(groups: Mapping[str, Sequence[float]]) -> float:
    """Largest mean of a group minus the smallest.

    >>> gap({"a": [1.0, 2.0], "b": [4.0, 6.0]})
    3.5
    """
    means = [statistics.fmean(values) for values in groups.values()]
    return max(means) - min(means)


def chance_of_gap(groups: Mapping[str, Sequence[float]]) -> float:
    """How often runs dealt to the groups at random would lie as far apart as these do.

    A permutation test of the ``gap``, by 9,999 random deals with a fixed seed: the share of
    them with a gap at least as large, the deal at hand counted in.

    Args:
        groups: values by group, at least one each.

    Reference: Phipson and Smyth 2010, "Permutation p-values should never be zero".
    """
    rng = np.random.default_rng(0)
    pooled = np.concatenate([np.asarray(values, dtype=float) for values in groups.values()])
    ends = np.cumsum([len(values) for values in groups.values()])[:-1]
    deals = rng.permuted(np.tile(pooled, (_DRAWS, 1)), axis=1)
    means = np.stack([part.mean(axis=1) for part in np.split(deals, ends, axis=1)])
    slack = 1e-9 * (1.0 + np.abs(pooled).max())  # the same means in another order
    as_large = int(np.sum(np.ptp(means, axis=0) >= gap(groups) - slack))
    return (as_large + 1) / (_DRAWS + 1)
