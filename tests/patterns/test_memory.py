"""SparseGPT in groups of layers against all layers at once, to the bit; and what is held meanwhile.

d: features of a block, 4 d: those of its inner layer.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import sparsitywatch as sw
from sparsitywatch.errors import ConfigurationError, MeasurementError
from sparsitywatch.patterns.criteria import input_axes, inputs_on
from sparsitywatch.patterns.cuts import Grams, Inputs, Weights
from sparsitywatch.patterns.pattern import Pattern
from sparsitywatch.proxy.batches import Runnable

Tensors = dict[str, torch.Tensor]
D, NUM_BLOCKS = 4, 24
#: Bytes of the matrices of a block: one of query, key and value, two of d, one of 4 d.
BLOCK = 8 * (3 * D**2 + (4 * D) ** 2)
LAYER = 8 * (4 * D) ** 2
LEVELS = (0.3, 0.5, 0.8)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(D, D) for _ in range(3))
        self.output, self.up, self.down = nn.Linear(D, D), nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.tanh(self.query(x)) * torch.tanh(self.key(x)) + self.value(x)
        x = x + self.output(torch.tanh(h))
        return x + self.down(torch.relu(self.up(x)))


class Stack(nn.Module):
    """Blocks; with a memory, each forward adds to what the next one begins with."""

    def __init__(self, num_blocks: int = NUM_BLOCKS, *, remembers: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(num_blocks))
        self.remembers, self.seen = remembers, 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.seen
        if self.remembers:
            self.seen += 0.125
        for block in self.blocks:
            x = block(x)
        return x


def stack(num_blocks: int = NUM_BLOCKS, *, remembers: bool = False) -> Stack:
    torch.manual_seed(0)
    return Stack(num_blocks, remembers=remembers).eval()


def value(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean((1, 2))


def proxy() -> sw.Proxy:
    generator = torch.Generator().manual_seed(1)
    return sw.Proxy([torch.randn(n, 5, D, generator=generator) for n in (6, 4)], value)


def weights_of(model: nn.Module) -> Tensors:
    return {name: p.detach() for name, p in model.named_parameters() if p.ndim == 2}


def pruned(model: nn.Module, found: Inputs, pattern: Pattern) -> list[Tensors]:
    """The weights at each level; levels go first, as in an evaluation."""
    dense = weights_of(model)
    known = Weights.of(dense, input_axes=input_axes(model, [*dense]), inputs=found)
    every = []
    for cut in pattern.cuts(known, LEVELS):
        out = {name: torch.empty_like(tensor) for name, tensor in dense.items()}
        for name, tensor in dense.items():
            cut.prune(name, tensor, out[name])
        every.append(out)
    return every


def hooked(model: nn.Module) -> Inputs:
    """What comes into each layer, all at once, by hooks of our own."""
    sums: dict[str, Any] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, name=f"{path}.weight": sums.setdefault(name, []).append(
                args[0].flatten(0, -2).double()
            )
        )
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    with torch.no_grad():
        proxy().evaluate(model)
    for handle in handles:
        handle.remove()
    products = {name: sum(one.T @ one for one in every) for name, every in sums.items()}
    return Inputs({}, {n: p.diagonal() for n, p in products.items()}, products)


@pytest.fixture(scope="module", params=["sparsegpt", "sparsegpt:2:4"])
def at_once(request: pytest.FixtureRequest) -> tuple[str, list[Tensors]]:
    model = stack(6)
    pattern = Pattern(*request.param.split(":", 1))
    return request.param, pruned(model, hooked(model), pattern)


@pytest.mark.parametrize(
    ("limit", "num_groups"),
    [
        (LAYER, 12),
        (BLOCK, 6),
        (BLOCK + LAYER, 4),
        (2.5 * BLOCK, 3),
        (6 * BLOCK, 1),
        (BLOCK * 1e9, 1),
    ],
)
def test_in_groups_weights_are_those_of_all_layers_at_once_to_the_bit(
    at_once: tuple[str, list[Tensors]], limit: float, num_groups: int
) -> None:
    name, expected = at_once
    pattern, model, passes = Pattern(*name.split(":", 1), memory_gb=limit / 1e9), stack(6), []

    def again() -> Runnable:
        passes.append(None)
        return Runnable(model, value)

    found, values = inputs_on(proxy(), Runnable(model, value), [*weights_of(model)], pattern, again)
    assert values.tolist() == proxy().evaluate(model).tolist()
    for own, other in zip(pruned(model, found, pattern), expected, strict=True):
        assert all(torch.equal(own[name], other[name]) for name in other)
    assert len(passes) == (0 if num_groups == 1 else len(LEVELS) * num_groups)


# ------------------------------------------------------------------ what is held


class Held(TorchDispatchMode):
    """Bytes of the square matrices that are alive, and their peak: products, factors, weights."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}  # bytes by storage
        self.peak = 0

    @property
    def num_bytes(self) -> int:
        return sum(self.alive.values())

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple) else (out,):
            if isinstance(one, torch.Tensor) and one.ndim == 2 and len(set(one.shape)) == 1:
                storage = one.untyped_storage()
                if storage._cdata not in self.alive and storage.nbytes() == one.nbytes:
                    self.alive[storage._cdata] = one.nbytes
                    weakref.finalize(storage, self.alive.pop, storage._cdata)
                    self.peak = max(self.peak, self.num_bytes)
        return out


@pytest.fixture
def held() -> Iterator[Held]:
    gc.collect()
    gc.disable()  # what is freed has to be so by itself
    try:
        with torch.no_grad(), Held() as mode:
            yield mode
    finally:
        gc.enable()


