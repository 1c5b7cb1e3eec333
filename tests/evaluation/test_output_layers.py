"""Which layers make the output: seen in a forward, however it goes from one layer to the next."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import sparsitywatch as sw
from sparsitywatch.evaluation.checks import seen_scope
from sparsitywatch.weights.scope import Scope


class Layers(nn.Module):
    """Three layers of one width in an order that no name and no shape tells: b, then c, then a."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))
        self.run = run

    def forward(self, x: torch.Tensor) -> Any:
        return self.run(self, x)


def value(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    found = model(batch)
    if dataclasses.is_dataclass(found):
        found = found.logits
    found = found if isinstance(found, torch.Tensor) else next(iter(found))
    return found.mean(1)


def outputs(
    model: nn.Module, of: Callable[..., torch.Tensor] = value, scope: str = "blocks"
) -> set[str]:
    """The layers that are out as output layers, each of them seen."""
    proxy = sw.Proxy([torch.rand(4, 8), torch.rand(4, 8)], of)
    decided = seen_scope(Scope.of(model, scope), scope, model, proxy)
    out = {e.name: e.reason for e in decided.ledger if e.reason.startswith("output layer")}
    assert set(out.values()) <= {"output layer, seen in a forward"}
    return {name.split(".")[0] for name in out}


@dataclasses.dataclass
class Output:
    logits: torch.Tensor


def into_a_buffer(m: Layers, x: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(len(x), 16)
    out[:, :8] = m.b(x)
    out[:, 8:] = m.c(out[:, :8])
    return m.a(out[:, 8:])


def in_place(m: Layers, x: torch.Tensor) -> torch.Tensor:
    h = m.b(x).relu_().add_(1)
    h.mul_(m.c(h))
    return m.a(h).div_(2)


def through_numpy(m: Layers, x: torch.Tensor) -> torch.Tensor:
    """No operator of torch leads from b to c."""
    h = torch.from_numpy(np.tanh(m.b(x).numpy()))
    return m.a(m.c(h))


def autocast(m: Layers, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return m.a(m.c(m.b(x))).float()


def split(m: Layers, x: torch.Tensor) -> torch.Tensor:
    one, other = m.c(m.b(x)).chunk(2, dim=1)
    return m.a(torch.cat([other, one], 1)).T.contiguous().T


def with_a_side_branch(m: Layers, x: torch.Tensor) -> torch.Tensor:
    m.c(m.b(x))  # for nothing
    return m.a(m.b(x))


def again_and_again(m: Layers, x: torch.Tensor) -> torch.Tensor:
    for _ in range(3):  # what a puts out goes into b again
        x = m.a(m.c(m.b(x)))
    return x


def by_function(m: Layers, x: torch.Tensor) -> torch.Tensor:
    """Only the weights of the layers are used, cast to another dtype, and in a penalty."""
    for layer in (m.b, m.c, m.a):
        x = nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double()).float()
    return x + 1e-3 * (m.a.weight.norm() + m.b.weight.norm())


FORWARDS = [
    into_a_buffer, in_place, through_numpy, autocast, split, with_a_side_branch, again_and_again,
    by_function,
    lambda m, x: checkpoint(lambda y: m.a(m.c(m.b(y))), x, use_reentrant=False),
    lambda m, x: Output(m.a(m.c(m.b(x)))),
    lambda m, x: {"out": m.a(m.c(m.b(x)))}.values(),
    lambda m, x: torch.no_grad()(m.a)(m.c(m.b(x)).detach()),
    lambda m, x: m.a(m.c(m.b(x))).softmax(1).log().clamp(-9, 0),
    lambda m, x: m.a(m.c(m.b(x))) + m.b(x),  # b is taken by c
]  # fmt: skip


@pytest.mark.parametrize("run", FORWARDS)
def test_the_output_layer_is_the_one_that_makes_the_output(run: Callable[..., Any]) -> None:
    assert outputs(Layers(run)) == {"a"}


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda m, x: (m.a(h := m.c(x)), m.b(h)), {"a", "b"}),
        (lambda m, x: m.a(x) + m.b(m.c(x)), {"a", "b"}),
        (lambda m, x: (m.a(m.b(h := m.c(x))), h), {"a"}),  # as an autoencoder gives its code
    ],
)
def test_several_layers_may_make_the_output(run: Callable[..., Any], expected: set[str]) -> None:
    assert outputs(Layers(run)) == expected


def test_a_value_that_runs_a_part_of_the_model_shows_the_layers_of_that() -> None:
    model = Layers(lambda m, x: m.c(m.b(m.a(x))))
    assert outputs(model) == {"c"}
    assert outputs(model, lambda m, batch: m.b(m.a(batch)).mean(1)) == {"b"}


