"""Copies of weights: equal bit for bit, in memory of their own that stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import Snapshot, WarmCopy


def snapshot(model: nn.Module, step: int = 1) -> Snapshot:
    return Snapshot.of(model, Scope.of(model, "matrices"), step)


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_copy_is_the_same_bits_and_stays_when_training_goes_on(dtype) -> None:
    net = model(dtype)
    with torch.no_grad():
        net[0].weight[0, 0] = float("nan")
        net[0].weight[0, 1] = -0.0
    before = {n: t.clone().view(torch.uint8) for n, t in snapshot(net).tensors.items()}
    copy = WarmCopy().take(snapshot(net, step=7))
    with torch.no_grad():
        net[0].weight.zero_()
    assert copy.step == 7
    for name, tensor in copy.tensors.items():
        assert torch.equal(tensor.view(torch.uint8), before[name])


def test_the_memory_stays_until_the_weights_change_their_form() -> None:
    net, warm = model(), WarmCopy()
    first = {n: t.data_ptr() for n, t in warm.take(snapshot(net)).tensors.items()}
    assert {n: t.data_ptr() for n, t in warm.take(snapshot(net)).tensors.items()} == first
    for name, tensor in snapshot(net).tensors.items():
        assert first[name] != tensor.data_ptr()
    copy = warm.take(snapshot(net.to(torch.float64)))
    assert all(t.dtype == torch.float64 for t in copy.tensors.values())


def test_strided_weights_are_copied_by_value() -> None:
    net = model()
    net[0].weight = nn.Parameter(torch.arange(35.0).reshape(5, 7).t())
    copy = WarmCopy().take(snapshot(net))
    assert torch.equal(copy.tensors["0.weight"], net[0].weight)
