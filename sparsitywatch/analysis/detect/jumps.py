"""Jumps, sigmoids and kinks: looks that no model of a healthy series foresaw."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsitywatch.analysis.detect.nulls import MODELS, SPLITS, Forecasts, forecasts

__all__ = ["Jump", "Jumps"]

Array = NDArray[np.float64]

#: What a model was worth so many looks ago counts this much of what it is worth now.
_FORGETTING = 0.95
#: Past scores that show how wide a model's scores really are, and how many it takes.
_PAST, _MIN_PAST = 40, 8
#: Of a normal variable: median and 94 percent quantile of its magnitude.
_MEDIAN, _QUANTILE, _LEVEL = 0.6745, 1.88, 0.94
#: Each of the last two looks bears out this part of the change, and this many noises.
_BORNE_OUT, _NOISES = 0.5, 1.5
#: So does the third largest error, for this part.
_THIRD = 0.3
#: Of the smallest effect, for a surprise that is no change yet.
_HALF = 0.5
#: One forecast error speaks against a model for at most this many nats.
_LARGEST_SURPRISE = 8.0
#: Kept digits: the state is small, and a resumed run goes on from the very same numbers.
_DIGITS = 3
#: Past scores are kept in tenths: of them only the spread is needed.
_TENTHS = 10.0
#: Larger ones are as good as this one.
_LARGEST_SCORE = 99.9
_NORMAL, _TINY = NormalDist(), 1e-300


@dataclass(frozen=True)
class Jump:
    """A change that was not foreseen.

    Args:
        split: looks since it began.
        score: normal score, positive upward.
        effect: size of the change, in units of the series.
        noise: standard deviation of a look.
    """

    split: int
    score: float
    effect: float
    noise: float


class Jumps:
    """What the models' forecasts were worth so far; one series, look by look.

    Attributes:
        surprise: normal score of the least expected of the latest looks, in magnitude, if they
            are half of the smallest effect away; also of a single one, which is no change yet.
    """

    def __init__(self) -> None:
        self._beliefs: list[list[float]] = [[0.0] * len(MODELS)]
        self._scores: list[list[list[int]]] = []
        self.surprise = 0.0

    def update(
        self, x: Array, y: Array, *, min_effect: float, threshold: float, floor: float
    ) -> list[Jump]:
        """One more look: the changes that it shows, the most certain first.

        Args:
            x, y: the latest looks, at most ``WINDOW`` of them.
            min_effect: smallest change, in units of the series.
            threshold: smallest score.
            floor: smallest standard deviation of a look.
        """
        seen = forecasts(x, y, floor)
        scores = self._widened(seen.score)
        combined = self._combined(scores)
        is_large = np.abs(seen.effect).min(axis=0) >= _HALF * min_effect
        self.surprise = float(np.abs(np.where(is_large, combined, 0.0)).max())
        self._remember(seen)
        found = []
        for index in np.argsort(-np.abs(combined)):
            if SPLITS[index] == 1 or not abs(combined[index]) >= threshold:
                continue
            if self._is_borne_out(seen, int(index), float(combined[index]), min_effect):
                weights = self._weights(SPLITS[index])
                effect, noise = (float(weights @ v[:, index]) for v in (seen.effect, seen.sd))
                found.append(Jump(SPLITS[index], float(combined[index]), effect, noise))
        return found

    def state_dict(self) -> dict[str, Any]:
        """Plain data that ``load_state_dict`` goes on from."""
        return {
            "beliefs": [list(row) for row in self._beliefs],
            "scores": [[list(row) for row in look] for look in self._scores],
            "surprise": self.surprise,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""
        self._beliefs = [[float(b) for b in row] for row in state["beliefs"]]
        self._scores = [[[int(z) for z in row] for row in look] for look in state["scores"]]
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
        """How much each model is believed, as of the look before the split."""
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
