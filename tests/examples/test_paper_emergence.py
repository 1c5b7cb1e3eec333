"""The pretraining with BERT's settings, in tiny: it goes on after a kill and says what it saw."""

from __future__ import annotations

import math
import re
from pathlib import Path
from types import SimpleNamespace

import emergence
import numpy as np
import pytest

from sparsitywatch.records import Event

SMALL = ["--small", "--steps", "12", "--every", "4"]


@pytest.mark.slow
def test_three_runs_a_table_a_picture_and_a_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert emergence.main([*SMALL, "--only", "ReLU", "--out", str(tmp_path)]) == 0
    alone = capsys.readouterr().out
    assert "ReLU: no abrupt turn" in alone
    assert emergence.main([*SMALL, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    for name in emergence.RUNS:
        assert re.search(rf"^{name}: (no abrupt turn|an abrupt turn began)", said, re.MULTILINE)
    table = (tmp_path / "emergence.txt").read_text()
    clock = next(line for line in table.splitlines() if line.startswith("| motion/decay_clock"))
    assert clock.count("->") == 6
    assert (tmp_path / "emergence.png").stat().st_size > 10_000
    assert table in said
    monkeypatch.setattr(emergence, "pretrain", lambda _: pytest.fail("trained"))
    assert emergence.main(["--report", "--out", str(tmp_path)]) == 0  # of 50,000 steps
    assert "ReLU, unfinished at step 12 of 50,000: no abrupt turn" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        emergence.main(["--report", "--out", str(tmp_path / "none")])


def test_a_turn_is_told_with_its_place() -> None:
    event = Event(
        series="near_zero/initial_0.1", direction="up", onset_step=300, onset_low=250,
        onset_high=350, detected_step=400, baseline=0.08, value=0.2, trend="sparsifying",
        layers=("a", "b"), reverted_step=900,
    )  # fmt: skip

    class Run:
        events = (event,)
        records = (SimpleNamespace(step=1000),)

    assert emergence.verdict("x", Run(), 1000) == (
        "x: an abrupt turn began at step 300 (250 to 350): 0.08 -> 0.2, most in a, b; half of it "
        "was gone again at 900."
    )


def test_a_fall_is_no_turn_to_sparse() -> None:
    event = Event(
        series="near_zero/initial_0.1", direction="down", onset_step=300, onset_low=250,
        onset_high=350, detected_step=400, baseline=0.08, value=0.02, trend="densifying",
    )  # fmt: skip
    run = SimpleNamespace(events=(event,), records=(SimpleNamespace(step=1000),))
    assert emergence.verdict("x", run, 1000) == (
        "x: no abrupt turn of the near-zero weights to sparse; they fell abruptly from step 300 on."
    )


def test_the_lowest_of_a_course_is_a_number() -> None:
    class Run:
        def series(self, name: str) -> tuple[np.ndarray, np.ndarray]:
            values = {"a": [3.0, math.nan, 1.0, 2.0], "b": [math.nan] * 4}[name]
            return np.array([0, 250, 500, 1750]), np.array(values)

    assert emergence.course(Run(), "a") == "3 -> 1 at 500 -> 2"
    assert emergence.course(Run(), "b") == "-"
