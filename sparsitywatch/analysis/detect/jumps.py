"""Jumps: what no model of a series in which nothing abrupt happens did forecast.

Nobody knows what a healthy series does: it drifts, bends, wanders. So several models are fitted to
the snapshots before a split, and each says how unlikely the snapshots after it are. A model is
believed as far as its own forecasts of one snapshot were right so far (prequential weights, Dawid
1984). It forgets, so that a series may change its ways.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsitywatch.analysis.detect.change import MAD_TO_SD, Candidate, Limits

__all__ = [
    "MIN_SNAPSHOTS",
    "MODELS",
    "SPLITS",
    "WINDOW",
    "Forecasts",
    "Jumps",
    "forecasts",
    "normal_score",
]

Array = NDArray[np.float64]

#: Snapshots after the split. With one there is only a forecast, no change is seen yet.
SPLITS = (1, 2, 3, 4, 5, 6)
#: Snapshots that any model reads: the longest fit and the longest split.
WINDOW = 38
#: Snapshots before a split without which a model says nothing.
_MIN_FIT = 8
#: Residuals and forecast errors are cut off at so many standard deviations.
_WINSOR, _CLIP = 3.0, 10.0


@dataclass(frozen=True)
class Model:
    """Polynomial of the snapshots' abscissa, with noise.

    Args:
        num_fitted: snapshots that it is fitted to, before the split.
        degree: of the polynomial.
        ar: correlation of the noise of neighbouring snapshots.
        walk: standard deviation of the steps of a random walk, in that of the noise.
    """

    num_fitted: int
    degree: int
    ar: float = 0.0
    walk: float = 0.0


#: The correlation of one model is that of the series, where it is known, to this grid.
_CORRELATIONS = (0.6, 0.75, 0.85, 0.92)
MODELS = (Model(12, 1), Model(32, 1), Model(32, 2), Model(32, 1, ar=0.6), Model(32, 1, walk=0.3))
_DEGREES = np.array([model.degree for model in MODELS])[:, None]
_MAX_DEGREE = int(_DEGREES.max())
_HELD = 1e9


@dataclass(frozen=True)
class Forecasts:
    """What each model says about the snapshots after each split; arrays [models, splits].

    Args:
        score: normal score of the change that explains them best, positive upward; NaN where
            a model says nothing.
        effect: size of that change at the last snapshot, in units of the series.
        width: its standard error.
        sd: standard deviation of a snapshot.
        errors: of the last snapshots, [models, splits, longest split], zero before the split.
    """

    score: Array
    effect: Array
    width: Array
    sd: Array
    errors: Array


def forecasts(x: Array, y: Array, floor: float, ar: float = _CORRELATIONS[0]) -> Forecasts:
    """Fit every model before every split and compare what came after it.

    Snapshots are about one apart in ``x``; their standard deviation is ``floor`` at least. ``ar``
    is the correlation of the model that has one.
    """
    n = len(x)
    z = (x - x[-1]) / max(x[-1] - x[0], 1e-12)
    basis = np.asarray(z[:, None] ** np.arange(_MAX_DEGREE + 1))
    before, after = _masks(n)
    count = before.sum(axis=-1)
    used = before & (count >= _MIN_FIT)[..., None]
    whitened = _whitening(n, ar) @ np.concatenate([basis, y[:, None]], axis=1)
    design = np.broadcast_to(whitened[:, None, :, :-1], (*used.shape, basis.shape[1]))
    target = whitened[:, None, :, -1]
    nu = np.maximum(count - _DEGREES - 1, 1).astype(np.float64)
    fit, gram, sd = _robust_fit(design, target, used, nu, floor)
    errors = (target - (design @ fit[..., None])[..., 0]) * after
    late = design * after[..., None]
    score, effect, width = _matched(errors, late, gram, sd, _templates(n, ar), nu)
    plain = (y - (basis @ fit[..., None])[..., 0]) * after
    return Forecasts(
        np.where(count >= _MIN_FIT, score, math.nan), effect, width, sd, plain[..., -SPLITS[-1] :]
    )


def normal_score(t: Array, nu: Array) -> Array:
    """The score of a normal variable that is as unlikely as ``t`` (Wallace 1959)."""
    size = np.sqrt(nu * np.log1p(t * t / nu)) * (8.0 * nu + 1.0) / (8.0 * nu + 3.0)
    return np.copysign(size, t)


@functools.lru_cache(maxsize=256)
def _whitening(n: int, ar: float) -> Array:
    """For each model the matrix that makes its noise independent, [models, n, n].

    Lower triangular: what it makes of a snapshot knows only the snapshots before.
    """
    lags = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    walked = np.minimum.outer(np.arange(n), np.arange(n)) + 1.0
    found = []
    for model in MODELS:
        covariance = (ar**lags if model.ar else np.eye(n)) + model.walk**2 * walked
        found.append(np.linalg.inv(np.linalg.cholesky(covariance)))
    return np.stack(found)


@functools.lru_cache(maxsize=64)
def _masks(n: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Snapshots fitted to, and those after the split; both [models, splits, n]."""
    age = np.arange(n)[::-1]
    after = np.array([[age < split for split in SPLITS]] * len(MODELS))
    limits = np.array([[split + model.num_fitted for split in SPLITS] for model in MODELS])
    return ~after & (age < limits[..., None]), after


