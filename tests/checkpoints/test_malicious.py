"""Crafted files of each format that would run a command: here they do nothing."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from contracts.reader_contract import failure
from contracts.sound_files import saved
from torch.distributed.checkpoint import metadata as md
from torch.distributed.checkpoint.filesystem import _StorageInfo

from sparsitywatch.checkpoints.discovery import discover
from sparsitywatch.checkpoints.formats import open_checkpoint

WEIGHTS = {"layer.weight": torch.ones(4, 3)}


class Evil:
    """Pickled as a call that leaves a folder behind."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.canary),)


def archive_of(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def bare_pickle(folder: Path, evil: Evil) -> Path:
    (folder / "w.pt").write_bytes(pickle.dumps(evil, 2))
    return folder / "w.pt"


def as_another_record(folder: Path, evil: Evil) -> Path:
    data = archive_of(WEIGHTS)
    (folder / "w.pt").write_bytes(data)
    with zipfile.ZipFile(folder / "w.pt", "a") as archive:
        archive.writestr("archive/extra.pkl", pickle.dumps(evil))
    return folder / "w.pt"


def shard(folder: Path, evil: Evil) -> Path:
    torch.save(WEIGHTS | {"x": evil}, folder / "pytorch_model-00001-of-00001.bin")
    index = {"weight_map": dict.fromkeys(WEIGHTS, "pytorch_model-00001-of-00001.bin")}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return folder


def trainer(folder: Path, evil: Evil) -> Path:
    safetensors.torch.save_file(WEIGHTS, str(folder / "model.safetensors"))
    (folder / "trainer_state.json").write_text('{"global_step": 3}')
    for name in ("training_args.bin", "optimizer.pt", "rng_state.pth", "scheduler.pt"):
        torch.save(evil, folder / name)
    return folder


def distributed(folder: Path, evil: Evil, *, piece: object = None, **fields: object) -> Path:
    data = archive_of(torch.ones(4) if piece is None else piece)
    step = archive_of(evil if "step" in fields else 3)
    (folder / "__0_0.distcp").write_bytes(data + step)
    tensor = md.TensorStorageMetadata(
        md.TensorProperties(dtype=torch.float32), torch.Size([4]),
        [md.ChunkStorageMetadata(torch.Size([0]), torch.Size([4]))],
    )  # fmt: skip
    whole = {
        "state_dict_metadata": {"w": tensor, "step": md.BytesStorageMetadata()},
        "planner_data": {"w": ("model", "w"), "step": ("step",)},
        "storage_data": {
            md.MetadataIndex("w", torch.Size([0])): _StorageInfo("__0_0.distcp", 0, len(data)),
            md.MetadataIndex("step"): _StorageInfo("__0_0.distcp", len(data), len(step)),
        },
    }
    changes = {name: value for name, value in fields.items() if name != "step"}
    (folder / ".metadata").write_bytes(pickle.dumps(md.Metadata(**(whole | changes))))
    return folder


CRAFTED: dict[str, tuple[Callable[[Path, Evil], Path], str | None]] = {
    "torch, alone": (
        lambda f, e: saved(f / "w.pt", e), "an object of posix.mkdir, which is never made",
    ),
    "torch, beside the weights": (
        lambda f, e: saved(f / "w.pt", {"model": WEIGHTS, "args": e, "step": 3}), None,
    ),
    "torch, among the weights": (lambda f, e: saved(f / "w.pt", WEIGHTS | {"x": e}), None),
    "torch, as another record": (as_another_record, None),
    "torch, before 1.6": (
        lambda f, e: saved(f / "w.pt", {"model": WEIGHTS, "args": e, "step": 3},
                           _use_new_zipfile_serialization=False), None,
    ),
    "a bare pickle": (bare_pickle, "expected a file of safetensors"),
    "lightning": (
        lambda f, e: saved(f / "a.ckpt", {
            "pytorch-lightning_version": "2.6", "state_dict": WEIGHTS, "callbacks": e,
            "hyper_parameters": e, "global_step": 3,
        }), None,
    ),
    "sharded bin": (shard, None),
    "trainer": (trainer, None),
    "distributed, planner data": (lambda f, e: distributed(f, e, planner_data=e), None),
    "distributed, storage data": (
        lambda f, e: distributed(f, e, storage_data=e), "expected metadata of tensors",
    ),
    "distributed, tensors": (
        lambda f, e: distributed(f, e, state_dict_metadata={"w": e}), "expected tensors of a model",
    ),
    "distributed, a piece": (lambda f, e: distributed(f, e, piece=e), "expected a dense tensor"),
    "distributed, the step": (lambda f, e: distributed(f, e, step=True), None),
}  # fmt: skip


@pytest.mark.parametrize("crafted", CRAFTED)
def test_nothing_is_executed(crafted: str, tmp_path: Path) -> None:
    write, message = CRAFTED[crafted]
    canary = tmp_path / "canary"
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    path = write(folder, Evil(canary))
    said = failure(path)
    discover(path)
    if message is None:
        assert said is None
        with open_checkpoint(path) as checkpoint:
            assert checkpoint.step in (3, None)
            assert all((tensor == 1).all() for _, tensor in checkpoint.tensors())
    else:
        assert said is not None
        assert message in said
    assert not canary.exists()


def test_the_canary_sings_for_pickle(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Evil(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()
    (tmp_path / "canary").rmdir()
    folder = tmp_path / "dcp"
    folder.mkdir()
    distributed(folder, Evil(tmp_path / "canary"), planner_data=Evil(tmp_path / "canary"))
    pickle.loads((folder / ".metadata").read_bytes())
    assert (tmp_path / "canary").exists()
