"""Jumps: what no model of a series in which nothing abrupt happens did forecast.

Nobody knows what a healthy series does: it drifts, bends, wanders. So several models are fitted to
the snapshots before a split, and each says how unlikely the snapshots after it are. A model is
believed as far as its own forecasts of one snapshot were right so far (prequential weights, Dawid
1984). It forgets, so that a series may change its ways.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from sparsitywatch.analysis.detect.detector import (
    HALF,
    MAD_TO_SD,
    TREND,
    Array,
    Candidate,
    Limits,
    median_of,
    normal_score,
)

#: Grid: snapshots after each split: a change is seen while it is young. With one there is only a
#: forecast, no change is seen yet.
SPLITS = tuple(range(1, 7))
_LATEST = SPLITS[-1]  # snapshots after the longest of them
#: Residuals are cut off at this many standard deviations.
_WINSOR = 3.0


@dataclass(frozen=True)
class Model:
    """A line or a parabola in the snapshots' abscissa, with noise."""

    num_fitted: int  # snapshots that it is fitted to, before the split
    is_bent: bool = False  # whether it is a parabola
    lasts: bool = False  # whether the noise of neighbouring snapshots is correlated
    walk: float = 0.0  # standard deviation of the steps of a random walk, in that of the noise
    has_season: bool = False  # whether a wave of the series' own period is added


#: Grid: the correlation of noise that lasts is that of the series, to these.
_CORRELATIONS = (0.6, 0.75, 0.85, 0.92)
#: Grid: waves that are tried as the season, in cycles a snapshot: periods of 4 to 20 snapshots.
_FREQUENCIES: tuple[float, ...] = tuple(np.linspace(1 / 20, 1 / 4, 17).tolist())
#: Snapshots that a model follows what is new with, and those that show a trend, a bend, a season.
_SHORT, _LONG = 12, 32
#: Standard deviation of the steps of the random walk, in that of the noise.
_WALK = 0.3
MODELS = (
    Model(_SHORT),
    Model(_LONG),
    Model(_LONG, is_bent=True),
    Model(_LONG, lasts=True),
    Model(_LONG, walk=_WALK),
    Model(_LONG, has_season=True),
)
#: Snapshots that any model reads: the longest fit and the longest split.
WINDOW = _LONG + max(SPLITS)
#: Of a constant, its powers, a cosine and a sine: those that a model has, [models, p].
_HAS = np.array(
    [[True, True, model.is_bent, model.has_season, model.has_season] for model in MODELS]
)
#: Guard: weight, in snapshots, with which a coefficient is held at zero.
_HELD = 1e9


class Forecasts(NamedTuple):
    """What each model says about the snapshots after each split; arrays [models, splits].

    If no model can see a change of the smallest size that counts, only after the shortest one.
    """

    score: Array  # normal score of the best change, positive upward; NaN where a model is silent
    effect: Array  # size of that change at the last snapshot, in units of the series
    width: Array  # its standard error
    sd: Array  # standard deviation of a snapshot
    errors: Array  # of the last snapshots, [models, splits, longest split]; zero before the split


def forecasts(
    x: Array,
    y: Array,
    floor: float,
    ar: float = _CORRELATIONS[0],
    frequency: float = _FREQUENCIES[0],
    least: float = 0.0,
) -> Forecasts:
    """Fit every model before every split and compare what came after it, if it may be ``least``."""
    # snapshots are about one apart in x; frequency is in cycles a snapshot, ar is of lasting noise
    z = (x - x[-1]) / max(x[-1] - x[0], 1e-12)
    grid = _Grid(z.tobytes(), ar, frequency * (x[-1] - x[0]))
    num = 1 if grid.is_less(y, floor, least) else len(SPLITS)
    frame = _Frame(len(x), num)
    target = (grid.whitening @ y)[:, None, :]
    fit, sd = _robust_fit(grid, frame, target, floor)
    errors = (target - fit @ grid.design)[..., -_LATEST:]
    score, effect, width = _matched(grid, frame, errors, sd)
    plain = (y[-_LATEST:] - fit @ grid.basis[-_LATEST:].T) * frame.after
    return Forecasts(np.where(frame.says, score, math.nan), effect, width, sd, plain)


