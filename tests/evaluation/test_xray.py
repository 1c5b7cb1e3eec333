"""The x-ray of the dense forward: equal to brute force, and it leaves no trace."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts.feed_forward import WIDTH, Blocks, batches, value
from contracts.thread_ranks import on_ranks
from torch import nn

import sparsitywatch as sw
from sparsitywatch.evaluation.masked import MaskedModel, run_sweep
from sparsitywatch.evaluation.xray import sampled
from sparsitywatch.patterns.pattern import as_pattern
from sparsitywatch.ranks.protocol import Ranks
from sparsitywatch.records import Record, XRay, from_json, to_json
from sparsitywatch.sweeps import Grid
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.spectrum import MagnitudeSpectrum


def xray_of(model: nn.Module, data: list[dict[str, torch.Tensor]] | None = None) -> XRay:
    found = sw.measure(model, sw.Proxy(data or batches(), value), levels=[0.5]).xray
    assert found is not None
    return found


def column(xray: XRay, name: str) -> dict[str, float]:
    return dict(zip(xray.layers.names, getattr(xray.layers, name), strict=True))


# ------------------------------------------------------------------ brute force


def everything_that_counts(
    model: nn.Module, layer: nn.Module, data: list[dict[str, torch.Tensor]]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """By batch, all inputs and outputs of a layer at positions that are no padding."""
    inputs, outputs = [], []
    caught: list[tuple[torch.Tensor, torch.Tensor]] = []
    with layer.register_forward_hook(lambda _, x, y: caught.append((x[0], y))), torch.no_grad():
        for batch in data:
            model(batch["input_ids"])
            x, y = caught.pop()
            counts = batch["attention_mask"] == 1
            inputs.append(x[counts].double().numpy())
            outputs.append(y[counts].double().numpy())
    return inputs, outputs


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.SiLU])
@pytest.mark.parametrize("length", [40, 200])
def test_equal_to_brute_force(activation: type[nn.Module], length: int) -> None:
    model = Blocks(activation).eval()
    with torch.no_grad():  # some units die, and some hardly live
        model.layers[1].up.bias[: 2 * WIDTH] -= torch.linspace(0.0, 9.0, 2 * WIDTH)
    data = batches(length=length)
    xray = xray_of(model, data)
    layers = {name: one for name, one in model.named_modules() if isinstance(one, nn.Linear)}
    assert xray.layers.names == tuple(f"{name}.weight" for name in layers)
    for name, layer in layers.items():
        inputs, outputs = everything_that_counts(model, layer, data)
        found = {key: column(xray, key)[f"{name}.weight"] for key in vars(xray.layers)}
        x = np.concatenate(inputs)
        some = np.concatenate([part[sampled(len(part), 1)] for part in inputs])
        limit = 1e-3 * math.sqrt((some**2).mean())
        dead = np.mean([abs(unit).max() <= limit for unit in x.T])
        assert found["dead"] == pytest.approx(dead, rel=1e-5)
        share = (some > 0).mean(0)
        wanted = np.percentile(share, (5, 50, 95))
        shares = [found["active_low"], found["active"], found["active_high"]]
        assert shares == pytest.approx(wanted, rel=1e-4)
        bits = [
            -sum(q * math.log2(q) for q in (p, 1.0 - p) if q > 0.0) for p in share.tolist()
        ]  # fmt: skip
        wanted = np.mean(bits) if (some < 0).any() else math.nan
        assert found["sign_diversity"] == pytest.approx(wanted, rel=1e-4, nan_ok=True)
        if name == "head":
            assert math.isnan(found["massive"])  # out of scope
            continue
        rows = [part[np.unravel_index(abs(part).argmax(), part.shape)[0]] for part in outputs]
        middles = [np.sort(abs(row))[(len(row) - 1) // 2] for row in rows]
        _, most = max(
            (abs(row).max(), abs(row).max() / m) for row, m in zip(rows, middles, strict=True)
        )
        assert found["massive"] == pytest.approx(most, rel=1e-3)
    dead, sizes = np.array(xray.layers.dead), np.array(xray.layers.num_units)
    assert xray.dead == pytest.approx(dead @ sizes / sizes.sum(), rel=1e-4)
    assert xray.dead_units == max(xray.layers.dead)


def test_batches_divided_otherwise_show_the_same_dead_units_and_massive_outputs() -> None:
    model, (whole,) = Blocks(nn.ReLU), batches((16,))
    halves = [{key: x[i : i + 8] for key, x in whole.items()} for i in (0, 8)]
    one, two = xray_of(model, [whole]), xray_of(model, halves)
    assert one.layers.dead == two.layers.dead
    assert one.layers.massive == pytest.approx(two.layers.massive, rel=1e-4, nan_ok=True)


@pytest.mark.parametrize(("spike", "dead"), [(0.0, 0.25), (1e4, 0.0)])
def test_what_a_quiet_batch_proves_is_no_proof_for_a_loud_one(spike: float, dead: float) -> None:
    quiet, loud = torch.ones(600, 4), torch.full((600, 4), 1e4)
    loud[:, 0] = 0.0
    (left_out, *_) = np.setdiff1d(np.arange(600), sampled(600, 1)).tolist()
    loud[left_out, 0] = spike
    proxy = sw.Proxy([quiet, loud], lambda model, batch: model(batch).square().mean(1))
    record = sw.measure(nn.Sequential(nn.Linear(4, 20)), proxy, scope="layers", levels=[0.5])
    assert record.xray is not None
    assert record.xray.layers.dead == (dead,)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(6, 4, 3, groups=2), (5, 6, 7, 7)), (nn.Conv1d(6, 4, 3), (5, 6, 9)),
        (nn.ConvTranspose2d(6, 4, 3, groups=2), (5, 6, 7, 7)),
    ],
)  # fmt: skip
def test_the_units_of_a_convolution_are_its_input_channels(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    model = nn.Sequential(layer, nn.Flatten(), nn.LazyLinear(3))
    torch.manual_seed(0)
    x = torch.randn(shape)
    x[:, :2] = 0.0
    model(x)
    proxy = sw.Proxy([x], lambda m, b: m(b).square().sum(1))
    found = sw.measure(model, proxy, levels=[0.5], scope="layers").xray
    assert found is not None
    assert (found.layers.names[0], found.layers.num_units[0]) == ("0.weight", 6)
    assert column(found, "dead")["0.weight"] == pytest.approx(2 / 6, rel=1e-5)


def test_of_a_convolution_s_positions_runs_of_eight_are_counted() -> None:
    x = torch.randn(5, 6, 304, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Conv1d(6, 4, 3), nn.Flatten(), nn.Linear(4 * 302, 3))
    proxy = sw.Proxy([x], lambda m, b: m(b).square().sum(1))
    found = sw.measure(model, proxy, levels=[0.5], scope="layers").xray
    assert found is not None
    positions = sampled(5 * 304, 8)  # 190 runs, of which each fifth makes 256 positions
    assert len(positions) == 8 * 38
    assert (positions.reshape(-1, 8) == positions[::8, None] + np.arange(8)).all()
    share = (x.transpose(1, 2).reshape(-1, 6)[positions] > 0).double().mean(0)
    wanted = np.percentile(share, (5, 50, 95))
    at = [column(found, name)["0.weight"] for name in ("active_low", "active", "active_high")]
    assert at == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("length", [16, 64, 100, 256])
@pytest.mark.parametrize("num", [64, 256])
@pytest.mark.parametrize("run", [1, 8])
def test_no_place_in_a_text_is_left_out_of_the_sample(length: int, num: int, run: int) -> None:
    """A stride that goes into the length sees the first token alone."""
    size = length * num
    positions = sampled(size, run)
    assert 256 <= len(positions) <= max(2 * 256, 2 * run)
    assert len(set(positions.tolist())) == len(positions)
    assert 0 <= positions.min() <= positions.max() < size
    assert len(set((positions % length).tolist())) > 0.4 * min(length, 256)
    assert abs((positions % length).mean() / (length - 1) - 0.5) < 0.12
    assert positions.tolist() == sampled(size, run).tolist()


def test_signs_of_a_text_that_begins_alike_are_those_of_all_of_it() -> None:
    x = torch.randn(256, 64, 8, generator=torch.Generator().manual_seed(0))
    x[:, 0] = 1.0  # what all begin with
    model = nn.Sequential(nn.Linear(8, 20), nn.Linear(20, 3))
    proxy = sw.Proxy([x], lambda m, b: m(b).square().mean((1, 2)))
    found = sw.measure(model, proxy, scope="layers", levels=[0.5]).xray
    assert found is not None
    assert column(found, "sign_diversity")["0.weight"] == pytest.approx(1.0, abs=0.02)


# ------------------------------------------------------------------ what is planted is told


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU])
def test_a_dead_block_is_told_with_its_layer(activation: type[nn.Module]) -> None:
    model = Blocks(activation)
    assert xray_of(model).dead_units < 0.1
    with torch.no_grad():
        model.layers[1].up.bias.fill_(-30.0)
    found = xray_of(model)
    dead = column(found, "dead")
    assert {name for name, share in dead.items() if share == 1.0} == {"layers.1.down.weight"}
    assert found.dead_units == 1.0


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.router = nn.Linear(8, 4)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chosen = self.router(x).argmax(1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            out[chosen == number] = expert(x[chosen == number])
        return self.head(out)


def test_an_expert_that_is_never_routed_to_is_told() -> None:
    model, x = Experts(), torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
    proxy = sw.Proxy([x[:32], x[32:]], lambda m, b: m(b).square().sum(1))

    def unreached() -> tuple[str, ...]:
        found = sw.measure(model, proxy, levels=[0.5], scope="layers").xray
        assert found is not None
        return found.unreached

    assert unreached() == ()
    with torch.no_grad():
        model.router.bias[2] = -1e3
    assert unreached() == ("experts.2.weight",)


def test_a_super_weight_is_named_by_tensor_row_and_column() -> None:
    model = Blocks(nn.ReLU)
    assert xray_of(model).super_weights == ()
    with torch.no_grad():
        model.layers[2].down.weight[5, 17] = 3e3
    found = xray_of(model)
    assert found.super_weights[0] == "layers.2.down.weight[5, 17]"
    assert found.num_super_weights == 1
    assert found.massive >= 1000.0


# ------------------------------------------------------------------ without a trace


def sweep(model: nn.Module, proxy: sw.Proxy, *, looks: bool):
    scope = Scope.of(model)
    weights = {name: one.detach() for name, one in model.named_parameters() if name in scope.names}
    return run_sweep(
        MaskedModel(model, scope), proxy, MagnitudeSpectrum.of(weights),
        pattern=as_pattern("global"), sweep=Grid((0.3, 0.6)), allowed=lambda _: 0.01, looks=looks,
    )  # fmt: skip


class Fast(nn.Module):
    """Runs otherwise where its parts have hooks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 48, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(WIDTH, 50)
        self.embedding = nn.Embedding(50, WIDTH)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embedding(ids)))


