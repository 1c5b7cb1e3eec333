"""What moved since the last snapshot, against weights planted to be dormant, numpy and AdamW."""

from __future__ import annotations

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from contracts.traced import Traced
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsitywatch.errors import StateError
from sparsitywatch.weights import motion as motion_module
from sparsitywatch.weights.clock import Clock
from sparsitywatch.weights.motion import (
    MASK_LEVELS,
    MotionReading,
    MotionTracker,
    estimate_between,
    overlap,
    removed,
)
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import Snapshot, float64_of
from sparsitywatch.weights.spectrum.histogram import STORAGES


def compared(motion: MotionTracker, snapshot: Snapshot, traced: Traced) -> MotionReading:
    sample = motion.sampler.take(snapshot)
    return motion.compare(snapshot.step, sample, optimizer=traced.reading())


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
    ) -> None:
        torch.manual_seed(0)
        self.trained = nn.Sequential(nn.Linear(20, 40, bias=False), nn.Linear(40, 2))
        self.model = self.trained
        if in_place:
            self.trained.to(dtype)
        elif dtype != torch.float32:
            self.model = copy.deepcopy(self.trained).to(dtype)
        self.dtype = self.trained[0].weight.dtype
        self.optimizer = optimizer(self.trained.parameters(), lr=lr, weight_decay=decay)
        self.scope, self.step_count = Scope.of(self.model), 0
        self.inputs = torch.randn(256, 20, dtype=self.dtype)
        self.targets = torch.randn(256, 2, dtype=self.dtype)
        self.traced = Traced(self.optimizer, parameters=self.scope.parameters(self.model))

    def train(self, steps: int) -> None:
        for _ in range(steps):
            batch = torch.randint(256, (64,))
            self.optimizer.zero_grad()
            hidden = self.trained[0](self.inputs[batch])
            hidden = torch.where(torch.arange(40) < 10, hidden, 0.0)
            (self.trained[1](hidden) - self.targets[batch]).square().mean().backward()
            self.optimizer.step()
            self.traced.stepped(self.optimizer)
            self.step_count += 1
        if self.model is not self.trained:
            self.model.load_state_dict(self.trained.state_dict())

    def snapshot(
        self, motion: MotionTracker, thresholds: dict[str, float] | None = None
    ) -> MotionReading:
        reading = self.traced.reading()
        snapshot = Snapshot.of(self.model, self.scope, self.step_count)
        return motion.compare(
            self.step_count, motion.sampler.take(snapshot), optimizer=reading, near_zero=thresholds
        )

    def moved(
        self,
        steps: int,
        motion: MotionTracker | None = None,
        thresholds: dict[str, float] | None = None,
    ) -> MotionReading:
        motion = motion or MotionTracker(None)
        self.snapshot(motion)
        self.train(steps)
        return self.snapshot(motion, thresholds)


