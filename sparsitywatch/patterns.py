"""Which weights a level removes: for ``sw.Settings(pattern=, controls=)``."""

from sparsitywatch.pruning.named import (
    GlobalMagnitude,
    GlobalNormalised,
    KeepNM,
    Layerwise,
    PerRow,
    Random,
    RandomERK,
    SparseGPT,
    Wanda,
)
from sparsitywatch.pruning.patterns import Cut, MaskSimilarity, Pattern, Weights, mask_similarity

__all__ = [
    "Cut",
    "GlobalMagnitude",
    "GlobalNormalised",
    "KeepNM",
    "Layerwise",
    "MaskSimilarity",
    "Pattern",
    "PerRow",
    "Random",
    "RandomERK",
    "SparseGPT",
    "Wanda",
    "Weights",
    "mask_similarity",
]
