"""Numbers about the weights in scope as metrics of torchmetrics, for ``self.log`` of Lightning.

::

    self.near_zero.update(self.model)  # NearZeroFraction(0.001), such as in on_train_epoch_end
    self.log("near_zero", self.near_zero)

Their states are whole numbers that add up over ranks: of shards they make the whole, and replicas
change no fraction.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from sparsitywatch.errors import MissingExtraError, expect_number
from sparsitywatch.weights.layout import unwrap_model
from sparsitywatch.weights.scope import Scope, ScopeLike
from sparsitywatch.weights.sharded import local_of
from sparsitywatch.weights.spectrum import MagnitudeSpectrum
from sparsitywatch.weights.spectrum.histogram import STORAGES, Histogram

try:
    from torchmetrics import Metric
except ImportError as error:
    raise MissingExtraError("torchmetrics", "torchmetrics", "NearZeroFraction") from error

__all__ = ["NearZeroFraction", "SpectrumMetric"]


class SpectrumMetric(Metric):
    """The magnitude that a share of the weights, ``level``, does not exceed.

    ``spectrum`` has all magnitudes. ``scope`` is as of ``sparsitywatch.watch``.
    """

    full_state_update = False
    counts: torch.Tensor  # of each bin, then of those that are infinite, and NaN

    def __init__(self, level: float = 0.5, scope: ScopeLike = "blocks") -> None:
        super().__init__()
        expect_number("level", level, lambda x: 0.0 <= x <= 1.0, "a sparsity in [0, 1]")
        self._level, self._scope = level, scope
        num = STORAGES[torch.float32].bins.inf_key + 2
        self.add_state("counts", torch.zeros(num, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, model: nn.Module) -> None:
        """Count the weights of a model as they are now."""
        inner, counts = unwrap_model(model), np.zeros(len(self.counts), np.int64)
        for parameter in Scope.of(inner, self._scope).parameters(inner).values():
            weights = {"": local_of(parameter).float()}
            (one,) = MagnitudeSpectrum.of(weights).histograms.values()
            counts[one.keys] += one.counts
            counts[-2:] += one.num_inf, one.num_nan
        self.counts += torch.from_numpy(counts).to(self.counts.device)

    @property
    def spectrum(self) -> MagnitudeSpectrum:
        """Of all weights that were counted, as one tensor."""
        counts = self.counts.cpu().numpy()
        keys = np.flatnonzero(counts[:-2])
        own = Histogram(torch.float32, keys.astype(np.int32), counts[keys], *counts[-2:].tolist())
        return MagnitudeSpectrum({"all": own})

    def compute(self) -> torch.Tensor:
        """The magnitude."""
        return torch.tensor(self.spectrum.thresholds([self._level])[0], device=self.counts.device)


class NearZeroFraction(SpectrumMetric):
    """The fraction of the weights with |w| <= ``threshold``, as ``near_zero/abs_*`` of a watch."""

    def __init__(self, threshold: float = 1e-3, scope: ScopeLike = "blocks") -> None:
        super().__init__(scope=scope)
        expect_number("threshold", threshold, lambda x: x >= 0.0, "a number >= 0")
        self._threshold = threshold

    def compute(self) -> torch.Tensor:
        """The fraction, in [0, 1]."""
        return torch.tensor(self.spectrum.sparsity_at(self._threshold), device=self.counts.device)
