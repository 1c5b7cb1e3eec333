"""A bit that flips on one rank is an event at the next snapshot, and over when it is repaired."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.families import some_of
from contracts.rank_cases import Came, case
from contracts.sharded import Training, local_of
from torch import distributed

pytestmark = pytest.mark.slow

Told = dict[str, Any]

FLIPPED_AFTER, REPAIRED_AFTER, STEPS = 4, 10, 15  # of which every third is watched


def with_flip(folder: Path, way: str, name: str, rank: int, like: int) -> Told:
    """A run in which a bit of a tensor flips on a rank, and is put right later.

    Args:
        like: a rank that holds the same part of the tensor.
    """
    training = Training(way)

    def after(step: int) -> None:
        own = local_of(dict(training.model.named_parameters())[name])
        if step == FLIPPED_AFTER and distributed.get_rank() == rank:
            own.reshape(-1).view(torch.int32)[-1] ^= 1 << 20  # no later step rounds it off
        if step == REPAIRED_AFTER:
            held: list[Any] = [None] * distributed.get_world_size()
            distributed.all_gather_object(held, own)
            if distributed.get_rank() == rank:
                own.copy_(held[like])

    with training.watch(folder / "log", proxy=None) as watcher:
        training.train(until=STEPS, after=after)
        return {
            "valid": [record.valid for record in watcher.records],
            "replicas": [
                (record.replicas.num_ranks, record.replicas.ranks, record.replicas.tensors)
                for record in watcher.records
            ],
            "series": [
                record.series()["weights/num_ranks_differing"] for record in watcher.records
            ],
            "events": [
                (event.detected_step, event.ranks, event.layers, event.reverted_step)
                for event in watcher.events
                if event.kind == "replicas"
            ],
        }


#: By name: how many ranks, how they share the model, the tensor, where it flips, who holds the
#: same, and which ranks are named.
FLIPS: dict[str, tuple[int, str, str, int, int, tuple[int, ...]]] = {
    "flip, what FSDP2 leaves whole": (2, "fsdp", "mix", 1, 0, (0, 1)),
    "flip, DDP of 4": (4, "ddp", "layers.1.up.weight", 2, 0, (2,)),
    "flip, HSDP": (4, "hsdp", "layers.0.down.weight", 1, 3, (1, 3)),
}


for _name, (_num, *_flip, _) in FLIPS.items():
    case(_num, name=_name)(lambda folder, flip=_flip: with_flip(folder, *flip))


@pytest.mark.parametrize("name", some_of(FLIPS, 3))
def test_a_flipped_bit_is_one_event_that_names_rank_and_tensor(name: str, came: Came) -> None:
    num, _, tensor, *_, named = FLIPS[name]
    for told in came(name):
        assert told["valid"] == [True] * 5
        # seen at once, and at 9; repaired before 12
        assert [ranks for _, ranks, _ in told["replicas"]] == [(), named, named, (), ()]
        assert [found for *_, found in told["replicas"]] == [(), (tensor,), (tensor,), (), ()]
        assert {num_ranks for num_ranks, *_ in told["replicas"]} == {num}
        assert told["series"] == [0, len(named), len(named), 0, 0]
        assert told["events"] == [(6, named, (tensor,), 12)]

    log = came.folder(name) / "log" / "sparsitywatch" / "events.jsonl"
    logged = [json.loads(line) for line in log.read_text().splitlines()]
    versions = [event for event in logged if event["kind"] == "replicas"]
    # that it is over is said once a second snapshot says so
    keys = ("detected_step", "reverted_step", "revised_step")
    assert [[e[key] for key in keys] for e in versions] == [[6, -1, -1], [6, 12, 15]]
    assert all(event["ranks"] == list(named) for event in versions)
    assert all(event["layers"] == [tensor] for event in versions)
