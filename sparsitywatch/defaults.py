"""What both drivers do unless the user says otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from sparsitywatch.analysis.detect import AbruptChange, DormantRise
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.measurement import DEFAULT_LEVELS, Settings
from sparsitywatch.pipeline import Detector
from sparsitywatch.pruning.sweep import Bisection, Grid, Sweep

__all__ = ["as_sweep", "default_detectors"]


def default_detectors(settings: Settings) -> dict[str, Detector]:
    """What is watched, by name of the series."""
    return {
        "motion/dormant": DormantRise(),
        f"near_zero/{settings.near_zero[0]}": AbruptChange(),
    }


def as_sweep(levels: Sequence[float] | Sweep | None) -> Sweep:
    """The sweep that ``levels`` asks for.

    Raises:
        ConfigurationError: it asks for none.
    """
    if levels is None:
        return Bisection(DEFAULT_LEVELS)
    if isinstance(levels, Sequence):
        return Grid(tuple(levels))
    if not hasattr(levels, "choose"):
        raise ConfigurationError(
            f"Expected `levels` to be sparsities in [0, 1) or a sweep, got {levels!r}."
        )
    return levels
