"""Promises 1 and 2 where a training or a watch is out of the ordinary.

test_invisible.py holds the matrix of ordinary trainings and what a careless watch is caught
at. Here the watch writes a log, and the models, the values and the places to look are odd.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sparsitywatch as sw
from sparsitywatch.verification import BitDifference, BuiltTraining, compare, trace

STEPS = 8


class Net(nn.Module):
    """Dropout, BatchNorm, and tied weights where asked."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.norm = nn.BatchNorm1d(6)
        self.dropout = nn.Dropout(0.2)
        self.second = nn.Linear(6, 6)
        self.head = nn.Linear(6, 2)
        if tied:
            self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.dropout(self.second(torch.relu(self.first(x))))))


def mean_square(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return model(batch[0]).float().square().mean(dim=1)


def value_in_autocast(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return mean_square(model, batch)


class Breaking:
    """A value function that works when it is tried, and never again."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self, model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        self.num_calls += 1
        if self.num_calls > 8:  # four times for each batch
            raise RuntimeError("the value function broke")
        return mean_square(model, batch)


@dataclass
class Case:
    """One way to train and to watch."""

    model: Callable[[], nn.Module] = Net
    prepare: Callable[[nn.Module], nn.Module] = lambda model: model
    autocast: bool = False
    scheduler: bool = False
    spoil: Callable[[nn.Module], None] = lambda model: None
    value: Callable[[], Callable[..., torch.Tensor] | None] = lambda: mean_square
    loader: bool = False
    look_inside_autocast: bool = False
    invalid: bool = False


def freeze_norm(model: nn.Module) -> nn.Module:
    model.norm.eval()
    return model


def compile_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="aot_eager")
    return model


def plant_nan(model: nn.Module) -> None:
    with torch.no_grad():
        model.first.weight[0, 0] = float("nan")


CASES = {
    "batchnorm frozen": Case(prepare=freeze_norm),
    "lr scheduler": Case(scheduler=True),
    "bf16 autocast, value inside": Case(autocast=True, value=lambda: value_in_autocast),
    "bf16 autocast, look in the region": Case(autocast=True, look_inside_autocast=True),
    "bf16 weights": Case(prepare=lambda model: model.bfloat16()),
    "compiled in place": Case(prepare=compile_in_place),
    "tied weights": Case(model=lambda: Net(tied=True)),
    "weights only": Case(value=lambda: None),
    "value that raises": Case(value=Breaking, invalid=True),
    "nan weight": Case(spoil=plant_nan),
    "dataloader as the source": Case(loader=True),
}


def train_and_watch(case: Case, logdir: Path) -> tuple[tuple[BitDifference, ...], sw.Watcher]:
    """What differs between this training without and with a watch, and the watch."""
    watchers: list[sw.Watcher] = []

    def make_training() -> BuiltTraining:
        model = case.prepare(case.model())
        dtype = next(model.parameters()).dtype
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer)
        num_steps = 0

        def step() -> torch.Tensor:
            nonlocal num_steps
            if num_steps == STEPS // 2:
                case.spoil(model)
            num_steps += 1
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=case.autocast):
                loss = model(torch.randn(8, 6, dtype=dtype)).float().square().mean()
                if case.look_inside_autocast and watchers:
                    watchers[0].snapshot()
            loss.backward()
            optimizer.step()
            if case.scheduler:
                scheduler.step()
            return loss

        return BuiltTraining(model, optimizer, step, {"scheduler": scheduler})

    @contextlib.contextmanager
    def attach(training: BuiltTraining) -> Iterator[None]:
        dtype = next(training.model.parameters()).dtype
        x = torch.linspace(-1, 1, 72).reshape(12, 6).to(dtype)
        batches: Any = [(x[:6],), (x[6:],)]
        if case.loader:  # iterating it draws from the global generator
            batches = DataLoader(TensorDataset(x), 4, shuffle=True)
        value = case.value()
        proxy = None if value is None else sw.Proxy(batches, value)
        arguments = {"proxy": proxy, "every": 2, "logdir": logdir, "max_overhead": None}
        with sw.watch(training.model, training.optimizer, **arguments) as watcher:
            watchers.append(watcher)
            yield

    plain = trace(make_training, STEPS)
    differences = compare(plain, trace(make_training, STEPS, attach=attach))
    return differences, watchers[0]


@pytest.mark.part(2)
@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_watch_on_equals_watch_off(name: str, tmp_path: Path, caplog) -> None:
    case = CASES[name]
    differences, watcher = train_and_watch(case, tmp_path)
    assert differences == ()
    assert case.invalid or watcher.step_count == STEPS
    looked = [record.step for record in watcher.records]
    if case.look_inside_autocast:
        assert looked == list(range(STEPS + 1))
    elif case.invalid:
        assert len(looked) == 3  # then it switched itself off
        assert "RuntimeError" in watcher.off
        assert "switched itself off" in caplog.text
        assert "the value function broke" in caplog.text
        written = (tmp_path / "sparsitywatch" / "records.jsonl").read_text()
        assert written.count("the value function broke") == 3
        # what could be measured was: the weights
        assert all(record.near_zero["initial_0.1"] >= 0 for record in watcher.records)
    else:
        assert looked == list(range(2, STEPS + 1, 2))
    assert all(record.valid != case.invalid for record in watcher.records)
    if name == "nan weight":
        assert [record.num_nan > 0 for record in watcher.records] == [False, False, True, True]
        assert not watcher.records[-1].essential_sparsity.informative


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("first.weight", "36 in-scope weights are NaN and 0 infinite"),
        ("head.bias", "the value of the dense model is not finite"),  # no in-scope weight
    ],
)
def test_what_is_not_a_number_is_said_once(name: str, said: str, caplog) -> None:
    model = Net()
    proxy = sw.Proxy([(torch.ones(4, 6),)], mean_square)
    with sw.watch(model, None, logdir=None, proxy=proxy, every=1, max_overhead=None) as watcher:
        watcher.step()
        with torch.no_grad():
            model.get_parameter(name).fill_(float("nan"))
        for _ in range(3):
            watcher.step()
    assert caplog.text.count(said) == 1
    assert any(said in remark for remark in watcher.records[1].remarks(watcher.records[0]))
    assert not watcher.records[-1].essential_sparsity.informative
    # no fall of near-zero weights
    assert {event.series for event in watcher.events} <= {"vital/not_finite"}
