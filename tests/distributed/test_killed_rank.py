"""A rank that is killed ends the job as it would without the watch, and the files are valid."""

from __future__ import annotations

from pathlib import Path

import pytest
from contracts.sharded import log_of
from contracts.torchrun import outcome

import sparsitywatch as sw

pytestmark = pytest.mark.slow


def test_a_rank_killed_in_the_middle_of_a_snapshot_leaves_valid_files(tmp_path: Path) -> None:
    script = Path(__file__).with_name("killed_rank.py")
    returncode, output = outcome(script, str(tmp_path), limit_s=200)
    assert returncode != 0
    assert "Signal 9 (SIGKILL)" in output

    run = sw.load(tmp_path / "log")
    first, *others = run.records
    assert first.step == 3
    assert first.valid
    assert first.curve is not None
    # of the second one nothing, or what rank 0 could still say of it
    assert [(record.step, record.valid) for record in others] in ([], [(6, False)])
    log = log_of(tmp_path / "log")
    assert {3} <= set(log["spectra"])
    assert not [name for name in log["files"] if name.endswith(".tmp")]
