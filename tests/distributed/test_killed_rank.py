"""A rank that is killed ends the job as it would without the watch, and the files are valid."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for torchrun

import pytest
import torch
from contracts.sharded import HELD_OUT, Batch, Training, log_of, loss
from torch import distributed, nn

import sparsitywatch as sw

pytestmark = pytest.mark.slow


def main(folder: Path) -> None:
    """A run on the ranks of torchrun; rank 1 is killed in the middle of the second snapshot."""
    distributed.init_process_group("gloo")
    training = Training("fsdp")

    def value(model: nn.Module, one: Batch) -> torch.Tensor:
        if training.step == 6 and distributed.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(model, one)

    with training.watch(folder / "log", proxy=sw.Proxy(HELD_OUT, value), strict=False):
        training.train()


def test_a_rank_killed_in_the_middle_of_a_snapshot_leaves_valid_files(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *(__file__, str(tmp_path)),
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes) as process:
        try:
            output, _ = process.communicate(timeout=200)
        finally:
            process.terminate()  # it ends its workers, which have groups of their own
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL)" in output

    first, *others = sw.load(tmp_path / "log").records
    assert (first.step, first.valid) == (3, True)
    assert first.curve is not None
    # of the second one nothing, or what rank 0 could still say of it
    assert [(record.step, record.valid) for record in others] in ([], [(6, False)])
    log = log_of(tmp_path / "log")
    assert {3} <= set(log["spectra"])
    assert not [name for name in log["files"] if name.endswith(".tmp")]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
