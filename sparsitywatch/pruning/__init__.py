"""What happens when weights go: patterns, masked evaluation, sweeps."""

#: Every pattern by its name: the module that has it, loaded where it is used, its class, and which
#: weights go. Errors, the settings' docstring, ``--help`` and docs/patterns.md say what is here.
PATTERNS = {
    "global": ("patterns", "GlobalMagnitude",
               "the smallest |w| of all in-scope weights: one threshold, as in the paper"),
    "global_normalised": (
        "patterns", "GlobalNormalised",
        "the smallest |w| over the root mean square of its tensor: one threshold"),
    "layerwise": ("patterns", "Layerwise",
                  "the smallest |w| of each tensor, the same share of each"),
    "per_row": ("selections", "PerRow",
                "the smallest |w| of each output's inputs, the same share of each"),
    "random": ("selections", "Random", "each with the same probability"),
    "erk": ("selections", "RandomERK", "at random, more in large tensors"),
    "keep_2_of_4": ("selections", "KeepNM",
                    "of each M weights in a row along the inputs, all but the N largest"),
    "wanda": ("criteria", "Wanda",
              "of each output's inputs, the smallest |w| times the norm of the input"),
    "sparsegpt": ("criteria", "SparseGPT",
                  "block by block, those whose loss costs the layer's output least"),
}  # fmt: skip
