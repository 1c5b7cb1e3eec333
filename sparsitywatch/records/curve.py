"""What pruning does to the value of a model: the curve, and what is read off it."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from sparsitywatch.errors import ConfigurationError, expect, expect_numbers

Array = NDArray[np.float64]

_NAN = math.nan
#: Errors of less than this share of what is tolerated weigh alike.
_EXACT = 0.01
#: So that no weight, its square, is rounded to zero.
_FAINT = 1e-100
#: Beyond so many degrees of freedom Student's t as a series is as exact, and shorter.
_MOST_EXACT = 200
#: Beyond so many its sum is left out: the normal distribution is as near as rounding.
_MOST_SUMMED = 10_000
_HALVINGS = 80
#: Numbers that differ by less than this share of what is tolerated are equal but for rounding.
ROUNDED = 1e-4
#: Of the bounds that n equal numbers leave, one-sided, and its quantile of the normal.
_LEFT, _QUANTILE = 0.05, 1.6448536269514722


@dataclass(frozen=True)
class SparsityCurve:
    """The value of a model at rising sparsity, on the same examples at every point.

    Points may come in any order. A point at sparsity 0 is the dense model, a point at
    sparsity 1 the model without any in-scope weight; both belong in the curve.

    Args:
        sparsity: counted fraction of in-scope weights removed, each in [0, 1], length K.
        value: mean of the proxy over its examples at each point, length K. NaN or inf is
            a model that broke down there.
        stderr: standard error of the mean paired difference to dense, length K, or None
            if it is unknown.
        higher_is_better: True for scores and accuracies, False for losses.
        level: the sparsity that was asked for at each point, length K; by default the
            counted one.
        num_examples: how many examples the value is a mean of, if known.
        num_seen: on how many of them each point was evaluated, length K, or None: on all. The
            value of a point that saw a part is an estimate for all, and so is its error.
        unit: what the value function gives a number for: "example", "token" or "batch". Of the last
            two the examples counted here are the batches.

    Raises:
        ConfigurationError: lengths differ, the curve is empty, a sparsity lies outside
            [0, 1] or a standard error is negative.
    """

    sparsity: Sequence[float]
    value: Sequence[float]
    stderr: Sequence[float] | None = None
    higher_is_better: bool = True
    level: Sequence[float] | None = None
    num_examples: int | None = None
    num_seen: Sequence[int] | None = None
    unit: str = "example"

    def __post_init__(self) -> None:
        if self.level is None:
            object.__setattr__(self, "level", self.sparsity)
        for name in ("sparsity", "value", "level", "stderr", "num_seen"):
            given = getattr(self, name)
            if given is None and name in ("stderr", "num_seen"):
                continue
            column = expect_numbers(name, given, "a list of numbers")
            object.__setattr__(self, name, column)
            if not self.sparsity:
                raise ConfigurationError("Expected `sparsity` with at least one point, got none.")
            if len(column) != len(self.sparsity):
                raise ConfigurationError(
                    f"Expected `{name}` of the length of `sparsity` ({len(self.sparsity)}), "
                    f"got {len(column)} values."
                )
        for i, x in enumerate(self.sparsity):
            expect(0.0 <= x <= 1.0, f"sparsity[{i}]", "a fraction of weights in [0, 1]", x)
        for i, x in enumerate(self.stderr or ()):
            # NaN stays: the error of a value that broke down is unknown
            expect(not x < 0.0, f"stderr[{i}]", "a non-negative standard error", x)
        most = math.inf if self.num_examples is None else self.num_examples
        what = f"a number of examples, at least 1 and at most `num_examples` ({self.num_examples})"
        if self.num_seen is not None:
            for i, x in enumerate(self.num_seen):
                expect(1 <= x <= most and x == int(x), f"num_seen[{i}]", what, x)
            object.__setattr__(self, "num_seen", tuple(map(int, self.num_seen)))

    def __repr__(self) -> str:
        low = min(self.sparsity)
        high = max(self.sparsity)
        better = "higher" if self.higher_is_better else "lower"
        return (
            f"<SparsityCurve of {len(self.sparsity)} points at sparsity {low:.3g} to {high:.3g}, "
            f"{better} is better>"
        )

    @property
    def degrees_of_freedom(self) -> int | None:
        """Degrees of freedom of the standard errors; None if they are not known."""
        return None if self.num_examples is None else self.num_examples - 1

    @property
    def dense(self) -> float:
        """The value of the model as it is; NaN without a point at sparsity 0."""
        return dict(zip(self.sparsity, self.value, strict=True)).get(0.0, _NAN)

    @property
    def all_removed(self) -> float:
        """The value with every in-scope weight removed; NaN without a point at sparsity 1."""
        return dict(zip(self.sparsity, self.value, strict=True)).get(1.0, _NAN)

    @property
    def reliance(self) -> float:
        """Harm done by removing every in-scope weight; NaN without points at 0 and 1.

        Positive when the model needs the weights, whatever the direction of the value.
        """
        difference = self.all_removed - self.dense
        return -difference if self.higher_is_better else difference

    def reliance_interval(self, confidence: float = 0.9) -> tuple[float, float]:
        """Both ends of the interval of reliance, by Student's t; NaN without its error."""
        if self.degrees_of_freedom == 0:
            return _NAN, _NAN
        stderr = dict(zip(self.sparsity, self.stderr or (), strict=False)).get(1.0, _NAN)
        margin = t_quantile(0.5 + confidence / 2, self.degrees_of_freedom) * stderr
        return self.reliance - margin, self.reliance + margin


