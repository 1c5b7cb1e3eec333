"""How much of a model could be thrown away: what is read off a sparsity-value curve."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from sparsitywatch.errors import expect, expect_number
from sparsitywatch.records import EssentialSparsity, SparsityCurve
from sparsitywatch.records.curve import Array, first_beyond, rounded_up, t_quantile, units

_MODES = ("relative", "absolute")
#: Rounding of a mean is not harm: 0.90 - 0.89 is within 0.01, though not in binary.
ROUNDING = 1e-12
#: A dense value of less than this share of the largest harm is near zero beside it.
_NEAR_ZERO = 0.01
#: Fewer examples give no usable standard error.
_MIN_EXAMPLES = 5
_HALVINGS = 40


def essential_sparsity(
    curve: SparsityCurve, tolerance: float = 0.01, mode: str | None = None, confidence: float = 0.9
) -> EssentialSparsity:
    """The largest sparsity up to which the value stays within the tolerance of dense.

    Noise makes a curve cross the tolerance where the model does not. So the crossing is the one of
    the best curve that only rises (least squares, each point by its error); between the points
    around it harm is interpolated linearly. Where the curve itself crosses earlier, ``reason`` says
    so. A value that is not finite is a model that broke down, beyond any tolerance: the crossing is
    then the last good sparsity. Of several points at one sparsity the worst counts. Of several
    dense points the best is the dense value.

    A curve that cannot be judged is no error: the estimate is then not informative, says
    why in ``reason``, and its numbers are NaN. That is so without a finite dense value,
    where removing everything stays within the tolerance (the model does not rely on these
    weights), where nothing crosses it and no point at sparsity 1 shows reliance, and where the
    tolerance, or reliance, is below the noise of the evaluation. The last can be helped:
    ``examples_needed`` says about how many examples it takes.

    The interval inverts the pointwise test: it runs from the crossing of harm plus to that of harm
    minus the critical value times the standard error, each with the harm between points read both
    as straight and as a monotone cubic, whichever is farther out. docs/reports/estimate.md has
    its measured coverage.

    Args:
        curve: points in any order, with one at sparsity 0 and, to prove reliance, at 1.
        tolerance: harm that is accepted: a fraction of |dense| below 1 where relative, in
            units of the value where absolute.
        mode: "relative" or "absolute"; None is relative for losses, absolute for scores.
        confidence: nominal coverage of [low, high], in (0, 1).

    Raises:
        ConfigurationError: tolerance, mode or confidence is out of range.

    Reference:
        Jaiswal et al. 2023, arXiv:2306.03805, section 3; monotone cubic: Fritsch and
        Butland 1984, SIAM J. Sci. Stat. Comput. 5:300.

    >>> curve = SparsityCurve(
    ...     sparsity=[0, 0.4, 0.6, 1], value=[0.9, 0.9, 0.88, 0.1], higher_is_better=True
    ... )
    >>> round(essential_sparsity(curve, tolerance=0.01).value, 3)
    0.5
    """
    expect(isinstance(curve, SparsityCurve), "curve", "a sw.SparsityCurve", curve)
    if mode is None:
        mode = "absolute" if curve.higher_is_better else "relative"
    expect_number("confidence", confidence, lambda c: 0.0 < c < 1.0, "in (0, 1): 90 % is 0.9")
    reading = _Reading(curve, tolerance, mode, confidence)
    told = partial(
        EssentialSparsity, tolerance=tolerance, mode=mode, confidence=confidence, unit=curve.unit
    )
    refused = partial(told, value=math.nan, last_crossing=math.nan, informative=False)
    refusal = reading.refusal()
    if refusal:
        return refused(reason=refusal)
    value, last = reading.on_chord(reading.harm, reading.beyond), reading.last_crossing()
    low, high = reading.interval(value)
    notes = reading.caveats(value, last, mode)
    refusal, needed = reading.noise((value, (low + high) / 2), curve.unit)
    if refusal:
        return refused(reason="; ".join([refusal, *notes]), examples_needed=needed)
    knee = knee_of_curve(curve, confidence)
    return told(
        value=value, last_crossing=last, low=low, high=high, informative=True,
        knee=knee.place, knee_low=knee.low, knee_high=knee.high, sharpness=knee.sharpness,
        reason="; ".join(notes),
    )  # fmt: skip


def essential_alone(
    curve: SparsityCurve, tolerance: float, mode: str, confidence: float
) -> EssentialSparsity:
    """The same of one tensor of a model, which may do without all of it: then the value is 1."""
    found = essential_sparsity(curve, tolerance, mode, confidence)
    cost, allowed = curve.reliance, allowed_harm(curve.dense, tolerance, mode)
    high = curve.reliance_interval(confidence)[1]
    if found.informative or not (cost <= allowed and high - cost <= allowed):
        return found
    end = 1.0 if high <= allowed else math.nan
    reason = f"all of it can go: that costs {cost:.3g} of {allowed:.3g}"
    return replace(
        found, value=1.0, last_crossing=1.0, low=end, high=end, informative=True,
        examples_needed=None, reason=reason,
    )  # fmt: skip


def allowed_harm(dense: float, tolerance: float, mode: str) -> float:
    """The accepted harm, in units of the value; a ConfigurationError if that is no amount."""
    expect(isinstance(mode, str) and mode in _MODES, "mode", f"one of {_MODES}", mode)
    # a relative tolerance of 1 is nearly always one percent that was meant as 0.01
    limit = 1.0 if mode == "relative" else math.inf
    what = "in (0, 1), a fraction of dense" if mode == "relative" else "finite and positive"
    expect_number("tolerance", tolerance, lambda x: 0.0 < x < limit, f"{what}: 1 % is 0.01")
    return float(tolerance * abs(dense)) if mode == "relative" else float(tolerance)


def _by_rising_sparsity(
    sparsity: Array, loss: Array, stderr: Array
) -> tuple[Array, Array, Array, float]:
    """One point for each sparsity, the worst; harm against the best dense point, or NaN."""
    order = np.lexsort((stderr, loss, sparsity))
    sparsity, loss, stderr = sparsity[order], loss[order], stderr[order]
    is_worst = np.append(sparsity[1:] != sparsity[:-1], True)
    dense = float(loss[0]) if sparsity[0] == 0.0 and np.isfinite(loss[0]) else math.nan
    return sparsity[is_worst], loss[is_worst] - dense, stderr[is_worst], dense


class _Reading:
    """A curve read once, by rising sparsity, beside the harm that is allowed; arrays of length K.

    Sparsity, harm and its error are of the points that saw all examples, as far as there are any
    but the ends. Harm against dense is inf where the value is not finite.
    """

    def __init__(
        self, curve: SparsityCurve, tolerance: float, mode: str, confidence: float
    ) -> None:
        sparsity = np.asarray(curve.sparsity)
        loss = np.asarray(curve.value) * (-1.0 if curve.higher_is_better else 1.0)
        loss = np.where(np.isfinite(loss), loss, np.inf)
        stderr = np.full(len(loss), np.nan) if curve.stderr is None else np.asarray(curve.stderr)
        if curve.num_seen is not None:
            # one example on which the model breaks down proves that it does
            seen = np.asarray(curve.num_seen) == (curve.num_examples or 0)
            seen |= (sparsity == 0.0) | np.isinf(loss)
            if (seen & (sparsity > 0.0) & (sparsity < 1.0)).any():
                sparsity, loss, stderr = sparsity[seen], loss[seen], stderr[seen]
        points = _by_rising_sparsity(sparsity, loss, stderr)
        self.sparsity, self.harm, self.stderr, self.dense = points
        self.allowed = allowed_harm(self.dense, tolerance, mode) + ROUNDING * abs(self.dense)
        self.freedom = curve.degrees_of_freedom
        is_too_few = curve.num_examples is not None and curve.num_examples < _MIN_EXAMPLES
        quantile = math.nan if is_too_few else t_quantile(0.5 + confidence / 2, self.freedom)
        self.critical = quantile  # how many standard errors the interval has

    def refusal(self) -> str:
        """Why the curve cannot be judged; empty if it can."""
        if self.sparsity[0] != 0.0:
            return "there is no point at sparsity 0, the dense model, to compare with"
        if math.isnan(self.dense):
            return "the value of the dense model is not finite"
        if self.allowed == 0.0:
            return "a relative tolerance of a dense value of 0 allows nothing; use mode='absolute'"
        if self.sparsity[-1] == 1.0 and not self.harm[-1] > self.allowed:
            return (
                f"the model does not rely on these weights yet: removing all of them costs "
                f"{self.harm[-1]:.3g}, within the tolerance of {self.allowed:.3g}"
            )
        self._margin = np.where(np.isfinite(self.harm), self.critical * self.stderr, 0.0)
        readings = (self.harm, self.harm + self._margin, self.harm - self._margin)
        # the first point beyond what is allowed, by the best curve that only rises
        self.beyond, self._early, self._late = [
            first_beyond(harm, self.stderr, self.allowed) for harm in readings
        ]
        if self.beyond == len(self.harm):
            return (
                "the tolerance is never exceeded and there is no point at sparsity 1: nothing "
                "shows that the model relies on these weights"
            )
        return ""

    def noise(self, places: Sequence[float], unit: str) -> tuple[str, int | None]:
        """Why the examples are too few to say where the crossing is, and how many it takes."""
        if math.isnan(places[-1]):
            return "", None  # there is no interval
        # the noise at the crossing and in the middle of its interval: where it grows with sparsity
        # those that cross early by chance would be told else, and the others not
        stderr = np.where(np.isfinite(self.harm), self.stderr, 0.0)
        noise = float(np.interp(places, self.sparsity, stderr).max())
        excess, reason = noise / self.allowed, ""
        if excess > 1.0:
            reason = (
                f"the tolerance of {self.allowed:.3g} is below the noise of the evaluation, a "
                f"standard error of {noise:.3g} at the crossing"
            )
        proven, doubt = self.harm[-1] - self.allowed, self.critical * stderr[-1]
        if self.sparsity[-1] == 1.0 and doubt > proven:
            excess = max(excess, float(doubt / proven))
            reason = reason or "reliance on these weights is within the noise of the evaluation"
        if not reason:
            return "", None
        needed, how_many = None, "more"
        if self.freedom is not None:
            # errors fall with the root of the number
            needed = rounded_up((self.freedom + 1) * excess**2)
            how_many = f"about {needed:,}"
        return f"cannot say: {reason}; it would take {how_many} {units(unit)}", needed

    def caveats(self, value: float, last: float, mode: str) -> list[str]:
        """What to know beside an estimate."""
        notes = []
        largest = self.harm[np.isfinite(self.harm)].max(initial=0.0)
        if mode == "relative" and abs(self.dense) < _NEAR_ZERO * largest:
            notes.append(
                f"the dense value of {abs(self.dense):.3g} is near zero beside the harm of up to "
                f"{largest:.3g}, so that a relative tolerance allows only {self.allowed:.3g}; use "
                "mode='absolute' (tolerance_mode='absolute' of a watch)"
            )
        first = self.on_chord(self.harm, int((self.harm > self.allowed).argmax()))
        if first < value:
            notes.append(
                f"the first crossing of the curve itself is at {first:.3f}: within the tolerance "
                "again above"
            )
        if last > value:
            notes.append(f"the last crossing differs: within the tolerance again at {last:.3f}")
        broken = np.flatnonzero(np.isinf(self.harm))
        if len(broken) and value == self.sparsity[broken[0] - 1]:
            notes.append(f"the value is not finite at {self.sparsity[broken[0]]:.3f}")
        if math.isnan(self.critical):
            notes.append(f"no interval from fewer than {_MIN_EXAMPLES} examples")
        return notes

    # -------------------------------------------------------------- crossings

    def on_chord(self, harm: Array, beyond: int) -> float:
        """Where the chord to a point beyond the tolerance, from the one before, meets it."""
        if not 0 < beyond < len(harm):
            return float(self.sparsity[0]) if beyond == 0 else 1.0
        left, right = float(self.sparsity[beyond - 1]), float(self.sparsity[beyond])
        # 0 where the model broke
        share = float((self.allowed - harm[beyond - 1]) / (harm[beyond] - harm[beyond - 1]))
        return left + min(max(share, 0.0), 1.0) * (right - left)

    def last_crossing(self) -> float:
        """The largest sparsity within the tolerance, on the curve itself."""
        within = int(np.flatnonzero(self.harm <= self.allowed).max(initial=-1))
        is_last = within == len(self.harm) - 1
        return float(self.sparsity[-1]) if is_last else self.on_chord(self.harm, within + 1)

    def interval(self, value: float) -> tuple[float, float]:
        """Where harm with more and with less than its error crosses; it holds the value."""
        if not np.isfinite(self._margin).all():
            return math.nan, math.nan
        # a model that broke at this point broke anywhere after the last good sparsity
        first, harm = self._late, self.harm
        broke = float(self.sparsity[first]) if first < len(harm) and np.isinf(harm[first]) else 0.0
        low = min(value, *self._readings(harm + self._margin, self._early))
        return low, max(value, broke, *self._readings(harm - self._margin, self._late))

    def _readings(self, harm: Array, beyond: int) -> tuple[float, float]:
        """Crossings of the straight line and of the monotone cubic, which share a cell."""
        sparsity, i = self.sparsity, beyond - 1
        straight = self.on_chord(harm, beyond)
        if not 0 <= i < len(harm) - 1 or np.isinf(harm[i + 1]):
            return straight, straight
        width, rise = sparsity[i + 1] - sparsity[i], harm[i + 1] - harm[i]
        start = width / rise * _slope(sparsity, harm, i)
        end = width / rise * _slope(sparsity, harm, i + 1)
        target = (self.allowed - harm[i]) / rise
        inside, outside = 0.0, 1.0
        for _ in range(_HALVINGS):
            t = (inside + outside) / 2
            # cubic Hermite form on the unit square
            height = t * (start + t * (3 - 2 * start - end + t * (start + end - 2)))
            inside, outside = (t, outside) if height <= target else (inside, t)
        return straight, float(sparsity[i] + inside * width)


def _slope(sparsity: Array, harm: Array, i: int) -> float:
    """Slope of the monotone cubic at point i: weighted harmonic mean, 0 at an extremum."""
    around = slice(max(i - 1, 0), i + 2)
    width, rise = np.diff(sparsity[around]), np.diff(harm[around])
    slopes = (rise / width)[np.isfinite(rise)]
    if len(slopes) == 1:  # an end, or the model broke next door
        return float(slopes[0])
    if slopes[0] * slopes[1] <= 0.0:
        return 0.0
    weights = width[0] + 2 * width[1], 2 * width[0] + width[1]
    return float(sum(weights) / (weights[0] / slopes[0] + weights[1] / slopes[1]))


# ------------------------------------------------------------------ the knee

#: Two lines and the knot are fitted, and one point more; and two to test that there is one.
_MIN_POINTS, _MIN_TESTED = 5, 6
#: Slopes that add less than this share of the harm over the whole range are rounding.
_NEGLIGIBLE = 1e-9
#: No law is nearer to a model than this share of its harm: less tells nothing of the form.
_MISFIT = 0.001
#: What comes after the first point with this share of the harm has levelled off.
_LEVELLED = 0.95
#: By how much the hinge's criterion has to be less: positive evidence (Raftery 1995).
_EVIDENCE = 2.0
#: Knots, exponents and rates that are tried.
_KNOTS = np.linspace(0.0, 1.0, 401)
_POWERS = np.linspace(1.0, 16.0, 61)
_RATES = np.linspace(0.25, 40.0, 80)


class Knee(NamedTuple):
    """Where harm begins to rise much faster, with an interval; all NaN where it does so nowhere."""

    place: float = math.nan
    low: float = math.nan
    high: float = math.nan
    sharpness: float = math.nan


def knee_of_curve(curve: SparsityCurve, confidence: float = 0.9) -> Knee:
    """The knee of a curve, if a hinge tells it better than a smooth convex law does.

    Of a loss it is that of log(value / dense), where an explosion is a line; of a score that of
    harm / dense. The point at sparsity 1 is left out, and what comes after harm has levelled off.
    The interval has every knot that fits as well, within the errors of the points.
    """
    x, value = np.asarray(curve.sparsity), np.asarray(curve.value)
    stderr = np.zeros(len(x)) if curve.stderr is None else np.asarray(curve.stderr)
    if not curve.dense > 0.0:
        return Knee()
    with np.errstate(invalid="ignore", divide="ignore"):
        y = 1.0 - value / curve.dense if curve.higher_is_better else np.log(value / curve.dense)
        stderr = stderr / (curve.dense if curve.higher_is_better else value)
    is_told = np.isfinite(y) & (x < 1.0)
    if not is_told.any():
        return Knee()
    x, y, stderr, _ = _by_rising_sparsity(x[is_told], y[is_told], stderr[is_told])
    num = int((y >= _LEVELLED * y.max()).argmax()) + 1
    x, y, errors = x[:num], y[:num], np.nan_to_num(stderr[:num])
    if num < _MIN_TESTED or not y[-1] > 0.0:
        return Knee()
    errors = np.hypot(errors, _MISFIT * y.max())
    place, sharpness = knee_of(x, y, errors)
    if math.isnan(place):
        return Knee()
    first, last = float(x[1]), float(x[-2])
    knots = np.append(first + _KNOTS * (last - first), place)
    hinges = _misfit(x, y, errors, np.maximum(x - knots[:, None], 0.0), x)
    smooth = min(
        _misfit(x, y, errors, x ** _POWERS[:, None]).min(),
        _misfit(x, y, errors, np.exp(x * _RATES[:, None])).min(),
        _misfit(x, y, errors, (x**2)[None], x).min(),
    )
    best = float(hinges.min())
    spread = max(best / max(num - 4, 1), 1.0)  # misfit beyond the errors counts as error
    if smooth - best < spread * (math.log(num) + _EVIDENCE):  # the hinge has one parameter more
        return Knee()
    most = best + spread * t_quantile(0.5 + confidence / 2, curve.degrees_of_freedom) ** 2
    for _ in range(2):  # and once more, finely, around those that fit as well
        within, step = knots[hinges <= most], (knots[1] - knots[0])
        low, high = max(within.min() - step, first), min(within.max() + step, last)
        knots = np.append(low + _KNOTS * (high - low), place)
        hinges = _misfit(x, y, errors, np.maximum(x - knots[:, None], 0.0), x)
    within = knots[hinges <= most]
    return Knee(place, float(within.min()), float(within.max()), sharpness)


def _misfit(x: Array, y: Array, errors: Array, bends: Array, *others: Array) -> Array:
    """Squared errors, in units of theirs, of the best fits by a level, others and a bend [B, K]."""
    base = np.stack([np.ones_like(x), *others], axis=1) / errors[:, None]
    basis = np.linalg.qr(base)[0]
    bent, left = bends / errors, y / errors
    bent, left = bent - bent @ basis @ basis.T, left - basis @ (basis.T @ left)
    lengths = np.maximum(np.square(bent).sum(axis=1), np.finfo(float).tiny)
    # a bend counts upwards alone
    found: Array = np.square(left).sum() - np.maximum(bent @ left, 0.0) ** 2 / lengths
    return found


def knee_of(sparsity: Array, harm: Array, errors: Array | None = None) -> tuple[float, float]:
    """Knot of the best two-segment fit that bends upward, and the slope after over that before."""
    # NaN with fewer than five finite points, without an upward bend, or without a rise after it.
    # Reference: Hudson 1966, J. Am. Stat. Assoc. 61:1097.
    is_finite = np.isfinite(harm)
    x, y = sparsity[is_finite], harm[is_finite]
    if len(x) < _MIN_POINTS:
        return math.nan, math.nan
    weights = np.ones_like(x) if errors is None else errors.min() / errors[is_finite]
    origin, width = float(x[0]), float(x[-1] - x[0])
    x = (x - origin) / width
    negligible = _NEGLIGIBLE * float(np.abs(y).max())
    bends = []
    for knot in _knots(x, y, weights):
        error, before, after = _hinge(x, y, weights, knot)
        if after - before > negligible:
            bends.append((error, knot, before, after))
    _, knot, before, after = min(bends, default=(0.0, math.nan, math.nan, math.nan))
    if not after > negligible:  # no upward bend, or harm does not rise after it
        return math.nan, math.nan
    return origin + width * knot, after / before if before > negligible else math.inf


def _knots(x: Array, y: Array, weights: Array) -> list[float]:
    """Where the best knot can be: at a point, or where free lines of both sides meet."""
    knots: list[float] = x[1:-1].tolist()
    for i in range(2, len(x) - 1):
        level, slope = _line(x[:i], y[:i], weights[:i])
        other_level, other_slope = _line(x[i:], y[i:], weights[i:])
        if slope != other_slope:
            meets = (level - other_level) / (other_slope - slope)
            if x[i - 1] < meets < x[i]:
                knots.append(meets)
    return knots


def _line(x: Array, y: Array, weights: Array) -> tuple[float, float]:
    design = np.stack([np.ones_like(x), x], axis=1) * weights[:, None]
    level, slope = np.linalg.lstsq(design, y * weights, rcond=None)[0]
    return float(level), float(slope)


def _hinge(x: Array, y: Array, weights: Array, knot: float) -> tuple[float, float, float]:
    """Squared error, and the slopes before and after, of the fit with this knot."""
    design = np.stack([np.ones_like(x), x - knot, np.maximum(x - knot, 0.0)], axis=1)
    fit = np.linalg.lstsq(design * weights[:, None], y * weights, rcond=None)[0]
    error = float(np.square(weights * (y - design @ fit)).sum())
    return error, float(fit[1]), float(fit[1] + fit[2])
