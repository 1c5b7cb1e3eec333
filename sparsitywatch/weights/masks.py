"""Which sampled weights one-shot magnitude pruning would remove."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from sparsitywatch.weights.dormancy import float64_of

__all__ = ["removed"]


def removed(sample: Mapping[str, torch.Tensor], thresholds: Sequence[float]) -> np.ndarray:
    """The weights that go at each threshold, as packed bits.

    Args:
        sample: floating point, [N] in all, by name.
        thresholds: K of them; a weight goes if |w| <= threshold.

    Returns:
        uint8 [K, ceil(N / 8)].

    >>> removed({"w": torch.tensor([0.1, -2.0, 0.3, float("nan")])}, [0.2, 9.0])
    array([[128],
           [224]], dtype=uint8)
    """
    together = float64_of(*sample.values())
    np.abs(together, out=together)
    return np.stack([np.packbits(together <= threshold) for threshold in thresholds])