@dataclass(frozen=True, kw_only=True)
class EssentialSparsity:
    """How much of a model can be thrown away without hurting it.

    Args:
        value: sparsity at the first crossing of the tolerance, interpolated; NaN if the
            curve says nothing (then ``informative`` is False).
        last_crossing: the largest sparsity still within the tolerance.
        low, high: confidence interval of ``value``; NaN without standard errors.
        knee: sparsity from which on the value drops much faster: of log(value / dense) of a loss,
            or harm / dense of a score; NaN where a smooth curve tells it as well.
        knee_low, knee_high: its interval, of the same confidence; NaN without a knee.
        sharpness: slope after the knee over slope before it; NaN if undefined.
        informative: False if the model does not rely on the weights yet, the curve
            cannot be judged, or the examples are too few; such a value is never plotted.
        reason: why it is not informative, or what to know about it; empty if nothing.
        tolerance: the epsilon that was applied.
        mode: "relative" (to the dense value) or "absolute".
        confidence: nominal coverage of [low, high].
        examples_needed: about how many examples it would take where these are too few to say;
            None otherwise, and where it is not known of how many the value is a mean.
        unit: what there was one number for: "example", "token", "batch", or "seed" of a fine-tuned
            curve. Of tokens the interval counts batches.

    Reference: Jaiswal et al. 2023, arXiv:2306.03805, section 3. Zero-shot here: no
    fine-tuning after pruning.
    """

    value: float
    last_crossing: float
    low: float = _NAN
    high: float = _NAN
    knee: float = _NAN
    knee_low: float = _NAN
    knee_high: float = _NAN
    sharpness: float = _NAN
    informative: bool
    reason: str = ""
    tolerance: float
    mode: str
    confidence: float = 0.9
    examples_needed: int | None = None
    unit: str = "example"

    def __repr__(self) -> str:
        return f"<EssentialSparsity {self.describe()}, tolerance {self.tolerance:g} {self.mode}>"

    def describe(self, shown: Callable[[float], str] = "{:.3f}".format) -> str:
        """The estimate with its interval, or that there is none; ``shown`` writes a share."""
        if self.examples_needed is not None:
            return f"cannot say below about {self.examples_needed:,} {units(self.unit)}"
        if not self.informative:
            return "not informative"
        if math.isnan(self.low):
            return shown(self.value)
        by = "" if self.unit == "example" else f" by {units(self.unit)}"
        return f"{shown(self.value)} [{shown(self.low)}, {shown(self.high)}]{by}"

    def describe_drop(self, shown: Callable[[float], str] = "{:.3f}".format) -> str:
        """Where the value begins to drop sharply, in a few words, or that it does so nowhere."""
        if math.isnan(self.knee):
            return "no sharp drop seen"
        known = not math.isnan(self.knee_low)
        interval = f" [{shown(self.knee_low)}, {shown(self.knee_high)}]" if known else ""
        return f"a sharp drop from {shown(self.knee)}{interval} on"


