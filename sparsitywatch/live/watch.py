"""``watch``: everything a user may ask for, checked, then turned into a Watcher."""

from __future__ import annotations

import contextlib
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import get_args

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from typing_extensions import Unpack

from sparsitywatch.actions import log_event
from sparsitywatch.analysis.detect import Detector
from sparsitywatch.errors import (
    ConfigurationError,
    MeasurementError,
    ProxyError,
    ScopeError,
    expect,
    expect_path,
    expect_whole,
)
from sparsitywatch.evaluation.masked import MaskedModel
from sparsitywatch.live.behind import Where
from sparsitywatch.live.ring import Ring
from sparsitywatch.live.schedule import BudgetedSchedule, Schedule
from sparsitywatch.live.snapshots import SnapshotTaker, tried
from sparsitywatch.live.trace import OptimizerTrace, unwrap_optimizers
from sparsitywatch.live.watcher import Watcher
from sparsitywatch.pipeline.measure import Examiner, RunContext, expect_model
from sparsitywatch.pipeline.pipeline import Pipeline
from sparsitywatch.pipeline.rundir import Claim, place, prepare
from sparsitywatch.proxy.proxy import Proxy
from sparsitywatch.ranks.protocol import ALONE, Ranks, is_distributed
from sparsitywatch.ranks.reading import WHOLE_MODEL, ShardedReader
from sparsitywatch.records import Event, Record
from sparsitywatch.redact import logger, redacted_error
from sparsitywatch.settings import Settings, SettingsFields, checked_detectors
from sparsitywatch.sinks.base import Sink
from sparsitywatch.sinks.jsonl import JsonlSink
from sparsitywatch.sinks.tensorboard import TensorBoardSink
from sparsitywatch.vital import VitalReviewer, VitalTracker, XRayReviewer
from sparsitywatch.weights.clock import names_of
from sparsitywatch.weights.layout import unwrap_model
from sparsitywatch.weights.motion import MotionTracker
from sparsitywatch.weights.scope import Scope, named_parameters
from sparsitywatch.weights.sharded import expect_whole_model, flat_parameters, modules_of
from sparsitywatch.weights.snapshot import Snapshot