@functools.lru_cache(maxsize=256)
def _templates(n: int, ar: float) -> Array:
    """A step and a ramp from each split on, one at the last snapshot, whitened for each model."""
    age = np.arange(n)[::-1]
    split = np.array(SPLITS)[:, None]
    step = (age < split).astype(np.float64)
    shapes = np.stack([step, step * (split - age) / split], axis=-1)  # [splits, n, 2]
    return np.asarray(np.einsum("knm,smt->ksnt", _whitening(n, ar), shapes))


def _robust_fit(
    design: Array, target: Array, used: NDArray[np.bool_], nu: Array, floor: float
) -> tuple[Array, Array, Array]:
    """Coefficients, gram matrix and standard deviation of a snapshot, twice winsorised."""
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


#: A jump is looked for once there are so many snapshots.
MIN_SNAPSHOTS = 9
#: Snapshots that tell the grid of a quantised series.
_GRID_SNAPSHOTS = 80
#: Part of the grid that is noise at least, and steps of it that a jump takes.
_GRID_NOISE, _GRID_STEPS = 0.3, 1.5
#: Noise that is allowed for where none is seen: parts of the smallest effect and of the level.
_LEAST_OF_EFFECT, _LEAST_OF_LEVEL = 1e-3, 1e-9
#: What a model was worth so many snapshots ago counts this much of what it is worth now.
_FORGETTING = 0.95
#: Past scores that show how wide a model's scores really are, and how many it takes.
_PAST, _MIN_PAST = 40, 8
#: Of a normal variable: median and 94 percent quantile of its magnitude.
_MEDIAN, _QUANTILE, _LEVEL = 0.6745, 1.88, 0.94
#: Each of the last two snapshots bears out this part of the change, and this many noises.
_BORNE_OUT, _NOISES = 0.5, 1.5
#: So does the third largest error, for this part.
_THIRD = 0.3
#: Of the smallest effect, for a surprise that is no change yet.
_HALF = 0.5
#: One forecast error speaks against a model for at most this many nats.
_LARGEST_SURPRISE = 8.0
#: Correlation of neighbouring snapshots before any is seen, and the snapshots that this is worth.
_PRIOR_LASTING, _PRIOR_SEEN = 0.5, 16
#: So much more score is asked for where noise lasts and is as large as the smallest effect, which
#: then keeps nothing out.
_FOR_LASTING = 1.2
#: Kept digits: the state is small, and a resumed run goes on from the very same numbers.
_DIGITS = 3
#: Past scores are kept in tenths: of them only the spread is needed.
_TENTHS = 10.0
#: Larger ones are as good as this one.
_LARGEST_SCORE = 99.9
_NORMAL, _TINY = NormalDist(), 1e-300


