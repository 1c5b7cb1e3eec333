"""The detector of this library, and any other that is fed snapshot by snapshot."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from detecting.scoring import Detector
from detecting.series import Series
from sparsitywatch.analysis.detect import AbruptChange, DormantRise
from sparsitywatch.records import Event

__all__ = ["MIN_EFFECT", "Online", "early", "online", "ours", "ours_at"]

#: The smallest change that a user cares for, in units of the series.
MIN_EFFECT = 0.01

#: Told step, value and context of a snapshot; says whether it alarms.
Online = Callable[[int, float, "Mapping[str, float] | None"], "Event | bool | None"]


def online(make: Callable[[float], Online]) -> Detector:
    """A detector of whole series from one of single snapshots.

    Args:
        make: makes a fresh one, given the smallest change that matters.
    """

    def detect(series: Series) -> dict[int, Event | bool]:
        update = make(MIN_EFFECT * series.unit)
        looks = zip(series.steps, series.values, strict=True)
        return {
            i: said
            for i, (step, value) in enumerate(looks)
            if (said := update(int(step), float(value), series.context_at(i)))
        }

    return detect


def ours(min_effect: float) -> Online:
    """The library's detector of rises, at its defaults."""
    return AbruptChange(min_effect, direction="up").update


def ours_at(false_alarms_per_1000: float) -> Callable[[float], Online]:
    """The library's detector, asked for a rate of false alarms."""

    def make(min_effect: float) -> Online:
        return AbruptChange(
            min_effect, direction="up", false_alarms_per_1000=false_alarms_per_1000
        ).update

    return make


def early(min_effect: float) -> Online:
    """The library's detector of dormant weights."""
    return DormantRise(min_effect).update
