"""What a level means: which weights one-shot pruning removes at a sparsity.

A pattern makes cuts, a cut removes weights. Here are the seam, and the patterns by a threshold on
the magnitudes, which need no more than counts. ``selections.py`` has those that choose within rows
or groups of M, or at random; ``criteria.py`` those that look at the inputs of layers.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from sparsitywatch.errors import ConfigurationError, expect_mapping
from sparsitywatch.pruning import PATTERNS
from sparsitywatch.redact import printable
from sparsitywatch.weights.spectrum import MagnitudeSpectrum
from sparsitywatch.weights.spectrum.magnitude import num_pruned


@dataclass(frozen=True)
class Inputs:
    """What came into each layer while the dense model ran on the proxy's batches.

    Args:
        num: vectors that came in, by name of the tensor.
        squares: sum of the squares of each input feature, float32 [in], by name.
        products: sum of the products of each two of them, float32 [in, in], by name; empty
            unless a pattern needs them.
    """

    num: Mapping[str, int]
    squares: Mapping[str, torch.Tensor]
    products: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Weights:
    """What a pattern is told of the in-scope weights.

    Args:
        spectrum: how many have which magnitude, by tensor.
        shapes: of each tensor, by name.
        input_axes: the axis of each tensor that runs over inputs: the second one of nn.Linear and
            of convolutions, the first one of transformers' Conv1D. Missing: the last one.
        seed: of whatever a pattern draws.
        inputs: of the layers, for patterns that say ``needs_inputs``; else None.
    """

    spectrum: MagnitudeSpectrum
    shapes: Mapping[str, tuple[int, ...]]
    input_axes: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0
    inputs: Inputs | None = None

    def __repr__(self) -> str:
        return f"<Weights: {len(self.shapes)} tensors, {self.spectrum.num_weights:,} weights>"

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor], **known: Any) -> Weights:
        """What is told of some ``tensors``, by name; and what else is ``known``: further fields."""
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        return cls(MagnitudeSpectrum.of(tensors), shapes, **known)

    def input_axis(self, name: str) -> int:
        """The axis of a tensor that runs over inputs."""
        return self.input_axes.get(name, len(self.shapes[name]) - 1)


@dataclass(frozen=True, repr=False)
class Cut(ABC):
    """Removing some weights, the same ones whenever it is applied to the same weights.

    Args:
        level: the sparsity that was asked for.
        sparsity: the counted fraction of all in-scope weights that it removes.
        shares: the counted fraction of each tensor's weights that it removes, by name.
    """

    level: float
    sparsity: float
    shares: Mapping[str, float]

    def __repr__(self) -> str:
        kind = type(self).__name__.lstrip("_")
        return f"<{kind} for {self.level:g}: {self.sparsity:g} of {len(self.shares)} tensors>"

    @abstractmethod
    def prune(self, name: str, weights: torch.Tensor, out: torch.Tensor) -> None:
        """Write ``weights`` without the removed ones to ``out``.

        Args:
            name: the tensor's name in scope.
            weights: the dense weights, any float dtype and shape; not written to.
            out: same shape, dtype and device. Kept weights are the same bit for bit, unless the
                pattern makes up for what goes, as SparseGPT does.
        """


class Pattern(ABC):
    """A rule that turns levels into cuts. Write your own by deriving from this class.

    Args:
        name: what it is called in the provenance.
        is_nested: whether what a level removes is removed at every higher one, too.
        needs_inputs: "squares" or "products" of what comes into the layers; "" for neither.
        levels: the only ones between 0 and 1 that it has; None if it has all.
        ranks: where it can be used: "shards", also where every rank holds a part of the weights;
            "replicas", where every rank holds all; "alone", where one process measures.

    Raises:
        ConfigurationError: a class says something of itself that no pattern is asked for.
    """

    name: str = ""
    is_nested = True
    needs_inputs: Literal["", "squares", "products"] = ""
    levels: Sequence[float] | None = None
    ranks: Literal["shards", "replicas", "alone"] = "replicas"

    def __init_subclass__(cls) -> None:
        known = {name for name in vars(Pattern) if not name.startswith("_")}
        for name, value in vars(cls).items():
            is_field = name in inspect.get_annotations(cls)
            is_said = not (name.startswith("_") or callable(value) or hasattr(value, "__get__"))
            if not is_said or is_field or name in known:
                continue
            raise ConfigurationError(
                f"Expected the pattern {cls.__name__} to say of itself "
                f"{', '.join(sorted(known))}, got {name!r}."
            )

    @abstractmethod
    def cuts(self, weights: Weights, levels: Sequence[float]) -> list[Cut]:
        """One cut per level, in the order of ``levels``, each in [0, 1]."""


# ------------------------------------------------------------------ thresholds


@dataclass(frozen=True, repr=False)
class ThresholdCut(Cut):
    """Removes every weight with ``|w| <= threshold``, ties together.

    A level of 1 removes everything, NaN included; a level of 0 removes nothing.

    Args:
        threshold: one for all tensors; NaN where each has its own.
        thresholds: of each tensor, by name, where they differ.
    """

    threshold: float
    thresholds: Mapping[str, float] | None = None

    def prune(self, name: str, weights: torch.Tensor, out: torch.Tensor) -> None:
        threshold = self.threshold if self.thresholds is None else self.thresholds[name]
        if threshold == -math.inf:
            out.copy_(weights)
        elif threshold == math.inf:
            out.zero_()
        else:
            threshold = _round_down(threshold, weights.dtype)
            # hardshrink is one-shot magnitude pruning in one fused pass. NaN and inf
            # lie above every finite threshold and stay.
            torch.hardshrink(weights, threshold, out=out)


@functools.lru_cache
def _round_down(threshold: float, dtype: torch.dtype) -> float:
    """The largest value of ``dtype`` that is not above a non-negative ``threshold``."""
    rounded = torch.tensor(threshold, dtype=torch.float64, device="cpu").to(dtype)
    if float(rounded) > threshold:
        rounded = torch.nextafter(rounded, torch.zeros_like(rounded))
    return float(rounded)


@dataclass(frozen=True)
class GlobalMagnitude(Pattern):
    """One threshold on raw ``|w|`` for all in-scope weights together.

    Args:
        name: what it is called in the provenance.

    Reference: Jaiswal et al. 2023, arXiv:2306.03805, section 3 (one-shot magnitude
    pruning); the threshold runs over all tensors, as in their code.
    """

    name: str = "global"
    ranks = "shards"

    def cuts(self, weights: Weights, levels: Sequence[float]) -> list[Cut]:
        found = zip(levels, weights.spectrum.cuts(levels), strict=True)
        cuts: list[Cut] = []
        for level, (threshold, sparsity, shares) in found:
            if level >= 1.0:  # NaN, too
                threshold, sparsity, shares = math.inf, 1.0, dict.fromkeys(shares, 1.0)
            cuts.append(ThresholdCut(level, sparsity, shares, threshold))
        return cuts


@dataclass(frozen=True)
class Layerwise(Pattern):
    """The same sparsity in each tensor: a threshold of its own.

    Args:
        name: what it is called in the provenance.
    """

    name: str = "layerwise"
    ranks = "shards"

    def cuts(self, weights: Weights, levels: Sequence[float]) -> list[Cut]:
        layers = weights.spectrum.layers()
        found = {name: layer.thresholds(levels) for name, layer in layers.items()}
        return [
            _by_layer(level, layers, {name: found[name][i] for name in layers})
            for i, level in enumerate(levels)
        ]


@dataclass(frozen=True)
class GlobalNormalised(Pattern):
    """One threshold for all in-scope weights on ``|w|`` over the root mean square of its tensor.

    What NNCF and JaxPruner call global magnitude: tensors of different scales lose alike.

    Args:
        name: what it is called in the provenance.
    """

    name: str = "global_normalised"
    ranks = "shards"

    def cuts(self, weights: Weights, levels: Sequence[float]) -> list[Cut]:
        layers = weights.spectrum.layers()
        scales = weights.spectrum.layer_rms()
        steps, ratios, counts = {}, [], []
        for name, layer in layers.items():
            magnitudes, cumulative = layer.steps
            scale = scales[name] if scales[name] > 0.0 else 1.0
            steps[name] = np.insert(magnitudes, 0, -math.inf), magnitudes / scale
            ratios.append(magnitudes / scale)
            counts.append(np.diff(cumulative, prepend=0))
        ratio, count = np.concatenate(ratios), np.concatenate(counts)
        order = np.argsort(ratio, kind="stable")
        ratio, reached = ratio[order], np.cumsum(count[order])
        cuts: list[Cut] = []
        for level in levels:
            wanted = num_pruned(weights.spectrum.num_weights, level)
            step = int(reached.searchsorted(wanted))
            if wanted == 0 or not len(ratio):
                thresholds = dict.fromkeys(layers, -math.inf)
            elif step == len(ratio):  # more than there are finite ones
                thresholds = dict.fromkeys(layers, math.inf)
            else:
                thresholds = {  # the largest magnitude whose ratio is not above
                    name: float(magnitudes[own.searchsorted(ratio[step], "right")])
                    for name, (magnitudes, own) in steps.items()
                }
            cuts.append(_by_layer(level, layers, thresholds))
        return cuts


def _by_layer(
    level: float, layers: Mapping[str, MagnitudeSpectrum], thresholds: Mapping[str, float]
) -> ThresholdCut:
    """A cut with a threshold for each tensor, counted."""
    if level >= 1.0:
        thresholds = dict.fromkeys(layers, math.inf)
        return ThresholdCut(level, 1.0, dict.fromkeys(layers, 1.0), math.nan, thresholds)
    shares = {name: layer.sparsity_at(thresholds[name]) for name, layer in layers.items()}
    total = sum(layer.num_weights for layer in layers.values())
    removed = math.fsum(share * layers[name].num_weights for name, share in shares.items())
    return ThresholdCut(level, removed / max(total, 1), shares, math.nan, dict(thresholds))


# ------------------------------------------------------------------ by name


def as_pattern(pattern: str | Pattern | None, argument: str = "pattern") -> Pattern:
    """A pattern by its name or as it is; None is "global". ``argument`` is for the error."""
    if pattern is None or isinstance(pattern, str):
        name = "global" if pattern is None else pattern
        numbers = re.fullmatch(r"keep_(\d+)_of_(\d+)", name)
        name = "keep_2_of_4" if numbers else name
        if name in PATTERNS:
            place, kind, _ = PATTERNS[name]
            module = importlib.import_module(f"sparsitywatch.pruning.{place}")
            made: Pattern = getattr(module, kind)(*map(int, numbers.groups() if numbers else ()))
            return made
    elif isinstance(pattern, Pattern):
        return pattern
    raise ConfigurationError(
        f"Expected `{argument}` to be one of {', '.join(map(repr, PATTERNS))}, or a "
        f"pattern such as sw.patterns.Wanda(), got {pattern!r:.80}."
    )


# ------------------------------------------------------------------ how alike two masks are


@dataclass(frozen=True, kw_only=True)
class MaskSimilarity:
    """How alike two masks of the same weights are.

    Args:
        cosine: of the two masks as vectors of ones (kept) and zeros; NaN if one keeps nothing.
        cosine_by_chance: expected of two random masks of the same sparsities. At a sparsity of
            0.1 that is 0.9 already.
        overlap: of the weights that go under the mask that removes fewer, the share that goes under
            the other one too; NaN if it removes nothing.
        overlap_by_chance: expected of two random masks of the same sparsities.
        num_weights: under either mask.
        layers: the same of each tensor, by name; empty for one of these.
    """

    cosine: float
    cosine_by_chance: float
    overlap: float
    overlap_by_chance: float
    num_weights: int
    layers: Mapping[str, MaskSimilarity] = field(default_factory=dict)

    def __repr__(self) -> str:
        cosine = f"cosine {self.cosine:.3f} (by chance {self.cosine_by_chance:.3f})"
        overlap = f"overlap {self.overlap:.3f} ({self.overlap_by_chance:.3f})"
        return f"<MaskSimilarity of {self.num_weights:,} weights: {cosine}, {overlap}>"


def mask_similarity(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> MaskSimilarity:
    """Compare two masks of the same weights.

    Args:
        a, b: by name of the tensor: bool, True where a weight is kept; or weights, of which those
            that are not zero are kept. Any shape, the same in both.

    Returns:
        Of all weights together, and of each tensor.

    Raises:
        ConfigurationError: names or shapes differ, or there is nothing.

    Reference: Jaiswal et al. 2023, arXiv:2306.03805, figure 10 (cosine of the masks of one-shot
    pruning and of lottery tickets), which has no value by chance.

    >>> half = {"w": torch.tensor([True, True, False, False])}
    >>> mask_similarity(half, {"w": torch.tensor([True, False, True, False])})
    <MaskSimilarity of 4 weights: cosine 0.500 (by chance 0.500), overlap 0.500 (0.500)>
    """
    for name, given in (("a", a), ("b", b)):
        expect_mapping(name, given, "masks by name of the tensor")
    if not a or a.keys() != b.keys():
        unlike = sorted(a.keys() ^ b.keys())[:3]
        raise ConfigurationError(
            f"Expected `a` and `b` to have masks of the same tensors, got {len(a)} and {len(b)}"
            f"{f', unlike in {unlike}' if unlike else ''}."
        )
    counts = {}
    for name, first in a.items():
        if first.shape != b[name].shape:
            raise ConfigurationError(
                f"Expected masks of the same shape of {printable(name)!r}, got "
                f"{tuple(first.shape)} and {tuple(b[name].shape)}."
            )
        kept = [mask if mask.dtype is torch.bool else mask != 0 for mask in (first, b[name])]
        both = int((kept[0] & kept[1].to(kept[0].device)).sum())
        counts[name] = first.numel(), int(kept[0].sum()), int(kept[1].sum()), both
    layers = {name: _similarity(*count, {}) for name, count in counts.items()}
    num, kept_a, kept_b, both = (sum(column) for column in zip(*counts.values(), strict=True))
    return _similarity(num, kept_a, kept_b, both, layers)


def _similarity(
    num: int, kept_a: int, kept_b: int, both: int, layers: Mapping[str, MaskSimilarity]
) -> MaskSimilarity:
    """From how many weights there are, and how many each mask, and both together, keep."""
    removed = sorted((num - kept_a, num - kept_b))
    neither = num - kept_a - kept_b + both
    return MaskSimilarity(
        cosine=both / math.sqrt(kept_a * kept_b) if kept_a and kept_b else math.nan,
        cosine_by_chance=math.sqrt(kept_a * kept_b) / num if num else math.nan,
        overlap=neither / removed[0] if removed[0] else math.nan,
        overlap_by_chance=removed[1] / num if num else math.nan,
        num_weights=num,
        layers=layers,
    )