def watch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
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
    evaluate: Where = "inline",
    keep_spectra: int = 1,
    initial_step: int | None = None,
    ring: bool | None = False,
    strict: bool = False,
    **fields: Unpack[SettingsFields],
) -> Watcher:
    """Watch a training: take a snapshot of its weights now and then, and say what it tells.

    The training loop stays as it is. With the environment variable
    ``SPARSITYWATCH_DISABLED=1`` nothing is done, nothing is written.

    In a training of several processes every rank calls it, with the same arguments, once the model
    is in its parts; rank 0 writes and acts. docs/distributed.md says more.

    Args:
        model: the model in training, in whatever wrappers (compiled, DDP), whole or sharded
            (FSDP2, DTensors).
        optimizer: whose steps count: one optimizer, or several, of which one round of all is a
            step. None: of those that step this model the one that holds most of the weights in
            scope counts, whichever it is by then. What any optimizer of this process does to the
            weights is taken into the clocks in either case. A loop whose steps no hook can see
            calls ``watcher.step()`` after each.
        logdir: everything goes to ``<logdir>/sparsitywatch/``; None to write nothing.
        proxy: what to evaluate; without one there is no essential sparsity, only what the
            weights say by themselves.
        every: take a snapshot every so many optimizer steps, or a function step -> bool such as
            ``adaptive(500)``, which takes more of them while something is going on.
        settings: what is measured and how; by default ``Settings()``.
        detectors: by name of the series to watch, see ``Record.series``. By default
            ``DormantRise()`` on the dormant weights, the early signal, ``AbruptChange`` on the
            near-zero rules as one family, ``MeasuredChange`` on essential sparsity and reliance,
            and ``ValueChange()`` on the value of the model as it is.
        on_event: called with each event; by default a warning is logged. ``sw.actions`` has
            more: a webhook, checkpoints. What is learned about an event later calls none.
        on_record: called with each record.
        sinks: further sinks beside TensorBoard and JSONL.
        max_overhead: largest share of the wall time that the watch may take, in (0, 1], from the
            first step to the end of ``close``. What is due is left out, and counted, until it
            is paid for. A fifth of it is for snapshots of the weights, which are cheap, the rest
            for evaluating the proxy, so that the one never waits for the other. Beside it come a
            first look, after the first step of a new log, and one at the end of a training that
            has no other. None: everything that is due is done.
        background: measure and write behind the training what needs neither the model nor
            the optimizer; False: finish every snapshot before the training goes on. Either way
            ``on_event`` and ``on_record`` are called in the training's thread, at a later
            step if the snapshot was behind it.
        evaluate: where the proxy is evaluated: "inline" holds up the training. "behind" is a fork
            of its process, with one thread, on Linux, for a model on a CPU with a core that is
            idle; what the value function puts aside stays there. Where that is not safe it is
            inline, as with ``background=False``. "auto" is "behind" where torch has one thread, so
            that values are the same bits, else inline.
        keep_spectra: keep the magnitude spectrum of every so many snapshots on disk, beside the
            last one's. All by default; the spectra are most of a log.
        initial_step: optimizer steps done before this call. None: from
            ``watcher.load_state_dict``, else from the optimizer's own count, else that of the log's
            record of these very weights, else 0.
        ring: keep how far each block moved at each of the last 2,000 steps, to say where a spike
            of the loss began. None: where that takes at most 0.3 % of a step; 20 steps try it.
        strict: let what goes wrong in the watch out, for tests.
        fields: fields of ``Settings`` that differ from it, such as ``tolerance=0.02``,
            ``scope="layers"`` or ``levels=[0.5, 0.9]``.

    Raises:
        ConfigurationError: an argument cannot be used; nothing has been written yet.
        ScopeError: the scope selects nothing, or the model is one process's part of the whole
            one in a way that cannot be watched (ZeRO-3, a stage of a pipeline), or some ranks
            have not called this.
        ProxyError: the proxy does not work on this model: it raises, leaves behind what cannot be
            put back, or communicates with processes that do not watch.
    """
    chosen = Settings.of(settings, **fields)
    expect_model(model, proxy)
    _expect(
        initial_step, logdir, keep_spectra, evaluate, ring, background=background, strict=strict
    )
    inner = unwrap_model(model)
    ranks, off = _who_watches(inner, logdir)
    leads = not off and ranks.rank == 0
    with _on_every(ranks):
        optimizers = unwrap_optimizers(optimizer)
    held = _held(optimizers, inner, ranks)
    with _on_every(ranks):
        scope = Scope.of(inner, chosen.scope, held=held)
        schedule = BudgetedSchedule(every, max_overhead, evaluates=proxy is not None, tells=leads)
        claim = Claim(place(logdir) if logdir is not None and leads else None)
        moves = Ring(ring if leads else False, claim, strict=strict)
        pipeline = Pipeline(
            claim=claim,
            in_log=(partial(JsonlSink, keep_spectra=keep_spectra), TensorBoardSink),
            sinks=sinks if leads else (),
            detectors=checked_detectors(detectors, chosen),
            reviewers=(VitalReviewer(), XRayReviewer(), moves),
            on_event=on_event if leads else (),
            on_record=on_record if leads else (),
            strict=strict,
        )
    has = {"proxy": proxy is not None, "optimizer": optimizer is not None}
    given = {"every": every, "max_overhead": max_overhead, **has}
    with _on_every(ranks):  # who has failed above does not come here
        _check_alike(ranks, scope, chosen, given)
        checked = _shared(proxy, inner, ranks, threads_draw=chosen.threads_draw)
        untried, dense = "", None
        if checked is not None and not off:
            untried, dense, scope = tried(checked, inner, scope, chosen)
        motion = MotionTracker.of(chosen.dormant_samples)
        reader, examiner = _readers(inner, scope, ranks, watches_all=motion is not None)
        if checked is not None:
            _check_patterns(chosen, reader)
        notes = (scope.note_on_trained, scope.note_on_reparametrized, scope.note_on_stored)
        for note in filter(None, (*notes, _average_of(optimizers, inner)) if leads else ()):
            logger.warning("%s", note)
        snapshot = Snapshot.of(inner, scope, 0)
        run = RunContext(
            settings=chosen, scope=scope, proxy=checked, dtypes=snapshot.dtypes, strict=strict
        )
        masked = MaskedModel(model, scope, reader)
        trace = OptimizerTrace(optimizers, dict(scope.sizes), motion, examiner)
        where = evaluate if background else "inline"
        taker = SnapshotTaker(masked, run, reader, pipeline, trace, schedule.budget, where)
        taker.behind.untried = untried
        if not off:
            trace.attach(ranks)
            taker.begin(initial_step, behind=background)
            taker.price(snapshot, dense)
            moves.attach(taker.lookup()[1])
        if claim.directory is not None:
            prepare(claim.directory)
        return Watcher(
            taker, schedule, ranks, moves, background=background, initial_step=initial_step, off=off
        )


