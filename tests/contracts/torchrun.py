"""Scripts in several processes, as ``torchrun`` starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def outcome(
    script: Path, *arguments: str, num_processes: int = 2, limit_s: float = 120
) -> tuple[int, str]:
    """What torchrun returned, and what all of them printed; they have ended afterwards."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *(f"--nproc-per-node={num_processes}", str(script), *arguments),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=environment,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=limit_s)
    except BaseException:
        # asked, it ends its workers, which have groups of their own; killed, it leaves them
        process.terminate()
        try:
            process.wait(timeout=60)
        finally:
            process.kill()
        raise
    return process.returncode, output