class Jumps:
    """What the models' forecasts were worth so far; one series, snapshot by snapshot.

    Attributes:
        surprise: normal score of the least expected of the latest snapshots, in magnitude, if they
            are half of the smallest effect away; also of a single one, which is no change yet.
    """

    def __init__(self) -> None:
        self._beliefs: list[list[float]] = [[0.0] * len(MODELS)]
        self._scores: list[list[list[int]]] = []
        self.surprise = 0.0

    def update(
        self, steps: Array, values: Array, limits: Limits, *, num_skipped: int
    ) -> list[Candidate]:
        """One more snapshot, the last one: the changes that it shows, the most certain first.

        ``num_skipped`` at the start are left out; ``MIN_SNAPSHOTS`` or more come after them.
        """
        begin = max(num_skipped, len(values) - _GRID_SNAPSHOTS)
        grid = _grid(values[begin:])
        first = max(begin, len(values) - WINDOW)
        x, y = steps[first:], values[first:]
        x = x / float(np.median(np.diff(x)))
        least = _LEAST_OF_EFFECT * limits.min_effect, _LEAST_OF_LEVEL * float(np.abs(y).max())
        rho = _lasting(values[begin:])
        known = min(_CORRELATIONS, key=lambda ar: abs(ar - rho))
        seen = forecasts(x, y, max(_GRID_NOISE * grid, *least), known)
        min_effect = max(limits.min_effect, _GRID_STEPS * grid)
        combined = self._combined(self._widened(seen.score))
        is_large = np.abs(seen.effect).min(axis=0) >= _HALF * min_effect
        self.surprise = float(np.abs(np.where(is_large, combined, 0.0)).max())
        self._remember(seen)
        found = []
        for index in np.argsort(-np.abs(combined)):
            score, split = float(combined[index]), SPLITS[index]
            if split == 1 or not abs(score) >= limits.jump_score:
                continue
            sd = float(self._weights(split) @ seen.sd[:, index])
            needed = limits.jump_score + _FOR_LASTING * rho * min(sd / min_effect, 1.0)
            if abs(score) < needed:
                continue
            if self._is_borne_out(seen, int(index), score, min_effect):
                weights = self._weights(split)
                size, noise = (float(weights @ v[:, index]) for v in (seen.effect, seen.sd))
                direction = "up" if score > 0.0 else "down"
                found.append(Candidate(direction, split, first, abs(size), abs(score), noise))
        return found

    def state_dict(self) -> dict[str, Any]:
        """Plain data that ``load_state_dict`` goes on from."""
        return {
            "beliefs": [list(row) for row in self._beliefs],
            "scores": [[list(row) for row in snapshot] for snapshot in self._scores],
            "surprise": self.surprise,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""
        self._beliefs = [[float(b) for b in row] for row in state["beliefs"]]
        self._scores = [[[int(z) for z in row] for row in snapshot] for snapshot in state["scores"]]
        self.surprise = float(state["surprise"])

    def _widened(self, score: Array) -> Array:
        """Scores divided by how much wider than normal they were before the split."""
        past = np.array(self._scores) / _TENTHS
        width = np.ones_like(score)
        for i, split in enumerate(SPLITS):
            seen = np.abs(past[: len(past) - split + 1][-_PAST:, :, i]) if len(past) else past
            if len(seen) >= _MIN_PAST:
                ordered = np.sort(seen, axis=0)
                middle, high = (_quantile(ordered, level) for level in (0.5, _LEVEL))
                wide = np.maximum(middle / _MEDIAN, high / _QUANTILE)
                width[:, i] = np.sqrt(np.maximum(wide, 1.0))
        return score / width

    def _weights(self, split: int) -> Array:
        """How much each model is believed, as of the snapshot before the split."""
        beliefs = np.array(self._beliefs[max(0, len(self._beliefs) - split)])
        weights = np.exp(beliefs - beliefs.max())
        return np.asarray(weights / weights.sum())

    def _combined(self, scores: Array) -> Array:
        """The score of each split that is as unlikely as the models say together."""
        found = np.zeros(len(SPLITS))
        for i, split in enumerate(SPLITS):
            if np.isnan(scores[:, i]).any():
                continue
            weights = self._weights(split)
            sides = [
                sum(w * _tail(s * z) for w, z in zip(weights, scores[:, i], strict=True))
                for s in (1.0, -1.0)
            ]
            up, down = (-_NORMAL.inv_cdf(min(max(p, _TINY), 0.5)) for p in sides)
            found[i] = up if up >= down else -down
        return found

    def _is_borne_out(self, seen: Forecasts, index: int, sign: float, min_effect: float) -> bool:
        weights = self._weights(SPLITS[index])
        effect = math.copysign(1.0, sign) * float(weights @ seen.effect[:, index])
        errors = math.copysign(1.0, sign) * (weights @ seen.errors[:, index])
        errors = errors[len(errors) - SPLITS[index] :]
        sd = float(weights @ seen.sd[:, index])
        reference = min(effect, float(errors.mean()))
        third = np.sort(errors)[-3] if len(errors) > 2 else math.inf
        return bool(
            effect >= min_effect
            and errors[-2:].min() >= max(_BORNE_OUT * reference, _NOISES * sd)
            and third >= _THIRD * effect
        )

    def _remember(self, seen: Forecasts) -> None:
        score, width = seen.score[:, 0], seen.width[:, 0]
        if np.isnan(score).any():
            return
        surprise = np.minimum(0.5 * score**2, _LARGEST_SURPRISE) + np.log(width)
        beliefs = _FORGETTING * np.array(self._beliefs[-1]) - surprise
        beliefs -= beliefs.max()
        self._beliefs = [*self._beliefs, beliefs.round(_DIGITS).tolist()][-SPLITS[-1] - 1 :]
        if np.isfinite(seen.score).all():
            kept = np.clip(seen.score, -_LARGEST_SCORE, _LARGEST_SCORE)
            scores = (_TENTHS * kept).round().astype(int).tolist()
            self._scores = [*self._scores, scores][-_PAST - SPLITS[-1] :]


def _lasting(values: Array) -> float:
    """Correlation of neighbouring snapshots' noise, from 0 to a little below 1.

    Of noise that forgets by a factor rho at each snapshot, differences over two snapshots have a
    variance 1 + rho times that of differences over one; a slow trend adds to neither. The latest
    snapshots, which may be a change, are left out.
    """
    past = values[: -SPLITS[-1]]
    if len(past) < _MIN_FIT:
        return _PRIOR_LASTING
    one, two = (float(np.minimum(d := np.square(past[k:] - past[:-k]),
                                 _CLIP * np.median(d)).mean()) for k in (1, 2))  # fmt: skip
    seen = min(max(two / one - 1.0, 0.0), 1.0) if one > 0.0 else 0.0
    weight = _PRIOR_SEEN / (_PRIOR_SEEN + len(past))
    return weight * _PRIOR_LASTING + (1.0 - weight) * seen


def _grid(values: Array) -> float:
    """Distance of neighbouring values of a quantised series; 0 if it is not one."""
    distinct = np.unique(values)
    if not 1 < len(distinct) <= len(values) / 2:
        return 0.0
    return float(np.diff(distinct).min())


def _quantile(ordered: Array, level: float) -> Array:
    """Of sorted values along the first axis, linear between neighbours."""
    place = level * (len(ordered) - 1)
    low = int(place)
    share = place - low
    return np.asarray(
        (1.0 - share) * ordered[low] + share * ordered[min(low + 1, len(ordered) - 1)]
    )


def _tail(z: float) -> float:
    return 0.5 * math.erfc(z / math.sqrt(2.0))
