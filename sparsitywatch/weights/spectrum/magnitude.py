"""What one pass over |w| can answer, and which rules say that a weight is near zero.

Shapes: T tensors, K thresholds, R rules, B occupied bins of all tensors.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter

import numpy as np
import torch

from sparsitywatch.errors import (
    ConfigurationError,
    StateError,
    expect,
    expect_mapping,
    expect_number,
    expect_numbers,
    expect_whole,
    listed,
)
from sparsitywatch.records import LogHistogram
from sparsitywatch.weights.spectrum.counting import count
from sparsitywatch.weights.spectrum.histogram import STORAGES, Histogram, Rows, common_edges, summed

#: The first one is what pages and forecasts show.
DEFAULT_RULES = ("initial_0.1", "rms_0.1", "abs_0.001", "zero")


@dataclass(frozen=True)
class NearZeroRule:
    """``|w| <= threshold``, where the threshold is relative to something, or absolute."""

    #: "initial": relative to the tensor's root mean square when the watch first saw it; "rms": to
    #: its root mean square now; "abs": absolute.
    kind: str
    factor: float

    @classmethod
    def parse(cls, name: str) -> NearZeroRule:
        """A rule from its name: "initial_0.1", "rms_0.1", "abs_0.001", "zero"."""
        if name == "zero":
            return cls("abs", 0.0)
        kind, _, number = name.partition("_") if isinstance(name, str) else ("", "", "")
        try:
            factor = float(number)
        except ValueError:
            factor = math.nan
        is_rule = kind in ("initial", "rms", "abs") and 0.0 < factor < math.inf
        what = "rules such as 'initial_0.1', 'rms_0.1', 'abs_0.001' or 'zero'"
        expect(is_rule, "near_zero", what, name)
        return cls(kind, factor)

    def fixed_thresholds(self, initial_rms: Mapping[str, float]) -> dict[str, float] | None:
        """The threshold of each tensor; None where it moves with the weights."""
        if self.kind == "initial":
            return {name: self.factor * rms for name, rms in initial_rms.items()}
        return dict.fromkeys(initial_rms, self.factor) if self.kind == "abs" else None


def near_zero_rules(rules: Sequence[str]) -> dict[str, NearZeroRule]:
    """Rules by their names; a ConfigurationError if they are no list of such names."""
    names = listed("near_zero", rules, "a list of rules such as 'initial_0.1'")
    return {name: NearZeroRule.parse(name) for name in names}


def num_pruned(numel: int, level: float) -> int:
    """How many of ``numel`` weights a sparsity level asks to remove, before ties."""
    # the only rounding rule of the package: to the nearest integer, halves to even, as
    # ``torch.nn.utils.prune`` does
    if not 0.0 <= level <= 1.0:  # asked for every tensor and level: a call is rare
        expect(False, "level", "a fraction of weights in [0, 1]", level)
    return round(float(level) * numel)


#: Tensors that are asked together: few enough that their bins stay in a core's cache.
TOGETHER = 64
#: Meaning of the stored arrays; raised when the bins of a dtype change.
FORMAT = 1
_ARRAYS = ("format", "names", "dtypes", "num_bins", "num_inf", "num_nan", "keys", "counts")


class MagnitudeSpectrum:
    """The distribution of |w| of named tensors, as additive integer counts.

    bfloat16, float16 and float8 weights are counted per value, float32 and float64 in bins
    of at most 0.4 % of their magnitude. A spectrum never changes; ``a + b`` is the spectrum
    of all weights of both, whatever the order or the shards they came in. Spectra are equal
    when they hold the same counts under the same names.

    Fractions are of all weights, those that are not finite included; NaN if there are none.

    Attributes:
        histograms: the counts of each tensor, by name, in order.
        names: of the tensors, in order.
        num_weights: all weights, those that are not finite included.
        num_zero, num_nan, num_inf: exact zeros of either sign, weights that are NaN, and infinite.

    >>> spectrum = MagnitudeSpectrum.of({"w": torch.tensor([0.0, 0.0, 1.0, 1.0, -2.0, 2.0])})
    >>> spectrum.thresholds([0.5])
    [1.0]
    >>> round(spectrum.sparsity_at(1.0), 3)  # ties at the threshold go together
    0.667
    """

    def __init__(self, histograms: Mapping[str, Histogram] | None = None) -> None:
        """A spectrum of counted tensors; use ``of`` to count some."""
        self.histograms = dict(histograms or {})
        self.names = tuple(self.histograms)
        own = self.histograms.values()
        self.num_weights = sum(one.num_weights for one in own)
        self.num_zero = sum(int(one.counts[0]) for one in own if len(one.keys) and one.keys[0] == 0)
        self.num_nan = sum(one.num_nan for one in own)
        self.num_inf = sum(one.num_inf for one in own)

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
        if num_threads is None:
            num_threads = torch.get_num_threads()
        expect_whole("num_threads", num_threads, 1)
        what = "tensors by name, such as dict(model.named_parameters())"
        expect_mapping("tensors", tensors, what)
        with torch.no_grad():
            return cls(count(tensors, num_threads))

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
        own = list(self.histograms.values())
        keys = list(map(attrgetter("keys"), own))
        numbers = {
            "num_bins": np.fromiter(map(len, keys), np.int64),
            "num_inf": np.fromiter(map(attrgetter("num_inf"), own), np.int64),
            "num_nan": np.fromiter(map(attrgetter("num_nan"), own), np.int64),
            "keys": np.concatenate([np.empty(0, np.int32), *keys]),
            "counts": np.concatenate([np.empty(0, np.int64), *map(attrgetter("counts"), own)]),
        }
        return {
            "format": np.array(FORMAT),
            "names": np.array(self.names, dtype=np.str_),
            "dtypes": np.array([STORAGES[h.dtype].name for h in own], dtype=np.str_),
            **{name: n.astype(np.min_scalar_type(n.max(initial=0))) for name, n in numbers.items()},
        }

    def digest(self) -> str:
        """Identity of the counts by name, in whatever order: 64 hexadecimal digits."""
        state = hashlib.sha256()
        for name, histogram in sorted(self.histograms.items()):
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
        found = dict(self.histograms)
        for name, histogram in other.histograms.items():
            mine = found.get(name)
            if mine is not None and mine.dtype != histogram.dtype:
                raise ConfigurationError(
                    f"Expected {name!r} to have the same dtype in both spectra, got "
                    f"{mine.dtype} and {histogram.dtype}. Convert the tensor before counting."
                )
            found[name] = histogram if mine is None else summed([mine, histogram])
        return MagnitudeSpectrum(found)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, MagnitudeSpectrum):
            return NotImplemented
        return self.histograms == other.histograms

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        dtypes = ", ".join(self.dtypes)
        return f"MagnitudeSpectrum({len(self.names)} tensors, {self.num_weights} weights, {dtypes})"

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Names of the dtypes that occur, sorted, such as "float32"."""
        return tuple(sorted({STORAGES[h.dtype].name for h in self.histograms.values()}))

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
        found = []
        magnitudes, cumulative = self.steps
        for level in expect_numbers("levels", levels, "a list of sparsities in [0, 1]"):
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
        expect_number("t", t, lambda t: not math.isnan(t), "a magnitude")
        if not self.num_weights:
            return math.nan
        return float(self._at_most(np.array([t], np.float64))[0]) / self.num_weights

    def _at_most(self, t: np.ndarray) -> np.ndarray:
        """All weights with |w| <= t, float64 [K] like ``t``; no NaN."""
        found = np.zeros(len(t))
        for total in self._totals:
            found += total.at_most(t[None])[0]
        return found

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
        factors = {"abs": abs, "rms": rms, "initial": initial}
        given = {kind: factor for kind, factor in factors.items() if factor is not None}
        if len(given) != 1:
            raise ConfigurationError(
                f"Expected exactly one of `abs`, `rms` and `initial`, got {sorted(given)}."
            )
        ((kind, factor),) = given.items()
        expect_number(kind, factor, lambda f: 0.0 <= f < math.inf, "a finite number >= 0")
        if reference is not None:
            expect_mapping("reference", reference, "scales by name")
        return self.near_zero_by_rule({kind: NearZeroRule(kind, float(factor))}, reference)[0][kind]

    def near_zero_by_rule(
        self, rules: Mapping[str, NearZeroRule], initial_rms: Mapping[str, float] | None
    ) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """Fractions of all weights that are near zero, by rule; and of each tensor's, by name."""
        # a ConfigurationError if a rule asks for an initial scale that a tensor has not
        thresholds = np.empty((len(self.names), len(rules)))
        for i, rule in enumerate(rules.values()):
            thresholds[:, i] = rule.factor * self._scales(rule.kind, initial_rms)
        # a tensor without a scale has no finite weights, so none near zero
        thresholds[np.isnan(thresholds)] = -1.0
        near = np.empty(thresholds.shape)
        for rows, table in self._tables:
            near[rows] = table.at_most(thresholds[rows])
        in_all = self._at_most(np.array([rule.factor for rule in rules.values()])).tolist()
        whole = {}
        for i, (name, rule) in enumerate(rules.items()):
            num = in_all[i] if rule.kind == "abs" else math.fsum(near[:, i].tolist())
            whole[name] = num / (self.num_weights or math.nan)
        sizes = np.array([h.num_weights or math.nan for h in self.histograms.values()])
        of_each = zip(self.names, (near / sizes[:, None]).tolist(), strict=True)
        return whole, {name: dict(zip(rules, own, strict=True)) for name, own in of_each}

    def _scales(self, kind: str, initial_rms: Mapping[str, float] | None) -> np.ndarray:
        """What the thresholds of a kind of rule are relative to, float64 [T]."""
        if kind == "rms":
            return self._rms
        if kind != "initial":
            return np.ones(len(self.names))
        missing = [name for name in self.names if name not in (initial_rms or {})]
        if initial_rms is None or missing:
            came = "none" if initial_rms is None else f"no entry for {missing[0]!r}"
            raise ConfigurationError(
                "Expected `reference` with the initial scale of each tensor for `initial`, got "
                f"{came}."
            )
        return np.array([initial_rms[name] for name in self.names])

    def layers(self) -> dict[str, MagnitudeSpectrum]:
        """One spectrum per tensor, by name, in order; they share this one's counts."""
        return {name: MagnitudeSpectrum({name: h}) for name, h in self.histograms.items()}

    @cached_property
    def steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Magnitudes where the count of weights steps up, float64, and the count there, int64."""
        # of bins of several kinds only those that end one in each: exact for every dtype
        if not self._totals:
            return np.empty(0), np.empty(0, np.int64)
        if len(self._totals) == 1:
            (total,) = self._totals
            return total.bins.edges[total.keys], total.before[1:]
        magnitudes = common_edges(*(total.bins for total in self._totals))
        counts = self._at_most(magnitudes).astype(np.int64)
        is_step = np.diff(counts, prepend=0) > 0
        return magnitudes[is_step], counts[is_step]

    @cached_property
    def _totals(self) -> list[Rows]:
        """All tensors as one, for each kind of bins."""
        kinds: dict[str, list[Histogram]] = {}
        for histogram in self.histograms.values():
            kinds.setdefault(STORAGES[histogram.dtype].bins.name, []).append(histogram)
        return [Rows([summed(own)]) for own in kinds.values()]

    @cached_property
    def _tables(self) -> list[tuple[list[int], Rows]]:
        """Each tensor by itself, some that have one kind of bins together: which, and they."""
        histograms = list(self.histograms.values())
        groups: dict[tuple[str, int], list[int]] = {}
        for row, histogram in enumerate(histograms):
            kind = STORAGES[histogram.dtype].bins.name, row // TOGETHER
            groups.setdefault(kind, []).append(row)
        return [(rows, Rows([histograms[row] for row in rows])) for rows in groups.values()]

    @cached_property
    def _rms(self) -> np.ndarray:
        found = np.empty(len(self.names))
        for rows, table in self._tables:
            found[rows] = table.root_mean_squares()
        return found

    def layer_rms(self) -> dict[str, float]:
        """Root mean square of the finite weights of each layer, by name, in order; NaN of none.

        Computed from the counts alone, so that shards, chunks and stored spectra give the same.
        """
        return dict(zip(self.names, self._rms.tolist(), strict=True))

    def log10_histograms(self) -> dict[str, LogHistogram]:
        """A histogram of log10|w| per tensor, finite non-zero weights only.

        Edges are multiples of a fifth of a decade; a bin of the spectrum goes where its geometric
        middle lies.
        """
        found: dict[int, LogHistogram] = {}
        for rows, table in self._tables:
            found |= zip(rows, table.log10_histograms(), strict=True)
        return {name: found[row] for row, name in enumerate(self.names)}


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
    columns = {"names": names, "dtypes": dtypes, "num_inf": num_inf, "num_nan": num_nan}
    lengths = {name: len(column) for name, column in columns.items()}
    ends = np.cumsum(num_bins.astype(np.int64)).tolist()
    total = ends[-1] if ends else 0
    if set(lengths.values()) != {len(ends)} or not len(keys) == len(counts) == total:
        raise StateError(
            f"Expected the arrays of a spectrum to agree on {len(ends)} tensors and {total} "
            f"bins, got {lengths}, {len(keys)} keys, {len(counts)} counts."
        )
    found = {}
    for i, (start, end) in enumerate(itertools.pairwise([0, *ends])):
        name, dtype = str(names[i]), getattr(torch, str(dtypes[i]), None)
        if dtype not in STORAGES:
            raise StateError(
                f"Expected a float dtype of torch for {name!r}, got {str(dtypes[i])!r}."
            )
        own = keys[start:end].astype(np.int32), counts[start:end].astype(np.int64)
        is_rising = bool(np.all(np.diff(own[0], prepend=-1) > 0))
        if not is_rising or np.any(own[1] <= 0) or np.any(own[0] >= STORAGES[dtype].bins.inf_key):
            raise StateError(f"Expected rising bins with positive counts for {name!r}.")
        found[name] = Histogram(dtype, *own, int(num_inf[i]), int(num_nan[i]))
    return found
