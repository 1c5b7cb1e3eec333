"""Which weights a level removes: for ``sw.Settings(pattern=, controls=)``."""

from sparsitywatch.pruning.criteria import SparseGPT, Wanda
from sparsitywatch.pruning.patterns import (
    GlobalMagnitude,
    GlobalNormalised,
    Layerwise,
    MaskSimilarity,
    Pattern,
    mask_similarity,
)
from sparsitywatch.pruning.selections import KeepNM, PerRow, Random, RandomERK

__all__ = [
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
    "mask_similarity",
]
