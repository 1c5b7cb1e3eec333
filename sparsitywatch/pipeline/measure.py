"""Snapshot in, Record out: everything that one snapshot says about the weights."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import nn

from sparsitywatch.analysis.estimate import ROUNDING, allowed_harm, essential_sparsity
from sparsitywatch.errors import ScopeError, expect, reraise_foreign
from sparsitywatch.pipeline.parts import Examined, Examiner
from sparsitywatch.pruning.evaluation import MaskedModel, SweepResult, check_proxy, run_sweep
from sparsitywatch.pruning.proxy import Proxy
from sparsitywatch.pruning.sweeps import SameLevels
from sparsitywatch.ranks.reading import WHOLE_MODEL, ShardedReader
from sparsitywatch.records import (
    Cost,
    Detail,
    EssentialSparsity,
    LayerShare,
    Provenance,
    Record,
    Replicas,
    SparsityCurve,
)
from sparsitywatch.records.run import __version__
from sparsitywatch.redact import redacted_error
from sparsitywatch.settings import Settings, SettingsFields
from sparsitywatch.weights.clock import OptimizerReading
from sparsitywatch.weights.layout import natural_order, unwrap_model
from sparsitywatch.weights.motion import MASK_LEVELS, MotionTracker
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.sharded import modules_of, why_not_whole
from sparsitywatch.weights.snapshot import (
    FINGERPRINTED,
    LazyTensors,
    Sampler,
    Snapshot,
    fingerprint,
)
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = [
    "Context",
    "Measured",
    "failed_record",
    "measure",
    "measure_snapshot",
    "with_motion",
]

_logger = logging.getLogger("sparsitywatch")


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a snapshot is measured with, beside its weights.

    The first six are the same for every snapshot of a run, the others belong to one snapshot.

    Args:
        settings: what is measured.
        scope: which weights count.
        proxy: what is evaluated; None to measure the weights only.
        initial_rms: root mean square of each in-scope tensor when the run was first seen; empty:
            the snapshot's own.
        dtypes: of the in-scope weights, for the provenance.
        strict: let what goes wrong in an evaluation out, for tests.
        model: holds the weights of the snapshot; None to leave the evaluation out.
        not_evaluated: why the model is left out; empty if it is not.
        optimizer: what it has done up to here; None offline, where nobody knows.
        motion: what the snapshots before have left to compare with; None to compare nothing here.
        sampler: takes the weights that are compared elsewhere; None where ``motion`` does it.
        num_threads: to read the weights with; None for as many as torch uses.
        reader: of the in-scope weights, which may be spread over ranks.
        examiner: looks at every parameter, in scope or not, of a model in training.
        examined: what it says of this snapshot.
    """

    settings: Settings
    scope: Scope
    proxy: Proxy | None = None
    initial_rms: Mapping[str, float] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ()
    strict: bool = False
    model: MaskedModel | None = None
    not_evaluated: str = ""
    optimizer: OptimizerReading | None = None
    motion: MotionTracker | None = None
    sampler: Sampler | None = None
    num_threads: int | None = None
    reader: ShardedReader = WHOLE_MODEL
    examiner: Examiner = field(default_factory=Examiner)
    examined: Examined | None = None

    @property
    def compares(self) -> bool:
        """Whether ``motion`` compares the weights with those of the snapshot before.

        A live watch without an optimizer does not know what could have moved them.
        """
        has_clock = self.optimizer is None or self.optimizer.clock is not None
        return self.motion is not None and has_clock

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
        )


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a snapshot says.

    Args:
        record: without its motion where that is compared elsewhere.
        detail: what is too large for a record.
        sample: the sampled weights by name, on the CPU; empty if none were to be taken.
        mask_thresholds: below which a weight would go, at each of ``MASK_LEVELS``.
        initial_rms: what "initial" near-zero rules referred to.
    """

    record: Record
    detail: Detail
    sample: Mapping[str, torch.Tensor]
    mask_thresholds: Sequence[float]
    initial_rms: Mapping[str, float]


def measure_snapshot(snapshot: Snapshot, context: Context) -> Measured:
    """Everything about one snapshot, whoever has taken it.

    The driver adds to ``record.cost`` what only it knows.
    """
    started = time.perf_counter()
    spectrum, mark, sample, replicas = _counted(snapshot, context)
    if not context.initial_rms:
        context = replace(context, initial_rms=spectrum.layer_rms())
    counted = time.perf_counter()
    result, controls, reason = _evaluated(snapshot.step, spectrum, context)
    curve = result.curve if result else None
    near_zero, near_zero_of = spectrum.near_zero_by_rule(
        context.settings.rules, context.initial_rms
    )
    record = Record(
        step=snapshot.step,
        wall_time=time.time(),
        valid=not reason,
        reason=reason,
        scope=context.scope.summary,
        num_nan=spectrum.num_nan,
        num_inf=spectrum.num_inf,
        num_zero=spectrum.num_zero,
        largest=math.nan if spectrum.num_nan else spectrum.thresholds([1.0])[0],
        near_zero=near_zero,
        fingerprint=mark,
        replicas=replicas,
        vital=None if context.examined is None else context.examined(spectrum),
        curve=curve,
        controls={name: control.curve for name, control in controls.items()},
        reliance=curve.reliance if curve else math.nan,
        essential_sparsity=None if curve is None else _estimate(curve, controls, context),
        not_evaluated=context.not_evaluated,
        layers=_layer_shares(spectrum, near_zero_of, result),
        cost=Cost(
            stall_s=0.0,
            spectrum_s=counted - started,
            evaluation_s=time.perf_counter() - counted if result or reason else 0.0,
            num_forwards=sum(r.num_forwards for r in (result, *controls.values()) if r),
        ),
        provenance=context.provenance,
    )
    measured = Measured(
        record=record,
        detail=Detail(histograms=spectrum.log10_histograms(), spectrum=spectrum.to_arrays()),
        sample=sample,
        mask_thresholds=spectrum.thresholds(MASK_LEVELS) if sample else (),
        initial_rms=context.initial_rms,
    )
    if context.motion is None and context.optimizer is None:
        return measured
    return replace(measured, record=with_motion(measured, context))


def failed_record(step: int, reason: str, context: Context, *, stall_s: float = 0.0) -> Record:
    """The record of a snapshot that could not even read the weights."""
    return Record(
        step=step,
        wall_time=time.time(),
        valid=False,
        reason=reason,
        scope=context.scope.summary,
        num_nan=-1,
        num_inf=-1,
        num_zero=-1,
        near_zero={},
        cost=Cost(stall_s=stall_s, spectrum_s=0.0, evaluation_s=0.0, num_forwards=0),
        provenance=context.provenance,
        not_evaluated=context.not_evaluated,
    )


def with_motion(measured: Measured, context: Context) -> Record:
    """The record with what the optimizer did and what has moved since the last snapshot.

    Args:
        measured: with a sample.
        context: its ``motion`` remembers the sample for the next time.
    """
    record, optimizer = measured.record, context.optimizer
    if optimizer is not None:
        record = replace(
            record,
            decay_clock=optimizer.decay_clock,
            lr_clock=optimizer.lr_clock,
            lr=optimizer.lr,
        )
    if context.motion is None or not context.compares:
        return record
    near_zero = None  # nothing is projected without a clock
    if optimizer is not None:
        rule = next(iter(context.settings.rules.values()))
        near_zero = rule.fixed_thresholds(measured.initial_rms)
    moved = context.motion.compare(
        record.step, measured.sample, measured.mask_thresholds, optimizer, near_zero
    )
    layers = tuple(
        replace(layer, dormant=moved.layers.get(layer.name, math.nan)) for layer in record.layers
    )
    return replace(
        record, dormant=moved.dormant, movement=moved.movement, masks=moved.masks, layers=layers
    )


def measure(
    model: nn.Module,
    proxy: Proxy | None = None,
    *,
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
        settings: what is measured and how; by default ``Settings()``.
        fields: fields of ``Settings`` that differ from it, such as ``tolerance=0.02``.

    Returns:
        The record.

    Raises:
        ConfigurationError: a value cannot be used; the argument is named.
        ScopeError: the scope selects nothing, or the model is sharded over processes: `sw.watch`
            measures those, on every rank.
        ProxyError: the proxy does not work on this model.
        MeasurementError: the evaluation failed.

    >>> torch.manual_seed(0).initial_seed()
    0
    >>> record = measure(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2)), scope="layers")
    >>> record.scope.num_weights, record.num_zero
    (80, 0)
    """
    expect(isinstance(model, nn.Module), "model", "a torch.nn.Module", model)
    is_proxy = proxy is None or isinstance(proxy, Proxy)
    expect(is_proxy, "proxy", "a sw.Proxy(batches, value) or None", proxy)
    chosen = Settings.of(settings, **fields)
    inner = unwrap_model(model)
    if why := why_not_whole(modules_of(inner)):
        raise ScopeError(f"Expected a model that this process holds all of, but {why}")
    scope = Scope.of(inner, chosen.scope)
    if proxy is not None:
        check_proxy(proxy, inner)
    snapshot = Snapshot.of(inner, scope, 0)
    context = Context(
        settings=chosen,
        scope=scope,
        proxy=proxy,
        dtypes=snapshot.dtypes,
        strict=True,
        model=None if proxy is None else MaskedModel(model, scope),
    )
    started = time.perf_counter()
    with torch.no_grad():
        record = measure_snapshot(snapshot, context).record
    stall_s = time.perf_counter() - started
    return replace(record, cost=replace(record.cost, stall_s=stall_s))


