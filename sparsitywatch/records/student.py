"""Student's t: quantiles for intervals from few numbers, and normal scores of its values."""

from __future__ import annotations

import functools
import math
from statistics import NormalDist
from typing import Any

import numpy as np

#: Beyond so many degrees of freedom a series is as exact, and shorter.
_MOST_EXACT = 200
_HALVINGS = 80


def normal_score(t: Any, freedom: Any) -> Any:
    """The score of a normal variable that is as unlikely as ``t``, a number or an array.

    Reference: Wallace 1959, Annals of Mathematical Statistics 30:1121.
    """
    size = np.sqrt(freedom * np.log1p(t * t / freedom))
    return np.copysign(size * (8.0 * freedom + 1.0) / (8.0 * freedom + 3.0), t)


@functools.lru_cache(maxsize=1024)
def t_quantile(probability: float, freedom: int) -> float:
    """Where Student's t stays below with a ``probability`` in [0.5, 1), of ``freedom`` at least 1.

    Reference: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4, finite sums for the distribution
    function, up to 200 degrees of freedom; 26.7.5, its inverse as a series, beyond.
    """
    if freedom > _MOST_EXACT:
        z = NormalDist().inv_cdf(probability)
        second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
        third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
        return z + (z**3 + z) / (4 * freedom) + second / freedom**2 + third / freedom**3
    low, high = 0.0, math.pi / 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        is_below = _probability(middle, freedom) < probability
        low, high = (middle, high) if is_below else (low, middle)
    return math.sqrt(freedom) * math.tan(high)


def _probability(angle: float, freedom: int) -> float:
    """Of t below sqrt(freedom) times the tangent of an angle in [0, pi / 2]."""
    cosine, is_odd = math.cos(angle) ** 2, freedom % 2 == 1
    term, total = (math.cos(angle) if is_odd else 1.0), 0.0
    for k in range(1, (freedom - 1) // 2 + 1 if is_odd else freedom // 2 + 1):
        total += term
        term *= cosine * (2 * k / (2 * k + 1) if is_odd else (2 * k - 1) / (2 * k))
    both = 2 / math.pi * (angle + math.sin(angle) * total) if is_odd else math.sin(angle) * total
    return 0.5 + both / 2
