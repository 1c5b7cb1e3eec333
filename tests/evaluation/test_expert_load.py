"""The load of experts is what the router's own logits say, and what a list of experts was given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.feed_forward import Blocks, batches, value
from contracts.thread_ranks import on_ranks
from torch import nn

import sparsitywatch as sw
from sparsitywatch.evaluation.masked import MaskedModel, run_sweep
from sparsitywatch.patterns.pattern import as_pattern
from sparsitywatch.ranks.protocol import Ranks
from sparsitywatch.records import Record, XRay, from_json, to_json
from sparsitywatch.sweeps import Grid
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

SMALL = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
         "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64,
         "eos_token_id": 0, "num_experts_per_tok": 2}  # fmt: skip
SHARED = {"num_experts": 6, "moe_intermediate_size": 8}
MIXTURES = {
    "Mixtral": {"num_local_experts": 6},
    "Qwen2Moe": SHARED | {"shared_expert_intermediate_size": 8},
    "Qwen3Moe": SHARED | {"head_dim": 8},
    "Olmoe": {"num_experts": 6},
}


def logits_of(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def loss_of(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = logits_of(model, batch).transpose(1, 2)
    return nn.functional.cross_entropy(logits, batch["input_ids"], reduction="none").mean(1)


def xray_of(model: nn.Module, proxy: sw.Proxy, **options: Any) -> XRay:
    found = sw.measure(model, proxy, levels=[0.5], **options).xray
    assert found is not None
    assert not found.reason
    return found


def violation(load: Any) -> float:
    return max(np.max(x) / np.mean(x) - 1.0 for x in load)


@pytest.mark.parametrize("kind", MIXTURES)
def test_equal_to_the_choice_of_the_router_s_own_logits_without_padding(kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SMALL, **MIXTURES[kind])
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for layer in model.model.layers:
        nn.init.normal_(layer.mlp.gate.weight)
    wanted = np.zeros((2, 6), int)
    for batch in batches():
        with torch.no_grad():
            routers = model(**batch, output_router_logits=True).router_logits
        for at, logits in enumerate(routers):
            chosen = logits.softmax(-1).topk(2).indices[batch["attention_mask"].flatten() == 1]
            wanted[at] += [int((chosen == expert).sum()) for expert in range(6)]
    found = xray_of(model, sw.Proxy(batches(), loss_of))
    assert wanted.sum() == 2 * 2 * sum(int(b["attention_mask"].sum()) for b in batches())
    assert list(found.expert_load) == [f"model.layers.{at}.mlp.experts" for at in range(2)]
    assert list(found.expert_load.values()) == [tuple(row) for row in wanted.tolist()]
    assert found.max_violation == pytest.approx(violation(wanted), rel=1e-8)


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


class Mixture(nn.Module):
    """Two layers of five experts in a list; each position goes to two of them."""

    def __init__(self, *, bias: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.routers = nn.ModuleList(nn.Linear(8, 5) for _ in range(2))
        self.layers = nn.ModuleList(
            nn.ModuleDict({"experts": nn.ModuleList(Expert() for _ in range(5))}) for _ in range(2)
        )
        self.head = nn.Linear(8, 3)
        with torch.no_grad():
            self.routers[1].bias[3] += bias

    def forward(self, x: torch.Tensor, seen: list[torch.Tensor] | None = None) -> torch.Tensor:
        for router, layer in zip(self.routers, self.layers, strict=True):
            chosen = router(x).topk(2).indices
            if seen is not None:
                seen.append(torch.bincount(chosen.flatten(), minlength=5))
            out = torch.zeros_like(x)
            for number, expert in enumerate(layer["experts"]):
                rows = (chosen == number).any(1)
                if rows.any():
                    out[rows] += expert(x[rows])
            x = x + out
        return self.head(x)


def squares(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean(1)


DATA = torch.randn(3, 40, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bias", [0.0, -1e3, 1e3])
def test_equal_to_what_each_expert_of_a_list_was_called_with(bias: float) -> None:
    model, wanted = Mixture(bias=bias), np.zeros((2, 5), int)
    for batch in DATA:
        seen: list[torch.Tensor] = []
        model(batch, seen)
        wanted += np.stack([one.numpy() for one in seen])
    record = sw.measure(model, sw.Proxy([*DATA], squares), levels=[0.5])
    xray = record.xray
    assert xray is not None
    assert dict(xray.expert_load) == {
        f"layers.{at}.experts": tuple(row) for at, row in enumerate(wanted.tolist())
    }
    assert record.series()["xray/max_violation"] == xray.max_violation
    assert xray.max_violation == pytest.approx(violation(wanted), rel=1e-8)
    assert ("layers.1.experts.3.up.weight" in xray.unreached) == (bias < 0.0)
    assert from_json(Record, to_json(record)).xray == xray


def test_a_model_without_experts_has_no_load() -> None:
    record = sw.measure(Blocks(), sw.Proxy(batches(), value), levels=[0.5])
    assert record.xray is not None
    assert not record.xray.expert_load
    assert "xray/max_violation" not in record.series()


class Stack(nn.Module):
    """Experts that one module keeps; ``told`` is what comes with their inputs."""

    def __init__(self, told: Callable[[torch.Tensor], tuple[Any, ...]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.told = told
        self.experts = Packed()
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.experts(x, *self.told(x)))


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = (nn.Parameter(torch.randn(4, 8, 8)) for _ in range(2))

    def forward(self, x: torch.Tensor, *told: Any) -> torch.Tensor:
        return sum(torch.relu(x @ u.T) @ d.T for u, d in zip(self.up, self.down, strict=True))


@pytest.mark.parametrize(
    ("told", "load", "unreached"),
    [
        (lambda x: (), (), ()),
        (lambda x: ([10, 10, 10, 10],), (), ()),  # sizes, of inputs that are sorted by expert
        (lambda x: (torch.ones(len(x), dtype=torch.int64),), (), ()),  # a mask
        (lambda x: (torch.ones(len(x), 2),), (), ()),
        (lambda x: (torch.tensor([[1, 3]] * len(x)),), (0, 120, 0, 120), (0, 2)),
        (lambda x: (torch.tensor([[1, 4], [-1, 2]] * 20),), (0, 60, 60, 0), (0, 3)),  # of others
    ],
)
def test_a_stack_is_counted_only_where_a_router_s_choice_comes_with_its_inputs(
    told: Any, load: tuple[int, ...], unreached: tuple[int, ...]
) -> None:
    names = ["experts.up", "experts.down"]
    found = xray_of(Stack(told), sw.Proxy([*DATA], squares), scope=names)
    assert "experts.up" in found.layers.names
    assert dict(found.expert_load) == ({"experts": load} if load else {})
    assert found.unreached == tuple(f"experts.up[{expert}]" for expert in unreached)


def test_of_very_many_layers_the_first_hundred_are_kept_and_all_are_judged() -> None:
    model = nn.Sequential(*(nn.ModuleDict({"experts": nn.ModuleList(
        nn.Linear(2, 2, bias=False) for _ in range(2))}) for _ in range(102)))  # fmt: skip

    def run(model: Any, x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        for at, layer in enumerate(model):
            one, other = layer["experts"]
            other(x if at < 101 else x[x[:, 0] > 18.5])
            out = out + one(x)
        return out.sum(1)

    # in the last layer of all one position of twenty comes to the second expert
    x = torch.arange(20.0)[:, None].expand(20, 2).clone()
    found = xray_of(model, sw.Proxy([x], run), scope="layers")
    assert list(found.expert_load) == [f"{at}.experts" for at in range(100)]
    assert found.max_violation == pytest.approx(40 / 21 - 1)


# ------------------------------------------------------------------ without a trace, and anywhere


def sweep(model: nn.Module, proxy: sw.Proxy, *, looks: bool = True):
    scope = Scope.of(model)
    weights = {name: one.detach() for name, one in model.named_parameters() if name in scope.names}
    return run_sweep(
        MaskedModel(model, scope), proxy, MagnitudeSpectrum.of(weights),
        pattern=as_pattern("global"), sweep=Grid((0.3,)), allowed=lambda _: 0.01, looks=looks,
    )  # fmt: skip


def test_the_values_are_the_same_bits() -> None:
    model, proxy = Mixture(), sw.Proxy([*DATA], squares)
    assert sweep(model, proxy).curve == sweep(model, proxy, looks=False).curve


def test_two_ranks_count_together_what_one_counts() -> None:
    def seen(ranks: Ranks) -> XRay | None:
        return sweep(models[ranks.rank], proxies[ranks.rank].shared(ranks)).xray

    proxies, models = [
        [make() for _ in range(2)] for make in (lambda: sw.Proxy([*DATA], squares), Mixture)
    ]
    assert on_ranks(2, seen) == [sweep(Mixture(), sw.Proxy([*DATA], squares)).xray] * 2


def test_a_replay_counts_the_same(tmp_path: Path) -> None:
    model, proxy, paths = Mixture(), sw.Proxy([*DATA], squares), {}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    with sw.watch(model, optimizer, proxy=proxy, every=1, logdir=tmp_path, max_overhead=None) as w:
        for step in range(1, 4):
            squares(model, DATA[0]).mean().backward()
            optimizer.step()
            paths[step] = str(tmp_path / f"{step}.pt")
            torch.save(model.state_dict(), paths[step])
    replayed = sw.replay(paths, model=Mixture(), proxy=proxy, logdir=None).records
    logged = {record.step: record.xray for record in sw.load(tmp_path).records}
    live = {record.step: record.xray for record in w.records}
    for record in replayed:
        assert record.xray is not None
        assert record.xray.expert_load
        assert record.xray == live[record.step] == logged[record.step]


def test_a_log_that_was_written_before_has_no_load() -> None:
    record = sw.measure(Mixture(), sw.Proxy([*DATA], squares), levels=[0.5])
    text = to_json(record)
    for key in ("expert_load", "max_violation"):
        text = text.replace(f'"{key}":', f'"not_{key}":')
    read = from_json(Record, text).xray
    assert record.xray is not None
    assert read is not None
    assert np.isnan(read.max_violation)
    assert replace(read, expert_load=record.xray.expert_load,
                   max_violation=record.xray.max_violation) == record.xray  # fmt: skip
