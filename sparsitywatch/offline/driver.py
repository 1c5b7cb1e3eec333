"""The offline driver: what is missing in the log is measured, by step, and passed on."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sparsitywatch.analysis.run import Run
from sparsitywatch.checkpoints.addresses import part_of, templates
from sparsitywatch.checkpoints.base import beyond
from sparsitywatch.checkpoints.discovery import discover
from sparsitywatch.checkpoints.formats import learning_rates
from sparsitywatch.checkpoints.series import (
    Listed,
    ListedCheckpoint,
    Pending,
    as_steps,
    expect_one_series,
    select,
)
from sparsitywatch.checkpoints.storage import NoAccessError, Url
from sparsitywatch.errors import (
    CheckpointError,
    ConfigurationError,
    IncompleteCheckpointError,
    ScopeError,
    StateError,
    expect,
    expect_number,
)
from sparsitywatch.offline.jobs import Outcome, Plan, mark_at, measure, sample_of
from sparsitywatch.offline.rates import Rates
from sparsitywatch.pipeline.measure import Measured, RunContext, compared, not_measured, record_of
from sparsitywatch.pipeline.pipeline import Pipeline
from sparsitywatch.pipeline.rundir import prepare
from sparsitywatch.records import Detail, Event, Record, RunInfo, Source, html_of
from sparsitywatch.records.event import some_of
from sparsitywatch.redact import logger, printable, redacted_url
from sparsitywatch.series import numbered
from sparsitywatch.sinks.jsonl import (
    JsonlReader,
    read_events,
    read_manifest,
    read_records,
    read_spectrum,
)
from sparsitywatch.weights.motion import MASK_LEVELS, MotionTracker
from sparsitywatch.weights.scope import Scope, ScopeLike
from sparsitywatch.weights.spectrum import MagnitudeSpectrum


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What a replay saw."""

    #: By step, those of earlier replays into the same log directory included; layers are kept for
    #: the latest hundred only, the log has them all.
    records: list[Record]
    events: list[Event]  # in the order in which they were seen
    #: What could not be measured, or not in full, with the ``url`` that opens it, logins and
    #: signatures included, and the ``reason``. With a step it has an invalid record, too.
    failures: list[ListedCheckpoint]
    #: What was passed over on purpose, and why: another one of the same step was taken, or no step
    #: is known.
    left_out: list[ListedCheckpoint]
    num_snapshots: int  # checkpoints that were measured now; the others were in the log already
    directory: Path | None  # where the log lies
    #: Worth a word of what was measured, such as a name that says another step than the contents.
    notes: list[str] = field(default_factory=list)
    #: Where the log now is that lay in ``directory`` and holds other weights under the same
    #: addresses or steps, and why; empty if there was none.
    set_aside: str = ""
    #: With ``each=True`` what was seen of each series, by the name of its log in ``directory``; the
    #: records and events are there, the rest is of all of them.
    each: Mapping[str, Replayed] = field(default_factory=dict)

    def __repr__(self) -> str:
        steps = f" of {len(self.each)} series" if self.each else ""
        if self.records:
            first, last = self.records[0], self.records[-1]
            steps = f" of {first.provenance.unit}s {first.step} to {last.step}"
        return (
            f"<Replayed {len(self.records)} records{steps}, {len(self.events)} events, "
            f"{len(self.failures)} failures>"
        )

    def _repr_html_(self) -> str:
        return html_of(repr(self)[1:-1], self.records, self.events)


