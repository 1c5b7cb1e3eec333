"""Vital signs end to end: each fault of the zoo is named, and nothing is said of what is well.

``PYTHONPATH=tests python tests/live/test_vital_signs.py [seed]`` prints the table of the faults.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator

import pytest
import torch
from contracts.fault_zoo import FAULTS, MODELS, OPTIMIZERS, Training, verdict
from contracts.healthy_zoo import ODDITIES, watched

#: Of what is reported. The rules were made with other ones: 101 to 109, 201 to 209.
SEED = 7
PAIRS = [(model, optimizer) for model in MODELS for optimizer in OPTIMIZERS]


@pytest.fixture(autouse=True)
def _quick_and_quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level("CRITICAL")
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them wait for each other at each small step
    yield
    torch.set_num_threads(before)


def named(fault: str, model: str, optimizer: str, seed: int) -> str:
    """Why a fault was not named; empty if it was."""
    training = Training(model, optimizer, seed)
    truth = list(FAULTS[fault].plant(training))
    return verdict(FAULTS[fault], truth, training.run())


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_named_within_two_snapshots(fault: str) -> None:
    wrong = {
        (model, optimizer): why
        for model, optimizer in PAIRS
        if (why := named(fault, model, optimizer, SEED))
    }
    assert wrong == {}


@pytest.mark.parametrize("oddity", ODDITIES)
def test_nothing_is_said_of_a_training_that_is_well(oddity: str) -> None:
    """Six runs of each: together more than two hundred."""
    said = {}
    for index, (model, optimizer) in enumerate(PAIRS[::2] if SEED % 2 else PAIRS[1::2]):
        watcher = watched(ODDITIES[oddity], Training(model, optimizer, 10 * SEED + index))
        assert all(r.valid and r.vital is not None and not r.vital.reason for r in watcher.records)
        if watcher.events:
            said[model, optimizer] = [event.describe() for event in watcher.events]
    assert said == {}


def table(seed: int) -> str:
    """How many of each fault were named, by model and optimizer."""
    missed: dict[str, list[str]] = {}
    count: Counter[str] = Counter()
    for fault in FAULTS:
        for model, optimizer in PAIRS:
            why = named(fault, model, optimizer, seed)
            count[fault] += not why
            if why:
                missed.setdefault(fault, []).append(f"{model}, {optimizer}: {why}")
    lines = [f"| fault | kind | named of {len(PAIRS)} | missed |", "|---|---|---|---|"]
    for fault, known in FAULTS.items():
        lines.append(
            f"| {fault} | {known.kind} | {count[fault]} | {'; '.join(missed.get(fault, []))} |"
        )
    total = len(FAULTS) * len(PAIRS)
    return "\n".join([*lines, f"| all | | {sum(count.values())} of {total} | |"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(table(int(sys.argv[1]) if len(sys.argv) > 1 else SEED))
