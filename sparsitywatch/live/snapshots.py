"""Taking a snapshot of a model in training; what need not hold up the training runs behind it."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Hashable
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import nn

from sparsitywatch.errors import (
    MeasurementError,
    ProxyError,
    ScopeError,
    TrainingChangedError,
    reraise_foreign,
)
from sparsitywatch.evaluation.checks import check_proxy, seen_scope
from sparsitywatch.evaluation.masked import MaskedModel, expected_s
from sparsitywatch.evaluation.model_copy import version_of
from sparsitywatch.live.behind import Behind, Where
from sparsitywatch.live.schedule import OverheadBudget
from sparsitywatch.live.trace import OptimizerTrace
from sparsitywatch.pipeline.measure import (
    Examined,
    Measured,
    RunContext,
    Seen,
    Sweeps,
    compared,
    counted,
    measure_snapshot,
    not_measured,
    record_of,
)
from sparsitywatch.pipeline.pipeline import Pipeline
from sparsitywatch.proxy.proxy import Proxy
from sparsitywatch.ranks.reading import ShardedReader
from sparsitywatch.records import Began, Event, Record, RunInfo
from sparsitywatch.redact import logger, redacted_error
from sparsitywatch.settings import Settings
from sparsitywatch.threads import begun
from sparsitywatch.vital.after import WRITTEN, AfterStep, with_habits
from sparsitywatch.weights.clock import Clock, OptimizerReading
from sparsitywatch.weights.motion import MotionReading, MotionTracker
from sparsitywatch.weights.scope import ModelChangedError, Scope
from sparsitywatch.weights.sharded import Tensors, local_of
from sparsitywatch.weights.snapshot import Snapshot, WarmCopy
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

#: What writing a snapshot takes, and what else does not depend on the number of weights.
_WRITING_S = 0.02
#: What an evaluation costs at most, in units of the time until it failed at the attach.
_PASSES_AT_MOST = 16
#: So many weights of a tensor say whether somebody has written to it.
_MARKED = 64


def _some_bits(parameter: torch.Tensor) -> bytes:
    """A few weights, as they lie in memory; none on a device, which a step would wait for."""
    if not parameter.is_cpu:
        return b""
    flat = local_of(parameter).detach().reshape(-1)
    return flat[:: len(flat) // _MARKED + 1].contiguous().view(torch.uint8).numpy().tobytes()


def tried(
    proxy: Proxy, model: nn.Module, scope: Scope, settings: Settings
) -> tuple[str, np.ndarray | None, Scope]:
    """Why the proxy is not evaluated, or its values and the scope whose weights it uses."""
    if why := proxy.why_left_out(model):
        logger.warning("the proxy is not evaluated: %s.", why)
        return why, None, scope
    dense = proxy.apart(partial(check_proxy, proxy, model), model)
    see = partial(seen_scope, scope, settings.scope, model, proxy)
    return "", dense, proxy.apart(see, model)


def _every(of: weakref.ref[SnapshotTaker]) -> Tensors:
    """Every parameter that a taker reads."""
    taker = of()
    return {} if taker is None else taker.lookup()[1]


@dataclass(frozen=True)
class FinishedSnapshot:
    """A snapshot that has reached the sinks, and what it has taken from the training."""

    record: Record
    events: list[Event]
    evaluated: bool  # whether the proxy was
    front_s: float  # for which the training was held up
    behind_s: float  # processor time of the thread behind it, as if no core were free


#: What is read of optimizers and of all parameters; names of those that are stepped on.
_Stepped = tuple[OptimizerReading, Examined, frozenset[str]]
#: What a snapshot says, what the optimizer did, and what has moved.
_Outcome = tuple[Measured, OptimizerReading | None, MotionReading | None]


class SnapshotTaker:
    """Reads a model's weights, measures them, passes on what they say, and accounts for the time.

    Behind the training runs what needs neither the model nor the optimizer: the sinks, and, where
    nothing is evaluated, or that is done in a fork, all that is said about weights on the CPU, from
    a copy of them. Weights on a device are counted there. One is on its way at a time; the
    interpreter's end waits for it.
    """

    def __init__(
        self,
        model: MaskedModel,
        run: RunContext,
        reader: ShardedReader,
        pipeline: Pipeline,
        trace: OptimizerTrace,
        budget: OverheadBudget,
        evaluate: Where = "inline",
    ) -> None:
        self.run = run  # replaced where an earlier log is gone on from
        self.pipeline = pipeline
        self.trace = trace
        self.model = model
        self._reader = reader
        self._budget = budget
        self._marks: dict[str, tuple[Hashable, ...]] = {}  # what changes where weights are written
        self.after = AfterStep()
        self._used: tuple[int, ...] = ()  # ids of the parameters that were noted
        self._early: dict[int, _Stepped] = {}  # read right after a step, by its number
        self._finishes_in = 0  # the thread that finishes the latest one
        self.job: Future[FinishedSnapshot] | None = None  # on its way, or not collected yet
        self.is_on_cpu = False  # as of the latest read
        self.behind = Behind(evaluate, model, reader)
        # an evaluation begins when nothing is on its way, so it may restore from the same buffers
        self._copy = model.spare = WarmCopy()
        self.is_new = False  # whether the model has changed, and nothing is known of what it is now
        trace.lookup = partial(_every, weakref.ref(self))

    def begin(self, step: int | None, *, behind: bool) -> None:
        """Remember the weights that the run begins with, or a model that has changed.

        ``step`` is None to ask the optimizer.
        """
        was_new, self.is_new = self.is_new, False
        try:
            self._begin(step, behind=behind)
        except BaseException:
            self.is_new = was_new  # what is not known now is asked again
            raise

    def _begin(self, step: int | None, *, behind: bool) -> None:
        """Read what the weights are compared with later."""
        step = self.trace.steps_done if step is None else step
        with torch.no_grad():
            snapshot, reading, examined = self._read(step)
            examined(None)
            spectrum, mark = counted(snapshot, self._reader)[:2]
        rms, rules = spectrum.layer_rms(), self.run.settings.rules
        shares = spectrum.near_zero_by_rule(rules, rms)[1]
        near_zero = {rule: {name: own[rule] for name, own in shares.items()} for rule in rules}
        began = Began(step=step, near_zero=near_zero)
        self.run = replace(self.run, initial_rms=rms, began=began, fingerprint=mark)
        motion = self.trace.tracker
        if motion is not None:
            sample = self._reader.sample(motion.sampler, snapshot)
            motion.compare(step, sample, optimizer=reading)
        if behind and self.is_on_cpu:  # touches memory now, where it is nobody's time
            self._copy.take(snapshot)
        self.pipeline.renew(self.info(step))

    def info(self, initial_step: int) -> RunInfo:
        """What is said of the run once."""
        run = self.run
        return RunInfo(
            initial_step=initial_step,
            provenance=run.provenance,
            ledger=run.scope.ledger,
            initial_rms=run.initial_rms,
            began=run.began,
        )

    def price(self, snapshot: Snapshot, dense: np.ndarray | None) -> None:
        """Tell the budget what snapshots will take; ProxyError if one changes the training."""
        run, budget = self.run, self._budget
        if run.proxy is not None and not self.behind.untried:
            self.behind.rehearse(run.proxy, dense)
        if budget.max_overhead is None:
            return
        budget.weights.expect(self._rehearsed_s(snapshot) + _WRITING_S)
        if run.proxy is None or self.behind.untried:
            return
        spectrum = self._reader.counted(snapshot)[0]
        started = time.perf_counter()
        try:
            expect = partial(
                expected_s,
                self.model,
                run.proxy,
                spectrum,
                pattern=run.settings.pattern,
                sweep=run.settings.effective_sweep,
                allowed=run.allowed,
                dense=dense,
            )
            each_s = run.proxy.apart(expect, self.model.module, self.model)
        except TrainingChangedError as error:
            raise ProxyError(str(error)) from error
        except (MeasurementError, MemoryError, RuntimeError) as error:
            each_s = _PASSES_AT_MOST * (time.perf_counter() - started)
            words = (
                "an evaluation could not be tried at the attach: %s. It is tried again when it is "
                "due, and expected to take %.2g s at most."
            )
            logger.warning(words, redacted_error(error), each_s)
        budget.evaluations.expect(each_s * (1 + len(run.settings.controls)))
        self.behind.usual_s = budget.evaluations.price_s
        budget.inline_s = budget.evaluations.price_s if self.behind.is_safe() else 0.0

    def _rehearsed_s(self, snapshot: Snapshot) -> float:
        """Seconds for the weights of a snapshot and what moved since the one before, tried here."""
        motion, moving = self.trace.tracker, OptimizerReading()
        tried = None if motion is None else MotionTracker(motion.sampler.num_samples)
        took_s = 0.0
        for _ in range(2):  # the first one warms up, and is what the second is compared with
            started = time.perf_counter()
            with torch.no_grad():
                sampler = None if tried is None else tried.sampler
                found = measure_snapshot(snapshot, self.run, self._reader, sampler=sampler)
                if tried is not None:
                    compared(found, tried, moving, self.run)
            took_s = time.perf_counter() - started
            # weights that decay while nothing pushes them: of these there is most to say
            clock = Clock.of_step(1.0, 1e-6)
            moving = OptimizerReading(clocks=dict.fromkeys(self.run.scope.names, clock))
        return took_s

    def mark(self) -> bool:
        """Note the weights as they stand; returns whether anything has written to them since."""
        before = self._marks
        # who writes through ``data`` leaves no version, but other bits
        self._marks = {
            name: (id(one), version_of(one), one.data_ptr(), _some_bits(one))
            for name, one in self.lookup()[0].items()
        }
        return self._marks != before

    def note(self, *, is_read: bool) -> None:
        """Note the weights as a step has left them, and perhaps a snapshot has read them."""
        every = self.lookup()[1]
        self._used = tuple(map(id, every.values()))
        self.after.note(every, self.trace.sampled if is_read else {})

    def look(self, *, is_forward: bool) -> bool:
        """See what was written to the weights; False if a forward uses other parameters."""
        every = self.lookup()[1]
        if is_forward and self._used != tuple(map(id, every.values())):
            return False
        with torch.no_grad():
            self.after.look(every)
        return True

    def begin_late(self, step: int) -> None:
        """Read what the step has left but the weights: ``take`` reads these as they are by then."""
        with torch.no_grad():
            self._early = {step: self._read_training(step, self.lookup()[1])}

    def take(
        self,
        step: int,
        *,
        behind: bool = False,
        num_left_out: int = 0,
        not_evaluated: str = "",
        read_before: str = "",
    ) -> None:
        """Take a snapshot, ``behind`` the training as far as it can be; ``collect`` gives it."""
        now = self._budget.now
        began = now()
        proxy = self.run.proxy
        if proxy is not None and not not_evaluated:
            not_evaluated = self.behind.why_left_out(proxy)
        evaluates = proxy is not None and not not_evaluated
        outcome: _Outcome | None = None
        try:
            with torch.no_grad():
                model = self.model if evaluates else None
                measured, is_later = self._to_measure(step, model, not_evaluated, behind=behind)
                outcome = None if is_later else measured()
        except BaseException as error:  # noqa: BLE001 sorted by _failed
            outcome = self._failed(step, error, not_evaluated)
        released = self.behind.since_s = now()

        def finish() -> FinishedSnapshot:
            self._finishes_in, began_here = threading.get_ident(), time.thread_time()

            def front_s() -> float:
                return (released if behind else now()) - began

            def behind_s() -> float:
                return time.thread_time() - began_here if behind else 0.0

            try:
                with torch.no_grad():
                    said = outcome or measured()
            except BaseException as error:  # noqa: BLE001 sorted by _failed
                said = self._failed(step, error, not_evaluated)
            is_apart = step in self._budget.apart
            beside_s = -front_s() if is_apart else behind_s() + self.behind.lost_s
            record = record_of(
                *said,
                stall_s=front_s(),
                publish_s=self.pipeline.publish_s,
                overhead=self._budget.overhead(beside_s),
                num_left_out=num_left_out,
                num_evaluations_left_out=int(bool(not_evaluated)),
            )
            record = replace(record, read_before=read_before)
            record, events = self.pipeline.take(record, said[0].detail)
            return FinishedSnapshot(record, events, evaluates, front_s(), behind_s())

        if behind:
            self.job = begun(finish, "sparsitywatch")
        else:
            finished = finish()
            self.job = Future()
            self.job.set_result(finished)

    @property
    def is_busy(self) -> bool:
        """Whether a snapshot is still on its way behind the training."""
        return self.job is not None and not self.job.done()

    def collect(self, *, wait: bool = False) -> FinishedSnapshot | None:
        """A finished snapshot, once, if there is one; LogTakenError: another watch has the log."""
        job = self.job
        if job is None or not (wait or job.done()):
            return None
        try:
            finished = job.result()
        finally:
            if job.done():  # else a signal has interrupted the wait
                self.job = None
        beside_s, self.behind.is_on = finished.behind_s + self.behind.lost_s, False
        self._budget.charge(beside_s)
        seconds = finished.front_s + beside_s
        step = finished.record.step
        self._budget.attribute(seconds, evaluated=finished.evaluated, step=step)
        return finished

    def wait(self) -> None:
        """Wait for what is on its way, unless that is who asks; it is collected later."""
        job = self.job
        if job is not None and not job.done() and self._finishes_in != threading.get_ident():
            wait([job])

    def then(self, act: Callable[[], object]) -> None:
        """Act once what is on its way is done, where that is finished; or now."""
        if self.job is None:
            act()
        else:
            self.job.add_done_callback(lambda _: act())

    def lookup(self) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
        """The parameters in scope as they are now, by name, and every one."""
        model, is_alone = self.model.module, self._reader.ranks.is_alone
        try:
            return self._reader.lookup(model, self.run.scope, is_whole=is_alone)
        except ModelChangedError as error:
            if not is_alone:
                raise
            self._begin_anew(error)
        return self._reader.lookup(model, self.run.scope)

    def _begin_anew(self, error: ModelChangedError) -> None:
        """Take up a model that has changed; what is known of the one before says nothing of it."""
        self.wait()
        model, run, dense = self.model.module, self.run, None
        try:
            scope, self.behind.untried = Scope.of(model, run.settings.scope), ""
        except ScopeError as none:  # such as where all of it is reparametrized by now
            logger.warning("all matrices of the changed model are watched: %s", none)
            scope, self.behind.untried = Scope.of(model, "matrices"), ""
        if run.proxy is not None:
            try:
                self.behind.untried, dense, scope = tried(run.proxy, model, scope, run.settings)
            except ProxyError as failed:
                self.behind.untried = redacted_error(failed)
        if scope.hash == run.scope.hash:  # what has changed is out of scope
            self.run = replace(run, scope=scope)
            return
        logger.info("the model has changed: %s", error)
        self._early.clear()
        snapshot = Snapshot.of(model, scope, 0)
        self.run = replace(run, scope=scope, dtypes=snapshot.dtypes, initial_rms={})
        self.model.begin_anew(scope)
        self._copy = self.model.spare = WarmCopy()
        motion = MotionTracker.of(run.settings.dormant_samples)
        self.trace.begin_anew(dict(scope.sizes), motion)
        self.is_new = True
        try:
            self.price(snapshot, dense)
        except ProxyError as failed:
            self.behind.untried = redacted_error(failed)

    def _read(self, step: int) -> tuple[Snapshot, OptimizerReading, Examined]:
        """The weights, what optimizers have done, and what says what became of all parameters."""
        parameters, every = self.lookup()
        if self.is_new:
            self.begin(step, behind=False)
        snapshot = Snapshot.of_parameters(parameters, self.run.scope, step)
        self.is_on_cpu = all(t.device.type == "cpu" for t in snapshot.tensors.values())
        # what the next step changes is read now; before a copy leaves caches cold
        early = self._early.pop(step, None)
        reading, examined, trained = early or self._read_training(step, every)
        if habits := self.after.habits(trained):
            known = {**reading.not_measurable, **dict.fromkeys(habits, WRITTEN)}
            reading = replace(reading, not_measurable=known)

        def seen(spectrum: MagnitudeSpectrum | None) -> Seen:
            found = examined(spectrum)
            return found._replace(vital=with_habits(found.vital, habits))

        return snapshot, reading, seen

    def _read_training(self, step: int, every: Tensors) -> _Stepped:
        """What optimizers did, what says what became of all parameters, and who is trained."""
        training = self.trace.training(every)
        examined = self.trace.examine(step, every, training, strict=self.run.strict)
        trained = frozenset(() if training is None else training.trainers)
        return self.trace.reading(training), examined, trained

    def _to_measure(
        self, step: int, model: MaskedModel | None, not_evaluated: str, *, behind: bool
    ) -> tuple[Callable[[], _Outcome], bool]:
        """What says all about the model; whether it may be called later: of a copy made here."""
        snapshot, reading, examined = self._read(step)
        reader, motion = self._reader, self.trace.motion
        elsewhere: Callable[[], Sweeps] | None = None
        proxy = None if model is None else self.run.proxy
        is_later = behind and self.is_on_cpu and (proxy is None or self.behind.is_safe())
        live = snapshot
        if is_later:
            snapshot, reader = self._copy.take(snapshot), reader.behind
        if proxy is not None and (is_later or self.behind.is_apart(proxy)):
            # from here on the training may write to the weights again, if it does not wait
            elsewhere = self.behind.start(live, self.run, is_waited_for=not is_later)

        def measured() -> _Outcome:
            found = measure_snapshot(
                snapshot,
                self.run,
                reader,
                model=model,
                elsewhere=elsewhere,
                not_evaluated=not_evaluated,
                sampler=None if motion is None else motion.sampler,
                examined=examined,
            )
            moved = None if motion is None else compared(found, motion, reading, self.run)
            return found, reading, moved

        return measured, is_later

    def _failed(self, step: int, error: BaseException, not_evaluated: str) -> _Outcome:
        """An invalid snapshot that says why."""
        self.model.restore()  # done before, unless a signal came at that very moment
        reraise_foreign(error, strict=self.run.strict)
        logger.error("the snapshot at step %d failed", step, exc_info=error)
        return not_measured(step, redacted_error(error), self.run, not_evaluated), None, None
