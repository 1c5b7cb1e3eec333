"""A model run in the middle of training shows no trace of it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from sparsitywatch.pruning.undisturbed import undisturbed


class Greedy(nn.Module):
    """Does in forward what a module should not: counts, draws, remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("nan", torch.tensor([float("nan"), 1.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.nan[1] = 5.0
        np.random.rand()  # noqa: NPY002
        random.random()
        return self.dropout(self.norm(self.linear(x))) + torch.rand(())


def state(model: nn.Module) -> list[object]:
    return [
        {k: v.clone() for k, v in model.state_dict().items()},
        [m.training for m in model.modules()],
        torch.get_rng_state(),
        np.random.get_state()[1].copy(),  # noqa: NPY002
        random.getstate(),
        torch.is_grad_enabled(),
        torch.is_autocast_cache_enabled(),
    ]


def test_nothing_is_left_behind() -> None:
    model = Greedy()
    model.norm.eval()
    before = state(model)
    with undisturbed(model):
        assert not any(m.training for m in model.modules())
        assert not torch.is_grad_enabled()
        model(torch.randn(4, 3))
    torch.testing.assert_close(state(model), before, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_behind_by_an_exception(error: type[BaseException]) -> None:
    model = Greedy()
    before = state(model)

    def interrupted() -> None:
        with undisturbed(model):
            model(torch.randn(4, 3))
            raise error

    with pytest.raises(error):
        interrupted()
    torch.testing.assert_close(state(model), before, equal_nan=True, rtol=0, atol=0)


def test_buffers_that_stayed_the_same_are_not_written_to() -> None:
    model = nn.BatchNorm1d(3)
    versions = [b._version for b in model.buffers()]
    with undisturbed(model):
        model(torch.randn(4, 3))
    assert [b._version for b in model.buffers()] == versions


def test_a_users_own_train_method_is_not_called() -> None:
    class Merging(nn.Linear):
        def train(self, mode: bool = True):
            raise AssertionError("train() merges the adapters")

    with undisturbed(nn.Sequential(Merging(2, 2))):
        pass


def test_weights_masked_inside_autocast_are_the_ones_that_run() -> None:
    """The cached cast of the dense weights must not be used (a known trap of autocast)."""
    model, x = nn.Linear(8, 8, bias=False), torch.randn(2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).abs().sum() > 0
        with undisturbed(model):
            kept = model.weight.detach().clone()
            model(x)
            model.weight.data.zero_()
            assert model(x).abs().sum() == 0
            model.weight.data.copy_(kept)
        assert model(x).abs().sum() > 0
        model(x).sum().backward()
    assert model.weight.grad is not None
    assert model.weight.grad.abs().sum() > 0
