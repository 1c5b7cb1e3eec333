"""A small model that is pruned and trained on, by functions that other processes can be sent."""

from __future__ import annotations

import os
import signal
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import torch
from torch import nn

import sparsitywatch as sw

_draw = torch.Generator().manual_seed(0)
X = torch.randn(128, 8, generator=_draw)
Y = (X[:, 0] * X[:, 1] > 0).long()
WEIGHT = 0.35 * torch.randn(24, 8, generator=_draw)


def make_model(weight: torch.Tensor = WEIGHT) -> nn.Module:
    """The same first layer, and a new head."""
    model = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 2))
    with torch.no_grad():
        model[0].weight.copy_(weight)
    return model


def train(model: nn.Module) -> None:
    """Some steps in a random order of the data."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for batch in torch.randperm(128).split(16) * 2:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X[batch]), Y[batch]).backward()
        optimizer.step()


@torch.no_grad()
def right(model: nn.Module) -> torch.Tensor:
    """Whether each example is given its label."""
    return model(X).argmax(1) == Y


@torch.no_grad()
def losses(model: nn.Module) -> torch.Tensor:
    """Of each example, negative."""
    return -nn.functional.cross_entropy(model(X), Y, reduction="none")


def curve_of(log: Path | None = None, **options: Any) -> sw.FinetunedCurve:
    """Of two levels and two seeds."""
    given = {
        "make_model": make_model, "train": train, "evaluate": losses, "levels": [0.3, 0.8],
        "seeds": [0, 1], "scope": ["0.weight"],
    }  # fmt: skip
    return sw.finetuned_curve(log=log, **given | options)


# ------------------------------------------------------------------ in other processes


def noted(model: nn.Module, run: Any, *, notes: Path) -> None:
    """Train, and note who did."""
    with notes.open("a") as file:
        file.write(f"{os.getpid()} {run.seed} {run.level}\n")
    train(model)


def share(log: Path, notes: Path, barrier: Barrier) -> None:
    """One of several processes that share a log."""
    torch.set_num_threads(1)
    met: list[None] = []

    def meeting(model: nn.Module, run: Any) -> None:
        first = not met
        met.append(None)
        noted(model, run, notes=notes)
        if first:  # the others are in the middle of another training
            barrier.wait(60)

    curve_of(log, train=meeting)


def killed(log: Path) -> None:
    """Begins its second training, and is killed there."""
    torch.set_num_threads(1)

    def ends(model: nn.Module, run: Any) -> None:
        if run.level > 0.0:
            os.kill(os.getpid(), signal.SIGKILL)
        train(model)

    curve_of(log, train=ends)