@pytest.mark.parametrize("num_blocks", [1, 4])
def test_no_more_than_the_limit_is_kept_and_three_times_a_block_at_the_peak(
    held: Held, num_blocks: int
) -> None:
    model, limit = stack(), num_blocks * BLOCK
    pattern, names = Pattern("sparsegpt", memory_gb=limit / 1e9), [*weights_of(model)]
    before = held.num_bytes
    found, _ = inputs_on(proxy(), Runnable(model, value), names, pattern)
    assert held.num_bytes == before
    known = Weights.of(weights_of(model), inputs=found)
    own = weights_of(model)
    outs = {name: torch.empty_like(tensor) for name, tensor in own.items()}
    before = held.num_bytes
    for cut in pattern.cuts(known, LEVELS[:2]):
        for name, tensor in own.items():
            cut.prune(name, tensor, outs[name])
            assert held.num_bytes - before <= limit
    assert held.peak - before <= limit + 2.0 * BLOCK


def test_where_all_fit_only_factors_stay_for_the_next_level(held: Held) -> None:
    model = stack()
    found, _ = inputs_on(
        proxy(), Runnable(model, value), [*weights_of(model)], Pattern("sparsegpt")
    )
    before = held.num_bytes - NUM_BLOCKS * BLOCK
    kept = pruned(model, found, Pattern("sparsegpt"))
    weights = sum(t.nbytes for out in kept for t in out.values() if len(set(t.shape)) == 1)
    assert held.num_bytes - before - weights == NUM_BLOCKS * BLOCK / 2


def test_a_layer_above_the_limit_is_an_error_that_says_what_it_takes() -> None:
    pattern = Pattern("sparsegpt", memory_gb=0.9 * LAYER / 1e9)
    with pytest.raises(MeasurementError, match=r"'blocks\.0\.down\.weight' take 2\.048e-06 GB"):
        sw.measure(stack(2), proxy(), pattern=pattern, scope="layers", levels=[0.5])


# ------------------------------------------------------------------ where patterns are used


def limited(pattern: str = "layer") -> Pattern:
    return Pattern("sparsegpt", pattern, memory_gb=LAYER / 1e9)


@pytest.mark.parametrize("remembers", [False, True])
@pytest.mark.parametrize("levels", [None, [0.25, 0.5]])
def test_a_model_is_measured_alike_also_if_forwards_leave_something_behind(
    remembers: bool, levels: list[float] | None
) -> None:
    model = stack(2, remembers=remembers)
    one, other = (
        sw.measure(model, proxy(), pattern=pattern, scope="layers", levels=levels)
        for pattern in (Pattern("sparsegpt"), limited())
    )
    assert one.curve == other.curve
    assert one.provenance.pattern == other.provenance.pattern
    assert one.cost.num_forwards < other.cost.num_forwards
    assert model.seen == 0.0


def test_a_training_is_watched_alike(tmp_path: Any) -> None:
    curves = []
    for pattern in (Pattern("sparsegpt", "2:4"), limited("2:4")):
        model = stack(2).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        with sw.watch(
            model, optimizer, proxy=proxy(), pattern=pattern, scope="layers", every=2,
            logdir=tmp_path / str(len(curves)), max_overhead=None,
        ) as watcher:  # fmt: skip
            for _ in range(4):
                optimizer.zero_grad()
                model(torch.ones(2, 3, D)).square().mean().backward()
                optimizer.step()
        curves.append([record.curve for record in watcher.records])
    assert curves[0] == curves[1]
    assert len(curves[0]) == 2


def test_a_curve_of_trainings_goes_on_with_another_limit(tmp_path: Any) -> None:
    def curve(pattern: Pattern, log: str) -> Any:
        return sw.finetuned_curve(
            lambda: stack(2), lambda _: None, lambda m: proxy().evaluate(m), levels=[0.5],
            seeds=(0,), pattern=pattern, proxy=proxy(), higher_is_better=False, scope="layers",
            log=tmp_path / log,
        )  # fmt: skip

    assert curve(Pattern("sparsegpt"), "a").value == curve(limited(), "b").value
    before = (tmp_path / "a").read_bytes()
    curve(limited(), "a")
    assert (tmp_path / "a").read_bytes() == before


def test_a_limit_is_part_of_no_name_and_refused_where_it_says_nothing() -> None:
    assert Pattern("sparsegpt", memory_gb=0.5).name == "sparsegpt"
    assert sw.patterns.SparseGPT(memory_gb=0.5) == Pattern("sparsegpt", memory_gb=0.5)
    with pytest.raises(ConfigurationError, match="`memory_gb` to be left out with the score"):
        Pattern("wanda", memory_gb=0.5)
    with pytest.raises(ConfigurationError, match="`memory_gb` to be a number > 0"):
        Pattern("sparsegpt", memory_gb=0)


def test_what_was_gathered_is_gathered_again_for_who_asks_once_more() -> None:
    came = []

    def gather(group: Any) -> Tensors:
        came.append(group)
        return {name: torch.ones(1) for name in group}

    products = Grams([["a", "b"], ["c"]], gather)
    assert products.turned("a", 1, lambda own: own + 1) == 2
    assert products.turned("b", 1, lambda own: own + 2) == 3
    assert products.turned("a", 1, lambda own: own + 4) == 2
    assert [*products] == ["a", "b", "c"]
    assert products["c"] == 1
    assert products["a"] == 1
    assert came == [["a", "b"], ["c"], ["a", "b"]]
