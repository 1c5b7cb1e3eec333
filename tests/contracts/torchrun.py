"""Scripts in several processes, as ``torchrun`` starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def torchrun(script: Path, *arguments: str, num_processes: int = 2) -> None:
    """Run a script in several processes, all of which have ended afterwards."""
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
        output, _ = process.communicate(timeout=120)
    except BaseException:
        # asked, it ends its workers, which have groups of their own; killed, it leaves them
        process.terminate()
        try:
            process.wait(timeout=60)
        finally:
            process.kill()
        raise
    assert process.returncode == 0, output
