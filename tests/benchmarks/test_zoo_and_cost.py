"""The zoo of vital signs and the cost of a snapshot, as the benchmark of detection counts them."""

from __future__ import annotations

import logging

import pytest
import torch
from contracts import fault_zoo, healthy_zoo
from detecting.cost import cost
from detecting.zoo import Tried, planted, well


def test_faults_are_tried_on_every_pair_and_missed_ones_are_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def named(fault: str, model: str, optimizer: str, seed: int) -> str:
        asked.append((fault, model, optimizer, seed))
        return "not named" if (fault, model, optimizer) == ("cut off", "decoder", "lion") else ""

    monkeypatch.setattr(fault_zoo, "named", named)
    for told in ("ended", "written_over"):
        monkeypatch.setattr(fault_zoo, told, lambda what, *rest: named(f"{what}!", *rest))
    threads = torch.get_num_threads()
    found = planted(seed=5)
    assert torch.get_num_threads() == threads
    assert logging.root.manager.disable == logging.NOTSET
    assert len(asked) == len(set(asked)) == sum(t.number for t in found) == (19 + 13 + 12) * 3 * 4
    assert {seed for *_, seed in asked} == {5}
    assert [(t.what, t.wrong) for t in found if t.wrong] == [
        ("cut off", ("decoder, lion: not named",))
    ]
    assert sum(t.number for t in planted(thinned=5)) == (4 + 3 + 3) * 3


@pytest.mark.slow
def test_a_fault_and_an_oddity_are_really_trained() -> None:
    found = planted(seed=301, thinned=20)
    assert found == [
        Tried("half left out", "untrained", 1, ()),
        Tried("detached before the second", "gradients end", 1, ()),
        Tried("another model's", "written over", 1, ()),
    ]
    (odd,) = well(seed=301, thinned=50)
    assert odd == Tried("plain", "well", 6, ())


def test_what_is_said_of_trainings_that_are_well_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"frozen": {("encoder", "adamw"): ["one tensor"]}}
    monkeypatch.setattr(healthy_zoo, "said_of", lambda oddity, seed: said.get(oddity, {}))
    found = well(seed=2)
    assert sum(t.number for t in found) == 6 * len(healthy_zoo.ODDITIES) >= 200
    assert [t.wrong for t in found if t.wrong] == [("encoder, adamw: ['one tensor']",)]


@pytest.mark.slow
def test_a_cost_is_really_measured() -> None:
    before = torch.get_num_threads()
    try:
        found = cost(num_layers=1, repeats=1, hidden=64)
    finally:
        torch.set_num_threads(before)
    assert found.num_layers == 1
    assert found.bare > 0.0
