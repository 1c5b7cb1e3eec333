"""One look, from the weights to the sinks; what need not hold up the training runs behind it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sparsitywatch.analysis.forecast import foreseen
from sparsitywatch.background import Background
from sparsitywatch.measurement import Effort, Measurement
from sparsitywatch.optimizer_trace import Moment, OptimizerTrace
from sparsitywatch.pipeline import Pipeline
from sparsitywatch.pruning.masked import MaskedModel
from sparsitywatch.records import Detail, Event, Record
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import Snapshot, WarmCopy
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

__all__ = ["Finished", "Looker"]

_logger = logging.getLogger("sparsitywatch")

_Outcome = tuple[Record, Detail]


@dataclass(frozen=True)
class Finished:
    """A look that has reached the sinks.

    Args:
        record, events: what it said.
        cpu_s: processor time of what was done in the thread that finished it.
    """

    record: Record
    events: list[Event]
    cpu_s: float


class Looker:
    """Looks at a model's weights: reads, measures, passes on.

    Behind the training run what needs neither the model nor the optimizer: the sinks, and
    all that is said about weights on the CPU, from a copy of them. An evaluation needs the
    model itself, and weights on a device are counted there: both hold up the training.
    Actions (``on_event``, ``on_record``) are always called in the caller's thread.

    Args:
        masked: the model.
        scope: which weights count.
        measurement: what a look measures.
        pipeline: what becomes of the record.
        trace: what the optimizer does.
        strict: let what goes wrong out, for tests.
    """

    def __init__(
        self,
        masked: MaskedModel,
        scope: Scope,
        measurement: Measurement,
        pipeline: Pipeline,
        trace: OptimizerTrace,
        *,
        strict: bool = False,
    ) -> None:
        self._masked, self._scope, self._trace = masked, scope, trace
        self._measurement, self._pipeline, self._strict = measurement, pipeline, strict
        self._background: Background[Finished] = Background()
        self._is_on_cpu = False  # as of the latest read
        self._copy = WarmCopy()

    @property
    def is_busy(self) -> bool:
        """Whether a look is still on its way behind the training."""
        return self._background.is_busy

    def begin(self, step: int) -> None:
        """Remember the weights of ``step``, so that the first look can tell what moved."""
        snapshot, moment = self._read(step)
        self._trace.look(snapshot, moment)

    def look(self, step: int, effort: Effort) -> Finished:
        """Look now and finish before returning; nothing may be on its way."""
        return self._finished(self._measured(step, effort))

    def look_behind(self, step: int, effort: Effort) -> None:
        """Do what must be done now, and leave the rest to the background.

        ``collect`` gives it when it is done. Nothing may be on its way.
        """
        if not self._measurement.evaluates and self._is_on_cpu:
            self._background.submit(self._postponed(step, effort))
            return
        outcome = self._measured(step, effort)
        self._background.submit(lambda: self._finished(outcome))

    def _postponed(self, step: int, effort: Effort) -> Callable[[], Finished]:
        """What a look does behind the training, from a copy that is made here."""
        started = time.perf_counter()
        try:
            snapshot, moment = self._read(step)
            copy = self._copy.take(snapshot)
        except Exception as error:  # noqa: BLE001 logged and recorded by _failed
            outcome = self._failed(step, error, started, effort)
            return lambda: self._finished(outcome)
        stall_s = time.perf_counter() - started
        return lambda: self._behind(copy, moment, stall_s, effort)

    def collect(self, *, wait: bool = False) -> Finished | None:
        """A look that has been finished behind the training, once; None if there is none.

        Args:
            wait: until the one that is on its way is finished.
        """
        return self._background.collect(wait=wait)

    def close(self) -> None:
        """End the background; what is on its way is finished first."""
        self._background.close()

    def _read(self, step: int) -> tuple[Snapshot, Moment]:
        parameters = self._scope.parameters(self._masked.module)
        snapshot = Snapshot.of_parameters(parameters, self._scope, step)
        self._is_on_cpu = all(t.device.type == "cpu" for t in snapshot.tensors.values())
        return snapshot, self._trace.moment(parameters)

    def _measured(self, step: int, effort: Effort) -> _Outcome:
        """What a look says, the model at hand."""
        started = time.perf_counter()
        try:
            with torch.no_grad():
                snapshot, moment = self._read(step)
                return self._measurement.record(
                    snapshot,
                    self._masked,
                    started=started,
                    motion=self._motion(snapshot, moment),
                    previous=self._pipeline.last_curve,
                    effort=effort,
                    strict=self._strict,
                )
        except Exception as error:  # noqa: BLE001 logged and recorded by _failed
            return self._failed(step, error, started, effort)

    def _motion(
        self, snapshot: Snapshot, moment: Moment
    ) -> Callable[[MagnitudeSpectrum], dict[str, Any]]:
        thresholds = self._measurement.thresholds
        return lambda spectrum: self._trace.look(snapshot, moment, thresholds, spectrum)

    def _behind(self, copy: Snapshot, moment: Moment, stall_s: float, effort: Effort) -> Finished:
        """What a look says, from a copy of the weights, in the background's thread."""
        started, cpu_before_s = time.perf_counter(), time.thread_time()
        try:
            with torch.no_grad():
                outcome = self._measurement.record(
                    copy,
                    None,
                    started=started,
                    stall_s=stall_s,
                    motion=self._motion(copy, moment),
                    effort=effort,
                    num_threads=1,
                )
        except Exception as error:  # noqa: BLE001 logged and recorded by _failed
            outcome = self._failed(copy.step, error, started, effort)
        return self._finished(outcome, cpu_before_s)

    def _failed(self, step: int, error: Exception, started: float, effort: Effort) -> _Outcome:
        if self._strict:
            raise error
        _logger.error("sparsitywatch: the look at step %d failed", step, exc_info=error)
        return self._measurement.failed(step, error, started, effort), Detail()

    def _finished(self, outcome: _Outcome, cpu_before_s: float | None = None) -> Finished:
        before = time.thread_time() if cpu_before_s is None else cpu_before_s
        record, detail = outcome
        record = foreseen(record, self._pipeline.records)
        events = self._pipeline.take(record, detail)
        return Finished(record, events, time.thread_time() - before)
