"""What makes a general detector of changes usable on training curves.

Curves drift, and their scale is not known. So each value is compared with a straight line
through the ones before it, continued to now, in units of the noise around that line.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from detecting.series import Array

__all__ = ["FrontEnd", "noise_of"]

_WINDOW, _LEAST = 20, 8
_CLIP, _ROUNDS = 3.0, 2
_SD_OF_MAD = 1.4826
#: The least noise, as a part of the smallest change that matters.
_LEAST_NOISE = 0.05


class FrontEnd:
    """Standardised errors of forecasts one snapshot ahead.

    Args:
        min_effect: smallest change that matters, in units of the series; bounds the noise.
    """

    def __init__(self, min_effect: float) -> None:
        self._least = _LEAST_NOISE * min_effect
        self._seen: deque[tuple[float, float]] = deque(maxlen=_WINDOW)

    def update(self, step: int, value: float) -> float | None:
        """The error at one more snapshot, in standard deviations; None as long as there is none."""
        error = None
        if len(self._seen) >= _LEAST:
            error = self._error(np.array(self._seen), float(step), value)
        self._seen.append((float(step), value))
        return error

    def _error(self, seen: Array, step: float, value: float) -> float:
        steps, values = seen.T
        middle, width = steps.mean(), np.ptp(steps)
        design = np.stack([np.ones(len(steps)), (steps - middle) / width], axis=1)
        now = np.array([1.0, (step - middle) / width])
        clipped = values
        for _ in range(_ROUNDS):  # one wild value does not turn the line
            fit = design @ np.linalg.lstsq(design, clipped, rcond=None)[0]
            bound = _CLIP * max(_SD_OF_MAD * float(np.median(np.abs(values - fit))), self._least)
            clipped = np.clip(values, fit - bound, fit + bound)
        line = np.linalg.lstsq(design, clipped, rcond=None)[0]
        rest = clipped - design @ line
        noise = max(math.sqrt(float(rest @ rest) / (len(steps) - 2)), self._least)
        leverage = float(now @ np.linalg.solve(design.T @ design, now))
        return (value - float(now @ line)) / (noise * math.sqrt(1.0 + leverage))


def noise_of(values: Array, least: float) -> float:
    """Standard deviation of the noise, from differences of neighbours.

    >>> round(noise_of(np.array([0.0, 1.0, 0.0, 1.0, 0.0]), 0.01), 3)
    1.048
    """
    differences = np.abs(np.diff(values))
    return max(_SD_OF_MAD * float(np.median(differences)) / math.sqrt(2.0), least)
