"""``sparsitywatch measure``: one checkpoint, by any pattern, in words or as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from contracts.live_runs import held_out, save_safetensors, train

import sparsitywatch as sw
from sparsitywatch.cli import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    train(None, save_safetensors(tmp_path / "run"), proxy=held_out(), steps=3)
    monkeypatch.syspath_prepend(str(ROOT / "tests"))
    return tmp_path / "run" / "checkpoint-0"


def measured(checkpoint: Path, *options: str) -> list[str]:
    model = ["--model", str(checkpoint), "--proxy", "contracts.live_runs:held_out"]
    return ["measure", str(checkpoint), *model, *options]


@pytest.mark.slow
def test_the_record_is_that_of_a_replay(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--pattern", "per_row", "--levels", "0.3,0.6", "--controls", "random"]
    assert main(measured(checkpoint, *options, "--json")) == 0
    said = json.loads(capsys.readouterr().out)
    from contracts.live_runs import tiny_bert

    (record,) = sw.replay(
        checkpoint, logdir=None, model=tiny_bert, proxy=held_out(), pattern="per_row",
        levels=[0.3, 0.6], controls=["random"],
    ).records  # fmt: skip
    assert said["curve"]["value"] == list(record.curve.value)
    assert said["controls"]["random"]["value"] == list(record.controls["random"].value)
    assert said["provenance"]["pattern"] == "per_row"


def test_for_people(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            measured(
                checkpoint, "--pattern", "keep_2_of_4", "--controls", "random", "--controls", "erk"
            )
        )
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step 0: ")
    assert "not informative" in next(line for line in lines if "by keep_2_of_4" in line)
    header = next(line for line in lines if line.startswith("removed"))
    assert " ".join(header.split()) == "removed value harm +- harm by random harm by erk"
    assert [line.split()[0] for line in lines[-3:]] == ["0.0%", "50.0%", "100.0%"]


def test_without_a_model_the_weights_alone(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save({"a.weight": torch.ones(4, 4), "b.weight": torch.ones(4, 4)}, tmp_path / "w-1.pt")
    assert main(["measure", str(tmp_path / "w-1.pt"), "--scope", "matrices"]) == 0
    out = capsys.readouterr().out
    assert "32 weights in 2 tensors" in out
    assert "first rms" not in out  # of one checkpoint there is no first
    assert out.count("present rms: 0 %") == 1
    assert "removed" not in out


def test_several_checkpoints_are_refused(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["measure", str(checkpoint.parent)]) == 2
    assert "Expected one checkpoint to measure, got" in capsys.readouterr().err


def test_a_wrong_pattern_is_named(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(measured(checkpoint, "--pattern", "keep_4_of_2")) == 2
    assert "keeps two of four" in capsys.readouterr().err
    assert main(measured(checkpoint, "--pattern", "obd")) == 2
    assert "'global', 'global_normalised'" in capsys.readouterr().err
