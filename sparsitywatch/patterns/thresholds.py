"""Cuts by a threshold: one for all tensors together, or one for each.

Counts say in which bin of the spectrum a level ends. The weights of that bin, a thousandth of all,
are then looked at themselves, so that the level is met to the weight; ties go together.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sparsitywatch.patterns.criteria import scored
from sparsitywatch.patterns.cuts import Combination, Cut, Numbers, Scores, Shares, Weights
from sparsitywatch.patterns.selections import (
    WORDS,
    CountedCut,
    from_output_rows,
    keep_bits,
    to_output_rows,
)
from sparsitywatch.weights.spectrum import MagnitudeSpectrum
from sparsitywatch.weights.spectrum.counting import map_threads
from sparsitywatch.weights.spectrum.histogram import STORAGES, Histogram, summed
from sparsitywatch.weights.spectrum.magnitude import num_pruned

#: So many weights are looked at at once: they stay in a core's cache.
_AT_ONCE = 1 << 15


@dataclass(frozen=True, repr=False)
class _ThresholdCut(CountedCut):
    """Removes every weight with ``|w| <= threshold``, ties together."""

    thresholds: Mapping[str, float]  # of each tensor
    scores: Scores  # of the weights, where a threshold is one of theirs

    def _prune(self, name: str, weights: torch.Tensor, out: torch.Tensor) -> None:
        threshold = self.thresholds[name]
        if threshold == -math.inf:
            out.copy_(weights)
        elif self.scores is not None:
            found = self.scores(name)(to_output_rows(weights, self.axes[name]), slice(None))
            stays = (found <= threshold).logical_not_()  # NaN, too
            keep_bits(weights, from_output_rows(stays, weights.shape, self.axes[name]), out)
        elif threshold == math.inf or weights.dtype.itemsize == 1:  # torch shrinks none of 8 bits
            stays = (weights.float().abs() <= threshold).logical_not_()  # NaN, too
            keep_bits(weights, stays, out)
        else:
            # hardshrink is one-shot magnitude pruning in one fused pass. NaN and inf
            # lie above every finite threshold and stay.
            torch.hardshrink(weights, _round_down(threshold, weights.dtype), out=out)


@functools.lru_cache
def _round_down(threshold: float, dtype: torch.dtype) -> float:
    """The largest value of ``dtype`` that is not above a non-negative ``threshold``."""
    rounded = torch.tensor(threshold, dtype=torch.float64, device="cpu").to(dtype)
    if float(rounded) > threshold:
        rounded = torch.nextafter(rounded, torch.zeros_like(rounded))
    return float(rounded)


def global_cuts(
    _: Combination, weights: Weights, levels: Sequence[float], __: Shares, scores: Scores
) -> list[Cut]:
    """Cuts of the lowest scores of all tensors together."""
    spectrum = _spectrum(weights, scores)
    scales = dict.fromkeys(spectrum.histograms, 1.0)
    return _of_all(weights, levels, spectrum, scales, scores)


def normalised_cuts(
    _: Combination, weights: Weights, levels: Sequence[float], __: Shares
) -> list[Cut]:
    """Cuts of the smallest ``|w|`` over the root mean square of their tensor, of all together."""
    spectrum = weights.spectrum
    scales = {n: rms if rms > 0.0 else 1.0 for n, rms in spectrum.layer_rms().items()}
    return _of_all(weights, levels, spectrum, scales, None)


def layer_cuts(
    _: Combination, weights: Weights, levels: Sequence[float], shares: Shares, scores: Scores
) -> list[Cut]:
    """Cuts of the lowest scores of each tensor."""
    limits = [dict[str, tuple[float, int]]() for _ in levels]
    for name, own in _spectrum(weights, scores).histograms.items():
        numbers = [num_pruned(own.num_weights, share[name]) for share in shares]
        group = _Group({name: _Steps(own, 1.0)})
        for found, limit in zip(limits, group.limits(numbers, weights, scores), strict=True):
            found |= limit
    return _cuts_at(limits, weights, levels, scores)


def _spectrum(weights: Weights, scores: Scores) -> MagnitudeSpectrum:
    """How many have which score, by tensor."""
    if scores is None:
        return weights.spectrum
    # one tensor after another
    every = (MagnitudeSpectrum.of({n: scored(weights, n, scores)}) for n in weights.shapes)
    return sum(every, MagnitudeSpectrum())


def _of_all(
    weights: Weights, levels: Sequence[float], spectrum: MagnitudeSpectrum,
    scales: Mapping[str, float], scores: Scores,
) -> list[Cut]:  # fmt: skip
    """Cuts by one threshold, in units of each tensor's scale."""
    steps = {n: _Steps(own, scales[n]) for n, own in spectrum.histograms.items()}
    numbers = [num_pruned(spectrum.num_weights, level) for level in levels]
    return _cuts_at(_Group(steps).limits(numbers, weights, scores), weights, levels, scores)


