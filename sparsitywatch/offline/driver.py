"""What an earlier replay has left in the log directory, and whether this one may go on from it."""

from __future__ import annotations

import copy
import dataclasses
import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from sparsitywatch.analysis.detect import Detector
from sparsitywatch.analysis.overlap import MASK_LEVELS, MaskHistory
from sparsitywatch.checkpoints.opening import open_checkpoint
from sparsitywatch.errors import (
    CheckpointError,
    ConfigurationError,
    MeasurementError,
    ScopeError,
    StateError,
)
from sparsitywatch.offline.jobs import (
    Listeners,
    Look,
    Orders,
    Plan,
    Task,
    in_order,
    sample,
    unpacked,
)
from sparsitywatch.offline.selection import Failure, Replayed, Selection, Wanted
from sparsitywatch.pipeline.measure import Measurement
from sparsitywatch.pipeline.pipeline import History, Pipeline
from sparsitywatch.pipeline.rundir import prepare
from sparsitywatch.records import Detail, Event, MaskOverlap, Record, RunInfo
from sparsitywatch.shown import shown_url
from sparsitywatch.sinks.jsonl import (
    read_events,
    read_manifest,
    read_records,
    read_spectrum,
)
from sparsitywatch.weights.motion import Motion
from sparsitywatch.weights.sample import removed
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

__all__ = ["Log", "Publisher", "Replayer", "check_same", "is_told", "mask_thresholds", "read_log"]


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
            [event for event in self.events if event.reported_step <= step],
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
    return not late.new and not late.revised


def mask_thresholds(directory: Path | None, step: int) -> list[float]:
    """Below which weights would have gone at a look; empty if its spectrum is not there."""
    if directory is None:
        return []
    try:
        spectrum = MagnitudeSpectrum.from_arrays(read_spectrum(directory, step))
    except StateError:
        return []
    return spectrum.thresholds(MASK_LEVELS)


