"""A measurement in several processes of this machine, in the environment of torchrun."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1]
#: What each process runs.
MODULE = "ranking.measured"


def measured_on(num_ranks: int, part: str, *, small: bool, limit_s: float = 300.0) -> Any:
    """What rank 0 found of one of ``measured.PARTS``; every process has ended afterwards.

    Raises:
        RuntimeError: one of them failed, or took longer.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    together = {"WORLD_SIZE": num_ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    roots = [str(FOLDER), str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]
    together |= {"OMP_NUM_THREADS": 1, "PYTHONPATH": os.pathsep.join(filter(None, roots))}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        found, said = Path(folder) / "found.json", Path(folder) / "said.txt"
        command = [sys.executable, "-m", MODULE, part, str(found), str(int(small))]
        file = stack.enter_context(said.open("ab"))
        processes = []
        for rank in range(num_ranks):
            own = {**together, "RANK": rank, "LOCAL_RANK": rank}
            environment = os.environ | {name: str(value) for name, value in own.items()}
            process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)  # noqa: S603
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes.append(process)
        try:
            codes = [process.wait(timeout=limit_s) for process in processes]
        except subprocess.TimeoutExpired:
            codes = [-1]
        if any(codes):
            raise RuntimeError(
                f"Expected {num_ranks} processes to measure {part!r} within {limit_s:.0f} s, got "
                f"exit codes {codes}: {said.read_text(errors='replace')[-3000:]}"
            )
        return json.loads(found.read_text())
