"""Snapshot in, Record out: everything one look says about the weights."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from sparsitywatch.analysis.estimate import ROUNDING, allowed_harm, essential_sparsity
from sparsitywatch.errors import let_out
from sparsitywatch.pruning.masked import MaskedModel
from sparsitywatch.pruning.proxy import Proxy
from sparsitywatch.pruning.sweep import SweepResult, run_sweep
from sparsitywatch.records import (
    Cost,
    Detail,
    LayerShare,
    Provenance,
    Record,
    SparsityCurve,
)
from sparsitywatch.records.run import __version__
from sparsitywatch.settings import Settings
from sparsitywatch.shown import shown_error
from sparsitywatch.weights.layout import natural_order
from sparsitywatch.weights.near_zero import NearZeroRule
from sparsitywatch.weights.sample import FINGERPRINTED, fingerprint
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import Snapshot
from sparsitywatch.weights.spectrum import MagnitudeSpectrum
from sparsitywatch.weights.spectrum.stored import LazyTensors

__all__ = ["Effort", "Measurement"]

_logger = logging.getLogger("sparsitywatch")


def _nobody_counts(beside_s: float) -> float:  # noqa: ARG001 as of ``Effort.overhead``
    return math.nan


@dataclass(frozen=True)
class Effort:
    """What a driver knows about costs.

    Args:
        publish_s, num_left_out: as of ``Cost``.
        overhead: the share of the wall time that the watch has taken when it is asked; of
            seconds that are being spent behind the training.
        not_evaluated: why the proxy is not evaluated in this snapshot; empty if it is.
    """

    publish_s: float = 0.0
    overhead: Callable[[float], float] = _nobody_counts
    num_left_out: int = 0
    not_evaluated: str = ""

    def fields(self, beside_s: float) -> dict[str, Any]:
        """As keyword arguments of ``Cost``.

        Args:
            beside_s: spent behind the training for this snapshot so far.
        """
        return {
            "publish_s": self.publish_s,
            "overhead": self.overhead(beside_s),
            "num_left_out": self.num_left_out,
            "num_evaluations_left_out": int(bool(self.not_evaluated)),
        }


def _in_front() -> float:
    """Nothing of the snapshot is done behind the training."""
    return 0.0


NO_EFFORT = Effort()


class Measurement:
    """Measures snapshots of one scope, always in the same way.

    Args:
        settings: what is measured.
        scope: which weights count.
        initial_rms: root mean square of each in-scope tensor when the watch first saw it; None:
            the first snapshot that is measured says it.
        proxy: what is evaluated, or None to look at the weights only.
        dtypes: dtypes of the in-scope weights, for the provenance.
    """

    def __init__(
        self,
        settings: Settings,
        scope: Scope,
        initial_rms: Mapping[str, float] | None,
        proxy: Proxy | None = None,
        dtypes: tuple[str, ...] = (),
    ) -> None:
        self._settings = settings
        self._scope = scope
        self._proxy = proxy
        self._rules = {name: NearZeroRule.parse(name) for name in settings.near_zero}
        self.initial_rms = dict(initial_rms or {})
        self.provenance = Provenance(
            sparsitywatch=__version__,
            torch=torch.__version__,
            scope_hash=scope.hash,
            proxy_hash=proxy.hash if proxy else "",
            dtypes=dtypes,
            tolerance=settings.tolerance,
            tolerance_mode=settings.mode(higher_is_better=bool(proxy and proxy.higher_is_better)),
            pattern=settings.pattern.name,
        )

    @property
    def proxy(self) -> Proxy | None:
        """What is evaluated."""
        return self._proxy

    @proxy.setter
    def proxy(self, proxy: Proxy) -> None:
        self._proxy = proxy
        self.provenance = replace(self.provenance, proxy_hash=proxy.hash)

    @property
    def evaluates(self) -> bool:
        """Whether a look runs the model."""
        return self._proxy is not None

    @property
    def thresholds(self) -> dict[str, float] | None:
        """Below which a weight is near zero by the first rule, by name; None if that moves."""
        return next(iter(self._rules.values())).fixed_thresholds(self.initial_rms)

    def record(
        self,
        snapshot: Snapshot,
        model: MaskedModel | None,
        *,
        started: float,
        stall_s: float | None = None,
        motion: Callable[[MagnitudeSpectrum], Mapping[str, Any]] | None = None,
        previous: SparsityCurve | None = None,
        effort: Effort = NO_EFFORT,
        behind_s: Callable[[], float] = _in_front,
        num_threads: int | None = None,
        strict: bool = False,
    ) -> tuple[Record, Detail]:
        """Everything about one snapshot.

        Args:
            snapshot: the weights.
            model: holds the same weights; None to leave the evaluation out.
            started: ``time.perf_counter()`` when the look began.
            stall_s: how long it held up the training; None if until now.
            motion: tells what only a driver knows, as ``OptimizerTrace.look`` does.
            previous: the curve of the look before.
            effort: what is known about costs, and why the model is left out.
            behind_s: tells what was spent behind the training for this snapshot so far.
            num_threads: to read the weights with; None for as many as torch uses.
            strict: let a failing evaluation raise instead of marking the record invalid.
        """
        before = time.perf_counter()
        spectrum, mark = _counted(snapshot, num_threads)
        if not self.initial_rms:
            self.initial_rms = spectrum.layer_rms()
        read = time.perf_counter()
        moved = motion(spectrum) if motion else {}
        looked = time.perf_counter()
        result, reason = None, ""
        if self._proxy is not None and model is not None and not effort.not_evaluated:
            try:
                result = self._sweep(model, self._proxy, spectrum, previous)
            except BaseException as error:  # sorted by let_out
                let_out(error, strict=strict)
                _logger.exception("sparsitywatch: evaluation failed at step %d", snapshot.step)
                reason = shown_error(error)
        near_zero, near_zero_of = spectrum.near_zero_by_rule(self._rules, self.initial_rms)
        dormant = moved.get("dormant_by_layer", {})
        layers = self._layers(spectrum, near_zero_of, result, dormant)
        estimate = None
        if result is not None:
            estimate = essential_sparsity(
                result.curve,
                self._settings.tolerance,
                self.provenance.tolerance_mode,
                self._settings.confidence,
            )
        done = time.perf_counter()
        record = Record(
            step=snapshot.step,
            wall_time=time.time(),
            valid=not reason,
            reason=reason,
            scope=self._scope.summary,
            num_nan=spectrum.num_nan,
            num_inf=spectrum.num_inf,
            num_zero=spectrum.num_zero,
            largest=math.nan if spectrum.num_nan else spectrum.thresholds([1.0])[0],
            near_zero=near_zero,
            fingerprint=mark,
            **moved.get("driver", {}),
            curve=result.curve if result else None,
            reliance=result.curve.reliance if result else math.nan,
            essential_sparsity=estimate,
            not_evaluated=effort.not_evaluated,
            layers=layers,
            cost=Cost(
                stall_s=done - started if stall_s is None else stall_s,
                spectrum_s=read - before,
                evaluation_s=done - looked if self._proxy and not effort.not_evaluated else 0.0,
                num_forwards=result.num_forwards if result else 0,
                **effort.fields(behind_s()),
            ),
            provenance=self.provenance,
        )
        detail = Detail(histograms=spectrum.log10_histograms(), spectrum=spectrum.to_arrays())
        return record, detail

    def failed(
        self, step: int, error: BaseException, started: float, effort: Effort = NO_EFFORT
    ) -> Record:
        """The record of a look that could not even read the weights."""
        return Record(
            step=step,
            wall_time=time.time(),
            valid=False,
            reason=shown_error(error),
            scope=self._scope.summary,
            num_nan=-1,
            num_inf=-1,
            num_zero=-1,
            near_zero={},
            cost=Cost(
                stall_s=time.perf_counter() - started,
                spectrum_s=0.0,
                evaluation_s=0.0,
                num_forwards=0,
                **effort.fields(0.0),
            ),
            provenance=self.provenance,
            not_evaluated=effort.not_evaluated,
        )

    def _sweep(
        self,
        model: MaskedModel,
        proxy: Proxy,
        spectrum: MagnitudeSpectrum,
        previous: SparsityCurve | None,
    ) -> SweepResult:
        mode = self.provenance.tolerance_mode

        def allowed(dense: float) -> float:
            return allowed_harm(dense, self._settings.tolerance, mode) + ROUNDING * abs(dense)

        return run_sweep(
            model,
            proxy,
            spectrum,
            pattern=self._settings.pattern,
            sweep=self._settings.sweep,
            allowed=allowed,
            previous=previous,
        )

    def _layers(
        self,
        spectrum: MagnitudeSpectrum,
        near_zero: Mapping[str, Mapping[str, float]],
        result: SweepResult | None,
        dormant: Mapping[str, float],
    ) -> tuple[LayerShare, ...]:
        num_weights, rms = spectrum.layer_num_weights(), spectrum.layer_rms()
        return tuple(
            LayerShare(
                name=name,
                num_weights=num_weights[name],
                rms=rms[name],
                near_zero=near_zero[name],
                removed=tuple(cut.shares[name] for cut in result.cuts) if result else (),
                dormant=dormant.get(name, math.nan),
            )
            # a file may have them in another order than the model
            for name in sorted(num_weights, key=natural_order)
        )


def _counted(snapshot: Snapshot, num_threads: int | None) -> tuple[MagnitudeSpectrum, str]:
    """The spectrum and the fingerprint of the weights, each of which is read once."""
    bits: dict[str, torch.Tensor] = {}
    if isinstance(snapshot.tensors, LazyTensors):
        snapshot = FINGERPRINTED.tapped(snapshot, bits)
    else:
        bits = FINGERPRINTED.take(snapshot)
    spectrum = MagnitudeSpectrum.of(snapshot.tensors, num_threads=num_threads)
    return spectrum, fingerprint(spectrum, bits)
