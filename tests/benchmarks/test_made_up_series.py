"""The made-up series are what they say: same seed, same series; onsets where the change is."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from detecting import jumps, slow
from detecting.series import SCHEDULES, Series, context_of, log_uniform, rate_of, rng_of

each_difficulty = pytest.mark.parametrize("difficulty", jumps.DIFFICULTIES)
SEEDS = range(8)


def same(one: Series, other: Series) -> bool:
    return (one.onset, one.settled, one.window) == (other.onset, other.settled, other.window) and (
        np.array_equal(one.values, other.values, equal_nan=True)
    )


def test_a_seed_gives_one_series_and_other_seeds_others() -> None:
    for make, families in (
        (jumps.make, (*jumps.CHANGING, *jumps.STABLE)),
        (slow.make, (*slow.TAKEOFFS, *slow.STABLE)),
    ):
        for family in families:
            assert same(make(family, 3), make(family, 3))
            if not family.endswith("_zero"):
                assert not same(make(family, 3), make(family, 4))
    assert not same(jumps.make("change_flat", 3, "easy"), jumps.make("change_flat", 3, "hard"))


@each_difficulty
def test_every_family_is_in_the_suite_and_only_changing_ones_have_an_onset(
    difficulty: str,
) -> None:
    made = list(jumps.suite(SEEDS, difficulty))
    assert len(made) == len(SEEDS) * (17 + 18)
    for series in made:
        assert (series.onset is not None) == (series.family in jumps.CHANGING)
        assert len(series.values) >= 30
        assert all(a < b for a, b in pairwise(series.steps))
        if series.onset is not None and series.settled is not None:
            assert 12 <= series.onset <= series.settled < len(series.values)
    assert len({series.unit for series in made}) == len(made)


@each_difficulty
def test_the_onset_is_where_an_eye_would_put_it(difficulty: str) -> None:
    """The oracle: before it nothing above the noise, soon after it everything."""
    least = jumps.DIFFICULTIES[difficulty][0]
    for seed in range(30):
        series = jumps.make("change_flat", seed, difficulty)
        assert series.onset is not None
        before, after = np.split(series.values, [series.onset])
        noise = before.std()
        assert before.max() < before.mean() + 4.5 * noise
        assert np.median(after) > before.mean() + 0.6 * least * noise
        assert abs(after[0] - np.median(after)) < 0.5 * (np.median(after) - before.mean()) + noise


def test_a_series_that_was_zero_has_its_onset_at_the_first_other_value() -> None:
    for seed in SEEDS:
        series = jumps.make("change_from_zero", seed)
        assert series.onset == np.flatnonzero(series.values)[0]


def test_a_take_off_is_due_where_it_has_doubled() -> None:
    """The oracle: noise is 5 % at most, so levels tell the doubling to within that."""
    for family in slow.TAKEOFFS:
        for seed in SEEDS:
            series = slow.make(family, seed)
            assert series.onset is not None
            assert series.due is not None
            assert series.hits is not None
            assert series.onset <= series.hits[0] <= series.due <= series.hits[1]
            assert series.hits[1] >= min(series.due + 3, len(series.values) - 1)
            values = series.values / series.unit
            floor = np.nanmin(values[: series.due])
            near = values[max(series.due - 1, 0) : series.due + 2]
            assert 1.6 * floor < np.nanmedian(near) < 3.0 * floor
            assert 8 <= series.due - series.onset + 1 <= 60
            first = values[: series.onset]
            assert np.nanmedian(first[-3:]) < 1.35 * np.nanmin(first)


def test_what_is_stable_has_no_truth_to_hit() -> None:
    for family in slow.STABLE:
        for seed in SEEDS:
            series = slow.make(family, seed)
            assert series.hits is None
            assert series.excused is None
            assert np.isfinite(series.values).all()
            assert (series.values >= 0.0).all()


def test_growth_is_measured_against_the_least_value_so_far() -> None:
    clean = np.array([3.0, 1.0, 1.9, 2.0, 0.9, 2.4, 2.5])
    assert slow.due_of(clean, 2.0) == 3
    assert slow.due_of(clean, 2.6) == 5
    assert slow.due_of(clean, 5.0) is None


def test_the_clocks_run_with_the_rate() -> None:
    for schedule in SCHEDULES:
        rng = rng_of(schedule, 0)
        rate = rate_of(schedule, rng, 100)
        assert rate.max() <= 1.0 + 1e-12
        assert rate.min() >= 0.0
        assert rate.max() > 0.9
        context = context_of(rate, rng, clock=3.0, at=70)
        assert context["decay_clock"][70] == pytest.approx(3.0)
        moves = rate[1:] > 1e-3
        ratios = np.diff(context["lr_clock"])[moves] / context["lr"][1:][moves]
        np.testing.assert_allclose(ratios, np.median(ratios), rtol=1e-6)
    assert "decay_clock" not in context_of(rate, rng, clock=None)


def test_the_context_goes_with_the_snapshots_that_are_left() -> None:
    uneven = 0
    for seed in range(30):
        series = slow.make("answer_cosine", seed)
        assert series.context is not None
        assert {len(x) for x in series.context.values()} == {len(series.values)}
        told = series.context_at(5)
        assert told is not None
        assert told["lr"] == series.context["lr"][5]
        uneven += len(set(np.diff(series.steps))) > 1
    assert 1 <= uneven <= 15


def test_a_logarithm_is_uniform() -> None:
    rng = np.random.default_rng(0)
    drawn = [log_uniform(rng, 1.0, 100.0) for _ in range(2000)]
    assert np.mean(np.array(drawn) < 10.0) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("seed", range(6))
def test_a_rate_that_is_told_is_that_of_a_watch_and_changes_no_value(seed: int) -> None:
    for family in (*jumps.CHANGING, *jumps.STABLE):
        plain = jumps.make(family, seed)
        told = jumps.make(family, seed, rate_is_told=True)
        np.testing.assert_array_equal(plain.values, told.values)
        np.testing.assert_array_equal(plain.steps, told.steps)
        assert plain.context is None
        assert (told.context is not None) == (family in jumps.ANSWERING)
        if told.context is not None:
            assert {*told.context} == {"lr", "lr_clock"}
            assert all(len(x) == len(told.values) for x in told.context.values())


def test_the_rate_that_is_told_rises_and_falls_as_the_schedule_says() -> None:
    for seed in range(6):
        told = [jumps.make(f"stable_{f}", seed, rate_is_told=True) for f in ("schedule", "wsd")]
        warm, stable = (np.array((s.context or {})["lr"]) for s in told)
        top = int(np.argmax(warm))
        assert 5 < top < 0.4 * len(warm)
        assert warm[0] == 0.0 < 0.9 * warm[top]
        assert (np.diff(warm[: top + 1]) > 0).all()
        assert (np.diff(warm[top:]) < 0).all()
        assert warm[-1] < 0.01 * warm[top]
        # stable, then straight down to nothing one snapshot after the last
        falls = stable < stable[0]
        assert 0.05 < falls.mean() < 0.65
        assert (stable[: int(np.argmax(falls))] == stable[0]).all()
        steps = told[1].steps[falls]
        down = np.polyfit(steps, stable[falls], 1)
        np.testing.assert_allclose(np.polyval(down, steps), stable[falls], atol=1e-9 * stable[0])
        apart = np.diff(told[1].steps).min()
        assert np.polyval(down, told[1].steps[-1] + apart) == pytest.approx(0, abs=0.06 * stable[0])


def test_a_series_follows_the_rate_that_is_told() -> None:
    """What it falls or rises by is a line in the rate; the noise beside it is small."""
    shares = []
    for seed in range(12):
        series = jumps.make("stable_wsd", seed, rate_is_told=True)
        rate = np.array((series.context or {})["lr"])
        explained = np.corrcoef(rate, series.values)[0, 1] ** 2
        shares.append(explained)
    assert np.median(shares) > 0.5
