"""``replay``: everything a user may ask for, checked, then handed to the driver."""

from __future__ import annotations

import copy
import os
import pickle
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn
from typing_extensions import Unpack

from sparsitywatch.actions import log_event
from sparsitywatch.analysis.detect import Detector
from sparsitywatch.checkpoints.addresses import short_names
from sparsitywatch.checkpoints.discovery import Places, discover
from sparsitywatch.checkpoints.series import Listed, ListedCheckpoint, by_series, select
from sparsitywatch.checkpoints.storage import Options, Url
from sparsitywatch.errors import (
    ConfigurationError,
    StateError,
    expect,
    expect_functions,
    expect_mapping,
    expect_path,
    expect_whole,
    is_number,
    listed,
)
from sparsitywatch.evaluation.checks import check_proxy, seen_scope
from sparsitywatch.offline.driver import Patience, Replayed, Replayer
from sparsitywatch.offline.jobs import ModelFactory, Plan, window_of, without_weights
from sparsitywatch.offline.rates import Rate, Rates
from sparsitywatch.pipeline.pipeline import Pipeline, as_sinks
from sparsitywatch.pipeline.rundir import Claim, place
from sparsitywatch.proxy.proxy import Proxy
from sparsitywatch.records import Event, Record
from sparsitywatch.redact import redacted_url
from sparsitywatch.settings import Settings, SettingsFields, checked_detectors, default_detectors
from sparsitywatch.sinks.base import Sink
from sparsitywatch.sinks.jsonl import JsonlSink, read_manifest
from sparsitywatch.sinks.tensorboard import TensorBoardSink
from sparsitywatch.vital import FilesReviewer, OneRunReviewer, VitalReviewer, XRayReviewer
from sparsitywatch.weights.layout import unwrap_model
from sparsitywatch.weights.scope import LEFT_OUT, Scope, ScopeLike


