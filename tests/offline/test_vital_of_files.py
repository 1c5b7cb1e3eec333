"""Vital signs that files prove: what is not finite, and what is back at an earlier state."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

import sparsitywatch as sw
from sparsitywatch.records import Event, Record, to_json

SPOILED = "2.weight"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Event]]:
    """Checkpoints 0 to 7 of a training that goes back to 2 at 5, and breaks at 7; and its events.

    A bias, which is not in scope, is broken already at 6.
    """
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 24))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept, steps = {}, itertools.count(1)
    options = {"logdir": None, "every": 1, "strict": True, "max_overhead": None, "detectors": {},
               "background": False, "on_event": (), "scope": "matrices"}  # fmt: skip

    def spoil(*_: object) -> None:
        step = next(steps)
        if step == 5:
            model.load_state_dict(kept[2])
        with torch.no_grad():
            if step == 6:
                model[0].bias[3] = torch.nan
            if step == 7:
                model.load_state_dict(kept[6])
                model[2].weight[3, 5:7] = torch.inf

    optimizer.register_step_post_hook(spoil)  # before the watch's own
    with sw.watch(model, optimizer, **options) as watcher:
        watcher.snapshot()
        torch.save(model.state_dict(), folder / "step_0.pt")
        for step in range(1, 8):
            optimizer.zero_grad()
            model(torch.randn(8, 16)).square().mean().backward()
            optimizer.step()
            kept[step] = copy.deepcopy(model.state_dict())
            torch.save(kept[step], folder / f"step_{step}.pt")
        assert [record.step for record in watcher.records] == list(range(8))
    return folder, watcher.events


def told(events: list[Event]) -> dict[tuple[str, int, int], set[str]]:
    """The tensors in scope that each event names, by kind and steps."""
    return {
        (e.kind, e.onset_low, e.detected_step): {n for n in e.layers if n.endswith("weight")}
        for e in events
    }


def told_of(records: list[Record]) -> list[str]:
    """Their vital signs, as text: NaN equals NaN."""
    return [repr(record.vital and dataclasses.astuple(record.vital)) for record in records]


def test_a_replay_tells_what_the_live_watch_told_of_the_scope(
    run: tuple[Path, list[Event]],
) -> None:
    folder, live = run
    replayed = sw.replay(folder, logdir=None, scope="matrices", detectors={}, on_event=())
    expected = {("returned", 4, 5): {"0.weight", "2.weight"}, ("not_finite", 6, 7): {SPOILED}}
    assert told(replayed.events) == expected
    live_told = told(live)
    assert live_told[("returned", 4, 5)] == expected[("returned", 4, 5)]
    # the live watch saw the bias break before
    assert ("not_finite", 5, 6) in live_told
    reasons = {record.vital and record.vital.reason for record in replayed.records}
    assert reasons == {"a checkpoint tells neither gradients nor what its optimizer did"}
    counts = [record.series()["vital/not_finite"] for record in replayed.records]
    assert counts == [0.0] * 7 + [1.0]


@pytest.mark.slow
@pytest.mark.parametrize("first", [2, 5, 6])
def test_a_replay_that_goes_on_tells_the_same(
    run: tuple[Path, list[Event]], tmp_path: Path, first: int
) -> None:
    folder, _ = run
    options = {"scope": "matrices", "detectors": {}, "on_event": ()}
    whole = sw.replay(folder, logdir=tmp_path / "whole", **options)
    sw.replay([folder / f"step_{i}.pt" for i in range(first + 1)],
              logdir=tmp_path / "parts", **options)  # fmt: skip
    parts = sw.replay(folder, logdir=tmp_path / "parts", **options)
    assert parts.num_snapshots == 7 - first
    assert list(map(to_json, parts.events)) == list(map(to_json, whole.events))
    assert told_of(parts.records) == told_of(whole.records)


def test_checkpoints_that_stand_still_have_not_come_back(tmp_path: Path) -> None:
    weights = {"a.weight": torch.randn(8, 8), "b.weight": torch.randn(8, 8)}
    for step in range(3):
        torch.save(weights, tmp_path / f"step_{step}.pt")
    replayed = sw.replay(tmp_path, logdir=None, scope="matrices", detectors={}, on_event=())
    assert [record.same_weights_as for record in replayed.records] == [None, 0, 0]
    assert replayed.events == []


def test_vital_signs_are_left_out_where_nothing_is_compared(run: tuple[Path, list[Event]]) -> None:
    folder, _ = run
    replayed = sw.replay(folder, logdir=None, scope="matrices", detectors={}, on_event=(),
                         dormant_samples=0)  # fmt: skip
    assert {record.vital for record in replayed.records} == {None}
    assert replayed.events == []
