"""Norms of gradients, against a count by hand of what the optimizer used."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from contracts import fake_run
from torch import nn

import sparsitywatch as sw
from sparsitywatch.analysis.verdict import verdict
from sparsitywatch.ranks.reading import WHOLE_MODEL
from sparsitywatch.records import BlockGradient, Gradient
from sparsitywatch.vital.gradients import GradientSums

Counted = dict[str, tuple[float, float]]  # sum of squares and share of zeros, by tensor


class Net(nn.Module):
    """A table, two blocks, a frozen tensor, and a part that no gradient reaches."""

    def __init__(self, *, is_sparse: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 8, sparse=is_sparse)
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
        self.unused, self.head = nn.Linear(8, 2), nn.Linear(8, 3)
        self.scale = nn.Parameter(torch.ones(8), requires_grad=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.table(tokens).mean(1) * self.scale
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.head(x)


def by_hand(model: nn.Module) -> Counted:
    """Of every gradient as it is now, in float64."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            dense = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
            values = dense.detach().to(torch.complex128).numpy()
            found[name] = (float(np.square(np.abs(values)).sum()), float((values == 0).mean()))
    return found


class Loop:
    """Five steps with a snapshot after each, and what was counted by hand right before each."""

    def __init__(self, model: nn.Module, optimizer: Any, way: str = "") -> None:
        self.model, self.optimizer, self.way = model, optimizer, way
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=way == "scaled")
        self.counted: list[Counted] = []
        self.before: list[float] = []

    def step(self, number: int) -> None:
        draw = torch.Generator().manual_seed(number)
        self.optimizer.zero_grad(set_to_none=self.way != "kept")
        for _ in range(3 if self.way == "accumulated" else 1):
            tokens = torch.randint(30, (6, 4), generator=draw)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.way == "scaled"):
                loss = self.model(tokens).float().square().mean()
            self.scaler.scale(loss).backward()
        if self.way in ("scaled", "clipped"):
            self.scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.model.parameters(), 0.01)
            self.before.append(float(norm))
            self.watcher.log_loss(loss.detach(), gradient_norm=norm)
        self.counted.append(by_hand(self.model))
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def run(self, first: int = 0, num: int = 5, state: Any = None, **given: Any) -> list[sw.Record]:
        given = {"every": 1, "logdir": None, "scope": "layers", "max_overhead": None} | given
        with sw.watch(self.model, self.optimizer, **given) as self.watcher:
            if state is not None:
                self.watcher.load_state_dict(state)
            for number in range(first, first + num):
                self.step(number)
        return list(self.watcher.records)[-num:]


def made(way: str) -> Loop:
    torch.manual_seed(0)
    model = Net(is_sparse=way == "sparse")
    trained = [p for p in model.parameters() if p.requires_grad]
    kinds: dict[str, Callable[[Any], Any]] = {
        "sparse": lambda ps: torch.optim.SGD(ps, lr=0.1),
        "fused": lambda ps: torch.optim.AdamW(ps, lr=0.01, fused=True),
    }
    return Loop(model, kinds.get(way, lambda ps: torch.optim.AdamW(ps, lr=0.01))(trained), way)


WAYS = ("plain", "kept", "accumulated", "clipped", "scaled", "sparse", "fused")


@pytest.mark.parametrize("way", WAYS)
def test_norms_are_those_that_the_optimizer_used(way: str) -> None:
    loop = made(way)
    records, past = loop.run(), []
    for record, counted in zip(records, loop.counted, strict=True):
        gradient = record.vital.gradient
        assert record.valid
        assert gradient.num_tensors == len(counted) == 7
        whole = math.sqrt(sum(squares for squares, _ in counted.values()))
        assert gradient.norm == record.series()["gradient/norm"] == pytest.approx(whole, rel=1e-6)
        usual = np.median(past[-8:]) if past else math.nan
        assert gradient.change == pytest.approx(whole / usual, rel=1e-5, nan_ok=True)
        past.append(whole)
        of_blocks = {"table": 0.0, "layers.0": 0.0, "layers.1": 0.0, "head": 0.0}
        for name, (squares, _) in counted.items():
            of_blocks[next(block for block in of_blocks if name.startswith(block))] += squares
        assert [block.name for block in gradient.blocks] == [*of_blocks]
        norms = [block.norm**2 for block in gradient.blocks]
        assert norms == pytest.approx([*of_blocks.values()], rel=1e-6)
        for layer in record.layers:
            squares, zeros = counted.get(layer.name, (math.nan, math.nan))
            assert layer.gradient == pytest.approx(math.sqrt(squares), rel=1e-6, nan_ok=True)
            assert layer.gradient_zeros == pytest.approx(zeros, nan_ok=True)
    before = [record.vital.gradient.before_clip for record in records]
    assert before == pytest.approx(loop.before or [math.nan] * 5, nan_ok=True)


