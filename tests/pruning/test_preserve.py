"""A model run in the middle of training shows no trace of it, or is refused by name."""

from __future__ import annotations

import random
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from contracts.leftovers import LEFTOVERS, Remembering
from torch import nn

import sparsitywatch as sw
from sparsitywatch.pruning.preserve import preserve_state

pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*:DeprecationWarning")


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
    with preserve_state(model):
        assert not any(m.training for m in model.modules())
        assert not torch.is_grad_enabled()
        model(torch.randn(4, 3))
    torch.testing.assert_close(state(model), before, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_behind_by_an_exception(error: type[BaseException]) -> None:
    model = Greedy()
    before = state(model)

    def interrupted() -> None:
        with preserve_state(model):
            model(torch.randn(4, 3))
            raise error

    with pytest.raises(error):
        interrupted()
    torch.testing.assert_close(state(model), before, equal_nan=True, rtol=0, atol=0)


def test_buffers_that_stayed_the_same_are_not_written_to() -> None:
    model = nn.BatchNorm1d(3)
    versions = [b._version for b in model.buffers()]
    with preserve_state(model):
        model(torch.randn(4, 3))
    assert [b._version for b in model.buffers()] == versions


def test_a_users_own_train_method_is_not_called() -> None:
    class Merging(nn.Linear):
        def train(self, mode: bool = True):
            raise AssertionError("train() merges the adapters")

    with preserve_state(nn.Sequential(Merging(2, 2))):
        pass


def test_weights_masked_inside_autocast_are_the_ones_that_run() -> None:
    """The cached cast of the dense weights must not be used (a known trap of autocast)."""
    model, x = nn.Linear(8, 8, bias=False), torch.randn(2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).abs().sum() > 0
        with preserve_state(model):
            kept = model.weight.detach().clone()
            model(x)
            model.weight.data.zero_()
            assert model(x).abs().sum() == 0
            model.weight.data.copy_(kept)
        assert model(x).abs().sum() > 0
        model(x).sum().backward()
    assert model.weight.grad is not None
    assert model.weight.grad.abs().sum() > 0


def remembering(what: str) -> Remembering:
    torch.manual_seed(0)
    return Remembering(*LEFTOVERS[what])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_it_is_put_back_whatever_ends_the_forward(error: type[BaseException]) -> None:
    model = remembering("an RNN's self.state")
    model(torch.ones(5, 6))
    state, bits = model.state, model.state.detach().clone()

    def interrupted() -> None:
        with preserve_state(model):
            model(torch.ones(3, 6))
            model.state.zero_()
            raise error

    with pytest.raises(error):
        interrupted()
    assert model.state is state
    assert torch.equal(state, bits)


def test_a_buffer_that_was_resized_has_its_size_and_contents_again() -> None:
    model = nn.BatchNorm1d(3)
    with preserve_state(model):
        model.running_mean.resize_(5).fill_(7.0)
        model.register_buffer("late", torch.ones(1))
    assert model.running_mean.tolist() == [0.0, 0.0, 0.0]
    assert "late" not in dict(model.named_buffers())


class Slotted:
    __slots__ = ("late",)


class OwnList(list):
    pass


def a_closure() -> Any:
    def count() -> None:
        nonlocal late
        late = 1

    if count is None:
        late = 0
    return count


#: By what a forward does to it: what a module holds, and how that reads.
HELD: dict[str, tuple[Any, Callable[[Any], object], Callable[[Any], object]]] = {
    "the order of an OrderedDict": (
        lambda: OrderedDict(a=1, b=2), lambda h: h.move_to_end("a"), list),
    "an entry moved to the next container": (
        lambda: [[1], []], lambda h: h[1].append(h[0].pop()), repr),
    "an entry made by reading": (lambda: defaultdict(list), lambda h: h["new"], dict),
    "a long list": (lambda: [0] * 20_000, lambda h: h.__setitem__(5, 1), sum),
    "a set": (lambda: {1, 2}, lambda h: (h.add(9), h.discard(1)), sorted),
    "a bytearray": (lambda: bytearray(b"ab"), lambda h: h.append(1), bytes),
    "an attribute of a list": (OwnList, lambda h: setattr(h, "extra", 1), lambda h: {**vars(h)}),
    "a slot that was empty": (
        Slotted, lambda h: setattr(h, "late", 1), lambda h: hasattr(h, "late")),
    "a variable of a closure that was empty": (
        a_closure, lambda h: h(), lambda h: "empty" in repr(h.__closure__[0])),
}  # fmt: skip


@pytest.mark.parametrize("what", HELD)
def test_what_a_module_holds_is_as_before(what: str) -> None:
    make, change, read = HELD[what]
    model = nn.Linear(2, 2)
    model.held = held = make()
    before = read(held)
    with preserve_state(model) as state:
        change(held)
        assert read(held) != before
        state.put_back()
        assert read(held) == before
        change(held)
    assert model.held is held
    assert read(held) == before


def test_every_forward_of_a_sweep_starts_from_the_state_before() -> None:
    model = remembering("a Python counter")
    proxy = sw.Proxy([torch.linspace(-1, 1, 24).reshape(4, 6)], lambda m, x: m(x).square().mean(1))
    with sw.watch(model, None, logdir=None, proxy=proxy, scope="layers", levels=[0.5]) as watcher:
        record = watcher.snapshot()
    assert record.valid
    assert record.curve is not None
    with preserve_state(model):
        dense = float(proxy.evaluate(model).mean())
    assert record.curve.value[0] == dense
    assert model.count == 0


def test_what_a_value_function_counts_is_its_own_but_not_the_modules_it_uses() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("centre", torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.centre = 0.9 * self.centre + 0.1 * x.mean(0)
            return (x - self.centre).square().mean(1)

    seen: list[int] = []
    criterion, model = Centred(), nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2))
    centre = criterion.centre

    def value(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        seen.append(len(batch))
        return criterion(model(batch))

    proxy = sw.Proxy([torch.ones(4, 6)], value)
    proxy.check(model)
    assert seen == [4]
    assert criterion.centre is centre


def test_a_lazy_module_anywhere_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.LazyBatchNorm1d())
    proxy = sw.Proxy([torch.ones(4, 6)], lambda m, x: m(x).square().mean(1))
    with pytest.raises(sw.errors.ProxyError, match=r"'2\.weight' is made by the first forward"):
        proxy.check(model)


