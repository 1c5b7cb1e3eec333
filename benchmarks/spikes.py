"""Whether a jump of a few steps is told with the block that it began in, in small trainings.

python benchmarks/spikes.py [--small] [--save] [--repeats N]

A perceptron, a convolutional network and a transformer learn made-up tasks with AdamW, SGD and SGD
with momentum, clipped or not. From copies of each at random steps something goes wrong for 1, 2, 3
or 20 steps: a block's gradients are 1,000 times as large, or garbage; one of its weights is, or has
its highest bit flipped; or the batch is wrong, for which no block is to blame. ``--repeats`` is how
many trainings there are, two faults of blocks of each length in each.
"""

from __future__ import annotations

import argparse
import copy
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from reporting import Goal, Part, run, table
from torch import nn

from sparsitywatch.analysis.spikes import Moves, find_spikes
from sparsitywatch.live.ring import Ring
from sparsitywatch.pipeline.rundir import Claim
from sparsitywatch.records.run import block_of

#: Steps of a training; faults come from here on, and that many steps are looked at since.
STEPS, EARLIEST, SINCE = 300, 60, 45
Batch = tuple[torch.Tensor, torch.Tensor]


class Perceptron(nn.Module):
    """Six layers with residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(16, 48)
        self.layers = nn.ModuleList(nn.Linear(48, 48) for _ in range(5))
        self.leave = nn.Linear(48, 8)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits."""
        hidden = self.enter(inputs)
        for layer in self.layers:
            hidden = hidden + layer(hidden.relu())
        logits: torch.Tensor = self.leave(hidden)
        return logits


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
        """Logits."""
        hidden = inputs.view(-1, 3, 6, 6)
        for layer in self.layers:
            hidden = layer(hidden)
        logits: torch.Tensor = self.leave(hidden.mean((2, 3)))
        return logits


