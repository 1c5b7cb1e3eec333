"""What fails on one rank fails on all for this snapshot, and nobody waits for anybody."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.families import whole
from contracts.rank_cases import Came, case
from contracts.sharded import Batch, Training, batch, lines, loss, unlike, unwatched
from torch import distributed, nn

import sparsitywatch as sw
from sparsitywatch.pipeline.rundir import Claim

pytestmark = pytest.mark.slow

Told = dict[str, Any]


class Fault:
    """A value function that fails at a place of the model's forward, on some ranks.

    Args:
        place: name of the module before which it fails; "before" and "after" the whole forward.
        call: of the value function in an armed snapshot, from 0; the dense model is the first.
        ranks: on which it fails.
        num_forwards: that one call runs; it fails in the last one.
    """

    def __init__(
        self, place: str, call: int = 0, ranks: tuple[int, ...] = (1,), num_forwards: int = 1
    ) -> None:
        self.place, self.call, self.ranks = place, call, ranks
        self.num_forwards, self.is_armed = num_forwards, False

    def __call__(self, model: nn.Module, one: Batch) -> torch.Tensor:
        is_now = self.is_armed and distributed.get_rank() in self.ranks and _count() == self.call
        self.fail("before", is_now=is_now)
        for index in range(self.num_forwards):
            _now.fails = is_now and index == self.num_forwards - 1
            values = loss(model, one)
        self.fail("after", is_now=is_now)
        return values

    def arm(self, *, is_armed: bool) -> None:
        self.is_armed, _now.num_calls, _now.fails = is_armed, 0, False

    def fail(self, place: str, *, is_now: bool) -> None:
        if is_now and place == self.place:
            _now.fails = False
            raise ValueError(f"broken at {place}")

    def put_into(self, model: nn.Module) -> None:
        if self.place in dict(model.named_modules()):
            model.get_submodule(self.place).register_forward_pre_hook(
                lambda *_: self.fail(self.place, is_now=_now.fails)
            )


#: Not held by the value function: what that counts is put back between levels.
_now = threading.local()


def _count() -> int:
    _now.num_calls += 1
    return _now.num_calls - 1


def with_fault(way: str, fault: Fault) -> Told:
    """A watched run whose second snapshot fails, and where it ends otherwise than without."""
    fault.arm(is_armed=False)
    alone = unwatched(way)
    training = Training(way)
    fault.put_into(training.model)
    proxy = sw.Proxy([batch(1), batch(2)], fault)
    with training.watch(proxy=proxy, strict=False) as watcher:
        for until, is_armed in ((4, False), (7, True), (9, False)):
            fault.arm(is_armed=is_armed)
            training.train(until=until)
        return {
            "unlike": unlike(alone, training.state()),
            "off": watcher.off,
            "said": [(record.step, record.valid, record.reason) for record in watcher.records],
            "lines": lines(watcher.records),
        }


#: Each place, each way to spread the model and each choice of ranks at least once.
FAULTS: dict[str, tuple[str, Callable[[], Fault]]] = {
    "in the middle, DDP": ("ddp", lambda: Fault("layers.1.down", call=3)),
    "before the forward, FSDP2": ("fsdp", lambda: Fault("before")),
    "in a second forward, FSDP2": ("fsdp", lambda: Fault("layers.0.up", num_forwards=2, call=1)),
    "at the first layer, on rank 0": ("fsdp", lambda: Fault("layers.0.norm", ranks=(0,))),
    "in the middle, on both": ("fsdp", lambda: Fault("layers.1.norm", ranks=(0, 1))),
    "at the head, each by itself": ("each", lambda: Fault("head", call=1)),
    "in the middle, layers alone": ("layers", lambda: Fault("layers.1.up", call=2)),
    "after the forward, kept after forwards": ("kept", lambda: Fault("after", call=2)),
    "in the middle, prefetched": ("prefetch", lambda: Fault("layers.0.down", call=1)),
    "at the last layer, bfloat16": ("bf16", lambda: Fault("layers.1.drop", call=4)),
}
for _name, (_way, _fault) in FAULTS.items():
    case(2, name=_name)(lambda _, way=_way, fault=_fault: with_fault(way, fault()))
case(4, name="in the middle, HSDP")(lambda _: with_fault("hsdp", Fault("layers.1.up", ranks=(2,))))


@pytest.mark.parametrize("name", [*FAULTS, pytest.param("in the middle, HSDP", marks=whole)])
def test_a_value_that_raises_makes_one_invalid_record_on_every_rank(name: str, came: Came) -> None:
    found = came(name)
    named = {"on rank 0": [0], "on both": [0, 1], "HSDP": [2]}
    failed = next((ranks for end, ranks in named.items() if name.endswith(end)), [1])
    for rank, told in enumerate(found):
        assert told["unlike"] == []
        assert told["off"] == ""
        steps = [(step, valid) for step, valid, _ in told["said"]]
        assert steps == [(3, True), (6, False), (9, True)]
        assert told["said"][0][2] == told["said"][2][2] == ""
        reason = told["said"][1][2]
        assert "broken at" in reason
        assert rank in failed or f"rank {failed[0]}: ValueError: broken at" in reason
        # what could be measured before the failure is the same everywhere
        assert [json.loads(line) | {"reason": ""} for line in told["lines"]] == [
            json.loads(line) | {"reason": ""} for line in found[0]["lines"]
        ]


# ------------------------------------------------------------------ memory


def short_of_memory(way: str) -> Told:
    """One rank has room for three examples at a time."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]

    def value(model: nn.Module, one: Batch) -> torch.Tensor:
        if distributed.get_rank() == 1 and has_begun and len(one[1]) > 3:
            raise torch.OutOfMemoryError("no room for so many")
        return loss(model, one)

    has_begun = False
    training = Training(way)
    with training.watch(proxy=sw.Proxy([batch(1), batch(2)], value)) as watcher:
        training.train(until=4)
        has_begun = True
        logging.getLogger("sparsitywatch").addHandler(handler)
        training.train()
        logging.getLogger("sparsitywatch").removeHandler(handler)
        return {
            "said": [text for text in said if "out of memory" in text],
            "forwards": [record.cost.num_forwards for record in watcher.records],
            "valid": [record.valid for record in watcher.records],
            "examples": [record.curve.num_examples for record in watcher.records],
            "dense": [record.curve.dense for record in watcher.records],
        }


