"""Steps that somebody says, and names that are no patterns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sparsitywatch as sw
from sparsitywatch.checkpoints.discovery import discover
from sparsitywatch.cli import main
from sparsitywatch.cli.options import steps_from
from sparsitywatch.errors import ConfigurationError


def save(path: Path, value: float, **beside: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = torch.linspace(-0.1, 0.1, 32).reshape(8, 4)
    weights = {f"layers.{i}.mlp.weight": value + noise for i in range(2)}
    torch.save({"model": weights, **beside}, path)
    return path


@pytest.fixture
def files(tmp_path: Path) -> dict[int, Path]:
    """Names and contents that say other steps, or none; one of a rank."""
    return {
        0: save(tmp_path / "init.pt", 0.5),
        1000: save(tmp_path / "step-7.pt", 1.0, global_step=3),
        500: save(tmp_path / "checkpoint-9_rank1.pt", 2.0),
    }


def test_what_is_given_is_the_step(files: dict[int, Path], tmp_path: Path) -> None:
    replayed = sw.replay(files, logdir=tmp_path / "log", near_zero=("abs_0.75",))
    assert [record.step for record in replayed.records] == [0, 500, 1000]
    assert [record.near_zero["abs_0.75"] for record in replayed.records] == [1.0, 0.0, 0.0]
    assert replayed.failures == replayed.left_out == []
    again = sw.replay(files, logdir=tmp_path / "log", near_zero=("abs_0.75",))
    assert (len(again.records), again.num_snapshots) == (3, 0)
    assert [(f.step, f.step_from) for f in discover(files)] == [
        (0, "given"), (500, "given"), (1000, "given"),
    ]  # fmt: skip


def test_one_that_is_not_there_fails_alone(files: dict[int, Path], tmp_path: Path) -> None:
    replayed = sw.replay({**files, 2000: tmp_path / "none.pt"}, logdir=None)
    assert [record.step for record in replayed.records if record.valid] == [0, 500, 1000]
    assert [failure.step for failure in replayed.failures] == [2000]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "at least one step"),
        ({-1: "a.pt"}, "urls"),
        ({1.5: "a.pt"}, "urls"),
        ({True: "a.pt"}, "urls"),
        ({1: 5}, r"urls\[1\]"),
        ({1: "a.pt", 2: "a.pt"}, "each checkpoint once"),
    ],
)
def test_what_is_no_step_or_no_address_is_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        sw.replay(wrong, logdir=None)


@pytest.mark.parametrize("start", ["", "step,address\n", "\ufeffstep, url\n"])
def test_a_file_of_steps(start: str, files, tmp_path: Path, capsys) -> None:
    table = tmp_path / "steps.csv"
    table.write_text(start + "".join(f"{n},{p}\n\n" for n, p in files.items()), encoding="utf-8")
    assert steps_from(table) == {n: str(p) for n, p in files.items()}
    assert main(["inspect", "--steps", str(table)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[3:]] == [[n, "given"] for n in ("0", "500", "1000")]
    assert main(["replay", "--steps", str(table), "--logdir", str(tmp_path / "log")]) == 0
    assert [r.step for r in sw.load(tmp_path / "log").records] == [0, 500, 1000]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expected steps and addresses"),
        ("step,address\n", "Expected steps and addresses"),
        ("1,a.pt\n1,b.pt\n", "in line 2"),
        ("1,a.pt\nx,b.pt\n", "in line 2"),
        ("1,a.pt\n2\n", "in line 2"),
        ("1,a.pt\n2,\n", "in line 2"),
        ("1,a.pt,more\n", "in line 1"),
        ("step,address\n-1,b.pt\n", "in line 2"),
        ("1,a.pt\n²,b.pt\n", "in line 2"),
    ],
)
def test_a_file_of_something_else_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "steps.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError, match=message):
        steps_from(tmp_path / "steps.csv")


@pytest.mark.parametrize("arguments", [[], ["a.pt", "--steps", "steps.csv"]])
def test_places_or_steps(arguments: list[str], capsys) -> None:
    assert main(["inspect", *arguments]) == 2
    assert "Expected CHECKPOINT or `--steps`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    ["step_5[1].pt", "step_5*.pt", "what?/step_5.pt", "run [v2]/step_5.pt", "a::b/step_5.pt",
     "s3:/bucket/step_5.pt", "[x]/[y]/step_5.pt", "~/step_5.pt"],
)  # fmt: skip
def test_what_is_there_by_that_name_is_meant(name: str, tmp_path: Path, monkeypatch) -> None:
    path = save(tmp_path / name, 1.0)
    (tmp_path / "run v" / "step_6.pt").parent.mkdir()
    save(tmp_path / "run v" / "step_6.pt", 1.0)  # what a pattern would find
    save(tmp_path / "step_51.pt", 1.0)
    monkeypatch.chdir(tmp_path)
    for place in (path, str(path), name, Path(name)):
        (found,) = discover(place)
        assert (Path(found.url), found.step, found.state) == (path, 5, "complete")
    if path.parent != tmp_path and "~" not in name:
        for place in (path.parent, f"{path.parent}/*.pt", str(Path(name).parent / "*.pt")):
            assert [Path(f.url) for f in discover(place)] == [path]
    assert [r.step for r in sw.replay(name, logdir=None).records] == [5]
