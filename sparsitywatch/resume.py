"""How a run's log begins: anew, or where an earlier process left it."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsitywatch.errors import LogTakenError, StateError
from sparsitywatch.logdir import Claim
from sparsitywatch.measurement import Measurement
from sparsitywatch.optimizer_trace import OptimizerTrace
from sparsitywatch.pipeline import Pipeline
from sparsitywatch.records import Provenance, RunInfo
from sparsitywatch.sinks.jsonl import read_events, read_manifest, read_records
from sparsitywatch.weights.clock import ClockReading
from sparsitywatch.weights.scope import Scope

__all__ = ["begin", "check_state"]

_logger = logging.getLogger("sparsitywatch")

_STATE_KEYS = ("step", "scope_hash", "proxy_hash", "initial_rms", "optimizer", "pipeline", "pace")


def check_state(state: Mapping[str, Any], provenance: Provenance) -> None:
    """Refuse the saved state of another watch before anything is changed.

    Raises:
        StateError: a key is missing, or the state is of another scope or proxy.
    """
    missing = [key for key in _STATE_KEYS if key not in state]
    if missing:
        raise StateError(f"Expected the keys {missing} in the watch's state, got {list(state)}.")
    for key in ("scope_hash", "proxy_hash"):
        expected = getattr(provenance, key)
        if state[key] != expected:
            raise StateError(
                f"Expected a state with {key} {expected!r}, got {state[key]!r}: it belongs to "
                "another model or to other held-out batches. Start a new logdir."
            )


def begin(
    initial_step: int,
    scope: Scope,
    measurement: Measurement,
    pipeline: Pipeline,
    trace: OptimizerTrace,
) -> None:
    """Claim the log of ``pipeline``, take up what it holds, and open the sinks.

    A run that starts at step 0 moves an earlier log aside instead, and any run that of a replay:
    what it says of the weights is not of this training. A log that a living process writes is
    moved by nobody: a run that does not go on from it writes beside it.

    Raises:
        LogTakenError: another watch has taken the log over meanwhile.
    """
    if pipeline.claim.directory is not None and _claimed(pipeline.claim, initial_step):
        _take_up(pipeline.claim.directory, initial_step, measurement, pipeline, trace)
    info = RunInfo(
        initial_step=initial_step,
        provenance=measurement.provenance,
        ledger=scope.ledger,
        initial_rms=measurement.initial_rms,
    )
    pipeline.open(info)


def _claimed(claim: Claim, initial_step: int) -> bool:
    """Claim a directory to write into; returns whether this run goes on from what it holds."""
    directory = claim.directory
    assert directory is not None  # noqa: S101 for the type checker
    manifest = read_manifest(directory)
    goes_on = initial_step > 0 and not (manifest is not None and manifest.replayed_from)
    anew = "" if goes_on else "which this one does not go on from"
    try:
        # the process that this one follows may be dying still, and must not write any more
        claim.take(over="all" if goes_on else "own", anew=anew)
    except LogTakenError as error:
        claim.move()
        _logger.warning(
            "sparsitywatch: %s; this run is logged into %s. Give each run a `logdir` of its own.",
            error,
            claim.directory,
        )
        return _claimed(claim, 0)
    return goes_on


def _take_up(
    directory: Path,
    initial_step: int,
    measurement: Measurement,
    pipeline: Pipeline,
    trace: OptimizerTrace,
) -> None:
    """Go on from what the log in ``directory`` holds up to ``initial_step``.

    The tensors' first sizes, the records and events seen, what the detectors learned from
    them, and the clocks, unless a loaded state knows better.
    """
    manifest = read_manifest(directory)
    if manifest and set(manifest.initial_rms) == set(measurement.initial_rms):
        measurement.initial_rms = dict(manifest.initial_rms)
    records = read_records(directory, max_step=initial_step)
    events = read_events(directory, max_step=initial_step)
    pipeline.recall(records, events)
    last = records[-1] if records and records[-1].step == initial_step else None
    trace.continue_from(
        ClockReading(math.nan, math.nan)
        if last is None
        else ClockReading(last.decay_clock, last.lr_clock)
    )