case(2, name="memory, FSDP2")(lambda _: short_of_memory("fsdp"))
case(2, name="memory, DDP")(lambda _: short_of_memory("ddp"))


@pytest.mark.parametrize("name", ["memory, FSDP2", "memory, DDP"])
def test_memory_missing_on_one_rank_halves_the_batches_of_all(name: str, came: Came) -> None:
    first, second = came(name)
    for told in (first, second):
        assert told["valid"] == [True] * 3
        assert told["examples"] == [12] * 3
        (said,) = told["said"]
        assert "out of memory while evaluating; going on with smaller batches, 4 in all" in said
        assert [num % 4 for num in told["forwards"][1:]] == [0, 0]
    assert first["forwards"] == second["forwards"]
    assert first["dense"] == second["dense"]


# ------------------------------------------------------------------ a watch that is off


def break_it(watcher: sw.Watcher) -> None:
    """Something of which nobody has thought goes wrong at its next step."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("nobody has thought of this")

    watcher._schedule.due = broken


#: What happens to the watch of a rank, and what the two ranks then say of theirs.
OFF: dict[str, tuple[int, Callable[[sw.Watcher], object], str, str]] = {
    "broken on rank 1": (1, break_it, "nobody has thought of this", "nobody has thought of this"),
    "log taken": (
        0, lambda watcher: Claim(watcher._pipeline.claim.directory).acquire(over="all"),
        "taken over", "rank 0",
    ),
    "closed on rank 1": (1, sw.Watcher.close, "rank 1: its watch was closed", ""),
}  # fmt: skip


def off_after_4(folder: Path, rank: int, act: Callable[[sw.Watcher], object]) -> Told:
    """A run in which something happens to the watch of a rank after step 4."""
    alone = unwatched("fsdp")
    training = Training("fsdp")
    with training.watch(folder / "log", strict=False) as watcher:
        training.train(until=4)
        if distributed.get_rank() == rank:
            act(watcher)
        training.train()
        return {
            "unlike": unlike(alone, training.state()),
            "off": watcher.off,
            "steps": [record.step for record in watcher.records],
            "reason of a call": watcher.snapshot().reason,
        }


for _name, (_rank, _act, *_) in OFF.items():
    case(2, name=_name)(lambda folder, rank=_rank, act=_act: off_after_4(folder, rank, act))


@pytest.mark.parametrize("name", OFF)
def test_a_watch_that_is_off_on_one_rank_is_off_on_all(name: str, came: Came) -> None:
    for told, said in zip(came(name), OFF[name][2:], strict=True):
        assert told["unlike"] == []
        assert told["steps"] == [3]
        assert told["reason of a call"]
        assert said in told["off"]
