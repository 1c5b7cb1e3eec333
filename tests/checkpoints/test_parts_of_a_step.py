"""Several files of one step: parts of a model are never taken for it, copies are one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

import sparsitywatch as sw
from sparsitywatch.checkpoints import discovery
from sparsitywatch.checkpoints.discovery import discover
from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.checkpoints.storage import Location

#: How ranks, pipeline stages and shards are saved, two files each.
LAYOUTS = {
    "megatron": "iter_0000500/mp_rank_{0:02}/model_optim_rng.pt",
    "megatron, pipeline": "iter_0000500/mp_rank_00_{0:03}/model_optim_rng.pt",
    "megatron, tp and pp": "iter_0000500/tp_rank_{0:02}_pp_rank_000/model_rng.pt",
    "rank in the name": "checkpoint-500_rank{0}.pt",
    "rank in front": "step-500/rank_{0}_model.pt",
    "rank as a folder": "rank{0}/checkpoint-500.pt",
    "fsdp": "checkpoint-500/__{0}_0.pt",
    "llama": "step-500/consolidated.{0:02}.pth",
    "composer": "ep0-ba500-rank{0}.pt",
    "world size": "checkpoint-500/model_world_size_2_rank_{0}.pt",
    "fairscale": "checkpoint_1_500-shard{0}.pt",
    "no word for it": "step-500-gpu{0}.pt",
}


def half(rank: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(rank)
    return {f"layers.{i}.mlp.weight": torch.randn(8, 4) for i in range(2)} | {
        "norm.weight": torch.ones(4)
    }


def saved(folder: Path, layout: str, *ranks: int, same: bool = False) -> list[Path]:
    paths = [folder / layout.format(rank) for rank in ranks]
    for rank, path in zip(ranks, paths, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"model": half(0 if same else rank)}, path)
    return paths


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_checkpoint_of_two_ranks_is_refused(layout: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    saved(run, layout, 0, 1)
    replayed = sw.replay(run, logdir=None)
    assert replayed.records == []
    assert {failure.step for failure in replayed.failures} == {500}
    assert all(
        "--steps" in f.reason or "Make the model whole" in f.reason for f in replayed.failures
    )
    (first, *_) = sorted(file for file in run.rglob("*") if file.is_file())
    said = sw.replay({7: first}, logdir=None)
    assert [(r.step, r.valid) for r in said.records] == [(7, True)]
    assert said.failures == []


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_same_weights_of_every_rank_are_one_checkpoint(layout: str, tmp_path: Path) -> None:
    saved(tmp_path, layout, 0, 1, same=True)
    assert [(f.step, f.state) for f in discover(tmp_path)] == [
        (500, "complete"), (500, "duplicate"),
    ]  # fmt: skip


@pytest.mark.parametrize("named", ["run/iter_0000500/mp_rank_00", "run/iter_*/mp_rank_00/*.pt"])
def test_naming_one_rank_does_not_make_it_the_model(named: str, tmp_path: Path) -> None:
    saved(tmp_path / "run", LAYOUTS["megatron"], 0, 1)
    (found,) = discover(tmp_path / named)
    assert (found.step, found.state) == (500, "refused")
    assert "they do not hold the same weights" in found.reason


def test_one_file_of_a_sharded_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "step-5" / "model-00001-of-00002.safetensors"
    path.parent.mkdir()
    safetensors.torch.save_file(half(0), str(path))
    (found,) = discover(path)
    assert (found.state, "others are missing" in found.reason) == ("refused", True)
    # in its folder it may be the beginning of a checkpoint
    (found,) = discover(tmp_path)
    assert (found.step, found.state) == (5, "incomplete")
    assert "expected model.safetensors.index.json" in found.reason


def test_an_index_whose_shards_are_not_there_is_incomplete(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    torch.save(half(0), folder / "pytorch_model-00001-of-00002.bin")
    places = dict.fromkeys(half(0), "pytorch_model-00001-of-00002.bin")
    places["layers.9.weight"] = "pytorch_model-00002-of-00002.bin"
    index = json.dumps({"metadata": {}, "weight_map": places})
    (folder / "pytorch_model.bin.index.json").write_text(index)
    (found,) = discover(tmp_path)
    assert (found.step, found.state) == (5, "incomplete")
    assert "pytorch_model-00002-of-00002.bin" in found.reason


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("ep0-ba500-rank0.pt", "complete"),  # Composer's own, of a model that is whole
        ("iter_0000500/mp_rank_00/model_optim_rng.pt", "complete"),  # one rank in all
        ("consolidated.00.pth", "complete"),
        ("ep0-ba500-rank1.pt", "refused"),
        ("consolidated.01.pth", "refused"),
        ("iter_0000500/mp_rank_00_001/model_optim_rng.pt", "refused"),
        ("model_world_size_4_rank_0.pt", "refused"),
    ],
)
def test_a_file_of_one_rank_alone(name: str, state: str, tmp_path: Path) -> None:
    saved(tmp_path, name, 0)
    (found,) = discover(tmp_path)
    assert found.state == state


def test_a_whole_model_beside_its_parts_is_taken(tmp_path: Path) -> None:
    saved(tmp_path, LAYOUTS["megatron"], 0, 1)
    torch.save(half(7), tmp_path / "step-500.pt")
    replayed = sw.replay(tmp_path, logdir=None)
    assert [(r.step, r.valid) for r in replayed.records] == [(500, True)]
    assert replayed.failures == []


def test_other_weights_under_the_same_step_are_refused(tmp_path: Path) -> None:
    """As the best model that a Trainer leaves in the folder of the run."""
    for rank, folder in enumerate([tmp_path, tmp_path / "checkpoint-500"]):
        folder.mkdir(exist_ok=True)
        safetensors.torch.save_file(half(rank), str(folder / "model.safetensors"))
        (folder / "trainer_state.json").write_text('{"global_step": 500}')
    found = discover(tmp_path)
    assert [f.state for f in found] == ["refused", "duplicate"]
    assert "one of them is something else" in found[0].reason
    for one in found:  # by itself each can be opened
        open_checkpoint(one.url).close()


def test_a_tied_name_does_not_make_other_weights(tmp_path: Path) -> None:
    tied = torch.randn(8, 4)
    torch.save({"embed.weight": tied, "head.weight": tied}, tmp_path / "step-5.pt")
    safetensors.torch.save_file({"embed.weight": tied}, str(tmp_path / "step-5.safetensors"))
    assert [f.state for f in discover(tmp_path)] == ["complete", "duplicate"]


def test_a_rank_that_is_half_written_is_waited_for(tmp_path: Path) -> None:
    _, other = saved(tmp_path, LAYOUTS["rank in the name"], 0, 1, same=True)
    other.write_bytes(other.read_bytes()[:-20])
    assert {f.state for f in discover(tmp_path)} == {"incomplete"}


def test_whatever_one_file_does_the_others_are_found(tmp_path: Path, monkeypatch) -> None:
    for step in (1, 2, 3):
        torch.save(half(step), tmp_path / f"step-{step}.pt")
    plain = discovery.open_checkpoint

    def opening(url: str, *options: object) -> object:
        if url.endswith("step-2.pt"):
            raise MemoryError("a length of 2^50")
        return plain(url, *options)

    monkeypatch.setattr(discovery, "open_checkpoint", opening)
    found = discover(tmp_path)
    assert [f.state for f in found] == ["complete", "refused", "complete"]
    assert found[1].reason.endswith("step-2.pt: MemoryError: a length of 2^50.")


def test_a_folder_that_is_removed_while_it_is_listed(tmp_path: Path, monkeypatch) -> None:
    for step in (1, 2):
        saved(tmp_path, f"checkpoint-{step}/w.pt", 0)
    plain = Location.children

    def children(folder: Location) -> object:
        if folder.path.endswith("checkpoint-1"):
            shutil.rmtree(folder.path)
        return plain(folder)

    monkeypatch.setattr(Location, "children", children)
    found = discover(tmp_path)
    assert [(f.step, f.state) for f in found if f.state == "complete"] == [(2, "complete")]
