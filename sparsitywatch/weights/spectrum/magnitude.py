"""What one pass over |w| can answer, and which rules say that a weight is near zero."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter, itemgetter

import numpy as np
import torch

from sparsitywatch.errors import (
    ConfigurationError,
    StateError,
    expect_mapping,
    expect_number,
    expect_numbers,
    expect_whole,
    listed,
)
from sparsitywatch.records import LogHistogram
from sparsitywatch.weights.spectrum.counting import LazyTensors, count, count_stored
from sparsitywatch.weights.spectrum.histogram import STORAGES, Histogram, Histograms

__all__ = ["DEFAULT_RULES", "MagnitudeSpectrum", "NearZeroRule", "near_zero_rules", "num_pruned"]

#: The first one is what detectors watch by default.
DEFAULT_RULES = ("initial_0.1", "rms_0.1", "abs_0.001", "zero")


@dataclass(frozen=True)
class NearZeroRule:
    """``|w| <= threshold``, where the threshold is relative to something, or absolute.

    Args:
        kind: "initial": relative to the tensor's root mean square when the watch first
            saw it; "rms": to its root mean square now; "abs": absolute; "zero": exactly
            zero.
        factor: what it is multiplied with; 0 for "zero".
    """

    kind: str
    factor: float

    @classmethod
    def parse(cls, name: str) -> NearZeroRule:
        """A rule from its name: "initial_0.1", "rms_0.1", "abs_0.001", "zero".

        Raises:
            ConfigurationError: the name is none of these.

        >>> NearZeroRule.parse("rms_0.1")
        NearZeroRule(kind='rms', factor=0.1)
        """
        if name == "zero":
            return cls("zero", 0.0)
        kind, _, number = name.partition("_") if isinstance(name, str) else ("", "", "")
        try:
            factor = float(number)
        except ValueError:
            factor = math.nan
        if kind not in ("initial", "rms", "abs") or not 0.0 < factor < math.inf:
            raise ConfigurationError(
                "Expected `near_zero` rules such as 'initial_0.1', 'rms_0.1', 'abs_0.001' or "
                f"'zero', got {name!r}."
            )
        return cls(kind, factor)

    @classmethod
    def only(cls, **factors: float | None) -> NearZeroRule:
        """The rule of the one kind whose factor is not None.

        Raises:
            ConfigurationError: not exactly one, or a factor that is negative or not finite.

        >>> NearZeroRule.only(abs=0.001, rms=None)
        NearZeroRule(kind='abs', factor=0.001)
        """
        given = [(kind, factor) for kind, factor in factors.items() if factor is not None]
        if len(given) != 1:
            raise ConfigurationError(
                f"Expected exactly one of `abs`, `rms` and `initial`, got {sorted(dict(given))}."
            )
        ((kind, factor),) = given
        expect_number(kind, factor, lambda f: 0.0 <= f < math.inf, "a finite number >= 0")
        return cls(kind, float(factor))

    def fixed_thresholds(self, initial_rms: Mapping[str, float]) -> dict[str, float] | None:
        """Below which a weight is near zero, by tensor; None where that is not fixed, or 0.

        >>> NearZeroRule.parse("abs_0.001").fixed_thresholds({"weight": 0.02})
        {'weight': 0.001}
        """
        if self.kind == "initial":
            return {name: self.factor * rms for name, rms in initial_rms.items()}
        return dict.fromkeys(initial_rms, self.factor) if self.kind == "abs" else None


def near_zero_rules(rules: Sequence[str]) -> dict[str, NearZeroRule]:
    """Rules by their names.

    Raises:
        ConfigurationError: they are no list of such names.
    """
    names = listed("near_zero", rules, "a list of rules such as 'initial_0.1'")
    return {name: NearZeroRule.parse(name) for name in names}


def _thresholds_of(
    rules: Sequence[NearZeroRule],
    names: Sequence[str],
    rms: np.ndarray,
    initial_rms: Mapping[str, float] | None,
) -> np.ndarray:
    """The threshold in each of T tensors by each of R rules, float64 [T, R].

    Args:
        rules: what is asked.
        names: of the tensors.
        rms: root mean square of each tensor, float64 [T].
        initial_rms: of each when it was first seen, by name; may be None where no rule asks.

    Raises:
        ConfigurationError: a rule asks for an initial scale that a tensor does not have.
    """
    found = np.empty((len(names), len(rules)))
    for i, rule in enumerate(rules):
        found[:, i] = rule.factor
        if rule.kind == "rms":
            found[:, i] *= rms
        elif rule.kind == "initial":
            missing = set(names).difference(initial_rms or ())
            if initial_rms is None or missing:
                first = min(missing, key=names.index, default="")
                came = "none" if initial_rms is None else f"no entry for {first!r}"
                raise ConfigurationError(
                    "Expected `reference` with the initial scale of each tensor for `initial`, "
                    f"got {came}."
                )
            found[:, i] *= list(map(initial_rms.__getitem__, names))
    # a tensor without a scale has no finite weights, so none near zero
    return np.where(np.isnan(found), -1.0, found)


# ------------------------------------------------------------------ the spectrum

#: Meaning of the stored arrays; raised when the bins of a dtype change.
FORMAT = 1
_ARRAYS = ("format", "names", "dtypes", "num_bins", "num_inf", "num_nan", "keys", "counts")


def num_pruned(numel: int, level: float) -> int:
    """How many of ``numel`` weights a sparsity level asks to remove, before ties.

    The only rounding rule of the package: to the nearest integer, halves to even, as
    ``torch.nn.utils.prune`` does.

    Args:
        numel: number of weights.
        level: a fraction in [0, 1].

    Returns:
        An integer in [0, numel].

    Raises:
        ConfigurationError: ``level`` lies outside [0, 1].

    >>> num_pruned(10, 0.25), num_pruned(10, 0.35)
    (2, 4)
    """
    if not 0.0 <= level <= 1.0:
        raise ConfigurationError(
            f"Expected `level` to be a fraction of weights in [0, 1], got {level!r}."
        )
    return round(float(level) * numel)


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
            if not isinstance(tensors, LazyTensors):
                return cls(count(tensors, num_threads))
            if tensors.store is not None:
                return cls(count_stored(tensors, num_threads))
            counted: dict[str, Histogram] = {}
            for name in tensors:  # one by one: never all in memory
                counted |= count({name: tensors[name]}, num_threads)
            return cls(counted)

    @classmethod
    def from_arrays(cls, stored: Mapping[str, np.ndarray]) -> MagnitudeSpectrum:
        """The spectrum that ``to_arrays`` made ``stored`` from.

        Raises:
            StateError: an array is missing, or they contradict each other.
        """
        return cls(_unpacked(stored))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Everything as a few plain arrays, for ``numpy.savez`` and ``allow_pickle=False``.

        T tensors as arrays of length T, and ``keys`` and ``counts`` of all, one after another.
        Integers are as narrow as their largest value allows.
        """
        dtypes, num_bins, keys, counts = [], [], [], []
        for histogram in self._histograms.values():
            dtypes.append(STORAGES[histogram.dtype].name)
            num_bins.append(len(histogram.keys))
            keys.append(histogram.keys)
            counts.append(histogram.counts)
        return {
            "format": np.array(FORMAT),
            "names": np.array(self.names, dtype=np.str_),
            "dtypes": np.array(dtypes, dtype=np.str_),
            "num_bins": _narrow(np.array(num_bins, np.int64)),
            "num_inf": _narrow(self._counts.num_inf),
            "num_nan": _narrow(self._counts.num_nan),
            "keys": _narrow(np.concatenate([np.empty(0, np.int32), *keys])),
            "counts": _narrow(np.concatenate([np.empty(0, np.int64), *counts])),
        }

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
            mine = summed.get(name)
            if mine is not None and mine.dtype != histogram.dtype:
                raise ConfigurationError(
                    f"Expected {name!r} to have the same dtype in both spectra, got "
                    f"{mine.dtype} and {histogram.dtype}. Convert the tensor before counting."
                )
            summed[name] = histogram if mine is None else mine + histogram
        return MagnitudeSpectrum(summed)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MagnitudeSpectrum):
            return NotImplemented
        return self._histograms == other._histograms

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        dtypes = ", ".join(self.dtypes)
        return f"MagnitudeSpectrum({len(self.names)} tensors, {self.num_weights} weights, {dtypes})"

    @cached_property
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
        return int(self._counts.num_weights.sum())

    @property
    def num_nan(self) -> int:
        """Weights that are NaN."""
        return int(self._counts.num_nan.sum())

    @property
    def num_inf(self) -> int:
        """Weights that are infinite."""
        return int(self._counts.num_inf.sum())

    @property
    def num_zero(self) -> int:
        """Exact zeros of either sign."""
        return int(self._counts.at_most_in_all([0.0])[0])

    @property
    def rms(self) -> float:
        """Root mean square of the finite weights; NaN without any.

        Computed from the integer counts alone, so that shards, chunks and stored spectra
        give the same bits; bins are taken as filled evenly.
        """
        return self._counts.rms_of_all

    def thresholds(self, levels: Sequence[float]) -> list[float]:
        """A threshold t per sparsity level: the weights with |w| <= t are removed.

        t is the largest value of the first bin at which the count of weights reaches
        ``num_pruned(num_weights, level)``. Ties go together, and so does a bin: the counted
        sparsity, ``sparsity_at(t)``, overshoots the level by at most the mass of the bin.
        -inf removes nothing; inf, where more is asked for than the finite weights, all but
        NaN. Each t is a value of every dtype in the spectrum, but for magnitudes beyond the
        range of the narrowest one.

        Args:
            levels: fractions in [0, 1], in any order.

        Returns:
            float64 thresholds, in the order of ``levels``.

        Raises:
            ConfigurationError: a level lies outside [0, 1].
        """
        # a sweep asks one level after another, and a list of floats is quickly recognised
        if not (isinstance(levels, list) and set(map(type, levels)) <= {float}):
            levels = expect_numbers("levels", levels, "a list of sparsities in [0, 1]")
        magnitudes, cumulative = self._counts.steps
        found = []
        for level in levels:
            num_removed = num_pruned(self.num_weights, level)
            step = cumulative.searchsorted(num_removed)
            if num_removed == 0:
                found.append(-math.inf)
            else:
                found.append(magnitudes.item(step) if step < len(magnitudes) else math.inf)
        return found

    def sparsity_at(self, t: float) -> float:
        """The fraction of all weights with |w| <= t.

        Counted, not estimated, at every t that ``thresholds`` returned, at every value of
        dtypes of 16 bits or less, and at 0. At another t the float32 and float64 weights of the
        one bin around t are interpolated linearly: off by at most that bin's mass.

        Raises:
            ConfigurationError: ``t`` is NaN.
        """
        if type(t) is not float or math.isnan(t):
            expect_number("t", t, lambda t: not math.isnan(t), "a magnitude")
        return self.sparsities_at([t])[0]

    def sparsities_at(self, thresholds: Sequence[float]) -> list[float]:
        """``sparsity_at`` each of some thresholds, none of which is NaN."""
        if self.num_weights == 0:
            return [math.nan] * len(thresholds)
        return [num / self.num_weights for num in self._counts.at_most_in_all(thresholds)]

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
        rule = NearZeroRule.only(abs=abs, rms=rms, initial=initial)
        if rule.kind == "abs":
            return self.sparsity_at(rule.factor)
        if rule.kind == "initial" and reference is not None:
            expect_mapping("reference", reference, "scales by name")
        taus = _thresholds_of([rule], self.names, self._counts.rms, reference)
        if self.num_weights == 0:
            return math.nan
        return math.fsum(self._counts.at_most(taus).ravel().tolist()) / self.num_weights

    def near_zero_by_rule(
        self, rules: Mapping[str, NearZeroRule], initial_rms: Mapping[str, float] | None
    ) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """Fractions of weights that are near zero, by several rules in one go.

        Args:
            rules: by what they are called.
            initial_rms: root mean square of each tensor when it was first seen, by name; may be
                None where no rule asks for it.

        Returns:
            Of all weights, by rule; and of each tensor's own weights, by its name and by rule.

        Raises:
            ConfigurationError: a tensor has no initial scale, and a rule asks for it.
        """
        taus = _thresholds_of(list(rules.values()), self.names, self._counts.rms, initial_rms)
        near = self._counts.at_most(taus)
        whole, by_layer = {}, {}
        by_factor = self._counts.at_most_in_all(map(attrgetter("factor"), rules.values()))
        for (name, rule), num, by_tensor in zip(
            rules.items(), by_factor, near.T.tolist(), strict=True
        ):
            counted = num if rule.kind in ("abs", "zero") else math.fsum(by_tensor)
            whole[name] = counted / self.num_weights if self.num_weights else math.nan
        for name, fractions in zip(self.names, self._counts.shares(near), strict=True):
            by_layer[name] = dict(zip(rules, fractions, strict=True))
        return whole, by_layer

    def layers(self) -> dict[str, MagnitudeSpectrum]:
        """One spectrum per tensor, by name, in order; they share this one's counts."""
        return {name: MagnitudeSpectrum({name: h}) for name, h in self._histograms.items()}

    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Magnitudes where the count of all weights steps up, and the count from there on.

        Returns:
            float64 and int64, rising.
        """
        return self._counts.steps

    def layer_rms(self) -> dict[str, float]:
        """``rms`` of each layer, in one go; by name, in order."""
        return dict(zip(self.names, self._counts.rms.tolist(), strict=True))

    def layer_num_weights(self) -> dict[str, int]:
        """``num_weights`` of each layer; by name, in order."""
        return dict(zip(self.names, self._counts.num_weights.tolist(), strict=True))

    def layer_sparsity_at(self, thresholds: Sequence[float]) -> dict[str, list[float]]:
        """``sparsity_at`` of each layer at each threshold, in one go; by name, in order.

        Raises:
            ConfigurationError: a threshold is NaN.
        """
        t = np.array(thresholds, np.float64)
        if np.isnan(t).any():
            raise ConfigurationError("Expected `thresholds` to be magnitudes, got NaN.")
        return dict(zip(self.names, self._counts.shares(self._counts.at_most(t)), strict=True))

    def cuts(self, levels: Sequence[float]) -> list[tuple[float, float, dict[str, float]]]:
        """For each level its threshold, and ``sparsity_at`` it: of all, and of each layer by name.

        In one go; a threshold and both fractions are those of ``thresholds``, ``sparsity_at`` and
        ``layer_sparsity_at``.

        Raises:
            ConfigurationError: a level lies outside [0, 1].
        """
        thresholds = self.thresholds(levels)
        in_all = self._counts.at_most_in_all(thresholds)
        of_layers = self._counts.shares(self._counts.at_most(np.array(thresholds, np.float64)))
        found = []
        for i, (threshold, num) in enumerate(zip(thresholds, in_all, strict=True)):
            sparsity = num / self.num_weights if self.num_weights else math.nan
            shares = dict(zip(self.names, map(itemgetter(i), of_layers), strict=True))
            found.append((threshold, sparsity, shares))
        return found

    def log10_histograms(self, bins_per_decade: int = 5) -> dict[str, LogHistogram]:
        """A histogram of log10|w| per tensor, finite non-zero weights only.

        Args:
            bins_per_decade: edges are multiples of ``1 / bins_per_decade`` decades. A bin of
                the spectrum goes where its geometric middle lies.

        Raises:
            ConfigurationError: ``bins_per_decade`` is less than 1.
        """
        expect_whole("bins_per_decade", bins_per_decade, 1)
        found = self._counts.log10_histograms(bins_per_decade)
        return dict(zip(self.names, found, strict=True))

    def histogram(self, name: str) -> Histogram:
        """The counts of one tensor."""
        return self._histograms[name]

    def with_counts(
        self, counts: Mapping[str, tuple[np.ndarray, np.ndarray, int, int]]
    ) -> MagnitudeSpectrum:
        """Other counts of the same tensors.

        Args:
            counts: by name, in this order: rising keys int32, counts int64, and how many weights
                are infinite and NaN.
        """
        return MagnitudeSpectrum(
            {name: Histogram(self._histograms[name].dtype, *of) for name, of in counts.items()}
        )

    @cached_property
    def _counts(self) -> Histograms:
        return Histograms(list(self._histograms.values()))


def _narrow(numbers: np.ndarray) -> np.ndarray:
    return numbers.astype(np.min_scalar_type(int(numbers.max(initial=0))))


def _unpacked(stored: Mapping[str, np.ndarray]) -> dict[str, Histogram]:
    missing = [name for name in _ARRAYS if name not in stored]
    if missing:
        raise StateError(f"Expected the arrays of a spectrum, got none named {missing[0]!r}.")
    # once each: a file is read each time that it is asked
    version, names, dtypes, num_bins, num_inf, num_nan, keys, counts = (stored[n] for n in _ARRAYS)
    if int(version) != FORMAT:
        raise StateError(
            f"Expected a spectrum of format {FORMAT}, got {int(version)}. Read it with "
            "the version of sparsitywatch that wrote it."
        )
    lengths = {
        "names": len(names),
        "dtypes": len(dtypes),
        "num_inf": len(num_inf),
        "num_nan": len(num_nan),
    }
    ends = np.cumsum(num_bins.astype(np.int64)).tolist()
    total = ends[-1] if ends else 0
    if set(lengths.values()) != {len(ends)} or not len(keys) == len(counts) == total:
        raise StateError(
            f"Expected the arrays of a spectrum to agree on {len(ends)} tensors and {total} "
            f"bins, got {lengths}, {len(keys)} keys, {len(counts)} counts."
        )
    found = {}
    start = 0
    for i, (name, end) in enumerate(zip(names.tolist(), ends, strict=True)):
        dtype = getattr(torch, str(dtypes[i]), None)
        if dtype not in STORAGES:
            raise StateError(
                f"Expected a float dtype of torch for {name!r}, got {str(dtypes[i])!r}."
            )
        own = keys[start:end].astype(np.int32), counts[start:end].astype(np.int64)
        is_rising = bool(np.all(np.diff(own[0], prepend=-1) > 0))
        if not is_rising or np.any(own[1] <= 0) or np.any(own[0] >= STORAGES[dtype].bins.inf_key):
            raise StateError(f"Expected rising bins with positive counts for {name!r}.")
        found[name] = Histogram(dtype, *own, int(num_inf[i]), int(num_nan[i]))
        start = end
    return found
