"""MagnitudeSpectrum: what one pass over |w| can answer."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch

from sparsitywatch.errors import (
    ConfigurationError,
    expect_mapping,
    expect_number,
    expect_numbers,
    expect_whole,
)
from sparsitywatch.records import LogHistogram
from sparsitywatch.weights.spectrum import arrays, counting, rules
from sparsitywatch.weights.spectrum.bins import STORAGES
from sparsitywatch.weights.spectrum.distribution import Distribution, num_pruned
from sparsitywatch.weights.spectrum.exact import exact_thresholds
from sparsitywatch.weights.spectrum.histogram import Histogram
from sparsitywatch.weights.spectrum.layered import Layered

__all__ = ["MagnitudeSpectrum"]


class MagnitudeSpectrum:
    """The distribution of |w| of named tensors, as additive integer counts.

    bfloat16, float16 and float8 weights are counted per value, float32 and float64 in bins
    of at most 0.4 % of their magnitude. A spectrum never changes; ``a + b`` is the spectrum
    of all weights of both, whatever the order or the shards they came in. Spectra are equal
    when they hold the same counts under the same names.

    Fractions are of all weights, those that are not finite included; NaN if there are none.

    >>> spectrum = MagnitudeSpectrum.of({"w": torch.tensor([0.0, 0.0, 1.0, 1.0, -2.0, 2.0])})
    >>> spectrum.thresholds([0.5])
    [1.0]
    >>> round(spectrum.sparsity_at(1.0), 3)  # ties at the threshold go together
    0.667
    """

    def __init__(self, histograms: Mapping[str, Histogram] | None = None) -> None:
        """A spectrum of counted tensors; use ``of`` to count some."""
        self._histograms = dict(histograms or {})

    @classmethod
    def of(
        cls, tensors: Mapping[str, torch.Tensor], *, num_threads: int | None = None
    ) -> MagnitudeSpectrum:
        """Count the weights of ``tensors`` in one pass.

        Args:
            tensors: dense floating-point tensors of any shape, strides and device, by name.
            num_threads: threads that count on CPU; by default ``torch.get_num_threads()``.

        Returns:
            Their spectrum, names in the order of ``tensors``.

        Raises:
            ConfigurationError: a tensor is not floating point, sparse, distributed or
                without data; ``num_threads`` is less than 1.
        """
        if num_threads is not None:
            expect_whole("num_threads", num_threads, 1)
        expect_mapping(
            "tensors", tensors, "tensors by name, such as dict(model.named_parameters())"
        )
        with torch.no_grad():
            return cls(counting.count(tensors, num_threads))

    @classmethod
    def from_arrays(cls, stored: Mapping[str, np.ndarray]) -> MagnitudeSpectrum:
        """The spectrum that ``to_arrays`` made ``stored`` from.

        Raises:
            StateError: an array is missing, or they contradict each other.
        """
        return cls(arrays.unpack(stored))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything as a few plain arrays, for ``numpy.savez`` and ``allow_pickle=False``."""
        return arrays.pack(self._histograms)

    def digest(self) -> str:
        """Identity of the counts by name, in whatever order: 64 hexadecimal digits."""
        state = hashlib.sha256()
        for name, histogram in sorted(self._histograms.items()):
            numbers = (histogram.num_inf, histogram.num_nan, len(histogram.keys))
            state.update(f"{name} {STORAGES[histogram.dtype].name} {numbers}".encode())
            state.update(histogram.keys.astype(np.int32).tobytes())
            state.update(histogram.counts.astype(np.int64).tobytes())
        return state.hexdigest()

    def __add__(self, other: MagnitudeSpectrum) -> MagnitudeSpectrum:
        """All weights of both: counts of the same name add, new names follow in order.

        Raises:
            ConfigurationError: a name has another dtype in ``other``.
        """
        if not isinstance(other, MagnitudeSpectrum):
            return NotImplemented
        summed = dict(self._histograms)
        for name, histogram in other._histograms.items():
            mine = summed.get(name, Histogram.empty(histogram.dtype))
            if mine.dtype != histogram.dtype:
                raise ConfigurationError(
                    f"Expected {name!r} to have the same dtype in both spectra, got "
                    f"{mine.dtype} and {histogram.dtype}. Convert the tensor before counting."
                )
            summed[name] = mine + histogram if name in summed else histogram
        return MagnitudeSpectrum(summed)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MagnitudeSpectrum):
            return NotImplemented
        return self._histograms == other._histograms

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        dtypes = ", ".join(self.dtypes)
        return f"MagnitudeSpectrum({len(self.names)} tensors, {self.num_weights} weights, {dtypes})"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors, in order."""
        return tuple(self._histograms)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Names of the dtypes that occur, sorted, such as "float32"."""
        return tuple(sorted({STORAGES[h.dtype].name for h in self._histograms.values()}))

    @cached_property
    def num_weights(self) -> int:
        """All weights, those that are not finite included."""
        return sum(h.num_weights for h in self._histograms.values())

    @property
    def num_nan(self) -> int:
        """Weights that are NaN."""
        return sum(h.num_nan for h in self._histograms.values())

    @property
    def num_inf(self) -> int:
        """Weights that are infinite."""
        return sum(h.num_inf for h in self._histograms.values())

    @property
    def num_zero(self) -> int:
        """Exact zeros of either sign."""
        return sum(h.num_zero for h in self._histograms.values())

    @cached_property
    def rms(self) -> float:
        """Root mean square of the finite weights; NaN without any.

        Computed from the integer counts alone, so that shards, chunks and stored spectra
        give the same bits; bins are taken as filled evenly.
        """
        return self._distribution.rms

    def thresholds(
        self, levels: Sequence[float], *, exact: Mapping[str, torch.Tensor] | None = None
    ) -> list[float]:
        """A threshold t per sparsity level: the weights with |w| <= t are removed.

        t is the largest value of the first bin at which the count of weights reaches
        ``num_pruned(num_weights, level)``. Ties go together, and so does a bin: the counted
        sparsity, ``sparsity_at(t)``, overshoots the level by at most the mass of the bin.
        -inf removes nothing; inf, where more is asked for than the finite weights, all but
        NaN. Each t is a value of every dtype in the spectrum, but for magnitudes beyond the
        range of the narrowest one.

        Args:
            levels: fractions in [0, 1], in any order.
            exact: the very tensors that were counted. A second pass over them, inside the
                boundary bins, then gives the smallest magnitude that reaches each level, as
                a sort would. Such a t lies within a bin: count the weights at or below it in
                the tensors, ``sparsity_at`` would interpolate.

        Returns:
            float64 thresholds, in the order of ``levels``.

        Raises:
            ConfigurationError: a level lies outside [0, 1], or ``exact`` holds other weights.
        """
        levels = expect_numbers("levels", levels, "a list of sparsities in [0, 1]")
        if exact is not None:
            expect_mapping("exact", exact, "the tensors that were counted, by name")
        asked = [num_pruned(self.num_weights, level) for level in levels]
        magnitudes, cumulative = self._distribution.steps
        num_finite = int(cumulative[-1]) if len(cumulative) else 0
        found = {k: -math.inf if k == 0 else math.inf for k in asked}
        inside = sorted({k for k in asked if 0 < k <= num_finite})
        if exact is None:
            found |= {k: float(magnitudes[self._distribution.step_reaching(k)]) for k in inside}
        else:
            with torch.no_grad():
                refined = exact_thresholds(self._distribution, self._histograms, exact, inside)
            found |= dict(zip(inside, refined, strict=True))
        return [found[k] for k in asked]

    def sparsity_at(self, t: float) -> float:
        """The fraction of all weights with |w| <= t.

        Counted, not estimated, at every t that ``thresholds`` returned without ``exact``,
        at every value of dtypes of 16 bits or less, and at 0. At another t the float32 and
        float64 weights of the one bin around t are interpolated linearly: off by at most
        that bin's mass.

        Raises:
            ConfigurationError: ``t`` is NaN.
        """
        expect_number("t", t, lambda t: not math.isnan(t), "a magnitude")
        if self.num_weights == 0:
            return math.nan
        return self._num_at_most(t) / self.num_weights

    def near_zero(
        self,
        *,
        abs: float | None = None,  # noqa: A002  the name is the public face
        rms: float | None = None,
        initial: float | None = None,
        reference: Mapping[str, float] | None = None,
    ) -> float:
        """The fraction of all weights with |w| <= tau, by exactly one rule for tau.

        Args:
            abs: tau itself; 0.0 counts exact zeros.
            rms: tau of each tensor is this factor of its own current root mean square.
            initial: tau of each tensor is this factor of its scale in ``reference``.
            reference: root mean square of each tensor when it was first seen, by name.

        Raises:
            ConfigurationError: not exactly one rule, a negative factor, or a tensor without
                an entry in ``reference``.
        """
        rule, factor = rules.chosen(abs=abs, rms=rms, initial=initial)
        if rule == "abs":
            return self.sparsity_at(factor)
        scales = self._rms_by_layer if rule == "rms" else rules.scales_of(self.names, reference)
        if self.num_weights == 0:
            return math.nan
        # a tensor without a scale has no finite weights, so none near zero
        taus = [-1.0 if math.isnan(scale) else factor * scale for scale in scales]
        if len(taus) == 1:
            return self._num_at_most(taus[0]) / self.num_weights
        found = self._layered.num_at_most(np.array(taus)[:, None])
        return math.fsum(found.ravel()) / self.num_weights

    def layers(self) -> dict[str, MagnitudeSpectrum]:
        """One spectrum per tensor, by name, in order; they share this one's counts."""
        return dict(self._layers)

    def layer_sparsity_at(self, thresholds: Sequence[float]) -> dict[str, list[float]]:
        """``sparsity_at`` of each layer at each threshold, in one go; by name, in order.

        Raises:
            ConfigurationError: a threshold is NaN.
        """
        t = np.array(thresholds, np.float64)
        if np.isnan(t).any():
            raise ConfigurationError("Expected `thresholds` to be magnitudes, got NaN.")
        num_weights = self._layered.num_weights[:, None]
        found = np.full((len(num_weights), len(t)), math.nan)
        np.divide(self._layered.num_at_most(t), num_weights, out=found, where=num_weights > 0)
        return dict(zip(self.names, found.tolist(), strict=True))

    def log10_histograms(self, bins_per_decade: int = 10) -> dict[str, LogHistogram]:
        """A histogram of log10|w| per tensor, finite non-zero weights only.

        Args:
            bins_per_decade: edges are multiples of ``1 / bins_per_decade`` decades. A bin of
                the spectrum goes where its geometric middle lies.

        Raises:
            ConfigurationError: ``bins_per_decade`` is less than 1.
        """
        if bins_per_decade < 1:
            raise ConfigurationError(
                f"Expected `bins_per_decade` of at least 1, got {bins_per_decade!r}."
            )
        found = self._layered.log10_histograms(bins_per_decade)
        return dict(zip(self.names, found, strict=True))

    @cached_property
    def _distribution(self) -> Distribution:
        if len(self._histograms) > 1:
            return Distribution(self._layered.totals)
        return Distribution({h.bins: (h.keys, h.counts) for h in self._histograms.values()})

    @cached_property
    def _layered(self) -> Layered:
        return Layered(list(self._histograms.values()))

    @cached_property
    def _layers(self) -> dict[str, MagnitudeSpectrum]:
        layers = {name: MagnitudeSpectrum({name: h}) for name, h in self._histograms.items()}
        for layer, rms in zip(layers.values(), self._rms_by_layer, strict=True):
            layer.rms = rms  # cheaper for all at once
        return layers

    def _num_at_most(self, t: float) -> float:
        if t == math.inf:
            return self.num_weights - self.num_nan
        return self._distribution.count(t)

    @property
    def _rms_by_layer(self) -> list[float]:
        return [self.rms] if len(self._histograms) == 1 else self._layered.rms