class Publisher:
    """Adds to a record what needs the look before, and passes it on.

    Args:
        pipeline: detects, remembers, tells the sinks.
        orders: what was asked for.
        motion: compares the weights with those of the look before; None to leave that out.

    Attributes:
        last_step: of the latest record, -1 if there is none.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        orders: Orders,
        motion: Motion | None,
    ) -> None:
        self._pipeline, self._orders = pipeline, orders
        self._motion, self._masks = motion, MaskHistory()
        self._measurement: Measurement | None = None  # None until the sinks are open
        self._held: list[tuple[int, str]] = []  # what failed before
        self.last_step = -1

    def go_on(self, log: Log, plan: Plan) -> None:
        """Take up what is kept of an earlier replay, at least one record, and open the sinks.

        Args:
            log: what is kept.
            plan: of this replay; ``initial_rms`` are those of the log.
        """
        self._pipeline.recall(log.records, log.events)
        self.last_step = log.records[-1].step
        self._open(plan, log.records[-1].provenance.dtypes)

    def remember(
        self, step: int, sample: Mapping[str, torch.Tensor], mask_thresholds: Sequence[float]
    ) -> None:
        """Take up a look that is in the log, to compare the next one with.

        Args:
            step: of the look.
            sample: its sampled weights; empty if they are gone.
            mask_thresholds: below which a weight would have gone, at each of ``MASK_LEVELS``;
                empty if that is not known any more.
        """
        if self._motion is not None and sample:
            self._motion.compare(sample, step, None, {})
            self._compared_masks(step, sample, mask_thresholds)

    def take(self, step: int, look: Look, plan: Plan | None) -> None:
        """Pass on one look; steps rise from call to call.

        Args:
            step: optimizer steps done.
            look: at the checkpoint of that step.
            plan: of the look, if it has a record.
        """
        if look.record is None:
            self._held.append((step, look.reason))
        elif self._measurement is None and plan is not None:
            known = dataclasses.replace(plan, initial_rms=look.initial_rms)
            self._open(known, look.record.provenance.dtypes)
        if self._measurement is None:
            return  # without any weights seen nothing can be said of the run
        for failed_step, reason in self._held:
            self._publish(_failed(self._measurement, failed_step, reason), Detail())
        self._held.clear()
        if look.record is not None:
            self._publish(self._with_motion(look, look.record), look.detail)

    def close(self) -> None:
        """Finish the sinks."""
        if self._measurement is not None:
            self._pipeline.close()
            self._measurement = None

    def _open(self, plan: Plan, dtypes: tuple[str, ...]) -> None:
        proxy = None if plan.stage is None else plan.stage.proxy
        measurement = Measurement(plan.settings, plan.scope, plan.initial_rms, proxy, dtypes)
        if self._orders.directory is not None:
            prepare(self._orders.directory)
            self._pipeline.claim.take(over="none")
        info = RunInfo(
            initial_step=self.last_step,
            provenance=measurement.provenance,
            ledger=plan.scope.ledger,
            initial_rms=measurement.initial_rms,
            replayed_from=self._orders.replayed_from,
        )
        self._measurement = measurement  # from here on the sinks are to be closed
        self._pipeline.open(info)

    def _with_motion(self, look: Look, record: Record) -> Record:
        if self._motion is None:
            return record
        sample = unpacked(look.sample)
        moved = self._motion.compare(sample, record.step, None, {})
        layers = tuple(
            dataclasses.replace(layer, dormant=moved.layers.get(layer.name, math.nan))
            for layer in record.layers
        )
        return dataclasses.replace(
            record,
            dormant=moved.dormant,
            movement=moved.movement,
            masks=self._compared_masks(record.step, sample, look.mask_thresholds),
            layers=layers,
        )

    def _compared_masks(
        self, step: int, sample: Mapping[str, torch.Tensor], thresholds: Sequence[float]
    ) -> MaskOverlap | None:
        if not thresholds:
            return None
        num_sampled = sum(tensor.numel() for tensor in sample.values())
        return self._masks.look(step, removed(sample, thresholds), num_sampled)

    def _publish(self, record: Record, detail: Detail) -> None:
        cost = dataclasses.replace(record.cost, publish_s=self._pipeline.publish_s)
        record = self._pipeline.recognised(dataclasses.replace(record, cost=cost))
        self._pipeline.publish(record, detail)
        self.last_step = record.step


def _failed(measurement: Measurement, step: int, reason: str) -> Record:
    record = measurement.failed(step, MeasurementError(reason), time.perf_counter())
    return dataclasses.replace(record, reason=reason)


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
    """Looks at checkpoints by step, each step once.

    Args:
        orders: what was asked for.
        pipeline: what becomes of the records.
        detectors: those of the pipeline.
        listeners: who is told.
    """

    def __init__(
        self,
        orders: Orders,
        pipeline: Pipeline,
        detectors: Mapping[str, Detector],
        listeners: Listeners,
    ) -> None:
        self._orders, self._pipeline, self._detectors = orders, pipeline, detectors
        self._listeners = listeners
        motion = None if orders.num_samples == 0 else Motion(orders.num_samples)
        self._claim = pipeline.claim
        self._publisher = Publisher(pipeline, orders, motion)
        self._plan: Plan | None = None  # not before a checkpoint could be opened
        self._seen = _Seen()

    def is_done(self, step: int | None) -> bool:
        """Whether nothing is left to do about a step."""
        return step in self._seen.done

    @property
    def last_step(self) -> int:
        """The latest step that is done; -1 if there is none."""
        return max(self._seen.done, default=-1)

    def see(self, selection: Selection, *, is_final: bool = True) -> int:
        """Look at what has not been looked at.

        Args:
            selection: every checkpoint there is, also those of before.
            is_final: what is not complete fails; otherwise it is waited for: nothing of its
                step or a later one is looked at.

        Returns:
            How many more steps are done.
        """
        self._seen.left_out |= {one.url: one for one in selection.left_out}
        for failure in selection.unreadable if is_final else ():
            self._fail(failure)
        if self._plan is None:
            self._begin(selection.wanted)
        self._refuse_late(selection.wanted)
        done_before = len(self._seen.done)
        todo = [one for one in selection.wanted if one.step not in self._seen.done]
        for one, looked in self._looks(todo):
            if looked.is_incomplete and not is_final:
                break
            self._take(one, looked)
            for function in self._listeners.on_progress:
                function(len(self._seen.done), done_before + len(todo))
        return len(self._seen.done) - done_before

    def report_gone(self, gone: Sequence[Wanted]) -> None:
        """Tell of checkpoints that are not there any more, if they were not looked at."""
        for one in gone:
            if not self.is_done(one.step):
                reason = "it was removed before it could be looked at"
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
            directory=self._orders.directory,
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
        orders, scope = self._orders, self._scope(wanted)
        if scope is None:
            return
        if scope.note_on_reparametrized:
            _logger.warning("sparsitywatch: %s", scope.note_on_reparametrized)
        self._plan = Plan(
            settings=orders.settings,
            scope=scope,
            initial_rms=orders.initial_rms,
            storage_options=orders.storage_options,
            num_samples=orders.num_samples,
            stage=orders.stage,
            num_threads=None if orders.executor is None else 1,
            strict=orders.strict,
        )
        self._claim.take(over="none")  # nobody may write to what is read here
        log = read_log(orders.directory)
        if log.run is None:
            return
        check_same(log, self._plan)
        self._plan = replace(self._plan, initial_rms=log.run.initial_rms)
        kept = log.until(self._kept_until(log.records, wanted))
        if not kept.records:  # the very first one is new
            self._plan = replace(self._plan, initial_rms=orders.initial_rms)
            return
        self._seen.done |= {record.step for record in kept.records}
        is_whole = len(kept.records) == len(log.records)
        has_more = any(one.step > self.last_step for one in wanted)
        if is_whole and not has_more and is_told(kept, self._detectors):
            self._seen.logged = list(kept.records), list(kept.events)
            return
        self._remember(kept.records, wanted, self._plan)
        self._publisher.go_on(kept, self._plan)

    def _scope(self, wanted: Sequence[Wanted]) -> Scope | None:
        """Which weights count; None if no checkpoint can be opened that says so.

        Raises:
            ScopeError: of none that can be opened the scope selects any.
        """
        if isinstance(self._orders.scope, Scope):
            return self._orders.scope
        undecided: ScopeError | None = None
        for one in wanted:
            if one.reason:
                continue
            try:
                with open_checkpoint(one.url, self._orders.storage_options) as checkpoint:
                    return Scope.of_entries(checkpoint.entries(), self._orders.scope)
            except CheckpointError:
                continue  # its turn to be told comes
            except ScopeError as error:  # something else among the checkpoints, perhaps
                undecided = undecided or error
        if undecided is not None:
            raise undecided
        return None

    def _kept_until(self, records: Sequence[Record], wanted: Sequence[Wanted]) -> int:
        """The last step of the log that stays: a checkpoint before its end may be new.

        What is missing within the log, or could not be looked at then, is tried again. If it
        can be looked at now, all that follows is measured anew: motion and events depend on
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
            looked = self._look_at(one)
            if looked.record is not None and looked.record.valid:
                return max((step for step in logged if step < one.step), default=-1)
            self._fail(_failure(one, looked))
        return records[-1].step

    def _remember(self, records: Sequence[Record], wanted: Sequence[Wanted], plan: Plan) -> None:
        """Read the weights of the last look in the log again, to compare the next with."""
        seen = [record.step for record in records if record.num_nan >= 0]
        last = next((one for one in wanted if seen and one.step == seen[-1]), None)
        if last is None or last.reason or plan.num_samples == 0:
            _logger.info("sparsitywatch: the next record tells of no motion since the log ended")
            return
        taken = sample(Task(url=last.url, step=last.step, plan=plan))
        thresholds = mask_thresholds(self._orders.directory, last.step)
        self._publisher.remember(last.step, unpacked(taken), thresholds)

    # ------------------------------------------------------------------ looking

    def _looks(self, todo: Sequence[Wanted]) -> Iterator[tuple[Wanted, Look]]:
        waiting = deque(todo)
        # the first one sets what "initial" rules refer to: the others have to wait for it
        while waiting and (self._plan is None or self._plan.initial_rms is None):
            one = waiting.popleft()
            yield one, self._look_at(one)
        rest = list(waiting)
        tasks = (self._task(one) for one in rest)
        with _looking(self._orders) as (executor, window):
            yield from zip(rest, in_order(tasks, executor, window), strict=True)

    def _look_at(self, one: Wanted) -> Look:
        (looked,) = in_order([self._task(one)], self._orders.executor, 1)
        return looked

    def _task(self, one: Wanted) -> Task | Look:
        if one.reason or self._plan is None:
            reason = (
                one.reason or f"Cannot read {shown_url(one.url)}: it cannot be opened any more."
            )
            return Look(reason=reason, is_incomplete=one.is_incomplete)
        previous = self._pipeline.last_curve if self._orders.goes_on else None
        return Task(url=one.url, step=one.step, plan=self._plan, previous=previous)

    def _take(self, one: Wanted, looked: Look) -> None:
        if looked.record is None or not looked.record.valid:
            self._fail(_failure(one, looked))
        self._publisher.take(one.step, looked, self._plan)
        if looked.record is not None and self._plan is not None and not self._plan.initial_rms:
            self._plan = replace(self._plan, initial_rms=looked.initial_rms)
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


@contextmanager
def _looking(orders: Orders) -> Iterator[tuple[Executor | None, int]]:
    """Who looks, and at how many at once.

    Without a model the next checkpoint is read while what came of the one before is compared
    and written: that takes about as long.
    """
    if orders.executor is not None or orders.stage is not None:
        yield orders.executor, orders.window
        return
    with ThreadPoolExecutor(1, "sparsitywatch-replay") as one_ahead:
        yield one_ahead, 2


def _failure(one: Wanted, looked: Look) -> Failure:
    reason = looked.reason
    if looked.record is not None:
        reason = f"Cannot evaluate {shown_url(one.url)}: {' '.join(looked.record.reason.split())}"
    return Failure(one.url, one.step, reason)


def _too_late(one: Wanted) -> Failure:
    reason = (
        f"Left out {shown_url(one.url)}: expected checkpoints in the order of their steps, but "
        f"step {one.step} came after later ones had been looked at. Replay once more, while they "
        "are all there, to take it in."
    )
    return Failure(one.url, one.step, reason)
