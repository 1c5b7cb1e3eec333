"""``watch``: everything a user may ask for, checked, then turned into a Watcher."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from sparsitywatch.analysis.detect import Detector
from sparsitywatch.errors import ConfigurationError, ScopeError, expect, expect_path, expect_whole
from sparsitywatch.live.ranks import Replicas, why_another_rank_watches, why_only_a_stage
from sparsitywatch.live.schedule import BudgetedSchedule, Schedule, as_schedule
from sparsitywatch.live.trace import unwrap_optimizer
from sparsitywatch.live.watcher import Watcher
from sparsitywatch.pipeline.measure import Context
from sparsitywatch.pipeline.pipeline import Pipeline, log_event
from sparsitywatch.pipeline.rundir import Claim, place, prepare
from sparsitywatch.pruning.proxy import Proxy
from sparsitywatch.records import Event, Record
from sparsitywatch.settings import Settings, SettingsFields, default_detectors
from sparsitywatch.sinks.base import Sink
from sparsitywatch.sinks.jsonl import JsonlSink
from sparsitywatch.sinks.tensorboard import TensorBoardSink
from sparsitywatch.weights.layout import unwrap_model
from sparsitywatch.weights.motion import MotionTracker
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import Snapshot, why_not_whole
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["watch"]

_logger = logging.getLogger("sparsitywatch")


def watch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    *,
    logdir: str | os.PathLike[str] | None,
    proxy: Proxy | None = None,
    every: int | Schedule = 500,
    settings: Settings | None = None,
    detectors: Mapping[str, Detector] | None = None,
    on_event: Sequence[Callable[[Event], object]] = (log_event,),
    on_record: Sequence[Callable[[Record], object]] = (),
    sinks: Sequence[Sink] = (),
    max_overhead: float | None = 0.01,
    background: bool = True,
    initial_step: int | None = None,
    strict: bool = False,
    **fields: Unpack[SettingsFields],
) -> Watcher:
    """Watch a training: take a snapshot of its weights now and then, and say what it tells.

    The training loop stays as it is. With the environment variable
    ``SPARSITYWATCH_DISABLED=1`` nothing is done, nothing is written.

    Args:
        model: the model in training, in whatever wrappers (compiled, DDP).
        optimizer: its steps are counted through a post-step hook. One that takes its place (a new
            one, a copy, one that was unpickled) is known by ten steps of the same weights with
            none of the first one between, and followed, with a warning. None if
            ``watcher.step()`` is called after each step instead.
        logdir: everything goes to ``<logdir>/sparsitywatch/``; None to write nothing.
        proxy: what to evaluate; without one there is no essential sparsity, only what the
            weights say by themselves.
        every: take a snapshot every so many optimizer steps, or a function step -> bool such as
            ``adaptive(500)``, which takes more of them while something is going on.
        settings: what is measured and how; by default ``Settings()``.
        detectors: by name of the series to watch, see ``Record.series``. By default
            ``DormantRise()`` on the dormant weights, the early signal, and
            ``AbruptChange()`` on the first near-zero rule.
        on_event: called with each event; by default a warning is logged. ``sw.actions`` has
            more: a webhook, checkpoints. What is learned about an event later calls none.
        on_record: called with each record.
        sinks: further sinks beside TensorBoard and JSONL.
        max_overhead: largest share of the wall time that the watch may take, in (0, 1].
            What is due is left out, and counted, to stay within it; the first of each never
            is. A fifth of it is for snapshots of the weights, which are cheap, the rest for
            evaluating the proxy, so that the one never waits for the other. None: everything
            that is due is done.
        background: measure and write behind the training what needs neither the model nor
            the optimizer; False: finish every snapshot before the training goes on. Either way
            ``on_event`` and ``on_record`` are called in the training's thread, at a later
            step if the snapshot was behind it.
        initial_step: optimizer steps done before this call. None: from
            ``watcher.load_state_dict``, else from the optimizer's own count, else 0.
        strict: let what goes wrong in the watch out, for tests.
        fields: fields of ``Settings`` that differ from it, such as ``tolerance=0.02``,
            ``scope="layers"`` or ``levels=[0.5, 0.9]``.

    Raises:
        ConfigurationError: an argument cannot be used; nothing has been written yet.
        ScopeError: the scope selects nothing, or the model is one process's part of the whole
            one (FSDP, ZeRO-3, a stage of a pipeline).
        ProxyError: the proxy does not work on this model: it raises, its forward communicates
            with other processes, or leaves behind what cannot be put back.
    """
    chosen = Settings.of(settings, **fields)
    _check(model, proxy, initial_step)
    if logdir is not None:
        expect_path("logdir", logdir, "a local directory or None")
    for name, flag in (("background", background), ("strict", strict)):
        expect(isinstance(flag, bool), name, "True or False", flag)
    inner = unwrap_model(model)
    off = _why_off()
    replicas = _check_whole(inner, logdir)
    scope = Scope.of(inner, chosen.scope)
    schedule = BudgetedSchedule(as_schedule(every), max_overhead, evaluates=proxy is not None)
    real_optimizer = None if optimizer is None else unwrap_optimizer(optimizer)
    for note in (scope.note_on_reparametrized, scope.note_on_stored):
        if note and not off:
            _logger.warning("sparsitywatch: %s", note)
    if proxy is not None and not off:
        proxy.check(inner)
    directory = None if logdir is None or off else place(logdir)
    pipeline = Pipeline(
        claim=Claim(directory),
        in_log=(JsonlSink, TensorBoardSink),
        sinks=sinks,
        detectors=default_detectors(chosen) if detectors is None else detectors,
        on_event=on_event,
        on_record=on_record,
        strict=strict,
    )
    snapshot = Snapshot.of(inner, scope, initial_step or 0)
    context = Context(
        settings=chosen,
        scope=scope,
        proxy=proxy,
        initial_rms={} if off else _rms(snapshot),
        dtypes=snapshot.dtypes,
        motion=MotionTracker.of(chosen.dormant_samples),
        strict=strict,
    )
    if directory is not None:
        prepare(directory)
    return Watcher(
        model,
        real_optimizer,
        context=context,
        pipeline=pipeline,
        schedule=schedule,
        background=background,
        initial_step=initial_step,
        off=off,
        replicas=replicas,
    )


def _check(model: object, proxy: object, initial_step: int | None) -> None:
    if not isinstance(model, nn.Module):
        raise ConfigurationError(
            f"Expected `model` to be a torch.nn.Module, got {type(model).__name__}."
        )
    if initial_step is not None:
        expect_whole("initial_step", initial_step, 0)
    is_proxy = proxy is None or isinstance(proxy, Proxy)
    expect(is_proxy, "proxy", "a sw.Proxy(batches, value) or None", proxy)


def _rms(snapshot: Snapshot) -> dict[str, float]:
    return MagnitudeSpectrum.of(snapshot.tensors).layer_rms()


def _why_off() -> str:
    """Why this process does not watch; empty if it does."""
    if _is_disabled():
        _logger.info("sparsitywatch: switched off by SPARSITYWATCH_DISABLED")
        return "SPARSITYWATCH_DISABLED is set"
    why = why_another_rank_watches()
    if why:
        _logger.info("sparsitywatch: this process does not watch: %s", why)
    return why


def _is_disabled() -> bool:
    return os.environ.get("SPARSITYWATCH_DISABLED", "") not in ("", "0")


def _check_whole(model: nn.Module, logdir: str | os.PathLike[str] | None) -> Replicas | None:
    """Refuse a model that is one process's part of the whole one, on every rank alike."""
    if _is_disabled():
        return None
    replicas = Replicas(model, "" if logdir is None else os.fspath(logdir))
    if why := why_not_whole(model) or why_only_a_stage(model) or replicas.why_different():
        raise ScopeError(f"Expected a model that this process holds all of, but {why}")
    return replicas