@functools.lru_cache(maxsize=16)
class _Frame:
    """All that the number of snapshots alone decides, for each of m models and s splits of n."""

    def __init__(self, n: int, num_splits: int = len(SPLITS)) -> None:
        age, splits = np.arange(n)[::-1], np.array(SPLITS[:num_splits])[:, None]
        limits = splits + np.array([model.num_fitted for model in MODELS])[:, None, None]
        before = (age >= splits) & (age < limits)
        count = before.sum(axis=-1)
        self.says = count >= TREND  # [m, s]: whether a model says anything
        is_used = before & self.says[..., None]
        self.used = is_used * 1.0  # [m, s, n]: 1 for the snapshots that are fitted to
        self.beyond = np.where(is_used, 0.0, math.inf)  # ... 0 for those, else infinite
        self.after = (age < splits)[:, -_LATEST:] * 1.0  # [s, l]: 1 for those after the split
        self.nu = np.maximum(count - _HAS.sum(axis=1)[:, None], 1).astype(np.float64)
        # [2, m, s]: places of the two middle ones of the fitted, flat among all
        seen = np.where(self.says, count, 1)
        rows = n * np.arange(seen.size).reshape(seen.shape)
        self.middle = np.stack([rows + (seen - 1) // 2, rows + seen // 2 % n])
        # [m, s, p, p]: coefficients that a model does not have are held at zero; all, of the silent
        eye = np.eye(_HAS.shape[1])
        held = _HELD * (~_HAS[:, None, :, None] * eye)
        self.held = np.where(self.says[..., None, None], held, eye)
        # [s, l, 2]: a step and a ramp from each split on, one at the last snapshot
        self.shapes = np.stack(
            [self.after, self.after * (splits - age[-_LATEST:]) / splits], axis=-1
        )


@functools.lru_cache(maxsize=128)
class _Grid:
    """All that the abscissa decides beside, for each of m models and s splits of n snapshots."""

    def __init__(self, abscissa: bytes, ar: float, cycles: float) -> None:
        z = np.frombuffer(abscissa)
        frame, phase = _Frame(len(z)), 2.0 * math.pi * cycles * z
        #: [n, p] and [m, 1, p, n]: powers of the abscissa, a cosine and a sine; and whitened
        self.basis: Array = np.column_stack([z**0, z, z**2, np.cos(phase), np.sin(phase)])
        self.whitening = _whitening(len(z), ar)
        design = (self.whitening @ self.basis).swapaxes(-1, -2)
        self.design = np.ascontiguousarray(design)
        weighted = self.design[:, None] * frame.used[..., None, :]
        gram = weighted @ weighted.swapaxes(-1, -2) + frame.held
        self.solver = np.linalg.solve(gram, weighted)  # [m, s, p, n]: makes coefficients
        # [m, s, 2, l] and [m, s, 2]: step and ramp over the covariance of the errors after the
        # split, and what that makes of themselves. The covariance is sd^2 (1 + D inverse(gram) D'),
        # D being the design there; its inverse follows from the whole gram matrix (Woodbury).
        late = self.design[:, None, :, -_LATEST:] * frame.after[:, None]
        late_t = late.swapaxes(-1, -2)
        shape = self.whitening[:, None, -_LATEST:, -_LATEST:] @ frame.shapes
        matched = shape - late_t @ np.linalg.solve(gram + late @ late_t, late @ shape)
        self.matched = np.ascontiguousarray(matched.swapaxes(-1, -2))
        self.power: Array = (matched * shape).sum(axis=-2)
        # [m, n, n] and [m]: makes what a line leaves, whitened, and how large a change that one of
        # length 1 can show at most: a fit follows it once, and in two turns what is cut of that,
        # which is 1 long and then, of residuals in parts, the root of 2
        line = np.linalg.qr(self.basis[:, :2])[0]
        self.left = self.whitening @ (np.eye(len(z)) - line @ line.T)
        weights = self.matched / self.power[..., None]
        followed = np.linalg.norm(weights @ late_t @ self.solver, axis=-1)
        most = np.linalg.norm(weights, axis=-1) + (2.0 + math.sqrt(2.0)) * followed
        self.most = most.max(axis=(1, 2)) if frame.says.all() else math.inf

    def is_less(self, y: Array, floor: float, least: float) -> bool:
        """Whether each model's change is certain to be smaller, after any split."""
        lengths = np.sqrt(np.square(self.left @ y).sum(axis=-1)) + floor  # of rounding
        return bool((self.most * lengths).max() < least)


def season_of(x: Array, y: Array) -> float:
    """Of the waves that are tried the one that explains the snapshots before any split best."""
    past = x[:-_LATEST]
    if len(past) < TREND:
        return _FREQUENCIES[0]
    z = (past - past[-1]) / max(past[-1] - past[0], 1e-12)
    explained = _waves(z.tobytes(), past[-1] - past[0]) @ y[: len(past)]
    return _FREQUENCIES[int(np.square(explained).sum(axis=1).argmax())]


@functools.lru_cache(maxsize=128)
def _waves(abscissa: bytes, length: float) -> Array:
    """For each wave an orthonormal basis of a line and the wave, [waves, 4, n]."""
    z = np.frombuffer(abscissa)
    phase = 2.0 * math.pi * length * np.array(_FREQUENCIES)[:, None] * z
    basis = np.stack([np.ones_like(phase), z + 0.0 * phase, np.cos(phase), np.sin(phase)], axis=-1)
    found: Array = np.linalg.qr(basis)[0].swapaxes(-1, -2)
    return found


@functools.lru_cache(maxsize=128)
def _whitening(n: int, ar: float) -> Array:
    """For each model the matrix that makes its noise independent, lower triangular."""
    lags = np.abs(np.subtract.outer(np.arange(n), np.arange(n)))
    walked = np.minimum.outer(np.arange(n), np.arange(n)) + 1.0
    found = []
    for model in MODELS:
        covariance = (ar**lags if model.lasts else np.eye(n)) + model.walk**2 * walked
        found.append(np.linalg.inv(np.linalg.cholesky(covariance)))
    return np.stack(found)


def _robust_fit(grid: _Grid, frame: _Frame, target: Array, floor: float) -> tuple[Array, Array]:
    """Coefficients and standard deviation of a snapshot, twice winsorised."""
    values, used, solver = target * frame.used, frame.used, grid.solver[:, : frame.used.shape[1]]
    for turn in (1, 2, 3):
        fit = (solver @ values[..., None])[..., 0]
        values = fit @ grid.design
        cut = target - values
        sizes = np.abs(cut)
        sizes += frame.beyond
        sizes.sort(axis=-1)
        low, high = sizes.ravel()[frame.middle]
        mad = (0.5 * MAD_TO_SD) * (low + high)
        mad[~frame.says] = 0.0
        limit = (_WINSOR * np.maximum(mad, floor))[..., None]
        np.minimum(np.maximum(cut, -limit, out=cut), limit, out=cut)
        cut *= used
        if turn < 3:
            values *= used
            values += cut
    sd = np.sqrt(np.square(cut, out=cut).sum(axis=-1) / frame.nu)
    return fit, np.maximum(np.maximum(sd, mad), floor)


def _matched(grid: _Grid, frame: _Frame, errors: Array, sd: Array) -> tuple[Array, Array, Array]:
    """Score, effect and standard error of the better of the two templates."""
    num = errors.shape[1]
    power = grid.power[:, :num]
    effect = (grid.matched[:, :num] @ errors[..., None])[..., 0] / power
    width = sd[..., None] / np.sqrt(power)
    score = normal_score(effect / width, frame.nu[..., None])
    is_ramp = np.abs(score[..., 1]) > np.abs(score[..., 0])
    score, effect, width = [np.where(is_ramp, v[..., 1], v[..., 0]) for v in (score, effect, width)]
    return score, effect, width


#: A jump is looked for from this number of snapshots on.
MIN_SNAPSHOTS = TREND + 1
#: Guard: noise that is allowed for where none is seen, in smallest effects or in levels.
_LEAST = 1e-9
#: What a model was worth counts this much less with each snapshot since.
_FORGETTING = 0.95


@dataclass(frozen=True)
class Jumps:
    """What the models' forecasts were worth so far; one series, snapshot by snapshot."""

    beliefs: Array  # [up to splits + 1, models]: log weights as of the latest snapshots
    #: normal score of the least expected of the latest snapshots, in magnitude, if they are half of
    #: the smallest effect away; also of a single one, which is no change yet
    surprise: float

    def update(
        self, steps: Array, values: Array, limits: Limits, *, num_skipped: int
    ) -> tuple[Jumps, list[Candidate]]:
        """After one more snapshot; and the changes that it shows, the most certain first."""
        first = max(num_skipped, len(values) - WINDOW)
        x, y = steps[first:] / median_of(np.diff(steps[first:])), values[first:]
        grid, rho = _grid(y), _lasting(y)
        floor = max(grid / math.sqrt(12.0), _LEAST * max(limits.min_effect, float(np.abs(y).max())))
        known = min(_CORRELATIONS, key=lambda ar: abs(ar - rho))
        min_effect = max(limits.min_effect, grid)
        seen = forecasts(x, y, floor, known, season_of(x, y), HALF * min_effect)
        if seen.score.shape[1] < len(SPLITS):
            return self._with(seen, 0.0), []
        # how much each model is believed as of the snapshot before each split
        beliefs = self.beliefs[np.maximum(len(self.beliefs) - np.array(SPLITS), 0)]
        weights = np.exp(beliefs - beliefs.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        # logarithmic pooling of the models: one that is hardly believed has hardly a say. The mean
        # of what they hold possible is that of the least able one, however little it is believed
        combined = (weights * seen.score.T).sum(axis=1)
        combined[np.isnan(combined)] = 0.0
        is_large = np.abs(seen.effect).min(axis=0) >= HALF * min_effect
        surprise = float(np.abs(np.where(is_large, combined, 0.0)).max())
        found = []
        sizes = np.abs(combined)
        # with one snapshot after it there is no change yet
        for index in np.argsort(-sizes) if sizes[1:].max() >= limits.score else ():
            score, split = float(combined[index]), SPLITS[index]
            if split == 1 or not abs(score) >= limits.score:
                continue
            size, sd = (float(weights[index] @ v[:, index]) for v in (seen.effect, seen.sd))
            sign = math.copysign(1.0, score)
            errors = sign * (weights[index] @ seen.errors[:, index])[-split:]
            if _is_borne_out(errors, sign * size, min_effect):
                direction = "up" if score > 0.0 else "down"
                found.append(Candidate(direction, split, first, abs(size), abs(score), sd))
        return self._with(seen, surprise), found

    def _with(self, seen: Forecasts, surprise: float) -> Jumps:
        score, width = seen.score[:, 0], seen.width[:, 0]
        if np.isnan(score).any():
            return replace(self, surprise=surprise)
        latest = _FORGETTING * self.beliefs[-1] - (0.5 * score**2 + np.log(width))
        beliefs = np.concatenate([self.beliefs, (latest - latest.max())[None]])
        return Jumps(beliefs[-_LATEST - 1 :], surprise)


#: Guard: nothing is known, and nothing surprises, before the first snapshot.
NO_JUMPS = Jumps(np.zeros((1, len(MODELS))), 0.0)


def _is_borne_out(errors: Array, size: float, min_effect: float) -> bool:
    """Whether the errors after the split are of a change of ``size``, and not of one snapshot."""
    least = HALF * min(size, float(errors.mean()))
    third = np.sort(errors)[-3] if len(errors) > 2 else math.inf
    return bool(size >= min_effect and errors[-2:].min() >= least and third >= HALF * size)


def _lasting(values: Array) -> float:
    """Correlation of neighbouring snapshots' noise, from 0 to a little below 1."""
    past = values[:-_LATEST]
    if len(past) < TREND:
        return 0.0
    # of noise that forgets by a factor rho at each snapshot, differences over two have a variance
    # 1 + rho times that of differences over one
    one, two = (float(np.square(past[k:] - past[:-k]).sum()) / (len(past) - k) for k in (1, 2))
    return min(max(two / one - 1.0, 0.0), 1.0) if one > 0.0 else 0.0


def _grid(values: Array) -> float:
    """Distance of neighbouring values of a quantised series; 0 if it is not one."""
    ordered = np.sort(values)
    apart = ordered[1:] - ordered[:-1]
    apart = apart[apart > 0.0]
    return float(apart.min()) if 0 < len(apart) < len(values) // 2 else 0.0
