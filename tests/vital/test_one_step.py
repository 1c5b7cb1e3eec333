"""Decay that a group states: found in a step worked out again, found missing, or not judged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sparsitywatch as sw
from sparsitywatch.errors import TrainingError
from sparsitywatch.vital import one_step
from sparsitywatch.vital.one_step import Look, OneStep, decays
from sparsitywatch.weights.clock import names_of

Made = type[torch.optim.Optimizer]


def without_decay(base: Made) -> Made:
    """An optimizer that states weight decay in its groups, and steps as if it were 0."""

    class Without(base):  # type: ignore[valid-type, misc]
        def step(self, closure: None = None) -> None:
            stated = [group["weight_decay"] for group in self.param_groups]
            for group in self.param_groups:
                group["weight_decay"] = 0.0
            super().step(closure)
            for group, decay in zip(self.param_groups, stated, strict=True):
                group["weight_decay"] = decay

    return Without


def every_fourth(base: Made) -> Made:
    """Decay at one step of four, and four times as much of it."""

    class Lazy(base):  # type: ignore[valid-type, misc]
        num = 0

        def step(self, closure: None = None) -> None:
            self.num += 1
            stated = [group["weight_decay"] for group in self.param_groups]
            for group in self.param_groups:
                group["weight_decay"] *= 4.0 * (self.num % 4 == 3)
            super().step(closure)
            for group, decay in zip(self.param_groups, stated, strict=True):
                group["weight_decay"] = decay

    return Lazy


class Cautious(torch.optim.Optimizer):
    """Decay of those weights only that the step makes smaller anyway: no law of the others."""

    def __init__(self, params: Any, lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", torch.zeros_like(p)).lerp_(p.grad, 0.1)
                p -= group["lr"] * (mean + group["weight_decay"] * p * (mean * p > 0.0))


class Lion(torch.optim.Optimizer):
    """Steps of one size, by the sign of a mean (arXiv:2302.06675, algorithm 2)."""

    def __init__(self, params: Any, lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
                p -= group["lr"] * (mean.lerp(p.grad, 0.1).sign() + group["weight_decay"] * p)
                mean.lerp_(p.grad, 0.01)


def training(
    made: Made, lr: float, look: OneStep | None = None, **options: Any
) -> Callable[[], Any]:
    def make() -> tuple[nn.Module, torch.optim.Optimizer, Callable[[], Any]]:
        model = nn.Sequential(nn.Linear(48, 64), nn.GELU(), nn.Linear(64, 8))
        optimizer = made(model.parameters(), **{"lr": lr, "weight_decay": 0.01, **options})
        classes = torch.randn(48, 8)

        def step() -> torch.Tensor:
            inputs = torch.randn(32, 48)
            loss = nn.functional.cross_entropy(model(inputs), (inputs @ classes).argmax(1))
            optimizer.zero_grad()
            loss.backward()
            if look is not None:
                look.begin(optimizer, names_of(dict(model.named_parameters())))
            optimizer.step()
            if look is not None:
                look.end(optimizer)
            return loss

        return model, optimizer, step

    return make


O = torch.optim  # noqa: E741
SETTINGS: dict[str, tuple[Made, float, dict[str, Any]]] = {
    "AdamW": (O.AdamW, 1e-3, {}),
    "AdamW, amsgrad": (O.AdamW, 1e-3, {"amsgrad": True}),
    "AdamW, fused": (O.AdamW, 1e-3, {"fused": True}),
    "AdamW, one by one": (O.AdamW, 3e-4, {"foreach": False}),
    "AdamW at a low rate": (O.AdamW, 1e-4, {}),
    "Adam": (O.Adam, 1e-3, {}),
    "Adam, maximising": (O.Adam, 1e-3, {"maximize": True}),
    "Lion": (Lion, 1e-3, {}),
    "NAdam": (O.NAdam, 1e-3, {}),
    "RMSprop": (O.RMSprop, 1e-3, {}),
    "Adagrad": (O.Adagrad, 1e-2, {}),
    "SGD": (O.SGD, 1e-2, {}),
    "SGD, momentum": (O.SGD, 1e-2, {"momentum": 0.9}),
    "SGD, Nesterov": (O.SGD, 1e-2, {"momentum": 0.9, "nesterov": True}),
    "SGD, dampened": (O.SGD, 1e-2, {"momentum": 0.9, "dampening": 0.5}),
}


def looked_at(made: Made, lr: float, options: dict[str, Any], num: int) -> list[bool | None]:
    """What each of so many steps says of both matrices."""
    torch.manual_seed(0)
    look, said = OneStep(), []
    *_, step = training(made, lr, look, **options)()
    for _ in range(num):
        look.waits(is_due=True)
        step()
        said += [decays(one) for one in look._looks]
        assert [one.name for one in look._looks] == ["0.weight", "2.weight"]
        look._looks.clear()
    return said


@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_says_whether_decay_is_in_it(name: str) -> None:
    made, lr, options = SETTINGS[name]
    applied = looked_at(made, lr, options, 8)
    assert False not in applied
    # where squares hold decay, too, it is not told from the gradient
    assert True in applied or name in ("RMSprop", "Adagrad")
    without = looked_at(without_decay(made), lr, options, 8)
    assert True not in without
    assert without.count(False) >= 8


@pytest.mark.parametrize("made", [Cautious, O.Adafactor])
def test_a_step_that_the_state_does_not_explain_says_nothing(made: Made) -> None:
    assert set(looked_at(made, 1e-3, {}, 6)) == {None}


def look_at(decay: float, *, stated: float = 0.1, unexplained: float = 0.0, seed: int = 0) -> Look:
    """A step of lr 0.01 along a gradient with a decay of its own, in float32."""
    random = np.random.default_rng(seed)
    weights, gradient = random.normal(size=(2, 400)).astype(np.float32)
    odd = unexplained * np.finfo(np.float32).eps * np.abs(weights) * random.normal(size=400)
    now = weights - 0.01 * (gradient + decay * weights.astype(np.float64)) + odd
    parts = map(torch.from_numpy, (weights, gradient, now.astype(np.float32)))
    before, grad, after = parts
    held = {one_step._WEIGHT: before, one_step._GRADIENT: grad}
    return Look("x", 0.01, stated, (), 0.0, held, {one_step._WEIGHT: after})


@pytest.mark.parametrize(
    ("share", "is_so"), [(0.0, False), (0.09, False), (0.11, None), (0.49, None), (0.51, True)]
)
def test_a_tenth_of_what_is_stated_is_none_and_half_is_some(
    share: float, is_so: bool | None
) -> None:
    for sign in (1.0, -1.0):
        assert decays(look_at(sign * 0.1 * share)) is is_so


@given(st.floats(1e-3, 0.5), st.integers(0, 2**16))
def test_whatever_is_stated_is_found_or_found_missing(stated: float, seed: int) -> None:
    assert decays(look_at(stated, stated=stated, seed=seed)) is not False
    assert decays(look_at(0.0, stated=stated, seed=seed)) is not True


@pytest.mark.parametrize(("unexplained", "is_so"), [(3.5, False), (4.5, None)])
def test_what_is_left_of_a_step_is_a_few_roundings(unexplained: float, is_so: bool | None) -> None:
    assert decays(look_at(0.0, stated=1.0, unexplained=unexplained)) is is_so


def test_decay_that_rounding_hides_is_not_judged() -> None:
    assert decays(look_at(0.0, stated=1e-5)) is None
    assert decays(look_at(0.0, stated=1e-2)) is False


def run_of(made: Made, logdir: Path) -> list[sw.Event]:
    torch.manual_seed(0)
    model, optimizer, step = training(made, 1e-3)()
    with sw.watch(
        model, optimizer, logdir=logdir, every=4, max_overhead=None, detectors={}
    ) as watcher:
        for _ in range(24):
            step()
    return watcher.events


def test_it_is_told_once_with_its_matrices_and_not_of_what_is_lazy(tmp_path: Path) -> None:
    (event,) = run_of(without_decay(O.AdamW), tmp_path)
    assert (event.kind, event.severity) == ("decay", "look")
    assert sorted(event.layers) == ["0.weight", "2.weight"]
    assert "worked out again" in event.reason
    assert event.before_step == 4
    for number, made in enumerate((O.AdamW, every_fourth(O.AdamW), Lion)):
        assert run_of(made, tmp_path / str(number)) == []


def test_only_what_is_stated_and_missing_is_named(tmp_path: Path) -> None:
    def half(params: Any, **options: Any) -> torch.optim.Optimizer:
        first, *rest = params
        groups = [{"params": [first], "weight_decay": 0.0}, {"params": rest}]
        return without_decay(O.AdamW)(groups, **options)

    (event,) = run_of(half, tmp_path)  # type: ignore[arg-type]
    assert event.layers == ("2.weight",)


def test_the_gate_is_red() -> None:
    sw.assert_trains(training(O.AdamW, 1e-3))
    with pytest.raises(TrainingError, match="not decaying as the optimizer states"):
        sw.assert_trains(training(without_decay(O.AdamW), 1e-3))


def test_looks_end_and_hold_no_tensor() -> None:
    """Steps that tell nothing are looked at up to a limit."""
    torch.manual_seed(0)
    look, num = OneStep(), 0
    *_, step = training(Cautious, 1e-3, look)()
    for _ in range(2 * one_step._TRIES):
        is_due = True
        while look.waits(is_due=is_due):
            is_due = False
            step()
            num += 1
        look.tell()
    assert num == one_step._TRIES
    assert not look.not_decayed
    assert not look._looks
    assert not look._begun
