"""Which weights a level removes: for ``sw.Settings(pattern=, controls=)``.

The names of patterns are read without torch; the rest is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsitywatch.patterns.cuts import Cut, Weights
    from sparsitywatch.patterns.pattern import (
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

#: Every pattern that has a name: the combination that it is, its class, and which weights go.
#: Errors, the settings' docstring, ``--help`` and docs/patterns.md say what is here.
PATTERNS = {
    "global": ("magnitude:global", "GlobalMagnitude",
               "the smallest |w| of all in-scope weights: one threshold, as in the paper"),
    "global_normalised": (
        "normalised:global", "GlobalNormalised",
        "the smallest |w| over the root mean square of its tensor: one threshold"),
    "layerwise": ("magnitude:layer", "Layerwise",
                  "the smallest |w| of each tensor, the same share of each"),
    "per_row": ("magnitude:row", "PerRow",
                "the smallest |w| of each output's inputs, the same share of each"),
    "random": ("random:global", "Random", "each with the same probability"),
    "erk": ("random:layer:erk", "RandomERK", "at random, more in large tensors"),
    "keep_2_of_4": ("magnitude:2:4", "KeepNM",
                    "of each M weights in a row along the inputs, all but the N largest"),
    "wanda": ("wanda:row", "Wanda",
              "of each output's inputs, the smallest |w| times the norm of the input"),
    "sparsegpt": ("sparsegpt:layer", "SparseGPT",
                  "block by block, those whose loss costs the layer's output least"),
}  # fmt: skip

__all__ = [
    "Cut", "GlobalMagnitude", "GlobalNormalised", "KeepNM", "Layerwise", "MaskSimilarity",
    "Pattern", "PerRow", "Random", "RandomERK", "SparseGPT", "Wanda", "Weights", "from_budget",
    "mask_similarity",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "cuts" if name in ("Cut", "Weights") else "pattern"
    return getattr(import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return __all__
