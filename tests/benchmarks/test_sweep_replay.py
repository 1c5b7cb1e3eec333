"""What the table of sweeps rests on: how passes are counted, and what the truth is."""

from __future__ import annotations

import numpy as np
import pytest
import sweep

from sparsitywatch.sweeps import Grid


def test_passes_are_dense_both_ends_and_every_level() -> None:
    series = sweep.synthetic(sweep.drifting, looks=1)
    ((passes, estimate),) = sweep.replay(series, Grid((0.3, 0.6)))
    assert passes == 5.0
    assert 0.3 < estimate.value <= 0.61  # the crossing is at 0.6


def test_a_part_counts_as_its_share_and_all_of_them_as_one_pass() -> None:
    look = sweep.Look(sweep.synthetic(sweep.drifting, looks=1), 0, examples=8)
    before = look.passes
    for share in (look.shares[0], look.shares[1], 1.0, 1.0):
        look.evaluate(0.5, share)
    assert look.passes - before == pytest.approx(1.0)
    assert look.differences.means[0.5].num_seen == 512


@pytest.mark.parametrize("shape", sweep.SHAPES)
def test_drawn_examples_lose_on_average_what_is_allowed_at_the_true_crossing(shape: str) -> None:
    series, truth = sweep.drawn(shape, 512)
    at = [np.interp(truth[0], sweep.LEVELS, series.lost(look).mean(axis=1)) for look in range(40)]
    error = np.std(at, ddof=1) / np.sqrt(len(at))
    assert abs(np.mean(at) - sweep.TOLERANCE) < 4 * error + 0.02 * sweep.TOLERANCE
    assert error < 0.1 * sweep.TOLERANCE  # else this would prove nothing