class WatchOptions(SettingsFields, total=False):
    """Keywords of ``watch`` that a framework's callback passes on as they are."""

    every: int | Schedule
    settings: Settings | None
    detectors: Mapping[str, Detector] | None
    on_record: Sequence[Callable[[Record], object]]
    sinks: Sequence[Sink]
    max_overhead: float | None
    background: bool
    evaluate: Where
    keep_spectra: int
    ring: bool | None
    strict: bool


def option_names() -> frozenset[str]:
    """What ``watch`` takes beside a model and an optimizer, the fields of ``Settings`` too."""
    own = inspect.signature(watch).parameters.keys() - {"model", "optimizer", "fields"}
    return Settings.names() | own


def _expect(
    initial_step: object, logdir: object, keep_spectra: object, evaluate: object, ring: object,
    **flags: object,
) -> None:  # fmt: skip
    """Refuse arguments of another kind."""
    is_known = isinstance(evaluate, str) and evaluate in get_args(Where)
    expect(is_known, "evaluate", "'inline', 'behind' or 'auto'", evaluate)
    expect(ring is None or isinstance(ring, bool), "ring", "True, False or None", ring)
    if initial_step is not None:
        expect_whole("initial_step", initial_step, 0)
    if logdir is not None:
        expect_path("logdir", logdir, "a local directory or None")
    for name, flag in flags.items():
        expect(isinstance(flag, bool), name, "True or False", flag)
    expect_whole("keep_spectra", keep_spectra, 1)


def _held(
    optimizers: Sequence[torch.optim.Optimizer], model: nn.Module, ranks: Ranks
) -> set[str] | None:
    """Names of what any rank's optimizers hold; None where they hold none of it, or copies."""
    names = names_of(dict(named_parameters(model)))
    own = {id(p) for optimizer in optimizers for g in optimizer.param_groups for p in g["params"]}
    known = own <= names.keys()
    every = ranks.gather((known, [name for key in own & names.keys() for name in names[key]]))
    found = {name for _, held in every for name in held}
    return found if found and all(is_known for is_known, _ in every) else None


def _average_of(optimizers: Sequence[torch.optim.Optimizer], model: nn.Module) -> str:
    """Which weights are watched, where a training has several; empty where it has one."""
    if any(isinstance(module, AveragedModel) for module in model.modules()):
        return (
            "the numbers are about an average of the weights (AveragedModel), which no optimizer "
            "trains."
        )
    for kind in map(type, optimizers):
        if kind.__module__.startswith("schedulefree."):
            return (
                f"the numbers are about the weights that {kind.__name__} takes gradients at (y), "
                "not about their average (x), which it evaluates after optimizer.eval()."
            )
    return ""


