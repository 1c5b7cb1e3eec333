"""What the table of a log's bytes rests on: the entropy of counts."""

from __future__ import annotations

import math

import numpy as np
import pytest
from log import entropy_bytes


@pytest.mark.slow
def test_entropy_is_that_of_counts_that_were_drawn() -> None:
    """A plug-in estimate from many draws of the same bins, where a bin holds few weights."""
    num_weights, num_draws = 300, 4_000
    weights = np.abs(np.random.default_rng(0).normal(0.0, 0.02, (num_draws, num_weights)))
    keys = -(-weights.astype(np.float32).view(np.uint32).astype(np.int64) // (1 << 15))
    first = int(keys.min())
    bits, bins = 0.0, int(keys.max()) - first + 1
    counts = np.zeros((num_draws, bins), np.int64)
    np.add.at(counts, (np.arange(num_draws)[:, None], keys - first), 1)
    for column in counts.T:
        shares = np.bincount(column) / num_draws
        bits -= sum(p * math.log2(p) for p in shares if p > 0.0)
    assert entropy_bytes(num_weights) == pytest.approx(bits / 8.0, rel=0.03)
