"""Whether a spike of the loss is told with the blocks that it began in, in small trainings.

python benchmarks/spikes.py [--small] [--save] [--repeats N]

A perceptron, a convolutional network and a transformer train on made-up tasks, with AdamW and with
SGD, clipped or not; at a random step something goes wrong for 1, 2, 3 or 20 steps. ``--repeats``
is how many trainings there are of each fault and length, and five times as many go well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from sparsitywatch.analysis.spikes import Moves
from sparsitywatch.live.ring import Ring, block_of
from sparsitywatch.pipeline.rundir import Claim

STEPS = 600
#: Faults may come from here on, and this many steps before the end at the latest.
EARLIEST, LATEST = 60, 60
Batch = tuple[torch.Tensor, torch.Tensor]


class Perceptron(nn.Module):
    """Six layers with residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(16, 48)
        self.layers = nn.ModuleList(nn.Linear(48, 48) for _ in range(5))
        self.leave = nn.Linear(48, 8)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.enter(inputs)
        for layer in self.layers:
            hidden = hidden + layer(hidden.relu())
        return self.leave(hidden)


class Convolutions(nn.Module):
    """Four convolutions with group norms."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [(3, 12), (12, 12), (12, 16), (16, 16)]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 1 + i % 2, 1), nn.GroupNorm(4, b), nn.ReLU())
            for i, (a, b) in enumerate(sizes)
        )
        self.leave = nn.Linear(16, 8)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = inputs.unflatten(1, (3, 6, 6))
        for layer in self.layers:
            hidden = layer(hidden)
        return self.leave(hidden.mean((2, 3)))


class Block(nn.Module):
    """Attention with one head, and a perceptron, both behind norms."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(2))
        self.mix = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)
        self.up, self.down = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        query, key, value = self.mix(self.norms[0](hidden)).chunk(3, -1)
        scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
        hidden = hidden + self.out(scores.softmax(-1) @ value)
        return hidden + self.down(self.up(self.norms[1](hidden)).relu())


class Transformer(nn.Module):
    """Three layers of 24 on sequences of 8 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 24)
        self.places = nn.Parameter(0.1 * torch.randn(8, 24))
        self.layers = nn.ModuleList(Block(24) for _ in range(3))
        self.leave = nn.Linear(24, 32)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(inputs) + self.places
        for layer in self.layers:
            hidden = layer(hidden)
        return self.leave(hidden)


def vectors(size: int, num_classes: int) -> Callable[[torch.Generator], Batch]:
    """Batches of random vectors with labels by a fixed linear rule, a tenth of them wrong."""

    def draw(generator: torch.Generator) -> Batch:
        rule = torch.randn(size, num_classes, generator=torch.Generator().manual_seed(7))
        inputs = torch.randn(32, size, generator=generator)
        labels = (inputs @ rule).argmax(1)
        wrong = torch.rand(32, generator=generator) < 0.1
        return inputs, torch.where(wrong, labels.roll(1), labels)

    return draw


def sequences(generator: torch.Generator) -> Batch:
    """Batches of sequences that step through 32 tokens by their first, with noise."""
    first = torch.randint(0, 32, (16, 1), generator=generator)
    stride = torch.randint(1, 4, (16, 1), generator=generator)
    tokens = (first + stride * torch.arange(9)) % 32
    noise = torch.randint(0, 32, tokens.shape, generator=generator)
    tokens = torch.where(torch.rand(tokens.shape, generator=generator) < 0.1, noise, tokens)
    return tokens[:, :-1], tokens[:, 1:]


TASKS: dict[str, tuple[type[nn.Module], Callable[[torch.Generator], Batch]]] = {
    "perceptron": (Perceptron, vectors(16, 8)),
    "convolutions": (Convolutions, vectors(108, 8)),
    "transformer": (Transformer, sequences),
}
OPTIMIZERS = {
    "adamw": lambda weights: torch.optim.AdamW(weights, 2e-3),
    "sgd": lambda weights: torch.optim.SGD(weights, 0.05),
    "momentum": lambda weights: torch.optim.SGD(weights, 0.01, momentum=0.9),
}


@dataclass
class Fault:
    """What goes wrong, in which block, from which step on, for how many steps."""

    what: str
    block: str
    step: int
    length: int


def gradients(fault: Fault, named: dict[str, nn.Parameter], generator: torch.Generator) -> None:
    """Spoil the gradients of a step."""
    own = [p for name, p in named.items() if block_of(name) == fault.block and p.grad is not None]
    if fault.what == "gradient":
        for p in own:
            p.grad.mul_(1000.0)
    elif fault.what == "tensor":
        largest = max(own, key=torch.numel)
        largest.grad.copy_(3.0 * torch.randn(largest.shape, generator=generator))
    elif fault.what == "nan":
        own[0].grad.flatten()[0] = math.nan


def flip(fault: Fault, named: dict[str, nn.Parameter], generator: torch.Generator) -> None:
    """Flip a bit of one weight: the highest of its exponent that is 0, or the one below."""
    own = [p for name, p in named.items() if block_of(name) == fault.block]
    largest = max(own, key=torch.numel).detach().view(-1)
    place = int(torch.randint(0, len(largest), (1,), generator=generator))
    if fault.what == "flip":
        largest[place : place + 1].view(torch.int32).bitwise_xor_(1 << 30)
    else:
        largest[place] = 30.0 + 300.0 * torch.rand((), generator=generator)


def train(
    task: str, optimizer: str, clip: bool, seed: int, fault: Fault | None, steps: int = STEPS
) -> Moves:
    """What moved at each step."""
    torch.manual_seed(seed)
    make, draw = TASKS[task]
    model, data = make(), torch.Generator().manual_seed(seed)
    chance = torch.Generator().manual_seed(seed + 1)
    named = dict(model.named_parameters())
    taken = OPTIMIZERS[optimizer](model.parameters())
    ring = Ring(True, Claim(None), strict=True)
    ring.attach(named)
    for step in range(1, steps + 1):
        wrong = fault is not None and fault.step <= step < fault.step + fault.length
        inputs, labels = draw(data)
        if wrong and fault.what == "labels":
            labels = torch.randint(0, 32 if task == "transformer" else 8, labels.shape, generator=chance)
        elif wrong and fault.what == "inputs":
            inputs = inputs.flip(1) if task == "transformer" else 30.0 * inputs
        elif wrong and fault.what in ("flip", "weight"):
            flip(fault, named, chance)
        loss = nn.functional.cross_entropy(model(inputs).flatten(0, -2), labels.flatten())
        taken.zero_grad()
        loss.backward()
        if wrong:
            gradients(fault, named, chance)
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        ring.say_loss(loss)
        taken.step()
        ring.after_step(step)
    ring.look()
    return ring.moves