def replay(
    urls: Places,
    *,
    logdir: str | os.PathLike[str] | None,
    model: nn.Module | Callable[[], nn.Module] | None = None,
    proxy: Proxy | None = None,
    executor: Executor | None = None,
    settings: Settings | None = None,
    initial_rms: Mapping[str, float] | str | os.PathLike[str] | None = None,
    lr: Rate | None = None,
    weight_decay: Rate | None = None,
    steps_per_epoch: int | None = None,
    detectors: Mapping[str, Detector] | None = None,
    on_event: Sequence[Callable[[Event], object]] = (log_event,),
    on_record: Sequence[Callable[[Record], object]] = (),
    on_failure: Sequence[Callable[[ListedCheckpoint], object]] = (),
    on_progress: Sequence[Callable[[int, int], object]] = (),
    on_waiting: Sequence[Callable[[str], object]] = (),
    on_series: Sequence[Callable[[str], object]] = (),
    sinks: Sequence[Sink] = (),
    storage_options: Mapping[str, Any] | None = None,
    key: str | None = None,
    max_in_flight: int | None = None,
    follow: bool = False,
    poll_s: float = 5.0,
    idle_timeout_s: float | None = None,
    until: Callable[[], bool] | None = None,
    keep_spectra: int = 1,
    each: bool = False,
    **fields: Unpack[SettingsFields],
) -> Replayed:
    """Measure saved checkpoints: the same records, events and files as from a live watch.

    The same weights give the same record as live, but for wall time, costs, and what only an
    optimizer knows: unless ``lr`` and ``weight_decay`` are known, the decay clock and the forecast
    are not, and what moved between two checkpoints is estimated from the
    weights (``dormant.estimated``), as is by how much the decay clock advanced, where weights
    without gradient show it (``dormant.estimated_advance``).

    A replay that was killed does only what is missing when it is started again.

    Args:
        urls: checkpoints, folders of them and patterns such as "runs/bert/checkpoint-*", on
            any storage that fsspec knows. They are measured by step. They are those of one run:
            their addresses are the same, but for the step and what goes on with it (epoch,
            tokens, a loss, a rank). Where neither names nor contents say the step, or the
            addresses differ in more, give each with its step: ``{0: url, 1000: url}``.
        logdir: everything goes to ``<logdir>/sparsitywatch/``; None to write nothing.
        model: what was trained, or a function that makes it. Every parameter is overwritten by
            those of the checkpoints. Without it nothing but tensors is needed; which weights
            count is then decided by their names and shapes.
        proxy: what to evaluate, as live; needs ``model``.
        executor: who measures: any ``concurrent.futures.Executor`` (threads, processes that are
            spawned, ``client.get_executor(pure=False)`` of dask). It gets URLs and gives
            records; closing it is yours. None: this process, which
            without a model reads one checkpoint ahead.
        settings: what is measured and how; by default ``Settings()``.
        initial_rms: root mean square of each in-scope tensor that "initial" near-zero rules
            refer to, or the log directory of a run that has them; where that is about trained
            weights alone, so is the replay. By default those of the first checkpoint that can
            be read.
        lr: learning rate of the in-scope weights: a number, a function of the optimizer step (the
            first is 1), or a CSV file with rows of a step and a value, between which it is a
            straight line. By default what a Trainer of transformers has logged in the
            trainer_state.json of the latest checkpoint, held from one logged step to the next.
        weight_decay: their decoupled decay (AdamW, Lion), likewise; no file tells it but a pickle,
            which is not read. With both, decay clock, dormant weights and forecast are those of a
            live watch.
        steps_per_epoch: optimizer steps in an epoch, where checkpoints are numbered by epochs, as
            those of timm and torchvision: their numbers times this are the steps. Without it
            the epoch is the unit of every axis, and rates are refused.
        detectors: as of ``watch``; by default without that of the dormant weights unless
            ``weight_decay`` is given: the early signal comes late where decay must be estimated.
        on_event, on_record, sinks: as of ``watch``; what one of them raises ends the replay.
        on_failure: called with each checkpoint that cannot be measured; the others go on.
        on_progress: called with the number of checkpoints that are done and of all.
        on_waiting: called with the reason, once for each, why ``follow`` finds nothing to list yet.
        on_series: called with the name of each series before it is measured, with ``each``.
        storage_options: passed on to fsspec, such as credentials and an endpoint.
        key: what leads to the model in checkpoints that hold more than one, such as
            "model_ema": a dotted path, or what the names of its tensors begin with.
        max_in_flight: how many checkpoints an executor is given at once, at most; by default two to
            each worker.
        follow: wait for the checkpoints of a run that goes on; also for the first one. Ends
            with Ctrl-C, with ``idle_timeout_s`` and with ``until``.
        poll_s: seconds between two listings of the storage.
        idle_timeout_s: stop following when nothing new has come for so many seconds.
        until: stop following when it returns True; it is asked before each listing.
        keep_spectra: as of ``watch``.
        each: measure every series that is there, such as the runs of a sweep, into a log of its
            own, ``<logdir>/<name>``; see ``Replayed.each``. Not with ``follow`` or ``sinks``.
        fields: fields of ``Settings`` that differ from it, such as ``tolerance=0.02``,
            ``scope="layers"`` or ``levels=[0.5, 0.9]``.

    Returns:
        Records, events, and what could not be measured.

    Raises:
        ConfigurationError: an argument cannot be used, ``logdir`` holds something else, or the
            checkpoints are those of several runs, which are listed.
        ScopeError: the scope selects nothing.
        ProxyError: the proxy does not work on this model.
        CheckpointError: there are no checkpoints at all.
        StateError: the log of an earlier replay is damaged.
        OSError: the log cannot be written.
    """
    chosen = Settings.of(settings, **fields)
    places = checked_places(urls, storage_options, key)
    patience = Patience(poll_s=poll_s, idle_timeout_s=idle_timeout_s, until=until)
    told: dict[str, Any] = {"on_failure": on_failure, "on_progress": on_progress,
                            "on_waiting": on_waiting}  # fmt: skip
    numbers = {"max_in_flight": max_in_flight, "steps_per_epoch": steps_per_epoch}
    expect_whole("keep_spectra", keep_spectra, 1)
    _check(told | {"on_series": on_series}, numbers, {"each": each, "follow": follow})
    rms, chosen = _of_log(initial_rms, chosen, has_model=model is not None)
    scope, factory = _model(model, proxy, chosen.scope, executor)
    first = None if logdir is None else place(logdir)
    plan = Plan(
        settings=chosen,
        scope=scope,
        initial_rms=rms,
        storage_options=dict(storage_options or {}),
        key=key,
        factory=factory,
        proxy=proxy,
        num_threads=None if executor is None else 1,
    )
    sinks = as_sinks(sinks)

    def replayer(directory: Path | None, listed: Listed | None = None) -> Replayer:
        """What measures one run; nothing of it is shared with another one."""
        rates, in_log = Rates(lr, weight_decay), list[Sink]()
        if directory is not None:  # the lines of JSON come last: what they hold is everywhere
            in_log = [TensorBoardSink(directory), JsonlSink(directory, keep_spectra=keep_spectra)]
        pipeline = Pipeline(
            claim=Claim(directory),
            sinks=[*sinks, *in_log],
            detectors=_detectors(detectors, chosen, rates, is_copy=each),
            reviewers=(VitalReviewer(), FilesReviewer(), OneRunReviewer(), XRayReviewer()),
            on_event=on_event,
            on_record=on_record,
            strict=True,
        )
        return Replayer(
            plan=plan,
            pipeline=pipeline,
            urls=places,
            rates=rates,
            executor=executor,
            window=window_of(executor) if max_in_flight is None else max_in_flight,
            steps_per_epoch=steps_per_epoch,
            listed=listed,
            **told,
        )

    if not each:
        return replayer(first).run(patience if follow else None)
    is_alone = not (follow or sinks)
    expect(is_alone, "each", "False with `follow` or `sinks`, which are of one run", each)
    found = discover(places, plan.storage_options, key=key)
    return _replay_each(replayer, logdir, found, on_failure, on_series)


