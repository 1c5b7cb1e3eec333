"""Which weights a level removes: for ``sw.Settings(pattern=, controls=)``."""

from sparsitywatch.pruning.cuts import Cut, Weights
from sparsitywatch.pruning.patterns import (
    GlobalMagnitude,
    GlobalNormalised,
    KeepNM,
    Layerwise,
    MaskSimilarity,
    Pattern,
    PerRow,
    Random,
    RandomERK,
    SparseGPT,
    Wanda,
    from_budget,
    mask_similarity,
)

__all__ = [
    "Cut", "GlobalMagnitude", "GlobalNormalised", "KeepNM", "Layerwise", "MaskSimilarity",
    "Pattern", "PerRow", "Random", "RandomERK", "SparseGPT", "Wanda", "Weights", "from_budget",
    "mask_similarity",
]  # fmt: skip
