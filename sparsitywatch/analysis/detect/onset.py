"""When a change began: the look after which a bend or a step explains the series best."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["onset_of"]

Array = NDArray[np.float64]

#: Looks that are searched.
_LOOKS = 96
#: Twice the log-likelihood that may be lost within a 90 percent profile interval.
_LOST = 2.706


def onset_of(x: Array, y: Array, *, noise: float, latest: int) -> tuple[int, int, int]:
    """Index of the last look before the change, and the interval that it lies in.

    Fitted are a line before the change and either a bend or a step and a bend after it; the
    better one counts. The interval holds the onsets whose fit is not clearly worse (90 percent,
    profile likelihood).

    Args:
        x: abscissa, rising, length N.
        y: the series, from where its baseline begins.
        noise: standard deviation of a look, which the fits cannot beat.
        latest: the last index that can be the onset.

    Returns:
        onset, low, high.
    """
    begin = max(0, len(y) - _LOOKS)
    z = (x - x[begin]) / (x[-1] - x[begin])
    last = max(min(latest, len(y) - 2), begin)
    first = min(begin + 1, last)
    candidates = np.arange(first, last + 1)
    errors = np.array([_error(z[begin:], y[begin:], int(k) - begin) for k in candidates])
    best = int(errors.argmin())
    size = len(y) - begin
    variance = max(noise**2, float(errors[best]) / max(size - 4, 1), 1e-300)
    inside = candidates[(errors - errors[best]) / variance <= _LOST]
    return int(candidates[best]), int(inside.min()), int(inside.max())


def _error(z: Array, y: Array, k: int) -> float:
    """Squared error of the better fit with the change after look ``k``."""
    ones = np.ones_like(z)
    bend = np.maximum(z - z[k], 0.0)
    step = (z > z[k]).astype(np.float64)
    line = [ones, z] if k >= 2 else [ones]
    found = []
    for shape in ([bend], [step]):
        design = np.stack([*line, *shape], axis=1)
        residuals = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
        found.append(float(residuals @ residuals))
    return min(found)