@dataclass(kw_only=True)
class Replayer:
    """Measures checkpoints by step, each step once, and passes on what they say."""

    plan: Plan  # without a scope until a model or a checkpoint has decided it
    pipeline: Pipeline
    urls: Sequence[Url] | Mapping[int, Url]
    rates: Rates  # learns what a Trainer has logged
    executor: Executor | None  # None to measure in this process
    window: int  # checkpoints under way at once, at most
    steps_per_epoch: int | None  # where checkpoints are numbered by epochs
    on_failure: Sequence[Callable[[ListedCheckpoint], object]]
    on_progress: Sequence[Callable[[int, int], object]]  # how many are done, and of how many
    on_waiting: Sequence[Callable[[str], object]]  # why nothing can be listed yet
    listed: Listed | None = None  # what is there; None to look under the URLs

    def __post_init__(self) -> None:
        self._motion = MotionTracker.of(self.plan.settings.dormant_samples)
        self._has_begun = False  # not before a checkpoint could be opened
        self._last_kept: Record | None = None  # of what stays of the log of an earlier replay
        self._run: RunContext | None = None  # not before the sinks are open
        self._known: dict[str, ListedCheckpoint] = {}  # by URL, as of the last listing
        self._held: list[tuple[int, ListedCheckpoint, Outcome]] = []  # what failed before
        self._first: tuple[ListedCheckpoint, Scope] | None = None  # what others are compared with
        self._by_names: ScopeLike = ""  # how that is decided
        self._unlike_log = ""  # why the log that is there is not gone on with
        self._set_aside = ""
        self._done: set[int] = set()  # steps
        self._failures: dict[str, ListedCheckpoint] = {}
        self._left_out: dict[str, ListedCheckpoint] = {}
        self._num_snapshots = 0
        self._measured_urls: set[str] = set()
        self._waited_for: set[str] = set()  # reasons why nothing could be listed
        self._notes: dict[str, str] = {}  # what was said of checkpoints, by URL

    def run(self, patience: Patience | None) -> Replayed:
        """Measure what is there; with patience also what comes."""
        try:
            if patience is None:
                self._see(self._list())
            else:
                self._follow(patience)
            history = self.pipeline.history
            if words := [*history.last_words(), *history.close()]:
                if self._run is None:
                    self._open()
                self.pipeline.tell(words)
        finally:
            self._close()
        return Replayed(
            records=list(self.pipeline.records),
            events=list(self.pipeline.events),
            failures=list(self._failures.values()),
            left_out=list(self._left_out.values()),
            num_snapshots=self._num_snapshots,
            directory=self.pipeline.claim.directory,
            notes=list(self._notes.values()),
            set_aside=self._set_aside,
        )

    def _list(self, *, is_final: bool = True) -> Pending:
        """What to measure, by step; what is done is neither listed nor opened again each time."""
        options = self.plan.storage_options
        num = self.steps_per_epoch
        known = {u: one for u, one in self._known.items() if as_steps(one, num).step in self._done}
        found = self.listed
        if found is None:
            found = self._of_one_run(discover(self.urls, options, known, self.plan.key))
        self._known.update({one.url: one for one in found})
        listed = [as_steps(one, num) for one in found]
        self._say(listed)
        complete = [one for one in listed if one.state == "complete" and one.step is not None]
        # its latest checkpoint has all of them
        if self.rates.is_logged and complete and (complete[-1].step or 0) > self.rates.last_logged:
            url = complete[-1].url
            self.rates.learn(learning_rates(url, options), redacted_url(url))
        pending, others = select(listed)
        for one in others:
            if one.error is None:
                self._left_out[one.url] = one
            elif is_final:
                self._fail(one, one.reason)
        return pending

    def _say(self, listed: Listed) -> None:
        """What is worth a word of complete checkpoints; what their numbers cannot be used for."""
        for one in listed:
            if one.note and one.url not in self._notes:
                self._notes[one.url] = one.note
                logger.warning("%s", printable(one.note))
        unit = next((one.unit for one in listed if one.unit != "step"), "step")
        self.plan = replace(self.plan, unit=unit)
        if unit != "step" and (self.rates.knows_decay or not self.rates.is_logged):
            what_to_do = "Give `steps_per_epoch` (`--steps-per-epoch`) as well"
            if unit == "save":
                what_to_do = "Give each its step: `--steps` (sw.replay({0: url, ...}))"
            raise ConfigurationError(
                "Expected optimizer steps beside `lr` and `weight_decay`, but the numbers of these "
                f"checkpoints count {unit}s. {what_to_do}."
            )

    def _of_one_run(self, listed: Listed) -> Listed:
        """What is listed, without what came of another run since this one was begun."""
        own = next((one.series for one in listed if one.url in self._measured_urls), None)
        if own is None:
            expect_one_series(listed)
            return listed
        for one in listed:
            if one.step is not None and one.state == "complete" and one.series != own:
                words = f"expected an address such as {redacted_url(own)}. It is of another run"
                self._fail(one, f"Left out {one.shown}: {words}.")
        return [one for one in listed if one.series == own or one.url not in self._failures]

    def _see(self, pending: Pending, *, is_final: bool = True) -> int:
        """Measure what has not been measured, up to what is waited for; how many more are done."""
        if not self._has_begun:
            self._begin(pending, is_final=is_final)
        self._refuse_late(pending)
        num_before = len(self._done)
        todo = {step: one for step, one in pending.items() if step not in self._done}
        for step, outcome in self._measured(todo):
            if isinstance(outcome, IncompleteCheckpointError) and not is_final:
                break
            self._take(step, todo[step], outcome)
            for function in self.on_progress:
                function(len(self._done), num_before + len(todo))
        return len(self._done) - num_before

    def _follow(self, patience: Patience) -> None:
        """Measure each once it is there, until it is time to end; what is unfinished fails then."""
        before: Pending = {}
        latest_news = patience.clock()
        try:
            while True:
                # asked before listing: what is there when it says so is still measured
                is_over = patience.until is not None and patience.until()
                pending = self._list_or_wait(is_final=False)
                if pending is not None:
                    self._report_gone(before, pending)
                    before = pending
                    if self._see(patience.settled(pending), is_final=False):
                        latest_news = patience.clock()
                idle_s = patience.clock() - latest_news
                if is_over or idle_s >= (patience.idle_timeout_s or math.inf):
                    break
                patience.sleep(patience.poll_s)
            pending = self._list_or_wait(is_final=True)
            if pending is not None:
                self._see(pending)
        except KeyboardInterrupt:
            logger.info("interrupted; following ends")

    def _list_or_wait(self, *, is_final: bool) -> Pending | None:
        """What to measure; None while the place is still to come, or out of reach for a while."""
        try:
            return self._list(is_final=is_final)
        except NoAccessError:
            raise  # it would be waited for without end
        except CheckpointError as error:
            reason = str(error)
            if reason not in self._waited_for:
                self._waited_for.add(reason)
                logger.warning("waiting: %s", reason)
                for function in self.on_waiting:
                    function(reason)
            return None

    def _close(self) -> None:
        """Finish the log."""
        try:
            late = self.pipeline.history.late
            if self._last_kept and self._run is None and (late.new or late.revised):
                self._open()
            if self._run is not None:
                self.pipeline.close()
        finally:
            self.pipeline.claim.release()

    # ------------------------------------------------------------------ beginning

    def _begin(self, pending: Pending, *, is_final: bool) -> None:
        """Decide which weights count, and what stays of the log."""
        own = self.plan.scope  # of the model, if there is one
        self._by_names = "matrices" if own else self.plan.settings.scope
        self._first = _first_with_scope(pending, self._by_names, is_needed=own is None)
        scope = own or (self._first[1] if self._first else None)
        if scope is None:
            return
        self._has_begun = True
        if scope.note_on_reparametrized:
            logger.warning("%s", scope.note_on_reparametrized)
        self.plan = replace(self.plan, scope=scope)
        self.pipeline.claim.acquire(over="none")  # nobody may write to what is read here
        log = read_log(self.pipeline.claim.directory)
        if log is None or log.info is None:
            return
        check_same(log, self.plan)
        self._unlike_log = unlike_log(log.records, pending, self.plan)
        if self._unlike_log:
            return
        check_same_rates(log, self.rates)
        given_rms = self.plan.initial_rms
        self.plan = replace(self.plan, initial_rms=log.info.initial_rms)
        until = self._kept_until(log.records, pending)
        records = [record for record in log.records if record.step <= until]
        events = JsonlReader(Path(self.pipeline.claim.directory or "")).versions(max_step=until)
        if not records:  # the very first one is new
            self.plan = replace(self.plan, initial_rms=given_rms)
            return
        self._last_kept = records[-1]
        self.pipeline.history.restore(records, events, log.info.initial_rms)
        self._done |= {record.step for record in records}
        if not is_final or not pending.keys() <= self._done:
            self._remember(records, pending)

    def _kept_until(self, records: Sequence[Record], pending: Pending) -> int:
        """The last step of the log that stays: a checkpoint before its end may be new."""
        # what is missing within the log, or could not be read then, is tried again: if it can be
        # read now, all that follows is measured anew, as motion and events depend on it
        logged = {record.step: record for record in records}
        readable = {step for step, one in pending.items() if one.error is None}
        for step, one in pending.items():
            if step > records[-1].step or (step in logged and logged[step].valid):
                continue
            if not {r.step for r in records if r.step > step and r.valid} <= readable:
                self._fail(one, _too_late(one))
                continue
            outcome = self._submitted(self.executor, step, one).result()
            if isinstance(outcome, Measured) and not outcome.record.reason:
                return max((known for known in logged if known < step), default=-1)
            self._fail(one, _why_failed(one, outcome))
        return records[-1].step

    def _remember(self, records: Sequence[Record], pending: Pending) -> None:
        """Read the weights of the last record in the log again, to compare the next with."""
        step = next((record.step for record in reversed(records) if record.was_read), -1)
        last = pending.get(step)
        if last is None or last.error is not None or self._motion is None:
            logger.info("the next record says nothing of motion since the log ended")
            return
        sample = sample_of(self.plan, step, last.url)
        if sample:
            thresholds: list[float] = []
            if self.pipeline.claim.directory is not None:
                with contextlib.suppress(StateError):  # not every spectrum is kept
                    arrays = read_spectrum(self.pipeline.claim.directory, step)
                    thresholds = MagnitudeSpectrum.from_arrays(arrays).thresholds(MASK_LEVELS)
            self._motion.compare(step, sample, thresholds, self.rates.reading_of(step, sample))

    # ------------------------------------------------------------------ measuring

    def _measured(self, todo: Pending) -> Iterator[tuple[int, Outcome]]:
        """What comes of each; without an executor or a model the next one is read meanwhile."""
        executor, size = self.executor, self.window
        with ThreadPoolExecutor(1, "sparsitywatch-replay") as one_ahead:
            if executor is None:
                # to compare and to write what came of the one before takes about as long
                executor, size = (one_ahead, 2) if self.plan.factory is None else (None, 1)
            yield from in_order(
                todo,
                lambda step, one: self._submitted(executor, step, one),
                # the first one sets what "initial" rules refer to: the others have to wait for it
                lambda: size if self.plan.initial_rms else 1,
            )

    def _submitted(
        self, executor: Executor | None, step: int, one: ListedCheckpoint
    ) -> Future[Outcome]:
        """What is to come of a checkpoint; without an executor it has come."""
        error = one.error or self._of_another_model(one)
        if executor is not None and error is None:
            return executor.submit(measure, self.plan, step, one.url)
        future: Future[Outcome] = Future()
        future.set_result(error or measure(self.plan, step, one.url))
        return future

    def _of_another_model(self, one: ListedCheckpoint) -> CheckpointError | None:
        """Why it is of a larger model than the first one; what it lacks is seen as it is read."""
        if self._first is not None and self._first[0].entries is one.entries:
            return None
        try:
            own = Scope.of_entries(one.entries, self._by_names)
        except ScopeError:
            return None
        first, known = self._first = self._first or (one, own)
        names = beyond(known, own)
        if not names:
            return None
        return CheckpointError(
            f"Cannot read {one.shown}: expected the weights in scope of {first.shown}, got "
            f"{some_of(names, len(names))} as well. Replay checkpoints of one model together."
        )

    def _take(self, step: int, one: ListedCheckpoint, outcome: Outcome) -> None:
        """Record what came of a checkpoint; steps rise from call to call."""
        measured = outcome if isinstance(outcome, Measured) else None
        if measured is None or measured.record.reason:
            self._fail(one, _why_failed(one, outcome))
        if measured is not None and not self.plan.initial_rms:
            self.plan = replace(self.plan, initial_rms=measured.initial_rms)
        self._held.append((step, one, outcome))
        if self._run is None and (measured or self._last_kept):
            # before, nothing can be said of the run
            self._open(measured.record.provenance.dtypes if measured else ())
        if self._run is not None:
            for held in self._held:
                record, detail = self._record_of(*held, self._run)
                self.pipeline.act(*self.pipeline.take(record, detail))
            self._held.clear()
        self._done.add(step)
        self._measured_urls.add(one.url)
        self._num_snapshots += 1

    def _open(self, dtypes: tuple[str, ...] = ()) -> None:
        """Open the sinks, which go on from what is kept of the log; without, of these dtypes."""
        claim = self.pipeline.claim
        if claim.directory is not None:
            prepare(claim.directory)
            claim.acquire(over="none")
            if self._unlike_log:
                aside = claim.set_aside(self._unlike_log)
                self._set_aside = f"The log in {claim.directory} is now {aside}: {self._unlike_log}"
        last = self._last_kept
        run = replace(self.plan.run, dtypes=last.provenance.dtypes if last else dtypes)
        addresses = self.urls.values() if isinstance(self.urls, Mapping) else self.urls
        info = RunInfo(
            initial_step=last.step if last else -1,
            provenance=run.provenance,
            ledger=run.scope.ledger,
            initial_rms=run.initial_rms,
            replayed_from=tuple(map(redacted_url, addresses)),
        )
        self._run = run  # from here on the sinks are to be closed
        self.pipeline.open(info)

    def _record_of(
        self, step: int, one: ListedCheckpoint, outcome: Outcome, run: RunContext
    ) -> tuple[Record, Detail]:
        reading = moved = None
        if isinstance(outcome, Measured):
            measured = outcome
            reading = self.rates.reading_of(step, measured.sample)
            if self._motion is not None:
                moved = compared(measured, self._motion, reading, run)
            if reading is None and self.rates.is_known:
                reading = self.rates.reading(step, ())
        else:
            measured = not_measured(step, str(outcome), run)
            source = Source(address=one.shown)
            measured = replace(measured, record=replace(measured.record, source=source))
        record = record_of(measured, reading, moved, publish_s=self.pipeline.publish_s)
        return record, measured.detail

    # ------------------------------------------------------------------ failing

    def _report_gone(self, before: Pending, pending: Pending) -> None:
        for step, one in before.items():
            if one.state == "complete" and step not in pending and step not in self._done:
                reason = "it was removed before it could be read"
                self._fail(one, f"Cannot read {one.shown}: {reason}.")

    def _refuse_late(self, pending: Pending) -> None:
        last_step = max(self._done, default=-1)
        for step, one in pending.items():
            if step < last_step and step not in self._done:
                self._fail(one, str(one.error) if one.error else _too_late(one))
                self._done.add(step)

    def _fail(self, one: ListedCheckpoint, reason: str) -> None:
        if one.url in self._failures:
            return
        failure = self._failures[one.url] = replace(one, reason=reason)
        logger.warning("%s", reason)
        for function in self.on_failure:
            function(failure)


