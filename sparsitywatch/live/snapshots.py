"""Taking a snapshot of a model in training; what need not hold up the training runs behind it."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from sparsitywatch.errors import reraise_foreign
from sparsitywatch.live.schedule import OverheadBudget
from sparsitywatch.live.trace import OptimizerTrace
from sparsitywatch.pipeline.measure import (
    Measured,
    RankContext,
    RunContext,
    SnapshotContext,
    compared,
    measure_snapshot,
    not_measured,
    record_of,
)
from sparsitywatch.pipeline.parts import Examined
from sparsitywatch.pipeline.pipeline import Pipeline
from sparsitywatch.pruning.evaluation import MaskedModel
from sparsitywatch.records import Event, Record, Vital
from sparsitywatch.redact import redacted_error
from sparsitywatch.weights.clock import OptimizerReading
from sparsitywatch.weights.motion import MotionTracker, Moved
from sparsitywatch.weights.snapshot import Snapshot, WarmCopy
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

_logger = logging.getLogger("sparsitywatch")


@dataclass(frozen=True)
class FinishedSnapshot:
    """A snapshot that has reached the sinks, and what it has taken from the training."""

    record: Record
    events: list[Event]
    evaluated: bool  # whether the proxy was
    front_s: float  # for which the training was held up
    behind_s: float  # as of ``StallTimer``


#: What a snapshot says, what the optimizer did, and what has moved.
_Outcome = tuple[Measured, OptimizerReading | None, Moved | None]


class StallTimer:
    """What a snapshot takes from the training; made where it begins, in the training's thread."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now, self._started = now, now()
        self._num_threads = torch.get_num_threads()  # in another thread it may be another number
        self._released = math.nan
        self._began_behind = math.nan

    def release(self) -> None:
        """The training goes on; what is left is done behind it."""
        self._released = self._now()

    def begin_behind(self) -> None:
        """The part behind the training begins, in this thread."""
        self._began_behind = time.thread_time()

    @property
    def front_s(self) -> float:
        """How long the training was held up: until ``release``, or until now."""
        return (self._now() if math.isnan(self._released) else self._released) - self._started

    @property
    def behind_s(self) -> float:
        """Processor time behind the training, as if all its threads had lost it alike."""
        if math.isnan(self._began_behind):
            return 0.0
        return (time.thread_time() - self._began_behind) / self._num_threads


