"""A small language model of feed-forward blocks, and batches of it with padding."""

from __future__ import annotations

import torch
from torch import nn

WIDTH = 24


class Block(nn.Module):
    def __init__(self, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.act = activation()
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.act(self.up(self.norm(x))))


class Blocks(nn.Module):
    def __init__(self, activation: type[nn.Module] = nn.GELU, depth: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, WIDTH)
        self.layers = nn.ModuleList(Block(activation) for _ in range(depth))
        self.head = nn.Linear(WIDTH, 50)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def value(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    ids = batch["input_ids"]
    loss = nn.functional.cross_entropy(model(ids).transpose(1, 2), ids.roll(1, 1), reduction="none")
    return (loss * batch["attention_mask"]).sum(1) / batch["attention_mask"].sum(1)


def batches(sizes: tuple[int, ...] = (8, 8, 4), length: int = 40) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for size in sizes:
        ids = torch.randint(0, 50, (size, length), generator=generator)
        ends = torch.randint(2, length, (size, 1), generator=generator)
        mask = (torch.arange(length) < ends).long()
        found.append({"input_ids": ids, "attention_mask": mask})
    return found