def in_order(
    todo: Pending,
    submit: Callable[[int, ListedCheckpoint], Future[Outcome]],
    window: Callable[[], int],
) -> Iterator[tuple[int, Outcome]]:
    """What comes of each, in its turn; at most ``window()`` at once, which bounds the memory."""
    waiting: deque[tuple[int, Future[Outcome]]] = deque()
    try:
        for step, one in todo.items():
            waiting.append((step, submit(step, one)))
            if len(waiting) >= window():
                first, future = waiting.popleft()
                yield first, future.result()
        while waiting:
            first, future = waiting.popleft()
            yield first, future.result()
    finally:
        for _, left in waiting:
            left.cancel()


def _first_with_scope(
    pending: Pending, scope: ScopeLike, *, is_needed: bool
) -> tuple[ListedCheckpoint, Scope] | None:
    """The first checkpoint that says which weights count, and these; None if none can be opened."""
    undecided = None
    for one in pending.values():
        if one.error is not None:
            continue
        try:
            return one, Scope.of_entries(one.entries, scope)
        except ScopeError as error:  # something else among the checkpoints, perhaps
            undecided = undecided or error
    if undecided is not None and is_needed:
        raise undecided
    return None


def _why_failed(one: ListedCheckpoint, outcome: Outcome) -> str:
    if isinstance(outcome, Measured):
        return f"Cannot evaluate {one.shown}: {' '.join(outcome.record.reason.split())}"
    return str(outcome)