class SnapshotTaker:
    """Reads a model's weights, measures them, passes on what they say, and accounts for the time.

    Behind the training runs what needs neither the model nor the optimizer: the sinks, and
    all that is said about weights on the CPU, from a copy of them, where nothing is evaluated.
    An evaluation needs the model itself, and weights on a device are counted there: both hold
    up the training. One snapshot is on its way at a time; at the end of the interpreter it is
    still finished.
    """

    def __init__(
        self,
        model: MaskedModel,
        run: RunContext,
        rank: RankContext,
        pipeline: Pipeline,
        trace: OptimizerTrace,
        budget: OverheadBudget,
    ) -> None:
        self.run = run  # replaced where an earlier log is gone on from
        self._rank = rank
        self._model = model
        self._pipeline = pipeline
        self._trace = trace
        self._budget = budget
        self._pool: ThreadPoolExecutor | None = None
        self._job: Future[FinishedSnapshot] | None = None
        self._is_on_cpu = False  # as of the latest read
        # an evaluation begins when nothing is on its way, so it may restore from the same buffers
        self._copy = model.spare = WarmCopy()

    def begin(self, step: int, *, behind: bool) -> None:
        """Remember the weights of ``step``, so that the first snapshot can say what moved.

        With ``behind``, also touch the memory that they will be copied into, where it is nobody's
        time.
        """
        with torch.no_grad():
            snapshot, reading, every = self._read(step)
            self._examined(step, every)(None)
        motion = self._motion(reading)
        if motion is not None:
            sample = self._rank.reader.sample(motion.sampler, snapshot)
            motion.compare(step, sample, optimizer=reading)
        if behind and self._is_on_cpu:
            self._copy.take(snapshot)

    def take(
        self, step: int, *, behind: bool = False, num_left_out: int = 0, not_evaluated: str = ""
    ) -> None:
        """Take a snapshot, which ``collect`` gives; the one before must be collected.

        Args:
            step: optimizer steps done.
            behind: do here what must be done now, and the rest behind the training.
            num_left_out: snapshots before this one that were due and left out.
            not_evaluated: why the proxy is not evaluated; empty if it is.
        """
        timer = StallTimer(self._budget.now)
        evaluated = self.run.proxy is not None and not not_evaluated
        is_later = behind and self._is_on_cpu and not evaluated
        measured = self._read_and_measure(step, not_evaluated, later=is_later)

        def finish() -> FinishedSnapshot:
            if behind:
                timer.begin_behind()
            found, reading, moved = measured()
            record = record_of(
                found,
                reading,
                moved,
                stall_s=timer.front_s,
                publish_s=self._pipeline.publish_s,
                overhead=self._budget.overhead(timer.behind_s),
                num_left_out=num_left_out,
                num_evaluations_left_out=int(bool(not_evaluated)),
            )
            record, events = self._pipeline.take(record, found.detail)
            return FinishedSnapshot(record, events, evaluated, timer.front_s, timer.behind_s)

        if behind:
            timer.release()
            self._pool = self._pool or ThreadPoolExecutor(1, thread_name_prefix="sparsitywatch")
            self._job = self._pool.submit(finish)
        else:
            finished = finish()
            self._job = Future()
            self._job.set_result(finished)

    @property
    def is_busy(self) -> bool:
        """Whether a snapshot is still on its way behind the training."""
        return self._job is not None and not self._job.done()

    def collect(self, *, wait: bool = False) -> FinishedSnapshot | None:
        """A snapshot that has been finished, once; None if there is none.

        Args:
            wait: until the one that is on its way is finished.

        Raises:
            LogTakenError: another watch has taken the log over, so that it was dropped.
        """
        job = self._job
        if job is None or not (wait or job.done()):
            return None
        try:
            finished = job.result()
        finally:
            if job.done():  # else a signal has interrupted the wait
                self._job = None
        self._budget.charge(finished.behind_s)
        seconds = finished.front_s + finished.behind_s
        self._budget.attribute(seconds, evaluated=finished.evaluated)
        return finished

    def close(self) -> None:
        """End the thread; what is on its way is finished first."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
            self._pool = None

    def _read(self, step: int) -> tuple[Snapshot, OptimizerReading, Mapping[str, torch.Tensor]]:
        """The weights, what the optimizer did, and every parameter, in scope or not."""
        parameters, every = self._rank.reader.lookup(self._model.module, self.run.scope)
        snapshot = Snapshot.of_parameters(parameters, self.run.scope, step)
        self._is_on_cpu = all(t.device.type == "cpu" for t in snapshot.tensors.values())
        return snapshot, self._trace.reading(every), every

    def _examined(self, step: int, every: Mapping[str, torch.Tensor]) -> Examined:
        """What says what became of every parameter, in any thread, once.

        Read is here what the next step may change. What fails is told, and the rest is measured.
        """

        def failed(error: Exception) -> Examined:
            reraise_foreign(error, strict=self.run.strict)
            _logger.error("sparsitywatch: no vital signs at step %d", step, exc_info=error)
            return self._trace.examiner.failed(redacted_error(error))

        try:
            finish = self._trace.examine(step, every)
        except Exception as error:  # noqa: BLE001 sorted by failed
            return failed(error)

        def examined(spectrum: MagnitudeSpectrum | None) -> Vital | None:
            try:
                return finish(spectrum)
            except Exception as error:  # noqa: BLE001 sorted by failed
                return failed(error)(spectrum)

        return examined

    def _motion(self, reading: OptimizerReading) -> MotionTracker | None:
        """What compares the weights; nobody knows what moves them where no optimizer is seen."""
        return None if reading.clock is None else self._trace.motion

    def _read_and_measure(
        self, step: int, not_evaluated: str, *, later: bool
    ) -> Callable[[], _Outcome]:
        """What gives all about a snapshot: of the model here and now, or of a copy made here."""

        def failed(error: BaseException) -> _Outcome:
            self._model.restore()  # done before, unless a signal came at that very moment
            reraise_foreign(error, strict=self.run.strict)
            _logger.error("sparsitywatch: the snapshot at step %d failed", step, exc_info=error)
            return not_measured(step, redacted_error(error), self.run, not_evaluated), None, None

        def measured() -> _Outcome:
            try:
                with torch.no_grad():
                    found = measure_snapshot(snapshot, self.run, rank, at)
                    moved = None
                    if motion is not None:
                        moved = compared(found, motion, reading, self.run)
            except BaseException as error:  # noqa: BLE001 sorted by failed
                return failed(error)
            return found, reading, moved

        rank = self._rank
        try:
            with torch.no_grad():
                snapshot, reading, every = self._read(step)
                motion = self._motion(reading)
                at = SnapshotContext(
                    model=None if later else self._model,
                    not_evaluated=not_evaluated,
                    sampler=None if motion is None else motion.sampler,
                    # what the next step changes is read now; before a copy leaves caches cold
                    examined=self._examined(step, every),
                )
                if later:
                    snapshot, rank = self._copy.take(snapshot), rank.behind()
                    return measured
        except BaseException as error:  # noqa: BLE001 sorted by failed
            outcome = failed(error)
            return lambda: outcome
        outcome = measured()
        return lambda: outcome
