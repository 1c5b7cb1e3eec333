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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsitywatch.analysis.detect.change import (
    BORNE_OUT,
    MAD_TO_SD,
    SUSPICION,
    TREND,
    Candidate,
    Limits,
    median_of,
)

__all__ = [
    "MIN_SNAPSHOTS",
    "MODELS",
    "SPLITS",
    "WINDOW",
    "Forecasts",
    "Jumps",
    "forecasts",
    "normal_score",
    "season_of",
]

Array = NDArray[np.float64]

#: Snapshots after a split at most: a change is seen while it is so young.
_MOST_AFTER = 6
#: Those of each split. With one there is only a forecast, no change is seen yet.
SPLITS = tuple(range(1, _MOST_AFTER + 1))
#: Residuals are cut off at so many standard deviations.
_WINSOR = 3.0


@dataclass(frozen=True)
class Model:
    """Polynomial of the snapshots' abscissa, with noise.

    Args:
        num_fitted: snapshots that it is fitted to, before the split.
        degree: of the polynomial.
        lasts: whether the noise of neighbouring snapshots is correlated.
        walk: standard deviation of the steps of a random walk, in that of the noise.
        has_season: whether a wave of the series' own period is added to the polynomial.
    """

    num_fitted: int
    degree: int
    lasts: bool = False
    walk: float = 0.0
    has_season: bool = False


#: Correlation of the noise of neighbouring snapshots, where it lasts.
_CORRELATION = 0.75
#: Grid: waves that are tried as the season, in cycles a snapshot: periods of 4 to 20 snapshots.
_FREQUENCIES: tuple[float, ...] = tuple(np.linspace(1 / 20, 1 / 4, 17).tolist())
#: Snapshots that a model follows what is new with, and those that show a trend, a bend, a season.
_SHORT, _LONG = 12, 32
#: Standard deviation of the steps of the random walk, in that of the noise.
_WALK = 0.3
#: Definition: lines and a parabola.
MODELS = (
    Model(_SHORT, 1),
    Model(_LONG, 1),
    Model(_LONG, 2),
    Model(_LONG, 1, lasts=True),
    Model(_LONG, 1, walk=_WALK),
    Model(_LONG, 1, has_season=True),
)
#: Snapshots that any model reads: the longest fit and the longest split.
WINDOW = _LONG + SPLITS[-1]
_MAX_DEGREE = max(model.degree for model in MODELS)
#: Of a constant, its powers, a cosine and a sine: those that a model has, [models, p].
_HAS = np.array(
    [
        [power <= model.degree for power in range(_MAX_DEGREE + 1)] + [model.has_season] * 2
        for model in MODELS
    ]
)
#: Guard: a coefficient that is held at zero has so many times the weight of a snapshot.
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


@dataclass(frozen=True)
class _Grid:
    """All that the abscissa alone decides, for each model and split.

    Snapshots are evenly spaced in most runs, so that it is the same from snapshot to snapshot.

    Args:
        basis: powers of the abscissa, [n, p].
        whitening: makes a model's noise independent, [models, n, n].
        design: the basis, whitened, [models, p, n].
        used, after: 1 for the snapshots that are fitted to, and for those after the split,
            [models, splits, n].
        says: whether a model says anything, [models, splits].
        middle: places of the two middle ones of the fitted, flat among all, [2, models, splits].
        nu: degrees of freedom.
        solver: makes coefficients of whitened values, [models, splits, p, n].
        matched, power: step and ramp over the covariance of the errors after the split, and
            what that makes of themselves, [models, splits, 2, n] and [models, splits, 2].
    """

    basis: Array
    whitening: Array
    design: Array
    used: Array
    after: Array
    says: NDArray[np.bool_]
    middle: NDArray[np.int64]
    nu: Array
    solver: Array
    matched: Array
    power: Array


def forecasts(x: Array, y: Array, floor: float, frequency: float = _FREQUENCIES[0]) -> Forecasts:
    """Fit every model before every split and compare what came after it.

    Snapshots are about one apart in ``x``; their standard deviation is ``floor`` at least.
    ``frequency`` is that of the season, in cycles a snapshot.
    """
    z = (x - x[-1]) / max(x[-1] - x[0], 1e-12)
    grid = _grid_of(z.tobytes(), frequency * (x[-1] - x[0]))
    target = (grid.whitening @ y)[:, None, :]
    fit, sd = _robust_fit(grid, target, floor)
    errors = (target - fit @ grid.design) * grid.after
    score, effect, width = _matched(grid, errors, sd)
    plain = (y - fit @ grid.basis.T) * grid.after
    return Forecasts(
        np.where(grid.says, score, math.nan), effect, width, sd, plain[..., -SPLITS[-1] :]
    )