class Block(nn.Module):
    """Attention with one head, and a perceptron, both behind norms."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(size) for _ in range(2))
        self.mix = nn.Linear(size, 3 * size)
        self.out = nn.Linear(size, size)
        self.up, self.down = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """One step deeper."""
        query, key, value = self.mix(self.norms[0](hidden)).chunk(3, -1)
        scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
        hidden = hidden + self.out(scores.softmax(-1) @ value)
        wider: torch.Tensor = self.down(self.up(self.norms[1](hidden)).relu())
        return hidden + wider


class Transformer(nn.Module):
    """Three layers of 24 on sequences of 8 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 24)
        self.places = nn.Parameter(0.1 * torch.randn(8, 24))
        self.layers = nn.ModuleList(Block(24) for _ in range(3))
        self.leave = nn.Linear(24, 32)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits."""
        hidden = self.embed(inputs) + self.places
        for layer in self.layers:
            hidden = layer(hidden)
        logits: torch.Tensor = self.leave(hidden)
        return logits


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
OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "adamw": lambda weights: torch.optim.AdamW(weights, 2e-3),
    "sgd": lambda weights: torch.optim.SGD(weights, 0.05),
    "momentum": lambda weights: torch.optim.SGD(weights, 0.01, momentum=0.9),
}


FAULTS = ("gradient", "garbage", "weight")
LENGTHS = (1, 2, 3, 20)
#: Seeds of trainings, which nothing was chosen on; quiet series of 2,000 steps.
FIRST_SEED, QUIET = 1000, 200


@dataclass
class Fault:
    """What goes wrong, in which block, for how many steps."""

    what: str
    block: str
    length: int


@dataclass
class Training:
    """A model, what trains it, and where its random numbers stand."""

    task: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    clip: bool
    data: torch.Generator
    chance: torch.Generator

    @classmethod
    def begin(cls, seed: int) -> Training:
        """Tasks, optimizers and clipping take turns."""
        torch.manual_seed(seed)
        task = list(TASKS)[seed % 3]
        model = TASKS[task][0]()
        optimizer = list(OPTIMIZERS.values())[seed // 3 % 3](model.parameters())
        data, chance = (torch.Generator().manual_seed(2 * seed + i) for i in range(2))
        return cls(task, model, optimizer, bool(seed % 2), data, chance)

    def copy(self, seed: int) -> Training:
        """The same at this step, with other faults to come."""
        model, optimizer = copy.deepcopy((self.model, self.optimizer))
        data = torch.Generator()
        data.set_state(self.data.get_state())
        chance = torch.Generator().manual_seed(seed)
        return Training(self.task, model, optimizer, self.clip, data, chance)

    def own(self, block: str) -> list[nn.Parameter]:
        """The weights of a block, the largest first."""
        found = [p for name, p in self.model.named_parameters() if block_of(name) == block]
        return sorted(found, key=torch.numel, reverse=True)

    def step(self, fault: Fault | None) -> torch.Tensor:
        """One step, in which something goes wrong or not; the loss."""
        inputs, labels = TASKS[self.task][1](self.data)
        what, own = ("", []) if fault is None else (fault.what, self.own(fault.block))
        if what == "batch":
            labels = labels.flatten()[torch.randperm(labels.numel(), generator=self.chance)]
            inputs = inputs if self.task == "transformer" else 10.0 * inputs
        elif what in ("weight", "flip"):
            values = own[0].detach().view(-1)
            place = int(torch.randint(0, len(values), (1,), generator=self.chance))
            if what == "weight":
                values[place] = 30.0 + 300.0 * torch.rand((), generator=self.chance)
            else:
                values[place : place + 1].view(torch.int32).bitwise_xor_(1 << 30)
        loss = nn.functional.cross_entropy(self.model(inputs).flatten(0, -2), labels.flatten())
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        for p in own:
            assert p.grad is not None
            if what == "gradient":
                p.grad.mul_(1000.0)
            elif what == "garbage":
                p.grad.copy_(3.0 * torch.randn(p.shape, generator=self.chance))
        if self.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach()

    def moves(self, num: int, first: int = 1, fault: Fault | None = None) -> Moves:
        """What the next steps did."""
        ring = Ring(True, Claim(None), strict=True)
        ring.attach(dict(self.model.named_parameters()))
        ring.after_step(first - 1)  # so that the first update is known
        for step in range(first, first + num):
            wrong = fault is not None and step < first + fault.length
            ring.say_loss(self.step(fault if wrong else None))
            ring.after_step(step)
        ring.look()
        return rows_of(ring.moves, slice(1, None))


def rows_of(moves: Moves, rows: slice) -> Moves:
    """Some of its steps."""
    parts = {name: part[rows] for name, part in vars(moves).items() if name != "blocks"}
    return Moves(blocks=moves.blocks, **parts)


def joined(first: Moves, then: Moves) -> Moves:
    """One after the other."""
    parts = {
        name: np.concatenate([part, vars(then)[name]])
        for name, part in vars(first).items()
        if name != "blocks"
    }
    return Moves(blocks=first.blocks, **parts)


def told(moves: Moves, fault: Fault, step: int) -> str:
    """What is said of a fault at a step."""
    events = [e for e in find_spikes(moves) if step <= e.onset_high <= step + fault.length + 20]
    if not events:
        return "untold"
    named = events[0].layers
    if not named:
        return "no block"
    return "right" if named == (fault.block,) and fault.what != "batch" else "wrong"


def judged(seed: int) -> tuple[Counter[tuple[str, int, str]], int]:
    """What is said of faults in copies of a training, and how often of the training itself."""
    rng, training = np.random.default_rng(seed), Training.begin(seed)
    plan = [
        (what, length)
        for length in LENGTHS
        for what in (*rng.choice(FAULTS, 2, replace=False).tolist(), "flip", "batch")
    ]
    rng.shuffle(plan)
    found: Counter[tuple[str, int, str]] = Counter()
    moves, steps = training.moves(EARLIEST - 1), rng.integers(EARLIEST, STEPS - SINCE, len(plan))
    for number, (step, (what, length)) in enumerate(zip(sorted(steps), plan, strict=True)):
        if later := int(step) - 1 - len(moves.steps):
            moves = joined(moves, training.moves(later, len(moves.steps) + 1))
        fault = Fault(str(what), str(rng.choice(moves.blocks)), int(length))
        wrong = training.copy(100 * seed + number).moves(SINCE, int(step), fault)
        kind = fault.what if fault.what in ("flip", "batch") else "block"
        found[kind, fault.length, told(joined(moves, wrong), fault, int(step))] += 1
    last = training.moves(STEPS - len(moves.steps), len(moves.steps) + 1)
    return found, len(find_spikes(joined(moves, last)))


def quiet(seed: int) -> Moves:
    """2,000 quiet steps of 12 blocks: the loss falls, noise is correlated or not."""
    rng, (num, blocks) = np.random.default_rng(seed), (2000, 12)
    noise = rng.standard_normal((num, 3 * blocks + 1))
    for step in range(1, num):
        noise[step] += (0.0, 0.5, 0.9)[seed % 3] * (noise[step - 1] - noise[step])
    loss = 2.5 + 3.0 * np.exp(-np.arange(num) / 400.0) + 0.05 * noise[:, -1]
    parts = np.exp(0.15 * noise[:, :-1]).reshape(num, 3, blocks).swapaxes(0, 1)
    names = np.array([f"h.{block}" for block in range(blocks)])
    return Moves(names, np.arange(1, num + 1), loss, 1e-3 * parts[0], parts[1], parts[2])


def measure(arguments: argparse.Namespace) -> tuple[str, list[Part]]:
    """All tables."""
    num = 1 if arguments.small else arguments.repeats
    found: Counter[tuple[str, int, str]] = Counter()
    alarms = 0
    for seed in range(FIRST_SEED, FIRST_SEED + num):
        counts, false = judged(seed)
        found, alarms = found + counts, alarms + false
    kinds = {"block": "of a block", "flip": "a flipped highest bit", "batch": "a wrong batch"}
    says = ("right", "no block", "untold", "wrong")
    rows = [
        [name, str(length), *(str(found[kind, length, one]) for one in says)]
        for kind, name in kinds.items()
        for length in LENGTHS
    ]
    num_quiet = 10 if arguments.small else QUIET
    false = sum(len(find_spikes(quiet(FIRST_SEED + i))) for i in range(num_quiet))
    goals = [
        Goal(
            f"right of {2 * num}, {length} steps",
            1.9 * num,
            found["block", length, "right"],
            False,
            "",
        )
        for length in LENGTHS
    ]
    wrong = sum(count for (_, _, one), count in found.items() if one == "wrong")
    goals.append(Goal("wrong blocks", 0, wrong, unit=""))
    goals.append(Goal(f"told of {num} quiet trainings", 0, alarms, unit=""))
    goals.append(Goal(f"told of {num_quiet} quiet series", 0, false, unit=""))
    return "Spikes", [(table(["fault", "steps", *says], rows), goals)]


if __name__ == "__main__":
    run("spikes", __doc__, measure, is_timed=False)
