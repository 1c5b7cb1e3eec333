"""Worker processes: how they compute, and that none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sparsitywatch.offline.jobs import processes

SCRIPT = """
import os, time
from sparsitywatch.offline.jobs import processes

if __name__ == "__main__":
    with processes(2) as pool:
        found = [pool.submit(time.sleep, 0.5), pool.submit(os.getpid), pool.submit(os.getpid)]
        print(*{one.result() for one in found if one.result()}, flush=True)
        time.sleep(600)
"""


def test_they_share_the_cores() -> None:
    expected = max(1, (os.cpu_count() or 1) // 2)
    with processes(2) as pool:
        assert pool.submit(torch.get_num_threads).result() == expected
        assert pool.submit(signal.getsignal, signal.SIGINT).result() == signal.SIG_IGN


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"  # ended, and nobody has asked how


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_they_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = Path(__file__).resolve().parents[2]
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    try:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert pids
        assert all(map(is_running, pids))
    finally:
        process.kill()
        process.communicate()
    deadline = time.monotonic() + 60
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(is_running, pids))