def test_layers_in_wrappers_and_with_computed_weights_are_seen() -> None:
    model = Layers(lambda m, x: m.a(m.c(m.b(x))))
    model.a = checkpoint_wrapper(model.a)
    model.b = parametrizations.spectral_norm(model.b)
    assert outputs(model) == {"a"}
    model = Layers(lambda m, x: m.a(m.c(m.b(x))))
    model.c.compile(backend="eager")
    assert outputs(model) == {"a"}
    attention = Layers(lambda m, x: m.a(m.b(m.c(x)[None]), m.b(x[None]), m.b(x[None]))[0][0])
    attention.a = nn.MultiheadAttention(8, 2)
    names = {"a.in_proj_weight", "a.out_proj.weight"}
    assert outputs(attention) == {"a"}
    proxy = sw.Proxy([torch.rand(4, 8)], value)
    seen = seen_scope(Scope.of(attention), "blocks", attention, proxy)
    assert names.isdisjoint(seen.names)
    assert seen.names == ("b.weight", "c.weight")


def test_a_tied_decoder_makes_the_output_with_the_weights_of_the_encoder() -> None:
    def run(m: Layers, x: torch.Tensor) -> torch.Tensor:
        h = m.b(m.c(x))
        return nn.functional.linear(nn.functional.linear(h, m.b.weight.T), m.c.weight.T)

    assert outputs(Layers(run)) == {"c"}


def test_a_recurrent_layer_is_never_the_output_layer() -> None:
    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.rnn = nn.Linear(8, 8), nn.GRU(8, 8, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rnn(self.a(x)[:, None])[0][:, 0]

    model = Ends()
    assert outputs(model) == set()
    proxy = sw.Proxy([torch.rand(4, 8)], value)
    seen = seen_scope(Scope.of(model), "blocks", model, proxy)
    assert seen.names == ("a.weight", "rnn.weight_ih_l0", "rnn.weight_hh_l0")


@settings(max_examples=30, deadline=None)
@given(draw=st.randoms(use_true_random=False))
def test_any_network_of_layers(draw: random.Random) -> None:
    """The layers that no other one takes, as the edges of the graph say it."""
    num = draw.randint(2, 6)
    inputs = {i: draw.sample(range(i), draw.randint(0, min(i, 2))) for i in range(num)}
    names = draw.sample(["fc", "head", "out", "x1", "x9", "x10", "decoder"], num)

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name in sorted(names):
                self.add_module(name, nn.Linear(8, 8))

        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            made: list[torch.Tensor] = []
            for i, name in enumerate(names):
                given = sum((made[j] for j in inputs[i]), x)
                made.append(getattr(self, name)(given).tanh())
            return made[::-1]

    taken = {j for given in inputs.values() for j in given}
    ends = {names[i] for i in range(num) if i not in taken}
    if len(ends) < num:  # else there would be no scope
        assert outputs(Network()) == ends


def test_looking_leaves_nothing_behind() -> None:
    model = Layers(lambda m, x: m.a(m.c(m.b(x + torch.rand_like(x)))))
    before, state = {n: p.clone() for n, p in model.named_parameters()}, torch.get_rng_state()
    proxy = sw.Proxy([torch.rand(4, 8)], value)
    torch.set_rng_state(state)
    seen_scope(Scope.of(model), "blocks", model, proxy)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in model.named_parameters())
    assert model.training
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_no_forward_is_run_where_it_changes_nothing() -> None:
    def never(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        raise AssertionError("not needed")

    proxy = sw.Proxy([torch.rand(4, 8)], never)
    model = Layers(lambda m, x: m.a(m.c(m.b(x))))
    for scope in ("layers", "matrices", ["a.*"], lambda name, p: p.ndim == 2):
        decided = Scope.of(model, scope)
        assert seen_scope(decided, scope, model, proxy) is decided
    blocks = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    decided = Scope.of(blocks)
    assert seen_scope(decided, "blocks", blocks, proxy) is decided


def test_what_cannot_be_seen_is_told_from_shapes_and_said(caplog: pytest.LogCaptureFixture) -> None:
    def value_that_breaks(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        if torch._C._len_torch_dispatch_stack():
            raise RuntimeError("no modes, please")
        return value(model, batch)

    model = Layers(lambda m, x: m.a(m.c(m.b(x))))
    proxy = sw.Proxy([torch.rand(4, 8)], value_that_breaks)
    decided = Scope.of(model)
    assert seen_scope(decided, "blocks", model, proxy) is decided
    assert "could not be seen" in caplog.text
    assert "no modes, please" in caplog.text


def test_a_watch_measures_and_a_replay_measure_what_was_seen(tmp_path, caplog) -> None:
    model = Layers(lambda m, x: m.a(m.c(m.b(x))))
    proxy = sw.Proxy([torch.rand(4, 8)], value)
    expected = 2 * 64
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with sw.watch(model, optimizer, proxy=proxy, every=1, logdir=tmp_path / "live",
                  max_overhead=None) as watcher:  # fmt: skip
        optimizer.step()
    assert "may decide otherwise about a.weight, c.weight. Give it the model, and" in caplog.text
    torch.save(model.state_dict(), tmp_path / "step_1.pt")
    stored = sw.replay([tmp_path / "step_1.pt"], model=model, proxy=proxy, logdir=None)
    (again,) = stored.records
    once = sw.measure(model, proxy)
    live = watcher.records[-1]
    for record in (live, again, once):
        assert record.scope.num_weights == expected
        assert record.provenance.scope_hash == live.provenance.scope_hash
        assert (record.curve.value[0], record.curve.value[-1]) == (
            live.curve.value[0],
            live.curve.value[-1],
        )