def _too_late(one: ListedCheckpoint) -> str:
    return (
        f"Left out {one.shown}: expected checkpoints in the order of their {one.unit}s, but "
        f"{one.place} came after later ones had been measured. Replay once more, while they are "
        "all there, to take it in."
    )


# ------------------------------------------------------------------ the log of an earlier replay


def read_log(directory: Path | None) -> Run | None:
    """What an earlier replay has left in ``directory``; None if there is no record in it."""
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


def check_same(log: Run, plan: Plan) -> None:
    """Refuse to go on with other settings than those of the log; the message says which."""
    assert log.info is not None  # noqa: S101 for the type checker
    then, now = log.info.provenance.settings(), plan.run.provenance.settings()
    pairs = {name: (then[name], value) for name, value in now.items()}
    rules = plan.settings.near_zero
    logged = next((tuple(r.near_zero) for r in log.records if r.near_zero), rules)
    pairs["near_zero"] = (sorted(logged), sorted(rules))
    if log.records[-1].step:  # zero is zero in any unit
        pairs["steps that count"] = (f"{log.unit}s", f"{plan.unit}s")
    wrong = [f"{name} {then!r}, now {now!r}" for name, (then, now) in pairs.items() if then != now]
    if plan.initial_rms is not None and dict(plan.initial_rms) != dict(log.info.initial_rms):
        wrong.append("another initial_rms")
    if wrong:
        raise ConfigurationError(
            "Expected `logdir` to be new or of a replay with the same settings, but it was written "
            f"with {'; '.join(wrong)}. Give another one."
        )


