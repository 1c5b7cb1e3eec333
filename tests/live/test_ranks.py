"""Two real processes: rank 0 evaluates alone, and no training waits for it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from contracts.communicating import RANKED, came_of, run_ranked, script_of
from contracts.once import once
from torch import distributed, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

import sparsitywatch as sw
from sparsitywatch.ranks.protocol import ALONE


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What two ranks print over all cases, one after the other: one start of torch."""

    def run(folder: Path) -> None:
        lines = run_ranked(script_of([*RANKED]), folder, limit_s=150)
        (folder / "said.txt").write_text("\n".join(lines))

    return (once(tmp_path_factory, "ranked", run) / "said.txt").read_text().splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("what", RANKED)
def test_a_training_on_two_ranks_goes_on_and_the_watch_says_why_not(
    what: str, said: list[str]
) -> None:
    assert came_of(said, what) == RANKED[what][1]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_attaches_before_it_knows_its_number_writes_only_as_rank_0(
    rank: int, tmp_path: Path
) -> None:
    """What mp.spawn does: nothing in the environment tells."""
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    arguments = {"every": 1, "scope": "layers", "max_overhead": None}
    with sw.watch(model, optimizer, logdir=tmp_path, **arguments) as watcher:
        distributed.init_process_group("fake", rank=rank, world_size=2, store=FakeStore())
        try:
            model(torch.ones(1, 6)).sum().backward()
            optimizer.step()
        finally:
            distributed.destroy_process_group()
    assert len(watcher.records) == 1 - rank
    assert watcher.off == ("rank 0 watches; replicas hold the same weights" if rank else "")
    assert (tmp_path / "sparsitywatch" / "records.jsonl").exists() is (rank == 0)


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
    assert bool(ALONE.why_another_watches()) is not watches
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
