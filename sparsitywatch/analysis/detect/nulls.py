"""Models of a series in which nothing abrupt happens, and what they forecast.

Nobody knows what a healthy series does: it drifts, bends, wanders. So several models are fitted
to the looks before a split, and each says how unlikely the looks after it are. How much a model
is believed is what its own one-look forecasts were worth so far (prequential weights, Dawid
1984), with forgetting, so that a series may change its ways.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sparsitywatch.analysis.robust import MAD_TO_SD

__all__ = ["MODELS", "SPLITS", "WINDOW", "Forecasts", "forecasts", "normal_score"]

Array = NDArray[np.float64]

#: Looks after the split. With one look there is only a forecast, no change is seen yet.
SPLITS = (1, 2, 3, 4, 5, 6)
#: Looks that any model reads: the longest fit and the longest split.
WINDOW = 38
#: Looks before a split without which a model says nothing.
_MIN_FIT = 8
#: Residuals and forecast errors are cut off at so many standard deviations.
_WINSOR, _CLIP = 3.0, 10.0


@dataclass(frozen=True)
class Model:
    """Polynomial of the looks' abscissa, with noise.

    Args:
        looks: that it is fitted to, before the split.
        degree: of the polynomial.
        ar: correlation of the noise of neighbouring looks.
        walk: standard deviation of the steps of a random walk, in that of the noise.
    """

    looks: int
    degree: int
    ar: float = 0.0
    walk: float = 0.0


MODELS = (Model(12, 1), Model(32, 1), Model(32, 2), Model(32, 1, ar=0.6), Model(32, 1, walk=0.3))
_DEGREES = np.array([model.degree for model in MODELS])[:, None]
_MAX_DEGREE = int(_DEGREES.max())
_HELD = 1e9


@dataclass(frozen=True)
class Forecasts:
    """What each model says about the looks after each split; arrays [models, splits].

    Args:
        score: normal score of the change that explains them best, positive upward; NaN where
            a model says nothing.
        effect: size of that change at the last look, in units of the series.
        width: its standard error.
        sd: standard deviation of a look.
        errors: of the last looks, [models, splits, longest split], zero before the split.
    """

    score: Array
    effect: Array
    width: Array
    sd: Array
    errors: Array


def forecasts(x: Array, y: Array, floor: float) -> Forecasts:
    """Fit every model before every split and compare what came after it.

    Args:
        x: abscissa of the latest looks, rising; the spacing of looks is about one.
        y: the series there, as long.
        floor: smallest standard deviation of a look.
    """
    n = len(x)
    basis = _basis(x)
    before, after = _masks(n)
    count = before.sum(axis=-1)
    used = before & (count >= _MIN_FIT)[..., None]
    whitened = _whitening(n) @ np.concatenate([basis, y[:, None]], axis=1)
    design = np.broadcast_to(whitened[:, None, :, :-1], (*used.shape, basis.shape[1]))
    target = whitened[:, None, :, -1]
    nu = np.maximum(count - _DEGREES - 1, 1).astype(np.float64)
    fit, gram, sd = _robust_fit(design, target, used, nu, floor)
    errors = (target - (design @ fit[..., None])[..., 0]) * after
    late = design * after[..., None]
    score, effect, width = _matched(errors, late, gram, sd, _whitened_templates(n), nu)
    plain = (y - (basis @ fit[..., None])[..., 0]) * after
    return Forecasts(
        np.where(count >= _MIN_FIT, score, math.nan), effect, width, sd, plain[..., -SPLITS[-1] :]
    )


def normal_score(t: Array, nu: Array) -> Array:
    """The score of a normal variable that is as unlikely as ``t`` (Wallace 1959)."""
    size = np.sqrt(nu * np.log1p(t * t / nu)) * (8.0 * nu + 1.0) / (8.0 * nu + 3.0)
    return np.copysign(size, t)


def _basis(x: Array) -> Array:
    z = (x - x[-1]) / max(x[-1] - x[0], 1e-12)
    return np.asarray(z[:, None] ** np.arange(_MAX_DEGREE + 1))


@functools.lru_cache(maxsize=64)
def _whitening(n: int) -> Array:
    """For each model the matrix that makes its noise independent, [models, n, n].

    Lower triangular: what it makes of a look knows only the looks before.
    """
    lags = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    walked = np.minimum.outer(np.arange(n), np.arange(n)) + 1.0
    found = []
    for model in MODELS:
        covariance = (model.ar**lags if model.ar else np.eye(n)) + model.walk**2 * walked
        found.append(np.linalg.inv(np.linalg.cholesky(covariance)))
    return np.stack(found)


@functools.lru_cache(maxsize=64)
def _masks(n: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Looks fitted to, and looks after the split; both [models, splits, n]."""
    age = np.arange(n)[::-1]
    after = np.array([[age < split for split in SPLITS]] * len(MODELS))
    limits = np.array([[split + model.looks for split in SPLITS] for model in MODELS])
    return ~after & (age < limits[..., None]), after


