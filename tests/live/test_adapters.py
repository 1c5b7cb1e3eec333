"""Trainings of which most is frozen: numbers are of what is trained, and every surface says so."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import sparsitywatch as sw
from sparsitywatch.cli import main
from sparsitywatch.page.data import page_data

WIDTH = 16


class Layer(nn.Module):
    """A linear layer beside which something small may be trained."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.base, self.kind = nn.Linear(WIDTH, WIDTH), kind
        if kind in ("lora", "dora"):
            self.lora_A, self.lora_B = nn.Linear(WIDTH, 2, False), nn.Linear(2, WIDTH, False)
            nn.init.zeros_(self.lora_B.weight)
        if kind in ("dora", "ia3"):
            self.gain = nn.Parameter(torch.ones(WIDTH) + 0.1 * torch.randn(WIDTH))
        if kind == "bottleneck":
            self.adapter = nn.Sequential(nn.Linear(WIDTH, 2), nn.ReLU(), nn.Linear(2, WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.base(x)
        if hasattr(self, "lora_A"):
            y = y + self.lora_B(self.lora_A(x))
        if hasattr(self, "gain"):
            y = y * self.gain
        return y + self.adapter(y) if hasattr(self, "adapter") else y


class Net(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(kind) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3)
        if kind == "prompt":
            self.prompt = nn.Embedding(2, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if hasattr(self, "prompt"):
            x = x + self.prompt.weight.sum(0)
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(self.norm(x))


def is_of(kind: str, name: str) -> bool:
    """Whether a parameter is trained, by its name."""
    if kind in ("head", "bias", "prompt"):
        return {"head": "head.", "bias": "bias", "prompt": "prompt"}[kind] in name
    return any(part in name for part in ("lora", "gain", "adapter"))


def matrices_of(kind: str, model: nn.Module) -> dict[str, torch.Tensor]:
    """What the numbers have to be about: trained matrices in blocks, else all that is trained."""
    trained = {n: p.detach() for n, p in model.named_parameters() if is_of(kind, n)}
    inside = {n: p for n, p in trained.items() if n.startswith("layers") and p.dim() > 1}
    return inside or trained


def train(kind: str, steps: int, **options) -> tuple[nn.Module, sw.Watcher]:
    torch.manual_seed(0)
    model = Net(kind)
    held = [p for n, p in model.named_parameters() if is_of(kind, n)]
    if kind != "head":  # that one is in no optimizer, and gets gradients
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(is_of(kind, name))
    optimizer = torch.optim.SGD(held, lr=0.1)
    x, y = torch.randn(32, WIDTH), torch.randint(3, (32,))
    with sw.watch(model, optimizer, every=2, max_overhead=None, on_event=(), **options) as watcher:
        for _ in range(steps):
            optimizer.zero_grad()
            functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model, watcher


KINDS = ["lora", "dora", "ia3", "bottleneck", "prompt", "bias", "head"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_of_what_is_trained_and_say_so(kind: str, tmp_path, caplog, capsys) -> None:
    model, watcher = train(kind, 6, logdir=tmp_path)
    expected, record = matrices_of(kind, model), watcher.records[-1]
    assert {layer.name for layer in record.layers} == expected.keys()
    weights = np.concatenate([p.numpy().ravel() for p in expected.values()])
    assert record.scope.num_weights == weights.size
    rms = np.sqrt(np.mean(np.square(weights.astype(np.float64))))
    sizes = {layer.name: layer.num_weights for layer in record.layers}
    whole = sum(layer.rms**2 * sizes[layer.name] for layer in record.layers) / weights.size
    assert math.sqrt(whole) == pytest.approx(rms, rel=1e-3)
    share = sum(p.numel() for n, p in expected.items() if n.startswith("layers"))
    total = share + 3 * WIDTH * WIDTH
    which = f"the trained {100 * share / total:.3g} % of the default scope"
    if kind in ("ia3", "prompt", "bias", "head"):
        which = "all that is trained, none of it in the default scope"
    run = sw.load(tmp_path)
    assert record.scope.which == which
    assert run.records[-1].scope.which == which
    assert which in caplog.messages[0]
    assert which in run.verdict.describe()
    assert (which in run.verdict.headline) == (run.verdict.event == 0)
    for command in (["status", str(tmp_path)], ["summary", str(tmp_path)]):
        main(command)
        assert which in " ".join(capsys.readouterr().out.split()), command
    assert which in page_data(run)["taken"]


@pytest.mark.parametrize("kind", ["lora", "bias"])
def test_replay_and_measure_take_what_a_live_watch_took(kind: str, tmp_path) -> None:
    model, watcher = train(kind, 4, logdir=tmp_path / "live")
    torch.save(model.state_dict(), tmp_path / "checkpoint-4.pt")
    live, log = watcher.records[-1], {"initial_rms": tmp_path / "live"}
    stored, of_model = (
        sw.replay([tmp_path / "checkpoint-4.pt"], logdir=None, on_event=(), **log, **more).records[
            -1
        ]
        for more in ({}, {"model": model})
    )
    measured = sw.measure(model)
    for other in (stored, of_model, measured):
        assert other.scope == live.scope
        assert other.provenance.scope_hash == live.provenance.scope_hash
    assert stored.near_zero == of_model.near_zero == live.near_zero
    everything = sw.measure(model, scope="all").scope
    assert everything.num_weights == 3 * WIDTH * WIDTH + (kind == "lora") * live.scope.num_weights
    assert "of them trained" in everything.describe()


def test_where_most_is_trained_nothing_is_left_out() -> None:
    model = Net("none")
    model.layers[0].requires_grad_(False)
    record = sw.measure(model)
    assert record.scope.describe() == "768 weights in 3 tensors, 66.7 % of them trained"
    model.requires_grad_(False)  # a model at rest
    assert sw.measure(model).scope.describe() == "768 weights in 3 tensors"
