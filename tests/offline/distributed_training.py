"""Two processes train one model under a watch and save it together, on ranks."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from contracts.live_runs import held_out, loss_per_sentence, sentences, tiny_bert

import sparsitywatch as sw


def main(folder_name: str) -> None:
    warnings.simplefilter("ignore")  # torch's own
    dist.init_process_group("gloo")
    folder, rank = Path(folder_name), dist.get_rank()
    # no DistributedDataParallel: torch 2.13 at times hangs when it lets go of one
    model = tiny_bert()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with sw.watch(
        model, optimizer, proxy=held_out(), every=2, logdir=folder / "live", max_overhead=None
    ):
        for step in range(1, 5):
            optimizer.zero_grad()
            loss_per_sentence(model, sentences(10 * step + rank, 4)).mean().backward()
            for parameter in model.parameters():
                dist.all_reduce(parameter.grad)
            optimizer.step()
            if step % 2 == 0:
                state = {"model": model.state_dict(), "optim": optimizer.state_dict()}
                dcp.save(state, checkpoint_id=str(folder / "run" / f"step-{step}"))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
