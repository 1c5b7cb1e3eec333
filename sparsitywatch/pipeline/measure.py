"""Snapshot in, Record out: everything that one snapshot says about the weights."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from typing_extensions import Unpack

from sparsitywatch.analysis.estimate import (
    ROUNDING,
    allowed_harm,
    essential_alone,
    essential_sparsity,
)
from sparsitywatch.errors import ConfigurationError, MeasurementError, Seam, expect, reraise_foreign
from sparsitywatch.evaluation.checks import check_proxy, seen_scope
from sparsitywatch.evaluation.masked import MaskedModel, SweepResult, run_sweep
from sparsitywatch.proxy.proxy import Proxy
from sparsitywatch.ranks.protocol import ALONE
from sparsitywatch.ranks.reading import WHOLE_MODEL, ShardedReader
from sparsitywatch.records import (
    Began,
    Cost,
    Detail,
    EssentialSparsity,
    LayerColumns,
    Layers,
    LogHistogram,
    Provenance,
    Record,
    Replicas,
    SparsityCurve,
    Vital,
)
from sparsitywatch.records.run import __version__
from sparsitywatch.redact import logger, redacted_error
from sparsitywatch.series import numbered
from sparsitywatch.settings import Settings, SettingsFields
from sparsitywatch.sweeps import SameLevels
from sparsitywatch.weights.clock import OptimizerReading, Training
from sparsitywatch.weights.layout import natural_order, unwrap_model
from sparsitywatch.weights.motion import MASK_LEVELS, MotionReading, MotionTracker
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.sharded import Tensors, expect_whole_model, modules_of
from sparsitywatch.weights.snapshot import (
    FINGERPRINTED,
    LazyTensors,
    Sampler,
    Snapshot,
    fingerprint,
)
from sparsitywatch.weights.spectrum import MagnitudeSpectrum


class Seen(NamedTuple):
    """What was seen of every parameter."""

    vital: Vital | None = None
    #: of what was seen of a tensor's training: some of ``LayerColumns.numbers``, by name
    tensors: Mapping[str, Mapping[str, float]] = MappingProxyType({})


#: Finishes what was read, once, in any thread, given the spectrum of the weights in scope; None
#: where they were not counted.
Examined = Callable[[MagnitudeSpectrum | None], Seen]
#: What the model is worth at many levels, also by each control; and why it is not known.
Sweeps = tuple[SweepResult | None, dict[str, SweepResult], str]


def nothing_examined(_: MagnitudeSpectrum | None) -> Seen:
    """What is said where nobody looked."""
    return Seen()


class Examiner(Seam):
    """Looks at every parameter, not only at weights in scope; this one looks at nothing.

    The seam of vital signs. Ranks that watch together call each of theirs at the same snapshots.
    """

    def read(self, step: int, parameters: Tensors, training: Training | None) -> Examined:
        """Read what the next step may change of every parameter, in the training's thread."""
        return nothing_examined

    @property
    def sampled(self) -> Tensors:
        """Some weights of every parameter as ``read`` saw them last, by name; empty: none."""
        return {}

    def failed(self, reason: str) -> Examined:
        """What is said of a snapshot at which ``read`` failed."""
        return nothing_examined

    def state_dict(self) -> dict[str, Any]:
        """Numbers, strings and tensors that ``load_state_dict`` goes on from."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What every snapshot of a run is measured with."""

    settings: Settings
    scope: Scope
    proxy: Proxy | None = None
    #: root mean square of each in-scope tensor when the run was first seen; empty: the snapshot's
    initial_rms: Mapping[str, float] = field(default_factory=dict)
    began: Began | None = None  # how small they were then; None: its first snapshot says it
    fingerprint: str = ""  # of the weights when the watch was attached
    dtypes: tuple[str, ...] = ()
    unit: str = "step"  # what steps count, as in ``Provenance``
    strict: bool = False  # let what goes wrong out, for tests

    @cached_property
    def provenance(self) -> Provenance:
        """What the numbers of a record depend on."""
        proxy = self.proxy
        return Provenance(
            sparsitywatch=__version__,
            torch=torch.__version__,
            scope_hash=self.scope.hash,
            proxy_hash=proxy.hash if proxy else "",
            dtypes=self.dtypes,
            tolerance=self.settings.tolerance,
            tolerance_mode=self.settings.mode(
                higher_is_better=bool(proxy and proxy.higher_is_better)
            ),
            pattern=self.settings.pattern.name,
            unit=self.unit,
        )

    def allowed(self, dense: float) -> float:
        """The harm that is tolerated, given the value of the dense model."""
        mode = self.provenance.tolerance_mode
        return allowed_harm(dense, self.settings.tolerance, mode) + ROUNDING * abs(dense)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a snapshot says by itself; ``record_of`` completes the record."""

    record: Record
    detail: Detail = field(default_factory=Detail)  # what is too large for a record
    sample: Tensors = field(default_factory=dict)  # by name, on the CPU
    mask_thresholds: Sequence[float] = ()  # below which a weight would go, by ``MASK_LEVELS``
    initial_rms: Mapping[str, float] = field(default_factory=dict)  # as "initial" rules had it


def measure_snapshot(
    snapshot: Snapshot,
    run: RunContext,
    reader: ShardedReader = WHOLE_MODEL,
    *,
    model: MaskedModel | None = None,  # holds the weights; None to leave the evaluation out
    elsewhere: Callable[[], Sweeps] | None = None,  # waits for one that is on its way
    not_evaluated: str = "",  # why it is left out on purpose
    sampler: Sampler | None = None,  # of the weights to compare with those of other snapshots
    examined: Examined = nothing_examined,
) -> Measured:
    """Everything that a snapshot says by itself, whoever has taken it."""
    started = time.perf_counter()
    spectrum, mark, sample, replicas = counted(snapshot, reader, sampler)
    rms = spectrum.layer_rms()
    initial_rms = run.initial_rms or rms
    counted_at = time.perf_counter()
    here = partial(evaluated, snapshot.step, spectrum, run, model)
    result, controls, reason = (elsewhere or here)()
    arrays = spectrum.to_arrays()
    largest, *mask_thresholds = spectrum.thresholds([1.0, *MASK_LEVELS])
    seen = examined(spectrum)
    near_zero, near_zero_of = spectrum.near_zero_by_rule(run.settings.rules, initial_rms)
    return Measured(
        record=_record(
            snapshot.step,
            reason,
            run,
            num_nan=spectrum.num_nan,
            num_inf=spectrum.num_inf,
            num_zero=spectrum.num_zero,
            largest=math.nan if spectrum.num_nan else largest,
            near_zero=near_zero,
            fingerprint=mark,
            replicas=replicas,
            vital=seen.vital,
            not_evaluated=not_evaluated,
            **_worth(result, controls, run),
            layers=_layers(spectrum, rms, near_zero_of, result, seen),
            cost=Cost(
                stall_s=0.0,
                spectrum_s=counted_at - started,
                evaluation_s=time.perf_counter() - counted_at if result or reason else 0.0,
                num_forwards=sum(r.num_forwards for r in (result, *controls.values()) if r),
            ),
        ),
        detail=Detail(make_histograms=partial(_histograms, arrays), spectrum=arrays),
        sample=sample,
        mask_thresholds=mask_thresholds if sample else (),
        initial_rms=initial_rms,
    )


def _worth(
    result: SweepResult | None, controls: Mapping[str, SweepResult], run: RunContext
) -> dict[str, Any]:
    """What an evaluation says, as fields of a record; nothing without one."""
    if result is None:
        return {}
    curve = result.curve
    low, high = curve.reliance_interval(run.settings.confidence)
    return {
        "curve": curve,
        "controls": {name: control.curve for name, control in controls.items()},
        "reliance": curve.reliance,
        "reliance_low": low,
        "reliance_high": high,
        "essential_sparsity": _estimate(curve, controls, run),
        "xray": result.xray,
    }


def not_measured(step: int, reason: str, run: RunContext, not_evaluated: str = "") -> Measured:
    """What is said of a snapshot that could not even read the weights."""
    cost = Cost(stall_s=0.0, spectrum_s=0.0, evaluation_s=0.0, num_forwards=0)
    unread: Any = {"num_nan": -1, "num_inf": -1, "num_zero": -1, "near_zero": {}, "cost": cost}
    return Measured(record=_record(step, reason, run, not_evaluated=not_evaluated, **unread))


def _record(step: int, reason: str, run: RunContext, **said: Any) -> Record:
    """A record of now, with what the run says; it is valid if there is no reason why not."""
    return Record(
        step=step,
        wall_time=time.time(),
        valid=not reason,
        reason=reason,
        scope=run.scope.summary,
        provenance=run.provenance,
        **said,
    )


def compared(
    measured: Measured, motion: MotionTracker, optimizer: OptimizerReading | None, run: RunContext
) -> MotionReading:
    """What has moved since the last snapshot; its sample is remembered for the next one."""
    near_zero = None  # nothing is projected without a clock
    if optimizer is not None:
        rule = next(iter(run.settings.rules.values()))
        near_zero = rule.fixed_thresholds(measured.initial_rms)
    step, thresholds = measured.record.step, measured.mask_thresholds
    return motion.compare(step, measured.sample, thresholds, optimizer, near_zero)


def record_of(
    measured: Measured,
    optimizer: OptimizerReading | None = None,
    moved: MotionReading | None = None,
    **cost: Any,
) -> Record:
    """The record: what a snapshot says, what the optimizer did, what has moved, what it cost."""
    found = measured.record
    if optimizer is not None:
        fields = vars(found).keys() & vars(optimizer).keys()
        found = replace(found, **{name: getattr(optimizer, name) for name in fields})
    if moved is not None:
        columns = Layers.of(found.layers).columns
        dormant = [moved.layers.get(name, math.nan) for name in columns.names]
        numbers = {**columns.numbers, "dormant": np.array(dormant)}
        found = replace(
            found,
            dormant=moved.dormant,
            movement=moved.movement,
            masks=moved.masks,
            layers=Layers(replace(columns, numbers=numbers)),
        )
    return replace(found, cost=replace(found.cost, **cost))


def measure(
    model: nn.Module,
    proxy: Proxy | None = None,
    *,
    each: bool = False,
    settings: Settings | None = None,
    **fields: Unpack[SettingsFields],
) -> Record:
    """Measure one model as it is: no optimizer, no checkpoint, no log.

    The model stays as it is, to the last bit. What only a run knows is missing in the record: its
    step is 0, nothing has moved, and "initial" near-zero rules refer to the weights themselves.

    Args:
        model: in whatever wrappers (compiled, DDP).
        proxy: what to evaluate; without one there is no essential sparsity, only what the
            weights say by themselves.
        each: measure each in-scope tensor by itself, too, all others as they are: ``record.alone``.
            It takes about as long again for each tensor; less where all of it can go.
        settings: what is measured and how; by default ``Settings()``.
        fields: fields of ``Settings`` that differ from it, such as ``tolerance=0.02``.

    Returns:
        The record.

    Raises:
        ConfigurationError: a value cannot be used; the argument is named.
        ScopeError: the scope selects nothing, or the model is sharded over processes: `sw.watch`
            measures those, on every rank.
        ProxyError: the proxy does not work on this model.
        MeasurementError: the evaluation failed, or other threads may draw meanwhile and it cannot
            run in a fork (``threads_draw``).

    >>> torch.manual_seed(0).initial_seed()
    0
    >>> record = measure(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), scope="layers")
    >>> record.scope.num_weights, record.num_zero
    (80, 0)
    """
    expect_model(model, proxy)
    chosen = Settings.of(settings, **fields)
    expect(isinstance(each, bool), "each", "True or False", each)
    expect(not each or proxy is not None, "each", "False without a `proxy`", each)
    has_budgets = isinstance(vars(chosen.pattern).get("allocation"), dict)
    expect(not (each and has_budgets), "each", "False with sparsities by name of the tensor", each)
    inner = unwrap_model(model)
    expect_whole_model(modules_of(inner))
    scope = Scope.of(inner, chosen.scope)

    def measured(scope: Scope) -> Record:
        if proxy is not None:
            check_proxy(proxy, inner)
            scope = seen_scope(scope, chosen.scope, inner, proxy)
        snapshot = Snapshot.of(inner, scope, 0)
        run = RunContext(
            settings=chosen, scope=scope, proxy=proxy, dtypes=snapshot.dtypes, strict=True
        )
        started = time.perf_counter()
        with torch.no_grad():
            found = measure_snapshot(snapshot, run, model=MaskedModel(model, scope))
            if each and proxy is not None:
                alone = _each_alone(MagnitudeSpectrum.of(snapshot.tensors), run, model, proxy)
                found = replace(found, record=replace(found.record, alone=alone))
        return record_of(found, stall_s=time.perf_counter() - started)

    if proxy is None:
        return measured(scope)
    proxy = proxy.shared(ALONE, threads_draw=chosen.threads_draw)
    return proxy.apart(partial(measured, scope), inner)


def _each_alone(
    spectrum: MagnitudeSpectrum, run: RunContext, model: nn.Module, proxy: Proxy
) -> dict[str, EssentialSparsity]:
    """Essential sparsity of each tensor where all others stay as they are."""
    settings, mode = run.settings, run.provenance.tolerance_mode
    told: Any = {"tolerance": settings.tolerance, "mode": mode, "confidence": settings.confidence}
    rest: Any = {"pattern": settings.pattern, "sweep": settings.effective_sweep}
    found = {}
    for name in run.scope.names:
        ledger = tuple(replace(line, in_scope=line.name == name) for line in run.scope.ledger)
        masked = MaskedModel(model, replace(run.scope, ledger=ledger))
        own = MagnitudeSpectrum({name: spectrum.histograms[name]})
        try:
            curve = run_sweep(masked, proxy, own, allowed=run.allowed, **rest).curve
            found[name] = essential_alone(curve, **told)
        except MeasurementError as error:  # such as of an expert that no example goes through
            unknown: Any = {"value": math.nan, "last_crossing": math.nan, "informative": False}
            found[name] = EssentialSparsity(**unknown, reason=str(error), **told)
    return found


def expect_model(model: object, proxy: object) -> None:
    """Refuse what is no model, or no proxy for one."""
    if not isinstance(model, nn.Module):
        raise ConfigurationError(
            f"Expected `model` to be a torch.nn.Module, got {type(model).__name__}. Give the model "
            "that a trainer, a learner or an engine trains."
        )
    is_proxy = proxy is None or isinstance(proxy, Proxy)
    expect(is_proxy, "proxy", "a sw.Proxy(batches, value) or None", proxy)


def evaluated(
    step: int, spectrum: MagnitudeSpectrum, run: RunContext, model: MaskedModel | None
) -> Sweeps:
    """Evaluate the run's proxy on a model, if there are both; what fails is a reason."""
    proxy, settings = run.proxy, run.settings
    controls: dict[str, SweepResult] = {}
    if model is None or proxy is None:
        return None, controls, ""
    evaluate = partial(run_sweep, model, proxy, spectrum, allowed=run.allowed)
    try:
        with proxy.here():
            result = evaluate(pattern=settings.pattern, sweep=settings.effective_sweep, looks=True)
            same = SameLevels(result.curve, settings.effective_sweep.examples)
            for control in settings.controls if len(result.cuts) > 2 else ():
                controls[control.name] = evaluate(pattern=control, sweep=same)
    except BaseException as error:  # sorted by reraise_foreign
        reraise_foreign(error, strict=run.strict)
        logger.exception("evaluation failed at %s", numbered(run.unit, step))
        return None, {}, redacted_error(error)
    return result, controls, ""


