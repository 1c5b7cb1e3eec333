"""What an audit concludes: nothing of series that are right, and every planted fault by its name.

The thresholds were chosen on seeds below 200; the tests use others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from contracts.clean_series import RECIPES, train
from contracts.families import some_of, whole
from contracts.once import once
from contracts.planted_series import FAULTS, Given, facts_of, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsitywatch.lab.audit import Facts, judge, missing_steps

#: Of the run that faults are planted into; the next one is the run that strangers come from.
SEED = 306
WRONG = [fault for fault in FAULTS if fault != "nothing"]
QUICK = ("momentum, cosine", "adamw, warm restarts", "frozen at first")
#: Where a swap of neighbours cannot be told: the weights go to and fro there, or the optimizer
#: begins anew between the two.
TO_AND_FRO = {"edge, constant", "rmsprop, cyclic", "whole batches", "a new optimizer"}
#: Of others the last ones are as good as the same.
STAND_STILL = {"converged", "converged whole batches", "bfloat16", "half", "adam, linear"}


#: Steps and weights of a run, by recipe and seed.
Trained = Callable[[str, int], tuple]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Each run is trained once, whichever process of tests asks first."""

    @cache
    def trained(recipe: str, seed: int) -> tuple:
        name = f"series-{[*RECIPES].index(recipe)}-{seed}"
        folder = once(tmp_path_factory, name, lambda at: torch.save(
            tuple(zip(*train(RECIPES[recipe], seed), strict=True)), at / "weights.pt"
        ))  # fmt: skip
        return torch.load(folder / "weights.pt")

    return trained


def check(run: Trained, recipe: str, fault: str, seed: int = SEED) -> None:
    steps, own = run(recipe, seed)
    other = own if fault == "nothing" else run(recipe, seed + 1)[1]
    made, expected = FAULTS[fault](Given(steps, own, other, at=len(own) // 2))
    first_file = list(own[0])[: len(own[0]) // 2]
    found = judge(facts_of(steps, made, first_file))
    assert rows_of(found, steps) == expected, found


@pytest.mark.part(2)
@pytest.mark.parametrize("fault", WRONG)
@pytest.mark.parametrize("recipe", some_of(QUICK, 3))
def test_a_planted_fault_is_named(run: Trained, recipe: str, fault: str) -> None:
    check(run, recipe, fault)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", some_of(RECIPES, 6))
def test_clean_series_have_no_finding(run: Trained, recipe: str) -> None:
    check(run, recipe, "nothing")


@whole
@pytest.mark.parametrize("fault", WRONG)
def test_planted_faults_are_named_under_every_recipe(run: Trained, fault: str) -> None:
    """Each with half of the recipes, by turns."""
    others = [recipe for recipe in RECIPES if recipe not in ("few", "long", *QUICK)]
    for recipe in others[WRONG.index(fault) % 2 :: 2]:
        if recipe in TO_AND_FRO and "swapped" in fault:
            continue
        if recipe in STAND_STILL and fault == "shards of the last one":
            continue
        check(run, recipe, fault)


def walk(num: int, drift: float, seed: int) -> np.ndarray:
    """Weights of some steps, which drift and wander."""
    rng = np.random.default_rng(seed)
    steps = rng.standard_normal((num, 4096)).cumsum(axis=0)
    return (
        rng.standard_normal(4096) * 10
        + steps
        + drift * np.arange(num)[:, None] * rng.standard_normal(4096)
    )


def as_facts(weights: np.ndarray) -> list[Facts]:
    layout = {"w": ((64, 64), "float32", "w")}
    return [
        Facts(step=100 * i, layout=layout, files={"f": ("", frozenset("w"))}, sample={"w": row})
        for i, row in enumerate(weights.astype(np.float32))
    ]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.integers(6, 60), st.floats(0, 3), st.integers(0, 2**32), st.data())
def test_a_walk_is_one_run_and_two_of_it_swapped_are_named(num, drift, seed, data) -> None:
    weights = walk(num, drift, seed)
    assert judge(as_facts(weights)) == []
    one, other = sorted(data.draw(st.sets(st.integers(1, num - 2), min_size=2, max_size=2)))
    weights[[one, other]] = weights[[other, one]]
    found = {(row.finding, row.step) for row in judge(as_facts(weights))}
    assert found == {("swapped", 100 * one), ("swapped", 100 * other)}


def test_a_rollback_and_a_jump_are_told_where_they_show() -> None:
    weights = walk(30, 0.5, 1)
    after = weights[20:] - weights[19] + weights[12]  # goes on from step 1,200
    assert [(r.finding, r.step) for r in judge(as_facts(np.vstack([weights[:20], after])))] == [
        ("return", 2000)
    ]
    weights[15:] += 30 * np.random.default_rng(2).standard_normal(4096)
    assert [(r.finding, r.step) for r in judge(as_facts(weights))] == [("jump", 1500)]


def test_no_series_is_too_short() -> None:
    weights = walk(3, 1.0, 0)
    for num in range(4):
        assert judge(as_facts(weights[:num])) == []
    twice = judge(as_facts(weights[[0, 0]]))
    assert [(row.finding, row.step) for row in twice] == [("identical", 0), ("identical", 100)]
    assert "ask who saved them" in twice[0].action


@pytest.mark.parametrize(
    ("steps", "missing"),
    [
        ([*range(0, 900, 100), *range(1200, 2000, 100)], [900]),
        ([0, 1, 2, 4, 8, 16, 1000, 2000, 3000, 4000], []),
        ([*range(0, 200, 20), *range(200, 1000, 100)], []),  # a rarer schedule later on
        ([10, 20, 30, 40, 55, 65, 75], []),
        ([7], []),
        ([], []),
    ],
)
def test_steps_that_are_missing_are_gaps_between_even_ones(steps, missing) -> None:
    assert [row.step for row in missing_steps(steps)] == missing
