"""The proxy freezes its batches, checks its value function, and disturbs nothing."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sparsitywatch.errors import ProxyError
from sparsitywatch.pruning.proxy import Proxy
from sparsitywatch.pruning.undisturbed import undisturbed


def value(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean(dim=1)


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 3, generator=generator) for _ in range(3)]


def test_values_are_those_of_the_batches_at_the_time_of_the_call() -> None:
    model, source = nn.Linear(3, 2), batches()
    expected = torch.cat([value(model, b) for b in source]).double().detach().numpy()
    proxy = Proxy(source, value)
    for batch in source:
        batch.zero_()
    with undisturbed(model):
        np.testing.assert_array_equal(proxy.evaluate(model), expected)
    assert proxy.num_batches == 3


def test_a_dataloader_is_read_once_and_the_generators_stay() -> None:
    loader = DataLoader(TensorDataset(torch.randn(10, 3)), batch_size=4, shuffle=True)

    def source():
        for (batch,) in loader:
            np.random.rand()  # noqa: NPY002 what a user's collate function may do
            random.random()
            yield batch

    torch.manual_seed(1)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    proxy = Proxy(source(), value)
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]
    assert proxy.num_batches == 3


def test_the_hash_is_about_the_batches_and_the_value() -> None:
    base = Proxy(batches(), value).hash
    assert Proxy(batches(), value).hash == base
    assert Proxy(batches()[:2], value).hash != base
    assert Proxy(batches(), value, higher_is_better=True).hash != base
    assert Proxy(batches(), value, name="other").hash != base


def test_an_endless_source_needs_a_limit() -> None:
    assert Proxy(itertools.repeat(torch.ones(2, 3)), value, max_batches=2).num_batches == 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "at least one batch, got none"),
        (torch.ones(2, 3), "Wrap a single batch in a list"),
        (5, "iterable of batches such as a list or a DataLoader, got int"),
        ([object()], r"got object at batches\[0\]"),
    ],
)
def test_bad_batches(source: object, message: str) -> None:
    with pytest.raises(ProxyError, match=message):
        Proxy(source, value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda m, b: m(b).mean(), r"shape \[N\].*got a tensor of shape \(\)"),
        (lambda m, b: m(b), r"got a tensor of shape \(4, 2\)"),
        (lambda m, b: m(b).argmax(1), r"dtype torch\.int64"),
        (lambda m, b: m(b).mean().item(), "got float"),
        (lambda m, b: m(b[:0]).mean(1), "at least two examples over all batches.*got 0"),
        (lambda m, b: 1 / 0, "it raised ZeroDivisionError: division by zero"),
        (lambda m, b: m(b[:1]).mean(1)[:1], None),
    ],
)
def test_a_bad_value_function_is_refused_at_attach(bad, message) -> None:
    model = nn.Linear(3, 2)
    proxy = Proxy(batches(), bad)
    if message is None:
        proxy.check(model)
        return
    with pytest.raises(ProxyError, match=message):
        proxy.check(model)
    assert model.training


def test_one_example_is_too_few_for_an_error() -> None:
    with pytest.raises(ProxyError, match=r"at least two examples over all batches.*got 1"):
        Proxy([torch.ones(1, 3)], value).check(nn.Linear(3, 2))


def test_a_value_that_is_no_function() -> None:
    with pytest.raises(ProxyError, match="`value` to be a function"):
        Proxy(batches(), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused_by_batch_and_example(broken: float) -> None:
    source = batches()
    source[1][2] = broken
    proxy = Proxy(source, value)
    with pytest.raises(ProxyError, match=r"got (nan|inf) for example 2 of batch 1\. A mean over"):
        proxy.check(nn.Linear(3, 2))
    proxy.check(nn.Linear(3, 2), has_weights=False)  # what a replay evaluates is still to come
    source[2][0] = broken
    with pytest.raises(ProxyError, match="example 2 of batch 1 and 1 others"):
        Proxy(source, value).check(nn.Linear(3, 2))