def _estimate(
    curve: SparsityCurve, controls: Mapping[str, SweepResult], run: RunContext
) -> EssentialSparsity:
    """What is read off the curve; with the word where the curve does not say it."""
    settings, mode = run.settings, run.provenance.tolerance_mode
    pattern = settings.pattern
    found = essential_sparsity(curve, settings.tolerance, mode, settings.confidence)
    if pattern.levels is not None and len(pattern.levels) == 1:
        reason = f"{pattern.name} is a point, not a curve: what lies between was not measured"
        return replace(found, informative=False, value=math.nan, reason=reason)
    if pattern.levels is not None and not math.isnan(found.value):
        # a group loses a whole number of weights
        most = max((s for s in curve.sparsity if s <= found.value), default=0.0)
        word = f"read between the {len(pattern.levels)} sparsities that {pattern.name} has"
        reason = f"{word}, of which {most:.3g} is the highest within the tolerance"
        found = replace(found, reason=f"{found.reason}; {reason}" if found.reason else reason)
    for name, control in controls.items():
        other = essential_sparsity(control.curve, settings.tolerance, mode, settings.confidence)
        low = found.value if math.isnan(found.low) else found.low
        high = other.value if math.isnan(other.high) else other.high
        # neither lies outside of the interval of the other one; NaN where one says nothing
        if other.value >= low and high >= found.value:
            word = f"cannot tell {pattern.name} from {name},"
            if other.low > found.high:
                word = f"{name} removes more,"
            reason = f"{word} {other.describe()}"
            return replace(found, reason=f"{found.reason}; {reason}" if found.reason else reason)
    return found