@pytest.mark.parametrize("decay", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("steps", [5, 60])
def test_dead_units_are_found_with_and_without_decay(decay: float, steps: int) -> None:
    planted, motion = Planted(decay), MotionTracker()
    first = planted.snapshot(motion).dormant
    assert math.isnan(first.fraction)
    assert first.reason == "no earlier snapshot"
    moved = planted.moved(steps, motion)
    assert moved.dormant.fraction == pytest.approx(0.75, abs=0.02)
    assert (moved.dormant.since_step, moved.dormant.num_sampled) == (0, 800)
    assert not moved.dormant.estimated
    assert math.isnan(moved.dormant.estimated_advance)
    assert moved.layers == {"0.weight": moved.dormant.fraction}


def test_numbers_against_numpy() -> None:
    planted, motion = Planted(decay=2.0), MotionTracker(None)
    planted.snapshot(motion)
    before = planted.model[0].weight.detach().numpy().astype(np.float64)
    planted.train(30)
    now = planted.model[0].weight.detach().numpy().astype(np.float64)
    moved = planted.snapshot(motion)
    change = now - (1 - 1e-3 * 2.0) ** 30 * before
    rms = math.sqrt((change**2).mean() / (before**2).mean())
    assert moved.movement.update_to_weight == pytest.approx(rms, rel=1e-9)
    assert moved.movement.sign_flips == (np.sign(before) != np.sign(now)).mean()
    assert moved.movement.sign_flips > 0
    assert moved.dormant.fraction == (np.abs(change) <= 1e-3 * 30 * 1e-3).mean()


def test_a_sample_estimates_the_whole() -> None:
    dormant = Planted().moved(10, MotionTracker(num_samples=400)).dormant
    assert dormant.num_sampled == 400
    assert dormant.fraction == pytest.approx(0.75, abs=0.08)


@pytest.mark.parametrize("num_samples", [300, None])
def test_the_sample_is_the_same_after_a_resume_and_leaves_the_global_rng_alone(num_samples) -> None:
    planted, motion, resumed = Planted(), MotionTracker(num_samples, seed=3), MotionTracker()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    planted.snapshot(motion)
    assert torch.equal(torch.get_rng_state(), before)
    planted.train(7)
    resumed.load_state_dict(motion.state_dict())
    assert planted.snapshot(resumed) == planted.snapshot(motion)
    state = motion.state_dict()
    del state["motion"]["before"]
    with pytest.raises(StateError, match="'before'"):
        resumed.load_state_dict(state)


def test_no_step_since_the_last_snapshot_is_said_so() -> None:
    moved = Planted().moved(0)
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
    moved = Planted(decay, optimizer).moved(25)
    assert math.isnan(moved.dormant.fraction) == bool(reason)
    assert reason in moved.dormant.reason
    assert moved.layers.keys() == (set() if reason else {"0.weight"})
    assert moved.movement.update_to_weight > 0  # known for every optimizer
    assert moved.movement.since_step == 0


def test_each_group_has_its_own_decay_and_its_own_reason() -> None:
    model = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30), nn.Linear(30, 2))
    scope = Scope.of(model, "layers")
    weights = scope.parameters(model)
    groups = [
        {"params": [model[0].weight], "lr": 1e-2, "weight_decay": 1.0},
        {"params": [model[1].weight], "lr": 1e-3, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.Adam([dict(group) for group in groups])
    coupled = Traced(optimizer, parameters=weights)
    whys = coupled.reading().not_measurable
    assert "not decoupled" in whys["0.weight"]
    assert whys["1.weight"] == ""
    optimizer = torch.optim.AdamW(groups)
    traced, motion = Traced(optimizer, parameters=weights), MotionTracker()
    assert set(traced.reading().not_measurable.values()) == {""}
    compared(motion, Snapshot.of(model, scope, 0), traced)
    for _ in range(20):
        for k in (0, 1):
            model[k].weight.grad = torch.zeros(30, 30)
            model[k].weight.grad[: 10 * (k + 1)] = torch.randn(10 * (k + 1), 30)
        optimizer.step()
        traced.stepped(optimizer)
    moved = compared(motion, Snapshot.of(model, scope, 20), traced)
    # 20 and 10 of 30 rows got no gradient; what passes by chance is a percent or so
    assert moved.layers == pytest.approx({"0.weight": 2 / 3, "1.weight": 1 / 3}, abs=0.03)


# ------------------------------------------------------------------ low precision


@pytest.mark.parametrize("decay", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("steps", [25, 100])
def test_rounding_of_a_copy_makes_nothing_dormant_or_alive(decay: float, steps: int) -> None:
    truth = Planted(decay, lr=3e-3).moved(steps).dormant
    dormant = Planted(decay, lr=3e-3, dtype=torch.bfloat16).moved(steps).dormant
    assert dormant.reason == ""
    assert truth.fraction == pytest.approx(0.75, abs=0.02)
    # what passes by chance is more, and known
    assert dormant.chance < 0.1
    assert dormant.fraction == pytest.approx(0.75 + 0.25 * dormant.chance, abs=0.03)


def test_a_dtype_too_coarse_for_the_updates_says_so() -> None:
    dormant = Planted(0.1, lr=3e-5, dtype=torch.bfloat16).moved(25).dormant
    assert math.isnan(dormant.fraction)
    assert "too coarse" in dormant.reason
    assert not Planted(0.1, lr=3e-5).moved(25).dormant.reason


@pytest.mark.parametrize("decay", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("lr", [3e-5, 3e-3])
def test_what_rounding_holds_still_is_not_dormant(decay: float, lr: float) -> None:
    """Weights that are trained in 16 bits themselves: a small update, or decay, changes no bit."""
    moved = Planted(decay, lr=lr, dtype=torch.bfloat16, in_place=True).moved(50)
    assert math.isnan(moved.dormant.fraction)
    assert "rounding to the weights' own precision" in moved.dormant.reason
    assert moved.layers == {}
    assert moved.movement.update_to_weight > 0


def test_what_a_weight_is_computed_from_is_not_told_as_one() -> None:
    """Weight norm: the gradient of what is stored is not that of the weight."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(20, 40, bias=False)))
    weights = dict(layer.named_parameters())
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-3)
    traced, motion = Traced(optimizer, parameters=weights), MotionTracker(None)
    for step in range(2):
        layer(torch.randn(8, 20)).square().sum().backward()
        optimizer.step()
        traced.stepped(optimizer)
        sample = {name: one.detach().clone().reshape(-1) for name, one in weights.items()}
        moved = motion.compare(step, sample, optimizer=traced.reading())
    assert "reparametrized" in moved.dormant.reason
    assert moved.layers == {}


# ------------------------------------------------------------------ tensors that no step reaches


class Experts:
    """Layers of which each gets a gradient at some steps only; the others have none then."""

    def __init__(self, num: int, make: type = torch.optim.AdamW) -> None:
        torch.manual_seed(0)
        self.weights = {f"{i}.weight": nn.Parameter(torch.randn(20, 20)) for i in range(num)}
        self.optimizer = make(self.weights.values(), lr=1e-3)
        self.traced = Traced(self.optimizer, parameters=self.weights)
        self.motion, self.step = MotionTracker(None), 0

    def train(self, *used: set[int]) -> MotionReading:
        for chosen in used:
            self.step += 1
            for i, weight in enumerate(self.weights.values()):
                weight.grad = torch.randn(20, 20) if i in chosen else None
            self.optimizer.step()
            self.traced.stepped(self.optimizer)
        sample = {name: one.detach().clone().reshape(-1) for name, one in self.weights.items()}
        return self.motion.compare(self.step, sample, optimizer=self.traced.reading())


def test_an_expert_that_is_starved_is_dormant_as_a_whole() -> None:
    """Of four experts one gets no token any more, another one did once in the interval."""
    experts = Experts(4)
    experts.train(*[{0, 1, 2, 3}] * 20)
    moved = experts.train(*[{0, 1}] * 19, {0, 1, 2})
    assert moved.layers["3.weight"] == 1.0
    assert moved.layers["2.weight"] < 0.01
    assert moved.dormant.fraction == pytest.approx(0.25, abs=0.01)
    assert moved.dormant.reason == ""
    assert experts.train(*[{0, 1, 2, 3}] * 20).dormant.fraction < 0.02


@pytest.mark.parametrize(("num_steps", "is_dormant"), [(9, False), (10, True)])
def test_what_is_left_out_of_a_few_steps_is_not_starved(num_steps: int, is_dormant: bool) -> None:
    """A layer that is dropped at random, and snapshots as close as steps."""
    experts = Experts(2)
    experts.train(*[{0, 1}] * 5)
    for _ in range(num_steps):
        moved = experts.train({0})
    assert ("1.weight" in moved.layers) == is_dormant
    if is_dormant:
        assert moved.dormant.fraction == pytest.approx(0.5, abs=0.01)
    else:
        assert moved.dormant.reason == "the latest steps have left them out in 1 of 2 tensors"


def test_a_slow_tensor_among_others_tells_which_of_its_weights_are_dormant() -> None:
    """A rare expert: gradients that are small beside those that Adam remembers."""
    torch.manual_seed(0)
    weights = {name: nn.Parameter(torch.randn(30, 30)) for name in ("slow", "a", "b")}
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-3)
    traced, motion = Traced(optimizer, parameters=weights), MotionTracker(None)
    for step in range(1, 61):
        for name, weight in weights.items():
            weight.grad = torch.randn(30, 30) * (1e-3 if name == "slow" and step > 3 else 1.0)
            weight.grad[:10] = 0.0
        optimizer.step()
        traced.stepped(optimizer)
        if step in (40, 60):
            sample = {name: one.detach().clone().reshape(-1) for name, one in weights.items()}
            moved = motion.compare(step, sample, optimizer=traced.reading())
    assert moved.dormant.reason == ""
    assert moved.layers == pytest.approx(dict.fromkeys(weights, 1 / 3), abs=0.03)


def test_what_is_frozen_or_moved_by_another_hand_is_not_starved() -> None:
    experts = Experts(3)
    experts.train(*[{0, 1, 2}] * 12)
    experts.weights["1.weight"].requires_grad_(False)
    with torch.no_grad():
        experts.weights["2.weight"].mul_(0.999)
    moved = experts.train(*[{0}] * 12)
    assert moved.layers.keys() == {"0.weight"}
    assert moved.dormant.reason == "the latest steps have left them out in 1 of 2 tensors"


# ------------------------------------------------------------------ on either side of each limit


#: A hundred steps of a learning rate of 1: dormant is what changes by 0.1 at most; others by 3.5.
CLOCK = Clock(lr=100.0, lr_squared=100.0, steps=100)


def passing(*changes: tuple[int, float]) -> tuple[int, float, bool]:
    """How many of some weights pass, each so many by so much; by chance; and whether it is slow."""
    change = np.concatenate([np.full(num, size) for num, size in changes])
    dormant, chance, is_slow = motion_module._passing(change, np.zeros(len(change)), CLOCK)
    return int(dormant.sum()), chance, is_slow


def test_the_tolerance_is_a_thousandth_of_the_sum_of_lr() -> None:
    assert passing((50, 3.5), (10, 0.099), (10, 0.101))[0] == 10


@pytest.mark.parametrize(("num_moving", "is_slow"), [(19, True), (20, False)])
def test_of_few_weights_that_move_there_is_no_speed(num_moving: int, is_slow: bool) -> None:
    num, chance, found = passing((100, 0.0), (num_moving, 7.0))
    assert (num, found) == (100, is_slow)
    # of fewer it is as usual, and those that stand still do so to the thousandth of the tolerance
    assert chance == pytest.approx(0.5382 * (0.1 * 1e-4 / 3.5 if is_slow else 0.1 / 7.0))


@pytest.mark.parametrize(
    ("rounding", "expected"),
    [(9e-4, (100, False)), (1.1e-3, (100, True)), (0.0101, (100, True))],
)
def test_what_rounding_can_hold_still_is_not_exact(rounding: float, expected: tuple) -> None:
    """Weights that move by a tenth of the least usual speed, so that the tolerance is 0.01."""
    change = np.repeat([0.0, 0.14], 100)
    dormant, chance, is_slow = motion_module._passing(change, np.full(200, rounding), CLOCK)
    assert (int(dormant.sum()), is_slow) == expected
    assert (chance == 1.0) == (rounding > 0.01)


@pytest.mark.parametrize(("num_moving", "is_slow"), [(49, True), (50, False)])
def test_where_a_twentieth_moves_the_rest_may_have_come_to_rest(
    num_moving: int, is_slow: bool
) -> None:
    assert passing((1000 - num_moving, 0.0), (num_moving, 3.5))[2] == is_slow


@pytest.mark.parametrize(("speed", "num"), [(0.127, 40), (0.125, 30), (0.05, 30)])
def test_what_moves_slowly_has_a_finer_tolerance(speed: float, num: int) -> None:
    assert passing((50, 10.0 * speed), (30, 0.0), (10, 0.095))[0] == num


@pytest.mark.parametrize(("num_exact", "is_slow"), [(19, True), (20, False)])
def test_a_slow_tensor_tells_by_itself_if_half_of_its_dormant_weights_are_exact(
    num_exact: int, is_slow: bool
) -> None:
    found = passing((50, 0.7), (num_exact, 0.004), (40 - num_exact, 0.006))
    assert found[::2] == (40, is_slow)


@pytest.mark.parametrize(("typical", "is_far"), [(0.3588 + 1e-3, False), (0.3588 - 1e-3, True)])
def test_where_too_many_pass_by_chance_nothing_is_told(typical: float, is_far: bool) -> None:
    clock = CLOCK._replace(lr_squared=1.0)  # as of snapshots that are farther apart
    before = np.ones(300)
    now = before + np.where(np.arange(300) < 200, 0.0, typical)
    found = motion_module.motion_of(before, now, motion_module.Between(clock), torch.float64)
    assert found.reason == ("the snapshots are so far apart that too many weights pass by chance"
                            if is_far else "")  # fmt: skip


def motion(num: int, **fields: object) -> motion_module.TensorMotion:
    """That of a tensor with so many weights, none of them dormant."""
    usual = {"dormant": np.zeros(num, bool), "chance": 0.0, "change": 1.0, "size": 1.0,
             "num_flips": 0, "log_shrink": 0.0, "decay": 0.0}  # fmt: skip
    return motion_module.TensorMotion(**usual | fields)


@pytest.mark.parametrize(
    ("motions", "reason"),
    [
        ((motion(951), motion(49, reason="r")), ""),
        ((motion(949), motion(51, reason="r")), "r in 1 of 2 tensors"),
        ((motion(50), motion(50, is_slow=True)), ""),
        ((motion(49), motion(51, is_slow=True)), motion_module.SLOW),
        ((motion(40), motion(51, is_slow=True), motion(2, reason="r")), motion_module.SLOW),
    ],
)
def test_how_many_tensors_may_not_tell(motions: tuple, reason: str) -> None:
    named = {f"{i}": one for i, one in enumerate(motions)}
    dormant, _, layers = motion_module._moved(named, 0, 1, "none")
    assert dormant.reason == reason
    assert math.isnan(dormant.fraction) == bool(reason)
    assert "1" not in layers or not reason


# ------------------------------------------------------------------ a collapsed model


def test_after_a_spike_of_the_learning_rate_slow_weights_are_not_dormant() -> None:
    """Squared gradients of the spike make later updates tiny beside lr; nothing is dead."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(60, 60) * 0.05)
    optimizer = torch.optim.AdamW([weight], lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    model = nn.Sequential(nn.Linear(60, 60), nn.Linear(60, 2))
    model[0].weight = weight
    scope, motion = Scope.of(model), MotionTracker()
    traced = Traced(optimizer, parameters=scope.parameters(model))
    seen = []
    for step in range(1, 126):
        weight.grad = torch.randn(60, 60) * (1e4 if 51 <= step <= 55 else 1.0)
        optimizer.step()
        traced.stepped(optimizer)
        if step % 25 == 0:
            seen.append(compared(motion, Snapshot.of(model, scope, step), traced))
    dormant = [moved.dormant for moved in seen]
    assert dormant[1].fraction < 0.02
    assert dormant[1].chance == pytest.approx(dormant[1].fraction, abs=0.005)
    for later in dormant[3:]:
        assert math.isnan(later.fraction)
        assert later.reason == "updates are far smaller than the learning rate"


@pytest.mark.parametrize("every", [1, 10, 100])
def test_the_share_that_passes_by_chance_is_foretold(every: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 100), nn.Linear(100, 2))
    optimizer = torch.optim.AdamW([model[0].weight], lr=1e-3, weight_decay=0.1)
    scope, motion = Scope.of(model), MotionTracker()
    traced = Traced(optimizer, parameters=scope.parameters(model))
    found = []
    for step in range(1, 201 + every):
        model[0].weight.grad = torch.randn(100, 200)
        optimizer.step()
        traced.stepped(optimizer)
        if step > 200 - every and step % every == 0:
            found.append(compared(motion, Snapshot.of(model, scope, step), traced))
    dormant = found[-1].dormant
    deviation = math.sqrt(dormant.chance / dormant.num_sampled)
    assert dormant.fraction == pytest.approx(dormant.chance, rel=0.15, abs=3 * deviation)


# ------------------------------------------------------------------ the projection


def test_the_projection_counts_when_dormant_weights_fall_below_the_threshold() -> None:
    planted = Planted(decay=2.0)
    projection = planted.moved(25, thresholds={"0.weight": 0.02}).dormant.projection
    weights = planted.model[0].weight.detach().abs().numpy()
    dead, living = weights[10:], weights[:10]
    for k in (0, 5, 20):
        reach = 0.02 * math.exp(projection.advance[k])
        assert projection.dormant[k] == pytest.approx((dead <= reach).sum() / 800, abs=0.01)
        assert projection.entering[k] == pytest.approx((living <= reach).mean(), abs=0.05)


@pytest.mark.parametrize(
    ("decay", "thresholds"), [(0.0, {"0.weight": 0.02}), (1.0, {"0.weight": 0.0}), (1.0, {})]
)
def test_without_a_clock_or_a_threshold_there_is_no_projection(decay, thresholds) -> None:
    assert Planted(decay).moved(25, thresholds=thresholds).dormant.projection is None


# ------------------------------------------------------------------ without an optimizer


LR, STEPS = 3e-3, 60
Weights = dict[str, torch.Tensor]


def trained(decay: float, dtype: torch.dtype, *, has_dead_units: bool) -> tuple[Weights, Weights]:
    """The in-scope weights of a small network in training, and those ``STEPS`` steps later."""
    torch.manual_seed(0)
    activation = torch.relu if has_dead_units else nn.functional.gelu
    model = nn.Sequential(nn.Linear(40, 128), nn.Linear(128, 64), nn.Linear(64, 4))
    with torch.no_grad():  # keeps them from ever being active
        model[0].bias[::2] -= 20.0 * has_dead_units
    matrices = [p for p in model.parameters() if p.ndim == 2]
    free = {"params": [model[1].bias], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([{"params": matrices}, free], lr=LR, weight_decay=decay)
    inputs, targets = torch.randn(512, 40), torch.randn(512, 4)
    taken = []
    for steps in (20, STEPS):
        for _ in range(steps):
            chosen = torch.randint(512, (64,))
            hidden = activation(model[1](activation(model[0](inputs[chosen]))))
            optimizer.zero_grad()
            (model[2](hidden) - targets[chosen]).square().mean().backward()
            optimizer.step()
        weights = {f"{k}.weight": model[k].weight.detach().clone() for k in (0, 1)}
        taken.append({name: tensor.to(dtype).reshape(-1) for name, tensor in weights.items()})
    return taken[0], taken[1]


def blind(before: Weights, now: Weights) -> MotionReading:
    """What a motion without an optimizer says of two snapshots."""
    motion = MotionTracker()
    motion.compare(20, before)
    return motion.compare(20 + STEPS, now)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decay", [0.0, 0.1, 2.0])
def test_dead_units_give_the_shrink_away(decay: float, dtype: torch.dtype) -> None:
    taken = trained(decay, dtype, has_dead_units=True)
    before, now = ({n: float64_of(t) for n, t in weights.items()} for weights in taken)
    between = estimate_between(before, now, STEPS, torch.finfo(dtype).eps)
    assert between.why_not == ""
    truth = STEPS * math.log(1 - LR * decay)
    exact = {"abs": 5e-6 if dtype.itemsize > 2 else 4e-3}
    assert between.clock.log_shrink == pytest.approx(truth, **exact)
    # the sum of lr sets a tolerance: its size matters, not its digits
    assert 0.25 < between.clock.lr / (LR * STEPS) < 4.0
    dormant = blind(*taken).dormant
    assert dormant.estimated
    assert dormant.estimated_advance == pytest.approx(-truth, **exact)
    assert math.copysign(1.0, dormant.estimated_advance) == 1.0
    # half of the first layer's units are dead, with the columns of the second that they feed
    assert dormant.fraction == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decay", [0.1, 2.0])
def test_without_dead_units_it_says_that_it_cannot_tell(decay: float, dtype: torch.dtype) -> None:
    before, now = trained(decay, dtype, has_dead_units=False)
    moved = blind(before, now)
    assert math.isnan(moved.dormant.fraction)
    assert moved.dormant.estimated
    assert "no weights shrank by one factor" in moved.dormant.reason
    assert math.isnan(moved.dormant.estimated_advance)
    assert moved.movement.update_to_weight > 0
    still = blind(now, now).dormant
    assert still.reason == "no in-scope weight was trained since"
    assert math.isnan(still.estimated_advance)


@settings(max_examples=30, deadline=None)
@given(log_shrink=st.floats(-3.0, 0.0), share=st.floats(0.05, 0.9), seed=st.integers(0, 2**32 - 1))
def test_a_planted_factor_is_found(log_shrink: float, share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    before = torch.randn(4000, generator=generator)
    now = math.exp(log_shrink) * before
    moving = torch.rand(4000, generator=generator) > share
    now = torch.where(moving, now + 0.3 * torch.randn(4000, generator=generator), now)
    between = estimate_between({"w": before.double().numpy()}, {"w": now.double().numpy()}, 10)
    assert between.why_not == ""
    assert between.clock.log_shrink == pytest.approx(log_shrink, abs=1e-5)


def test_of_many_weights_a_part_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(400_000, generator=generator).double()
    moving = torch.rand(400_000, generator=generator) > 0.05
    noise = 0.3 * torch.randn(400_000, generator=generator)
    now = torch.where(moving, 0.9 * before + noise, 0.9 * before)
    halves = {"a": slice(None, 150_000), "b": slice(150_000, None)}
    earlier, later = ({n: t[h].numpy() for n, h in halves.items()} for t in (before, now))
    looked_at = []
    pile = motion_module._pile
    monkeypatch.setattr(
        motion_module,
        "_pile",
        lambda ratios, width: looked_at.append(len(ratios)) or pile(ratios, width),
    )
    whole = estimate_between(earlier, later, 10)
    monkeypatch.setattr(motion_module, "_ENOUGH", 50_000)
    part = estimate_between(earlier, later, 10)
    for found in (whole, part):
        assert found.why_not == ""
        assert found.clock.log_shrink == pytest.approx(math.log(0.9), abs=1e-9)
    assert looked_at[1] == pytest.approx(looked_at[0] / 8, rel=0.1)
    assert part.clock.lr == pytest.approx(whole.clock.lr, rel=0.02)


@pytest.mark.parametrize("num_weights", [0, 1, 5])
def test_a_handful_of_weights_tells_nothing(num_weights: int) -> None:
    before = np.ones(num_weights)
    assert estimate_between({"w": before}, {"w": 0.5 * before}, 10).why_not


def is_pile(logs: np.ndarray, num_flipped: int = 0, eps: float = 2.0**-23) -> bool:
    """Whether weights of which these are the log ratios, and some more, shrank by one factor."""
    before = np.ones(len(logs) + num_flipped)
    now = np.append(np.exp(logs), -np.ones(num_flipped))
    return not estimate_between({"w": before}, {"w": now}, 10, eps).why_not


#: Of float32: ratios that agree do so to a ten thousandth.
WINDOW = 1e-4


def pile(num: int, num_beside: int = 0) -> np.ndarray:
    """So many log ratios are -0.1; so many are in each of 20 windows on either side, about."""
    apart = np.linspace(1.05, 19.95, 20 * num_beside) * WINDOW
    return -0.1 + np.concatenate([np.zeros(num), apart, -apart])


@pytest.mark.parametrize(
    ("num", "num_beside", "num_flipped", "expected"),
    [
        (29, 0, 0, False),  # too few
        (30, 0, 0, True),
        (99, 0, 49_901, False),  # two in a thousand
        (100, 0, 49_900, True),
        (36, 10, 0, False),  # 8 deviations of sqrt(10 + 1) above 10
        (37, 10, 0, True),
        (299, 100, 0, False),  # three times as many as beside
        (300, 100, 0, True),
    ],
)
def test_a_pile_is_one_from_so_many_on(
    num: int, num_beside: int, num_flipped: int, *, expected: bool
) -> None:
    assert is_pile(pile(num, num_beside), num_flipped) == expected


@pytest.mark.parametrize(("windows", "is_beside"), [(19.9, True), (20.1, False), (10.1, True)])
def test_what_is_beside_a_pile_is_twenty_windows_wide(windows: float, *, is_beside: bool) -> None:
    beside = np.full(29, windows * WINDOW)
    logs = -0.1 + np.concatenate([np.zeros(30), beside, -beside])
    _, count, by_chance = motion_module._pile(np.sort(logs), WINDOW)
    assert (count, by_chance) == (30, pytest.approx(58 / 40 if is_beside else 0.0))


@pytest.mark.parametrize(
    ("eps", "apart", "agree"),
    [
        (2.0**-23, 0.9e-4, True),  # of float32: a ten thousandth
        (2.0**-23, 1.1e-4, False),
        (2.0**-7, 3.9 * 2.0**-7, True),  # of bfloat16: four spacings
        (2.0**-7, 4.1 * 2.0**-7, False),
    ],
)
def test_log_ratios_agree_to_a_ten_thousandth_or_four_spacings(
    eps: float, apart: float, *, agree: bool
) -> None:
    assert is_pile(np.repeat([-0.5, -0.5 + apart], 20), eps=eps) == agree


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(
    values=st.lists(st.floats(-1.0, 1.0, width=16), max_size=40),
    times=st.integers(1, 60),
    width=st.floats(0.001, 0.5),
    every=st.sampled_from([1, 3, 512]),
)
def test_a_pile_is_the_fullest_window(values, times, width, every) -> None:
    ratios = np.sort(np.repeat(np.array(values, np.float64), times))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(motion_module, "_EVERY", every)
        middle, count, beside = motion_module._pile(ratios, width)
    # a window for each value, which it begins; the first of the fullest ones
    sizes = [int(np.sum(ratios[i:] <= r + width)) for i, r in enumerate(ratios)]
    assert count == max(sizes, default=0)
    if not sizes:
        assert (middle, beside) == (0.0, 0.0)
        return
    first = sizes.index(count)
    assert middle == ratios[first + (count - 1) // 2]
    low, high = ratios[first] - 20 * width, ratios[first + count - 1] + 20 * width
    near = int(np.sum((ratios >= low) & (ratios < high)))
    assert beside == pytest.approx((near - count) / 40)


@settings(deadline=None, max_examples=200)
@given(value=st.floats(-(2.0**120), 2.0**120, width=32))
def test_the_spacing_is_that_of_numpy(value) -> None:
    found = motion_module.spacing(np.array([value]), torch.float32)
    expected = np.spacing(np.maximum(np.abs(np.float32(value)), np.finfo(np.float32).tiny))
    assert found.item() == float(expected)


@pytest.mark.parametrize("dtype", STORAGES, ids=str)
def test_values_as_float64(dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(7, 5, generator=generator).to(dtype)
    found = float64_of(tensor.t())
    assert np.array_equal(found, tensor.t().to(torch.float64).reshape(-1).numpy(), equal_nan=True)
    found[:] = 3.0
    assert not bool((tensor.to(torch.float64) == 3.0).any())


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [(torch.float32, 0x7FA00000), (torch.float16, 0x7D00), (torch.bfloat16, 0x7FA0)],
    ids=str,
)
def test_a_signalling_nan_is_one_without_a_warning(dtype, bits: int) -> None:
    """What was never initialised holds any bits; numpy warns when it converts these."""
    kind = np.uint32 if dtype is torch.float32 else np.uint16
    tensor = torch.from_numpy(np.array([bits, 0], kind)).view(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = float64_of(tensor)
    assert np.isnan(found).tolist() == [True, False]


# ------------------------------------------------------------------ masks compared over time


@given(st.lists(st.booleans(), min_size=1, max_size=70), st.randoms(use_true_random=False))
def test_of_what_went_before_the_share_that_goes_now(before: list[bool], random) -> None:
    now = [random.random() < 0.5 for _ in before]
    were, are = ({i for i, bit in enumerate(mask) if bit} for mask in (before, now))
    found = overlap(np.packbits(before), np.packbits(now))
    assert math.isnan(found) if not were else found == len(were & are) / len(were)


def test_without_anything_in_common_it_is_the_level() -> None:
    generator = np.random.default_rng(0)
    one, other = (np.packbits(generator.random(100_000) < 0.7) for _ in range(2))
    assert overlap(one, other) == pytest.approx(0.7, abs=0.01)
    assert overlap(one, one) == 1.0


def test_what_goes_is_what_is_at_most_the_threshold() -> None:
    magnitudes = np.abs(np.random.default_rng(0).normal(size=74))
    magnitudes[:2] = 0.5, math.nan
    found = np.unpackbits(removed(magnitudes, [0.5, -math.inf, math.inf]), axis=1)[:, :74]
    assert found[0].tolist() == (magnitudes <= 0.5).tolist()
    assert found[0][:2].tolist() == [1, 0]
    assert not found[1].any()
    assert found[2].sum() == 73  # all but NaN


def test_snapshot_by_snapshot_and_over_a_restart() -> None:
    torch.manual_seed(0)
    samples = [{"a": torch.randn(200).bfloat16(), "b": torch.randn(120)} for _ in range(3)]
    thresholds = (0.5, 1.0, 1.5)

    def bits(sample: dict[str, torch.Tensor]) -> np.ndarray:
        return removed(np.abs(float64_of(*sample.values())), thresholds)

    motion, resumed = MotionTracker(), MotionTracker()
    first = motion.compare(10, samples[0], thresholds).masks
    assert (first.level, first.since_step, first.num_sampled) == (MASK_LEVELS, -1, 320)
    assert all(map(math.isnan, first.overlap))
    motion.forget()  # what was done meanwhile does not change what was removed
    second = motion.compare(20, samples[1], thresholds).masks
    assert second.overlap == tuple(map(overlap, bits(samples[0]), bits(samples[1])))
    assert second.since_step == 10
    assert motion.compare(21, samples[1]).masks is None
    resumed.load_state_dict(motion.state_dict())
    third = motion.compare(30, samples[2], thresholds).masks
    assert resumed.compare(30, samples[2], thresholds).masks == third
    assert third.since_step == 20
    # another scope: nothing to compare with
    motion.forget()
    assert motion.compare(40, {"a": samples[2]["a"]}, thresholds).masks.since_step == -1


@pytest.mark.parametrize("num", [1, 20, 32, 33, 75])
def test_of_many_blocks_those_that_moved_least_and_most_are_kept(num: int) -> None:
    rng = np.random.default_rng(num)
    changes = rng.permutation(num) + 1.0
    motions = {
        f"h.{i}.w": motion_module.TensorMotion(np.zeros(0, bool), size=4.0, change=change**2)
        for i, change in enumerate(changes.tolist())
    }
    kept = motion_module._by_block(motions)
    ratios = sorted((change / 2, f"h.{i}") for i, change in enumerate(changes.tolist()))
    expected = ratios if num <= 32 else ratios[:16] + ratios[-16:]
    assert [(ratio, name) for name, ratio in kept.items()] == expected


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0, 3.0])
def test_a_weight_is_due_once_the_clock_of_its_tensor_has_shrunk_it(rate: float) -> None:
    """By rates of its tensor beside the mean of all: the one beside the other, weight by weight."""
    rng = np.random.default_rng(1)
    far, is_dormant = np.exp(rng.normal(0.5, 1.0, 500)), rng.random(500) < 0.4
    found = motion_module._due(far.copy(), is_dormant, rate)
    for row, which in zip(found, (~is_dormant, is_dormant), strict=True):
        shrunk = [
            ((np.log(far) <= rate * advance + 1e-12) & which).sum()
            for advance in motion_module.ADVANCES
        ]
        assert row.tolist() == shrunk
