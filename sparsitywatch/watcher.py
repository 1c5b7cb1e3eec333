"""The live driver: attach to an optimizer, look when due, let nothing out, close."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsitywatch.errors import StateError
from sparsitywatch.logdir import set_aside
from sparsitywatch.measurement import Measurement
from sparsitywatch.optimizer_trace import OptimizerTrace
from sparsitywatch.optimizers import step_was_skipped
from sparsitywatch.pipeline import Pipeline
from sparsitywatch.pruning.masked import MaskedModel
from sparsitywatch.records import Detail, Dormant, Event, Record, RunInfo
from sparsitywatch.resume import check_state, take_up
from sparsitywatch.schedule import Schedule
from sparsitywatch.weights.motion import Motion
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import Snapshot

__all__ = ["Watcher"]

_logger = logging.getLogger("sparsitywatch")

_MAX_FAILURES = 3  # looks that fail in a row, then the watch is off


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
        schedule: when to look.
        motion: remembers the weights of the last look; None to leave motion out.
        directory: where the sinks write, or None.
        initial_step: steps done before the first one that is watched; None to find out.
        strict: let what goes wrong out, for tests.
        off: why this watch does nothing; empty if it does.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        *,
        scope: Scope,
        measurement: Measurement,
        pipeline: Pipeline,
        schedule: Schedule,
        motion: Motion | None,
        directory: Path | None,
        initial_step: int | None,
        strict: bool = False,
        off: str = "",
    ) -> None:
        self._masked, self._scope = MaskedModel(model, scope), scope
        self._measurement, self._pipeline, self._schedule = measurement, pipeline, schedule
        self._directory, self._strict, self._off = directory, strict, off
        self._trace = OptimizerTrace(optimizer, scope, motion)
        self._step = initial_step
        self._pid = os.getpid()
        self._opened = self._closed = False
        self._failures = self._steps_seen = 0
        self._handle: Any = None
        if not off:
            self._look_at_optimizer(
                self._trace.steps_done if initial_step is None else initial_step
            )
        if optimizer is not None and not off:
            # a compiled optimizer step must not trace into the watch
            hook = torch.compiler.disable(self._on_optimizer_step)  # type: ignore[no-untyped-call]
            self._handle = optimizer.register_step_post_hook(hook)

    @property
    def records(self) -> list[Record]:
        """Every record so far, also those of the process that this one resumes.

        Layers are kept for the latest hundred only; the log has them all.
        """
        return self._pipeline.records

    @property
    def events(self) -> list[Event]:
        """Every event so far."""
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
        return self._off

    def __enter__(self) -> Watcher:  # noqa: PYI034 typing.Self needs Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def step(self, step: int | None = None) -> None:
        """Say that an optimizer step was taken, for loops whose optimizer hooks cannot see.

        Once called, it alone counts: the optimizer's hook is taken off.

        Args:
            step: steps done by now; by default one more than before.
        """
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        if self._is_idle():
            return
        with self._boundary():
            self._advance(self.step_count + 1 if step is None else step)

    def snapshot(self) -> Record:
        """Look now, whatever the schedule says.

        Returns:
            The record of this step: the one that there is already if this step has been
            looked at. It is invalid, with the reason, if something failed.
        """
        started = time.perf_counter()
        if self._is_idle():
            why = self._off or ("closed" if self._closed else "in a forked process")
            error = RuntimeError(f"the watch is off: {why}")
            return self._measurement.failed(self.step_count, error, started)
        with self._boundary():
            self._open()
            if self.records and self.records[-1].step == self.step_count:
                return self.records[-1]
            return self._look()
        return self._measurement.failed(self.step_count, RuntimeError(self._off), started)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run goes on from: numbers, strings and tensors (weights-only safe)."""
        return {
            "step": self.step_count,
            "scope_hash": self._scope.hash,
            "proxy_hash": self._measurement.provenance.proxy_hash,
            "initial_rms": dict(self._measurement.initial_rms),
            "optimizer": self._trace.state_dict(),
            "detectors": self._pipeline.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave; call it before the first step.

        Raises:
            StateError: a key is missing, the state is of another scope or proxy, or steps
                have been watched already.
        """
        check_state(state, self._measurement.provenance)
        if self._opened or self._steps_seen:
            raise StateError("Expected load_state_dict before the first step, got it after.")
        self._step = int(state["step"])
        self._measurement.initial_rms = dict(state["initial_rms"])
        self._trace.load_state_dict(state["optimizer"])
        self._open()
        self._pipeline.load_state_dict(state["detectors"])

    def close(self) -> None:
        """Detach and finish the sinks; the model and the optimizer stay as they are."""
        if self._closed:
            return
        self._closed = True
        if self._handle is not None:
            self._handle.remove()
        if self._off or os.getpid() != self._pid:
            return
        if self._steps_seen == 0 and not self._opened:
            _logger.warning(
                "sparsitywatch: no optimizer step was seen. A copied or unpickled optimizer has "
                "no hooks: attach to the one that steps, or call watcher.step()."
            )
        if self._opened:
            self._pipeline.close()

    # ------------------------------------------------------------------ the hook

    def _is_idle(self) -> bool:
        return bool(self._off) or self._closed or os.getpid() != self._pid

    def _on_optimizer_step(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        if self._is_idle():
            return
        with self._boundary():
            if step_was_skipped(optimizer):
                return
            if self._step is None:  # not told, so the optimizer's own count says it
                self._step = max(self._trace.steps_done - 1, 0)
            self._advance(self._step + 1)

    def _advance(self, step: int) -> None:
        self._open()
        self._step = step
        self._steps_seen += 1
        self._trace.advance()
        if self._schedule(step):
            self._look()

    def _look(self) -> Record:
        started = time.perf_counter()
        detail = Detail()
        with torch.no_grad():
            try:
                snapshot, decay_clock, dormant = self._look_at_optimizer(self.step_count)
                record, detail = self._measurement.record(
                    snapshot,
                    self._masked,
                    started=started,
                    decay_clock=decay_clock,
                    dormant=dormant,
                    previous=self._pipeline.last_curve,
                    publish_s=self._pipeline.publish_s,
                    strict=self._strict,
                )
            except Exception as error:
                if self._strict:
                    raise
                _logger.exception("sparsitywatch: the look at step %d failed", self.step_count)
                record = self._measurement.failed(self.step_count, error, started)
            self._pipeline.publish(record, detail)
        self._count_failures(record)
        return record

    def _look_at_optimizer(self, step: int) -> tuple[Snapshot, float, Dormant | None]:
        parameters = self._scope.parameters(self._masked.module)
        snapshot = Snapshot.of(self._masked.module, self._scope, step)
        return snapshot, *self._trace.look(snapshot, parameters)

    def _count_failures(self, record: Record) -> None:
        self._failures = 0 if record.valid else self._failures + 1
        if self._failures >= _MAX_FAILURES:
            self._switch_off(f"{self._failures} looks in a row failed; the last: {record.reason}")

    @contextlib.contextmanager
    def _boundary(self) -> Iterator[None]:
        """Where faults end: they end the watch, not the training."""
        try:
            yield
        except Exception as error:
            if self._strict:
                raise
            _logger.exception("sparsitywatch: unexpected error")
            self._switch_off(f"{type(error).__name__}: {error}")

    def _switch_off(self, reason: str) -> None:
        self._off = reason
        _logger.error("sparsitywatch: the watch switched itself off: %s", reason)
        if self._opened:
            self._pipeline.close()

    # ------------------------------------------------------------------ the log

    def _open(self) -> None:
        """Open the sinks at the first look or step, when the initial step is known."""
        if self._opened:
            return
        self._opened = True
        if self._step is None:
            self._step = self._trace.steps_done
        initial = self._step
        if self._directory is not None:
            if initial == 0:
                set_aside(self._directory)
            else:
                take_up(self._directory, initial, self._measurement, self._pipeline, self._trace)
        info = RunInfo(
            initial_step=initial,
            provenance=self._measurement.provenance,
            ledger=self._scope.ledger,
            initial_rms=self._measurement.initial_rms,
        )
        self._pipeline.open(info)
