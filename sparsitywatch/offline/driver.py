"""The offline driver: what is missing in the log is measured, by step, and passed on."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sparsitywatch.analysis.detect import Detector
from sparsitywatch.analysis.run import Run
from sparsitywatch.errors import ConfigurationError, ScopeError, StateError
from sparsitywatch.offline.jobs import Job, JobResult, Listeners, in_order, sample_of
from sparsitywatch.offline.rates import Rates
from sparsitywatch.offline.selection import Failure, Replayed, Selection, Wanted
from sparsitywatch.pipeline.measure import Context, Measured, failed_record, with_motion
from sparsitywatch.pipeline.pipeline import History, Pipeline
from sparsitywatch.pipeline.rundir import prepare
from sparsitywatch.records import Detail, Event, Record, RunInfo
from sparsitywatch.shown import shown_url
from sparsitywatch.sinks.jsonl import (
    read_events,
    read_manifest,
    read_records,
    read_spectrum,
)
from sparsitywatch.vital import VitalReviewer
from sparsitywatch.weights.clock import OptimizerReading
from sparsitywatch.weights.motion import MASK_LEVELS, MotionTracker
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

if TYPE_CHECKING:
    import torch

__all__ = ["Publisher", "Replayer", "check_same", "mask_thresholds", "read_log"]


def read_log(directory: Path | None) -> Run | None:
    """What an earlier replay has left in ``directory``; None if there is no record in it.

    Raises:
        ConfigurationError: it is the log of a live watch.
        StateError: it is damaged.
    """
    if directory is None:
        return None
    info, records = read_manifest(directory), read_records(directory)
    is_live = not info.replayed_from if info is not None else bool(records)
    if is_live:
        raise ConfigurationError(
            f"Expected `logdir` to be new or of an earlier replay, but {str(directory)!r} holds "
            "the log of a live watch. Give another one."
        )
    return Run(records, read_events(directory), info) if info is not None and records else None


def _until(log: Run, step: int) -> Run:
    """The part of a log up to a step."""
    return Run(
        [record for record in log.records if record.step <= step],
        [event for event in log.events if event.reported_step <= step],
        log.info,
    )


def check_same(log: Run, job: Job) -> None:
    """Refuse to go on with other settings than those of the log.

    Raises:
        ConfigurationError: they differ; says in what.
    """
    assert log.info is not None  # noqa: S101 for the type checker
    then, now = log.info.provenance.settings(), job.context.provenance.settings()
    pairs = {name: (then[name], value) for name, value in now.items()}
    rules = job.settings.near_zero
    logged = next((tuple(r.near_zero) for r in log.records if r.near_zero), rules)
    pairs["near_zero"] = (sorted(logged), sorted(rules))
    wrong = [f"{name} {then!r}, now {now!r}" for name, (then, now) in pairs.items() if then != now]
    if job.initial_rms is not None and dict(job.initial_rms) != dict(log.info.initial_rms):
        wrong.append("another initial_rms")
    if wrong:
        raise ConfigurationError(
            "Expected `logdir` to be new or of a replay with the same settings, but it was written "
            f"with {'; '.join(wrong)}. Give another one."
        )


def check_same_rates(log: Run, rates: Rates) -> None:
    """Refuse to go on with another schedule than that of the log.

    Raises:
        ConfigurationError: the clocks of its last record that was read are others.
    """
    last = next((record for record in reversed(log.records) if record.was_read), None)
    if last is None:
        return
    now = rates.reading(last.step, ()) if rates.is_known else None
    for name in ("decay_clock", "lr_clock"):
        then, known = getattr(last, name), math.nan if now is None else getattr(now, name)
        if name == "lr_clock" and rates.logged is not None and math.isnan(then):
            continue  # it was logged for the first time since, or an earlier version did not look
        if not math.isclose(then, known, rel_tol=1e-6) and not math.isnan(then) & math.isnan(known):
            raise ConfigurationError(
                "Expected `logdir` to be new or of a replay with the same `lr` and "
                f"`weight_decay`, but its {name} at step {last.step} is {then:g}, now {known:g}. "
                "Give another one."
            )


def _has_all_events(log: Run, detectors: Mapping[str, Detector]) -> bool:
    """Whether the log holds every event that its records do.

    A kill between a record and its events leaves it otherwise.
    """
    assert log.info is not None  # noqa: S101 for the type checker
    history = History(copy.deepcopy(dict(detectors)), (VitalReviewer(),))
    history.initial_rms = dict(log.info.initial_rms)
    history.restore(log.records, log.events)
    late = history.finish_restore()
    return not late.new and not late.revised


def mask_thresholds(directory: Path | None, step: int) -> list[float]:
    """Below which weights would have gone at a step; empty if its spectrum is not there."""
    if directory is None:
        return []
    try:
        spectrum = MagnitudeSpectrum.from_arrays(read_spectrum(directory, step))
    except StateError:
        return []
    return spectrum.thresholds(MASK_LEVELS)


def reading_of(
    rates: Rates, step: int, sample: Mapping[str, torch.Tensor]
) -> OptimizerReading | None:
    """What the optimizer had done at a checkpoint, if all of it is known; else None.

    Weights of 16 bits are taken for rounded copies: files do not tell.
    """
    if not (rates.is_known and rates.knows_decay):
        return None
    masters = frozenset(name for name, tensor in sample.items() if tensor.dtype.itemsize < 4)
    return replace(rates.reading(step, sample), masters=masters)


def with_rates(measured: Measured, context: Context, rates: Rates) -> Record:
    """The record with what the optimizer did, as far as it is known, and with what has moved."""
    step = measured.record.step
    reading = reading_of(rates, step, measured.sample)
    record = with_motion(measured, replace(context, optimizer=reading))
    if rates.is_known and reading is None:
        known = rates.reading(step, ())
        record = replace(record, lr=known.lr, lr_clock=known.lr_clock)
    return record


class Publisher:
    """Adds to a record what needs the snapshot before, and passes it on.

    Args:
        pipeline: detects, remembers, writes.
        motion: compares the weights with those of the snapshot before; None to leave that out.
        replayed_from: where the checkpoints lie, as asked for.
        rates: what the optimizer did, as far as it is known.

    Attributes:
        last_step: of the latest record, -1 if there is none.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        motion: MotionTracker | None,
        replayed_from: tuple[str, ...],
        rates: Rates,
    ) -> None:
        self._pipeline, self._motion, self._rates = pipeline, motion, rates
        self._replayed_from = replayed_from
        self._context: Context | None = None  # None until the sinks are open
        self._held: list[tuple[int, str]] = []  # what failed before
        self.last_step = -1

    def go_on(self, log: Run, job: Job) -> None:
        """Take up what is kept of an earlier replay, at least one record, and open the sinks.

        Args:
            log: what is kept.
            job: of this replay; ``initial_rms`` are those of the log.
        """
        self._pipeline.restore(log.records, log.events)
        self.last_step = log.records[-1].step
        self._open(job, log.records[-1].provenance.dtypes)

    def take(self, step: int, result: JobResult, job: Job | None) -> None:
        """Pass on one result; steps rise from call to call.

        Args:
            step: optimizer steps done.
            result: of the checkpoint of that step.
            job: as which it was measured, if it has a record.
        """
        measured = result.measured
        if measured is None:
            self._held.append((step, result.reason))
        elif self._context is None and job is not None:
            known = replace(job, initial_rms=measured.initial_rms)
            self._open(known, measured.record.provenance.dtypes)
        if self._context is None:
            return  # without any weights seen nothing can be said of the run
        for failed_step, reason in self._held:
            self._publish(failed_record(failed_step, reason, self._context), Detail())
        self._held.clear()
        if measured is not None:
            self._publish(with_rates(measured, self._context, self._rates), measured.detail)

    def close(self) -> None:
        """Finish the sinks."""
        if self._context is not None:
            self._pipeline.close()
            self._context = None

    def _open(self, job: Job, dtypes: tuple[str, ...]) -> None:
        context = replace(job.context, dtypes=dtypes, motion=self._motion)
        if self._pipeline.claim.directory is not None:
            prepare(self._pipeline.claim.directory)
            self._pipeline.claim.acquire(over="none")
        info = RunInfo(
            initial_step=self.last_step,
            provenance=context.provenance,
            ledger=context.scope.ledger,
            initial_rms=context.initial_rms,
            replayed_from=self._replayed_from,
        )
        self._context = context  # from here on the sinks are to be closed
        self._pipeline.open(info)

    def _publish(self, record: Record, detail: Detail) -> None:
        cost = replace(record.cost, publish_s=self._pipeline.publish_s)
        self._pipeline.publish(replace(record, cost=cost), detail)
        self.last_step = record.step


