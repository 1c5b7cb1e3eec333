"""The data-volume experiment from its command line, on tiny runs."""

from __future__ import annotations

import json
from pathlib import Path

import data_volume
import pytest


def _run(tmp_path: Path, tiny: list[str], *arguments: object) -> int:
    words = ["--logdir", tmp_path, "--steps", 12, "--every", 4, *arguments, "--pretraining", *tiny]
    return data_volume.main([str(word) for word in words])


def test_every_share_and_seed_once_then_a_table_and_a_conclusion(tmp_path, tiny, capsys):
    arguments = ("--fractions", 1.0, 0.5, "--seeds", 0)
    assert _run(tmp_path, tiny, *arguments) == 0
    first = capsys.readouterr().out
    assert first.count(" s\n") == 2
    assert "Nothing follows: it takes two shares of the text and two seeds" in first
    folders = ["text-100-seed-0", "text-50-seed-0"]
    for folder in folders:
        records = (tmp_path / folder / "sparsitywatch" / "records.jsonl").read_text().splitlines()
        assert [json.loads(record)["step"] for record in records] == [4, 8, 12]
    written = (tmp_path / folders[0] / "checkpoint.pt").stat().st_mtime_ns

    assert _run(tmp_path, tiny, "--fractions", 1.0, 0.5, "--seeds", 0, 1) == 0
    second = capsys.readouterr().out
    assert second.count("finished before") == 2  # and two new ones
    assert second.count("\n| 100% |") == second.count("\n| 50% |") == 2
    assert "near zero at the end: the means of the shares lie up to" in second
    assert (tmp_path / folders[0] / "checkpoint.pt").stat().st_mtime_ns == written
    assert (tmp_path / "data_volume.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_with_other_arguments_is_not_taken_for_finished(tmp_path, tiny, capsys):
    assert _run(tmp_path, tiny, "--fractions", 1.0, "--seeds", 0) == 0
    with pytest.raises(SystemExit) as stop:
        _run(tmp_path, tiny, "--fractions", 1.0, "--seeds", 0, "--steps", 16)
    assert stop.value.code == 2
    assert "holds a finished run with other arguments (--steps 12 then, 16 now)" in (
        capsys.readouterr().err
    )


def test_what_cannot_be_trained_stops_with_its_reason(tmp_path, tiny, capsys):
    more = [*tiny, "--lr", "1e30", "--warmup", "0"]
    assert _run(tmp_path, more, "--fractions", 1.0, "--seeds", 0) == 1
    assert "Stopped: the loss is nan" in capsys.readouterr().err
