"""Each number of processes is started once, whoever asks, and in whichever process of tests."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import pytest
from contracts import rank_cases
from contracts.rank_cases import Came
from contracts.torchrun import outcome


@pytest.fixture(scope="session")
def two(tmp_path_factory: pytest.TempPathFactory) -> Came:
    """What came of the cases for two processes."""
    return came_of(tmp_path_factory, 2)


@pytest.fixture(scope="session")
def four(tmp_path_factory: pytest.TempPathFactory) -> Came:
    """What came of the cases for four processes."""
    return came_of(tmp_path_factory, 4)


def came_of(factory: pytest.TempPathFactory, num_processes: int) -> Came:
    root = factory.getbasetemp()
    shared = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root
    folder = shared / f"ranks-{num_processes}"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = folder / "output.txt"
        if not said.exists():
            try:
                _, output = outcome(
                    Path(rank_cases.__file__), str(folder), num_processes=num_processes, limit_s=400
                )
            except subprocess.TimeoutExpired as error:
                output = f"{error}\n{(error.output or b'').decode()}"
            said.write_text(output)
        return Came(folder, said.read_text())
