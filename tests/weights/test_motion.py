"""Dormant weights, against weights planted to be dormant."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sparsitywatch.errors import StateError
from sparsitywatch.weights.clock import DecayClock, group_membership
from sparsitywatch.weights.motion import Motion, why_not_measurable
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import Snapshot


class Planted:
    """A real AdamW on a layer half of whose units never get a gradient."""

    def __init__(self, decay: float = 0.5, optimizer: type = torch.optim.AdamW) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(20, 40, bias=False), nn.Linear(40, 2))
        self.optimizer = optimizer(self.model.parameters(), lr=1e-3, weight_decay=decay)
        self.scope, self.clock, self.step_count = Scope.of(self.model), DecayClock(), 0
        self.inputs = torch.randn(64, 20)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            hidden = self.model[0](self.inputs)
            alive = torch.cat([hidden[:, :10], torch.zeros(64, 30)], dim=1)  # 10 of 40 units live
            self.model[1](alive).square().mean().backward()
            self.optimizer.step()
            self.clock.advance(self.optimizer.param_groups)
            self.step_count += 1

    def look(self, motion: Motion):
        parameters = self.scope.parameters(self.model)
        return motion.look(
            Snapshot.of(self.model, self.scope, self.step_count),
            self.clock,
            group_membership(self.optimizer, parameters),
            why_not_measurable(self.optimizer),
        )


@pytest.mark.parametrize("decay", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("steps", [5, 60])
def test_dead_units_are_found_with_and_without_decay(decay: float, steps: int) -> None:
    planted, motion = Planted(decay), Motion()
    first = planted.look(motion)
    assert math.isnan(first.fraction)
    assert first.reason == "no earlier look"
    planted.train(steps)
    dormant = planted.look(motion)
    assert dormant.fraction == pytest.approx(0.75, abs=0.01)
    assert dormant.since_step == 0
    assert dormant.num_sampled == 800


def test_a_sample_estimates_the_whole() -> None:
    planted, motion = Planted(), Motion(num_samples=400)
    planted.look(motion)
    planted.train(10)
    dormant = planted.look(motion)
    assert dormant.num_sampled == 400
    assert dormant.fraction == pytest.approx(0.75, abs=0.08)


def test_the_sample_is_the_same_after_a_resume_and_leaves_the_global_rng_alone() -> None:
    planted, motion, resumed = Planted(), Motion(300, seed=3), Motion()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    planted.look(motion)
    assert torch.equal(torch.get_rng_state(), before)
    planted.train(7)
    resumed.load_state_dict(motion.state_dict())
    assert planted.look(resumed) == planted.look(motion)
    with pytest.raises(StateError, match="'before'"):
        resumed.load_state_dict({k: v for k, v in motion.state_dict().items() if k != "before"})


def test_no_step_since_the_last_look_is_said_so() -> None:
    planted, motion = Planted(), Motion()
    planted.look(motion)
    assert planted.look(motion).reason == "no in-scope weight was trained since"


@pytest.mark.parametrize(
    ("optimizer", "decay", "reason"),
    [
        (torch.optim.AdamW, 0.1, ""),
        (torch.optim.Adam, 0.0, ""),
        (torch.optim.Adam, 0.1, "part of the gradient"),
        (torch.optim.SGD, 0.1, "not of the size of lr"),
    ],
)
def test_where_the_rule_does_not_hold_there_is_no_number(optimizer, decay, reason) -> None:
    planted, motion = Planted(decay, optimizer), Motion()
    planted.look(motion)
    planted.train(3)
    dormant = planted.look(motion)
    assert math.isnan(dormant.fraction) == bool(reason)
    assert reason in dormant.reason