def test_a_change_that_begins_after_the_attach_makes_the_record_invalid_and_names_it() -> None:
    class Clipping(nn.Sequential):
        is_late = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.is_late:
                self[1].weight.mul_(0.5)
            return super().forward(x)

    model = Clipping(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 6))
    proxy = sw.Proxy([torch.ones(4, 6)], lambda m, x: m(x).square().mean(1))
    with sw.watch(model, None, logdir=None, proxy=proxy, scope=["0.weight"]) as watcher:
        assert watcher.snapshot().valid
        Clipping.is_late = True
        watcher.step()
        record = watcher.snapshot()
    assert not record.valid
    assert "it changed 1.weight (changed in place)" in record.reason


def test_buffers_of_a_scripted_module_are_put_back() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x * self.calls[0]

    model = nn.Sequential(torch.jit.script(Counting()))
    with preserve_state(model):
        model(torch.ones(1))
    assert model[0].calls.tolist() == [0.0, 0.0]


def test_what_is_shared_with_a_thread_is_left_alone() -> None:
    class Prefetcher:
        def __init__(self) -> None:
            self.lock, self.ready = threading.Lock(), [1]

    class Worker(threading.Thread):
        ready = 1

    model = nn.Sequential(nn.Linear(2, 2))
    model.prefetcher, model.worker = Prefetcher(), Worker()
    with preserve_state(model):
        model.prefetcher.ready.append(2)  # as the other thread does
        model.worker.ready = 2
    assert model.prefetcher.ready == [1, 2]
    assert model.worker.ready == 2


def test_machinery_of_a_training_is_not_looked_into() -> None:
    """An optimizer that a module refers to is not copied with it."""
    model = nn.Sequential(nn.Linear(6, 6))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 6)).sum().backward()
    optimizer.step()
    model.trainer = {"optimizer": optimizer}
    with preserve_state(model) as state:
        assert len(state._tensors) == 2
