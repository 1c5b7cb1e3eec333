"""What an earlier replay has left in the log directory, and whether this one may go on from it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsitywatch.analysis.overlap import MASK_LEVELS
from sparsitywatch.errors import ConfigurationError, StateError
from sparsitywatch.history import Detector, History
from sparsitywatch.measurement import Measurement
from sparsitywatch.records import Event, Record, RunInfo
from sparsitywatch.replayer.look import Plan
from sparsitywatch.sinks.jsonl import (
    read_events,
    read_manifest,
    read_records,
    read_spectrum,
)
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

__all__ = ["Log", "check_same", "is_told", "mask_thresholds", "read_log"]


@dataclass(frozen=True)
class Log:
    """What is in a log directory.

    Args:
        run: what was said once; None for a new log.
        records: by step.
        events: as they were told last.
    """

    run: RunInfo | None = None
    records: Sequence[Record] = ()
    events: Sequence[Event] = ()

    def until(self, step: int) -> Log:
        """The part up to a step."""
        return Log(
            self.run,
            [record for record in self.records if record.step <= step],
            [event for event in self.events if event.told_step <= step],
        )


def read_log(directory: Path | None) -> Log:
    """What is in ``directory``; nothing if there is no directory, or no record in it.

    Raises:
        ConfigurationError: it is the log of a live watch.
        StateError: it is damaged.
    """
    if directory is None:
        return Log()
    run, records = read_manifest(directory), read_records(directory)
    is_live = not run.replayed_from if run is not None else bool(records)
    if is_live:
        raise ConfigurationError(
            f"Expected `logdir` to be new or of an earlier replay, but {str(directory)!r} holds "
            "the log of a live watch. Give another one."
        )
    if run is None or not records:
        return Log()
    return Log(run, records, read_events(directory))


def check_same(log: Log, plan: Plan) -> None:
    """Refuse to go on with other settings than those of the log.

    Raises:
        ConfigurationError: they differ; says in what.
    """
    assert log.run is not None  # noqa: S101 for the type checker
    proxy = None if plan.stage is None else plan.stage.proxy
    now = Measurement(plan.settings, plan.scope, plan.initial_rms, proxy).provenance
    then = log.run.provenance.settings()
    pairs = {name: (then[name], value) for name, value in now.settings().items()}
    rules = plan.settings.near_zero
    logged = next((tuple(r.near_zero) for r in log.records if r.near_zero), rules)
    pairs["near_zero"] = (sorted(logged), sorted(rules))
    wrong = [f"{name} {then!r}, now {now!r}" for name, (then, now) in pairs.items() if then != now]
    if plan.initial_rms is not None and dict(plan.initial_rms) != dict(log.run.initial_rms):
        wrong.append("another initial_rms")
    if wrong:
        raise ConfigurationError(
            "Expected `logdir` to be new or of a replay with the same settings, but it was written "
            f"with {'; '.join(wrong)}. Give another one."
        )


def is_told(log: Log, detectors: Mapping[str, Detector]) -> bool:
    """Whether the log holds every event that its records do.

    A kill between a record and its events leaves it otherwise.
    """
    assert log.run is not None  # noqa: S101 for the type checker
    history = History(copy.deepcopy(dict(detectors)))
    history.initial_rms = dict(log.run.initial_rms)
    history.recall(log.records, log.events)
    late = history.finish_recall()
    return not late.new and not late.amended


def mask_thresholds(directory: Path | None, step: int) -> list[float]:
    """Below which weights would have gone at a look; empty if its spectrum is not there."""
    if directory is None:
        return []
    try:
        spectrum = MagnitudeSpectrum.from_arrays(read_spectrum(directory, step))
    except StateError:
        return []
    return spectrum.thresholds(MASK_LEVELS)
