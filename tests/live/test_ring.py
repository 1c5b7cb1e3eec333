"""The ring of what moved at each step: as a structure, and beside an exact oracle."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparsitywatch.analysis.spikes import Moves
from sparsitywatch.live.ring import Ring
from sparsitywatch.pipeline.rundir import Claim
from sparsitywatch.records.run import block_of


def ring_of(parameters: dict[str, torch.Tensor], capacity: int = 2000) -> Ring:
    ring = Ring(True, Claim(None), strict=True)
    ring.attach(parameters, capacity)
    return ring


def read(ring: Ring) -> Moves:
    ring.look()
    return ring.moves


# ------------------------------------------------------------------ the structure


def expected(steps: list[int], capacity: int) -> list[tuple[int, float]]:
    """What a list would hold: no future that was lost, and the latest only."""
    rows: list[tuple[int, float]] = []
    for number, step in enumerate(steps):
        rows = [*rows, (step, float(number))][-capacity:]
        rows = [row for row in rows[:-1] if row[0] < step] + rows[-1:]
    return rows


@given(st.lists(st.integers(0, 12), max_size=40), st.integers(1, 7))
def test_a_ring_holds_what_a_list_would(steps, capacity):
    ring = ring_of({"weight": nn.Parameter(torch.zeros(16))}, capacity)
    for number, step in enumerate(steps):
        ring.say_loss(float(number))
        ring.after_step(step)
    moves = read(ring)
    found = list(zip(moves.steps.tolist(), moves.loss.tolist(), strict=True))
    # a row that was let go of keeps its place until it is written to
    kept = [row for row in expected(steps, 10**9) if row[1] >= len(steps) - capacity]
    assert found == kept


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("encoder.layer.3.attention.self.query.weight", "encoder.layer.3"),
        ("h.11.mlp.weight", "h.11"),
        ("embeddings.word_embeddings.weight", "embeddings.word_embeddings"),
        ("0.weight", "0"),
        ("weight", "weight"),
        ("stages.0.blocks.3.fc.weight", "stages.0.blocks.3"),
        ("stages.0.downsample.weight", "stages.0"),
        ("stages.0.blocks.3.gamma", "stages.0.blocks.3"),
        ("blocks.4.mlp.blocks.0.weight", "blocks.4"),
        ("towers.1.layers.5.scale", "towers.1.layers.5"),
        ("layers.0.blocks.1.mlp.2.weight", "layers.0.blocks.1"),
        ("encoder.block.0.layer.1.DenseReluDense.wi.weight", "encoder.block.0"),
        ("model.layers.3.block_sparse_moe.experts.5.w1.weight", "model.layers.3"),
        ("towers.1.layers.5.fc.weight", "towers.1.layers.5"),
        ("layer1.0.conv1.weight", "layer1.0"),
        ("encoder.layers.encoder_layer_0.mlp.0.weight", "encoder.layers.encoder_layer_0"),
        ("down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.weight",
         "down_blocks.0.attentions.1.transformer_blocks.0"),
        ("blocks.4.weight", "blocks.4"),
        ("blocks.4.layers.0.weight", "blocks.4"),
    ],
)  # fmt: skip
def test_the_block_of_a_parameter(name, block):
    assert block_of(name) == block


# ------------------------------------------------------------------ what it measures


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    parts = [nn.Linear(16, 40, bias=False), nn.ReLU(), nn.Linear(40, 16, bias=False)]
    parts.append(nn.Linear(16, 3, bias=False))
    return nn.Sequential(*parts).to(dtype)


def steps(module: nn.Module, optimizer: torch.optim.Optimizer, num: int):
    """Takes steps on random data; yields what each changed, by block, by an independent oracle."""
    dtype = next(module.parameters()).dtype
    for _ in range(num):
        before = [p.detach().double().clone() for p in module.parameters()]
        optimizer.zero_grad()
        module(torch.randn(8, 16, dtype=dtype)).square().mean().backward()
        optimizer.step()
        found: dict[str, list[list[torch.Tensor]]] = {}
        for (name, p), old in zip(module.named_parameters(), before, strict=True):
            moved = (p.detach().double() - old).flatten()
            grad = torch.zeros_like(moved) if p.grad is None else p.grad.double().flatten()
            own = found.setdefault(name.split(".")[0], [[], [], []])
            for parts, values in zip(
                own, (moved, p.detach().double().flatten(), grad), strict=True
            ):
                parts.append(values)
        yield {
            name: [float(torch.cat(part).square().mean().sqrt()) for part in parts]
            for name, parts in found.items()
        }


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_where_every_weight_is_followed_norms_are_exact(kind, dtype):
    module = model(dtype)
    ring = ring_of(dict(module.named_parameters()))
    oracle = []
    for number, one in enumerate(steps(module, kind(module.parameters(), lr=0.01), 5), start=1):
        ring.after_step(number)
        oracle.append(one)
    moves = read(ring)
    assert moves.blocks.tolist() == ["0", "2", "3"]
    assert moves.steps.tolist() == [1, 2, 3, 4, 5]
    for part, found in enumerate((moves.update, moves.weight, moves.gradient)):
        wanted = np.array([[one[block][part] for block in moves.blocks] for one in oracle])
        first = 1 if part == 0 else 0  # nothing is known of what was before the first step
        np.testing.assert_allclose(found[first:], wanted[first:], rtol=1e-4)
    assert np.isnan(moves.update[0]).all()


def test_a_sample_of_a_larger_block_says_the_norm_within_a_few_per_cent():
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(512, 768), nn.Linear(768, 512))
    ring = ring_of(dict(module.named_parameters()))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    for number in range(1, 4):
        before = [p.detach().clone() for p in module.parameters()]
        optimizer.zero_grad()
        module(torch.randn(32, 512)).square().mean().backward()
        optimizer.step()
        ring.after_step(number)
    exact = [
        torch.cat([(p.detach() - q).flatten() for p, q in pairs]).square().mean().sqrt().item()
        for pairs in (zip(module[0].parameters(), before[:2], strict=True),
                      zip(module[1].parameters(), before[2:], strict=True))
    ]  # fmt: skip
    np.testing.assert_allclose(read(ring).update[-1], exact, rtol=0.05)


def test_frozen_weights_are_left_out_and_skipped_steps_move_nothing():
    module = model()
    module[2].requires_grad_(False)
    ring = ring_of(dict(module.named_parameters()))
    ring.after_step(1)
    ring.after_step(2)
    moves = read(ring)
    assert moves.blocks.tolist() == ["0", "3"]
    assert moves.update[1].tolist() == [0.0, 0.0]
    assert np.isnan(moves.gradient).all()  # there was no backward
    assert np.isnan(moves.relative).all()


def test_nothing_is_said_of_an_update_when_the_weights_were_replaced():
    module = model()
    ring = ring_of(dict(module.named_parameters()))
    ring.after_step(1)
    module[0].weight.data = torch.randn(40, 16)
    ring.after_step(2)
    module[0].weight.data.add_(1.0)
    ring.after_step(3)
    moves = read(ring)
    assert np.isnan(moves.update[1]).all()
    assert moves.update[2, 0] > 0.9
    assert moves.update[2, 1] == 0.0


def test_losses_are_those_that_were_said_last():
    module = model()
    ring = ring_of(dict(module.named_parameters()))
    loss = torch.tensor(2.0, requires_grad=True) * 1.0
    ring.say_loss(loss)
    with torch.no_grad():
        loss /= 4.0  # as accumulation does it, after it was said
    ring.after_step(1)
    ring.after_step(2)
    ring.say_loss(math.nan)  # of a step that a gradient scaler skips
    ring.say_loss(3.0)
    ring.after_step(3)
    ring.say_loss(torch.tensor([1.0, 2.0], dtype=torch.bfloat16))
    ring.after_step(4)
    ring.say_loss(7, step=4)
    ring.say_loss(torch.tensor(math.nan))
    ring.after_step(5)
    found = read(ring).loss.tolist()
    assert found == pytest.approx([2.0, math.nan, 3.0, 7.0, math.inf], nan_ok=True)


def test_no_random_number_is_drawn_and_no_weight_written():
    module = model()
    weights = [p._version for p in module.parameters()]
    state = torch.get_rng_state()
    ring = ring_of(dict(module.named_parameters()))
    ring.after_step(1)
    assert [p._version for p in module.parameters()] == weights
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("gradients", ["missing", "sparse", "expanded"])
def test_gradients_that_cannot_be_read_as_the_weights_are_are_not_known(gradients):
    module = nn.Embedding(40, 16, sparse=gradients == "sparse")
    ring = ring_of(dict(module.named_parameters()))
    if gradients == "expanded":
        module.weight.grad = torch.ones(1, 16).expand(40, 16)
    elif gradients == "sparse":
        module(torch.tensor([1, 2])).sum().backward()
    ring.after_step(1)
    assert np.isnan(read(ring).gradient).all()


def test_several_steps_at_once_have_no_update():
    module = model()
    ring = ring_of(dict(module.named_parameters()))
    ring.after_step(1)
    ring.after_step(4, 3)
    ring.after_step(5)
    assert np.isnan(read(ring).update[:, 0]).tolist() == [True, True, False]


@pytest.mark.parametrize("num", [40, 10_000, 700_000])
def test_the_sample_lies_inside_each_tensor(num):
    sizes = [(num, 1), (3, 16), (64, 33), (1, 17)]
    held = {f"h.0.{i}": nn.Parameter(torch.ones(*size)) for i, size in enumerate(sizes)}
    held["h.0.views"] = nn.Parameter(torch.zeros(2, num)[1])  # not at the beginning of its memory
    ring = ring_of(held)
    ring.after_step(1)
    moves = read(ring)
    assert moves.blocks.tolist() == ["h.0"]
    share = sum(p.numel() for p in held.values() if p[..., 0].flatten()[0] == 1) / sum(
        p.numel() for p in held.values()
    )
    np.testing.assert_allclose(moves.weight[0, 0] ** 2, share, rtol=0.2)
