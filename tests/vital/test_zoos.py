"""Vital signs end to end: each fault of the zoo is named, and nothing is said of what is well.

``make bench-detection`` tries both with another seed.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from contracts.fault_zoo import FAULTS, PAIRS, named
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


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named_within_two_snapshots(fault: str) -> None:
    wrong = {
        (model, optimizer): why
        for model, optimizer in PAIRS
        if (why := named(fault, model, optimizer, SEED))
    }
    assert wrong == {}


@pytest.mark.slow
@pytest.mark.parametrize("oddity", ODDITIES)
def test_nothing_is_said_of_a_training_that_is_well(oddity: str) -> None:
    """Six runs of each: together more than two hundred."""
    assert said_of(oddity, SEED) == {}