#: Checkpoints whose marks are read at once: each waits for a storage several times.
_MARKED_AT_ONCE = 8


def unlike_log(records: Sequence[Record], pending: Pending, plan: Plan) -> str:
    """Why these checkpoints are not those of a log, by some bytes or else by their addresses."""
    logged = {record.step: record.source for record in records if record.source is not None}
    there = {step: one for step, one in pending.items() if one.error is None}
    both = {step: there[step] for step, source in logged.items() if source.mark and step in there}
    with ThreadPoolExecutor(_MARKED_AT_ONCE, "sparsitywatch-marks") as pool:
        marks = pool.map(lambda one: mark_at(plan, one.url), both.values())
        for (step, one), mark in zip(both.items(), marks, strict=True):
            if mark and mark != logged[step].mark:
                address, at = logged[step].address, numbered(plan.unit, step)
                where = "there" if one.shown == address else f"at {address}"
                return f"other weights of {at} than {one.shown} holds now lay {where}"
    if both or not logged:
        return ""
    steps = {source.address: step for step, source in logged.items()}
    steps |= {one.shown: step for step, one in there.items()}
    series = sorted(set(templates(steps).values()))
    return f"it is of another series: {' and '.join(series)}" if len(series) > 1 else ""


def check_same_rates(log: Run, rates: Rates) -> None:
    """Refuse to go on with another schedule: the clocks of the log's last record are others."""
    last = next((record for record in reversed(log.records) if record.was_read), None)
    if last is None:
        return
    now = rates.reading(last.step, ()) if rates.is_known else None
    clocks = {"decay_clock": (last.decay_clock, now.decay_clock if now else math.nan)}
    if not (rates.is_logged and math.isnan(last.lr_clock)):  # else logged for the first time since
        clocks["lr_clock"] = (last.lr_clock, now.lr_clock if now else math.nan)
    for name, (then, known) in clocks.items():
        if not np.isclose(then, known, rtol=1e-6, atol=0.0, equal_nan=True):
            raise ConfigurationError(
                "Expected `logdir` to be new or of a replay with the same `lr` and "
                f"`weight_decay`, but its {name} at {last.place} is {then:g}, now {known:g}. "
                "Give another one."
            )


