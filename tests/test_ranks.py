"""Two real processes: rank 0 evaluates alone, and no training waits for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import sparsitywatch as sw
from sparsitywatch.ranks import why_another_rank_watches

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from faulting.forward import RANKED, UNRANKED, came_of, run_ranked, script_of


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What two ranks print over all cases, one after the other: one start of torch."""
    return run_ranked(script_of([*RANKED]), tmp_path_factory.mktemp("ranks"), limit_s=150)


@pytest.mark.parametrize("what", RANKED)
def test_a_training_on_two_ranks_goes_on_and_the_watch_says_why_not(
    what: str, said: list[str]
) -> None:
    assert came_of(said, what) == RANKED[what][1]


@pytest.mark.parametrize("what", UNRANKED)
def test_ranks_that_attach_before_there_is_a_process_group_write_one_log(
    what: str, tmp_path: Path
) -> None:
    assert came_of(run_ranked(UNRANKED[what][0], tmp_path)) == UNRANKED[what][1]


@pytest.mark.parametrize(
    ("environment", "watches"),
    [
        ({}, True),
        ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, True),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, False),
        ({"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, False),
        ({"RANK": "1"}, True),  # of nothing
        ({"RANK": "0", "WORLD_SIZE": "1"}, True),
        ({"WORLD_SIZE": "4", "LOCAL_RANK": "0", "NODE_RANK": "1"}, False),  # Lightning
        ({"WORLD_SIZE": "4", "LOCAL_RANK": "0", "NODE_RANK": "0"}, True),
        ({"RANK": "", "WORLD_SIZE": "no number"}, True),
    ],
)
def test_the_environment_tells_which_rank_watches(
    environment: dict[str, str], watches: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert bool(why_another_rank_watches()) is not watches
    with sw.watch(nn.Linear(4, 4), None, logdir=None, scope="layers") as watcher:
        assert bool(watcher.off) is not watches


@pytest.mark.parametrize("has_proxy", [False, True])
def test_a_default_device_that_is_not_the_models_is_left_alone(has_proxy: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    x = torch.linspace(-1, 1, 24).reshape(4, 6)
    proxy = sw.Proxy([x], lambda m, batch: m(batch).square().mean(1)) if has_proxy else None
    torch.set_default_device("meta")
    try:
        with sw.watch(
            model, optimizer, logdir=None, proxy=proxy, every=1, scope="layers", max_overhead=None,
            dormant_samples=10,
        ) as watcher:  # fmt: skip
            for _ in range(3):
                model(x).square().mean().backward()
                optimizer.step()
            state = watcher.state_dict()
    finally:
        torch.set_default_device(None)
    assert [record.reason for record in watcher.records] == ["", "", ""]
    assert not any(v.is_meta for v in state["optimizer"]["masks"].values())