def _cuts_at(
    limits: Sequence[Mapping[str, tuple[float, int]]],
    weights: Weights,
    levels: Sequence[float],
    scores: Scores,
) -> list[Cut]:
    """Cuts at the threshold of each tensor, which so many weights do not exceed, by level."""
    sizes = {n: own.num_weights for n, own in weights.spectrum.histograms.items()}
    each = []
    for level, found in zip(levels, limits, strict=True):
        if level >= 1.0:  # NaN, too
            found = {name: (math.inf, size) for name, size in sizes.items()}
        of_each = {name: threshold for name, (threshold, _) in found.items()}
        each.append(({name: num for name, (_, num) in found.items()}, of_each))
    return _ThresholdCut.counted(weights, levels, each, scores=scores)


class _Steps:
    """The bins of a tensor, above ``begins`` and up to ``ends``; also in units of its scale."""

    def __init__(self, histogram: Histogram, scale: float) -> None:
        bins, keys = STORAGES[histogram.dtype].bins, histogram.keys
        self.histogram, self.scale, self.kind = histogram, scale, bins.name
        self.ends, self.begins = bins.edges[keys], np.where(keys > 0, bins.edges[keys - 1], -1.0)
        self.highs, self.lows = self.ends / scale, self.begins / scale
        self.before = np.concatenate(([0], np.cumsum(histogram.counts)))
        # of 16 bits each bin is one value
        self._is_exact = bins.is_exact

    def inside(self, bins: slice) -> tuple[float, float] | None:
        """What has to be looked for in some bins; None where they are one value each."""
        ends = self.ends[bins]
        # zeros are a bin by themselves, and may be many
        is_known = self._is_exact or not len(ends) or ends[-1] == 0.0
        return None if is_known else (float(self.begins[bins][0]), float(ends[-1]))


