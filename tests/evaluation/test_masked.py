"""Masks reach the model as it runs, and nothing is written into the one in training."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

import sparsitywatch as sw
from sparsitywatch.evaluation.masked import MaskedModel
from sparsitywatch.patterns.cuts import Weights
from sparsitywatch.patterns.pattern import GlobalMagnitude
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import Snapshot


def cuts_of(model: nn.Module, scope: Scope, levels: list[float]):
    snapshot = Snapshot.of(model, scope, 0)
    return GlobalMagnitude().cuts(Weights.of(snapshot.tensors), levels)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))


def run(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch)


def test_masks_are_in_the_copy_and_never_in_the_model() -> None:
    model = net()
    with torch.no_grad():
        model[0].weight[0, :3] = torch.tensor([float("nan"), -0.0, float("inf")])
    scope = Scope.of(model)
    addresses = [p.data_ptr() for p in model.parameters()]
    before = [p.detach().clone().view(torch.int32) for p in model.parameters()]
    versions = [p._version for p in model.parameters()]
    with MaskedModel(model, scope).session(run) as masks:
        dense = masks.dense().module
        masked = masks.masked(cuts_of(model, scope, [0.7])[0]).module
        assert (masked[2].weight == 0).any()
        assert (model[2].weight != 0).all()
        assert dense[2].weight.data_ptr() == model[2].weight.data_ptr()
        assert masked[4].weight.data_ptr() == model[4].weight.data_ptr()
    after = [p.detach().view(torch.int32) for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert [p.data_ptr() for p in model.parameters()] == addresses
    assert [p._version for p in model.parameters()] == versions


class Recurrent(nn.Module):
    def __init__(self, kind: str, **options: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rnn = getattr(nn, kind)(6, 8, **options)
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = self.rnn(x)[0]  # of a cell: its state, for each of the batch
        return self.head(found)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", {"num_layers": 2}), ("GRU", {}), ("RNN", {"num_layers": 2}),
        ("LSTMCell", {}),
    ],
)  # fmt: skip
def test_recurrent_weights_are_masked_as_they_run(kind: str, options: dict[str, int]) -> None:
    model, oracle = Recurrent(kind, **options), Recurrent(kind, **options)
    names = [n for n, p in model.named_parameters() if n.startswith("rnn") and p.ndim == 2]
    flat = torch.cat(
        [p.detach().abs().flatten() for n, p in model.named_parameters() if n in names]
    )
    threshold = flat.sort().values[len(flat) // 2]
    with torch.no_grad():
        for name, parameter in oracle.named_parameters():
            if name in names:
                parameter[parameter.abs() < threshold] = 0.0
    x = torch.rand(5, 6) if "Cell" in kind else torch.rand(5, 4, 6)
    for scope in ("blocks", [*names]):
        decided = Scope.of(model, scope)
        assert sorted(decided.names) == sorted(names)
        with MaskedModel(model, decided).session(run) as masks, torch.no_grad():
            assert torch.equal(masks.dense().module(x), model(x))
            (cut,) = cuts_of(model, decided, [(flat < threshold).double().mean().item()])
            assert torch.equal(masks.masked(cut).module(x), oracle(x))


def test_only_the_scope_is_masked_and_levels_start_from_dense() -> None:
    model = net()
    scope = Scope.of(model)
    high, low = cuts_of(model, scope, [0.9, 0.1])
    head = model[4].weight.detach().clone()
    with MaskedModel(model, scope).session(run) as masks:
        masks.masked(high)
        masked = masks.masked(low).module
        zeros = sum(int((masked[i].weight == 0).sum()) for i in (0, 2))
        assert zeros == round(low.sparsity * scope.summary.num_weights)
        assert torch.equal(masked[4].weight, head)


def test_tied_weights_are_masked_in_every_place() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 2))
    model[1].weight = model[0].weight
    scope = Scope.of(model)
    with MaskedModel(model, scope).session(run) as masks:
        masked = masks.masked(cuts_of(model, scope, [1.0])[0]).module
        assert not masked[1].weight.any()
        assert torch.equal(masked(torch.ones(1, 4)), model[2].bias[None])


def test_weights_masked_inside_autocast_are_the_ones_that_run() -> None:
    """The cached cast of the dense weights must not be used (a known trap of autocast)."""
    model, x = nn.Sequential(nn.Linear(8, 8, bias=False)), torch.randn(2, 8)
    scope = Scope.of(model, "layers")
    (everything,) = cuts_of(model, scope, [1.0])
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).abs().sum() > 0
        with MaskedModel(model, scope).session(run) as masks:
            assert masks.dense().module(x).abs().sum() > 0
            assert masks.masked(everything).module(x).abs().sum() == 0
        model(x).sum().backward()
    assert model[0].weight.grad.abs().sum() > 0


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["wrapper", "in place"])
def test_a_compiled_model_runs_with_the_masks_and_compiles_nothing_anew(compiled: str) -> None:
    model = net()
    x = torch.randn(3, 6)
    counter = CompileCounter()
    if compiled == "wrapper":
        running = torch.compile(model, backend=counter)
    else:
        model.compile(backend=counter)
        running = model
    running(x)
    graphs = counter.frame_count
    scope = Scope.of(model)
    masked = MaskedModel(running, scope)
    assert masked.module is model
    with masked.session(run) as masks:
        copied = masks.masked(cuts_of(model, scope, [1.0])[0]).module
        expected = nn.functional.linear(
            torch.tanh(model[2].bias)[None].expand(3, -1), *model[4].parameters()
        )
        torch.testing.assert_close(copied(x), expected)
    running(x)
    assert counter.frame_count == graphs


@pytest.mark.slow
def test_an_evaluation_of_a_watch_masks_in_the_copy_that_the_counting_has() -> None:
    """One copy of the weights beside the model, not two; and every bit is back."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 300), nn.Tanh(), nn.Linear(300, 300), nn.Linear(300, 2))
    before = [p.detach().clone() for p in model.parameters()]
    seen: list[set[int]] = []

    def value(m: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        tensors = (t for t in gc.get_objects() if type(t) in (torch.Tensor, nn.Parameter))
        seen.append({t.data_ptr() for t in tensors if t.shape == (300, 300)})
        return m(batch).square().mean(dim=1)

    proxy = sw.Proxy([torch.randn(8, 6)], value)
    options = {"scope": "layers", "every": 1, "max_overhead": None, "levels": [0.5]}
    with sw.watch(model, None, proxy=proxy, logdir=None, strict=True, **options) as watcher:
        seen.clear()
        watcher.step()
        assert watcher.records[-1].curve is not None
    assert max(map(len, seen)) == 3  # the parameter itself, the one in `before`, and one copy
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
