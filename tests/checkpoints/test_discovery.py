"""Which checkpoints there are, in which order, and what is told of those that are no use."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

import sparsitywatch as sw
from sparsitywatch.checkpoints import discovery
from sparsitywatch.checkpoints.discovery import checkpoints_below, discover
from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.checkpoints.storage import Location
from sparsitywatch.errors import CheckpointError

WEIGHTS = {"layer.weight": torch.ones(4, 3)}


def trainer_folder(folder: Path, step: int | None = None) -> Path:
    folder.mkdir(parents=True)
    safetensors.torch.save_file(WEIGHTS, str(folder / "model.safetensors"))
    (folder / "training_args.bin").write_bytes(b"pickled")
    if step is not None:
        (folder / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
    return folder


def told(folder: Path, found: list) -> list[tuple[str, object, str, str]]:
    return [(str(Path(f.url).relative_to(folder)), f.step, f.step_from, f.state) for f in found]


def test_steps_come_from_the_state_then_the_contents_then_the_name(tmp_path: Path) -> None:
    trainer_folder(tmp_path / "checkpoint-30", 20)
    torch.save({"model": WEIGHTS, "iter_num": 7}, tmp_path / "step-900.pt")
    torch.save(WEIGHTS, tmp_path / "step-1000.pt")
    torch.save(WEIGHTS, tmp_path / "step-9.pt")
    torch.save(WEIGHTS, tmp_path / "final.pt")
    assert told(tmp_path, discover(tmp_path)) == [
        ("step-900.pt", 7, "contents", "complete"),
        ("step-9.pt", 9, "name", "complete"),
        ("checkpoint-30", 20, "trainer state", "complete"),
        ("step-1000.pt", 1000, "name", "complete"),
        ("final.pt", None, "", "complete"),
    ]


def test_what_is_half_written_is_not_yet_complete(tmp_path: Path) -> None:
    trainer_folder(tmp_path / "checkpoint-1", 1)
    trainer_folder(tmp_path / "checkpoint-2")  # its state comes last
    trainer_folder(tmp_path / "tmp-checkpoint-3", 3)
    cut = trainer_folder(tmp_path / "checkpoint-4", 4) / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1])
    (trainer_folder(tmp_path / "checkpoint-5", 5) / "model.safetensors").unlink()
    torch.save(WEIGHTS, tmp_path / "step-6.pt.tmp")
    (tmp_path / "step-7.pt").write_bytes(b"")
    found = discover(tmp_path)
    assert [(f.step, f.state) for f in found] == [(1, "complete")] + [
        (step, "incomplete") for step in range(2, 8)
    ]
    assert ["trainer_state.json" in found[1].reason, "temporary name" in found[2].reason] == [
        True, True,
    ]  # fmt: skip
    assert "tensor 'layer.weight': expected it to end" in found[3].reason


def test_what_will_never_be_readable_is_in_the_list(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "step-1.pt")
    (tmp_path / "step-2.pt").write_bytes(b"no checkpoint at all")
    zero = tmp_path / "global_step3"
    zero.mkdir()
    (tmp_path / "latest").write_text("global_step3")
    (zero / "zero_pp_rank_0_mp_rank_00_model_states.pt").write_bytes(b"x")
    found = discover(tmp_path)
    assert [(f.step, f.state) for f in found] == [(1, "complete"), (2, "refused"), (3, "refused")]
    assert "zero_to_fp32.py" in found[2].reason


def test_duplicates_of_a_step(tmp_path: Path) -> None:
    torch.save({"state_dict": WEIGHTS, "global_step": 5}, tmp_path / "last.ckpt")
    torch.save({"state_dict": WEIGHTS, "global_step": 5}, tmp_path / "epoch=0-step=5.ckpt")
    torch.save(WEIGHTS, tmp_path / "copy-step5.pt")
    found = discover(tmp_path)
    assert [(Path(f.url).name, f.state) for f in found] == [
        ("copy-step5.pt", "duplicate"),
        ("epoch=0-step=5.ckpt", "complete"),
        ("last.ckpt", "duplicate"),
    ]
    assert "epoch=0-step=5.ckpt is of step 5 as well" in found[2].reason


def test_the_same_place_twice_is_one(tmp_path: Path) -> None:
    trainer_folder(tmp_path / "checkpoint-1", 1)
    (found,) = discover([tmp_path, tmp_path / "checkpoint-*", tmp_path / "checkpoint-1"])
    assert found.state == "complete"


@pytest.mark.parametrize("place", ["nowhere", "no*where", "."])
def test_nothing_there_is_an_error(place: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected checkpoints, found none"):
        discover(tmp_path / place)


def test_an_unknown_protocol_is_an_error() -> None:
    with pytest.raises(CheckpointError, match="expected a URL that fsspec can open"):
        discover("nosuch://bucket/run")


@pytest.mark.parametrize(
    ("files", "places"),
    [
        (["checkpoint-9/model.safetensors", "checkpoint-10/model.safetensors"],
         ["checkpoint-9", "checkpoint-10"]),
        (["model.safetensors", "checkpoint-9/model.safetensors"], ["", "checkpoint-9"]),
        (["model.safetensors", "step-5.pt"], ["", "step-5.pt"]),
        ([".metadata", "__0_0.distcp", "x.pt", "step-5.pt"], [""]),
        (["optimizer/step-5/model.safetensors", "optimizer_0/.metadata"], ["optimizer/step-5"]),
        (["4/checkpoint_metadata.json", "4/model/a/w.safetensors"], ["4"]),
        (["checkpoint_metadata.json", "model/a/w.safetensors"], [""]),
        (["pytorch_model_fsdp_0/.metadata", "optimizer_0/.metadata"], [""]),
        (["logs/version_0/checkpoints/epoch=0-step=5.ckpt", "logs/hparams.yaml"],
         ["logs/version_0/checkpoints/epoch=0-step=5.ckpt"]),
        (["a/.metadata", "a/__0_0.distcp", "a/x.pt", "b/__0_0.distcp"], ["a", "b"]),
        (["latest", "global_step5/mp_rank_00_model_states.pt"], ["global_step5"]),
        (["mp_rank_00_model_states.pt"], [""]),
        (["optim.pt", "ema.pt", "step-5_ema.pt"], ["ema.pt", "step-5_ema.pt"]),
        (["optimizer.pt", "rng_state_0.pth", "scheduler.pt", "training_args.bin", "a.txt"], []),
        (["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], [""]),
        (["c/model.safetensors", "c/optimizer.bin", "c/random_states_0.pkl"], ["c"]),
        (["c/model-00001-of-00002.safetensors"], ["c"]),  # its index comes last
        # what a watch keeps beside its log
        (["runs/sparsitywatch/run.json", "runs/sparsitywatch/sparsitywatch-proxy-0123456789.pt",
          "sparsitywatch.pt", "checkpoint-2/model.safetensors"], ["checkpoint-2"]),
    ],
)  # fmt: skip
def test_places(files: list[str], places: list[str], tmp_path: Path) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    assert checkpoints_below(Location.of(tmp_path))[0] == places


@pytest.mark.parametrize("files", [
    ["latest", "zero_to_fp32.py", "global_step5/zero_pp_rank_0_mp_rank_00_model_states.pt"],
    ["mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"],
    ["mp_rank_00_model_states.pt", "layer_0_expert_0_mp_rank_00_model_states.pt"],
])  # fmt: skip
def test_deepspeed_is_answered_with_what_to_do(files: list[str], tmp_path: Path) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"zero_to_fp32\.py \. consolidated --safe_serial"):
        open_checkpoint(tmp_path)


def test_what_is_known_is_neither_listed_nor_opened_again(tmp_path: Path, monkeypatch) -> None:
    for step in range(20):
        trainer_folder(tmp_path / f"checkpoint-{step}", step)
    known = {one.url: one for one in discover(tmp_path)}
    trainer_folder(tmp_path / "checkpoint-20", 20)
    (tmp_path / "ckpt.pt").write_bytes(b"")  # its name tells no step: it may be another by now
    known[str(tmp_path / "ckpt.pt")] = known[str(tmp_path / "checkpoint-3")]
    opened, listed = [], []
    plain_open, plain_children = discovery.open_checkpoint, discovery._children

    def opening(url: str, *options: object) -> object:
        opened.append(Path(url).name)
        return plain_open(url, *options)

    def children(folder: Location, reals: tuple[str, ...]) -> object:
        listed.append(Path(folder.path).name)
        return plain_children(folder, reals)

    monkeypatch.setattr(discovery, "open_checkpoint", opening)
    monkeypatch.setattr(discovery, "_children", children)
    shutil.rmtree(tmp_path / "checkpoint-7")
    steps = [f.step for f in discover(tmp_path, known=known)]
    assert steps == [*range(7), *range(8, 21), None]
    assert (opened, listed) == (["checkpoint-20", "ckpt.pt"], [tmp_path.name, "checkpoint-20"])


def test_checkpoints_of_one_model_share_their_list_of_tensors(tmp_path: Path) -> None:
    """A thousand checkpoints with a thousand tensors each are no million of descriptions."""
    for step in (1, 2, 3):
        tied = torch.full((4, 4), float(step))
        torch.save({"a.weight": tied, "b.weight": tied}, tmp_path / f"step-{step}.pt")
    found = discover(tmp_path)
    assert len(found) == 3
    assert len({id(one.entries) for one in found}) == 1
    first, second = found[0].entries
    assert first.storage == second.storage


def test_storages_of_one_number_in_two_shards_are_two(tmp_path: Path) -> None:
    names = {"a.weight": "pytorch_model-00001-of-00002.bin",
             "b.weight": "pytorch_model-00002-of-00002.bin"}  # fmt: skip
    for number, (name, file) in enumerate(names.items()):
        torch.save({name: torch.full((4, 4), float(number + 1))}, tmp_path / file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    (found,) = discover(tmp_path)
    first, second = found.entries
    assert first.storage != second.storage
    (record,) = sw.replay(tmp_path, logdir=None, scope="matrices").records
    assert record.scope.num_tensors == 2
