"""What numbers leave in doubt: the error of a mean, and the curve that errors move the least."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Of the bounds that n equal numbers leave, one-sided, and its quantile of the normal.
LEFT, _QUANTILE = 0.05, 1.6448536269514722
#: Numbers that differ by less than this share of what is tolerated are equal but for rounding.
ROUNDED = 1e-4
#: Errors of less than this share of what is tolerated weigh alike.
_EXACT = 0.01
#: So that no weight, its square, is rounded to zero.
_FAINT = 1e-100


def standard_error(numbers: Array, most: float, unit: float) -> float:
    """The standard error of their mean, for the population that they were drawn from.

    That n numbers are equal proves little: with a probability of 5 % a share of 1 - 0.05^(1/n) of
    the population, about 3/n, is another, by ``most`` or so. The error is then the one that has
    its bound there. ``unit`` is what is tolerated. NaN of one number, and where one is not finite.

    Reference: Hanley and Lippman-Hand 1983, J. Am. Med. Assoc. 249:1743 (the rule of three).
    """
    num = len(numbers)
    if num < 2 or not np.isfinite(numbers).all():
        return math.nan
    if float(np.ptp(numbers)) <= ROUNDED * unit:
        return most * (1.0 - math.pow(LEFT, 1.0 / num)) / _QUANTILE
    return float(numbers.std(ddof=1)) / math.sqrt(num)


def best_rising(values: Array, stderr: Array, unit: float) -> Array:
    """The curve nearest to the values that never falls, by least squares.

    Each counts by its error, those below a hundredth of ``unit`` alike; where one is not known all
    count alike. A value that is not finite stays what it is, and so does the curve after it.

    Reference: Barlow et al. 1972, Statistical Inference under Order Restrictions (pooling
    adjacent violators).
    """
    is_broken = ~np.isfinite(values)
    errors = np.where(is_broken, 0.0, stderr)
    if not np.isfinite(errors).all():
        errors = np.zeros_like(values)
    errors = np.maximum(errors, _EXACT * unit)
    weights = np.maximum(errors.min() / errors, _FAINT) ** 2
    blocks: list[tuple[float, float, int]] = []  # mean, weight, how many
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        block = (value, weight, 1)
        while blocks and blocks[-1][0] >= block[0]:
            block = _pooled(blocks.pop(), block)
        blocks.append(block)
    return np.repeat([mean for mean, _, _ in blocks], [num for _, _, num in blocks])


def _pooled(
    one: tuple[float, float, int], other: tuple[float, float, int]
) -> tuple[float, float, int]:
    mean, weight = one[0], one[1] + other[1]
    if math.isfinite(mean):
        mean += (other[0] - mean) * (other[1] / weight)
    return mean, weight, one[2] + other[2]
