"""Which share of its weights each tensor loses, so that of all weights a level goes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.pruning.criteria import norms_of, widest
from sparsitywatch.pruning.patterns import Pattern, Weights
from sparsitywatch.redact import printable

#: The block of a tensor: what its name has up to the first number.
_BLOCK = re.compile(r"(?:.*?\.)??\d+(?=\.)")

Shares = Sequence[Mapping[str, float]]


def shares_of(pattern: Pattern, weights: Weights, levels: Sequence[float]) -> Shares:
    """For each level the share of each tensor's weights that goes, rising with the level."""
    sizes = {name: h.num_weights for name, h in weights.spectrum.histograms.items()}
    if pattern.allocation == "uniform":
        return [dict.fromkeys(sizes, level) for level in levels]
    if pattern.allocation == "erk":
        return [_erk(weights.shapes, level) for level in levels]
    if isinstance(pattern.allocation, str):
        kept = _owl(weights, sizes, pattern.outlier, pattern.spread)
    else:
        kept = _budgets(pattern.allocation, sizes)
    return _shifted(kept, sizes, levels)


def _erk(shapes: Mapping[str, tuple[int, ...]], level: float) -> dict[str, float]:
    """By Erdős-Rényi kernels: densities in proportion to the sum of dimensions over their product.

    No density is above 1; what that leaves over is shared out among the others.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / max(sizes[name], 1) for name, shape in shapes.items()}
    full: set[str] = set()  # tensors that keep everything
    while True:
        left = (1.0 - level) * sum(sizes.values()) - sum(sizes[name] for name in full)
        rest = sum(raw[name] * sizes[name] for name in shapes.keys() - full)
        scale = max(left, 0.0) / rest if rest else 0.0
        over = {name for name in shapes.keys() - full if scale * raw[name] > 1.0}
        if not over:
            return {name: 0.0 if name in full else 1.0 - scale * raw[name] for name in shapes}
        full |= over


def _owl(
    weights: Weights, sizes: Mapping[str, int], outlier: float, spread: float
) -> dict[str, float]:
    """Density of each tensor, but for a constant: higher where its block has more outliers.

    An outlier's ``|w|`` times the norm of its input is more than ``outlier`` times the mean of
    its block. The densities of blocks are up to twice ``spread`` apart.
    """
    blocks = {name: found[0] if (found := _BLOCK.match(name)) else name for name in sizes}
    sums = dict.fromkeys(blocks.values(), 0.0)
    nums = dict.fromkeys(blocks.values(), 0)
    for name, block in blocks.items():
        worth = norms_of(weights, name)
        sums[block] += float(worth.sum(dtype=widest(worth.device)))
        nums[block] += sizes[name]
    counts = dict.fromkeys(nums, 0)
    for name, block in blocks.items():
        mean = sums[block] / max(nums[block], 1)
        counts[block] += int((norms_of(weights, name) > outlier * mean).sum())
    ratios = {block: counts[block] / max(nums[block], 1) for block in nums}
    low, high = min(ratios.values()), max(ratios.values())
    apart = 2.0 * spread / (high - low) if high > low else 0.0
    return {name: (ratios[block] - low) * apart for name, block in blocks.items()}


def _budgets(given: Mapping[str, float], sizes: Mapping[str, int]) -> dict[str, float]:
    """Density of each tensor, of the sparsities that were given by name."""
    if given.keys() != sizes.keys():
        missing, unknown = sorted(sizes.keys() - given.keys()), sorted(given.keys() - sizes.keys())
        came = f"none for {printable(missing[0])!r}" if missing else ""
        came += " and " if missing and unknown else ""
        came += f"one for {printable(unknown[0])!r}, which is not in scope" if unknown else ""
        raise ConfigurationError(
            f"Expected `allocation` with a sparsity for each of the {len(sizes)} tensors in scope, "
            f"got {came}. `sparsitywatch scope` prints their names."
        )
    return {name: 1.0 - given[name] for name in sizes}


def _shifted(
    kept: Mapping[str, float], sizes: Mapping[str, int], levels: Sequence[float]
) -> Shares:
    """What each tensor loses where all densities, in [0, 1], go up or down by the same."""
    density, size = np.array(list(kept.values())), np.array(list(sizes.values()), np.float64)
    # what is kept is a straight line between those shifts at which a tensor is empty or full
    shifts = np.unique(np.concatenate([-density, 1.0 - density]))
    of_all = (np.clip(density + shifts[:, None], 0.0, 1.0) * size).sum(1) / max(size.sum(), 1.0)
    found = []
    for level in levels:
        shift = np.interp(1.0 - level, of_all, shifts)
        lost = 1.0 - np.clip(density + shift, 0.0, 1.0)
        found.append(dict(zip(kept, lost.tolist(), strict=True)))
    return found
