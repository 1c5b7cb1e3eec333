"""A run's clocks against a count by hand: optimizers by what the training does with them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim

import sparsitywatch as sw

STEPS, HALF = 12, 6
SIZES = (48, 64, 24)

Make = Callable[..., optim.Optimizer]

#: Makers, and what the decay of a step is called; "" where it is no law.
OPTIMIZERS: dict[str, tuple[Make, str]] = {
    "AdamW": (optim.AdamW, "lr * decay"),
    "Adam": (optim.Adam, ""),
    "NAdam": (lambda p, **o: optim.NAdam(p, decoupled_weight_decay=True, **o), "lr * decay"),
    "Adafactor": (optim.Adafactor, "lr * decay"),
    "Muon": (optim.Muon, "lr * decay"),
    "RMSprop": (optim.RMSprop, ""),
    "SGD": (optim.SGD, "lr * decay"),
    "SGD with momentum": (lambda p, **o: optim.SGD(p, momentum=0.5, **o), "through momentum"),
}


class Training:
    """Three layers, a rising learning rate, and a count by hand."""

    def __init__(self, name: str, kind: str) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 8, bias=False),
                                   nn.Linear(8, 3, bias=False))  # fmt: skip
        self.weights = [layer.weight for layer in self.model]
        make, self.law = OPTIMIZERS[name]
        first, *others = self.weights
        if kind == "two":
            self.optimizers = [
                make([first], lr=0.01, weight_decay=0.2),
                optim.AdamW(others, lr=0.02, weight_decay=0.3),
            ]
        elif kind == "groups":
            groups = [{"params": [first], "lr": 0.03, "weight_decay": 0.1}, {"params": others}]
            self.optimizers = [make(groups, lr=0.01, weight_decay=0.2)]
        else:
            self.optimizers = [make(self.weights, lr=0.01, weight_decay=0.2)]
        self.decay, self.buffer = [0.0] * 3, [0.0] * 3  # by layer

    def step(self, number: int) -> None:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group.setdefault("first_lr", group["lr"])
                group["lr"] = group["first_lr"] * (1 + number)
            optimizer.zero_grad()
        self.model(torch.randn(5, 6)).square().mean().backward()
        for optimizer in self.optimizers:
            self.count(optimizer)
            optimizer.step()

    def count(self, optimizer: optim.Optimizer) -> None:
        """What this step does to the decay of each layer; beforehand."""
        law = self.law if optimizer is self.optimizers[0] else "lr * decay"
        for group in optimizer.param_groups:
            for at, weight in enumerate(self.weights):
                is_in = any(weight is p for p in group["params"])
                if not is_in or weight.grad is None:
                    continue
                self.buffer[at] = 0.5 * self.buffer[at] + group["weight_decay"]
                each = {"": math.nan, "lr * decay": group["weight_decay"],
                        "through momentum": self.buffer[at]}[law]  # fmt: skip
                self.decay[at] += group["lr"] * each

    def watch(self, logdir: Path | None, **options: Any) -> sw.Watcher:
        return sw.watch(self.model, self.optimizers, logdir=logdir, every=1, scope="layers",
                        max_overhead=None, strict=True, **options)  # fmt: skip

    def resumed(self) -> Training:
        again = copy.deepcopy(self)  # of which no hook knows
        again.model.load_state_dict(self.model.state_dict())
        return again


KINDS = ("one", "two", "groups", "frozen", "resumed")
#: Every kind of one optimizer of each law; of the others the one with most in it.
CASES = [(name, kind) for name in ("AdamW", "Adam", "SGD with momentum") for kind in KINDS]
CASES += [(name, "groups") for name in OPTIMIZERS if (name, "groups") not in CASES]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_decay_clock_is_what_a_count_by_hand_gives(name: str, kind: str, tmp_path) -> None:
    training = Training(name, kind)
    watcher = training.watch(tmp_path if kind == "resumed" else None)
    for number in range(STEPS):
        if kind == "frozen" and number == HALF:
            training.model[0].requires_grad_(False)
        if kind == "resumed" and number == HALF:
            state = watcher.state_dict()
            watcher.close()
            training = training.resumed()
            watcher = training.watch(tmp_path, initial_step=HALF)
            watcher.load_state_dict(state)
        training.step(number)
        record = watcher.records[-1]
        assert record.step == number + 1
        by_hand = sum(s * d for s, d in zip(SIZES, training.decay, strict=True)) / sum(SIZES)
        if math.isnan(by_hand):
            assert math.isnan(record.decay_clock)
            assert f"weight decay of {name}" in record.why_no_clock
        else:
            assert record.decay_clock == pytest.approx(by_hand, rel=1e-6)
            assert record.why_no_clock == ""
    watcher.close()


def test_a_loop_that_says_its_steps_may_change_the_groups_between_two_snapshots() -> None:
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Linear(8, 3, bias=False))
    first, second = model.parameters()
    optimizer = optim.AdamW([{"params": [first]}, {"params": [second], "lr": 0.5}], lr=0.25)
    with sw.watch(
        model, optimizer, logdir=None, every=4, scope="layers", max_overhead=None, strict=True
    ) as watcher:
        for step in range(4):  # nobody calls the optimizer's own
            if step == 2:
                del optimizer.param_groups[0]
            watcher.step()
    (record,) = watcher.records
    # of 48 weights two steps, of 24 four
    assert record.lr_clock == pytest.approx((48 * 2 * 0.25 + 24 * 4 * 0.5) / 72)
