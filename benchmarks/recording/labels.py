"""What a recorded series shows, computed by fixed rules and never judged by eye.

- The *running floor* at a look is the smallest median of five looks in a row so far; there is
  none before the fifth look. The median keeps one low look from becoming the floor for good.
- A series *crosses* k times its floor at the first of two looks in a row that are at least k
  times the floor as it was at that look.
- A training that nobody interfered with is a "take-off" if near-zero weights by
  ``initial_0.1`` cross twice their floor, a "control" if they never cross 1.5 times, and
  "ambiguous" between: there neither an alarm nor silence is wrong. Where somebody did interfere,
  the kind says how: "switched", "planted" or "spike", and ``known_step`` is when.
- Dormant weights *rise* at the first of two looks in a row with at least 0.03 of them, twice
  their running floor.
- Runs with an even seed are for designing detectors ("design"), those with an odd seed for
  reporting on them ("report").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

KINDS = ("take-off", "control", "ambiguous", "planted", "switched", "spike")
FACTORS = (1.5, 2.0, 2.5)
#: The rule that decides the kind, as it is the one that detectors watch by default.
DECISIVE = "initial_0.1"
_FLOOR_LOOKS = 5
_DORMANT_SHARE = 0.03
_DORMANT_FACTOR = 2.0
#: A language model leaves its plateau where the loss is this much below it.
_BREAKTHROUGH_NATS = 0.15
_PLATEAU_STEPS = (200, 600)
_GROKKED_ACCURACY = 0.5

Array = npt.NDArray[np.float64]


def split_of(seed: int) -> str:
    """Even seeds are for design, odd ones for the report.

    >>> split_of(2), split_of(3)
    ('design', 'report')
    """
    return "report" if seed % 2 else "design"


def running_floor(values: Array) -> Array:
    """The smallest median of five looks in a row up to each look; NaN before the first five.

    A value that is not finite belongs to no five looks.

    >>> running_floor(np.array([5.0, 4.0, 3.0, 1.0, 2.0, 9.0, 9.0])).tolist()[4:]
    [3.0, 3.0, 3.0]
    """
    floor = np.full(len(values), math.nan)
    if len(values) >= _FLOOR_LOOKS:
        windows = np.lib.stride_tricks.sliding_window_view(values, _FLOOR_LOOKS)
        floor[_FLOOR_LOOKS - 1 :] = np.fmin.accumulate(np.median(windows, axis=1))
    return floor


def crossing(values: Array, factor: float, least: float = 0.0) -> int | None:
    """First of two looks in a row with ``factor`` times the floor and ``least`` or more.

    >>> crossing(np.array([1.0, 1.0, 1.0, 1.0, 1.0, 2.5, 1.0, 2.0, 3.0]), 2.0)
    7
    """
    limit = np.maximum(factor * running_floor(values), least)
    both = (values[:-1] >= limit[:-1]) & (values[1:] >= limit[:-1])  # NaN compares as False
    return int(np.argmax(both)) if both.any() else None


def label_of(
    steps: Sequence[int],
    series: Mapping[str, Sequence[float | None]],
    *,
    interference: str = "",
    known_step: int | None = None,
) -> dict[str, Any]:
    """Everything that the rules above say about one run, by its values at the looks.

    Of a run that was interfered with, its kind and the optimizer steps done when that happened.
    """
    arrays = {name: np.array(x, dtype=np.float64) for name, x in series.items()}
    near_zero = {
        name.removeprefix("near_zero/"): _near_zero(steps, values)
        for name, values in arrays.items()
        if name.startswith("near_zero/")
    }
    return {
        "kind": interference or _natural_kind(near_zero[DECISIVE]["steps"]),
        "known_step": known_step,
        "near_zero": near_zero,
        "dormant": _dormant(steps, arrays["motion/dormant"]),
        "breakthrough": breakthrough(np.asarray(steps), arrays),
    }


def _natural_kind(crossings: Mapping[str, int | None]) -> str:
    if crossings["2.0"] is not None:
        return "take-off"
    return "control" if crossings["1.5"] is None else "ambiguous"


def _near_zero(steps: Sequence[int], values: Array) -> dict[str, Any]:
    floor = running_floor(values)
    found = {f"{factor:.1f}": crossing(values, factor) for factor in FACTORS}
    doubled = found["2.0"]
    at = len(values) - 1 if doubled is None else doubled
    return {
        "floor": _rounded(floor[at]),
        "largest_ratio": _rounded(np.nanmax(values / floor)),
        "steps": {name: None if i is None else int(steps[i]) for name, i in found.items()},
    }


def _dormant(steps: Sequence[int], values: Array) -> dict[str, Any] | None:
    """From the first look that could be compared with one before; None if none could."""
    measured = np.flatnonzero(np.isfinite(values))
    if not len(measured):
        return None
    values, later = values[measured[0] :], steps[measured[0] :]
    rise = crossing(values, _DORMANT_FACTOR, _DORMANT_SHARE)
    at = len(values) - 1 if rise is None else rise
    return {
        "floor": _rounded(running_floor(values)[at]),
        "largest": _rounded(np.nanmax(values)),
        "step": None if rise is None else int(later[rise]),
    }


def breakthrough(steps: npt.NDArray[np.int_], arrays: Mapping[str, Array]) -> int | None:
    """Where a masked language model leaves its plateau, or modular addition is understood."""
    if "validation_accuracy" in arrays:
        reached = arrays["validation_accuracy"] >= _GROKKED_ACCURACY
    elif "loss" in arrays:
        first, last = _PLATEAU_STEPS
        if not (steps > last).any():
            return None
        plateau = np.median(arrays["loss"][(steps >= first) & (steps <= last)])
        reached = (arrays["loss"] < plateau - _BREAKTHROUGH_NATS) & (steps > last)
    both = reached[:-1] & reached[1:]
    return int(steps[np.argmax(both)]) if both.any() else None


def _rounded(x: float) -> float:
    return float(f"{x:.6g}")
