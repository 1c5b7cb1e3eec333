"""The live driver: attach to an optimizer, look when due, let nothing out, close."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from sparsitywatch.errors import LogTakenError, StateError, boundary, let_out, note_signal_handlers
from sparsitywatch.live.looker import Finished, Looker
from sparsitywatch.live.ranks import Replicas, why_another_rank_watches
from sparsitywatch.live.resume import begin, check_state, recall_proxy
from sparsitywatch.live.schedule import Due, Pace
from sparsitywatch.live.trace import OptimizerTrace, StepHooks, Successor, step_was_skipped
from sparsitywatch.pipeline.measure import Measurement
from sparsitywatch.pipeline.pipeline import Pipeline
from sparsitywatch.pruning.masked import MaskedModel
from sparsitywatch.records import Event, Record, WatchState, html_of
from sparsitywatch.shown import shown_error
from sparsitywatch.weights.motion import Motion
from sparsitywatch.weights.scope import Scope

__all__ = ["Watcher"]

_logger = logging.getLogger("sparsitywatch")

_MAX_FAILURES = 3  # looks that fail in a row, then the watch is off
#: So often the log is told how the watch is: with a snapshot, and without one.
_TELL_S, _SIGN_OF_LIFE_S = 10.0, 60.0


class Watcher:
    """A watch on a training in this process; made by ``sparsitywatch.watch``.

    After it is made nothing that goes wrong in it reaches the training loop: the cause is
    logged, the record is marked invalid, and a watch that keeps failing switches itself
    off. Use it as a context manager, or call ``close``.

    Args:
        model: what is watched.
        optimizer: whose steps are counted; None if ``step`` is called instead.
        scope: which weights count.
        measurement: what a look measures.
        pipeline: what becomes of the record.
        pace: when to look.
        motion: remembers the weights of the last look; None to leave motion out.
        background: whether what can be done behind the training is done there.
        initial_step: steps done before the first one that is watched; None to find out.
        strict: let what goes wrong out, for tests.
        off: why this watch does nothing; empty if it does.
        replicas: whether other ranks hold the same model; None without other ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        *,
        scope: Scope,
        measurement: Measurement,
        pipeline: Pipeline,
        pace: Pace,
        motion: Motion | None,
        background: bool,
        initial_step: int | None,
        strict: bool = False,
        off: str = "",
        replicas: Replicas | None = None,
    ) -> None:
        self._scope, self._measurement, self._pipeline = scope, measurement, pipeline
        self._pace, self._background, self._replicas = pace, background, replicas
        self._strict, self._off = strict, off
        self._trace = OptimizerTrace(optimizer, scope, motion)
        self._masked = MaskedModel(model, scope)
        self._looker = Looker(
            self._masked, scope, measurement, pipeline, self._trace, strict=strict
        )
        self._step = initial_step
        self._pid = os.getpid()
        self._opened = self._closed = False
        self._failures = self._steps_seen = 0
        self._under_way = (0.0, False)  # of the latest snapshot: seconds in front, evaluated or not
        self._last_step = self._last_evaluated_step = -1
        self._begun_at = 0
        self._has_warned = False
        self._told_at = -math.inf
        if not off:
            begun = self._trace.steps_done if initial_step is None else initial_step
            self._looker.begin(begun, behind=background)
        watched = None if off else optimizer
        self._hooks = StepHooks(watched, self._on_optimizer_step, self._on_other_step)
        self._successor = None if watched is None else self._successor_of(watched)

    def _successor_of(self, optimizer: torch.optim.Optimizer) -> Successor:
        return Successor(optimizer, lambda: self._parameters().values())

    def _parameters(self) -> dict[str, torch.Tensor]:
        return dict(self._scope.parameters(self._masked.module))

    def __repr__(self) -> str:
        state = f"off: {self._off[:80]}" if self._off else "closed" if self._closed else "on"
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

        Layers are kept for the latest hundred only; the log has them all.
        """
        self._settle()
        return self._pipeline.records

    @property
    def events(self) -> list[Event]:
        """Every event so far; waits for a look on its way."""
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
        """Why the watch does nothing; empty if it does."""
        return self._off or self._pipeline.claim.lost

    def __enter__(self) -> Watcher:  # noqa: PYI034 typing.Self needs Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def step(self, step: int | None = None) -> None:
        """Say that an optimizer step was taken, for loops whose optimizer hooks cannot see.

        Once called, it alone counts: the optimizer's hook is taken off. ``step`` is the
        number of steps done by now, by default one more than before.
        """
        self._hooks.remove()
        self._successor = None
        if self._is_idle():
            return
        with self._boundary():
            self._advance(self.step_count + 1 if step is None else step)

    def snapshot(self) -> Record:
        """Look now, whatever the schedule says.

        Returns:
            The record of this step: the one that there is already if this step has been
            looked at, be it without its evaluation (``not_evaluated``). It is invalid, with
            the reason, if something failed.
        """
        started = time.perf_counter()
        if self._is_idle():
            why = self._off or ("closed" if self._closed else "in a forked process")
            error = RuntimeError(f"the watch is off: {why}")
            return self._measurement.failed(self.step_count, error, started)
        with self._boundary():
            self._open()
            if not self._off:
                self._collect(wait=True)
                records = self._pipeline.records
                if not records or records[-1].step != self.step_count:
                    self._look(behind=False)
                if records and records[-1].step == self.step_count:
                    return records[-1]
        return self._measurement.failed(self.step_count, RuntimeError(self._off), started)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from: numbers, strings, tensors (weights-only safe).

        Empty, with the cause in the log, if something fails.
        """
        self._settle()

        def say(_: BaseException) -> None:
            _logger.exception("sparsitywatch: the watch's state is not known; training goes on")

        with boundary(say, strict=self._strict):
            return {
                "step": self.step_count,
                "scope_hash": self._scope.hash,
                "proxy_hash": self._measurement.provenance.proxy_hash,
                "initial_rms": dict(self._measurement.initial_rms),
                "optimizer": self._trace.state_dict(),
                "pipeline": self._pipeline.state_dict(),
                "pace": self._pace.state_dict(),
                "log": self._pipeline.claim.name,
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
        if self._opened or self._steps_seen:
            raise StateError("Expected load_state_dict before the first step, got it after.")
        if not state:
            _logger.warning("sparsitywatch: the saved state is empty; going on from the log alone")
            return
        claim = self._pipeline.claim
        claim.go_back(str(state.get("log", "")))
        recall_proxy(claim.directory, self._measurement, str(state.get("proxy_hash")))
        check_state(state, self._measurement.provenance)
        before = (self._step, self.state_dict())
        try:
            self._take_up(int(state["step"]), state)
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            self._take_up(*before)
            raise StateError(
                f"Expected what state_dict gave, got a state that raised {shown_error(error)}."
            ) from error
        with self._boundary():
            self._open()
            self._pipeline.load_state_dict(state["pipeline"])

    def close(self) -> None:
        """Detach and finish the sinks; the model and the optimizer stay as they are."""
        self._settle()
        if self._closed:
            return
        self._closed = True
        self._hooks.remove()
        if self._off or os.getpid() != self._pid:
            return
        if self._steps_seen == 0 and not self._opened:
            _logger.warning(
                "sparsitywatch: no optimizer step was seen. A copied or unpickled optimizer has "
                "no hooks: attach to the one that steps, or call watcher.step()."
            )
        if self._opened:
            self._looker.close()
            with self._boundary():
                self._tell("closed")
            self._pipeline.close()

    def _take_up(self, step: int | None, state: Mapping[str, Any]) -> None:
        self._step = step
        self._measurement.initial_rms = dict(state["initial_rms"])
        self._trace.load_state_dict(state["optimizer"])
        self._pace.load_state_dict(state["pace"])

    def _is_idle(self) -> bool:
        return bool(self._off) or self._closed or os.getpid() != self._pid

    def _on_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._is_idle():
            return
        with self._boundary():
            if self._successor is not None:
                self._successor.own_step()
            if step_was_skipped(optimizer):
                return
            if self._step is None:  # not told, so the optimizer's own count says it
                self._step = max(self._trace.steps_done - 1, 0)
            self._advance(self._step + 1)

    def _on_other_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Another optimizer took a step: one of another model, or the one that is trained now."""
        if self._successor is None or self._is_idle():
            return
        with self._boundary():
            kind, number = self._successor.other_step(optimizer)
            if kind == "same":
                self._follow(optimizer, number)
            elif kind and not self._has_warned:
                self._has_warned = True
                _logger.warning(
                    "sparsitywatch: the watched optimizer takes no steps, while another %s steps "
                    "%d weights of the same shapes: if the training goes on with a copied or "
                    "unpickled model, nothing more is seen of it. Attach a watch to that one.",
                    type(optimizer).__name__,
                    sum(p.numel() for group in optimizer.param_groups for p in group["params"]),
                )

    def _follow(self, optimizer: torch.optim.Optimizer, number: int) -> None:
        """Go on with the optimizer that has taken the last ``number`` steps of these weights."""
        self._collect(wait=True)
        if self._off:
            return
        self._hooks.move(optimizer)
        self._successor = self._successor_of(optimizer)
        self._trace.follow(optimizer, self._parameters(), number - 1)
        if self._step is None:
            self._step = max(self._trace.steps_done - number, 0)
        self._open()
        first = self._step + 1
        _logger.warning(
            "sparsitywatch: the watched optimizer takes no steps any more, while another %s steps "
            "the same weights: it was replaced, copied or unpickled, which drops hooks. The watch "
            "follows it from step %d on, and counts the %d steps that it has taken.",
            type(optimizer).__name__,
            first,
            number,
        )
        self._pace.miss(range(first, first + number - 1))
        self._advance(self._step + number)

    def _advance(self, step: int) -> None:
        self._open()
        if self._off:
            return
        self._step = step
        self._steps_seen += 1
        self._trace.advance()
        self._collect()
        if self._off:
            return
        if not self._looker.is_busy:  # it holds the log
            self._tell_again(_SIGN_OF_LIFE_S)
        due = self._pace.due(step, is_busy=self._looker.is_busy)
        if due is not Due.NOTHING:
            self._look(behind=self._background, evaluates=due is Due.EVERYTHING)

    def _look(self, *, behind: bool, evaluates: bool = True) -> None:
        self._collect(wait=True)
        self._stand_back()
        if self._off:
            return
        if lost := self._pipeline.claim.lost:  # before anything is measured in vain
            raise LogTakenError(lost)
        started = self._pace.budget.now()
        note_signal_handlers()
        effort = self._pace.effort(self._pipeline.publish_s, evaluates=evaluates)
        if behind:
            self._looker.look_behind(self.step_count, effort)
            finished = None
        else:
            finished = self._looker.look(self.step_count, effort)
        evaluated = self._measurement.evaluates and evaluates
        self._under_way = (self._pace.budget.now() - started, evaluated)
        if finished is not None:
            self._finish(finished)

    def _stand_back(self) -> None:
        """Switch off where this process turns out not to be the one that watches the model.

        Asked before anything is written: the ranks may be known only after the attach.
        """
        why = why_another_rank_watches()
        if why and not self._opened:
            self._off = why
            _logger.info("sparsitywatch: this process does not watch: %s", why)
            return
        why = why or (self._replicas.why_different() if self._replicas else "")
        if why:
            self._switch_off(why)

    def _collect(self, *, wait: bool = False) -> None:
        """Take what has been finished behind the training."""
        finished = self._looker.collect(wait=wait)
        if finished is not None:
            self._pace.budget.spend(finished.behind_s)
            self._finish(finished)

    def _settle(self) -> None:
        """Wait for the look that is on its way; in a forked child there is none."""
        if not self._is_idle():
            with self._boundary():
                self._collect(wait=True)

    def _finish(self, finished: Finished) -> None:
        in_front_s, evaluated = self._under_way
        self._pace.budget.book(in_front_s + finished.behind_s, evaluated=evaluated)
        self._pipeline.act(finished.record, finished.events)
        if finished.events or self._pipeline.is_suspicious:
            self._pace.alert(finished.record.step)
        self._count(finished.record)

    def _count(self, record: Record) -> None:
        self._last_step = record.step
        if record.curve is not None:
            self._last_evaluated_step = record.step
        self._failures = 0 if record.valid else self._failures + 1
        if self._failures < _MAX_FAILURES:
            self._tell_again(_TELL_S if record.valid else 0.0)
        else:
            self._switch_off(f"{self._failures} looks in a row failed; the last: {record.reason}")

    @contextlib.contextmanager
    def _boundary(self) -> Iterator[None]:
        """Where faults end: they end the watch, not the training. What it takes is counted."""
        self._pace.budget.enter()
        try:
            yield
        except LogTakenError as error:
            self._switch_off(str(error))
        except BaseException as error:  # sorted by let_out
            let_out(error, strict=self._strict)
            _logger.exception("sparsitywatch: unexpected error")
            self._switch_off(shown_error(error))
        finally:
            self._pace.budget.leave()

    def _switch_off(self, reason: str) -> None:
        self._off = reason
        _logger.error("sparsitywatch: the watch switched itself off: %s", reason)
        if self._opened:
            self._looker.close()
            self._tell("off", reason)
            self._pipeline.close()

    def _tell_again(self, seconds: float) -> None:
        """Tell the sinks that the watch is on, unless they were told within these seconds."""
        if time.monotonic() - self._told_at >= seconds:
            self._tell("on")

    def _tell(self, status: str, reason: str = "") -> None:
        """Tell the sinks how the watch is; never in the thread behind the training."""
        self._told_at = time.monotonic()
        seen_until = max(self._last_step, self._begun_at)
        self._pipeline.tell(
            WatchState(
                status=status,
                reason=reason,
                step=self.step_count,
                wall_time=time.time(),
                last_step=self._last_step,
                last_evaluated_step=self._last_evaluated_step,
                next_due_step=self._pace.next_due(seen_until),
                num_failures=self._failures,
                overhead=self._pace.budget.overhead(),
                step_s=self._pace.step_s,
                pid=os.getpid(),
                host=socket.gethostname(),
            )
        )

    def _open(self) -> None:
        """Begin the log at the first look or step, when the initial step is known."""
        if not self._opened:
            self._stand_back()
        if self._opened or self._off:
            return
        self._opened = True
        self._step = self._trace.steps_done if self._step is None else self._step
        self._begun_at = self._step
        begin(self._step, self._scope, self._measurement, self._pipeline, self._trace)
        for record in self._pipeline.records:
            self._last_step = record.step
            if record.curve is not None:
                self._last_evaluated_step = record.step
        self._tell("on")
