"""What happens when weights go: patterns, masked evaluation, sweeps."""

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
