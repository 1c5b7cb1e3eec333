"""Promise 1: a training with a watch is bit for bit the training without it.

Every case trains the same small model twice, with and without a watch that looks at
every second step, and compares parameters, buffers, gradients, optimizer state, the
states of the global generators, the train/eval flag of each module and the keys of the
state dict. A careless watch is caught by the same comparison.
"""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

import sparsitywatch as sw

STEPS = 8


class Net(nn.Module):
    """Dropout, BatchNorm, tied weights; gradient checkpointing where asked."""

    def __init__(self, *, tied: bool = False, checkpointing: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.dropout = nn.Dropout(0.2)
        self.second = nn.Linear(6, 6)
        self.head = nn.Linear(6, 2)
        self.checkpointing = checkpointing
        if tied:
            self.second.weight = self.first.weight

    def body(self, x: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.second(torch.relu(self.first(x))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.checkpointing and self.training:
            return self.head(self.norm(checkpoint(self.body, x, use_reentrant=False)))
        return self.head(self.norm(self.body(x)))


def mean_square(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return model(batch[0]).float().square().mean(dim=1)


def value_in_autocast(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return mean_square(model, batch)


def value_that_raises(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    if not value_that_raises.armed:  # type: ignore[attr-defined]
        return mean_square(model, batch)
    raise RuntimeError("the value function broke")


@dataclass
class Case:
    """One way to train."""

    model: Callable[[], nn.Module] = Net
    optimizer: Callable[[Any], torch.optim.Optimizer] = lambda p: torch.optim.AdamW(p, lr=0.01)
    autocast: bool = False
    scaler: bool = False
    accumulate: int = 1
    scheduler: bool = False
    prepare: Callable[[nn.Module], nn.Module] = lambda model: model
    value: Callable[..., torch.Tensor] | None = mean_square
    loader: bool = False
    look_inside_autocast: bool = False
    spoil: Callable[[nn.Module], None] = field(default=lambda model: None)
    invalid: bool = False


def freeze_norm(model: nn.Module) -> nn.Module:
    model.norm.eval()
    return model


def plant_nan(model: nn.Module) -> None:
    with torch.no_grad():
        model.first.weight[0, 0] = float("nan")


CASES = {
    "dropout and batchnorm": Case(),
    "batchnorm frozen": Case(prepare=freeze_norm),
    "sgd with momentum": Case(optimizer=lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
    "adamw fused": Case(optimizer=lambda p: torch.optim.AdamW(p, lr=0.01, fused=True)),
    "lbfgs": Case(optimizer=lambda p: torch.optim.LBFGS(p, lr=0.01, max_iter=3)),
    "gradient accumulation": Case(accumulate=4),
    "lr scheduler": Case(scheduler=True),
    "bf16 autocast, value outside": Case(autocast=True),
    "bf16 autocast, value inside": Case(autocast=True, value=value_in_autocast),
    "bf16 autocast, look in the region": Case(autocast=True, look_inside_autocast=True),
    "bf16 weights": Case(prepare=lambda model: model.bfloat16()),
    "scaler skips, plain adamw": Case(scaler=True),
    "scaler skips, fused adamw": Case(
        scaler=True, optimizer=lambda p: torch.optim.AdamW(p, lr=0.01, fused=True)
    ),
    "gradient checkpointing": Case(model=lambda: Net(checkpointing=True)),
    "compiled": Case(prepare=lambda model: torch.compile(model, backend="aot_eager")),
    "compiled in place": Case(prepare=lambda model: (model.compile(backend="aot_eager"), model)[1]),
    "tied weights": Case(model=lambda: Net(tied=True)),
    "weights only": Case(value=None),
    "value that raises": Case(value=value_that_raises, invalid=True),
    "nan weight": Case(spoil=plant_nan, invalid=False),
    "dataloader as the source": Case(loader=True),
}


def fingerprint(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    inner = getattr(model, "_orig_mod", model)
    return {
        "state_dict": {k: v.clone() for k, v in model.state_dict().items()},
        "gradients": {n: p.grad for n, p in inner.named_parameters()},
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "training": {n: m.training for n, m in inner.named_modules()},
        "requires_grad": {n: p.requires_grad for n, p in inner.named_parameters()},
        "torch_rng": torch.get_rng_state(),
        "numpy_rng": np.random.get_state()[1].copy(),  # noqa: NPY002
        "python_rng": list(random.getstate()[1]),
        "attributes": sorted(vars(inner)),
    }


@contextlib.contextmanager
def careless_watch(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """What a quick script does: eval(), a random batch, a mask multiplied in, train()."""

    def look(*_: object) -> None:
        inner = getattr(model, "_orig_mod", model)
        inner.eval()
        with torch.no_grad():
            weight = inner.first.weight
            mask = (weight.abs() > weight.abs().median()).to(weight.dtype)
            weight.mul_(mask)
            inner(torch.randn(4, 6, dtype=weight.dtype))
        inner.train()

    handle = optimizer.register_step_post_hook(look)
    yield
    handle.remove()


def train(case: Case, watching: str, logdir: Path) -> tuple[dict[str, Any], sw.Watcher | None]:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    value_that_raises.armed = False  # type: ignore[attr-defined]
    held_out = TensorDataset(torch.randn(12, 6))
    model = case.prepare(case.model())
    optimizer = case.optimizer(model.parameters())
    inner = getattr(model, "_orig_mod", model)
    dtype = next(inner.parameters()).dtype
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer) if case.scheduler else None
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0) if case.scaler else None
    watcher: Any = contextlib.nullcontext()
    if watching == "watch":
        batches: Any = [(held_out[:6][0].to(dtype),), (held_out[6:][0].to(dtype),)]
        if case.loader:  # iterating it draws from the global generator
            batches = DataLoader(held_out, 4, shuffle=True)
        proxy = sw.Proxy(batches, case.value) if case.value else None
        watcher = sw.watch(model, optimizer, proxy=proxy, every=2, logdir=logdir, max_overhead=None)
    elif watching == "careless":
        watcher = careless_watch(model, optimizer)
    value_that_raises.armed = True  # type: ignore[attr-defined]
    with watcher as active:
        for step in range(STEPS):
            if step == STEPS // 2:
                case.spoil(inner)
            one_step(case, step, model, optimizer, scaler, dtype, active)
            if scheduler is not None:
                scheduler.step()
    return fingerprint(model, optimizer), active


def one_step(case, step, model, optimizer, scaler, dtype, watcher) -> None:
    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        for _ in range(case.accumulate):
            x = torch.randn(8, 6).to(dtype)
            with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
                loss = model(x).float().square().mean()
                if case.look_inside_autocast and isinstance(watcher, sw.Watcher):
                    watcher.snapshot()
            if scaler is not None:
                loss = scaler.scale(loss)
            loss.backward()
        return loss

    if isinstance(optimizer, torch.optim.LBFGS):
        optimizer.step(closure)
        return
    closure()
    if scaler is None:
        optimizer.step()
        return
    if step % 3 == 1:  # an overflow: the scaler skips this update
        next(p for p in model.parameters() if p.grad is not None).grad.fill_(float("inf"))
    scaler.step(optimizer)
    scaler.update()


def bits(value: Any) -> Any:
    """Nested containers with every tensor and array as its bytes: NaN equals NaN."""
    if isinstance(value, torch.Tensor):
        flat = value.detach().contiguous().reshape(-1).view(torch.uint8)
        return (str(value.dtype), tuple(value.shape), flat.numpy().tobytes())
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return {key: bits(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [bits(item) for item in value]
    return value


def differing(a: dict[str, Any], b: dict[str, Any]) -> set[str]:
    return {key for key in a if bits(a[key]) != bits(b[key])}


@pytest.mark.parametrize("name", CASES)
def test_watch_on_equals_watch_off(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    plain, _ = train(case, "off", tmp_path / "off")
    watched, watcher = train(case, "watch", tmp_path / "on")
    assert differing(plain, watched) == set()
    assert watcher is not None
    steps_taken = STEPS - len(range(1, STEPS, 3)) if case.scaler else STEPS
    assert case.invalid or watcher.step_count == steps_taken
    looked = [record.step for record in watcher.records]
    if case.look_inside_autocast:
        assert looked[:3] == [0, 1, 2]
    elif case.invalid:
        assert len(looked) == 3  # then it switched itself off
        assert "the value function broke" in watcher.records[0].reason
        assert "RuntimeError" in watcher.off
    else:
        assert looked == list(range(2, steps_taken + 1, 2))
    assert all(record.valid != case.invalid for record in watcher.records)


@pytest.mark.parametrize("name", ["dropout and batchnorm", "batchnorm frozen", "weights only"])
def test_a_careless_watch_is_caught(name: str, tmp_path: Path) -> None:
    plain, _ = train(CASES[name], "off", tmp_path)
    careless, _ = train(CASES[name], "careless", tmp_path)
    caught = differing(plain, careless)
    assert {"state_dict", "torch_rng", "optimizer"} <= caught
    assert ("training" in caught) == (name == "batchnorm frozen")


def test_a_nan_weight_is_counted_and_the_estimate_says_so(tmp_path: Path) -> None:
    _, watcher = train(CASES["nan weight"], "watch", tmp_path)
    assert watcher is not None
    assert [record.num_nan > 0 for record in watcher.records] == [False, False, True, True]
    last = watcher.records[-1]
    assert last.essential_sparsity is not None
    assert not last.essential_sparsity.informative


def test_a_failing_watch_says_why_and_lets_the_training_go_on(tmp_path: Path, caplog) -> None:
    _, watcher = train(CASES["value that raises"], "watch", tmp_path)
    assert watcher is not None
    assert len(watcher.records) == 3
    assert "switched itself off" in caplog.text
    assert "the value function broke" in caplog.text
    written = (tmp_path / "sparsitywatch" / "records.jsonl").read_text()
    assert written.count("the value function broke") == 3
    # what could be measured was: the weights
    assert all(record.near_zero["initial_0.1"] >= 0 for record in watcher.records)
