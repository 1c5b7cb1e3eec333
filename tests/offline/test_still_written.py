"""One look at a file without checksums is not enough while somebody writes it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from contracts.stored_run import weights

import sparsitywatch as sw
from sparsitywatch.offline import jobs


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited; nobody sleeps."""
    found: list[float] = []
    monkeypatch.setattr(jobs, "_LEFT_ALONE_S", 1.0)
    monkeypatch.setattr(jobs.time, "sleep", found.append)
    return found


def one_file(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True)
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    return folder / "model.safetensors"


def shards(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True)
    names = list(tensors)
    files = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, own in files.items():
        safetensors.torch.save_file({n: tensors[n] for n in own}, folder / file)
    where = {name: file for file, own in files.items() for name in own}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder / list(files)[-1]


def aged(folder: Path, seconds: float) -> None:
    for path in folder.rglob("*.*"):
        os.utime(path, (time.time() - seconds,) * 2)


WRITTEN = {"one file": one_file, "shards": shards}


@pytest.mark.parametrize("kind", WRITTEN)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_preallocated_file_is_not_measured(
    kind: str, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pauses: list[float]
) -> None:
    WRITTEN[kind](tmp_path / "run" / "checkpoint-1", weights(0))
    target = WRITTEN[kind](tmp_path / "run" / "checkpoint-2", weights(1))
    aged(tmp_path, 100.0)
    whole = target.read_bytes()
    begin = 8 + int.from_bytes(whole[:8], "little")
    at = begin + int(share * (len(whole) - begin))
    target.write_bytes(whole[:at] + bytes(len(whole) - at))

    def write_on(seconds: float) -> None:
        pauses.append(seconds)
        target.write_bytes(whole)

    monkeypatch.setattr(jobs.time, "sleep", write_on)
    replayed = sw.replay(tmp_path / "run", logdir=tmp_path / "log")
    assert [record.step for record in replayed.records if record.was_read] == [1]
    (failure,) = replayed.failures
    assert failure.step == 2
    assert "it was written meanwhile. Read it again once it is complete" in failure.reason
    assert len(pauses) == 1
    assert 0.0 < pauses[0] <= 1.0
    aged(tmp_path, 100.0)
    again = sw.replay(tmp_path / "run", logdir=tmp_path / "log")
    assert [record.step for record in again.records if record.was_read] == [1, 2]
    assert again.records[-1].num_zero == 0
    assert len(pauses) == 1


def save_torch(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    folder.mkdir(parents=True)
    torch.save(tensors, folder / "step-1.pt")
    return folder / "step-1.pt"


@pytest.mark.parametrize(
    ("write", "age_s"), [(one_file, 100.0), (shards, 1.5), (one_file, -1000.0), (save_torch, 0.0)]
)
def test_nobody_waits_for_what_is_old_or_has_checksums(
    write: Callable[[Path, dict[str, torch.Tensor]], Path],
    age_s: float,
    tmp_path: Path,
    pauses: list[float],
) -> None:
    write(tmp_path / "step-1", weights(0))
    aged(tmp_path, age_s)
    assert sw.replay(tmp_path, logdir=None).records[0].valid
    assert pauses == []


def test_what_stays_as_it_was_is_measured(tmp_path: Path, pauses: list[float]) -> None:
    one_file(tmp_path / "step-1", weights(0))
    assert sw.replay(tmp_path, logdir=None).records[0].valid
    assert len(pauses) == 1