def _shared(
    proxy: Proxy | None, model: nn.Module, ranks: Ranks, *, threads_draw: bool
) -> Proxy | None:
    """The proxy as all ranks evaluate it."""
    if proxy is None:
        return None
    if flat_parameters(modules_of(model)):
        raise ProxyError(
            "Expected a model without FSDP1 (FullyShardedDataParallel) for a proxy, since "
            "its weights cannot be masked where they lie. Use FSDP2 (fully_shard), or "
            "leave `proxy` out: the weights are watched all the same."
        )
    return proxy.shared(ranks, threads_draw=threads_draw)


def _readers(
    model: nn.Module, scope: Scope, ranks: Ranks, *, watches_all: bool
) -> tuple[ShardedReader, Examiner]:
    """What reads the in-scope parameters, and what looks at every one."""
    if ranks.is_alone:
        return WHOLE_MODEL, VitalTracker(WHOLE_MODEL) if watches_all else Examiner()
    parameters, every = scope.lookup(model)
    reader = ShardedReader.of(parameters, ranks)
    if not watches_all:
        return reader, Examiner()
    try:
        of_all = ShardedReader.of(every, ranks)
    except (ScopeError, MeasurementError) as error:  # of one out of scope
        return reader, VitalTracker(WHOLE_MODEL, reason=redacted_error(error))
    return reader, VitalTracker(WHOLE_MODEL if of_all.holds == "replicas" else of_all)


def _check_patterns(settings: Settings, reader: ShardedReader) -> None:
    """Refuse a pattern that would remove other weights on each rank."""
    held = ("alone", "replicas", "shards")  # from all of a model by itself to a part of it
    for pattern in (settings.pattern, *settings.controls):
        if held.index(reader.holds) > held.index(pattern.ranks):
            raise ConfigurationError(
                f"Expected a pattern that the ranks can apply to what each of them holds, got "
                f"{pattern.name!r}. Use 'global', 'global_normalised' or 'layerwise', or measure "
                "the checkpoints with `sparsitywatch replay --pattern`."
            )


@contextlib.contextmanager
def _on_every(ranks: Ranks) -> Iterator[None]:
    """What is refused on one rank is refused on all of them."""
    try:
        with ranks.all_or_none("attaching"):
            yield
    except MeasurementError as error:
        raise ConfigurationError(
            f"Expected a watch that can be attached on every rank, but it {error}"
        ) from error


def _check_alike(
    ranks: Ranks, scope: Scope, settings: Settings, arguments: Mapping[str, object]
) -> None:
    """Refuse ranks that would not do the same at the same steps."""
    every = arguments["every"]
    given = {
        **arguments,
        "scope": scope.hash,
        # a function is another object on each rank; what a scope selects is compared above
        "settings": re.sub(r" at 0x\w+", "", repr(replace(settings, scope="blocks"))),
        "every": every if isinstance(every, int) else type(every).__name__,
    }
    for rank, other in enumerate(ranks.gather(given)):
        for name, value in given.items():
            if other[name] != value:
                raise ConfigurationError(
                    f"Expected the same `{name}` on every rank, got {value!r} on rank "
                    f"{ranks.rank} and {other[name]!r} on rank {rank}."
                )


def _who_watches(model: nn.Module, logdir: str | os.PathLike[str] | None) -> tuple[Ranks, str]:
    """The ranks that watch together, and why this process does not; empty if it does."""
    if os.environ.get("SPARSITYWATCH_DISABLED", "") not in ("", "0"):
        logger.info("switched off by SPARSITYWATCH_DISABLED")
        return ALONE, "SPARSITYWATCH_DISABLED is set"
    modules = modules_of(model)
    expect_whole_model(modules, are_parts_read=True)
    ranks = ALONE
    if is_distributed():
        from sparsitywatch.ranks.group import join  # of no use to a process by itself

        ranks = join(model, "" if logdir is None else os.fspath(logdir))
    expect_whole_model(modules, are_parts_read=not ranks.is_alone)
    off = ranks.why_another_watches()
    if off:
        logger.info("this process does not watch: %s", off)
    return ranks, off
