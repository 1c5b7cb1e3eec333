"""What a live watch says of weights that are changed by hand between two steps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import sparsitywatch as sw


def watched(change: Callable[[nn.Module], None], **options) -> list[sw.Event]:
    """Events of a model that nothing trains, changed after twenty looks."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 200), nn.ReLU(), nn.Linear(200, 100), nn.Linear(100, 2))
    for layer in (model[0], model[2]):
        nn.init.normal_(layer.weight, std=0.02)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with sw.watch(
        model, optimizer, logdir=None, every=1, max_overhead=None, strict=True, on_event=[],
        **options,
    ) as watcher:  # fmt: skip
        for step in range(40):
            if step == 20:
                with torch.no_grad():
                    change(model)
            optimizer.step()
    return [event for event in watcher.events if event.is_of_series]  # no gradient is given


def multiply(model: nn.Module) -> None:
    for layer in (model[0], model[2]):
        layer.weight *= 0.4


def zero_some(model: nn.Module) -> None:
    for layer in (model[0], model[2]):
        layer.weight[torch.rand_like(layer.weight) < 0.2] = 0.0


def both(model: nn.Module) -> None:
    multiply(model)
    model[0].weight[torch.rand_like(model[0].weight) < 0.25] = 0.0


@pytest.mark.slow
@pytest.mark.parametrize("change", [multiply, zero_some, both])
def test_scale_or_shape(change: Callable[[nn.Module], None]) -> None:
    (event,) = watched(change)
    expected = {multiply: "scale", zero_some: "shape", both: "both"}
    assert (event.change, event.trend) == (expected[change], "sparsifying")
    assert event.before_step == 20
    assert event.explained_by_decay is False  # this optimizer decays nothing


@pytest.mark.slow
def test_two_rules_make_one_event() -> None:
    rules = ("near_zero/rms_0.1", "near_zero/initial_0.1", "near_zero/zero")
    (event,) = watched(zero_some, detectors={name: sw.detectors.AbruptChange() for name in rules})
    assert {event.series, *event.related} == set(rules)
    assert event.course == "settled"