def test_updates_are_told_beside_the_weights_less_what_decay_explains() -> None:
    torch.manual_seed(0)
    loop = made("plain")
    loop.optimizer = torch.optim.AdamW(
        [p for p in loop.model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.5
    )
    before = copy.deepcopy(loop.model.state_dict())
    (*_, record) = loop.run(every=5)
    shrink = (1.0 - 0.01 * 0.5) ** 5
    layers = {layer.name: layer.update_to_weight for layer in record.layers}
    for name, was in before.items():
        now = loop.model.state_dict()[name]
        moved = (now.double() - shrink * was.double()).square().mean().sqrt()
        if name in layers and "unused" not in name:
            assert layers[name] == pytest.approx(float(moved / was.double().square().mean().sqrt()))
    assert layers["unused.weight"] == 0.0


def test_what_a_watch_reads_of_gradients_changes_no_bit() -> None:
    states = []
    for is_watched in (True, False):
        loop = made("sparse")
        loop.run() if is_watched else [loop.step(number) for number in range(5)]
        states.append((loop.model.state_dict(), by_hand(loop.model), torch.get_rng_state()))
    assert all(map(torch.equal, states[0][0].values(), states[1][0].values()))
    assert states[0][1] == states[1][1]
    assert torch.equal(states[0][2], states[1][2])


def test_a_run_that_is_resumed_tells_what_a_whole_one_tells() -> None:
    whole, loop, again = made("plain").run(), made("plain"), made("plain")
    loop.run(num=2)
    given = copy.deepcopy([x.state_dict() for x in (loop.model, loop.optimizer, loop.watcher)])
    again.model.load_state_dict(given[0])
    again.optimizer.load_state_dict(given[1])
    told = again.run(first=2, num=3, state=given[2])
    assert [x.vital.gradient for x in told] == [x.vital.gradient for x in whole[2:]]


@pytest.mark.parametrize(
    ("changes", "words"),
    [((1.0, 0.5, 2.9), ""), ((1.0, 4.0, 0.2), "gradient norm of block h.2 at 0.2 times its usual"),
     ((math.nan, 0.0, 12.34), "gradient norm of block h.2 at 12.3 times its usual"), ((), "")],
)  # fmt: skip
def test_status_names_the_block_that_is_farthest_from_its_own_past(
    changes: tuple[float, ...], words: str
) -> None:
    blocks = tuple(
        BlockGradient(name=f"h.{i}", norm=1.0, zeros=0.0, change=x) for i, x in enumerate(changes)
    )
    gradient = Gradient(num_tensors=3, norm=1.0, zeros=0.0, blocks=blocks)
    assert gradient.describe() == words
    record = fake_run.look(2000)[0]
    record = replace(record, vital=replace(record.vital, gradient=gradient))
    said = verdict([record], []).numbers
    assert [text for text in said if "gradient" in text] == ([words] if words else [])


PARTS = {
    "large": lambda: torch.randn(300_001),
    "wide range": lambda: torch.randn(1000) * 1e-25,
    "huge": lambda: torch.randn(1000) * 1e25,
    "half": lambda: torch.randn(100, 7).half() * 1000,
    "bfloat16": lambda: torch.randn(100, 7).bfloat16(),
    "double": lambda: torch.randn(50, dtype=torch.float64),
    "complex": lambda: torch.randn(40, 3, dtype=torch.complex64),
    "turned": lambda: torch.randn(6, 5, 4).permute(2, 0, 1),
    "channels last": lambda: torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    "scalar": lambda: torch.tensor(-3.0),
    "one column": lambda: torch.zeros(500, 40).index_fill_(1, torch.tensor([7]), 2.0),
    "not finite": lambda: torch.tensor([1.0, math.inf]),
    "NaN": lambda: torch.tensor([1.0, math.nan]),
}


@pytest.mark.parametrize("kind", PARTS)
def test_every_element_is_counted_whatever_its_layout_and_type(kind: str) -> None:
    torch.manual_seed(0)
    gradient = PARTS[kind]()
    parameter = nn.Parameter(torch.zeros_like(gradient))
    parameter.grad = gradient
    bits = gradient.clone()
    sums = GradientSums.of({"w": parameter}, ["w"], WHOLE_MODEL, math.nan)
    values = gradient.to(torch.complex128 if gradient.is_complex() else torch.float64).numpy()
    expected = np.square(np.abs(values)).sum()
    assert sums.squares[0] == pytest.approx(expected, rel=1e-6, nan_ok=True)
    assert 1 - sums.nonzero[0] / sums.num[0] == pytest.approx((values == 0).mean())
    assert torch.equal(parameter.grad.nan_to_num(7), bits.nan_to_num(7))


def test_an_element_that_a_sparse_gradient_has_twice_is_counted_once() -> None:
    parameter = nn.Parameter(torch.zeros(4, 2))
    values = torch.tensor([[1.0, 2.0], [3.0, -2.0], [0.5, 0.0]])
    parameter.grad = torch.sparse_coo_tensor([[1, 1, 3]], values, (4, 2), check_invariants=True)
    sums = GradientSums.of({"w": parameter}, ["w"], WHOLE_MODEL, math.nan)
    assert (sums.squares[0], sums.nonzero[0], sums.num[0]) == (16.25, 2.0, 8.0)
