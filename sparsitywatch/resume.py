"""How a run's log begins: anew, or where an earlier process left it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsitywatch.errors import StateError
from sparsitywatch.logdir import set_aside
from sparsitywatch.measurement import Measurement
from sparsitywatch.optimizer_trace import OptimizerTrace
from sparsitywatch.pipeline import Pipeline
from sparsitywatch.records import Provenance, RunInfo
from sparsitywatch.sinks.jsonl import read_events, read_manifest, read_records
from sparsitywatch.weights.clock import ClockReading
from sparsitywatch.weights.scope import Scope

__all__ = ["begin", "check_state"]

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
    directory: Path | None,
    initial_step: int,
    scope: Scope,
    measurement: Measurement,
    pipeline: Pipeline,
    trace: OptimizerTrace,
) -> None:
    """Open the sinks of ``pipeline``, after taking up what the log in ``directory`` holds.

    A run that starts at step 0 moves an earlier log aside instead, and any run that of a replay:
    what it says of the weights is not of this training.
    """
    if directory is not None:
        manifest = read_manifest(directory)
        if initial_step == 0 or (manifest is not None and manifest.replayed_from):
            set_aside(directory)
        else:
            _take_up(directory, initial_step, measurement, pipeline, trace)
    info = RunInfo(
        initial_step=initial_step,
        provenance=measurement.provenance,
        ledger=scope.ledger,
        initial_rms=measurement.initial_rms,
    )
    pipeline.open(info)


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
