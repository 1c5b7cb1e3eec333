"""What moved since the last snapshot, against weights planted to be dormant, numpy and AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsitywatch.errors import StateError
from sparsitywatch.live.trace import OptimizerTrace
from sparsitywatch.weights import motion as motion_module
from sparsitywatch.weights.clock import DecayClock, OptimizerReading, group_membership
from sparsitywatch.weights.motion import MotionTracker, Moved, estimate_shrink, why_not_measurable
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import Snapshot, float64_of
from sparsitywatch.weights.spectrum.histogram import STORAGES


def compared(motion: MotionTracker, snapshot: Snapshot, clock: DecayClock) -> Moved:
    reading = OptimizerReading(
        clock=clock.copy(), membership={"0.weight": 0}, not_measurable=("",) * len(clock.groups)
    )
    return motion.compare(snapshot.step, motion.sampler.take(snapshot), optimizer=reading)


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

    def snapshot(self, motion: MotionTracker, thresholds: dict[str, float] | None = None) -> Moved:
        reading = self.trace.reading(self.scope.parameters(self.model))
        snapshot = Snapshot.of(self.model, self.scope, self.step_count)
        return motion.compare(
            self.step_count, motion.sampler.take(snapshot), optimizer=reading, near_zero=thresholds
        )

    def moved(self, steps: int, motion: MotionTracker | None = None) -> Moved:
        motion = motion or MotionTracker(None)
        self.snapshot(motion)
        self.train(steps)
        return self.snapshot(motion)


@pytest.mark.parametrize("decay", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("steps", [5, 60])
def test_dead_units_are_found_with_and_without_decay(decay: float, steps: int) -> None:
    planted, motion = Planted(decay), MotionTracker()
    first = planted.snapshot(motion).dormant
    assert math.isnan(first.fraction)
    assert first.reason == "no earlier snapshot"
    planted.train(steps)
    moved = planted.snapshot(motion)
    assert moved.dormant.fraction == pytest.approx(0.75, abs=0.02)
    assert moved.dormant.since_step == 0
    assert moved.dormant.num_sampled == 800
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
    planted, motion = Planted(), MotionTracker(num_samples=400)
    planted.snapshot(motion)
    planted.train(10)
    dormant = planted.snapshot(motion).dormant
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
    planted, motion = Planted(), MotionTracker()
    planted.snapshot(motion)
    moved = planted.snapshot(motion)
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
    planted, motion = Planted(decay, optimizer), MotionTracker()
    planted.snapshot(motion)
    planted.train(25)
    moved = planted.snapshot(motion)
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
    scope, clock, motion = Scope.of(model, "layers"), DecayClock(), MotionTracker()

    def snapshot() -> Moved:
        parameters = scope.parameters(model)
        membership = group_membership(optimizer, parameters)
        reading = OptimizerReading(clock=clock.copy(), membership=membership)
        return motion.compare(
            0, motion.sampler.take(Snapshot.of(model, scope, 0)), optimizer=reading
        )

    snapshot()
    for _ in range(20):
        for k in (0, 1):
            model[k].weight.grad = torch.zeros(30, 30)
            model[k].weight.grad[: 10 * (k + 1)] = torch.randn(10 * (k + 1), 30)
        optimizer.step()
        clock.advance(optimizer)
    # 20 and 10 of 30 rows got no gradient; what passes by chance is a percent or so
    assert snapshot().layers == pytest.approx({"0.weight": 2 / 3, "1.weight": 1 / 3}, abs=0.03)


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
    scope, clock, motion = Scope.of(model), DecayClock(), MotionTracker()
    seen = []
    for step in range(1, 126):
        weight.grad = torch.randn(60, 60) * (1e4 if 51 <= step <= 55 else 1.0)
        optimizer.step()
        clock.advance(optimizer)
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
    scope, clock, motion = Scope.of(model), DecayClock(), MotionTracker()
    found = []
    for step in range(1, 201 + every):
        model[0].weight.grad = torch.randn(100, 200)
        optimizer.step()
        clock.advance(optimizer)
        if step > 200 - every and step % every == 0:
            found.append(compared(motion, Snapshot.of(model, scope, step), clock))
    dormant = found[-1].dormant
    deviation = math.sqrt(dormant.chance / dormant.num_sampled)
    assert dormant.fraction == pytest.approx(dormant.chance, rel=0.15, abs=3 * deviation)


# ------------------------------------------------------------------ the projection


def test_the_projection_counts_when_dormant_weights_fall_below_the_threshold() -> None:
    planted, motion = Planted(decay=2.0), MotionTracker(None)
    planted.snapshot(motion)
    planted.train(25)
    projection = planted.snapshot(motion, {"0.weight": 0.02}).dormant.projection
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
    planted, motion = Planted(decay), MotionTracker(None)
    planted.snapshot(motion)
    planted.train(25)
    assert planted.snapshot(motion, thresholds).dormant.projection is None


# ------------------------------------------------------------------ without an optimizer


LR, STEPS = 3e-3, 60


def train(
    activation: Callable[[torch.Tensor], torch.Tensor], decay: float, shift: float
) -> tuple[nn.Sequential, dict[str, torch.Tensor]]:
    """A small network; ``shift`` below zero keeps many of its units from ever being active.

    Returns:
        The model as it ended, and its in-scope weights ``STEPS`` steps before.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 128), nn.Linear(128, 64), nn.Linear(64, 4))
    with torch.no_grad():
        model[0].bias[::2] += shift
    matrices = [p for p in model.parameters() if p.ndim == 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": [model[1].bias], "weight_decay": 0.0}],
        lr=LR,
        weight_decay=decay,
    )
    inputs, targets = torch.randn(512, 40), torch.randn(512, 4)
    before = {}
    for step in range(20 + STEPS):
        if step == 20:
            before = {f"{k}.weight": model[k].weight.detach().clone() for k in (0, 1)}
        chosen = torch.randint(512, (64,))
        hidden = activation(model[1](activation(model[0](inputs[chosen]))))
        optimizer.zero_grad()
        (model[2](hidden) - targets[chosen]).square().mean().backward()
        optimizer.step()
    return model, before


