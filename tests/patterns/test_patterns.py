"""What a level removes, against sorting and against torch's own pruning."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode

import sparsitywatch as sw
from sparsitywatch.patterns import PATTERNS
from sparsitywatch.patterns.cuts import Inputs, Weights
from sparsitywatch.patterns.pattern import GlobalMagnitude, as_pattern

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LEVELS = [0.0, 0.1, 0.33, 0.5, 0.9, 0.95, 1.0]


def weights(seed: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "wide": (torch.randn(30, 20, generator=generator) * 3).to(dtype),
        "narrow": (torch.randn(40, 10, generator=generator) * 0.1).to(dtype).T,
        "ties": torch.tensor([0.0, -0.0, 0.5, -0.5, 0.5, 2.0]).to(dtype),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_a_cut_removes_what_it_counts_and_keeps_the_rest_bit_for_bit(dtype, seed) -> None:
    tensors = weights(seed, dtype)
    known = Weights.of(tensors)
    total = sum(t.numel() for t in tensors.values())
    previous: dict[str, np.ndarray] = {}
    for cut in GlobalMagnitude().cuts(known, LEVELS):
        removed_in_all = 0
        for name, dense in tensors.items():
            out = torch.full_like(dense, 7)
            cut.prune(name, dense, out)
            magnitude = dense.double().abs().numpy()
            removed = magnitude <= max(cut.thresholds.values())
            kept_bits = torch.where(torch.from_numpy(removed), torch.zeros_like(dense), dense)
            if cut.level == 0.0:
                assert not removed.any()
                assert torch.equal(out.signbit(), dense.signbit())
            assert torch.equal(out, kept_bits)
            assert cut.shares[name] == pytest.approx(removed.mean(), abs=1e-12)
            assert (removed | ~previous.get(name, removed)).all(), "masks of rising levels nest"
            previous[name] = removed
            removed_in_all += int(removed.sum())
        assert cut.sparsity == pytest.approx(removed_in_all / total, abs=1e-12)


def test_nan_and_inf_are_never_the_smallest() -> None:
    dense = torch.tensor([float("nan"), float("inf"), 1.0, 2.0])
    (half,) = GlobalMagnitude().cuts(Weights.of({"w": dense}), [0.5])
    out = torch.empty(4)
    half.prune("w", dense, out)
    assert math.isnan(out[0])
    assert out[1:].tolist() == [math.inf, 0.0, 0.0]
    assert half.sparsity == 0.5


def test_torch_global_unstructured_removes_the_same_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.Linear(96, 32)).double()
    for module in model:
        nn.init.normal_(module.weight)  # in double precision, so that no two are alike
    tensors = {f"{i}.weight": m.weight.detach() for i, m in enumerate(model)}
    assert len(torch.cat([t.abs().flatten() for t in tensors.values()]).unique()) == 9216
    known = Weights.of(tensors)
    for cut in GlobalMagnitude().cuts(known, [0.05, 0.3, 0.5, 0.77, 0.95]):
        peer = copy.deepcopy(model)
        prune.global_unstructured(
            [(m, "weight") for m in peer],
            pruning_method=prune.L1Unstructured,
            amount=round(cut.sparsity * 9216),
        )
        for index, module in enumerate(peer):
            out = torch.empty_like(model[index].weight)
            cut.prune(f"{index}.weight", model[index].weight.detach(), out)
            assert torch.equal(out, module.weight)


EIGHT_BITS = (torch.float8_e4m3fn, torch.float8_e5m2)


class WithoutArithmetic(TorchDispatchMode):
    """A device that can copy, index and convert weights of eight bits, and nothing else."""

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("abs", "mul", "lt", "le", "nan_to_num", "kthvalue", "sum", "square"):
            given = [one.dtype for one in args if isinstance(one, torch.Tensor)]
            assert not {*given} & {*EIGHT_BITS}, f"{name} is not implemented for {given}"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", EIGHT_BITS)
@pytest.mark.parametrize(
    "name",
    [*PATTERNS, "magnitude:layer:erk", "magnitude:layer:owl", "ria", "ria:2:4", "wanda:global",
     "random:n:8", "sparsegpt:3:5"],
)  # fmt: skip
def test_weights_of_eight_bits_go_as_their_values_do(name: str, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    tensors = {
        n: (s * torch.randn(64, 32, generator=draw)).to(dtype) for n, s in (("a", 1), ("b", 3))
    }
    wide = {n: tensor.float() for n, tensor in tensors.items()}
    came = torch.randn(500, 32, generator=draw).double() * torch.linspace(0.1, 3, 32)
    inputs = Inputs(
        {}, dict.fromkeys("ab", came.square().sum(0)), dict.fromkeys("ab", came.T @ came)
    )
    pattern = as_pattern(name)
    for level in (0.0, 0.3, 0.8, 1.0):
        (same,) = pattern.cuts(Weights.of(wide, inputs=inputs), [level])
        known = Weights.of(tensors, inputs=inputs)
        with WithoutArithmetic():
            (cut,) = pattern.cuts(known, [level])
        for n, tensor in tensors.items():
            out, expected = torch.empty_like(tensor), torch.empty_like(wide[n])
            with WithoutArithmetic():
                cut.prune(n, tensor, out)
            same.prune(n, wide[n], expected)
            assert torch.equal(out.float(), expected.to(dtype).float())


class Widened(nn.Linear):
    """Weights are stored in eight bits, and used in 32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight.float(), self.bias)


@pytest.mark.parametrize("dtype", EIGHT_BITS)
@pytest.mark.parametrize("name", [*PATTERNS, "ria", "wanda:global", "magnitude:layer:owl"])
def test_a_model_of_eight_bits_is_measured_and_watched(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Widened(8, 16), nn.ReLU(), Widened(16, 8))
    for layer in model[::2]:
        layer.weight.data = layer.weight.data.to(dtype)
        layer.weight.requires_grad_(False)
    x = torch.randn(20, 8)
    proxy = sw.Proxy([x], lambda m, batch: m(batch).square().mean(1))
    record = sw.measure(model, proxy, pattern=name, scope="layers")
    assert record.curve.sparsity[-1] == 1.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with sw.watch(
        model, optimizer, proxy=proxy, pattern=name, scope="layers", every=1, logdir=None,
        max_overhead=None,
    ) as watcher:  # fmt: skip
        for _ in range(2):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    assert [one.curve.level for one in watcher.records][-1] == record.curve.level
    assert not any(one.reason for one in watcher.records if one.valid)