def _evaluated(
    step: int, spectrum: MagnitudeSpectrum, context: Context
) -> tuple[SweepResult | None, dict[str, SweepResult], str]:
    """What the model is worth at many levels, and why that is not known; empty if it is.

    Also what it is worth at these levels by the controls, by their names.
    """
    model, proxy, settings = context.model, context.proxy, context.settings
    controls: dict[str, SweepResult] = {}
    if model is None or proxy is None or context.not_evaluated:
        return None, controls, ""
    mode = context.provenance.tolerance_mode

    def allowed(dense: float) -> float:
        return allowed_harm(dense, settings.tolerance, mode) + ROUNDING * abs(dense)

    try:
        result = run_sweep(
            model,
            proxy,
            spectrum,
            pattern=settings.pattern,
            sweep=settings.effective_sweep,
            allowed=allowed,
        )
        same = SameLevels(result.curve, settings.effective_sweep.examples)
        for control in settings.controls if len(result.cuts) > 2 else ():
            controls[control.name] = run_sweep(
                model, proxy, spectrum, pattern=control, sweep=same, allowed=allowed
            )
    except BaseException as error:  # sorted by reraise_foreign
        reraise_foreign(error, strict=context.strict)
        _logger.exception("sparsitywatch: evaluation failed at step %d", step)
        return None, {}, redacted_error(error)
    return result, controls, ""


