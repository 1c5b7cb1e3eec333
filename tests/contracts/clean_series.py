"""Small trainings whose checkpoints are what their names say: an audit finds nothing there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

Weights = dict[str, torch.Tensor]
MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def _net() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(50, 24), nn.Flatten(1), nn.Linear(96, 48), nn.GELU(), nn.LayerNorm(48),
        nn.Linear(48, 48), nn.GELU(), nn.Linear(48, 10),
    )  # fmt: skip


def _line() -> nn.Module:
    return nn.Sequential(nn.Embedding(50, 24), nn.Flatten(1), nn.Linear(96, 10))


def cosine(step: int, total: int) -> float:
    warm = total // 10
    return (
        (step + 1) / warm
        if step < warm
        else 0.5 + 0.5 * math.cos(math.pi * (step - warm) / (total - warm))
    )


SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "constant": lambda step, total: 1.0,
    "cosine": cosine,
    "linear": lambda step, total: 1 - step / total,
    "warm restarts": lambda step, total: (
        0.5 + 0.5 * math.cos(math.pi * (step % (total // 4)) / (total // 4))
    ),
    "decays": lambda step, total: 0.1 ** (3 * step // total),
    "cyclic": lambda step, total: abs(step % 40 - 20) / 20 + 0.05,
}
OPTIMIZERS: dict[str, MakeOptimizer] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: torch.optim.Adam(p, 3e-3),
    "adamw": lambda p: torch.optim.AdamW(p, 3e-3, weight_decay=0.1),
    "fast adamw": lambda p: torch.optim.AdamW(p, 3e-2, weight_decay=1.0),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3),
    "adagrad": lambda p: torch.optim.Adagrad(p, 1e-2),
    "edge": lambda p: torch.optim.SGD(p, 1.5),
}


@dataclass(frozen=True)
class Recipe:
    """How one series comes about."""

    optimizer: str = "adamw"
    schedule: str = "cosine"
    net: Callable[[], nn.Module] = _net
    frozen: tuple[int, int] = (0, 0)  # between these checkpoints the middle layer rests
    restart: int = -1  # at this checkpoint the optimizer begins anew
    batch: int = 32
    geometric: bool = False  # steps 0, 1, 2, 4, ... before even ones
    dtype: torch.dtype = torch.float32
    every: int = 10
    num: int = 30
    new_data: int = -1  # from this checkpoint on the targets are others


RECIPES: dict[str, Recipe] = {
    **{f"{name}, {schedule}": Recipe(optimizer=name, schedule=schedule)
       for name, schedule in zip(OPTIMIZERS, [*SCHEDULES, "constant", "constant"], strict=True)},
    "restarts": Recipe(schedule="warm restarts"),
    "momentum in cycles": Recipe(optimizer="momentum", schedule="cyclic", every=7),
    "frozen at first": Recipe(frozen=(0, 12)),
    "frozen later": Recipe(optimizer="momentum", frozen=(10, 30)),
    "a new optimizer": Recipe(restart=15, schedule="constant"),
    "a new optimizer of momentum": Recipe(optimizer="momentum", restart=10),
    "geometric steps": Recipe(geometric=True),
    "geometric steps of sgd": Recipe(optimizer="sgd", geometric=True, schedule="constant"),
    "bfloat16": Recipe(dtype=torch.bfloat16),
    "half": Recipe(dtype=torch.float16, geometric=True, optimizer="adam"),
    "converged": Recipe(net=_line, batch=512, every=30, optimizer="adam", schedule="constant"),
    "whole batches": Recipe(batch=512, optimizer="edge", schedule="constant", every=1),
    "converged whole batches": Recipe(
        net=_line, batch=512, optimizer="edge", schedule="constant", every=30
    ),
    "new data": Recipe(new_data=15, schedule="constant"),
    "long": Recipe(every=20, schedule="warm restarts", num=60),
    "few": Recipe(num=4, every=50),
}  # fmt: skip


def train(recipe: Recipe, seed: int) -> Iterator[tuple[int, Weights]]:
    """Steps and weights, the untrained ones first."""
    for step, net, _ in trained(recipe, seed):
        yield step, {n: v.detach().to(recipe.dtype, copy=True) for n, v in net.state_dict().items()}


def trained(recipe: Recipe, seed: int) -> Iterator[tuple[int, nn.Module, torch.optim.Optimizer]]:
    """The model and its optimizer at each step; the next one changes both."""
    torch.manual_seed(seed)
    net = recipe.net()
    tokens, classes = torch.randint(50, (512, 4)), torch.randint(10, (512,))
    make = OPTIMIZERS[recipe.optimizer]
    optimizer = make(list(net.parameters()))
    rate = optimizer.param_groups[0]["lr"]
    even = [recipe.every * i for i in range(recipe.num)]
    early = [2**i for i in range(12) if 2**i < recipe.every * 3]
    steps = (
        sorted({0, *early, *(s for s in even if s > recipe.every * 3)})
        if recipe.geometric
        else even
    )
    total = steps[-1]
    for step in range(total + 1):
        if step in steps:
            at = steps.index(step)
            if at == recipe.restart:
                optimizer = make(list(net.parameters()))
            if at == recipe.new_data:
                classes = torch.randint(10, (512,))
            rests = recipe.frozen[0] <= at < recipe.frozen[1]
            net[2].requires_grad_(not rests)
            yield step, net, optimizer
        for group in optimizer.param_groups:
            group["lr"] = rate * SCHEDULES[recipe.schedule](step, total)
        chosen = torch.randperm(512)[: recipe.batch]
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(tokens[chosen]), classes[chosen]).backward()
        optimizer.step()
