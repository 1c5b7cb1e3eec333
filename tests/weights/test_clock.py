"""The decay clock, against the weights that real optimizers shrink."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sparsitywatch.weights.clock import ClockReading, DecayClock, group_membership, weight_average
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
        clock.advance(optimizer.param_groups)
        scheduler.step()
    return model, clock, group_membership(optimizer, scope.parameters(model)), start, scope


def test_a_weight_without_gradient_shrinks_as_the_clock_says() -> None:
    model, clock, membership, start, _ = run(20)
    shrink = math.exp(clock.groups[membership["0.weight"]].log_shrink)
    torch.testing.assert_close(model[0].weight.detach(), shrink * start, rtol=1e-12, atol=0)


def test_the_reading_is_the_mean_over_in_scope_weights() -> None:
    _, clock, membership, _, scope = run(20)
    lr_sum = sum(0.1 * 0.9**k for k in range(20))
    assert clock.groups[0].lr == pytest.approx(lr_sum)
    assert clock.groups[0].decay == pytest.approx(0.7 * lr_sum)
    # 12 weights with decay 0.7, 16 with none
    reading = clock.reading(membership, scope)
    assert reading.decay == pytest.approx(0.7 * lr_sum * 12 / 28)
    assert reading.lr == pytest.approx(lr_sum)
    assert weight_average([2.0, 9.0], {"0.weight": 0}, scope) == pytest.approx(2.0 * 12 / 28)


def test_weights_that_no_group_trains_stand_still() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD([model[1].weight], lr=1.0)
    scope = Scope.of(model)
    assert group_membership(optimizer, scope.parameters(model)) == {}
    assert DecayClock().reading({}, scope) == ClockReading(decay=0.0, lr=0.0)


def test_state_round_trip() -> None:
    _, clock, _, _, _ = run(3)
    other = DecayClock()
    other.load_state_dict(clock.state_dict())
    assert other == clock
    assert clock.copy() == clock
    assert clock.copy().groups[0] is not clock.groups[0]
