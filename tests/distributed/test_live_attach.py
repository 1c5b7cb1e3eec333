"""Who watches where only some ranks attach, and what is refused on all where they disagree."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.rank_cases import Came, case
from contracts.sharded import HELD_OUT, Batch, Training, Value, lines, loss, unlike, unwatched
from torch import distributed, nn
from torch.distributed import init_device_mesh
from torch.distributed.fsdp import fully_shard

import sparsitywatch as sw
from sparsitywatch.ranks import group
from sparsitywatch.weights.scope import Scope

pytestmark = pytest.mark.slow

Told = dict[str, Any]


@contextlib.contextmanager
def impatient() -> Iterator[None]:
    """A rank does not wait long for others that never attach."""
    before = group.PATIENCE_S, group._LONG_PATIENCE_S
    group.PATIENCE_S = group._LONG_PATIENCE_S = 0.3
    try:
        yield
    finally:
        group.PATIENCE_S, group._LONG_PATIENCE_S = before


def refusal(attach: Callable[[], sw.Watcher]) -> str:
    """Why a watch was refused; empty if it was not."""
    try:
        attach().close()
    except sw.SparsityWatchError as error:
        return f"{type(error).__name__}: {error}"
    return ""


# ------------------------------------------------------------------ only one rank attaches


def watched_by(rank: int, way: str, folder: Path) -> Told:
    """A run on which one rank attaches a watch."""
    alone = unwatched(way)
    training, watcher = Training(way), None
    with impatient():
        if distributed.get_rank() == rank:
            watcher = training.watch(folder / "log")
    training.train()
    told = {
        "unlike": unlike(alone, training.state()),
        "records": lines(watcher.records) if watcher else [],
        "replicas": [record.replicas for record in watcher.records] if watcher else [],
        "off": watcher.off if watcher else "",
    }
    if watcher:
        watcher.close()
    return told


case(2, name="rank 0 alone")(lambda folder: watched_by(0, "ddp", folder))
case(2, name="rank 1 alone")(lambda folder: watched_by(1, "ddp", folder))


def test_rank_0_of_replicas_watches_alone(came: Came) -> None:
    first, second = came("rank 0 alone")
    (expected,) = came("one_13")
    assert first["unlike"] == second["unlike"] == []
    assert first["off"] == ""
    assert first["records"] == expected["records"]
    assert first["replicas"] == [None] * 3


def test_another_rank_alone_leaves_the_watch_to_rank_0(came: Came) -> None:
    first, second = came("rank 1 alone")
    assert first["unlike"] == second["unlike"] == []
    assert second["off"] == "rank 0 watches; replicas hold the same weights"
    assert second["records"] == []
    assert not (came.folder("rank 1 alone") / "log").exists()


def communicating(model: nn.Module, one: Batch) -> torch.Tensor:
    """Its forward needs every rank."""
    values = loss(model, one)
    distributed.all_reduce(values)
    return values


def refused(folder: Path, way: str, value: Value) -> list[str]:
    """What rank 0 is told where the others do not attach; they go on."""
    training = Training(way)  # every rank takes part in this
    if distributed.get_rank() > 0:
        return []
    with impatient():
        proxy = sw.Proxy(HELD_OUT, value)
        return [refusal(lambda: training.watch(folder / "log", proxy=proxy))]


#: How the model is spread, the value, and what rank 0 is told.
REFUSED = {
    "a forward that communicates": (
        "one", communicating,
        "ProxyError: Expected a forward without communication, since rank 0 evaluates alone",
    ),
    "a part of the model": (
        "fsdp", loss,
        ("ScopeError: Expected `sw.watch` on every rank, since each holds a part of the model, but "
         "some have not called it within 0 s"),
    ),
}  # fmt: skip
for _name, (_way, _value, _) in REFUSED.items():
    case(2, name=_name)(lambda folder, way=_way, value=_value: refused(folder, way, value))


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_every_rank_is_refused_where_rank_0_is_alone(name: str, came: Came) -> None:
    (said,), _ = came(name)
    assert said.startswith(REFUSED[name][2])
    assert not (came.folder(name) / "log").exists()


# ------------------------------------------------------------------ all attach


@case(2)
def together_although_it_communicates(_: Path) -> list[bool]:
    """What rank 0 alone is refused works where all ranks take part."""
    training = Training("ddp")
    with training.watch(proxy=sw.Proxy(HELD_OUT, communicating)) as watcher:
        training.train(until=4)
        return [record.valid for record in watcher.records]


def test_a_forward_that_communicates_works_on_all_ranks(came: Came) -> None:
    assert came("together_although_it_communicates") == [[True], [True]]


def raising(model: nn.Module, one: Batch) -> torch.Tensor:
    raise ValueError("no such batch")


#: What each rank gives, by what is said of it.
UNLIKE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the same `scope`": ({}, {"scope": "blocks"}),
    "the same `every`": ({"every": 3}, {"every": 2}),
    "the same `settings`": ({}, {"tolerance": 0.5}),
    "the same `proxy`": ({}, {"proxy": None}),
    "the same `optimizer`": ({}, {"optimizer": None}),
    "derived from sw.sinks.Sink": ({"sinks": [object()]}, {}),  # the others do not look at theirs
    "a proxy of the same value": ({}, {"proxy": sw.Proxy(HELD_OUT, loss, name="another")}),
    "ValueError: no such batch": ({}, {"proxy": sw.Proxy(HELD_OUT, raising, name="loss")}),
}


def told_each(way: str, folder: Path) -> dict[str, str]:
    """What a rank is told of each difference; then the watch is attached all the same."""
    training = Training(way)
    told = {}
    for what, given in UNLIKE.items():
        own = given[distributed.get_rank()]
        told[what] = refusal(lambda own=own: training.watch(folder / "log", **own))
    told["alike"] = refusal(lambda: training.watch(folder / "log"))
    return told


case(2, name="unlike, DDP")(lambda folder: told_each("ddp", folder))
case(2, name="unlike, FSDP2")(lambda folder: told_each("fsdp", folder))


@pytest.mark.parametrize("name", ["unlike, DDP", "unlike, FSDP2"])
def test_what_differs_between_ranks_is_refused_on_all_and_named(name: str, came: Came) -> None:
    for rank, told in enumerate(came(name)):
        assert told.pop("alike") == ""
        for what, said in told.items():
            assert what in said
            is_proxy = what.startswith(("a proxy", "ValueError"))
            assert said.startswith("ProxyError" if is_proxy else "ConfigurationError")
        assert ("failed on rank 1" in told["ValueError: no such batch"]) is (rank == 0)
        assert ("failed on rank 0" in told["derived from sw.sinks.Sink"]) is (rank == 1)


# ------------------------------------------------------------------ a scope that a forward decides


class Backwards(nn.Module):
    """Layers of one width that run in another order than their names have: b, c, then a."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(self.c(self.b(x)).relu())


