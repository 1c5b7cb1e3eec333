"""A copy of the model runs in the middle of training, and nothing of it reaches the training."""

from __future__ import annotations

import array
import contextlib
import copy
import ctypes
import functools
import itertools
import logging
import random
import threading
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from contracts.leftovers import LEFTOVERS, Remembering
from torch import nn

import sparsitywatch as sw
from sparsitywatch.evaluation import model_copy
from sparsitywatch.evaluation.checks import check_proxy
from sparsitywatch.evaluation.masked import MaskedModel
from sparsitywatch.evaluation.model_copy import ModelCopy, Surroundings
from sparsitywatch.weights.scope import Scope

pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning", "ignore:.*:DeprecationWarning")


def mean_square(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean(1)


class Greedy(nn.Module):
    """Does in forward what a module should not: counts, draws, writes."""

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
        [b._version for b in model.buffers()],
        torch.get_rng_state(),
        np.random.get_state()[1].copy(),  # noqa: NPY002
        random.getstate(),
        torch.is_grad_enabled(),
        torch.is_autocast_cache_enabled(),
    ]


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_nothing_is_left_behind_whatever_ends_the_session(error: Any) -> None:
    model = Greedy()
    model.norm.eval()
    before = state(model)

    def evaluated() -> None:
        with MaskedModel(model, Scope.of(model, "layers")).session(mean_square) as masks:
            module, value = masks.dense()
            assert not any(m.training for m in module.modules())
            assert not torch.is_grad_enabled()
            value(module, torch.randn(4, 3))
            if error is not None:
                raise error

    if error is None:
        evaluated()
    else:
        with pytest.raises(error):
            evaluated()
    torch.testing.assert_close(state(model), before, equal_nan=True, rtol=0, atol=0)


def test_a_users_own_train_method_is_not_called() -> None:
    class Merging(nn.Linear):
        def train(self, mode: bool = True):
            raise AssertionError("train() merges the adapters")

    assert not ModelCopy(nn.Sequential(Merging(2, 2))).module.training


# ------------------------------------------------------------------ what is copied


class Slotted:
    __slots__ = ("late",)


class OwnList(list):
    pass


class Plain:
    def __init__(self) -> None:
        self.inner, self.counts = Counter(a=1), {"a": [0]}


def a_closure() -> Any:
    calls = 0

    def count() -> int:
        nonlocal calls
        calls += 1
        return calls

    return count


def filled(x: Any) -> list[Any]:
    return [x.inner["a"], x.counts["a"][0]]


#: By what a forward does to it: what a module holds, and how that reads.
HELD: dict[str, tuple[Any, Callable[[Any], object], Callable[[Any], object]]] = {
    "the order of an OrderedDict": (
        lambda: OrderedDict(a=1, b=2), lambda h: h.move_to_end("a"), list),
    "an entry moved to the next container": (
        lambda: [[1], []], lambda h: h[1].append(h[0].pop()), repr),
    "an entry made by reading": (lambda: defaultdict(list), lambda h: h["new"], dict),
    "a long list": (lambda: [0] * 20_000, lambda h: h.__setitem__(5, 1), sum),
    "a set": (lambda: {1, 2}, lambda h: (h.add(9), h.discard(1)), sorted),
    "a deque": (lambda: deque([1], maxlen=2), lambda h: h.append(3), list),
    "a bytearray": (lambda: bytearray(b"ab"), lambda h: h.append(1), bytes),
    "an attribute of a list": (OwnList, lambda h: setattr(h, "extra", 1), lambda h: {**vars(h)}),
    "a slot that was empty": (
        Slotted, lambda h: setattr(h, "late", 1), lambda h: hasattr(h, "late")),
    "plain objects in each other": (
        Plain, lambda h: (h.inner.update(a=1), h.counts["a"].__setitem__(0, 1)), filled),
    "an array": (lambda: np.zeros(2), lambda h: h.__iadd__(1), np.ndarray.tolist),
    "a generator of random numbers": (
        lambda: random.Random(3), lambda h: h.random(), lambda h: h.getstate()),
    "a variable of a closure": (
        a_closure, lambda h: h(), lambda h: h.__closure__[0].cell_contents),
}  # fmt: skip


