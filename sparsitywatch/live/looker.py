"""One job at a time behind the training."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from sparsitywatch.analysis.forecast import foreseen
from sparsitywatch.errors import let_out
from sparsitywatch.live.trace import Moment, OptimizerTrace
from sparsitywatch.pipeline.measure import Effort, Measurement
from sparsitywatch.pipeline.pipeline import Pipeline
from sparsitywatch.pruning.masked import MaskedModel
from sparsitywatch.records import Detail, Event, Record
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import Snapshot, WarmCopy
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

__all__ = ["Background", "Finished", "Looker"]

T = TypeVar("T")


class Background(Generic[T]):
    """A single thread that is never given a second job before the first one is collected.

    At the end of the interpreter a job that has begun is still finished.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._job: Future[T] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether the job is still running."""
        return self._job is not None and not self._job.done()

    def submit(self, function: Callable[[], T]) -> None:
        """Run ``function`` behind the caller; what the job before gave must be collected."""
        if self._job is not None:
            raise RuntimeError("Expected the job before to be collected, it is not.")
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="sparsitywatch")
        self._job = self._pool.submit(function)

    def collect(self, *, wait: bool = False) -> T | None:
        """What the job gave, once; None if there is none, or it runs and ``wait`` is False.

        Raises:
            Exception: what the job raised.
        """
        if self._job is None or (self.is_busy and not wait):
            return None
        try:
            return self._job.result()
        finally:
            if not self.is_busy:  # a signal may have interrupted the wait
                self._job = None

    def close(self) -> None:
        """End the thread; a job that runs is finished first."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None


_logger = logging.getLogger("sparsitywatch")

_Outcome = tuple[Record, Detail]


@dataclass(frozen=True)
class Finished:
    """A look that has reached the sinks.

    Args:
        record, events: what it said.
        behind_s: what was taken from the training by the thread that finished it: its processor
            time, spread over the threads of the training.
    """

    record: Record
    events: list[Event]
    behind_s: float


class _Behind:
    """What a job behind the training takes from it; made in the training's thread."""

    def __init__(self) -> None:
        self._num_threads = torch.get_num_threads()  # in another thread it may be another number
        self._began_s = 0.0

    def begun(self) -> _Behind:
        """The job begins, in this thread."""
        self._began_s = time.thread_time()
        return self

    def taken_s(self) -> float:
        """Its processor time so far, as if all threads of the training had lost it alike."""
        return (time.thread_time() - self._began_s) / self._num_threads


class Looker:
    """Looks at a model's weights: reads, measures, passes on.

    Behind the training run what needs neither the model nor the optimizer: the sinks, and
    all that is said about weights on the CPU, from a copy of them, where nothing is evaluated.
    An evaluation needs the model itself, and weights on a device are counted there: both hold
    up the training.
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

    def begin(self, step: int, *, behind: bool) -> None:
        """Remember the weights of ``step``, so that the first look can tell what moved.

        Args:
            behind: whether there will be looks behind the training. The memory that they copy the
                weights into is then touched here, where it is nobody's time.
        """
        snapshot, moment = self._read(step)
        self._trace.look(snapshot, moment)
        if behind and self._is_on_cpu:
            self._copy.take(snapshot)

    def look(self, step: int, effort: Effort) -> Finished:
        """Look now and finish before returning; nothing may be on its way."""
        return self._finished(self._measured(step, effort))

    def look_behind(self, step: int, effort: Effort) -> None:
        """Do what must be done now, and leave the rest to the background.

        ``collect`` gives it when it is done. Nothing may be on its way.
        """
        evaluates = self._measurement.evaluates and not effort.not_evaluated
        if not evaluates and self._is_on_cpu:
            self._background.submit(self._postponed(step, effort))
            return
        outcome = self._measured(step, effort)
        clock = _Behind()
        self._background.submit(lambda: self._finished(outcome, clock.begun()))

    def _postponed(self, step: int, effort: Effort) -> Callable[[], Finished]:
        """What a look does behind the training, from a copy that is made here."""
        started, clock = time.perf_counter(), _Behind()
        try:
            snapshot, moment = self._read(step)
            copy = self._copy.take(snapshot)
        except BaseException as error:  # noqa: BLE001 sorted and recorded by _failed
            outcome = self._failed(step, error, started, effort)
            return lambda: self._finished(outcome, clock.begun())
        stall_s = time.perf_counter() - started
        return lambda: self._behind(copy, moment, stall_s, effort, clock.begun())

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
        parameters = self._masked.parameters()
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
        except BaseException as error:  # noqa: BLE001 sorted and recorded by _failed
            self._masked.restore()  # done before, unless a signal came at that very moment
            return self._failed(step, error, started, effort)

    def _motion(
        self, snapshot: Snapshot, moment: Moment
    ) -> Callable[[MagnitudeSpectrum], dict[str, Any]]:
        thresholds = self._measurement.thresholds
        return lambda spectrum: self._trace.look(snapshot, moment, thresholds, spectrum)

    def _behind(
        self, copy: Snapshot, moment: Moment, stall_s: float, effort: Effort, clock: _Behind
    ) -> Finished:
        """What a look says, from a copy of the weights, in the background's thread."""
        started = time.perf_counter()
        try:
            with torch.no_grad():
                outcome = self._measurement.record(
                    copy,
                    None,
                    started=started,
                    stall_s=stall_s,
                    motion=self._motion(copy, moment),
                    effort=effort,
                    behind_s=clock.taken_s,
                    num_threads=1,
                )
        except BaseException as error:  # noqa: BLE001 sorted and recorded by _failed
            outcome = self._failed(copy.step, error, started, effort)
        return self._finished(outcome, clock)

    def _failed(self, step: int, error: BaseException, started: float, effort: Effort) -> _Outcome:
        let_out(error, strict=self._strict)
        _logger.error("sparsitywatch: the look at step %d failed", step, exc_info=error)
        return self._measurement.failed(step, error, started, effort), Detail()

    def _finished(self, outcome: _Outcome, clock: _Behind | None = None) -> Finished:
        record, detail = outcome
        record = foreseen(self._pipeline.recognised(record), self._pipeline.records)
        events = self._pipeline.take(record, detail)
        return Finished(record, events, 0.0 if clock is None else clock.taken_s())
