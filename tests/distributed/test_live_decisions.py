"""What depends on a clock, or on what one rank sees first, is decided once for all ranks."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.logged import assert_same
from contracts.rank_cases import Came, case
from contracts.sharded import HELD_OUT, Batch, Training, batch, lines, loss, unlike, unwatched
from contracts.watched import sees_step_6
from torch import distributed, nn

import sparsitywatch as sw

pytestmark = pytest.mark.slow

Told = dict[str, Any]


# ------------------------------------------------------------------ the budget


#: Seconds on this rank's clock; not held by the value function: what that holds is put back.
_clock = threading.local()


def slow(model: nn.Module, one: Batch) -> torch.Tensor:
    _clock.now += _clock.call_s
    return loss(model, one)


@case(2)
def budget(_: Path) -> Told:
    """On rank 0 a step takes a second, a snapshot half a second; on rank 1 nothing takes time."""
    alone = unwatched("ddp", until=40)
    training, is_first = Training("ddp"), distributed.get_rank() == 0
    _clock.now, _clock.call_s = 0.0, 0.02 if is_first else 0.0
    proxy = sw.Proxy(HELD_OUT, slow)
    with training.watch(every=1, max_overhead=0.2, background=False, proxy=proxy) as watcher:
        watcher._budget.now = lambda: _clock.now
        read = watcher._taker._read

        def reading(step: int) -> Any:
            _clock.now += 25 * _clock.call_s
            return read(step)

        def after(_: int) -> None:
            _clock.now += 50 * _clock.call_s

        watcher._taker._read = reading
        training.train(until=40, after=after)
        return {
            "unlike": unlike(alone, training.state()),
            "steps": [record.step for record in watcher.records],
            "evaluated": [record.step for record in watcher.records if record.curve is not None],
        }


def test_the_clock_of_rank_0_decides_for_all(came: Came) -> None:
    first, second = came("budget")
    assert first["unlike"] == second["unlike"] == []
    assert first["steps"] == second["steps"]
    assert first["evaluated"] == second["evaluated"]
    # by its own clock rank 1 would have left out nothing
    assert 1 < len(first["evaluated"]) < len(first["steps"]) < 40


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_all_ranks_look_first_at_the_same_step(kind: str, came: Came) -> None:
    for told in came(f"first_look_{kind}"):
        assert told == {"unlike": [], "looks": [(1, True)]}


def _first_look(kind: str) -> Told:
    """Nothing is ever paid for."""
    alone, training = unwatched(kind, until=5), Training(kind)
    with training.watch(every=500, max_overhead=1e-6) as watcher:
        training.train(until=5)
        looks = [(record.step, record.curve is not None) for record in watcher.records]
        return {"unlike": unlike(alone, training.state()), "looks": looks}


@case(2)
def first_look_ddp(_: Path) -> Told:
    """Replicas."""
    return _first_look("ddp")


@case(2)
def first_look_fsdp(_: Path) -> Told:
    """Shards."""
    return _first_look("fsdp")


# ------------------------------------------------------------------ a schedule that is alerted


class Waiting(sw.sinks.MemorySink):
    """A sink that writes the record of step 6 only when it is allowed to."""

    def __init__(self) -> None:
        super().__init__()
        self.may_write = threading.Event()

    def write(self, record: sw.Record, detail: Any) -> None:
        if record.step == 6:
            assert self.may_write.wait(60)
        super().write(record, detail)


@case(2)
def alerted(_: Path) -> Told:
    """An event at step 6 reaches rank 1 at once, and rank 0, which writes, after step 9."""
    alone = unwatched("fsdp", until=18)
    training, sink = Training("fsdp"), Waiting()
    schedule = sw.adaptive(6, closer=3, intervals=2)
    given = sees_step_6() | {"every": schedule, "sinks": [sink]}
    seen = []

    def after(step: int) -> None:
        seen.append(schedule(8))  # whether this rank would take one at step 8
        if step == 9:
            sink.may_write.set()

    with training.watch(**given) as watcher:
        training.train(until=18, after=after)
        return {
            "unlike": unlike(alone, training.state()),
            "steps": [record.step for record in watcher.records],
            "knew at 7": seen[6],
            "knew at 9": seen[8],
        }


def test_an_alert_counts_once_rank_0_has_seen_it(came: Came) -> None:
    first, second = came("alerted")
    assert first["unlike"] == second["unlike"] == []
    assert first["knew at 9"] is False
    assert first["steps"] == second["steps"]
    assert 8 not in first["steps"]
    assert {6, 12, 14, 16, 18} <= set(first["steps"])


# ------------------------------------------------------------------ batches of each rank's own


def with_own_batches(way: str, num_first: int) -> Told:
    """Rank 0 has the first batches, rank 1 the rest; one process has all."""
    held = [*HELD_OUT, batch(4)]
    if distributed.is_initialized():
        held = held[:num_first] if distributed.get_rank() == 0 else held[num_first:]
    training = Training(way)
    with training.watch(proxy=sw.Proxy(held, loss)) as watcher:
        training.train()
        return {
            "records": lines(watcher.records),
            "hashes": [record.provenance.proxy_hash for record in watcher.records],
        }


case(0, among=2, name="own batches, one")(lambda _: with_own_batches("one", 4))
case(2, name="own batches, DDP")(lambda _: with_own_batches("ddp", 2))
case(2, name="own batches, FSDP2")(lambda _: with_own_batches("fsdp", 3))


@pytest.mark.parametrize("name", ["own batches, DDP", "own batches, FSDP2"])
def test_batches_of_each_rank_count_as_those_of_one_process(name: str, came: Came) -> None:
    (alone,) = came("own batches, one")
    first, second = came(name)
    assert first["records"] == second["records"]
    assert set(first["hashes"]).isdisjoint(alone["hashes"])
    ours, theirs = first["hashes"][0], alone["hashes"][0]
    assert_same([x.replace(ours, theirs) for x in first["records"]], alone["records"])
