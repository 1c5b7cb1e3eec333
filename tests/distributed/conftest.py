"""Each number of processes is started once, whoever asks."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from contracts import rank_cases
from contracts.forked import WATCH, forked
from contracts.once import once
from contracts.rank_cases import Came

#: What the cases need.
IMPORTS = f"pytest,contracts.rank_cases,contracts.sharded,contracts.watched,{WATCH}"


@pytest.fixture(scope="session")
def came(tmp_path_factory: pytest.TempPathFactory) -> Came:
    """What came of the cases."""

    @functools.cache
    def of_processes(num: int) -> tuple[Path, str]:
        def start(folder: Path) -> None:
            _, output = forked(
                Path(rank_cases.__file__), str(folder), num_ranks=num, imports=IMPORTS, limit_s=400
            )
            (folder / "output.txt").write_text(output)

        folder = once(tmp_path_factory, f"ranks-{num}", start)
        return folder, (folder / "output.txt").read_text()

    return Came(of_processes)
