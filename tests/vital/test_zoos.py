"""Vital signs end to end: each fault of the zoo is named, and nothing is said of what is well.

Each fault with a model, every other oddity with one; with ``--whole`` two models a fault and all
oddities; ``make bench-detection`` tries all models, with another seed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import cycle, islice

import pytest
import torch
from contracts.families import some_of
from contracts.fault_zoo import (
    CUTS,
    EVERY,
    FAULTS,
    MODELS,
    ONSET,
    OPTIMIZERS,
    OVERWRITES,
    ZEROS,
    ended,
    named,
    written_over,
)
from contracts.healthy_zoo import ODDITIES, said_of

#: Of what is reported. The rules were made with other ones: 101 to 109, 201 to 209.
SEED = 7


@pytest.fixture(autouse=True)
def _quick_and_quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level("CRITICAL")
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them wait for each other at each small step
    yield
    torch.set_num_threads(before)


def pairs_of(name: str, names: Collection[str], num: int = 1) -> list[tuple[str, str]]:
    """Some of the models, each with another optimizer; the next name begins with the next ones."""
    index = [*names].index(name)
    pairs = zip(MODELS, islice(cycle(OPTIMIZERS), index % len(OPTIMIZERS), None), strict=False)
    return [*islice(cycle(pairs), index % len(MODELS), index % len(MODELS) + num)]


@pytest.mark.part(2)
@pytest.mark.slow
@pytest.mark.parametrize("which", some_of(range(2), 2))
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named_within_two_snapshots(fault: str, which: int) -> None:
    assert not named(fault, *pairs_of(fault, FAULTS, 2)[which], SEED)


@pytest.mark.slow
@pytest.mark.parametrize("oddity", some_of(ODDITIES, 6))
def test_nothing_is_said_of_a_training_that_is_well(oddity: str) -> None:
    assert said_of(oddity, SEED, pairs_of(oddity, ODDITIES)) == {}


@pytest.mark.part(2)
@pytest.mark.slow
@pytest.mark.parametrize("which", some_of(range(2), 2))
@pytest.mark.parametrize("way", CUTS | ZEROS)
def test_gradients_that_end_are_told_by_the_second_snapshot(way: str, which: int) -> None:
    pair = pairs_of(way, CUTS | ZEROS, 2)[which]
    # the half of them from the first snapshot on, the others from the middle of the run
    onset = (EVERY, ONSET)[([*(CUTS | ZEROS)].index(way) + which) % 2]
    assert not ended(way, *pair, SEED, onset)


@pytest.mark.part(2)
@pytest.mark.slow
@pytest.mark.parametrize("which", some_of(range(2), 2))
@pytest.mark.parametrize("what", OVERWRITES)
def test_weights_that_are_written_over_are_told(what: str, which: int) -> None:
    assert not written_over(what, *pairs_of(what, OVERWRITES, 2)[which], SEED)
