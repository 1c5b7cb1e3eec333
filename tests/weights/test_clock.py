"""The decay clock, against the weights that real optimizers shrink."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from sparsitywatch.weights.clock import DecayClock, group_membership, masters_of, weight_average
from sparsitywatch.weights.scope import Scope


def run(steps: int) -> tuple[nn.Sequential, DecayClock, dict[str, int], torch.Tensor, Scope]:
    """A model whose first layer gets no gradient, under AdamW with a schedule."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)).double()
    groups = [
        {"params": [model[0].weight], "weight_decay": 0.7},
        {"params": [model[1].weight], "weight_decay": 0.0},
        {"params": [model[2].weight, model[0].bias, model[1].bias, model[2].bias]},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.1, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    clock, scope, start = DecayClock(), Scope.of(model), model[0].weight.detach().clone()
    for _ in range(steps):
        optimizer.zero_grad()
        model[1:](torch.ones(5, 4, dtype=torch.float64)).sum().backward()
        model[0].weight.grad = torch.zeros_like(model[0].weight)
        optimizer.step()
        clock.advance(optimizer)
        scheduler.step()
    return model, clock, group_membership(optimizer, scope.parameters(model)), start, scope


def test_a_weight_without_gradient_shrinks_as_the_clock_says() -> None:
    model, clock, membership, start, _ = run(20)
    shrink = math.exp(clock.groups[membership["0.weight"]].log_shrink)
    torch.testing.assert_close(model[0].weight.detach(), shrink * start, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.8, "dampening": 0.3},
        {"momentum": 0.9, "foreach": True},
    ],
)
def test_sgd_shrinks_a_weight_as_the_clock_says_with_momentum_too(options: dict[str, Any]) -> None:
    weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=0.1, weight_decay=1e-4, **options)
    clock, early = DecayClock(), 0.0
    for step in range(300):
        weight.grad = torch.zeros_like(weight)
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 400)
        optimizer.step()
        clock.advance(optimizer)
        if step == 4:  # the buffer is still filling
            early = -math.log(weight[0].item())
            assert clock.groups[0].decay == pytest.approx(early, rel=1e-3)
    assert clock.groups[0].decay == pytest.approx(-math.log(weight[0].item()), rel=1e-3)
    assert clock.groups[0].log_shrink == pytest.approx(-clock.groups[0].decay, rel=1e-3)


def test_momentum_that_decay_does_not_go_through_leaves_the_clock_alone() -> None:
    class SGDW(torch.optim.Optimizer):
        """Momentum as that of SGD, with decay beside it."""

    weight = nn.Parameter(torch.ones(3))
    clock = DecayClock()
    for _ in range(20):
        clock.advance(SGDW([weight], {"lr": 0.1, "weight_decay": 0.01, "momentum": 0.9}))
    assert clock.groups[0].decay == pytest.approx(20 * 0.1 * 0.01)


def test_the_reading_is_the_mean_over_in_scope_weights() -> None:
    _, clock, membership, _, scope = run(20)
    lr_sum = sum(0.1 * 0.9**k for k in range(20))
    assert clock.groups[0].lr == pytest.approx(lr_sum)
    assert clock.groups[0].decay == pytest.approx(0.7 * lr_sum)
    # 12 weights with decay 0.7, 16 with none
    decay, lr = clock.averages(membership, scope)
    assert decay == pytest.approx(0.7 * lr_sum * 12 / 28)
    assert lr == pytest.approx(lr_sum)
    assert weight_average([2.0, 9.0], {"0.weight": 0}, scope) == pytest.approx(2.0 * 12 / 28)


def test_weights_that_no_group_trains_stand_still() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD([model[1].weight], lr=1.0)
    scope = Scope.of(model)
    assert group_membership(optimizer, scope.parameters(model)) == {}
    assert DecayClock().averages({}, scope) == (0.0, 0.0)


def test_the_masters_of_low_precision_weights_are_found() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    weights = {f"{k}.weight": model[k].weight for k in range(4)}
    masters = {name: nn.Parameter(w.detach().clone()) for name, w in weights.items()}
    model.to(torch.bfloat16)
    del masters["3.weight"]  # not trained
    groups = [{"params": [masters[f"{k}.weight"]]} for k in (2, 0, 1)]
    found = masters_of(torch.optim.AdamW(groups), weights)
    assert {name: id(p) for name, p in found.items()} == {n: id(p) for n, p in masters.items()}
    with torch.no_grad():
        masters["1.weight"].mul_(1.5)
    assert masters_of(torch.optim.AdamW(groups), weights).keys() == {"0.weight", "2.weight"}


def test_what_the_optimizer_trains_itself_has_no_master() -> None:
    layer = nn.Linear(3, 3)
    copy = nn.Parameter(layer.weight.detach().double())
    optimizer = torch.optim.AdamW([layer.weight, copy])
    assert masters_of(optimizer, {"weight": layer.weight}) == {}


def test_equal_masters_in_different_groups_are_not_told_apart() -> None:
    weight = nn.Parameter(torch.zeros(3, 3, dtype=torch.bfloat16))
    groups = [{"params": [nn.Parameter(torch.zeros(3, 3))]} for _ in range(2)]
    assert masters_of(torch.optim.AdamW(groups), {"weight": weight}) == {}


def test_steps_and_squares_are_counted() -> None:
    clock = DecayClock()
    for lr in (0.0, 0.1, 0.3):
        clock.advance(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr))
    assert clock.groups[0].lr_squared == pytest.approx(0.1)
    assert clock.groups[0].steps == 2
    assert clock.groups[0].since(clock.copy().groups[0]).steps == 0


def test_state_round_trip() -> None:
    _, clock, _, _, _ = run(3)
    other = DecayClock()
    other.load_state_dict(clock.state_dict())
    assert other == clock
    assert clock.copy() == clock
    assert clock.copy().groups[0] is not clock.groups[0]