@functools.lru_cache(maxsize=64)
def _templates(n: int) -> Array:
    """A step and a ramp from each split on, [splits, n, 2], one at the last look."""
    age = np.arange(n)[::-1]
    split = np.array(SPLITS)[:, None]
    step = (age < split).astype(np.float64)
    return np.stack([step, step * (split - age) / split], axis=-1)


@functools.lru_cache(maxsize=64)
def _whitened_templates(n: int) -> Array:
    return np.asarray(np.einsum("knm,smt->ksnt", _whitening(n), _templates(n)))


def _robust_fit(
    design: Array, target: Array, used: NDArray[np.bool_], nu: Array, floor: float
) -> tuple[Array, Array, Array]:
    """Coefficients, gram matrix and standard deviation of a look, twice winsorised."""
    weighted = design * used[..., None]
    # coefficients that a model does not have are held at zero
    unused = np.arange(design.shape[-1]) > _DEGREES[..., None]
    gram = np.swapaxes(weighted, -1, -2) @ weighted + _HELD * (
        unused[..., None] * np.eye(design.shape[-1])
    )
    gram[~used.any(axis=-1)] = np.eye(design.shape[-1])
    solver = np.linalg.solve(gram, np.swapaxes(weighted, -1, -2))  # [models, splits, p, n]
    values = np.where(used, target, 0.0)
    for _ in range(3):
        fit = np.asarray((solver @ values[..., None])[..., 0], np.float64)
        predicted = (design @ fit[..., None])[..., 0]
        residuals = target - predicted
        mad = MAD_TO_SD * _median_of(np.abs(residuals), used)
        limit = _WINSOR * np.maximum(mad, floor)[..., None]
        cut = np.clip(residuals, -limit, limit) * used
        values = (predicted + cut) * used
    sd = np.sqrt((cut**2).sum(axis=-1) / nu)
    return fit, np.asarray(gram), np.asarray(np.maximum(np.maximum(sd, mad), floor))


def _median_of(values: Array, used: NDArray[np.bool_]) -> Array:
    """Along the last axis, of those that are used; 0 where none is."""
    ordered = np.sort(np.where(used, values, math.inf), axis=-1)
    count = np.maximum(used.sum(axis=-1), 1)
    low = np.take_along_axis(ordered, (count - 1)[..., None] // 2, axis=-1)
    high = np.take_along_axis(ordered, count[..., None] // 2 % ordered.shape[-1], axis=-1)
    middle = np.asarray(0.5 * (low + high))[..., 0]
    return np.where(used.any(axis=-1), middle, 0.0)


def _matched(
    errors: Array, late: Array, gram: Array, sd: Array, shape: Array, nu: Array
) -> tuple[Array, Array, Array]:
    """Score, effect and standard error of the better of the two templates.

    The errors after a split have the covariance sd^2 (1 + D inverse(gram) D'), D being the
    design there; its inverse follows from the whole gram matrix (Woodbury).
    """
    late_t = np.swapaxes(late, -1, -2)
    fold = np.linalg.solve(gram + late_t @ late, late_t @ shape)
    solved = shape - late @ fold
    power = np.einsum("ksnt,ksnt->kst", solved, shape)
    limit = _CLIP * sd[..., None]
    both = np.stack([errors, np.clip(errors, -limit, limit)], axis=-1)
    whole, cut = np.moveaxis(np.swapaxes(solved, -1, -2) @ both / power[..., None], -1, 0)
    width = sd[..., None] / np.sqrt(power)
    score = normal_score(cut / width, nu[..., None])
    best = np.abs(score).argmax(axis=-1)[..., None]
    pick = [np.take_along_axis(v, best, -1)[..., 0] for v in (score, whole, width)]
    return pick[0], pick[1], pick[2]
