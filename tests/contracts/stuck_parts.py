"""Trainings of which one part stands still, or two, and what has to be told of each.

``python tests/contracts/stuck_parts.py [words]`` prints how each is told, by optimizer.
"""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import torch
from contracts import fault_zoo, healthy_zoo, turned_sparse
from contracts.course import WIDTH, Course, Residual
from contracts.fault_zoo import EVERY, Linear, matrices
from torch import nn

import sparsitywatch as sw

MIDDLE, END = 40, 80  # steps
BY = ("adam", "adamw", "sgd")  # optimizers

Plant = Callable[[Course], Iterable[str]]


@dataclass(frozen=True)
class Stuck:
    """What is done to a training, and what is told of it: once, by its cause."""

    plant: Plant  # gives the tensors that are stuck
    kinds: tuple[str, ...] = ()  # of the events that ask for a look, in turn; several by "|"
    onset: int = 0  # the last step before it
    notes: tuple[str, ...] = ()  # of what does not
    within: int = 3  # snapshots until the first is told


class Part(Course):
    """A course that also knows Adam, without decay."""

    def optimizer_of(self, params: Iterable[Any], **changes: float) -> torch.optim.Optimizer:
        if self.optimizer_name == "adam":
            return torch.optim.Adam(params, **{"lr": 3e-3} | changes)
        return super().optimizer_of(params, **changes)


def rate_of(course: Course) -> float:
    (rate,) = {group["lr"] for group in course.optimizer.param_groups}
    return rate


def of_layer(course: Course, number: int = 1, part: str = "") -> list[str]:
    return [n for n in course.names if n.startswith(f"layers.{number}.{part}")]


# ------------------------------------------------------------------ adapters


def adapted(course: Course) -> tuple[list[str], list[str]]:
    """Adapters on all linear layers of the blocks; gives both halves."""
    course.model.requires_grad_(False)
    for layer in course.model.layers:
        layer.up, layer.down = healthy_zoo.Adapted(layer.up), healthy_zoo.Adapted(layer.down)
    course.model.head.requires_grad_(True)
    course.watching["scope"] = ["*lora_*"]
    course.make_optimizer(lr=rate_of(course) / 10)
    return ([n for n in course.names if "lora_A" in n], [n for n in course.names if "lora_B" in n])


def lora_left_out(course: Course) -> list[str]:
    _, second = adapted(course)
    chosen = second[2:4]
    course.make_optimizer(lambda name, _: name not in chosen, lr=rate_of(course))
    return chosen


def without_graph_of_product(
    own: nn.Module, inputs: tuple[torch.Tensor], _: object
) -> torch.Tensor:
    (x,) = inputs
    return own.base(x) + (x @ own.lora_A.T @ own.lora_B.T).detach()


def lora_detached(course: Course, onset: int = 0) -> list[str]:
    """Of one layer the product is detached."""
    first, second = adapted(course)

    def cut() -> None:
        for layer in (course.model.layers[1].up, course.model.layers[1].down):
            layer.register_forward_hook(without_graph_of_product)

    fault_zoo.from_then_on(course, onset, cut)
    return [*first[2:4], *second[2:4]]


def lora_frozen(course: Course) -> list[str]:
    """The second half of some is at zero and frozen, so that the first gets a gradient of zero."""
    first, second = adapted(course)
    for name in second[2:4]:
        course.named[name].requires_grad_(False)
    course.make_optimizer(lr=rate_of(course))
    return first[2:4]


# ------------------------------------------------------------------ experts


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router = Linear(WIDTH, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(Linear(WIDTH, 24), nn.ReLU(), Linear(24, WIDTH)) for _ in range(4)
        )
        self.avoided: int | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.router(x)
        if self.avoided is not None:
            logits = logits - 1e4 * (torch.arange(4) == self.avoided)
        weights = logits.softmax(-1)
        best = (weights.detach() + 0.3 * torch.rand_like(weights) * (weights > 0)).argmax(-1)
        found = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            chosen = best == index
            if chosen.any():
                found[chosen] = expert(x[chosen]) * weights[chosen][:, index, None]
        return x + found