def test_what_runs_without_its_parts_is_named_as_not_seen() -> None:
    xray = sw.measure(Fast(), sw.Proxy(batches(), value), levels=[0.5]).xray
    assert xray is not None
    assert xray.layers.names == ("head.weight",)
    assert xray.unseen == Scope.of(Fast()).names
    assert xray.unreached == ()


class Unseen(nn.Module):
    """Never calls its layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = nn.functional.linear(x, layer.weight)
        return x


def test_where_no_layer_is_seen_there_are_no_numbers() -> None:
    proxy = sw.Proxy([torch.randn(4, 8)], lambda m, b: m(b).square().sum(1))
    record = sw.measure(Unseen(), proxy, levels=[0.5])
    assert record.xray is not None
    assert record.xray.reason == "the forward calls no linear or convolutional layer"
    assert record.xray.unseen == ("layers.0.weight",)
    assert not [name for name in record.series() if name.startswith("xray/")]


def test_an_evaluation_goes_on_where_its_layers_cannot_be_looked_at() -> None:
    data = [batch | {"attention_mask": 2 * batch["attention_mask"]} for batch in batches()]
    record = sw.measure(Blocks(), sw.Proxy(data, value), levels=[0.5])
    assert record.valid
    assert record.xray is not None
    assert "Expected a mask of ones and zeros" in record.xray.reason
    assert not record.xray.layers.names


@pytest.mark.parametrize("make", [Blocks, Fast])
def test_the_values_are_the_same_bits_and_no_hook_stays(make: type[nn.Module]) -> None:
    model, proxy = make(), sw.Proxy(batches(), value)
    seen, unseen = (sweep(model, proxy, looks=looks) for looks in (True, False))
    assert seen.curve == unseen.curve
    assert seen.num_forwards == unseen.num_forwards
    assert seen.xray is not None
    assert unseen.xray is None
    assert not any(one._forward_hooks for one in model.modules())


def test_two_ranks_see_together_what_one_sees() -> None:
    def seen(ranks: Ranks) -> XRay | None:
        proxy = proxies[ranks.rank].shared(ranks)  # of three batches the second rank has one
        return sweep(models[ranks.rank], proxy, looks=True).xray

    proxies = [sw.Proxy(batches(), value) for _ in range(2)]
    models = [Blocks(nn.ReLU) for _ in range(2)]
    assert on_ranks(2, seen) == [xray_of(Blocks(nn.ReLU))] * 2


def test_it_is_the_same_in_its_json_form_and_of_a_record_without_one() -> None:
    record = sw.measure(Blocks(), sw.Proxy(batches(), value), levels=[0.5])
    assert from_json(Record, to_json(record)).xray == record.xray
    assert sw.measure(Blocks()).xray is None


def test_a_replay_shows_the_same(tmp_path: Path) -> None:
    model = Blocks(nn.ReLU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    proxy, paths = sw.Proxy(batches(), value), {}
    with sw.watch(
        model, optimizer, proxy=proxy, every=2, logdir=None, max_overhead=None
    ) as watcher:
        for step in range(1, 5):
            value(model, batches()[0]).mean().backward()
            optimizer.step()
            if step % 2 == 0:
                paths[step] = str(tmp_path / f"{step}.pt")
                torch.save(model.state_dict(), paths[step])
    replayed = sw.replay(paths, model=Blocks(nn.ReLU), proxy=proxy, logdir=None)
    live = {record.step: record.xray for record in watcher.records}
    assert {record.step: record.xray for record in replayed.records} == {s: live[s] for s in paths}
    assert all(live[step] is not None for step in paths)
