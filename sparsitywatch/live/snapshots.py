"""Taking a snapshot of a model in training; what need not hold up the training runs behind it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch

from sparsitywatch.errors import reraise_foreign
from sparsitywatch.live.trace import OptimizerTrace
from sparsitywatch.pipeline.measure import Context, failed_record, measure_snapshot
from sparsitywatch.pipeline.parts import Examined
from sparsitywatch.pipeline.pipeline import Pipeline
from sparsitywatch.pruning.evaluation import MaskedModel
from sparsitywatch.records import Detail, Event, Record, Vital
from sparsitywatch.shown import shown_error
from sparsitywatch.weights.clock import OptimizerReading
from sparsitywatch.weights.snapshot import Snapshot, WarmCopy
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

__all__ = ["Background", "FinishedSnapshot", "SnapshotTaker"]

_logger = logging.getLogger("sparsitywatch")

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


@dataclass(frozen=True)
class FinishedSnapshot:
    """A snapshot that has reached the sinks.

    Args:
        record, events: what it said.
        behind_s: what was taken from the training by the thread that finished it: its processor
            time, spread over the threads of the training.
    """

    record: Record
    events: list[Event]
    behind_s: float


class StallTimer:
    """What a snapshot takes from the training; made where it begins, in the training's thread."""

    def __init__(self) -> None:
        self._started, self._began_behind = time.perf_counter(), 0.0
        self._num_threads = torch.get_num_threads()  # in another thread it may be another number
        self.stall_s: float | None = None

    def elapsed_s(self) -> float:
        """How long the training was held up: until ``release``, or until now."""
        return time.perf_counter() - self._started if self.stall_s is None else self.stall_s

    def release(self) -> None:
        """The training goes on; what is left is done behind it."""
        self.stall_s = self.elapsed_s()

    def begin_behind(self) -> None:
        """The part behind the training begins, in this thread."""
        self._began_behind = time.thread_time()

    def behind_s(self) -> float:
        """Processor time behind the training, as if all its threads had lost it alike."""
        if not self._began_behind:
            return 0.0
        return (time.thread_time() - self._began_behind) / self._num_threads


