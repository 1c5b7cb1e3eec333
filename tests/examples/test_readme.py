"""What the README shows to begin with runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sparsitywatch import cli

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def test_the_picture_and_what_it_shows_come_before_any_code() -> None:
    picture, control, code = (README.index(x) for x in ("](docs/demo.png)", "demo-control", "```"))
    assert picture < control < code
    assert "sw." not in README[:code]


@pytest.mark.slow
def test_the_first_block_runs_as_it_is_pasted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    language, block = BLOCKS[0]
    assert language == "python"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-"],
        input=block, cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("<Record of step 600: near zero (initial_0.1) 0.")
    assert "sparsitywatch: Look: Dormant weights" in done.stderr

    # and so do the commands below it
    after = README.partition(block)[2].partition("##")[0]
    commands = re.findall(r"^    sparsitywatch (.*?)(?:  +#.*)?$", after, re.MULTILINE)
    assert [command.split()[0] for command in commands] == ["summary", "report", "show", "status"]
    monkeypatch.chdir(tmp_path)
    found = {c.split()[0]: cli.main(c.split()) for c in commands if c != "show runs"}  # it serves
    assert found == {"summary": 0, "report": 0, "status": 1}  # 1: dormant weights, have a look
    assert "30 " in capsys.readouterr().out  # snapshots, in the summary
    assert (tmp_path / "report.html").stat().st_size > 10_000