def expert_idle(course: Course, onset: int = 0) -> list[str]:
    course.model.layers[1] = Experts()
    course.make_optimizer()
    fault_zoo.from_then_on(course, onset, lambda: setattr(course.model.layers[1], "avoided", 2))
    return of_layer(course, 1, "experts.2")


def healthy_experts(course: Course) -> list[str]:
    course.model.layers[1] = Experts()
    course.make_optimizer()
    return []


# ------------------------------------------------------------------ blocks, gradients, rates


def detached(course: Course, onset: int = 0) -> list[str]:
    """What a block adds is detached."""
    layer = course.model.layers[1].down
    fault_zoo.from_then_on(
        course, onset, lambda: layer.register_forward_hook(lambda _, __, out: out.detach())
    )
    return of_layer(course)


def units_dead(course: Course) -> list[str]:
    """All units of a layer get a bias far below zero at once."""

    @torch.no_grad()
    def kill() -> None:
        course.model.layers[1].up.bias.fill_(-30.0)

    course.after(MIDDLE, kill)
    return of_layer(course)[:-1]


def most_units_dead(course: Course) -> list[str]:
    @torch.no_grad()
    def kill() -> None:
        course.model.layers[1].up.bias[:60] = -30.0

    course.after(MIDDLE, kill)
    return of_layer(course)[:-1]


def hooked(course: Course, onset: int = 0) -> list[str]:
    chosen = of_layer(course)

    def hook() -> None:
        for name in chosen:
            course.named[name].register_hook(torch.zeros_like)

    fault_zoo.from_then_on(course, onset, hook)
    return chosen


def copied_back(course: Course, onset: int = 0, number: int = 1) -> list[str]:
    chosen = of_layer(course, number)
    kept: dict[str, torch.Tensor] = {}

    def restore(step: int) -> None:
        if step == max(onset, 1):
            kept.update({name: course.named[name].detach().clone() for name in chosen})
        for name, weight in kept.items():
            course.named[name].data.copy_(weight)

    course.around(restore)
    return chosen


def head_copied(course: Course) -> list[str]:
    tokens = course.model.tokens.weight
    course.model.head = Linear(fault_zoo.WIDTH, fault_zoo.VOCABULARY)
    course.model.head.weight.data.copy_(tokens.detach())
    course.make_optimizer()
    return ["head.weight", "tokens.weight"]


def without_rate(course: Course, onset: int = 0) -> list[str]:
    chosen = of_layer(course)
    course.make_optimizer(lambda name, _: name not in chosen)
    rate = rate_of(course)
    own = [course.named[name] for name in chosen]
    course.optimizer.add_param_group({"params": own, "lr": 0.0 if not onset else rate})
    if onset:
        course.after(onset, lambda: course.optimizer.param_groups[-1].update(lr=0.0))
    return chosen


def left_out(course: Course, number: int = 1) -> list[str]:
    chosen = of_layer(course, number)
    course.make_optimizer(lambda name, _: name not in chosen)
    return chosen


class Saturable(Residual):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


def saturated(course: Course, onset: int = 0) -> list[str]:
    """Huge weights into a tanh."""
    layer = course.model.layers[1]
    layer.__class__ = Saturable

    @torch.no_grad()
    def grow() -> None:
        layer.up.weight.mul_(1e8)

    fault_zoo.from_then_on(course, onset, grow)
    return of_layer(course)[:-2]


def healthy_tanh(course: Course) -> list[str]:
    course.model.layers[1].__class__ = Saturable
    return []


# ------------------------------------------------------------------ two causes


def two_left_out(course: Course) -> list[str]:
    """A layer is in no optimizer, and later another one is detached."""
    chosen = left_out(course, 0)
    layer = course.model.layers[2].down
    course.after(MIDDLE, lambda: layer.register_forward_hook(lambda _, __, out: out.detach()))
    return [*chosen, *of_layer(course, 2)]


def dead_then_sparse(course: Course) -> list[str]:
    """A block is detached, and later others are pruned."""
    chosen = detached(course)
    names = tuple(n for n in matrices(course) if n.startswith(("layers.0", "layers.2")))
    turned_sparse.pruned(0.9, MIDDLE, names)(course)
    return [*chosen, *names]


def later(plant: Callable[..., list[str]]) -> Plant:
    return lambda course: plant(course, MIDDLE)