@pytest.mark.parametrize("what", HELD)
def test_what_a_copy_changes_stays_in_the_copy_and_is_noticed(what: str) -> None:
    make, change, read = HELD[what]
    model = nn.Linear(2, 2)
    model.held = held = make()
    before = read(held)
    copied = ModelCopy(model)
    copied.note()
    assert copied.is_as_noted()
    assert read(copied.module.held) == before
    change(copied.module.held)
    assert read(copied.module.held) != before
    assert not copied.is_as_noted()
    assert model.held is held
    assert read(held) == before


@pytest.mark.slow
@pytest.mark.parametrize("what", LEFTOVERS)
def test_every_copy_starts_from_the_model_as_it_is(what: str) -> None:
    torch.manual_seed(0)
    model = Remembering(*LEFTOVERS[what])
    x = torch.randn(5, 6)
    with torch.no_grad():
        model(x)
        outs = []
        for _ in range(2):
            copied = ModelCopy(model)
            surroundings = Surroundings(copied, model)
            outs.append(copied.module(x))
            surroundings.put_back()
    assert torch.equal(*outs)


def test_parts_that_stand_twice_are_one_in_the_copy() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model.in_a_list, model.parent = [model[0]], weakref.ref(model)
    copied = ModelCopy(model).module
    assert copied[1].weight is copied[0].weight
    assert copied.in_a_list[0] is copied[0]
    assert copied.parent() is copied
    assert copied[0].weight.data_ptr() == model[0].weight.data_ptr()


class Noted(list):
    """Notes what is put into it, as Keras' lists do; made without its attributes it cannot."""

    def __init__(self, values: Any = (), *, to: list[Any]) -> None:
        super().__init__(values)
        self.to = to

    def append(self, value: Any) -> None:
        self.extend([value])

    def extend(self, values: Any) -> None:
        self.to.extend(values)
        super().extend(values)


class NotedDict(dict):
    """The same for a dict."""

    def __init__(self, to: list[Any]) -> None:
        super().__init__()
        self.to = to

    def __setitem__(self, key: str, value: Any) -> None:
        self.to.append(key)
        super().__setitem__(key, value)


def test_containers_that_note_what_is_put_into_them_are_copied() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    noted: list[Any] = []
    model.noted = Noted([model[0], noted], to=noted)
    model.named = NotedDict(noted)
    model.named["first"] = model[0]
    copied = ModelCopy(model)
    module = copied.module
    assert copied.uncopied == {}
    assert type(module.noted) is Noted
    assert module.noted[0] is module[0] is module.named["first"]
    assert module.noted[1] is module.noted.to is module.named.to
    assert noted == module.noted.to == ["first"]
    copied.note()
    assert copied.is_as_noted()
    module.noted.append(3)
    assert not copied.is_as_noted()
    assert len(model.noted) == 2


def test_a_tensor_with_a_graph_is_a_detached_copy() -> None:
    model = nn.Linear(3, 3)
    model.aux_loss = model(torch.ones(1, 3)).sum()
    copied = ModelCopy(model).module
    assert torch.equal(copied.aux_loss, model.aux_loss.detach())
    assert not copied.aux_loss.requires_grad
    copied.aux_loss += 1
    model.aux_loss.backward()


def test_a_hook_that_closes_over_the_model_runs_the_copy() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    seen: list[float] = []

    def hook(module: nn.Module, args: Any, out: torch.Tensor) -> None:
        seen.append(float(model[1].running_mean.add_(1.0)[0]))

    model[0].register_forward_hook(hook)
    copied = ModelCopy(model).module
    copied(torch.ones(2, 3))
    assert seen == []
    assert model[1].running_mean.tolist() == [0.0] * 3
    assert copied[1].running_mean.tolist() == [1.0] * 3


