"""Each number of processes is started once, whoever asks, and in whichever process of tests."""

from __future__ import annotations

import fcntl
import functools
import os
import subprocess
from pathlib import Path

import pytest
from contracts import rank_cases
from contracts.rank_cases import Came
from contracts.torchrun import outcome


@pytest.fixture(scope="session")
def came(tmp_path_factory: pytest.TempPathFactory) -> Came:
    """What came of the cases."""
    root = tmp_path_factory.getbasetemp()
    shared = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    @functools.cache
    def of_processes(num: int) -> tuple[Path, str]:
        folder = shared / f"ranks-{num}"
        folder.mkdir(exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            said = folder / "output.txt"
            if not said.exists():
                script = Path(rank_cases.__file__)
                try:
                    _, output = outcome(script, str(folder), num_processes=num, limit_s=400)
                except subprocess.TimeoutExpired as error:
                    output = f"{error}\n{(error.output or b'').decode()}"
                said.write_text(output)
            return folder, said.read_text()

    return Came(of_processes)
