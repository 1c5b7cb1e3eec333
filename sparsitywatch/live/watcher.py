"""The live driver: attach to an optimizer, take snapshots when due, let no fault out."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import os
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch

from sparsitywatch.errors import (
    LogTakenError,
    MeasurementError,
    RanksError,
    StateError,
    contain_faults,
    note_signal_handlers,
    reraise_foreign,
)
from sparsitywatch.live.after import NextUse, without_autocast
from sparsitywatch.live.endings import close_at_exit, end_dropped, last_error, words_of
from sparsitywatch.live.resume import check_state, open_log, restore_proxy, step_in_log
from sparsitywatch.live.ring import Ring
from sparsitywatch.live.schedule import BudgetedSchedule, Due
from sparsitywatch.live.snapshots import FinishedSnapshot, SnapshotTaker
from sparsitywatch.live.trace import Optimizer, Step, StepHook
from sparsitywatch.pipeline.measure import not_measured, record_of
from sparsitywatch.ranks.protocol import ALONE, Ranks
from sparsitywatch.records import Event, Record, html_of
from sparsitywatch.records.record import UNPAID
from sparsitywatch.redact import logger, of_watch, redacted_error

_Number = torch.Tensor | float
_MAX_FAILURES = 3  # snapshots that fail in a row, then the watch is off
#: So often the sinks are told how the watch stands, in seconds: with a snapshot, and without one.
_REPORT_S, _SIGN_OF_LIFE_S = 10.0, 60.0
#: Numbers the attaches and the steps of all watches of this process in their order.
_order = itertools.count()


class WatchOffError(Exception):
    """The watch has switched itself off: nothing more is done at this step."""


class _Contained:
    """Where one thread acts, and faults end: the watch ends, not the training. It is timed."""

    # entered at every step: a ``contextmanager`` would take several times as long
    __slots__ = ("_before", "_has_grad", "_since_s", "_watcher")

    def __init__(self, watcher: Watcher, since_s: float = 0.0) -> None:
        self._watcher, self._since_s = watcher, since_s

    def __enter__(self) -> None:
        self._watcher._lock.acquire()
        self._before = of_watch.set(self._watcher._pipeline.causes)
        self._watcher._budget.enter(self._since_s)
        self._has_grad = torch.is_grad_enabled()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        try:
            if error is not None:
                self._watcher._end_by(error)
        finally:
            if torch.is_grad_enabled() != self._has_grad:
                torch.set_grad_enabled(self._has_grad)  # a signal came at the end of a no_grad
            self._watcher._budget.leave()
            of_watch.reset(self._before)
            self._watcher._lock.release()
        return True


class CopiedWatcher:
    """What a copy of a model has, or its file, in the place of a watch: closed, and off."""

    closed = True
    off = "it is a copy: only the watch that was attached sees the training"
    records: Sequence[Record] = ()
    events: Sequence[Event] = ()

    def __enter__(self) -> CopiedWatcher:  # noqa: PYI034 typing.Self needs Python 3.11
        return self

    def _do_nothing(self, *_: object, **__: object) -> None:
        """Nothing: nobody watches."""

    __exit__ = step = log_loss = load_state_dict = close = _do_nothing

    def snapshot(self) -> Record:
        """Raise a MeasurementError: there is nothing that could be measured."""
        raise MeasurementError(f"Expected a watch that is on, got one that is off: {self.off}.")

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}


class Watcher:
    """A watch on a training in this process; made by ``sparsitywatch.watch``.

    After it is made nothing that goes wrong in it reaches the training loop: the cause is
    logged, the record is marked invalid, and a watch that keeps failing switches itself
    off. Use it as a context manager, or call ``close``. A copy of it, as of a model that keeps
    it, is closed and off.

    Args:
        taker: reads and measures; has the optimizers' trace, and what becomes of the records.
        schedule: when to take one.
        ranks: that watch together with this one, or may still come.
        ring: keeps what moved at each of the latest steps.
        background: whether what can be done behind the training is done there.
        initial_step: steps done before the first one that is watched; None to find out.
        off: why this watch does nothing; empty if it does.
    """

    _all: ClassVar[weakref.WeakSet[Watcher]] = weakref.WeakSet()  # of this process
    _dropped: ClassVar[set[Path | None]] = set()  # logs of those that nobody has closed

    def __init__(
        self,
        taker: SnapshotTaker,
        schedule: BudgetedSchedule,
        ranks: Ranks,
        ring: Ring,
        *,
        background: bool,
        initial_step: int | None,
        off: str,
    ) -> None:
        self._taker = taker
        self._pipeline = taker.pipeline
        self._trace = trace = taker.trace
        self._schedule = schedule
        self._budget = schedule.budget
        self._ranks = ranks
        self._ring = ring
        self._background = background
        self._off = off
        self._step = initial_step  # optimizer steps done; None until that is found out
        self._done: int | None = None  # as optimizers said before the first step that was seen
        self._pid, self._lock = os.getpid(), threading.RLock()
        self._thread = threading.get_ident()  # that steps, and in which actions run
        self._finished: list[FinishedSnapshot] = []  # that nobody has acted on yet
        self._attached = self._stepped = next(_order)  # as of ``_order``
        self._opened = self._closed = False
        self._num_failures = 0  # in a row
        self._reported_at = -math.inf
        self._pending: Mapping[str, Any] | None = None  # the history's state, until the log begins
        self._log = ""  # that rank 0 writes
        at_exit = functools.partial(close_at_exit, weakref.ref(self), last_error())
        self._at_exit = Finalize(None, at_exit, exitpriority=1)  # before the pipeline's
        self._hook = StepHook(self._before_step, self._on_step)
        self._next_use = NextUse(taker, self._hook)
        if off:
            self._hook.remove()
        else:
            for optimizer in trace.given[:1]:
                self._hook.tie_to(optimizer)
            taker.mark()
            self._take_place()
            self._all.add(self)
            self._schedule.attached()

    def __del__(self) -> None:
        """Nobody holds it, or its optimizer: its files and its lock go with it."""
        if not vars(self).get("_closed", True) and not self._off and os.getpid() == self._pid:
            self._at_exit.cancel()
            self._dropped.add(self._pipeline.claim.directory)
            state = self._schedule.state(self._pipeline.records, self._schedule.last_step)
            state = replace(state, status="closed", reason="its optimizer was let go")
            self._taker.then(functools.partial(end_dropped, self._pipeline, state))

    def __reduce__(self) -> tuple[type[CopiedWatcher], tuple[()]]:
        return CopiedWatcher, ()

    def __repr__(self) -> str:
        state = f"off: {self._off[:80]}" if self._off else "closed" if self._closed else "on"
        if state == "on":
            state = f"on; {self._schedule.describe(self.step_count)}"
        if lost := self._pipeline.lost:
            state += f"; {lost}"
        return (
            f"<Watcher at step {self.step_count}, {len(self._pipeline.records)} records, "
            f"{len(self._pipeline.events)} events, {state}>"
        )

    def _repr_html_(self) -> str:
        # as far as it is known: asking must not wait for a snapshot on its way
        return html_of(repr(self)[1:-1], self._pipeline.records, self._pipeline.events)

    @property
    def records(self) -> list[Record]:
        """Every record, also those before a resume; waits for one on its way.

        Any thread may ask. Actions run in the one that steps, or where the watch is closed.
        Layers are kept for the latest hundred only; the log has them all.
        """
        self._settle()
        return self._pipeline.records

    @property
    def events(self) -> list[Event]:
        """Every event so far; waits for one on its way."""
        self._settle()
        return self._pipeline.events

    @property
    def step_count(self) -> int:
        """Optimizer steps done, as the watch counts them."""
        return self._step or 0

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    @property
    def off(self) -> str:
        """Why the watch does nothing, or what its log lacks; empty if it does all."""
        return self.why_idle or self._pipeline.lost

    @property
    def why_idle(self) -> str:
        """Why the watch does nothing; empty also if only its log lacks something."""
        return self._off or self._pipeline.claim.lost

    def __enter__(self) -> Watcher:  # noqa: PYI034 typing.Self needs Python 3.11
        return self

    def __exit__(self, _: object, error: BaseException | None, *__: object) -> None:
        self._end(error)

    def step(self, step: int | None = None) -> None:
        """Say that an optimizer step was taken, for loops whose optimizer hooks cannot see.

        Once called, it alone counts: steps that hooks see do so no more. ``step`` is the number of
        steps done by now, by default one more than before, unless hooks have counted this one.
        """
        with _Contained(self):
            if not self._trace.said(step):
                return
            if self._is_idle():
                self._decline(self.step_count + 1 if step is None else step)
            else:
                self._advance(1, step)

    def log_loss(
        self, value: _Number, step: int | None = None, *, gradient_norm: _Number | None = None
    ) -> None:
        """Report the training's loss, so that a spike of it is told; waits for no device.

        Call it before the optimizer's step, with what ``clip_grad_norm_`` returned as
        ``gradient_norm``. Of several calls the last counts. Later, give the number of the ``step``.
        """
        if not self._is_idle():
            with _Contained(self):
                self._ring.say_loss(value, step)
                self._trace.say_norm(gradient_norm, self.step_count + 1)

    def snapshot(self) -> Record:
        """Take a snapshot now, whatever the schedule says.

        Where several ranks watch together, every one of them calls it, at the same step.

        Returns:
            The record of this step: the one that there is already if there is one, be it
            without its evaluation (``not_evaluated``). It is invalid, with the reason, if
            something failed.
        """
        if self._is_idle():
            self._decline(self.step_count, "watcher.snapshot()")
            why = self._off or ("closed" if self._closed else "in a forked process")
            return self._failed(f"the watch is off: {why}")
        with _Contained(self):
            self._ranks.decide("watcher.snapshot()")
            self._open()
            self._take_owed()
            self._collect(wait=True)
            if not self._off and self._last_step != self.step_count:
                self._take(Due.EVERYTHING, behind=False)
        is_taken = self._last_step == self.step_count
        return self._pipeline.records[-1] if is_taken else self._failed(self._off)

    def _failed(self, reason: str) -> Record:
        error = redacted_error(RuntimeError(reason))
        return record_of(not_measured(self.step_count, error, self._taker.run))

    @property
    def _last_step(self) -> int:
        """Of the latest record; -1 if there is none."""
        records = self._pipeline.records
        return records[-1].step if records else -1

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from: numbers, strings, tensors (weights-only safe).

        Empty, with the cause in the log, if something fails.
        """
        self._settle()
        words = "the watch's state is not known; training goes on"
        run = self._taker.run
        counted = self._pipeline.causes.counted()
        with counted, contain_faults(lambda _: logger.exception(words), strict=run.strict):
            return {
                "step": self.step_count,
                "scope_hash": run.provenance.scope_hash,
                "proxy_hash": run.provenance.proxy_hash,
                "initial_rms": dict(run.initial_rms),
                "optimizer": self._trace.state_dict(),
                "pipeline": self._pipeline.history.state_dict(),
                "schedule": self._schedule.schedule.state_dict(),
                "log": self._pipeline.claim.name or self._log,
            }
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave; call it before the first step.

        An empty one changes nothing: the watch goes on from its log.

        Raises:
            StateError: a key is missing, a value is damaged, the state is of another scope or
                proxy, or steps have been watched already. Unless some have, the watch is as it
                was, and goes on from its log.
        """
        if self._is_idle():
            return
        if self._opened:
            raise StateError("Expected load_state_dict before the first step, got it after.")
        if not state:
            logger.warning("the saved state is empty; going on from the log alone")
            return
        claim = self._pipeline.claim
        claim.resume_in(str(state.get("log", "")))
        kept = restore_proxy(claim.directory, self._taker.run, str(state.get("proxy_hash")))
        check_state(state, kept.provenance)
        before = (self._step, self.state_dict())
        try:
            self._taker.run = kept
            self._restore(int(state["step"]), state)
        except Exception as error:
            self._restore(*before)
            reraise_foreign(error)
            raise StateError(
                f"Expected what state_dict gave, got a state that raised {redacted_error(error)}."
            ) from error
        self._pending = state["pipeline"]
        if self._ranks.is_alone:  # else with the first step, which every rank takes
            with _Contained(self):
                self._open()

    def close(self) -> None:
        """Detach and finish the sinks; the model and the optimizer stay as they are.

        What the budget left out last is done now, if the whole run stays within it.
        """
        self._end()

    def _end(self, error: BaseException | None = None, reason: str = "") -> None:
        """Close; ``error`` is what has ended the training, ``reason`` when the watch is closed."""
        if os.getpid() != self._pid:  # another thread may have held locks when this was forked
            self._closed = True
            return
        with self._lock:
            self._thread = threading.get_ident()
            if not self._is_idle():
                with _Contained(self):
                    self._take_used("close")
            self._settle()
            if self._closed:
                return
            if not (ended_by := words_of(error)):
                self._make_up()
            self._closed = True
            self._at_exit.cancel()
            self._hook.remove()
            if not self._off:
                self._finish(ended_by, reason)

    def _finish(self, ended_by: str, reason: str) -> None:
        """Say the last words, and close what was opened."""
        if self._opened:
            with _Contained(self):
                self._ring.end(self._pipeline.events)
                self._pipeline.settle()
                self._report("ended" if ended_by else "closed", ended_by or reason)
            self._pipeline.close()
        else:
            logger.warning(
                "no optimizer step was counted, and nothing measured: no hook saw a step of an "
                "optimizer that was given, or that holds these weights. A loop that steps without "
                "one calls watcher.step() after each step."
            )
        self._ranks.leave("its watch was closed")

    def _make_up(self) -> None:
        """Take now what the budget has left out since the last snapshot, if it is paid for."""
        if self._is_idle() or not self._ranks.is_alone or self._last_step == self.step_count:
            return
        with _Contained(self):
            due = self._schedule.made_up(self._pipeline.records, self.step_count)
            if due:
                self._take(due, behind=False)

    def _restore(self, step: int | None, state: Mapping[str, Any]) -> None:
        self._step = step
        initial_rms = dict(state["initial_rms"])
        self._taker.run = replace(self._taker.run, initial_rms=initial_rms)
        self._trace.load_state_dict(state["optimizer"])
        if state["schedule"]:
            self._schedule.schedule.load_state_dict(state["schedule"])

    def _is_idle(self) -> bool:
        return bool(self._off) or self._closed or os.getpid() != self._pid

    def _before_step(self, optimizer: Optimizer) -> None:
        """An optimizer is about to step: the first time weights are as the training begins."""
        if self._is_idle():
            return
        with _Contained(self):
            if not self._trace.knows(optimizer):
                return
            self._hook.begin()
            self._done = self._trace.steps_done
            if not self._opened and self._pending is None and self._taker.mark():
                self._taker.begin(self._step, behind=self._background)

    def _before_use(self, optimizer: Optimizer | None = None) -> None:
        """A forward, or a step of ``optimizer``, is about to use the weights of the latest step."""
        if not self._is_idle():
            with _Contained(self), without_autocast():
                if optimizer is None:
                    self._take_used("forward")
                elif self._trace.knows(optimizer):
                    self._take_used("step")
                    self._trace.begins(optimizer)

    def _take_used(self, before: str) -> None:
        """Take what is owed of weights that are used now."""
        owed, read_before = self._next_use.used(before)
        if owed and self._last_step != self.step_count:  # else somebody has asked for it
            self._take(owed, behind=self._background, read_before=read_before)

    def _take_owed(self) -> None:
        """Take what waits for the next forward now, since somebody asks."""
        if owed := self._next_use.asked():
            self._take(owed, behind=self._background)

    def _on_step(self, step: Step) -> None:
        """An optimizer took a step."""
        if self._closed or os.getpid() != self._pid:
            return
        if self._off and self._ranks.is_alone:  # else others may wait for an answer
            return
        optimizer = step.optimizer
        found_inf: Any = getattr(optimizer, "found_inf", None)
        with _Contained(self, step.since_s):
            may_skip = found_inf is not None and self._trace.knows(optimizer)
            if may_skip and float(found_inf) > 0.0:  # waits for the device, which knows
                return  # a gradient scaler skipped it inside a fused update; others are not called
            num_steps = self._trace.saw(step)
            if not num_steps:
                return
            if self._off:
                self._decline(self.step_count + 1)
                return
            if self._hook.tie is None:
                self._hook.tie_to(optimizer)
            self._advance(num_steps)

    def _advance(self, num_steps: int, step: int | None = None) -> None:
        """Some steps were taken; ``step`` is how many there are by now, if that was said."""
        self._stepped, self._thread = next(_order), threading.get_ident()
        if not self._opened:
            self._open(num_steps)
        if self._off:
            return
        self._next_use.stop()  # where nobody has seen this step begin
        before = self._step or 0
        self._step = step = before + num_steps if step is None else step
        if self._taker.is_new:
            self._taker.begin(step, behind=self._background)
            self._ring.attach(self._taker.lookup()[1])
        self._ring.after_step(step, step - before)
        is_busy = False
        self._taker.behind.step(self._budget.now())
        if self._taker.job is not None or self._finished:
            self._collect()
            if self._off:
                self._decline(step)
                return
            is_busy = self._taker.is_busy
        # while one is busy it holds the log
        if not is_busy and time.monotonic() - self._reported_at >= _SIGN_OF_LIFE_S:
            self._report()
        if num_steps > 1:
            self._schedule.miss(range(before + 1, step))
        is_apart, is_new = is_busy and self._taker.behind.is_on, not self._pipeline.records
        due = self._schedule.due(step, is_busy=is_busy, is_apart=is_apart, is_new=is_new)
        # rank 0 decides for all: its clock is not theirs, and an alert may reach it earlier
        decided = Due.NOTHING if due is None else Due(self._ranks.decide(f"step {step}", due))
        self._measure(decided)

    def _measure(self, due: Due) -> None:
        """Take what is due, now or where the weights are used; see whether they are written to."""
        waits = self._ranks.is_alone and not self._trace.is_said
        if now := self._next_use.due_now(due, self.step_count) if waits else due:
            self._take(now, behind=self._background and not self._schedule.is_waited_for)
        if waits:
            self._next_use.wait(self._before_use, is_due=bool(due))
        if self._trace.one_step.waits(is_due=bool(due)):
            self._hook.wait(self._before_use)

    def _decline(self, step: int, what: str = "") -> None:
        """Where the others are about to take a snapshot, say that this rank's watch is off."""
        if self._closed or os.getpid() != self._pid:
            return
        self._step = step
        if self._ranks.is_alone:
            return
        schedule = self._schedule.schedule
        if what or schedule(step) or schedule.is_due_after_alert(step):
            ranks, self._ranks = self._ranks, ALONE
            with contextlib.suppress(MeasurementError, RanksError):
                ranks.agree(what or f"step {step}", MeasurementError(self._off))

    def _take(self, due: Due, *, behind: bool, read_before: str = "") -> None:
        with self._ranks.all_or_none("a snapshot"):
            self._collect(wait=True)
            self._stand_back()
            if lost := self._pipeline.claim.lost:  # before anything is measured in vain
                raise LogTakenError(lost)
            if self._off:
                raise WatchOffError(self._off)
        note_signal_handlers()
        self._ring.look()
        self._taker.take(
            self.step_count,
            behind=behind,
            num_left_out=self._schedule.pop_left_out(),
            not_evaluated=UNPAID if due is Due.WEIGHTS else "",
            read_before=read_before,
        )
        self._collect()

    def _collect(self, *, wait: bool = False) -> None:
        """Act on the snapshot that is finished, if there is one and this thread steps."""
        if (finished := self._taker.collect(wait=wait)) is not None:
            self._finished.append(finished)
        while self._finished and self._thread == threading.get_ident():
            self._act(self._finished.pop(0))

    def _act(self, finished: FinishedSnapshot) -> None:
        record = finished.record
        self._pipeline.act(record, finished.events)
        schedule = self._schedule.schedule
        is_new = any(event.revised_step < 0 for event in finished.events)
        if schedule.heeds_alerts and (is_new or self._pipeline.history.is_suspicious):
            schedule.alert(record.step)
        self._num_failures = 0 if record.valid else self._num_failures + 1
        if changed := self._taker.model.training_changed:
            self._switch_off(
                f"the evaluation at step {record.step} may have changed the training, which is no "
                f"longer what it would be without the watch. {changed}"
            )
        elif self._num_failures < _MAX_FAILURES:
            self._report(every_s=_REPORT_S if record.valid else 0.0)
        else:
            self._switch_off(
                f"{self._num_failures} snapshots in a row failed; the last: {record.reason}"
            )

    def _settle(self) -> None:
        """Wait for the snapshot that is on its way; in a forked child there is none."""
        if not self._is_idle():
            self._taker.wait()  # without the lock, which a step may wait for
            if self._thread == threading.get_ident():
                with _Contained(self):
                    self._take_owed()
                    self._collect(wait=True)

    # ------------------------------------------------------------------ the log

    def _open(self, num_steps: int = 0) -> None:
        """Begin the log at the first snapshot, or right after the first steps that were seen."""
        if self._opened:
            return
        self._stand_back()
        if self._off:
            return
        self._opened = True
        others = self._end_earlier()
        is_given = self._step is not None
        if self._step is None:  # not given, so the optimizer's own count says it
            after = max(self._trace.steps_done - num_steps, 0)
            self._step = after if self._done is None else self._done
        with self._ranks.all_or_none("beginning the log"):
            if self._ranks.rank == 0:
                if not (is_given or self._step or others == "beside"):  # or the weights do
                    self._step = step_in_log(self._taker)
                open_log(self._taker, self._step, others)
                if self._pending is not None:
                    self._pipeline.history.load_state_dict(self._pending)
        self._ranks.hand_down(self._begun, self._begin_as_rank_0)
        self._report()

    def _others(self) -> list[Watcher]:
        """Watches of this process on the same log that are on."""
        directory = self._pipeline.claim.directory
        if directory is None or not self._ranks.is_alone:
            return []
        others = [other for other in set(self._all) - {self} if not other._is_idle()]
        return [other for other in others if other._pipeline.claim.directory == directory]

    def _take_place(self) -> None:
        """Close an earlier watch of this very model on this log."""
        why = "another watch has taken its place"
        for other in self._others():
            if other._taker.model.module is self._taker.model.module:
                if not other._opened:
                    other._off = why  # before it saw anything
                other._end(reason=why)

    def _end_earlier(self) -> Literal["", "ended", "beside"]:
        """Close watches of other models on this log whose training has ended; tell of others."""
        # a notebook's cell that is run again leaves one; one in training by turns steps meanwhile
        others = [other for other in self._others() if other._opened]
        for other in others:
            if other._stepped > self._attached:
                return "beside"
            if not other._taker.is_busy:  # else what is late is dropped, not waited for
                other._end(reason="another watch has begun a new log")
        return "ended" if others or self._pipeline.claim.directory in self._dropped else ""

    def _begun(self) -> tuple[Any, ...]:
        """What the others go on from, and param groups to compare with theirs; plain data."""
        pipeline = self._pipeline
        return self.state_dict(), pipeline.records, pipeline.events, self._trace.groups()

    def _begin_as_rank_0(self, begun: tuple[Any, ...]) -> None:
        state, records, events, groups = begun
        if self._trace.groups() != groups:
            logger.warning(
                "the optimizer of rank %d has other param groups, learning rates or decays than "
                "that of rank 0; the decay clock is that of rank 0.",
                self._ranks.rank,
            )
        self._restore(int(state["step"]), state)
        self._log = state["log"]
        self._pipeline.history.restore(records, events, state["initial_rms"])
        self._pipeline.history.load_state_dict(state["pipeline"])

    def _stand_back(self) -> None:
        """Switch off where, as may be known only after the attach, another process watches."""
        if (why := self._ranks.why_another_watches()) and not self._opened:
            self._off = why
            logger.info("this process does not watch: %s", why)
        elif why := why or self._ranks.why_different():
            self._switch_off(why)

    def _report(self, status: str = "on", reason: str = "", *, every_s: float = 0.0) -> None:
        """Tell the sinks how the watch is; never in the thread behind the training."""
        if time.monotonic() - self._reported_at < every_s:
            return
        self._reported_at = time.monotonic()
        state = self._schedule.state(self._pipeline.records, self.step_count)
        self._pipeline.report(replace(state, status=status, reason=reason))

    # ------------------------------------------------------------------ faults

    def _end_by(self, error: BaseException) -> None:
        if isinstance(error, RanksError):
            self._ranks = ALONE  # who has said so answers no more
        if isinstance(error, LogTakenError | RanksError):
            self._switch_off(str(error))
        elif not isinstance(error, WatchOffError):
            reraise_foreign(error, strict=self._taker.run.strict)
            logger.exception("unexpected error")
            self._switch_off(redacted_error(error))

    def _switch_off(self, reason: str) -> None:
        self._off = reason
        self._next_use.stop()
        logger.error("the watch switched itself off: %s", reason)
        if self._opened:
            self._taker.wait()
            self._ring.end(self._pipeline.events)
            self._report("off", reason)
            self._pipeline.close()