_logger = logging.getLogger("sparsitywatch")


@dataclass
class _Seen:
    """What came of a replay so far."""

    done: set[int] = field(default_factory=set)  # steps
    failures: dict[str, Failure] = field(default_factory=dict)
    left_out: dict[str, Failure] = field(default_factory=dict)
    num_snapshots: int = 0
    logged: tuple[list[Record], list[Event]] = ([], [])  # where nothing had to be added


class Replayer:
    """Measures checkpoints by step, each step once.

    Args:
        template: a job without a checkpoint, and without a scope unless a model has decided it.
        pipeline: what becomes of the records.
        detectors: those of the pipeline.
        listeners: who is called.
        executor: None to measure in this thread.
        window: jobs under way at once, at most.
        replayed_from: where the checkpoints lie, as asked for.
        rates: what the optimizer did, as far as it is known.
    """

    def __init__(
        self,
        template: Job,
        pipeline: Pipeline,
        detectors: Mapping[str, Detector],
        listeners: Listeners,
        *,
        executor: Executor | None,
        window: int,
        replayed_from: tuple[str, ...],
        rates: Rates,
    ) -> None:
        self._template = template
        self._pipeline, self._detectors, self._listeners = pipeline, detectors, listeners
        self._executor, self._window = executor, window
        self._claim = pipeline.claim
        self._motion = MotionTracker.of(template.settings.dormant_samples)
        self._rates = rates
        self._publisher = Publisher(pipeline, self._motion, replayed_from, rates)
        self._job: Job | None = None  # not before a checkpoint could be opened
        self._seen = _Seen()

    def is_done(self, step: int | None) -> bool:
        """Whether nothing is left to do about a step."""
        return step in self._seen.done

    @property
    def last_step(self) -> int:
        """The latest step that is done; -1 if there is none."""
        return max(self._seen.done, default=-1)

    def see(self, selection: Selection, *, is_final: bool = True) -> int:
        """Measure what has not been measured.

        Args:
            selection: every checkpoint there is, also those of before.
            is_final: what is not complete fails; otherwise it is waited for: nothing of its
                step or a later one is measured.

        Returns:
            How many more steps are done.
        """
        self._seen.left_out |= {one.url: one for one in selection.left_out}
        for failure in selection.unreadable if is_final else ():
            self._fail(failure)
        if self._job is None:
            self._begin(selection.wanted)
        self._refuse_late(selection.wanted)
        done_before = len(self._seen.done)
        todo = [one for one in selection.wanted if one.step not in self._seen.done]
        for one, result in self._results(todo):
            if result.is_incomplete and not is_final:
                break
            self._take(one, result)
            for function in self._listeners.on_progress:
                function(len(self._seen.done), done_before + len(todo))
        return len(self._seen.done) - done_before

    def report_gone(self, gone: Sequence[Wanted]) -> None:
        """Tell of checkpoints that are not there any more, if they were not measured."""
        for one in gone:
            if not self.is_done(one.step):
                reason = "it was removed before it could be read"
                reason = f"Cannot read {shown_url(one.url)}: {reason}."
                self._fail(Failure(one.url, one.step, reason))

    def result(self) -> Replayed:
        """What has been seen so far."""
        records, events = self._seen.logged
        return Replayed(
            records=list(self._pipeline.records) or records,
            events=list(self._pipeline.events) or events,
            failures=list(self._seen.failures.values()),
            left_out=list(self._seen.left_out.values()),
            num_snapshots=self._seen.num_snapshots,
            directory=self._claim.directory,
        )

    def close(self) -> None:
        """Finish the log."""
        try:
            self._publisher.close()
        finally:
            self._claim.release()

    # ------------------------------------------------------------------ beginning

    def _begin(self, wanted: Sequence[Wanted]) -> None:
        """Decide which weights count, and go on from what is in the log."""
        scope = self._template.scope or self._scope(wanted)
        if scope is None:
            return
        if scope.note_on_reparametrized:
            _logger.warning("sparsitywatch: %s", scope.note_on_reparametrized)
        self._job = replace(self._template, scope=scope)
        self._claim.acquire(over="none")  # nobody may write to what is read here
        log = read_log(self._claim.directory)
        if log is None or log.info is None:
            return
        check_same(log, self._job)
        check_same_rates(log, self._rates)
        self._job = replace(self._job, initial_rms=log.info.initial_rms)
        kept = _until(log, self._kept_until(log.records, wanted))
        if not kept.records:  # the very first one is new
            self._job = replace(self._job, initial_rms=self._template.initial_rms)
            return
        self._seen.done |= {record.step for record in kept.records}
        is_whole = len(kept.records) == len(log.records)
        has_more = any(one.step > self.last_step for one in wanted)
        if is_whole and not has_more and _has_all_events(kept, self._detectors):
            self._seen.logged = list(kept.records), list(kept.events)
            return
        self._remember(kept.records, wanted, self._job)
        self._publisher.go_on(kept, self._job)

    def _scope(self, wanted: Sequence[Wanted]) -> Scope | None:
        """Which weights count; None if no checkpoint can be opened that says so.

        Raises:
            ScopeError: of none that can be opened the scope selects any.
        """
        undecided = None
        for one in wanted:
            if one.reason:
                continue
            try:
                return Scope.of_entries(one.entries, self._template.settings.scope)
            except ScopeError as error:  # something else among the checkpoints, perhaps
                undecided = undecided or error
        if undecided is not None:
            raise undecided
        return None

    def _kept_until(self, records: Sequence[Record], wanted: Sequence[Wanted]) -> int:
        """The last step of the log that stays: a checkpoint before its end may be new.

        What is missing within the log, or could not be read then, is tried again. If it
        can be read now, all that follows is measured anew: motion and events depend on
        what came before.
        """
        logged = {record.step: record for record in records}
        readable = {one.step for one in wanted if not one.reason}
        for one in wanted:
            known = logged.get(one.step)
            if one.step > records[-1].step or (known is not None and known.valid):
                continue
            later = [r.step for r in records if r.step > one.step and r.valid]
            if not set(later) <= readable:
                self._fail(_too_late(one))
                continue
            (result,) = in_order([self._job_of(one)], self._executor, lambda: 1)
            if result.measured is not None and result.measured.record.valid:
                return max((step for step in logged if step < one.step), default=-1)
            self._fail(_failure(one, result))
        return records[-1].step

    def _remember(self, records: Sequence[Record], wanted: Sequence[Wanted], job: Job) -> None:
        """Read the weights of the last record in the log again, to compare the next with."""
        seen = [record.step for record in records if record.was_read]
        last = next((one for one in wanted if seen and one.step == seen[-1]), None)
        if last is None or last.reason or self._motion is None:
            _logger.info(
                "sparsitywatch: the next record says nothing of motion since the log ended"
            )
            return
        sample = sample_of(replace(job, url=last.url, step=last.step))
        if sample:
            thresholds = mask_thresholds(self._claim.directory, last.step)
            reading = reading_of(self._rates, last.step, sample)
            self._motion.compare(last.step, sample, thresholds, reading)

    # ------------------------------------------------------------------ measuring

    def _results(self, todo: Sequence[Wanted]) -> Iterator[tuple[Wanted, JobResult]]:
        def window() -> int:
            # the first one sets what "initial" rules refer to: the others have to wait for it
            is_first = self._job is None or self._job.initial_rms is None
            return 1 if is_first else at_once

        with self._workers() as (executor, at_once):
            results = in_order(map(self._job_of, todo), executor, window)
            yield from zip(todo, results, strict=True)

    def _job_of(self, one: Wanted) -> Job | JobResult:
        if one.reason or self._job is None:
            reason = (
                one.reason or f"Cannot read {shown_url(one.url)}: it cannot be opened any more."
            )
            return JobResult(reason=reason, is_incomplete=one.is_incomplete)
        return replace(self._job, url=one.url, step=one.step)

    @contextmanager
    def _workers(self) -> Iterator[tuple[Executor | None, int]]:
        """Who measures, and how many at once.

        Without a model the next checkpoint is read while what came of the one before is compared
        and written: that takes about as long.
        """
        if self._executor is not None or self._template.factory is not None:
            yield self._executor, self._window
            return
        with ThreadPoolExecutor(1, "sparsitywatch-replay") as one_ahead:
            yield one_ahead, 2

    def _take(self, one: Wanted, result: JobResult) -> None:
        measured = result.measured
        if measured is None or not measured.record.valid:
            self._fail(_failure(one, result))
        self._publisher.take(one.step, result, self._job)
        if measured is not None and self._job is not None and not self._job.initial_rms:
            self._job = replace(self._job, initial_rms=measured.initial_rms)
        self._seen.done.add(one.step)
        self._seen.num_snapshots += 1

    # ------------------------------------------------------------------ failing

    def _refuse_late(self, wanted: Sequence[Wanted]) -> None:
        last_step = self.last_step
        for one in wanted:
            is_late = one.step < last_step and one.step not in self._seen.done
            if is_late:
                self._fail(_too_late(one) if not one.reason else one.failure)
                self._seen.done.add(one.step)

    def _fail(self, failure: Failure) -> None:
        if failure.url in self._seen.failures:
            return
        self._seen.failures[failure.url] = failure
        _logger.warning("sparsitywatch: %s", failure.reason)
        for function in self._listeners.on_failure:
            function(failure)


def _failure(one: Wanted, result: JobResult) -> Failure:
    reason = result.reason
    if result.measured is not None:
        cause = " ".join(result.measured.record.reason.split())
        reason = f"Cannot evaluate {shown_url(one.url)}: {cause}"
    return Failure(one.url, one.step, reason)


def _too_late(one: Wanted) -> Failure:
    reason = (
        f"Left out {shown_url(one.url)}: expected checkpoints in the order of their steps, but "
        f"step {one.step} came after later ones had been measured. Replay once more, while they "
        "are all there, to take it in."
    )
    return Failure(one.url, one.step, reason)
