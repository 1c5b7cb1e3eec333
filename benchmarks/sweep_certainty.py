"""Models of which much is zero, rounded or dead: does every one get an estimate or a reason?"""

from __future__ import annotations

import collections
from collections.abc import Callable

import torch
from reporting import Goal, Part, table
from torch import nn
from torch.nn import functional as F  # noqa: N812

import sparsitywatch as sw

Weights = Callable[[torch.Tensor], None]
Batch = tuple[torch.Tensor, torch.Tensor]


def _half_zero(weight: torch.Tensor) -> None:
    weight[weight.abs() < weight.abs().median()] = 0.0


def _rounded(steps: int) -> Weights:
    def rounded(weight: torch.Tensor) -> None:
        step = weight.abs().max() / steps
        weight.copy_((weight / step).round() * step)

    return rounded


def _two_of_four(weight: torch.Tensor) -> None:
    groups = weight.view(-1, 4)
    groups.scatter_(1, groups.abs().argsort(1)[:, :2], 0.0)


def _dead(weight: torch.Tensor) -> None:
    weight[: len(weight) // 2] *= 1e-6


#: What is done with every matrix; the biases of half of the units go where these are dead.
DAMAGE: dict[str, Weights] = {
    "half of the weights zero": _half_zero,
    "8 bits": _rounded(127),
    "4 bits": _rounded(7),
    "2 of 4": _two_of_four,
    "half of the units dead": _dead,
}
SEEDS, EXAMPLES = range(10), (32, 64, 128, 256)


def damaged(kind: str, seed: int) -> tuple[nn.Sequential, Callable[[torch.Tensor], torch.Tensor]]:
    """A small classifier after some training, with what is wrong with it, and the right answers."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)
    )
    teacher = torch.randn(12, 4)

    def answers(x: torch.Tensor) -> torch.Tensor:
        return torch.multinomial((x @ teacher).softmax(1), 1)[:, 0]

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        x = torch.randn(128, 12)
        optimizer.zero_grad()
        F.cross_entropy(model(x), answers(x)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        for layer in (model[0], model[2], model[4]):
            DAMAGE[kind](layer.get_parameter("weight"))
        if kind == "half of the units dead":
            for layer in (model[0], model[2]):
                layer.get_parameter("bias")[:16] = -1.0
    return model, answers


def certainty_part(*, small: bool) -> Part:
    """``sw.measure`` on each, with a loss and with an accuracy: what comes of it."""
    rows, num_errors, num_points = [], 0, 0
    seeds = SEEDS[:1] if small else SEEDS
    for kind in DAMAGE:
        found: collections.Counter[str] = collections.Counter()
        for seed in seeds:
            model, answers = damaged(kind, seed)
            for num in EXAMPLES:
                x = torch.randn(num, 12)
                y = answers(x)
                batches = [(x[i : i + 32], y[i : i + 32]) for i in range(0, num, 32)]
                for is_score in (False, True):
                    found[_outcome(model, batches, is_score=is_score)] += 1
        rows.append([kind, *(str(found[name]) for name in OUTCOMES)])
        num_errors += found["error"]
        num_points += found["an interval of width 0"]
    goals = [
        Goal("certainty: errors", 0.0, float(num_errors), unit=""),
        Goal("certainty: intervals of width 0", 0.0, float(num_points), unit=""),
    ]
    return table(["models", *OUTCOMES], rows), goals


OUTCOMES = ("estimate", "cannot say", "no reliance yet", "an interval of width 0", "error")


def _outcome(model: nn.Module, batches: list[Batch], *, is_score: bool) -> str:
    def value(model: nn.Module, batch: Batch) -> torch.Tensor:
        if is_score:
            right: torch.Tensor = model(batch[0]).argmax(1) == batch[1]
            return right.float()
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    proxy = sw.Proxy(batches, value, higher_is_better=is_score)
    try:
        estimate = sw.measure(model, proxy, scope="layers").essential_sparsity
    except Exception as error:  # noqa: BLE001  each counts
        print(f"{type(error).__name__}: {error}")
        return "error"
    assert estimate is not None
    if estimate.informative:
        return "estimate" if estimate.low < estimate.high else "an interval of width 0"
    assert estimate.reason
    return "cannot say" if estimate.reason.startswith("cannot say") else "no reliance yet"