def _layers(
    spectrum: MagnitudeSpectrum,
    rms: Mapping[str, float],
    near_zero: Mapping[str, Mapping[str, float]],
    result: SweepResult | None,
    seen: Seen,
) -> Layers:
    # a file may have them in another order than the model
    names = tuple(sorted(spectrum.names, key=natural_order))
    cuts = result.cuts if result else ()
    rules = near_zero[names[0]] if names else ()
    removed = np.array([[cut.shares[name] for name in names] for cut in cuts])
    known: dict[str, Mapping[str, float]] = {"rms": rms, "dormant": {}, **seen.tensors}
    return Layers(
        LayerColumns(
            names=names,
            num_weights=np.array([spectrum.histograms[name].num_weights for name in names]),
            numbers={
                x: np.array([own.get(n, math.nan) for n in names]) for x, own in known.items()
            },
            near_zero={r: np.array([near_zero[name][r] for name in names]) for r in rules},
            removed=removed.reshape(len(cuts), len(names)),
        )
    )


def _histograms(arrays: Mapping[str, np.ndarray]) -> Mapping[str, LogHistogram]:
    return MagnitudeSpectrum.from_arrays(arrays).log10_histograms()


def counted(
    snapshot: Snapshot, reader: ShardedReader, sampler: Sampler | None = None
) -> tuple[MagnitudeSpectrum, str, Tensors, Replicas | None]:
    """Spectrum, fingerprint and sample of the weights, and whether their replicas agree."""
    bits: dict[str, torch.Tensor] = {}
    sample: dict[str, torch.Tensor] = {}
    if isinstance(snapshot.tensors, LazyTensors):  # stored: sampled while it is read, once
        if sampler is not None:
            snapshot = sampler.observed(snapshot, sample)
        snapshot = FINGERPRINTED.observed(snapshot, bits)
    spectrum, replicas = reader.counted(snapshot)
    if not isinstance(snapshot.tensors, LazyTensors):
        sample = {} if sampler is None else reader.sample(sampler, snapshot)
        bits = reader.sample(FINGERPRINTED, snapshot)
    return spectrum, fingerprint(spectrum.digest(), bits), sample, replicas
