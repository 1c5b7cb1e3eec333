"""Which weights a level removes: for ``sw.Settings(pattern=, controls=)``."""

from sparsitywatch.pruning.criteria import SparseGPT, Wanda
from sparsitywatch.pruning.patterns import (
    Cut,
    GlobalMagnitude,
    GlobalNormalised,
    Layerwise,
    MaskSimilarity,
    Pattern,
    Weights,
    mask_similarity,
)
from sparsitywatch.pruning.selections import KeepNM, PerRow, Random, RandomERK

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