class SnapshotTaker:
    """Reads a model's weights, measures them, and passes on what they say.

    Behind the training run what needs neither the model nor the optimizer: the sinks, and
    all that is said about weights on the CPU, from a copy of them, where nothing is evaluated.
    An evaluation needs the model itself, and weights on a device are counted there: both hold
    up the training.
    Actions (``on_event``, ``on_record``) are always called in the caller's thread.

    Args:
        model: what is watched.
        context: what a snapshot is measured with; replaced where an earlier log is gone on from.
        pipeline: what becomes of the record.
        trace: what the optimizer does.
        overhead: the share of the wall time that the watch has taken when it is asked; of
            seconds that are being spent behind the training.
    """

    def __init__(
        self,
        model: MaskedModel,
        context: Context,
        pipeline: Pipeline,
        trace: OptimizerTrace,
        overhead: Callable[[float], float],
    ) -> None:
        self._model, self._pipeline, self._trace = model, pipeline, trace
        self.context = context
        self._overhead = overhead
        self._background: Background[FinishedSnapshot] = Background()
        self._is_on_cpu = False  # as of the latest read
        # an evaluation begins when nothing is on its way, so it may restore from the same buffers
        self._copy = model.spare = WarmCopy()

    @property
    def is_busy(self) -> bool:
        """Whether a snapshot is still on its way behind the training."""
        return self._background.is_busy

    def begin(self, step: int, *, behind: bool) -> None:
        """Remember the weights of ``step``, so that the first snapshot can say what moved.

        Args:
            behind: whether there will be snapshots behind the training. The memory that they copy
                the weights into is then touched here, where it is nobody's time.
        """
        snapshot, reading, every = self._read(step)
        self._examined(step, every)(None)
        motion = self.context.motion
        if motion is not None and reading.clock is not None:
            sample = self.context.reader.sample(motion.sampler, snapshot)
            motion.compare(step, sample, optimizer=reading)
        if behind and self._is_on_cpu:
            self._copy.take(snapshot)

    def take(
        self, step: int, *, behind: bool = False, num_left_out: int = 0, not_evaluated: str = ""
    ) -> FinishedSnapshot | None:
        """Take a snapshot; nothing may be on its way.

        Args:
            step: optimizer steps done.
            behind: do here what must be done now and leave the rest to the background, whose
                result ``collect`` gives; False: finish before returning.
            num_left_out: snapshots before this one that were due and left out.
            not_evaluated: why the proxy is not evaluated; empty if it is.
        """
        clock = StallTimer()
        context = replace(self.context, not_evaluated=not_evaluated)
        evaluates = context.proxy is not None and not not_evaluated
        if behind and self._is_on_cpu and not evaluates:
            measured = self._copied(step, context)
        else:
            outcome = self._measured(step, context)
            measured = lambda: outcome  # noqa: E731 measured already
        clock.release()

        def finish() -> FinishedSnapshot:
            if behind:
                clock.begin_behind()
            record, detail = measured()
            cost = replace(
                record.cost,
                stall_s=clock.elapsed_s(),
                publish_s=self._pipeline.publish_s,
                overhead=self._overhead(clock.behind_s()),
                num_left_out=num_left_out,
                num_evaluations_left_out=int(bool(not_evaluated)),
            )
            record, events = self._pipeline.take(replace(record, cost=cost), detail)
            return FinishedSnapshot(record, events, clock.behind_s())

        if not behind:
            return finish()
        self._background.submit(finish)
        return None

    def collect(self, *, wait: bool = False) -> FinishedSnapshot | None:
        """A snapshot that has been finished behind the training, once; None if there is none.

        Args:
            wait: until the one that is on its way is finished.
        """
        return self._background.collect(wait=wait)

    def close(self) -> None:
        """End the background; what is on its way is finished first."""
        self._background.close()

    def _read(self, step: int) -> tuple[Snapshot, OptimizerReading, Mapping[str, torch.Tensor]]:
        """The weights, what the optimizer did, and every parameter, in scope or not."""
        parameters, every = self._model.lookup()
        snapshot = Snapshot.of_parameters(parameters, self.context.scope, step)
        self._is_on_cpu = all(t.device.type == "cpu" for t in snapshot.tensors.values())
        return snapshot, self._trace.reading(every), every

    def _examined(self, step: int, every: Mapping[str, torch.Tensor]) -> Examined:
        """What says what became of every parameter, in any thread, once.

        Read is here what the next step may change. What fails is told, and the rest is measured.
        """

        def failed(error: Exception) -> Examined:
            reraise_foreign(error, strict=self.context.strict)
            _logger.error("sparsitywatch: no vital signs at step %d", step, exc_info=error)
            return self.context.examiner.failed(shown_error(error))

        try:
            with torch.no_grad():
                finish = self._trace.examine(step, every)
        except Exception as error:  # noqa: BLE001 sorted by failed
            return failed(error)

        def examined(spectrum: MagnitudeSpectrum | None) -> Vital | None:
            try:
                return finish(spectrum)
            except Exception as error:  # noqa: BLE001 sorted by failed
                return failed(error)(spectrum)

        return examined

    def _measured(self, step: int, context: Context) -> tuple[Record, Detail]:
        """What a snapshot says, the model at hand."""
        try:
            with torch.no_grad():
                snapshot, reading, every = self._read(step)
                context = replace(
                    context,
                    model=self._model,
                    optimizer=reading,
                    examined=self._examined(step, every),
                )
                measured = measure_snapshot(snapshot, context)
                return measured.record, measured.detail
        except BaseException as error:  # noqa: BLE001 sorted and recorded by _failed
            self._model.restore()  # done before, unless a signal came at that very moment
            return self._failed(step, error, context)

    def _copied(self, step: int, context: Context) -> Callable[[], tuple[Record, Detail]]:
        """The same from a copy of the weights that is made here, to be measured later."""
        try:
            snapshot, reading, every = self._read(step)
            # what the next step changes is read now; before the copy, which leaves caches cold
            examined = self._examined(step, every)
            copy = self._copy.take(snapshot)
        except BaseException as error:  # noqa: BLE001 sorted and recorded by _failed
            outcome = self._failed(step, error, context)
            return lambda: outcome
        context = replace(
            context,
            optimizer=reading,
            examined=examined,
            num_threads=1,
            reader=context.reader.behind,
        )

        def measured() -> tuple[Record, Detail]:
            try:
                with torch.no_grad():
                    # said of samples and numbers that were read: of nothing that training changes
                    found = measure_snapshot(copy, context)
                    return found.record, found.detail
            except BaseException as error:  # noqa: BLE001 sorted and recorded by _failed
                return self._failed(step, error, context)

        return measured

    def _failed(self, step: int, error: BaseException, context: Context) -> tuple[Record, Detail]:
        reraise_foreign(error, strict=context.strict)
        _logger.error("sparsitywatch: the snapshot at step %d failed", step, exc_info=error)
        return failed_record(step, shown_error(error), context), Detail()
