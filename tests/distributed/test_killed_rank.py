"""A rank that is killed ends the job as it would without the watch, and the files are valid."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from contracts.forked import WATCH, forked
from contracts.sharded import HELD_OUT, Batch, Training, log_of, loss
from torch import distributed, nn

import sparsitywatch as sw

pytestmark = pytest.mark.slow


def main(folder: Path) -> None:
    """A run on two ranks; rank 1 is killed in the middle of the second snapshot."""
    distributed.init_process_group("gloo")
    training = Training("fsdp")

    def value(model: nn.Module, one: Batch) -> torch.Tensor:
        if training.step == 6 and distributed.get_rank() == 1:
            (folder / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(model, one)

    with training.watch(folder / "log", proxy=sw.Proxy(HELD_OUT, value), strict=False):
        training.train()


def test_a_rank_killed_in_the_middle_of_a_snapshot_leaves_valid_files(tmp_path: Path) -> None:
    returned, output = forked(Path(__file__), str(tmp_path), imports=f"contracts.sharded,{WATCH}")
    assert returned == 1, output
    assert (tmp_path / "killed").exists()

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
