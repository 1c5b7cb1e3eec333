"""Who holds and who counts which part of a tensor, held against numpy's slicing of the whole."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from contracts.boxes import Spreading, boxes, nothing_of, pieces_by_rank, slices, spreadings
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from sparsitywatch.errors import ScopeError
from sparsitywatch.ranks.reading import ShardBox, ShardedReader, Shards


@given(boxes(), st.integers(0, 2**32 - 1))
def test_weights_are_found_in_a_box_where_numpy_finds_them(piece: ShardBox, seed: int) -> None:
    numbered = np.arange(np.prod(piece.whole, dtype=int)).reshape(piece.whole)
    inside = {int(n): at for at, n in enumerate(numbered[slices(piece)].reshape(-1))}
    drawn = np.random.default_rng(seed).integers(0, max(numbered.size, 1), 2 * numbered.size)
    where = np.sort(drawn).astype(np.int64)  # some of them more than once

    index, local = piece.locate(where)

    expected = [(i, inside[n]) for i, n in enumerate(where.tolist()) if n in inside]
    assert list(zip(index.tolist(), local.tolist(), strict=True)) == expected
    assert piece.num_weights == len(inside)


@pytest.mark.slow
@given(spreadings())
def test_every_weight_is_counted_once_by_the_lowest_rank_that_holds_it(made: Spreading) -> None:
    every = [made.shards(rank) for rank in range(made.size)]
    for name, tensor in made.tensors.items():
        counted = np.zeros(tuple(tensor.shape), int)
        for rank, shards in enumerate(every):
            piece = made.spread[name][rank]
            assert shards.held[name] == piece
            if name in shards.owned:
                counted[slices(piece)] += 1
                assert made.spread[name].index(piece) == rank
        assert (counted == 1).all()


@given(spreadings())
def test_what_is_whole_and_what_has_replicas_is_known_on_every_rank(made: Spreading) -> None:
    every = [[p for p in pieces if p.num_weights] for pieces in made.spread.values()]
    is_whole = all(p.shape == p.whole for pieces in made.spread.values() for p in pieces)
    for rank in range(made.size):
        shards = made.shards(rank)
        assert shards.is_whole == is_whole
        assert shards.has_replicas == any(len(set(pieces)) < len(pieces) for pieces in every)


@pytest.mark.slow
@given(spreadings(sizes=(2, 3, 4)), st.data())
def test_a_piece_that_nobody_holds_is_refused_by_the_name_of_its_tensor(
    made: Spreading, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from([*made.tensors]))
    pieces = made.spread[name]
    gone = data.draw(st.sampled_from([p for p in pieces if p.num_weights]))
    assume(gone.shape)  # without a dimension there are no parts
    left = [nothing_of(p.whole) if p == gone else p for p in pieces]
    held = pieces_by_rank({**made.spread, name: left}, made.size)
    num, there = made.tensors[name].numel(), made.tensors[name].numel() - gone.num_weights
    with pytest.raises(ScopeError, match=f"the {num:,} weights of '{name}' .* got {there:,}"):
        Shards(held, 0)


def test_a_tensor_that_nobody_holds_is_refused() -> None:
    with pytest.raises(ScopeError, match=r"the 12 weights of 'w' .* got 0"):
        Shards([{"w": nothing_of((4, 3))}] * 2, 0)


# ------------------------------------------------------------------ what a tensor says of itself


@pytest.fixture
def third_of_four() -> Iterator[None]:
    """A process that takes itself for rank 2 of 4."""
    distributed.init_process_group("fake", rank=2, world_size=4, store=FakeStore())
    yield
    distributed.destroy_process_group()


def held(shape: tuple[int, ...], placements: list[Any], whole: tuple[int, ...]) -> DTensor:
    mesh = init_device_mesh("cpu", (4,) if len(placements) == 1 else (2, 2))
    stride = torch.empty(whole).stride()
    return DTensor.from_local(
        torch.ones(shape), mesh, placements, shape=torch.Size(whole), stride=stride
    )


@pytest.mark.slow
@pytest.mark.usefixtures("third_of_four")
def test_a_piece_is_what_the_placements_of_a_tensor_say() -> None:
    for tensor, expected in (
        (held((2, 3), [Shard(0)], (7, 3)), ShardBox((7, 3), (4, 0), (2, 3))),
        (held((1, 3), [Shard(0)], (3, 3)), ShardBox((3, 3), (2, 0), (1, 3))),
        (held((0, 3), [Shard(0)], (2, 3)), nothing_of((2, 3))),
        (held((3, 4), [Replicate(), Shard(1)], (3, 7)), ShardBox((3, 7), (0, 0), (3, 4))),
        (torch.ones(2, 5), ShardBox((2, 5), (0, 0), (2, 5))),
    ):
        assert ShardBox.of("w", tensor) == expected


@pytest.mark.usefixtures("third_of_four")
def test_summands_of_a_weight_are_refused() -> None:
    summand = held((2, 3), [Partial()], (2, 3))
    with pytest.raises(ScopeError, match=r"rank to hold weights of 'head.w', got summands of them"):
        ShardBox.of("head.w", summand)


@pytest.mark.usefixtures("third_of_four")
def test_a_model_that_was_sharded_in_another_way_since_is_refused() -> None:
    own = {"w": ShardBox((7, 3), (4, 0), (2, 3))}
    pieces = [{"w": ShardBox((7, 3), (first, 0), (2, 3))} for first in (0, 2)]
    shards = Shards([*pieces, own, {"w": ShardBox((7, 3), (6, 0), (1, 3))}], 2)
    reader = ShardedReader(shards, SimpleNamespace(is_alone=False, fsdp=()))
    scope = Spreading(4, {"w": torch.ones(7, 3)}, {}).scope
    reader.lookup(nn.ParameterDict({"w": held((2, 3), [Shard(0)], (7, 3))}), scope)
    with pytest.raises(
        ScopeError, match=r"\(2, 3\) of 'w' from \(4, 0\) on as at attach, got \(7, 3\)"
    ):
        reader.lookup(nn.ParameterDict({"w": torch.ones(7, 3)}), scope)
