"""Each number of processes is started once, whoever asks, and in whichever process of tests."""

from __future__ import annotations

import fcntl
import functools
import os
from pathlib import Path

import pytest
from contracts import rank_cases
from contracts.forked import WATCH, forked
from contracts.rank_cases import Came

#: What the cases need.
IMPORTS = f"pytest,contracts.rank_cases,contracts.sharded,contracts.watched,{WATCH}"


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
                _, output = forked(
                    Path(rank_cases.__file__), str(folder), num_ranks=num, imports=IMPORTS,
                    limit_s=400,
                )  # fmt: skip
                said.write_text(output)
            return folder, said.read_text()

    return Came(of_processes)