def units(unit: str) -> str:
    """What an interval counts as independent, in the plural: tokens of one batch are not."""
    return "batches" if unit in ("token", "batch") else f"{unit}s"


# ------------------------------------------------------------------ the best curve that rises


def first_beyond(harm: Array, stderr: Array, allowed: float) -> int:
    """The first point at which the best curve that only rises is beyond ``allowed``; K if none."""
    beyond = np.flatnonzero(best_rising(harm, stderr, allowed) > allowed)
    return int(beyond[0]) if len(beyond) else len(harm)


def best_rising(values: Array, stderr: Array, unit: float) -> Array:
    """The curve nearest to the values that never falls, by least squares (Barlow et al. 1972)."""
    # each counts by its error, those below a hundredth of the unit alike; where one is not known
    # all count alike
    errors = np.where(np.isfinite(values), stderr, 0.0)
    if not np.isfinite(errors).all():
        errors = np.zeros_like(values)
    errors = np.maximum(errors, _EXACT * unit)
    weights = np.maximum(errors.min() / errors, _FAINT) ** 2
    blocks: list[tuple[float, float, int]] = []  # mean, weight, how many
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        mean, total, num = value, weight, 1
        while blocks and blocks[-1][0] >= mean:  # adjacent violators are pooled
            before, its, its_num = blocks.pop()
            share, total, num = total / (its + total), its + total, its_num + num
            # one that is not finite stays what it is, and so does the curve after it
            mean = before + (mean - before) * share if math.isfinite(before) else before
        blocks.append((mean, total, num))
    return np.repeat([mean for mean, _, _ in blocks], [num for _, _, num in blocks])


# ------------------------------------------------------------------ Student's t


@functools.lru_cache(maxsize=1024)
def t_quantile(probability: float, freedom: int | None) -> float:
    """Where Student's t stays below with a ``probability`` in [0.5, 1), of some ``freedom``."""
    # None stands for a normal variable. Abramowitz and Stegun 1964: 26.7.3 and 26.7.4, finite sums
    # for the distribution function, up to 200 degrees of freedom; 26.7.5, its inverse as a series.
    if freedom is None or freedom > _MOST_EXACT:
        z = NormalDist().inv_cdf(probability)
        if freedom is None:
            return z
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


def t_tail(t: float, freedom: int | None) -> float:
    """Probability that Student's t is above a ``t`` of at least 0; None is a normal variable."""
    if freedom is None or freedom > _MOST_SUMMED:
        return 1.0 - NormalDist().cdf(t)
    return 1.0 - _probability(math.atan(t / math.sqrt(freedom)), freedom)


# ------------------------------------------------------------------ errors of means


def standard_error(numbers: Array, most: float, unit: float) -> float:
    """The standard error of the mean of numbers, for the population that they were drawn from."""
    # that n numbers are equal proves little: with a probability of 5 % a share of 1 - 0.05^(1/n) of
    # the population, about 3/n, is another, by ``most`` or so. The error is then the one that has
    # its bound there. ``unit`` is what is tolerated. NaN of one number, and where one is not
    # finite. Hanley and Lippman-Hand 1983, J. Am. Med. Assoc. 249:1743 (the rule of three)
    num = len(numbers)
    if num < 2 or not np.isfinite(numbers).all():
        return math.nan
    if float(np.ptp(numbers)) <= ROUNDED * unit:
        return most * (1.0 - math.pow(_LEFT, 1.0 / num)) / _QUANTILE
    return float(numbers.std(ddof=1)) / math.sqrt(num)


def six_digits(values: Array) -> tuple[float, ...]:
    """Numbers to the digits that are recorded."""
    return tuple(map(float, map("{:.6g}".format, values.tolist())))


def rounded_up(number: float) -> int:
    """A number of examples to two digits: more would not be true.

    >>> rounded_up(8118), rounded_up(7)
    (8200, 7)
    """
    digit: int = 10 ** max(math.floor(math.log10(number)) - 1, 0)
    return math.ceil(number / digit) * digit
