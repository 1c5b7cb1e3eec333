"""Shrink and size of updates from two checkpoints, against real AdamW trainings."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsitywatch.weights import dormancy
from sparsitywatch.weights import dormancy as shrink
from sparsitywatch.weights.dormancy import estimate_shrink, values_of
from sparsitywatch.weights.motion import Motion
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import Snapshot
from sparsitywatch.weights.spectrum.bins import STORAGES

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


def looks(model: nn.Sequential, before: dict[str, torch.Tensor], dtype: torch.dtype):
    """What a motion without an optimizer says about the two."""
    scope, motion = Scope.of(model), Motion()
    for step, weights in ((20, before), (20 + STEPS, dict(scope.parameters(model)))):
        tensors = {name: t.detach().to(dtype) for name, t in weights.items()}
        moved = motion.compare(motion.sampler.take(Snapshot(step, scope, tensors)), step)
    return moved


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decay", [0.0, 0.1, 2.0])
def test_dead_units_give_the_shrink_away(decay: float, dtype: torch.dtype) -> None:
    model, before = train(torch.relu, decay, shift=-20.0)
    now = {name: model.get_parameter(name).detach().to(dtype) for name in before}
    earlier = {name: t.to(dtype) for name, t in before.items()}
    eps = torch.finfo(dtype).eps
    shrink = estimate_shrink(values_of(earlier), values_of(now), STEPS, eps)
    assert shrink.reason == ""
    truth = STEPS * math.log(1 - LR * decay)
    assert shrink.clock.log_shrink == pytest.approx(truth, abs=5e-6 if dtype.itemsize > 2 else 4e-3)
    # the sum of lr sets a tolerance: its size matters, not its digits
    assert 0.25 < shrink.clock.lr / (LR * STEPS) < 4.0
    dormant = looks(model, before, dtype).dormant
    assert dormant.estimated
    # half of the first layer's units are dead, with the columns of the second that they feed
    assert dormant.fraction == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decay", [0.1, 2.0])
def test_without_dead_units_it_says_that_it_cannot_tell(decay: float, dtype: torch.dtype) -> None:
    model, before = train(nn.functional.gelu, decay, shift=0.0)
    dormant = looks(model, before, dtype).dormant
    assert math.isnan(dormant.fraction)
    assert dormant.estimated
    assert "no weights shrank by one factor" in dormant.reason
    assert looks(model, before, dtype).movement.update_to_weight > 0


def test_what_does_not_move_at_all_was_not_trained() -> None:
    model, _ = train(torch.relu, 0.1, shift=0.0)
    same = {f"{k}.weight": model[k].weight.detach().clone() for k in (0, 1)}
    assert (
        looks(model, same, torch.float32).dormant.reason == "no in-scope weight was trained since"
    )


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
    monkeypatch.setattr(shrink, "_ENOUGH", 50_000)
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
        patch.setattr(shrink, "_EVERY", every)
        middle, count, beside = shrink._pile(ratios, width)
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
    found = dormancy._spacing(np.array([value]), torch.float32)
    expected = np.spacing(np.maximum(np.abs(np.float32(value)), np.finfo(np.float32).tiny))
    assert found.item() == float(expected)


@pytest.mark.parametrize("dtype", STORAGES, ids=str)
def test_values_as_float64(dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(7, 5, generator=generator).to(dtype)
    found = dormancy.float64_of(tensor.t())
    assert np.array_equal(found, tensor.t().to(torch.float64).reshape(-1).numpy(), equal_nan=True)
    found[:] = 3.0
    assert not bool((tensor.to(torch.float64) == 3.0).any())