def _estimate(
    curve: SparsityCurve, controls: Mapping[str, SweepResult], context: Context
) -> EssentialSparsity:
    """What is read off the curve; with the word where the curve does not say it."""
    settings, mode = context.settings, context.provenance.tolerance_mode
    pattern = settings.pattern
    found = essential_sparsity(curve, settings.tolerance, mode, settings.confidence)
    if getattr(pattern, "levels", None) is not None:
        reason = f"{pattern.name} is a point, not a curve: what lies between was not measured"
        return replace(found, informative=False, value=math.nan, reason=reason)
    for name, control in controls.items():
        other = essential_sparsity(control.curve, settings.tolerance, mode, settings.confidence)
        low = found.value if math.isnan(found.low) else found.low
        if found.informative and other.informative and other.value >= low:
            reason = f"{name} removes as much ({other.describe()}): {pattern.name} tells nothing"
            return replace(found, reason=f"{found.reason}; {reason}" if found.reason else reason)
    return found


def _layer_shares(
    spectrum: MagnitudeSpectrum,
    near_zero: Mapping[str, Mapping[str, float]],
    result: SweepResult | None,
) -> tuple[LayerShare, ...]:
    cuts = result.cuts if result else ()
    return tuple(
        LayerShare(
            name=name,
            num_weights=spectrum.histograms[name].num_weights,
            rms=spectrum.histograms[name].rms,
            near_zero=near_zero[name],
            removed=tuple(cut.shares[name] for cut in cuts),
        )
        # a file may have them in another order than the model
        for name in sorted(spectrum.names, key=natural_order)
    )


def _counted(
    snapshot: Snapshot, context: Context
) -> tuple[MagnitudeSpectrum, str, Mapping[str, torch.Tensor], Replicas | None]:
    """Spectrum, fingerprint and sample of the weights, and whether their replicas agree."""
    sampler = context.sampler
    if context.motion is not None:
        sampler = context.motion.sampler if context.compares else None
    bits: dict[str, torch.Tensor] = {}
    sample: dict[str, torch.Tensor] = {}
    if isinstance(snapshot.tensors, LazyTensors):  # stored: sampled while it is read, once
        if sampler is not None:
            snapshot = sampler.observed(snapshot, sample)
        snapshot = FINGERPRINTED.observed(snapshot, bits)
    spectrum, replicas = context.reader.counted(snapshot, context.num_threads)
    if not isinstance(snapshot.tensors, LazyTensors):
        sample = {} if sampler is None else context.reader.sample(sampler, snapshot)
        bits = context.reader.sample(FINGERPRINTED, snapshot)
    return spectrum, fingerprint(spectrum.digest(), bits), sample, replicas
