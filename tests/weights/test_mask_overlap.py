"""Masks compared over time, against sets of indices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsitywatch.weights.motion import MASK_LEVELS, MotionTracker, overlap, removed
from sparsitywatch.weights.snapshot import float64_of

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


def test_what_goes_is_what_is_at_most_the_threshold() -> None:
    magnitudes = np.abs(np.random.default_rng(0).normal(size=74))
    magnitudes[:2] = 0.5, math.nan
    found = np.unpackbits(removed(magnitudes, [0.5, -math.inf, math.inf]), axis=1)[:, :74]
    assert found[0].tolist() == (magnitudes <= 0.5).tolist()
    assert found[0][:2].tolist() == [1, 0]
    assert not found[1].any()
    assert found[2].sum() == 73  # all but NaN


def test_snapshot_by_snapshot_and_over_a_restart() -> None:
    torch.manual_seed(0)
    samples = [{"a": torch.randn(200).bfloat16(), "b": torch.randn(120)} for _ in range(3)]
    thresholds = (0.5, 1.0, 1.5)

    def bits(sample: dict[str, torch.Tensor]) -> np.ndarray:
        return removed(np.abs(float64_of(*sample.values())), thresholds)

    motion, resumed = MotionTracker(), MotionTracker()
    first = motion.compare(10, samples[0], thresholds).masks
    assert (first.level, first.since_step, first.num_sampled) == (MASK_LEVELS, -1, 320)
    assert all(map(math.isnan, first.overlap))
    motion.forget()  # what was done meanwhile does not change what was removed
    second = motion.compare(20, samples[1], thresholds).masks
    assert second.overlap == tuple(map(overlap, bits(samples[0]), bits(samples[1])))
    assert second.since_step == 10
    assert motion.compare(21, samples[1]).masks is None
    resumed.load_state_dict(motion.state_dict())
    third = motion.compare(30, samples[2], thresholds).masks
    assert resumed.compare(30, samples[2], thresholds).masks == third
    assert third.since_step == 20
    # another scope: nothing to compare with
    motion.forget()
    assert motion.compare(40, {"a": samples[2]["a"]}, thresholds).masks.since_step == -1
