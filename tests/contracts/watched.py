"""A small watched training that tests of the live watch share."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from contracts.forked import Child
from torch import nn

import sparsitywatch as sw


class Run:
    """A small regression on fixed data, resumable at any step."""

    def __init__(self, seed: int = 0, optimizer: type = torch.optim.AdamW) -> None:
        torch.manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
        self.optimizer = optimizer(self.model.parameters(), lr=0.01)
        self.inputs, self.targets = torch.randn(20, 6), torch.randn(20, 2)

    @classmethod
    def resumed(cls, checkpoint: dict, seed: int = 0) -> Run:
        """Another process's run, where ``checkpoint`` has left it."""
        run = cls(seed)
        run.model.load_state_dict(checkpoint["model"])
        run.optimizer.load_state_dict(checkpoint["optimizer"])
        run.inputs, run.targets = checkpoint["data"]
        return run

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            nn.functional.mse_loss(self.model(self.inputs), self.targets).backward()
            self.optimizer.step()

    def proxy(self) -> sw.Proxy:
        def squared_error(model: nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
            return (model(batch[0]) - batch[1]).square().mean(dim=1)

        return sw.Proxy([[self.inputs[:10], self.targets[:10]]], squared_error)

    def watch(self, logdir: Path | None, **options) -> sw.Watcher:
        options = {
            "proxy": self.proxy(), "every": 3, "strict": True, "max_overhead": None,
            "optimizer": self.optimizer,
        } | options  # fmt: skip
        return sw.watch(self.model, logdir=logdir, **options)

    def checkpoint(self, watcher: sw.Watcher) -> dict:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "watch": watcher.state_dict(),
            "data": (self.inputs, self.targets),
        }
        return copy.deepcopy(state)


def told(records: list[sw.Record]) -> list[tuple]:
    """Everything of the records that must not depend on when and how fast they were made."""
    parts = ("step", "near_zero", "decay_clock", "lr_clock", "lr", "dormant", "curve")
    parts += ("essential_sparsity", "layers")
    return [tuple(getattr(record, part) for part in parts) for record in records]


def steps_of(records: list[sw.Record]) -> list[int]:
    return [record.step for record in records]


class SeesStep(sw.detectors.AbruptChange):
    """A detector with an event at a given step."""

    def __init__(self, step: int) -> None:
        super().__init__()
        self._seen_step = step

    def update(self, step, value, context=None):
        return None if step != self._seen_step else sw.Event(
            series="", direction="up", onset_step=step, detected_step=step, baseline=0.0,
            value=value,
        )  # fmt: skip


def sees_step_6() -> dict:
    """Options of a watch that sees an event at step 6."""
    return {"proxy": None, "detectors": {"near_zero/initial_0.1": SeesStep(6)}}


def child(body: str, *arguments: object) -> Child:
    """Another process, which knows the names of this module."""
    head = "import os, signal, sys, time\nfrom contracts.watched import *\n"
    return Child(head + body, *arguments)