def _check(
    functions: Mapping[str, Any], numbers: Mapping[str, int | None], flags: Mapping[str, bool]
) -> None:
    for name, given in functions.items():
        expect_functions(name, given)
    for name, number in numbers.items():
        if number is not None:
            expect_whole(name, number, 1)
    for name, flag in flags.items():
        expect(isinstance(flag, bool), name, "True or False", flag)


def _replay_each(
    replayer: Callable[..., Replayer],
    logdir: str | os.PathLike[str] | None,
    listed: Listed,
    on_failure: Sequence[Callable[[ListedCheckpoint], object]],
    on_series: Sequence[Callable[[str], object]],
) -> Replayed:
    """Measure every series, one after the other; what is of none of them cannot be measured."""
    every = by_series(listed)
    if not every:  # at most one checkpoint, without a step
        return replayer(None if logdir is None else place(logdir), listed).run(None)
    names, found = short_names(list(every)), {}
    pending, others = select([one for one in listed if one.series not in names])
    rest = [*pending.values(), *others]
    failed = [one for one in rest if one.error is not None]
    for failure in failed:
        for function in on_failure:
            function(failure)
    for series, name in names.items():
        for begin in on_series:
            begin(name)
        directory = None if logdir is None else place(Path(logdir, name))
        own = [one for one in listed if one.series == series]
        try:
            found[name] = replayer(directory, own).run(None)
        except (ConfigurationError, StateError) as error:
            raise type(error)(f"In the series {name}: {error}") from error
    passed_over = [one for one in rest if one.error is None]
    return Replayed(
        records=[],
        events=[],
        failures=[*failed, *(f for one in found.values() for f in one.failures)],
        left_out=[*passed_over, *(f for one in found.values() for f in one.left_out)],
        num_snapshots=sum(one.num_snapshots for one in found.values()),
        directory=None if logdir is None else Path(logdir),
        notes=[note for one in found.values() for note in one.notes],
        each=found,
    )


def _detectors(
    given: Mapping[str, Detector] | None, settings: Settings, rates: Rates, *, is_copy: bool
) -> Mapping[str, Detector]:
    """Those that are given, or the default ones."""
    if given is not None:
        checked = checked_detectors(given, settings)
        return copy.deepcopy(checked) if is_copy else checked
    # without the schedule dormant weights are seen late, and stand for the take-off that they begin
    found = default_detectors(settings).items()
    return {n: d for n, d in found if rates.knows_decay or not n.startswith("motion/")}