def two_snapshots(model: nn.Sequential, before: dict[str, torch.Tensor], dtype: torch.dtype):
    """What a motion without an optimizer says about the two."""
    scope, motion = Scope.of(model), MotionTracker()
    for step, weights in ((20, before), (20 + STEPS, dict(scope.parameters(model)))):
        tensors = {name: t.detach().to(dtype) for name, t in weights.items()}
        moved = motion.compare(step, motion.sampler.take(Snapshot(step, scope, tensors)))
    return moved


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decay", [0.0, 0.1, 2.0])
def test_dead_units_give_the_shrink_away(decay: float, dtype: torch.dtype) -> None:
    model, before = train(torch.relu, decay, shift=-20.0)
    now = {name: model.get_parameter(name).detach().to(dtype) for name in before}
    earlier = {name: t.to(dtype) for name, t in before.items()}
    eps = torch.finfo(dtype).eps
    shrink = estimate_shrink(
        {n: float64_of(t) for n, t in earlier.items()},
        {n: float64_of(t) for n, t in now.items()},
        STEPS,
        eps,
    )
    assert shrink.reason == ""
    truth = STEPS * math.log(1 - LR * decay)
    exact = {"abs": 5e-6 if dtype.itemsize > 2 else 4e-3}
    assert shrink.clock.log_shrink == pytest.approx(truth, **exact)
    # the sum of lr sets a tolerance: its size matters, not its digits
    assert 0.25 < shrink.clock.lr / (LR * STEPS) < 4.0
    dormant = two_snapshots(model, before, dtype).dormant
    assert dormant.estimated
    assert dormant.estimated_advance == pytest.approx(-truth, **exact)
    assert math.copysign(1.0, dormant.estimated_advance) == 1.0
    # half of the first layer's units are dead, with the columns of the second that they feed
    assert dormant.fraction == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decay", [0.1, 2.0])
def test_without_dead_units_it_says_that_it_cannot_tell(decay: float, dtype: torch.dtype) -> None:
    model, before = train(nn.functional.gelu, decay, shift=0.0)
    dormant = two_snapshots(model, before, dtype).dormant
    assert math.isnan(dormant.fraction)
    assert dormant.estimated
    assert "no weights shrank by one factor" in dormant.reason
    assert math.isnan(dormant.estimated_advance)
    assert two_snapshots(model, before, dtype).movement.update_to_weight > 0


def test_what_does_not_move_at_all_was_not_trained() -> None:
    model, _ = train(torch.relu, 0.1, shift=0.0)
    same = {f"{k}.weight": model[k].weight.detach().clone() for k in (0, 1)}
    dormant = two_snapshots(model, same, torch.float32).dormant
    assert dormant.reason == "no in-scope weight was trained since"
    assert math.isnan(dormant.estimated_advance)


@settings(max_examples=30, deadline=None)
@given(log_shrink=st.floats(-3.0, 0.0), share=st.floats(0.05, 0.9), seed=st.integers(0, 2**32 - 1))
def test_a_planted_factor_is_found(log_shrink: float, share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    before = torch.randn(4000, generator=generator)
    now = math.exp(log_shrink) * before
    moving = torch.rand(4000, generator=generator) > share
    now = torch.where(moving, now + 0.3 * torch.randn(4000, generator=generator), now)
    shrink = estimate_shrink({"w": before.double().numpy()}, {"w": now.double().numpy()}, 10)
    assert shrink.reason == ""
    assert shrink.clock.log_shrink == pytest.approx(log_shrink, abs=1e-5)
    assert shrink.num_agreeing == pytest.approx(4000 * share, rel=0.25, abs=30)


def test_of_many_weights_a_part_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(400_000, generator=generator).double()
    moving = torch.rand(400_000, generator=generator) > 0.05
    noise = 0.3 * torch.randn(400_000, generator=generator)
    now = torch.where(moving, 0.9 * before + noise, 0.9 * before)
    halves = {"a": slice(None, 150_000), "b": slice(150_000, None)}
    earlier, later = ({n: t[h].numpy() for n, h in halves.items()} for t in (before, now))
    whole = estimate_shrink(earlier, later, 10)
    monkeypatch.setattr(motion_module, "_ENOUGH", 50_000)
    part = estimate_shrink(earlier, later, 10)
    for found in (whole, part):
        assert found.reason == ""
        assert found.clock.log_shrink == pytest.approx(math.log(0.9), abs=1e-9)
    assert part.num_agreeing == pytest.approx(whole.num_agreeing / 8, rel=0.1)
    assert part.clock.lr == pytest.approx(whole.clock.lr, rel=0.02)


@pytest.mark.parametrize("num_weights", [0, 1, 5])
def test_a_handful_of_weights_tells_nothing(num_weights: int) -> None:
    before = np.ones(num_weights)
    assert estimate_shrink({"w": before}, {"w": 0.5 * before}, 10).reason


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
