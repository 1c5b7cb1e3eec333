"""What a report is made of: everything that was logged of one run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsitywatch.analysis.standing import Standing, standing
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.records import Event, Record, RunInfo

__all__ = ["RunLog"]


@dataclass(frozen=True, kw_only=True)
class RunLog:
    """The log of one run.

    Args:
        name: what the run is called, for the title.
        records: in the order of the steps, at least one.
        events: each once, in the order in which they were seen.
        info: what was said once about the run; None if that is not known.
        now: seconds since the epoch, to see whether a watch that says that it is on still is; None
            to take its word.

    Raises:
        ConfigurationError: there is no record.
    """

    name: str
    records: Sequence[Record]
    events: Sequence[Event] = ()
    info: RunInfo | None = None
    now: float | None = None

    def __post_init__(self) -> None:
        if not self.records:
            raise ConfigurationError(
                "Expected `records` with at least one look, got none. A report needs a run that "
                "has looked at its weights."
            )
        # asked for again and again: by charts, tables and sentences
        object.__setattr__(self, "_series", [record.series() for record in self.records])

    @property
    def steps(self) -> np.ndarray:
        """Steps of the looks, int [T]."""
        return np.array([record.step for record in self.records])

    def series(self, name: str) -> np.ndarray:
        """One series, float [T]; NaN where it was not measured."""
        cached: list[dict[str, float]] = getattr(self, "_series")  # noqa: B009 set once above
        return np.array([series.get(name, math.nan) for series in cached])

    def asked(self, name: str) -> np.ndarray:
        """Looks that could have had a series, bool [T]: not those that left its evaluation out."""
        return np.array([record.was_asked(name) for record in self.records])

    def has(self, name: str) -> bool:
        """Whether a series was measured at any look."""
        return bool(np.isfinite(self.series(name)).any())

    @property
    def replayed_from(self) -> tuple[str, ...]:
        """Where the checkpoints lay, in a replay; empty for a live watch."""
        return () if self.info is None else self.info.replayed_from

    @property
    def standing(self) -> Standing:
        """How the watch itself is."""
        return standing(self.records, self.info, now=self.now)

    @property
    def rules(self) -> tuple[str, ...]:
        """The near-zero rules of the run, the first one first."""
        return tuple(dict.fromkeys(rule for record in self.records for rule in record.near_zero))

    @property
    def tensors(self) -> tuple[str, ...]:
        """Names of the in-scope tensors of all looks, in the model's order, length N."""
        return tuple(
            dict.fromkeys(layer.name for record in self.records for layer in record.layers)
        )