def test_accelerate_and_others_that_replace_forward_run_the_copy() -> None:
    model = nn.Linear(3, 3)
    original = model.forward
    model.forward = lambda x: 2 * original(x)
    instead = {id(model.weight): torch.zeros(3, 3)}
    copied = ModelCopy(model, None, instead).module
    assert torch.equal(copied(torch.ones(1, 3)), 2 * model.bias[None])


def test_views_and_other_objects_on_a_weights_memory_see_what_stands_in_its_place() -> None:
    model = nn.Linear(4, 3, bias=False)
    model.row = model.weight.detach()[1]
    model.tied = nn.Parameter(model.weight.data)
    masked = torch.arange(12.0).reshape(3, 4)
    copied = ModelCopy(model, None, {id(model.weight): masked}).module
    assert copied.row.tolist() == masked[1].tolist()
    assert torch.equal(copied.tied, masked)


def test_buffers_of_a_scripted_module_are_copied_and_its_weights_replaced() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))
            self.register_buffer("calls", torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x * self.calls[0] * self.weight

    model = nn.Sequential(torch.jit.script(Counting()))
    (weight,) = model.parameters()
    copied = ModelCopy(model, None, {id(weight): torch.full((1,), 3.0)}).module
    with torch.no_grad():
        assert copied(torch.ones(1)).tolist() == [3.0]
    assert model[0].calls.tolist() == [0.0, 0.0]


# ------------------------------------------------------------------ what is shared


def test_what_belongs_to_the_training_or_to_a_thread_is_shared() -> None:
    class Prefetcher:
        def __init__(self) -> None:
            self.lock, self.ready = threading.Lock(), [1]

    class Worker(threading.Thread):
        ready = 1

    model = nn.Sequential(nn.Linear(6, 6))
    model.prefetcher, model.worker = Prefetcher(), Worker()
    model.trainer = {"optimizer": torch.optim.Adam(model.parameters())}
    model.log = logging.getLogger("mine")
    copied = ModelCopy(model)
    assert copied.module.prefetcher is model.prefetcher
    assert copied.module.worker is model.worker
    assert copied.module.log is model.log
    assert copied.module.trainer is not model.trainer
    assert copied.module.trainer["optimizer"] is model.trainer["optimizer"]
    assert copied.uncopied == {}


def test_large_data_is_shared_and_writing_to_it_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(model_copy, "_MAX_COPY_BYTES", 1000)
    model = nn.Linear(3, 3)
    model.data, model.array = torch.zeros(500), np.zeros(500)
    model.register_buffer("table", torch.zeros(500))
    copied = ModelCopy(model)
    assert copied.module.data.data_ptr() == model.data.data_ptr()
    assert copied.module.array is model.array
    assert copied.module.table.data_ptr() != model.table.data_ptr()
    model_copy.refuse_written(model, copied.shared)
    copied.module.data[0] = 1.0
    with pytest.raises(sw.MeasurementError, match="it changed data"):
        model_copy.refuse_written(model, copied.shared)


@pytest.mark.parametrize(("more", "is_shared"), [(0, False), (1, True)])
def test_large_is_what_is_more_than_64_mib(more: int, *, is_shared: bool) -> None:
    model = nn.Linear(3, 3)
    model.data = torch.empty(2**26 + more, dtype=torch.int8)
    copied = ModelCopy(model).module
    assert (copied.data.data_ptr() == model.data.data_ptr()) == is_shared


@pytest.mark.parametrize(("number", "is_followed"), [(10_000, True), (10_001, False)])
def test_what_long_containers_beside_the_model_hold_is_not_looked_at(
    number: int, *, is_followed: bool
) -> None:
    class Keeper(nn.Linear):
        kept: ClassVar[list] = [torch.zeros(1), *range(number - 1)]

    surroundings = Surroundings(ModelCopy(model := Keeper(3, 3)), model)
    assert any(tensor is Keeper.kept[0] for tensor, _ in surroundings.tensors) == is_followed


class Locked:
    """Refuses to be copied."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("no")


def test_what_refuses_to_be_copied_is_named_once_when_the_watch_is_attached(caplog) -> None:
    caplog.set_level(logging.INFO, "sparsitywatch")
    model = nn.Sequential(nn.Linear(6, 6))
    model.handle = Locked()
    proxy = sw.Proxy([torch.ones(4, 6)], mean_square)
    with sw.watch(model, None, logdir=None, proxy=proxy, scope="layers") as watcher:
        for _ in range(2):
            watcher.step()
            assert watcher.snapshot().valid
    assert caplog.text.count("handle (Locked) cannot be copied") == 1


# ------------------------------------------------------------------ what an evaluation runs


def test_every_forward_of_a_sweep_starts_from_the_state_before() -> None:
    torch.manual_seed(0)
    model = Remembering(*LEFTOVERS["a Python counter"])
    batch = torch.linspace(-1, 1, 24).reshape(4, 6)
    proxy = sw.Proxy([batch], mean_square)
    with sw.watch(model, None, logdir=None, proxy=proxy, scope="layers", levels=[0.5]) as watcher:
        record = watcher.snapshot()
    assert record.valid
    assert model.count == 0
    with torch.no_grad():
        assert record.curve.value[0] == float(mean_square(model, batch).double().mean())


def in_eighths(model: nn.Module) -> nn.Module:
    """The model with weights whose sums are exact: all rows of a batch give the same bits."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((8 * parameter).round() / 8)
    return model


def test_a_model_that_keeps_no_state_is_copied_twice_whatever_the_number_of_levels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[ModelCopy] = []
    init = ModelCopy.__init__
    monkeypatch.setattr(
        ModelCopy, "__init__", lambda self, *args: (made.append(self), init(self, *args))[1]
    )

    def num_copies(model: nn.Module) -> int:
        made.clear()
        sw.measure(model, sw.Proxy([torch.ones(4, 6)], mean_square), scope="layers", levels=grid)
        return len(made) - 3  # those that the check before makes

    grid = [0.2, 0.4, 0.6, 0.8]
    assert num_copies(in_eighths(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)))) == 2
    assert num_copies(in_eighths(Remembering(*LEFTOVERS["a Python counter"]))) == 1 + 6