def mean(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x).mean(1)


def seen_on(way: str) -> Told:
    """What is measured of a model whose output layer only a forward shows."""
    model: nn.Module = Backwards()
    if way == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    elif way == "fsdp":
        mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
        for layer in model.children():
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    batches = [torch.rand(4, 8, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with sw.watch(
        model, optimizer, proxy=sw.Proxy(batches, mean), logdir=None, every=1, strict=True,
        max_overhead=None, background=False, levels=[0.5],
    ) as watcher:  # fmt: skip
        mean(model, batches[0]).sum().backward()
        optimizer.step()
    return {
        "hooks": hooks
        == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "scopes": [record.provenance.scope_hash for record in watcher.records],
        "sizes": [record.scope.num_weights for record in watcher.records],
        "valid": [record.valid for record in watcher.records],
    }


case(0, name="seen by one")(lambda _: seen_on("one"))
case(2, name="seen by DDP")(lambda _: seen_on("ddp"))
case(2, name="seen by FSDP2")(lambda _: seen_on("fsdp"))


@pytest.mark.parametrize("name", ["seen by DDP", "seen by FSDP2"])
def test_all_ranks_measure_what_the_first_one_saw(name: str, came: Came) -> None:
    (one,) = came("seen by one")
    first, second = came(name)
    assert first == second == one
    assert set(one["sizes"]) == {2 * 64}
    assert one["scopes"][0] == Scope.of(Backwards(), ["b.weight", "c.weight"]).hash
