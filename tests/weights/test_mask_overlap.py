"""Masks compared over time, against sets of indices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsitywatch.weights.snapshot import MASK_LEVELS, MaskHistory, overlap, removed

bits = st.lists(st.booleans(), min_size=1, max_size=70)


@given(bits, st.randoms(use_true_random=False))
def test_of_what_went_before_the_share_that_goes_now(before: list[bool], random) -> None:
    now = [random.random() < 0.5 for _ in before]
    were, are = ({i for i, bit in enumerate(mask) if bit} for mask in (before, now))
    found = overlap(np.packbits(before), np.packbits(now))
    assert math.isnan(found) if not were else found == len(were & are) / len(were)


def test_without_anything_in_common_it_is_the_level() -> None:
    generator = np.random.default_rng(0)
    one, other = (np.packbits(generator.random(100_000) < 0.7) for _ in range(2))
    assert overlap(one, other) == pytest.approx(0.7, abs=0.01)
    assert overlap(one, one) == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_what_goes_is_what_is_at_most_the_threshold(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    sample = {name: torch.randn(37).to(dtype) for name in "ab"}
    sample["a"][:3] = torch.tensor([0.5, -0.5, math.nan]).to(dtype)
    values = np.concatenate([t.double().numpy() for t in sample.values()])
    found = removed(sample, [0.5, -math.inf, math.inf])
    unpacked = np.unpackbits(found, axis=1)[:, :74].astype(bool)
    assert unpacked[0].tolist() == [bool(abs(v) <= 0.5) for v in values]
    assert unpacked[0][:3].tolist() == [True, True, False]
    assert not unpacked[1].any()
    assert unpacked[2].sum() == 73  # all but NaN


def test_snapshot_by_snapshot_and_over_a_restart() -> None:
    generator = np.random.default_rng(1)
    rows = [generator.integers(0, 256, (3, 40), dtype=np.uint8) for _ in range(3)]
    history = MaskHistory()
    first = history.update(10, rows[0], 320)
    assert (first.level, first.since_step) == (MASK_LEVELS, -1)
    assert all(map(math.isnan, first.overlap))
    second = history.update(20, rows[1], 320)
    assert second.overlap == tuple(map(overlap, rows[0], rows[1]))
    assert (second.since_step, second.num_sampled) == (10, 320)
    resumed = MaskHistory()
    resumed.load_state_dict(history.state_dict())
    assert resumed.update(30, rows[2], 320) == history.update(30, rows[2], 320)
    # another scope: nothing to compare with
    assert history.update(40, rows[2][:, :5], 40).since_step == -1
