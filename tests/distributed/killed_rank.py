"""Run by torchrun: rank 1 is killed in the middle of the second snapshot.

``torchrun --standalone --nproc-per-node=2 killed_rank.py <folder>``
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from contracts.sharded import HELD_OUT, Batch, Training, loss
from torch import distributed, nn

import sparsitywatch as sw


def main(folder: str) -> None:
    warnings.simplefilter("ignore")  # torch's own
    distributed.init_process_group("gloo")
    training = Training("fsdp")

    def value(model: nn.Module, one: Batch) -> torch.Tensor:
        if training.step == 6 and distributed.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(model, one)

    with training.watch(Path(folder) / "log", proxy=sw.Proxy(HELD_OUT, value), strict=False):
        training.train()


if __name__ == "__main__":
    main(*sys.argv[1:])