UNTRAINED, LATE = ("untrained",), 9  # snapshots, where nothing is told for 32 steps
STUCK: dict[str, Stuck] = {
    "LoRA, B in no optimizer": Stuck(lora_left_out, UNTRAINED),
    "LoRA, detached": Stuck(lora_detached, ("no_gradient",), within=LATE),
    "LoRA, detached later": Stuck(later(lora_detached), UNTRAINED, MIDDLE),
    "LoRA, B frozen at zero": Stuck(lora_frozen, ("no_gradient",), within=LATE),
    "expert idle": Stuck(expert_idle, notes=("unreached",)),
    "expert idle later": Stuck(later(expert_idle), (), MIDDLE, ("unreached",)),
    "block detached": Stuck(detached, UNTRAINED),
    "block detached later": Stuck(later(detached), UNTRAINED, MIDDLE),
    "all units dead": Stuck(units_dead, UNTRAINED, MIDDLE),
    "most units dead": Stuck(most_units_dead, ("dead_units",), MIDDLE),
    "hooked to zero": Stuck(hooked, UNTRAINED),
    "hooked to zero later": Stuck(later(hooked), UNTRAINED, MIDDLE),
    "copied back": Stuck(copied_back, UNTRAINED),
    "copied back later": Stuck(later(copied_back), UNTRAINED, MIDDLE),
    "head copied": Stuck(head_copied, ("untied",)),
    "rate of 0": Stuck(without_rate, notes=("no_rate",), within=LATE),
    "in no optimizer": Stuck(left_out, UNTRAINED),
    "saturated": Stuck(saturated, ("no_gradient",), within=LATE),
    "saturated later": Stuck(later(saturated), ("untrained|overwritten|blew_up",), MIDDLE),
    "two parts": Stuck(two_left_out, ("untrained", "untrained")),
    "dead, then sparse": Stuck(dead_then_sparse, ("untrained", "abrupt"), notes=("written",)),
    "healthy LoRA": Stuck(lambda course: adapted(course)[:0]),
    "healthy experts": Stuck(healthy_experts),
    "healthy tanh": Stuck(healthy_tanh),
}


def wrong(name: str, optimizer: str, seed: int = 7) -> tuple[str, list[sw.Event]]:
    """What is told of a training otherwise than it ought to be, empty if nothing; and what is."""
    stuck = STUCK[name]
    model = "encoder" if stuck.plant is head_copied else "classifier"
    course = Part(model, optimizer, seed, last=END)
    names = {*stuck.plant(course)}
    events = list(course.run().events)
    about = [e for e in events if e.layers]  # how the value stands is another matter
    # of some that are dormant, too, and of those alone, a note asks for a look
    alarms = [e for e in about if e.severity != "note" and e.kind not in stuck.notes]
    notes = [e for e in about if e not in alarms and e.kind not in ("abrupt", "sparser")]
    first = next(iter([*alarms, *notes]), None)
    if len(alarms) != len(stuck.kinds):
        return f"{len(alarms)} alarms, not {len(stuck.kinds)}", events
    if any(e.kind not in kind.split("|") for e, kind in zip(alarms, stuck.kinds, strict=True)):
        return f"not {stuck.kinds}", events
    if tuple(e.kind for e in notes) != stuck.notes:
        return f"not the notes {stuck.notes}", events
    if any(not names.issuperset(e.layers) for e in (*alarms, *notes)):
        return "tensors that are well", events
    if first is not None and not 0 < first.detected_step - stuck.onset <= stuck.within * EVERY:
        return f"not within {stuck.within} snapshots", events
    return "", events


def main() -> None:
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    words, right = sys.argv[1:], []
    for name, optimizer in itertools.product(STUCK, BY):
        if words and not any(word in name for word in words):
            continue
        why, events = wrong(name, optimizer)
        right.append(not why)
        print(f"{name:26} {optimizer:6} {why or 'right'}", flush=True)
        for e in events:
            num = (e.detected_step - STUCK[name].onset) / EVERY
            print(f"      {e.severity:5} {e.kind:12} after {num:.0f} snapshots: {e.describe()}")
    print(f"{sum(right)} of {len(right)}")


if __name__ == "__main__":
    main()
