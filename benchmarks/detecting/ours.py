"""The detector of this library, and any other that is fed look by look."""

from __future__ import annotations

from collections.abc import Callable

from detecting.scoring import Detector
from detecting.series import Series
from sparsitywatch.analysis.detect import AbruptChange

__all__ = ["MIN_EFFECT", "Online", "online", "ours"]

#: The smallest change that a user cares for, in units of the series.
MIN_EFFECT = 0.01

#: Told step, value and context of a look; says whether it alarms.
Online = Callable[[int, float, "dict[str, float] | None"], bool]


def online(make: Callable[[float], Online]) -> Detector:
    """A detector of whole series from one of single looks.

    Args:
        make: makes a fresh one, given the smallest change that matters.
    """

    def detect(series: Series) -> list[int]:
        update = make(MIN_EFFECT * series.unit)
        looks = zip(series.steps, series.values, strict=True)
        return [
            i
            for i, (step, value) in enumerate(looks)
            if update(int(step), float(value), series.context_at(i))
        ]

    return detect


def ours(min_effect: float) -> Online:
    """The library's detector of rises."""
    detector = AbruptChange(min_effect, direction="up")
    return lambda step, value, context: detector.update(step, value, context) is not None
