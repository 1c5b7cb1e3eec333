"""What a level removes, against sorting and against torch's own pruning."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from sparsitywatch.patterns.cuts import Weights
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


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize(
    "name", ["global", "layerwise", "global_normalised", "magnitude:layer:erk"]
)
def test_weights_of_eight_bits_go_as_their_values_do(name: str, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    tensors = {
        n: (s * torch.randn(64, 32, generator=draw)).to(dtype) for n, s in (("a", 1), ("b", 3))
    }
    wide = {n: tensor.float() for n, tensor in tensors.items()}
    pattern = as_pattern(name)
    for level in (0.0, 0.3, 0.8, 1.0):
        (cut,) = pattern.cuts(Weights.of(tensors), [level])
        (same,) = pattern.cuts(Weights.of(wide), [level])
        for n, tensor in tensors.items():
            out, expected = torch.empty_like(tensor), torch.empty_like(wide[n])
            cut.prune(n, tensor, out)
            same.prune(n, wide[n], expected)
            assert torch.equal(out.float(), expected)
