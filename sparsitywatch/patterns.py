"""Which weights a level removes: for ``sw.Settings(pattern=, controls=)``."""

from sparsitywatch.pruning.patterns import (
    Cut,
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
    Weights,
    from_budget,
    mask_similarity,
)

__all__ = [
    "Cut", "GlobalMagnitude", "GlobalNormalised", "KeepNM", "Layerwise", "MaskSimilarity",
    "Pattern", "PerRow", "Random", "RandomERK", "SparseGPT", "Wanda", "Weights", "from_budget",
    "mask_similarity",
]  # fmt: skip
