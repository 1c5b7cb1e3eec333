"""The order of a replay: what is missing is looked at, by step, and passed on."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from sparsitywatch.checkpoints.opening import open_checkpoint
from sparsitywatch.errors import CheckpointError, ScopeError
from sparsitywatch.history import Detector
from sparsitywatch.pipeline import Pipeline
from sparsitywatch.records import Event, Record
from sparsitywatch.replayer.log import check_same, is_told, mask_thresholds, read_log
from sparsitywatch.replayer.look import Look, Plan, Task, sample, unpacked
from sparsitywatch.replayer.orders import Listeners, Orders
from sparsitywatch.replayer.publisher import Publisher
from sparsitywatch.replayer.result import Failure, Replayed
from sparsitywatch.replayer.selection import Selection, Wanted
from sparsitywatch.replayer.workers import in_order
from sparsitywatch.shown import shown_url
from sparsitywatch.weights.motion import Motion
from sparsitywatch.weights.scope import Scope

__all__ = ["Replayer"]

_logger = logging.getLogger("sparsitywatch")


@dataclass
class _Seen:
    """What came of a replay so far."""

    done: set[int] = field(default_factory=set)  # steps
    failures: dict[str, Failure] = field(default_factory=dict)
    left_out: dict[str, Failure] = field(default_factory=dict)
    num_looks: int = 0
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
            num_looks=self._seen.num_looks,
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
        self._seen.num_looks += 1

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
