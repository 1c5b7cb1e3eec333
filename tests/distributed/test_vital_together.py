"""Facts of every parameter, read by ranks that hold parts, against those of one process."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from contracts.boxes import Spreading, cut_out, pieces_of, spreadings
from contracts.thread_ranks import ThreadRanks, on_ranks
from contracts.traced import Traced
from contracts.vital_rows import rows
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sparsitywatch.errors import MeasurementError, ScopeError
from sparsitywatch.ranks.reading import WHOLE_MODEL, ShardBox, ShardedReader, Shards
from sparsitywatch.vital.reading import VitalTracker
from sparsitywatch.vital.samples import SOME

STEPS = 4
LARGE = (41, 110)  # more weights than are compared


class Part:
    """What a rank holds of a parameter, as FSDP1 has it: the one kind that needs no process."""

    def __init__(self, owner: nn.Parameter) -> None:
        self.owner = owner

    def local(self) -> torch.Tensor:
        return self.owner.detach().reshape(-1)

    def part_of(self, held: torch.Tensor) -> torch.Tensor:
        return held.detach().reshape(-1)


def history(made: Spreading, seed: int) -> list[dict[str, tuple[torch.Tensor, Any]]]:
    """Weights and gradients of whole tensors, by snapshot: each odd in its own way."""
    draw, found = np.random.default_rng(seed), []
    weights = {name: draw.normal(size=tuple(t.shape)) for name, t in made.tensors.items()}
    ways = {name: draw.integers(0, 6, 2) for name in weights}
    for _ in range(STEPS):
        now: dict[str, tuple[torch.Tensor, Any]] = {}
        for name, before in weights.items():
            noise, some = draw.normal(size=before.shape), draw.random(before.shape) < 0.5
            way, way_of_gradient = ways[name]
            weights[name] = np.asarray([
                before, before + 0.1 * noise, before + noise * some, 0.99 * before,
                np.where(draw.random(before.shape) < 0.02, np.nan, before), 0.0 * before,
            ][way])  # fmt: skip
            seldom = draw.random(before.shape) < 0.001
            gradient = [None, 0.0 * noise, noise, noise * some, noise * seldom,
                        np.where(seldom, np.inf, noise)][way_of_gradient]  # fmt: skip
            dtype = made.tensors[name].dtype
            gradient = None if gradient is None else torch.tensor(gradient).to(dtype)
            now[name] = torch.tensor(weights[name]).to(dtype), gradient
        found.append(now)
    return found


def facts_of(
    steps: list[dict[str, tuple[torch.Tensor, Any]]],
    made: Spreading,
    ranks: ThreadRanks | None = None,
) -> tuple[list[str], str, list[dict[str, float]]]:
    """The facts of each snapshot as text, the state at the end, and the sizes of gradients."""

    def own(name: str, tensor: torch.Tensor) -> torch.Tensor:
        held = tensor if ranks is None else cut_out(tensor, made.spread[name][ranks.rank])
        return held.contiguous().clone()

    owners = {name: nn.Parameter(own(name, tensor)) for name, (tensor, _) in steps[0].items()}
    parameters: dict[str, nn.Parameter] = owners
    if ranks is not None:
        parameters = {}
        for name, (tensor, _) in steps[0].items():
            parameters[name] = nn.Parameter(torch.empty_like(tensor, device="meta"))
            parameters[name].flat_shard = Part(owners[name])
    chosen = [p for name, p in owners.items() if not name.startswith("layers.0")]
    optimizer = torch.optim.AdamW(chosen or [nn.Parameter(torch.ones(1))], lr=0.01)
    reader = WHOLE_MODEL if ranks is None else made.reader(ranks)
    tracker, found = VitalTracker(reader), []
    traced = Traced(optimizer, parameters=parameters)
    for number, step in enumerate(steps):
        for name, (tensor, gradient) in step.items():
            owners[name].data.copy_(own(name, tensor))
            owners[name].grad = None if gradient is None else own(name, gradient)
            if number % 2 and gradient is not None:
                optimizer.state[owners[name]] = {"exp_avg": own(name, gradient)}
        traced.stepped(optimizer)
        signs = tracker.look(number, parameters, traced.training())()
        found.append(repr(rows(signs.facts)))  # NaN equals NaN
    state = tracker.state_dict()
    return found, repr({**state, "gradients": None}), state["gradients"]


@st.composite
def cases(draw: st.DrawFn) -> Spreading:
    made = draw(spreadings(sizes=(2, 3, 4), num_tensors=3))
    made.tensors["large"] = torch.zeros(LARGE)
    made.spread["large"] = pieces_of(draw, LARGE, made.size)
    return made


@pytest.mark.slow
@given(made=cases(), seed=st.integers(0, 999))
@settings(max_examples=15, deadline=None)
def test_ranks_that_hold_parts_know_of_each_tensor_what_one_process_knows(
    made: Spreading, seed: int
) -> None:
    steps = history(made, seed)
    expected = facts_of(steps, made)
    assert f"num={SOME}, num_dims=2" in expected[0][-1]
    for found in on_ranks(made.size, lambda ranks: facts_of(steps, made, ranks)):
        assert found[:2] == expected[:2]
        for own, of_one in zip(found[2], expected[2], strict=True):  # ranks add up in parts
            assert own == pytest.approx(of_one, rel=1e-6, nan_ok=True)


def test_what_cannot_be_read_on_one_rank_fails_on_all_and_nobody_waits() -> None:
    """A rank that holds fewer weights than at the attach."""
    whole = torch.arange(12.0)
    pieces = [{"w": ShardBox((12,), (6 * rank,), (6,))} for rank in range(2)]

    def act(ranks: ThreadRanks) -> Any:
        parameter = nn.Parameter(torch.empty(12, device="meta"))
        start = 6 * ranks.rank
        owner = nn.Parameter(whole[start : start + 6 - ranks.rank].clone())
        parameter.flat_shard = Part(owner)
        tracker = VitalTracker(ShardedReader(Shards(pieces, ranks.rank), ranks))
        try:
            tracker.look(0, {"w": parameter})
        except (MeasurementError, ScopeError) as error:
            return f"{type(error).__name__}: {error}"

    first, second = on_ranks(2, act)
    assert "failed on rank 1: ScopeError: Expected this rank to hold (6,) of 'w'" in first
    assert second.startswith("ScopeError: Expected this rank to hold (6,) of 'w'")
    assert second.endswith("got (5,). Attach a new watch after sharding the model.")


def test_an_optimizer_that_steps_on_other_tensors_on_each_rank_trains_all_of_them() -> None:
    pieces = [{n: ShardBox((12,), (6 * rank,), (6,)) for n in ("a", "b")} for rank in range(2)]

    def act(ranks: ThreadRanks) -> Any:
        parameters = {}
        for name in ("a", "b"):
            parameters[name] = nn.Parameter(torch.empty(12, device="meta"))
            parameters[name].flat_shard = Part(nn.Parameter(torch.ones(6)))
        own = parameters["ab"[ranks.rank]].flat_shard.owner
        optimizer = torch.optim.SGD([own], lr=0.1)
        traced = Traced(optimizer, parameters=parameters)
        tracker = VitalTracker(ShardedReader(Shards(pieces, ranks.rank), ranks))
        for step in range(2):
            own.grad = torch.ones(6)
            traced.stepped(optimizer)
            signs = tracker.look(step, parameters, traced.training())()
        return signs.facts.trained_by.tolist()

    assert on_ranks(2, act) == [["own", "own"]] * 2


def test_only_what_is_sampled_is_exchanged() -> None:
    """Of weights once, of gradients where something stands still."""
    num = 1 << 20
    pieces = [{"w": ShardBox((num,), (num // 2 * rank,), (num // 2,))} for rank in range(2)]

    def act(ranks: ThreadRanks) -> list[int]:
        parameter = nn.Parameter(torch.empty(num, device="meta"))
        parameter.flat_shard = Part(nn.Parameter(torch.ones(num // 2)))
        tracker = VitalTracker(ShardedReader(Shards(pieces, ranks.rank), ranks))
        optimizer = torch.optim.SGD([parameter.flat_shard.owner], lr=0.1)
        traced, sent = Traced(optimizer, parameters={"w": parameter}), []
        for step in range(3):
            parameter.flat_shard.owner.grad = torch.ones(num // 2)
            parameter.flat_shard.owner.data += 0.1 * (step < 2)
            traced.stepped(optimizer)
            before = ranks.num_bytes
            tracker.look(step, {"w": parameter}, traced.training())
            sent.append(ranks.num_bytes - before)
        return sent

    for first, moved, stood in on_ranks(2, act):
        assert 4 * SOME <= first <= moved < 5 * SOME < stood < 13 * SOME