class _Group:
    """Tensors that have one threshold, in units of their scales."""

    def __init__(self, steps: Mapping[str, _Steps]) -> None:
        self._steps = steps
        bins = list(steps.values())
        if all(own.scale == 1.0 for own in bins):  # as one tensor for each kind of bins
            kinds: dict[str, list[Histogram]] = {}
            for own in bins:
                kinds.setdefault(own.kind, []).append(own.histogram)
            bins = [_Steps(summed(own), 1.0) for own in kinds.values()]
        counts = np.concatenate([np.empty(0, np.int64), *(own.histogram.counts for own in bins)])
        self._ordered = []  # the lower and the upper bounds of bins, and weights up to each
        for bounds in ([own.lows for own in bins], [own.highs for own in bins]):
            joined = np.concatenate([np.empty(0), *bounds])
            order = joined.argsort(kind="stable")
            self._ordered.append((joined[order], counts[order].cumsum()))

    def limits(
        self, nums: Sequence[int], weights: Weights, scores: Scores
    ) -> list[dict[str, tuple[float, int]]]:
        """Of each tensor its threshold, and how many go, for each number that shall go in all."""
        places = [self._places(num) for num in nums]
        wanted = {
            name: [own.inside(place.get(name, slice(0))) for place in places]
            for name, own in self._steps.items()
        }
        looked: Numbers = {}
        if weights.tensors and any(one for of_tensor in wanted.values() for one in of_tensor):
            looked = weights.united(
                lambda: {
                    name: _within(
                        weights.tensors[name] if scores is None else scored(weights, name, scores),
                        intervals,
                    )
                    for name, intervals in wanted.items()
                }
            )
        found = []
        for i, (num, place) in enumerate(zip(nums, places, strict=True)):
            # where denormals are flushed their bins look empty: then a bin goes as a whole
            known = {
                name: own[i]
                for name, own in looked.items()
                if wanted[name][i] is not None
                and len(own[i]) == self._steps[name].histogram.counts[place[name]].sum()
            }
            found.append(self._cut(num, place, known) if place else self._ends(num))
        return found

    def _places(self, num: int) -> dict[str, slice]:
        """Of each tensor the bins that may hold the ``num``-th smallest; {} if it is not finite."""
        (lows, begun), (highs, reached) = self._ordered
        if num == 0 or not len(reached) or num > reached[-1]:
            return {}
        low, high = lows[begun.searchsorted(num)], highs[reached.searchsorted(num)]
        return {
            name: slice(own.highs.searchsorted(low, "right"), own.lows.searchsorted(high))
            for name, own in self._steps.items()
        }

    def _ends(self, num: int) -> dict[str, tuple[float, int]]:
        """Nothing goes, or all but NaN."""
        if num == 0:
            return dict.fromkeys(self._steps, (-math.inf, 0))
        every = {name: own.histogram for name, own in self._steps.items()}
        return {name: (math.inf, own.num_weights - own.num_nan) for name, own in every.items()}

    def _cut(
        self, num: int, place: Mapping[str, slice], looked: Mapping[str, np.ndarray]
    ) -> dict[str, tuple[float, int]]:
        """Of each tensor the largest score that goes, and how many go, that in all ``num`` do."""
        values, counts, before = {}, {}, {}
        for name, bins in place.items():
            own = self._steps[name]
            before[name] = int(own.before[bins.start])
            values[name] = looked.get(name, own.ends[bins])
            is_looked = name in looked
            ones = np.ones(len(values[name]), np.int64)
            counts[name] = ones if is_looked else own.histogram.counts[bins]
        ratios = {name: own / self._steps[name].scale for name, own in values.items()}
        joined = np.concatenate([*ratios.values()])
        order = joined.argsort(kind="stable")
        reached = sum(before.values()) + np.concatenate([*counts.values()])[order].cumsum()
        last = min(int(reached.searchsorted(num)), len(order) - 1)
        limit = joined[order][last] if len(order) else -math.inf  # float64, flushed: all below
        found = {}
        for name, ratio in ratios.items():
            below = self._steps[name].ends[: place[name].start].max(initial=-math.inf)
            threshold = float(values[name].max(where=ratio <= limit, initial=below))
            found[name] = threshold, before[name] + int(counts[name].sum(where=ratio <= limit))
        return found


def _within(
    values: torch.Tensor, intervals: Sequence[tuple[float, float] | None]
) -> list[np.ndarray]:
    """The magnitudes above one number and up to another, float64, for each two; None: nothing."""
    sizes = values.detach().reshape(-1)
    sizes = sizes.float() if sizes.itemsize < 4 else sizes  # float8 of powers of two
    sizes = _among(sizes, [*filter(None, intervals)]) if sizes.is_cpu else sizes.abs()
    picked = (  # waits for the device, as the transfer does
        sizes[(sizes > low) & (sizes <= high)] for low, high in (o or (0, 0) for o in intervals)
    )
    return [one.cpu().double().numpy() for one in picked]


def _among(weights: torch.Tensor, intervals: Sequence[tuple[float, float]]) -> torch.Tensor:
    """The magnitudes in any of some intervals, in one pass over the weights of a CPU."""
    words, kind = weights.view(WORDS[weights.itemsize]).numpy(), np.dtype(f"f{weights.itemsize}")
    if not intervals:
        return weights[:0]
    # as integers magnitudes are in the same order, and a difference is one comparison
    sign_off = words.dtype.type(np.iinfo(words.dtype).max)
    ends = np.array(intervals, kind)
    firsts = np.where(ends[:, 0] < 0.0, 0, ends[:, 0].view(words.dtype) + 1).astype(words.dtype)
    widths = (ends[:, 1].view(words.dtype) - firsts).astype(f"u{weights.itemsize}")

    def search(start: int) -> np.ndarray:
        sizes = words[start : start + _AT_ONCE] & sign_off
        inside = np.zeros(len(sizes), np.bool_)
        for first, width in zip(firsts, widths, strict=True):
            inside |= (sizes - first).view(widths.dtype) <= width
        return np.asarray(sizes[np.flatnonzero(inside)])

    pieces = map_threads(search, range(0, len(words), _AT_ONCE), torch.get_num_threads())
    return torch.from_numpy(np.concatenate([words[:0], *pieces]).view(kind))
