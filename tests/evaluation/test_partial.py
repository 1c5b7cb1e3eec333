"""What some of the examples tell about all of them, against regressions done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sparsitywatch.records.curve import t_quantile
from sparsitywatch.sweeps import PairedDifferences, largest_step, shares_of

NUM = 200


def rows(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """What every example loses at two levels, [2, NUM], heavy-tailed and alike, and an order."""
    rng = np.random.default_rng(seed)
    common = rng.standard_t(4, NUM)
    lost = np.stack([1.0 + common, 2.0 + 1.5 * common + 0.5 * rng.standard_t(4, NUM)])
    return lost, rng.permutation(NUM)


def test_all_examples_give_the_paired_mean_and_error() -> None:
    lost, _ = rows(0)
    losses = PairedDifferences(NUM, 1.0)
    losses.add(0.5, lost[0])
    mean = losses.means[0.5]
    assert mean.value == lost[0].mean()
    assert mean.sampling_error == 0.0
    assert mean.stderr == pytest.approx(lost[0].std(ddof=1) / math.sqrt(NUM))
    assert mean.num_seen == NUM


def test_a_part_alone_has_the_error_of_sampling_without_replacement() -> None:
    lost, order = rows(1)
    losses = PairedDifferences(NUM, 1.0)
    losses.add(0.5, lost[0][order[:40]])
    mean, seen = losses.means[0.5], lost[0][order[:40]]
    assert mean.value == pytest.approx(seen.mean())
    tail = np.abs(seen - seen.mean()).max() / 40
    assert mean.sampling_error**2 == pytest.approx(
        (1 - 40 / NUM) * (seen.var(ddof=1) / 40 + tail**2)
    )
    assert mean.stderr**2 == pytest.approx(mean.sampling_error**2 + seen.var(ddof=1) / NUM)


def test_parts_together_are_all_examples() -> None:
    lost, order = rows(3)
    losses, whole = PairedDifferences(NUM, 1.0), PairedDifferences(NUM, 1.0)
    for start, stop in ((0, 20), (20, 50), (50, NUM)):
        losses.add(0.5, lost[0][order[start:stop]])
    whole.add(0.5, lost[0])
    assert losses.means[0.5] == pytest.approx(whole.means[0.5])
    assert losses.means[0.5].num_seen == NUM


@pytest.mark.slow
@pytest.mark.parametrize("num_seen", [8, 16, 32])
def test_what_a_part_says_is_as_often_wrong_as_it_says(num_seen: int) -> None:
    """The true mean of all is beyond the one-sided bound of 95 % in some 5 % of the orders."""
    beyond = []
    for seed in range(60):
        lost, _ = rows(seed)
        for draw in range(10):
            order = np.random.default_rng([seed, draw]).permutation(NUM)
            losses = PairedDifferences(NUM, 1.0)
            losses.add(0.5, lost[1][order[:num_seen]])
            mean = losses.means[0.5]
            bound = t_quantile(0.95, mean.num_seen - 1) * mean.sampling_error
            beyond += [lost[1].mean() - mean.value > bound, mean.value - lost[1].mean() > bound]
    assert 0.015 <= np.mean(beyond) <= 0.06


def test_a_part_in_which_no_answer_changes_does_not_prove_that_none_does() -> None:
    """16 of 192 right answers stay right: up to a sixth may be wrong with a probability of 5 %."""
    answers = np.random.default_rng(0).integers(0, 2, 192).astype(float)
    assert largest_step(answers) == 1.0
    losses = PairedDifferences(192, 0.01)
    losses.add(1.0, answers)  # whoever was right loses 1
    losses.add(0.5, np.zeros(16))
    exact = 1.0 - 0.05 ** (1 / 16)  # Clopper and Pearson
    finite = (1 - 16 / 192) ** 0.5
    assert 1.64485 * losses.means[0.5].sampling_error == pytest.approx(exact * finite, rel=1e-4)


def test_all_examples_that_lose_the_same_prove_a_rule_of_three() -> None:
    """By the size of what those lose that lose anything, at the nearest level where one does."""
    differences = PairedDifferences(100, 1.0)
    differences.add(0.0, np.zeros(10))
    differences.add(0.5, np.zeros(100))
    tolerated = differences.means[0.5].stderr  # nothing is known of other levels
    differences.add(1.0, np.full(100, 40.0))
    assert differences.means[0.5].sampling_error == 0.0
    assert 1.64485 * differences.means[0.5].stderr == pytest.approx(40 * 3 / 100, rel=0.03)
    assert differences.means[0.5].stderr == pytest.approx(40 * tolerated)
    differences.add(0.7, np.where(np.arange(100) == 7, 3.0, 0.9e-4))  # the others by rounding
    assert differences.means[0.5].stderr == pytest.approx(3 * tolerated)
    differences.add(0.4, np.zeros(100), is_same=True)  # only weights that are zero went
    assert [differences.means[level].stderr for level in (0.0, 0.4)] == [0.0, 0.0]


def test_two_examples_have_an_error() -> None:
    lost, order = rows(6)
    differences = PairedDifferences(NUM, 1.0)
    differences.add(0.5, lost[1][order[:2]])
    assert differences.means[0.5].num_seen == 2
    assert differences.means[0.5].sampling_error > 0.0


def test_continuous_values_have_no_step_and_few_values_need_large_parts() -> None:
    assert largest_step(np.random.default_rng(0).random(50)) == 0.0
    assert shares_of(192, 8) == pytest.approx((1 / 24, 1 / 12, 1 / 6, 1 / 3))
    assert shares_of(192, 8, step=100.0) == ()  # one answer is 100 times what is allowed
    assert shares_of(4096, 8, step=100.0) == pytest.approx((400 / 4096, 800 / 4096, 1600 / 4096))
    assert shares_of(63, 8) == ()
    assert shares_of(64, 8) == pytest.approx((1 / 8, 1 / 4, 1 / 2))
    assert shares_of(16, 1) == pytest.approx((1 / 8, 1 / 4, 1 / 2))  # of two examples at least
    assert shares_of(4096, 8)[0] == 1 / 32


def test_a_model_that_breaks_down_on_one_example_is_broken() -> None:
    losses = PairedDifferences(20, 1.0)
    losses.add(0.5, np.array([0.0, math.inf, 1.0]))
    losses.add(0.4, np.array([0.0, 0.5, 1.0]))
    assert losses.means[0.5].value == math.inf
    assert losses.means[0.4].value == 0.5