# ------------------------------------------------------------------ when to measure


@dataclass(kw_only=True)
class Patience:
    """How long to wait for the checkpoints of a run that goes on, and for what since when."""

    poll_s: float = 5.0  # between two listings of the storage
    idle_timeout_s: float | None = None  # end when nothing new has come for as long; None: never
    until: Callable[[], bool] | None = None  # asked before every listing whether to end
    #: An unfinished checkpoint is given up when a later one has been complete for as long.
    unfinished_s: float = 60.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _since: dict[str, tuple[str, float]] = field(default_factory=dict)  # by URL: for what, when

    def __post_init__(self) -> None:
        expect_number("poll_s", self.poll_s, lambda s: s > 0.0, "seconds > 0")
        if self.idle_timeout_s is not None:
            expect_number("idle_timeout_s", self.idle_timeout_s, lambda s: s > 0.0, "seconds > 0")
        is_good = self.until is None or callable(self.until)
        expect(is_good, "until", "a function or None", self.until)

    def settled(self, pending: Pending) -> Pending:
        """What may be measured by now; what is still to be waited for is incomplete."""
        last = max((step for step, one in pending.items() if one.state == "complete"), default=-1)
        return {step: self._settled(one, is_latest=step > last) for step, one in pending.items()}

    def _settled(self, one: ListedCheckpoint, *, is_latest: bool) -> ListedCheckpoint:
        if one.state == "complete":
            # a file of one rank counts once none of another has come beside it for a while, one
            # without checksums once it has stayed the same: its size may have been set before
            waited_s = self._waited_s(one, f"others {one.version}")
            if part_of(one.url) is not None and waited_s < self.unfinished_s:
                words = f"others of its {one.unit} may still be written"
            elif one.version and waited_s == 0.0:
                words = "it has no checksums, and may still be written"
            else:
                return one
            return replace(one, reason=f"Cannot read {one.shown} yet: {words}.", state="incomplete")
        if one.state == "refused":
            # what seems damaged may be half-written: it is believed when it stays so
            is_new = self._waited_s(one, one.reason) == 0.0
            return replace(one, state="incomplete") if is_new else one
        if is_latest or self._waited_s(one, "its end") < self.unfinished_s:
            return one
        return replace(one, state="refused")

    def _waited_s(self, one: ListedCheckpoint, what: str) -> float:
        now = self.clock()
        if self._since.get(one.url, ("", 0.0))[0] != what:
            self._since[one.url] = (what, now)
        return now - self._since[one.url][1]
