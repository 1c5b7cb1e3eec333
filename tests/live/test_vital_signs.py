"""Vital signs end to end: each fault of the zoo is named, and nothing is said of what is well.

``PYTHONPATH=tests python tests/live/test_vital_signs.py [seed]`` prints both as tables.
"""

from __future__ import annotations

import logging
import sys
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
    assert said_of(oddity, SEED) == {}


def said_of(oddity: str, seed: int) -> dict[tuple[str, str], list[str]]:
    """The events of trainings that are well, by model and optimizer, of those that have any."""
    said = {}
    for index, (model, optimizer) in enumerate(PAIRS[::2] if seed % 2 else PAIRS[1::2]):
        watcher = watched(ODDITIES[oddity], Training(model, optimizer, 10 * seed + index))
        assert all(r.valid and r.vital is not None and not r.vital.reason for r in watcher.records)
        if watcher.events:
            said[model, optimizer] = [event.describe() for event in watcher.events]
    return said


def table(seed: int) -> str:
    """How many of each fault were named; and of trainings that are well, how many were quiet."""
    lines = [f"| fault | kind | named of {len(PAIRS)} | missed |", "|---|---|---:|---|"]
    num_named = num_quiet = 0
    for fault, known in FAULTS.items():
        whys = {pair: named(fault, *pair, seed) for pair in PAIRS}
        missed = [f"{', '.join(pair)}: {why}" for pair, why in whys.items() if why]
        num_named += len(PAIRS) - len(missed)
        lines.append(
            f"| {fault} | {known.kind} | {len(PAIRS) - len(missed)} | {'; '.join(missed)} |"
        )
    lines.append(f"| all | | {num_named} of {len(FAULTS) * len(PAIRS)} | |")
    num_runs = len(PAIRS) // 2
    lines += ["", f"| well, and odd | quiet of {num_runs} | told |", "|---|---:|---|"]
    for oddity in ODDITIES:
        said = said_of(oddity, seed)
        told = [f"{', '.join(pair)}: {events}" for pair, events in said.items()]
        num_quiet += num_runs - len(said)
        lines.append(f"| {oddity} | {num_runs - len(said)} | {'; '.join(told)} |")
    lines.append(f"| all | {num_quiet} of {len(ODDITIES) * num_runs} | |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    print(table(int(sys.argv[1]) if len(sys.argv) > 1 else SEED))