def test_what_a_value_function_counts_is_its_own_but_not_the_modules_it_uses() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("centre", torch.zeros(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.centre = 0.9 * self.centre + 0.1 * x.mean(0)
            return (x - self.centre).square().mean(1)

    seen: list[int] = []
    criterion, model = Centred(), in_eighths(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2)))
    centre = criterion.centre

    def value(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        seen.append(len(batch))
        return criterion(model(batch))

    check_proxy(sw.Proxy([torch.ones(4, 6)], value), model)
    # the second time to see whether it says the same
    assert seen == [4, 4]
    assert criterion.centre is centre


def test_a_value_function_that_closes_over_the_model_runs_the_copy_all_the_same() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
    record = sw.measure(
        model, sw.Proxy([torch.randn(8, 6)], lambda _, x: mean_square(model, x)), scope="layers"
    )
    assert record.curve.value[0] != record.curve.value[-1]
    assert model[1].num_batches_tracked == 0


class Holder:
    """Hides a model from whoever looks at a value function."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model


def test_a_value_function_that_runs_the_model_in_training_is_refused_before_it_does() -> None:
    holder = Holder(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6)))
    proxy = sw.Proxy([torch.ones(4, 6)], lambda _, x: mean_square(holder.model, x))
    with pytest.raises(sw.errors.ProxyError, match="but it ran it of the watched model"):
        check_proxy(proxy, holder.model)
    inner = sw.Proxy([torch.ones(4, 6)], lambda _, x: mean_square(holder.model[1], x))
    with pytest.raises(sw.errors.ProxyError, match="ran its module '1' of the watched model"):
        check_proxy(inner, holder.model)
    assert holder.model[1].num_batches_tracked == 0


def test_a_buffer_of_the_training_that_a_value_function_writes_is_named_at_the_attach() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))
    mean = model[1].running_mean

    def value(copied: nn.Module, x: torch.Tensor) -> torch.Tensor:
        mean.add_(1)
        return mean_square(copied, x)

    with pytest.raises(sw.errors.ProxyError, match=r"but it changed 1\.running_mean"):
        check_proxy(sw.Proxy([torch.ones(4, 6)], value), model)


def test_a_lazy_module_anywhere_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.LazyBatchNorm1d())
    with pytest.raises(sw.errors.ProxyError, match=r"'2\.weight' is made by the first forward"):
        check_proxy(sw.Proxy([torch.ones(4, 6)], mean_square), model)


def test_a_change_that_begins_after_the_attach_makes_the_record_invalid_and_names_it() -> None:
    class Clipping(nn.Sequential):
        is_late = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.is_late:
                self[1].weight.mul_(0.5)
            return super().forward(x)

    model = Clipping(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 6))
    proxy = sw.Proxy([torch.ones(4, 6)], mean_square)
    with sw.watch(model, None, logdir=None, proxy=proxy, scope=["0.weight"]) as watcher:
        assert watcher.snapshot().valid
        Clipping.is_late = True
        watcher.step()
        record = watcher.snapshot()
    assert not record.valid
    assert "it changed 1.weight" in record.reason
    assert watcher.off.startswith("the evaluation at step 1 may have changed the training")


def test_a_buffer_of_the_training_that_a_late_forward_reaches_ends_the_watch() -> None:
    class Counting(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for buffer in late:  # a global that appears after the attach
                buffer.add_(1)
            return super().forward(x)

    late: list[torch.Tensor] = []
    model = Counting(6, 6)
    model.register_buffer("calls", torch.zeros(()))
    proxy = sw.Proxy([torch.ones(4, 6)], lambda model, x: mean_square(model, x))
    with sw.watch(model, None, logdir=None, proxy=proxy, scope="layers") as watcher:
        model.register_forward_pre_hook(lambda *_: None)
        late.append(model.calls)
        watcher.step()
        watcher.snapshot()
    assert "calls" in watcher.off
    assert "training" in watcher.off


# ------------------------------------------------------------------ a forward that draws, or keeps


class Sampling(nn.Module):
    """As a variational autoencoder does in evaluation, too."""

    def __init__(self, draw: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.draw = nn.Linear(6, 6), nn.Linear(6, 6), draw

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.draw(torch.relu(self.first(x))))


DRAWS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "normal": lambda x: x + torch.randn_like(x),
    "dropout that is always on": lambda x: nn.functional.dropout(x, 0.5),
    "numpy": lambda x: x + float(np.random.rand()),  # noqa: NPY002
    "random": lambda x: x * random.random(),
}


@pytest.mark.parametrize("sweep", [sw.sweeps.Racing(), sw.sweeps.Bisection([0.3, 0.6])])
@pytest.mark.parametrize("what", DRAWS)
def test_a_forward_that_draws_is_compared_on_the_same_numbers(what: str, sweep: Any) -> None:
    model = Sampling(DRAWS[what])
    batches = [torch.randn(32, 6) for _ in range(4)]
    before = torch.get_rng_state(), random.getstate()
    record = sw.measure(model, sw.Proxy(batches, mean_square), scope="layers", sweep=sweep)
    assert record.valid, record.reason
    assert record.curve.value[0] == sw.Proxy(batches, mean_square).evaluate(model).mean()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


class Keeping(nn.Linear):
    """Keeps how often it ran where no copy of it has it, and says so in its output."""

    def __init__(self, tick: Callable[[], float]) -> None:
        super().__init__(6, 6)
        self.tick = tick

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (1.0 + self.tick())


class Ticking(nn.Module):
    """A small part of its output is what it keeps from forward to forward."""

    def __init__(self, tick: Callable[[nn.Module], float]) -> None:
        super().__init__()
        self.first, self.last, self.tick = nn.Linear(6, 16), nn.Linear(16, 2), tick

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).relu()) * (1.0 + 1e-3 * self.tick(self))


def _of_a_weak_dictionary() -> Callable[[nn.Module], float]:
    kept: weakref.WeakKeyDictionary[nn.Module, float] = weakref.WeakKeyDictionary()

    def tick(model: nn.Module) -> float:
        kept[model] = kept.get(model, 0.0) + 1.0
        return kept[model]

    return tick


def _of_a_closure() -> Callable[[nn.Module], float]:
    number = 0

    def tick(_: nn.Module) -> float:
        nonlocal number
        number += 1
        return float(number)

    return tick


def _of_an_attribute() -> Callable[[nn.Module], float]:
    def tick(model: nn.Module) -> float:
        vars(model)["number"] = vars(model).get("number", 0) + 1
        return float(model.number)

    return tick


def _of_a_recurrent_state() -> Callable[[nn.Module], float]:
    def tick(model: nn.Module) -> float:
        vars(model)["state"] = vars(model).get("state", torch.zeros(1)) * 0.9 + 1.0
        return float(model.state)

    return tick


def _of_a_cache() -> Callable[[nn.Module], float]:
    def tick(model: nn.Module) -> float:
        cache = vars(model).setdefault("cache", {})
        cache[len(cache)] = 1
        return float(len(cache))

    return tick


def _of(thing: Any, step: Callable[[Any], float]) -> Callable[[], Callable[[nn.Module], float]]:
    def make() -> Callable[[nn.Module], float]:
        own = copy.deepcopy(thing)
        return lambda _: step(own)

    return make


def _appended(numbers: array.array) -> float:
    numbers.append(0.1)
    return sum(numbers)


def _appended_length(queue: deque[int]) -> float:
    queue.append(len(queue))
    return float(sum(queue))


KEPT = {
    "weak dictionary": _of_a_weak_dictionary,
    "closure": _of_a_closure,
    "attribute": _of_an_attribute,
    "recurrent state": _of_a_recurrent_state,
    "cache": _of_a_cache,
    "array": _of(array.array("d"), _appended),
    "deque": _of(deque(maxlen=5), _appended_length),
    "numpy's generator": _of(np.random.RandomState(0), lambda random: float(random.rand())),
    "python's generator": _of(random.Random(0), lambda random: random.random()),
    "noise": lambda: lambda _: float(torch.randn(1)),
}


@pytest.mark.parametrize("what", KEPT)
def test_what_a_forward_keeps_changes_neither_the_training_nor_the_evaluation(what: str) -> None:
    """By the default sweep, which divides the examples: each part starts from the same state."""

    def trained(*, is_watched: bool) -> tuple[torch.Tensor, list[sw.Record]]:
        torch.manual_seed(0)
        model = Ticking(KEPT[what]())
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        inputs, held_out = torch.randn(32, 6), torch.randn(2, 32, 6)
        watching: Any = contextlib.nullcontext()
        if is_watched:
            proxy = sw.Proxy([*held_out], mean_square)
            watching = sw.watch(model, optimizer, logdir=None, every=3, proxy=proxy,
                                scope="layers", max_overhead=None)  # fmt: skip
        torch.manual_seed(1)
        with watching as watcher:
            for _ in range(9):
                optimizer.zero_grad()
                model(inputs).square().mean().backward()
                optimizer.step()
            records = watcher.records if is_watched else []
        return nn.utils.parameters_to_vector(model.parameters()), records

    weights, _ = trained(is_watched=False)
    watched, records = trained(is_watched=True)
    assert torch.equal(weights, watched)
    assert [(record.step, record.reason) for record in records] == [(3, ""), (6, ""), (9, "")]
    assert all(record.curve is not None for record in records)


def _in_a_file(folder: Path) -> Callable[[], float]:
    file = folder / "ticks"

    def tick() -> float:
        with file.open("a") as opened:
            opened.write(".")
        return float(file.stat().st_size)

    return tick


def _in_c(_: Path) -> Callable[[], float]:
    number = ctypes.c_long(0)

    def tick() -> float:
        number.value += 1
        return float(number.value)

    return tick


def _behind_a_lock(_: Path) -> Callable[[], float]:
    class Shared:
        def __init__(self) -> None:
            self.lock, self.count = threading.Lock(), 0

        def tick(self) -> float:
            with self.lock:
                self.count += 1
            return float(self.count)

    return Shared().tick


def _every_third(_: Path) -> Callable[[], float]:
    shared = _behind_a_lock(_)
    return lambda: float(shared() // 3)


@pytest.mark.parametrize("keep", [_in_a_file, _in_c, _behind_a_lock, _every_third])
def test_what_no_copy_has_is_refused_at_the_attach(keep: Any, tmp_path: Path) -> None:
    proxy = sw.Proxy([torch.ones(4, 6)] * 3, mean_square)
    with pytest.raises(sw.errors.ProxyError, match=r"differ by up to .* the second time"):
        sw.watch(Keeping(keep(tmp_path)), None, logdir=None, proxy=proxy, scope="layers")


def test_an_iterator_that_goes_round_is_refused_and_stays_where_it_is() -> None:
    model = Keeping(functools.partial(next, itertools.cycle([0.1, 0.2])))
    proxy = sw.Proxy([torch.ones(4, 6)] * 3, mean_square)
    with pytest.raises(sw.errors.ProxyError, match="Expected a forward that changes nothing"):
        sw.watch(model, None, logdir=None, proxy=proxy, scope="layers")
    assert model.tick() == 0.1


@pytest.mark.slow
@pytest.mark.parametrize("is_nested", [False, True])
def test_a_part_that_was_compiled_is_evaluated_with_the_masks(is_nested: bool) -> None:
    """``self.backbone = torch.compile(...)``: the wrapper would run the original."""
    part = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
    if is_nested:
        part = nn.Sequential(torch.compile(part, backend="eager"), nn.Linear(6, 6))
    model = nn.Sequential(torch.compile(part, backend="eager"), nn.Linear(6, 2))
    model(torch.ones(4, 6))
    record = sw.measure(model, sw.Proxy([torch.ones(4, 6)], mean_square), scope="layers")
    assert record.valid
    assert record.curve.value[-1] != record.curve.value[0]  # with everything removed
    assert record.curve.value[0] == pytest.approx(
        mean_square(model, torch.ones(4, 6)).mean().item()
    )


# ------------------------------------------------------------------ beside the model


STATS = {"calls": [0]}
STEP = 0
MEAN = torch.zeros(1)


class Beside(nn.Linear):
    """Keeps what it counts in its class, in globals, in a default argument."""

    seen: list[int] = []  # noqa: RUF012
    ticks = 0

    def forward(self, x: torch.Tensor, cache: dict = {}) -> torch.Tensor:  # noqa: B006
        global STEP
        STEP += 1
        STATS["calls"].append(STEP)
        Beside.ticks += 1
        self.seen.append(STEP)
        cache[STEP] = x
        Beside.new = STEP
        return super().forward(x)


def test_what_user_code_keeps_beside_the_model_is_put_back() -> None:
    model = nn.Sequential(Beside(6, 6), nn.Linear(6, 2))
    before = STATS["calls"], Beside.seen
    record = sw.measure(model, sw.Proxy([torch.ones(4, 6)], mean_square), scope="layers")
    assert record.valid
    assert before == ([0], [])
    assert STATS["calls"] is before[0]
    assert (STEP, Beside.ticks, hasattr(Beside, "new")) == (0, 0, False)
    assert Beside.forward.__defaults__ == ({},)


def test_a_tensor_beside_the_model_cannot_be_put_back_and_is_refused() -> None:
    class Averaging(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            MEAN.add_(x.mean())
            return super().forward(x)

    with pytest.raises(sw.errors.ProxyError, match="it changed a Tensor that the model uses"):
        check_proxy(sw.Proxy([torch.ones(4, 6)], mean_square), Averaging(6, 6))