def normal_score(t: Array, nu: Array) -> Array:
    """The score of a normal variable that is as unlikely as ``t`` (Wallace 1959)."""
    size = np.sqrt(nu * np.log1p(t * t / nu)) * (8.0 * nu + 1.0) / (8.0 * nu + 3.0)
    return np.copysign(size, t)


@functools.lru_cache(maxsize=128)
def _grid_of(abscissa: bytes, cycles: float) -> _Grid:
    z = np.frombuffer(abscissa)
    n, powers, phase = len(z), np.arange(_MAX_DEGREE + 1), 2.0 * math.pi * cycles * z
    basis = np.column_stack([z[:, None] ** powers, np.cos(phase), np.sin(phase)])
    whitening = _whitening(n)
    design = whitening @ basis
    before, after = _masks(n)
    count = before.sum(axis=-1)
    used = before & (count >= TREND)[..., None]
    weighted = np.swapaxes(design[:, None] * used[..., None], -1, -2)
    # coefficients that a model does not have are held at zero
    held = _HELD * (~_HAS[..., None] * np.eye(basis.shape[1]))
    gram = weighted @ np.swapaxes(weighted, -1, -2) + held[:, None]
    gram[~used.any(axis=-1)] = np.eye(basis.shape[1])
    # The errors after a split have the covariance sd^2 (1 + D inverse(gram) D'), D being the
    # design there; its inverse follows from the whole gram matrix (Woodbury).
    late = design[:, None] * after[..., None]
    late_t, shape = np.swapaxes(late, -1, -2), np.einsum("knm,smt->ksnt", whitening, _shapes(n))
    matched = shape - late @ np.linalg.solve(gram + late_t @ late, late_t @ shape)
    seen = np.maximum(used.sum(axis=-1), 1)
    rows = n * np.arange(seen.size).reshape(seen.shape)
    return _Grid(
        basis=basis,
        whitening=whitening,
        design=np.ascontiguousarray(np.swapaxes(design, -1, -2)),
        used=used.astype(np.float64),
        after=after.astype(np.float64),
        says=count >= TREND,
        middle=np.stack([rows + (seen - 1) // 2, rows + seen // 2 % n]),
        nu=np.maximum(count - _HAS.sum(axis=1)[:, None], 1).astype(np.float64),
        solver=np.linalg.solve(gram, weighted),
        matched=np.ascontiguousarray(np.swapaxes(matched, -1, -2)),
        power=np.einsum("ksnt,ksnt->kst", matched, shape),
    )


def season_of(x: Array, y: Array) -> float:
    """Of the waves that are tried the one that explains the snapshots before any split best."""
    past = x[: -SPLITS[-1]]
    if len(past) < TREND:
        return _FREQUENCIES[0]
    z = (past - past[-1]) / max(past[-1] - past[0], 1e-12)
    explained = _waves(z.tobytes(), past[-1] - past[0]) @ y[: len(past)]
    return _FREQUENCIES[int(np.square(explained).sum(axis=1).argmax())]


@functools.lru_cache(maxsize=128)
def _waves(abscissa: bytes, length: float) -> Array:
    """For each wave an orthonormal basis of a line and the wave, [waves, 4, n]."""
    z = np.frombuffer(abscissa)
    found = []
    for frequency in _FREQUENCIES:
        phase = 2.0 * math.pi * frequency * length * z
        basis = np.column_stack([np.ones_like(z), z, np.cos(phase), np.sin(phase)])
        found.append(np.linalg.qr(basis)[0].T)
    return np.stack(found)


@functools.lru_cache(maxsize=128)
def _whitening(n: int) -> Array:
    """For each model the matrix that makes its noise independent, [models, n, n].

    Lower triangular: what it makes of a snapshot knows only the snapshots before.
    """
    lags = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    walked = np.minimum.outer(np.arange(n), np.arange(n)) + 1.0
    found = []
    for model in MODELS:
        covariance = (_CORRELATION**lags if model.lasts else np.eye(n)) + model.walk**2 * walked
        found.append(np.linalg.inv(np.linalg.cholesky(covariance)))
    return np.stack(found)


def _masks(n: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Snapshots fitted to, and those after the split; both [models, splits, n]."""
    age = np.arange(n)[::-1]
    after = np.array([[age < split for split in SPLITS]] * len(MODELS))
    limits = np.array([[split + model.num_fitted for split in SPLITS] for model in MODELS])
    return ~after & (age < limits[..., None]), after


def _shapes(n: int) -> Array:
    """A step and a ramp from each split on, one at the last snapshot, [splits, n, 2]."""
    age = np.arange(n)[::-1]
    split = np.array(SPLITS)[:, None]
    step = (age < split).astype(np.float64)
    return np.stack([step, step * (split - age) / split], axis=-1)


def _robust_fit(grid: _Grid, target: Array, floor: float) -> tuple[Array, Array]:
    """Coefficients and standard deviation of a snapshot, twice winsorised."""
    values, unused = target * grid.used, grid.used == 0.0
    for _ in range(3):
        fit = (grid.solver @ values[..., None])[..., 0]
        predicted = fit @ grid.design
        residuals = target - predicted
        sizes = np.abs(residuals)
        sizes[unused] = math.inf
        sizes.sort(axis=-1)
        low, high = sizes.ravel()[grid.middle]
        mad = np.where(grid.says, (0.5 * MAD_TO_SD) * (low + high), 0.0)
        limit = (_WINSOR * np.maximum(mad, floor))[..., None]
        cut = np.minimum(np.maximum(residuals, -limit), limit) * grid.used
        values = predicted * grid.used + cut
    sd = np.sqrt((cut**2).sum(axis=-1) / grid.nu)
    return fit, np.maximum(np.maximum(sd, mad), floor)


def _matched(grid: _Grid, errors: Array, sd: Array) -> tuple[Array, Array, Array]:
    """Score, effect and standard error of the better of the two templates."""
    effect = (grid.matched @ errors[..., None])[..., 0] / grid.power
    width = sd[..., None] / np.sqrt(grid.power)
    score = normal_score(effect / width, grid.nu[..., None])
    is_ramp = np.abs(score[..., 1]) > np.abs(score[..., 0])
    score, effect, width = (np.where(is_ramp, v[..., 1], v[..., 0]) for v in (score, effect, width))
    return score, effect, width


#: A jump is looked for once there are so many snapshots.
MIN_SNAPSHOTS = TREND + 1
#: Part of the grid that is noise at least, and steps of it that a jump takes.
_GRID_NOISE, _GRID_STEPS = 0.3, 1.5
#: Guard: noise that is allowed for where none is seen, in smallest effects and in levels.
_LEAST_OF_EFFECT, _LEAST_OF_LEVEL = 1e-3, 1e-9
#: What a model was worth a snapshot ago counts this much of what it is worth now.
_FORGETTING = 0.95
#: One forecast error speaks against a model for at most this many nats.
_LARGEST_SURPRISE = 8.0
#: Bound: kept digits: the state is small, and a resumed run goes on from the very same numbers.
_DIGITS = 3


class Jumps:
    """What the models' forecasts were worth so far; one series, snapshot by snapshot.

    Attributes:
        surprise: normal score of the least expected of the latest snapshots, in magnitude, if they
            are half of the smallest effect away; also of a single one, which is no change yet.
    """

    def __init__(self) -> None:
        # of each model as of each of the last snapshots, [n, models]: how far it is believed, and
        # the mean square of its scores
        self._beliefs = np.zeros((1, len(MODELS)))
        self._squares = np.ones((1, len(MODELS)))
        self.surprise = 0.0

    def update(
        self, steps: Array, values: Array, limits: Limits, *, num_skipped: int
    ) -> list[Candidate]:
        """One more snapshot, the last one: the changes that it shows, the most certain first.

        ``num_skipped`` at the start are left out; ``MIN_SNAPSHOTS`` or more come after them.
        """
        grid = _grid(values[num_skipped:])
        first = max(num_skipped, len(values) - WINDOW)
        x, y = steps[first:], values[first:]
        x = x / median_of(np.diff(x))
        least = _LEAST_OF_EFFECT * limits.min_effect, _LEAST_OF_LEVEL * float(np.abs(y).max())
        seen = forecasts(x, y, max(_GRID_NOISE * grid, *least), season_of(x, y))
        min_effect = max(limits.min_effect, _GRID_STEPS * grid)
        weights = self._weights()
        # logarithmic pooling of the models: one that is hardly believed has hardly a say. The mean
        # of what they hold possible is that of the least able one, however little it is believed
        # scores that were wider than normal count for less, by a root of how much wider: what is
        # wide in a few dozen of them is in part chance
        wide = np.sqrt(np.sqrt(np.maximum(self._as_of_splits(self._squares), 1.0)))
        combined = np.nan_to_num((weights * seen.score.T / wide).sum(axis=1))
        is_large = np.abs(seen.effect).min(axis=0) >= SUSPICION * min_effect
        self.surprise = float(np.abs(np.where(is_large, combined, 0.0)).max())
        self._remember(seen)
        found = []
        for index in np.argsort(-np.abs(combined)):
            score, split = float(combined[index]), SPLITS[index]
            if split == 1 or not abs(score) >= limits.jump_score:
                continue
            size, sd = (float(weights[index] @ v[:, index]) for v in (seen.effect, seen.sd))
            sign = math.copysign(1.0, score)
            errors = sign * (weights[index] @ seen.errors[:, index])[-split:]
            if _is_borne_out(errors, sign * size, min_effect):
                direction = "up" if score > 0.0 else "down"
                found.append(Candidate(direction, split, first, abs(size), abs(score), sd))
        return found

    def state_dict(self) -> dict[str, Any]:
        """Plain data that ``load_state_dict`` goes on from."""
        return {
            "beliefs": self._beliefs.tolist(),
            "squares": self._squares.tolist(),
            "surprise": self.surprise,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""
        self._beliefs = _of_each_model(state["beliefs"])
        self._squares = _of_each_model(state.get("squares", np.ones_like(self._beliefs)))
        self.surprise = float(state["surprise"])

    def _weights(self) -> Array:
        """How much each model is believed as of the snapshot before each split."""
        beliefs = self._as_of_splits(self._beliefs)
        weights = np.exp(beliefs - beliefs.max(axis=1, keepdims=True))
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))

    def _as_of_splits(self, kept: Array) -> Array:
        """What was kept, as of the snapshot before each split, [splits, models]."""
        return np.asarray(kept[np.maximum(len(kept) - np.array(SPLITS), 0)])

    def _remember(self, seen: Forecasts) -> None:
        score, width = seen.score[:, 0], seen.width[:, 0]
        if np.isnan(score).any():
            return
        surprise = np.minimum(0.5 * seen.score**2, _LARGEST_SURPRISE)
        beliefs = _FORGETTING * self._beliefs[-1] - surprise[:, 0] - np.log(width)
        squares = 2.0 * np.nanmean(surprise, axis=1)
        squares = _FORGETTING * self._squares[-1] + (1.0 - _FORGETTING) * squares
        self._beliefs = _added(self._beliefs, beliefs - beliefs.max())
        self._squares = _added(self._squares, squares)


def _added(kept: Array, last: Array) -> Array:
    """With one more row, as many as the splits need."""
    return np.concatenate([kept, last.round(_DIGITS)[None]])[-SPLITS[-1] - 1 :]


def _of_each_model(kept: Any) -> Array:
    """What was kept of each model, [n, models]; an older state lacks the last one."""
    found = np.array(kept, np.float64)
    last = np.repeat(found[:, -1:], len(MODELS) - found.shape[1], axis=1)
    return np.concatenate([found, last], axis=1)


def _is_borne_out(errors: Array, size: float, min_effect: float) -> bool:
    """Whether the errors after the split are of a change of ``size``, and not of one snapshot."""
    least = BORNE_OUT * min(size, float(errors.mean()))
    return size >= min_effect and float(errors[-2:].min()) >= max(least, 0.0)


def _grid(values: Array) -> float:
    """Distance of neighbouring values of a quantised series; 0 if it is not one."""
    distinct = np.unique(values)
    if not 1 < len(distinct) <= len(values) / 2:
        return 0.0
    return float(np.diff(distinct).min())