def _model(
    model: nn.Module | Callable[[], nn.Module] | None,
    proxy: Proxy | None,
    scope: ScopeLike,
    executor: Executor | None,
) -> tuple[Scope | None, ModelFactory | None]:
    """Which weights count, if a model says it, and how workers come by the model."""
    is_executor = executor is None or isinstance(executor, Executor)
    expect(is_executor, "executor", "a concurrent.futures.Executor or None", executor)
    if model is None:
        if proxy is not None:
            raise ConfigurationError("Expected `model` beside `proxy`, got none: what to evaluate?")
        return None, None
    expect(callable(model), "model", "a torch.nn.Module or a function that makes one", model)
    made = model if isinstance(model, nn.Module) else model()
    is_model = isinstance(made, nn.Module)
    expect(is_model, "model", "a torch.nn.Module or a function that makes one", made)
    inner = unwrap_model(made)
    decided = Scope.of(inner, scope)
    if proxy is None:
        return decided, None  # the model has said which weights count
    check_proxy(proxy, inner, has_weights=False)
    decided = seen_scope(decided, scope, inner, proxy)
    make: Callable[[], nn.Module] = lambda: inner  # noqa: E731 for jobs in the caller's thread
    if executor is not None:
        make = without_weights(inner) if isinstance(model, nn.Module) else model
    factory = ModelFactory(make)
    if isinstance(executor, ProcessPoolExecutor):
        _check_picklable(factory, proxy)
    return decided, factory


def _check_picklable(factory: ModelFactory, proxy: Proxy) -> None:
    try:
        pickle.dumps((factory, proxy))
    except Exception as error:
        raise ConfigurationError(
            "Expected a `model` and a `proxy` that can be sent to other processes, but pickling "
            f"raised {type(error).__name__}: {error}. Define their functions at the top of a "
            "module."
        ) from error


def _of_log(
    given: Mapping[str, float] | Url | None, settings: Settings, *, has_model: bool
) -> tuple[Mapping[str, float] | None, Settings]:
    """The first sizes, and the settings with the scope of a run that left out what was frozen."""
    if given is None or isinstance(given, Mapping):
        is_good = all(isinstance(n, str) and is_number(x) for n, x in (given or {}).items())
        expect(is_good, "initial_rms", "numbers by name", given)
        return given, settings
    expect_path("initial_rms", given, "numbers by name or the log directory of a run")
    for directory in (place(given), Path(given)):
        manifest = read_manifest(directory)
        if manifest is not None:
            is_part = any(line.reason.endswith(LEFT_OUT) for line in manifest.ledger)
            if is_part and settings.scope == "blocks" and not has_model:
                settings = replace(settings, scope=[*manifest.initial_rms])
            return manifest.initial_rms, settings
    raise ConfigurationError(
        "Expected `initial_rms` to be numbers by name or the log directory of a run, found no "
        f"run in {os.fspath(given)!r}."
    )


def checked_places(
    urls: Places, storage_options: Options, key: str | None
) -> list[Url] | dict[int, Url]:
    """Where checkpoints are looked for, or which there are by step, once each."""
    options = {} if storage_options is None else storage_options
    expect_mapping("storage_options", options, "options of fsspec by name")
    expect(key is None or isinstance(key, str), "key", "a dotted path or None", key)
    what = "a path or a URL of checkpoints, a list of them, or one by each step"
    if isinstance(urls, Mapping):
        expect(bool(urls), "urls", "at least one step and its checkpoint", urls)
        for step, url in urls.items():
            expect_whole("urls", step, 0)
            expect_path(f"urls[{step}]", url, what)
        twice = [url for url, num in Counter(map(os.fspath, urls.values())).items() if num > 1]
        if twice:
            raise ConfigurationError(
                f"Expected each checkpoint once in `urls`, got {redacted_url(twice[0])} for "
                "several steps. Give each step its own."
            )
        return dict(urls)
    given = [urls] if isinstance(urls, str | os.PathLike) else listed("urls", urls, what)
    for index, url in enumerate(given):
        expect_path("urls" if given == [urls] else f"urls[{index}]", url, what)
    return given
