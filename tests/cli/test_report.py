"""``report`` from the command line: where the page goes, and what is said when there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from contracts import fake_run
from contracts.page import inside_of, parse

import sparsitywatch as sw
from sparsitywatch.cli import main

STEPS = range(0, 2001, 500)


@pytest.fixture
def logdir(tmp_path: Path) -> Path:
    return fake_run.write_run(tmp_path / "my run", fake_run.looks(STEPS), fake_run.events())


def test_the_page_is_written_where_it_is_asked_for(logdir: Path, tmp_path: Path, capsys) -> None:
    path = tmp_path / "new" / "page.html"
    assert main(["report", str(logdir), "-o", str(path)]) == 0
    assert capsys.readouterr().out.strip() == str(path)
    title = parse(path.read_text(encoding="utf-8")).one("head").one("title")
    assert title.text() == "my run: sparsity report"
    assert [p.name for p in path.parent.iterdir()] == ["page.html"]


def test_the_inner_directory_gives_the_same_page(logdir: Path, tmp_path: Path) -> None:
    one, other = tmp_path / "one.html", tmp_path / "other.html"
    main(["report", str(logdir), "-o", str(one)])
    main(["report", str(logdir / "sparsitywatch"), "-o", str(other)])
    assert one.read_bytes() == other.read_bytes()


def test_by_default_it_is_written_here(
    logdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", "my run"]) == 0
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_a_run_without_a_manifest_has_no_ledger(logdir: Path, tmp_path: Path) -> None:
    (logdir / "sparsitywatch" / "run.json").unlink()
    assert main(["report", str(logdir), "-o", str(tmp_path / "r.html")]) == 0
    page = inside_of((tmp_path / "r.html").read_text(encoding="utf-8"))["page"]
    assert (page["facts"]["ledger"], page["facts"]["scope"]) == ([], "")


def test_while_the_run_is_writing(logdir: Path, tmp_path: Path) -> None:
    records = logdir / "sparsitywatch" / "records.jsonl"
    with records.open("a") as file:
        file.write('{"step":2500,"wall_ti')  # a line on its way to the disk
    assert main(["report", str(logdir), "-o", str(tmp_path / "r.html")]) == 0
    assert "5 snapshots of 49,152 weights" in parse((tmp_path / "r.html").read_text("utf-8")).text()


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("nowhere", "found no directory in"),
        ("damaged", "records.jsonl"),
    ],
)
def test_what_cannot_be_read_is_one_line(
    place: str, message: str, logdir: Path, tmp_path: Path, capsys
) -> None:
    damaged = fake_run.write_run(tmp_path / "damaged", fake_run.looks(STEPS))
    records = damaged / "sparsitywatch" / "records.jsonl"
    records.write_bytes(b"{}\n" + records.read_bytes())
    path = tmp_path / "r.html"
    assert main(["report", str(tmp_path / place), "-o", str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not path.exists()


def test_a_place_that_cannot_be_written(logdir: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("x")
    assert main(["report", str(logdir), "-o", str(tmp_path / "file" / "r.html")]) == 2
    assert "Expected `--output` to be a file that can be written" in capsys.readouterr().err
    (tmp_path / "folder").mkdir()
    assert main(["report", str(logdir), "-o", str(tmp_path / "folder")]) == 2
    assert "Expected `--output` to be a file that can be written" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.tmp"))


def test_a_run_that_has_begun_and_has_no_snapshot_has_a_page(tmp_path: Path) -> None:
    model = torch.nn.Linear(4, 4)
    with sw.watch(model, None, logdir=tmp_path, every=500, scope="layers") as watcher:
        watcher.step()
        assert main(["report", str(tmp_path), "-o", str(tmp_path / "page.html")]) == 0
    assert "no snapshot yet" in (tmp_path / "page.html").read_text()
