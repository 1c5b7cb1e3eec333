"""Run on ranks: saves one model in pieces, as FSDP2 and DDP trainings do."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from contracts.reader_contract import small_bert


def main(folder: str) -> None:
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    weights = small_bert().state_dict()
    sharded = {
        name: distribute_tensor(tensor, mesh, [Shard(tensor.ndim - 1) if at % 3 == 0 else Shard(0)])
        if tensor.ndim and at % 4
        else distribute_tensor(tensor, mesh, [Replicate()])
        for at, (name, tensor) in enumerate(weights.items())
    }
    state = {
        "model": sharded,
        "optim": {"state": {"first": {"exp_avg": torch.ones(100, 100)}}},
        "step": 11,
    }
    dcp.save(state, checkpoint_id=folder)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
