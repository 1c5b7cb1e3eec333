"""How alike two masks are, beside what chance gives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from sparsitywatch.errors import ConfigurationError, expect_mapping
from sparsitywatch.shown import shown_name

__all__ = ["MaskSimilarity", "mask_similarity"]


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
                f"Expected masks of the same shape of {shown_name(name)!r}, got "
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
