"""What moved since the last look, against weights planted to be dormant and numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from sparsitywatch.errors import StateError
from sparsitywatch.live.trace import OptimizerTrace
from sparsitywatch.weights.clock import DecayClock, OptimizerReading, group_membership
from sparsitywatch.weights.motion import Motion, Moved, why_not_measurable
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import Snapshot


def compared(motion: Motion, snapshot: Snapshot, clock: DecayClock) -> Moved:
    reading = OptimizerReading(
        clock=clock, membership={"0.weight": 0}, not_measurable=("",) * len(clock.groups)
    )
    return motion.compare(motion.sampler.take(snapshot), snapshot.step, reading)


class Planted:
    """A real optimizer on a layer three quarters of whose units never get a gradient.

    With ``dtype`` the model is a copy in lower precision of the masters that are trained, or,
    ``in_place``, is trained in it.
    """

    def __init__(
        self,
        decay: float = 0.5,
        optimizer: type = torch.optim.AdamW,
        lr: float = 1e-3,
        dtype: torch.dtype = torch.float32,
        in_place: bool = False,
        **options: float,
    ) -> None:
        torch.manual_seed(0)
        self.trained = nn.Sequential(nn.Linear(20, 40, bias=False), nn.Linear(40, 2))
        self.model = self.trained
        if in_place:
            self.trained.to(dtype)
        elif dtype != torch.float32:
            self.model = nn.Sequential(nn.Linear(20, 40, bias=False), nn.Linear(40, 2)).to(dtype)
            self.model.load_state_dict(self.trained.state_dict())
        self.dtype = self.trained[0].weight.dtype
        self.optimizer = optimizer(self.trained.parameters(), lr=lr, weight_decay=decay, **options)
        self.scope, self.step_count = Scope.of(self.model), 0
        self.inputs = torch.randn(256, 20, dtype=self.dtype)
        self.targets = torch.randn(256, 2, dtype=self.dtype)
        self.trace = OptimizerTrace(self.optimizer, self.scope, None)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            batch = torch.randint(256, (64,))
            self.optimizer.zero_grad()
            hidden = self.trained[0](self.inputs[batch])
            dead = torch.zeros(64, 30, dtype=self.dtype)
            alive = torch.cat([hidden[:, :10], dead], dim=1)  # 10 of 40 units live
            (self.trained[1](alive) - self.targets[batch]).square().mean().backward()
            self.optimizer.step()
            self.trace.advance()
            self.step_count += 1
        if self.model is not self.trained:
            self.model.load_state_dict(self.trained.state_dict())

    def look(self, motion: Motion, thresholds: dict[str, float] | None = None) -> Moved:
        reading = self.trace.reading(self.scope.parameters(self.model))
        snapshot = Snapshot.of(self.model, self.scope, self.step_count)
        return motion.compare(motion.sampler.take(snapshot), self.step_count, reading, thresholds)

    def moved(self, steps: int, motion: Motion | None = None) -> Moved:
        motion = motion or Motion(None)
        self.look(motion)
        self.train(steps)
        return self.look(motion)


@pytest.mark.parametrize("decay", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("steps", [5, 60])
def test_dead_units_are_found_with_and_without_decay(decay: float, steps: int) -> None:
    planted, motion = Planted(decay), Motion()
    first = planted.look(motion).dormant
    assert math.isnan(first.fraction)
    assert first.reason == "no earlier look"
    planted.train(steps)
    moved = planted.look(motion)
    assert moved.dormant.fraction == pytest.approx(0.75, abs=0.02)
    assert moved.dormant.since_step == 0
    assert moved.dormant.num_sampled == 800
    assert not moved.dormant.estimated
    assert moved.layers == {"0.weight": moved.dormant.fraction}


def test_numbers_against_numpy() -> None:
    planted, motion = Planted(decay=2.0), Motion(None)
    planted.look(motion)
    before = planted.model[0].weight.detach().numpy().astype(np.float64)
    planted.train(30)
    now = planted.model[0].weight.detach().numpy().astype(np.float64)
    moved = planted.look(motion)
    change = now - (1 - 1e-3 * 2.0) ** 30 * before
    rms = math.sqrt((change**2).mean() / (before**2).mean())
    assert moved.movement.update_to_weight == pytest.approx(rms, rel=1e-9)
    assert moved.movement.sign_flips == (np.sign(before) != np.sign(now)).mean()
    assert moved.movement.sign_flips > 0
    assert moved.dormant.fraction == (np.abs(change) <= 1e-3 * 30 * 1e-3).mean()


def test_a_sample_estimates_the_whole() -> None:
    planted, motion = Planted(), Motion(num_samples=400)
    planted.look(motion)
    planted.train(10)
    dormant = planted.look(motion).dormant
    assert dormant.num_sampled == 400
    assert dormant.fraction == pytest.approx(0.75, abs=0.08)


@pytest.mark.parametrize("num_samples", [300, None])
def test_the_sample_is_the_same_after_a_resume_and_leaves_the_global_rng_alone(num_samples) -> None:
    planted, motion, resumed = Planted(), Motion(num_samples, seed=3), Motion()
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
    moved = planted.look(motion)
    assert moved.dormant.reason == "no in-scope weight was trained since"
    assert math.isnan(moved.movement.sign_flips)


@pytest.mark.parametrize(
    ("optimizer", "decay", "reason"),
    [
        (torch.optim.AdamW, 0.1, ""),
        (torch.optim.Adam, 0.0, ""),
        (torch.optim.NAdam, 0.0, ""),
        (torch.optim.Adam, 0.1, "part of the gradient"),
        (torch.optim.Adamax, 0.1, "part of the gradient"),
        (torch.optim.SGD, 0.1, "not of the size of lr"),
    ],
)
def test_where_the_rule_does_not_hold_there_is_no_number(optimizer, decay, reason) -> None:
    planted, motion = Planted(decay, optimizer), Motion()
    planted.look(motion)
    planted.train(25)
    moved = planted.look(motion)
    assert math.isnan(moved.dormant.fraction) == bool(reason)
    assert reason in moved.dormant.reason
    assert moved.layers.keys() == (set() if reason else {"0.weight"})
    assert moved.movement.update_to_weight > 0  # known for every optimizer
    assert moved.movement.since_step == 0


def test_each_group_has_its_own_decay_and_its_own_reason() -> None:
    model = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30), nn.Linear(30, 2))
    groups = [
        {"params": [model[0].weight], "lr": 1e-2, "weight_decay": 1.0},
        {"params": [model[1].weight], "lr": 1e-3, "weight_decay": 0.0},
    ]
    coupled, free = why_not_measurable(torch.optim.Adam([dict(group) for group in groups]))
    assert "not decoupled" in coupled
    assert free == ""
    optimizer = torch.optim.AdamW(groups)
    assert why_not_measurable(optimizer) == ("", "")
    scope, clock, motion = Scope.of(model, "layers"), DecayClock(), Motion()

    def look() -> Moved:
        parameters = scope.parameters(model)
        membership = group_membership(optimizer, parameters)
        reading = OptimizerReading(clock=clock, membership=membership)
        return motion.compare(motion.sampler.take(Snapshot.of(model, scope, 0)), 0, reading)

    look()
    for _ in range(20):
        for k in (0, 1):
            model[k].weight.grad = torch.zeros(30, 30)
            model[k].weight.grad[: 10 * (k + 1)] = torch.randn(10 * (k + 1), 30)
        optimizer.step()
        clock.advance(optimizer.param_groups)
    # 20 and 10 of 30 rows got no gradient; what passes by chance is a percent or so
    assert look().layers == pytest.approx({"0.weight": 2 / 3, "1.weight": 1 / 3}, abs=0.03)


# ------------------------------------------------------------------ low precision


@pytest.mark.parametrize("decay", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("steps", [25, 100])
def test_rounding_of_a_copy_makes_nothing_dormant_or_alive(decay: float, steps: int) -> None:
    truth = Planted(decay, lr=3e-3).moved(steps).dormant
    copy = Planted(decay, lr=3e-3, dtype=torch.bfloat16)
    dormant = copy.moved(steps).dormant
    assert dormant.reason == ""
    assert truth.fraction == pytest.approx(0.75, abs=0.02)
    # what passes by chance is more, and known
    assert dormant.chance < 0.1
    assert dormant.fraction == pytest.approx(0.75 + 0.25 * dormant.chance, abs=0.03)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_dtype_too_coarse_for_the_updates_says_so(in_place: bool) -> None:
    coarse = Planted(0.1, lr=3e-5, dtype=torch.bfloat16, in_place=in_place)
    dormant = coarse.moved(25).dormant
    assert math.isnan(dormant.fraction)
    assert "too coarse" in dormant.reason
    assert not Planted(0.1, lr=3e-5).moved(25).dormant.reason


@pytest.mark.parametrize("decay", [0.0, 0.01, 0.1])
def test_weights_trained_in_bfloat16_itself(decay: float) -> None:
    """A decay of less than half a spacing a step is rounded away: dead weights stand still."""
    planted = Planted(decay, lr=3e-3, dtype=torch.bfloat16, in_place=True)
    dormant = planted.moved(50).dormant
    assert dormant.reason == ""
    assert dormant.fraction == pytest.approx(0.75, abs=0.05)


def test_decay_that_is_rounded_at_each_step_cannot_be_told_from_gradients() -> None:
    planted = Planted(1.0, lr=3e-3, dtype=torch.bfloat16, in_place=True)
    assert "decay is rounded" in planted.moved(50).dormant.reason


# ------------------------------------------------------------------ a collapsed model


def test_after_a_spike_of_the_learning_rate_slow_weights_are_not_dormant() -> None:
    """Squared gradients of the spike make later updates tiny beside lr; nothing is dead."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(60, 60) * 0.05)
    optimizer = torch.optim.AdamW([weight], lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    model = nn.Sequential(nn.Linear(60, 60), nn.Linear(60, 2))
    model[0].weight = weight
    scope, clock, motion = Scope.of(model), DecayClock(), Motion()
    seen = []
    for step in range(1, 126):
        weight.grad = torch.randn(60, 60) * (1e4 if 51 <= step <= 55 else 1.0)
        optimizer.step()
        clock.advance(optimizer.param_groups)
        if step % 25 == 0:
            seen.append(compared(motion, Snapshot.of(model, scope, step), clock))
    dormant = [moved.dormant for moved in seen]
    assert dormant[1].fraction < 0.02
    assert dormant[1].chance == pytest.approx(dormant[1].fraction, abs=0.005)
    for later in dormant[3:]:
        assert math.isnan(later.fraction)
        assert later.reason == "updates are far smaller than the learning rate"
    assert seen[-1].layers == {}


@pytest.mark.parametrize("every", [1, 10, 100])
def test_the_share_that_passes_by_chance_is_foretold(every: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 100), nn.Linear(100, 2))
    optimizer = torch.optim.AdamW([model[0].weight], lr=1e-3, weight_decay=0.1)
    scope, clock, motion = Scope.of(model), DecayClock(), Motion()
    found = []
    for step in range(1, 201 + every):
        model[0].weight.grad = torch.randn(100, 200)
        optimizer.step()
        clock.advance(optimizer.param_groups)
        if step > 200 - every and step % every == 0:
            found.append(compared(motion, Snapshot.of(model, scope, step), clock))
    dormant = found[-1].dormant
    deviation = math.sqrt(dormant.chance / dormant.num_sampled)
    assert dormant.fraction == pytest.approx(dormant.chance, rel=0.15, abs=3 * deviation)


# ------------------------------------------------------------------ the projection


def test_the_outlook_counts_when_dormant_weights_fall_below_the_threshold() -> None:
    planted, motion = Planted(decay=2.0), Motion(None)
    planted.look(motion)
    planted.train(25)
    projection = planted.look(motion, {"0.weight": 0.02}).dormant.projection
    weights = planted.model[0].weight.detach().abs().numpy()
    dead, living = weights[10:], weights[:10]
    for k in (0, 5, 20):
        reach = 0.02 * math.exp(projection.advance[k])
        assert projection.dormant[k] == pytest.approx((dead <= reach).sum() / 800, abs=0.01)
        assert projection.entering[k] == pytest.approx((living <= reach).mean(), abs=0.05)


@pytest.mark.parametrize(
    ("decay", "thresholds"), [(0.0, {"0.weight": 0.02}), (1.0, {"0.weight": 0.0}), (1.0, {})]
)
def test_without_a_clock_or_a_threshold_there_is_no_outlook(decay, thresholds) -> None:
    planted, motion = Planted(decay), Motion(None)
    planted.look(motion)
    planted.train(25)
    assert planted.look(motion, thresholds).dormant.projection is None
