"""Wanda against numpy, SparseGPT against least squares, inputs against what really came in."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from contracts.pattern_contract import PatternContract, tensors, told
from torch import nn
from transformers.pytorch_utils import Conv1D

import sparsitywatch as sw
from sparsitywatch.errors import ConfigurationError, MeasurementError, ProxyError
from sparsitywatch.patterns.criteria import input_axes, inputs_of, inputs_on
from sparsitywatch.patterns.cuts import Inputs, Weights
from sparsitywatch.patterns.pattern import Pattern, SparseGPT, Wanda
from sparsitywatch.patterns.sparsegpt import Moments
from sparsitywatch.pipeline.measure import RunContext, _estimate
from sparsitywatch.proxy.batches import Runnable
from sparsitywatch.records import SparsityCurve


class TestWanda(PatternContract):
    within = 0.06  # rows are short

    def make(self) -> Pattern:
        return Wanda()

    def test_weights_go_by_their_size_times_the_norm_of_the_input(self) -> None:
        dense = tensors(torch.float32)
        known = told(dense)
        (cut,) = self.make().cuts(known, [0.5])
        for name, turn in (("linear", False), ("conv1d", True)):
            out = torch.empty_like(dense[name])
            cut.prune(name, dense[name], out)
            rows, after = (t.numpy().T if turn else t.numpy() for t in (dense[name], out))
            scores = np.abs(rows) * np.sqrt(known.inputs.squares[name].numpy())
            gone = np.argsort(scores, 1, kind="stable")[:, : rows.shape[1] // 2]
            expected = rows.copy()
            np.put_along_axis(expected, gone, 0.0, 1)
            assert np.array_equal(after, expected)


def test_several_threads_prune_parameters_without_recording_gradients() -> None:
    """A thread records them unless it says otherwise, which these norms would refuse."""
    weights, before = nn.Parameter(torch.rand(700, 300) + 1), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.inference_mode():
            inputs = Inputs({"w": 1}, {"w": torch.ones(300)})
            (cut,) = Wanda().cuts(Weights.of({"w": weights.detach()}, inputs=inputs), [0.4])
            cut.prune("w", weights, out := torch.empty(700, 300))
    finally:
        torch.set_num_threads(before)
    assert (out == 0).sum(1).tolist() == [120] * 700


class TestSparseGPT(PatternContract):
    within = 0.05
    updates = True

    def make(self) -> Pattern:
        return SparseGPT()


@pytest.mark.parametrize("block", [1, 5, 24, 128])
def test_what_is_kept_makes_up_for_what_went(block: int) -> None:
    """Whenever a weight goes, those after it are what least squares says."""
    torch.manual_seed(0)
    mixing = torch.randn(24, 24, dtype=torch.float64)
    inputs = torch.randn(4000, 24, dtype=torch.float64) @ mixing
    weights = torch.randn(8, 24, dtype=torch.float64)
    known = Weights.of(
        {"w": weights},
        inputs=Inputs({"w": 4000}, {"w": inputs.square().sum(0)}, {"w": inputs.T @ inputs}),
    )
    (cut,) = SparseGPT(block=block, damping=1e-6).cuts(known, [0.5])
    out = torch.empty_like(weights)
    cut.prune("w", weights, out)
    errors = torch.zeros(2, dtype=torch.float64)
    for row in range(8):
        target, fitted = inputs @ weights[row], weights[row].clone()
        for j in range(24):
            if out[row, j] == 0:  # what comes after it is fitted anew, what came before stays
                fitted[j] = 0.0
                missing = target - inputs[:, : j + 1] @ fitted[: j + 1]
                rest = inputs[:, j + 1 :]
                fitted[j + 1 :] = torch.linalg.lstsq(rest, missing[:, None]).solution[:, 0]
        assert torch.allclose(out[row], fitted, rtol=1e-3, atol=1e-3 * float(fitted.abs().max()))
        kept = weights[row] * (out[row] != 0)
        errors += torch.stack([(inputs @ w - target).square().sum() for w in (out[row], kept)])
    assert errors[0] < errors[1]


def test_the_last_feature_alone_has_nobody_to_make_up_for_it() -> None:
    """One row, two inputs, by hand: w1 goes, and w2 takes over what is alike in them."""
    products = torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    known = Weights.of(
        {"w": torch.tensor([[0.1, 1.0]])},
        inputs=Inputs({"w": 1}, {"w": products.diagonal()}, {"w": products}),
    )
    (cut,) = SparseGPT(damping=1e-9).cuts(known, [0.5])
    out = torch.empty(1, 2)
    cut.prune("w", torch.tensor([[0.1, 1.0]]), out)
    # w2' = w2 + w1 * <x1, x2> / <x2, x2>
    assert out[0].tolist() == pytest.approx([0.0, 1.05], abs=1e-6)


# ------------------------------------------------------------------ inputs of layers


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1, stride=2)
        self.one = Conv1D(5, 12)
        self.two = nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.conv(x)).flatten(1)
        return self.two(torch.relu(self.one(h)))


NAMES = ["conv.weight", "one.weight", "two.weight"]


def test_axes_are_those_of_the_layers() -> None:
    assert input_axes(Net(), NAMES) == {"conv.weight": 1, "one.weight": 0, "two.weight": 1}


def test_what_came_in_gives_what_came_out() -> None:
    """The products of the inputs give the energy of each layer's output, whatever its kind."""
    torch.manual_seed(0)
    model, x = Net(), torch.randn(6, 2, 4, 4)
    outputs: dict[str, torch.Tensor] = {}
    for name in ("conv", "one", "two"):
        getattr(model, name).register_forward_hook(
            lambda _m, _i, out, name=name: outputs.__setitem__(name, out.detach())
        )
    found = inputs_of(model, NAMES, lambda: model(x), products=True)
    for name, rows in (
        ("conv", model.conv.weight.flatten(1)),
        ("one", model.one.weight.T),
        ("two", model.two.weight),
    ):
        bias = getattr(model, name).bias.detach()
        out = outputs[name].movedim(1, -1) if name == "conv" else outputs[name]
        energy = (out.reshape(-1, len(bias)) - bias).square().sum(0)
        products = found.products[f"{name}.weight"]
        rows = rows.detach().double()
        by_inputs = torch.einsum("oi,ij,oj->o", rows, products, rows)
        assert torch.allclose(by_inputs, energy.double(), rtol=1e-4)
        assert torch.allclose(products.diagonal(), found.squares[f"{name}.weight"], rtol=1e-5)
    assert found.num == {"conv.weight": 24, "one.weight": 6, "two.weight": 6}
    assert not any(module._forward_pre_hooks for module in model.modules())


class Tokens(nn.Module):
    """Layers of several layouts: by example and position, by position first, flat, pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.one, self.two, self.flat, self.pooled = (
            nn.Embedding(20, 6), *(nn.Linear(6, 6) for _ in range(4))
        )  # fmt: skip
        self.double()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.one(self.embedding(ids))
        x = self.two(x.transpose(0, 1)).transpose(0, 1)
        x = self.flat(x.reshape(-1, 6)).view(x.shape)
        return self.pooled(x[:, 0])


LAYERS = ["one.weight", "two.weight", "flat.weight", "pooled.weight"]
IDS, MASK = torch.tensor([[3, 4, 5, 0, 0], [6, 7, 0, 0, 0]]), torch.tensor([[1, 1, 1, 0, 0]] * 2)


def value_of(model: nn.Module, batch: object) -> torch.Tensor:
    ids = batch["input_ids"] if isinstance(batch, dict) else batch[0]
    return model(ids).square().mean(1)


@pytest.mark.parametrize(
    "proxy",
    [
        sw.Proxy([{"input_ids": IDS, "attention_mask": MASK}], value_of),
        sw.Proxy([(IDS, MASK)], value_of, positions=lambda batch: batch[1]),
        sw.Proxy([(IDS, MASK)], value_of, positions=lambda b: [torch.ones(2, 9), b[1].bool()]),
    ],
    ids=["attention_mask", "positions", "several"],
)
def test_positions_that_are_padding_do_not_count(proxy: sw.Proxy) -> None:
    torch.manual_seed(0)
    model = Tokens()
    found, values = inputs_on(proxy, Runnable(model, value_of), LAYERS, SparseGPT())
    assert found.num == {"one.weight": 6, "two.weight": 6, "flat.weight": 6, "pooled.weight": 2}
    came = model.embedding(IDS)[MASK.bool()].detach()
    assert torch.allclose(found.squares["one.weight"], came.square().sum(0), rtol=1e-12)
    came = model.one(came)
    assert torch.allclose(found.products["two.weight"], (came.T @ came).detach(), rtol=1e-9)
    assert np.array_equal(values, proxy.evaluate(model))


def test_all_positions_count_where_nobody_says_otherwise() -> None:
    model, batch = Tokens(), {"input_ids": IDS, "attention_mask": MASK}
    for proxy in (
        sw.Proxy([batch], value_of, positions=lambda _: None),
        sw.Proxy([(IDS, MASK)], value_of),
        sw.Proxy([batch | {"attention_mask": torch.ones(2, 9)}], value_of),  # says nothing
    ):
        found, _ = inputs_on(proxy, Runnable(model, value_of), LAYERS, SparseGPT())
        assert found.num["one.weight"] == 10


def test_a_mask_of_other_positions_is_refused_with_what_to_do() -> None:
    batch = {"input_ids": IDS, "attention_mask": MASK[:, :4]}
    proxy = sw.Proxy([batch], value_of)
    with pytest.raises(
        MeasurementError, match=r"'one\.weight' at the positions of a mask, \(2, 4\)"
    ):
        inputs_on(proxy, Runnable(Tokens(), value_of), LAYERS, Wanda())


@pytest.mark.parametrize("given", [3, "x", torch.tensor(1), torch.full((2, 5), 0.5), [None]])
def test_what_is_no_mask_is_refused_when_the_proxy_is_made(given: object) -> None:
    with pytest.raises(ProxyError, match="Expected a mask of ones and zeros"):
        sw.Proxy([(IDS, MASK)], value_of, positions=lambda _: given)


def test_which_positions_count_is_part_of_what_a_proxy_is() -> None:
    one, other, plain = (
        sw.Proxy([(IDS, MASK)], value_of, positions=function)
        for function in (lambda batch: batch[1], lambda batch: 1 - batch[1], None)
    )
    assert len({one.hash, other.hash, plain.hash}) == 3
    assert one.hash == sw.Proxy([(IDS, MASK)], value_of, positions=lambda b: b[1].bool()).hash


def test_a_layer_that_nothing_comes_into_is_named() -> None:
    model = Net()
    with pytest.raises(MeasurementError, match=r"got none of 'one\.weight' and 1 others"):
        inputs_of(model, NAMES, lambda: model.conv(torch.randn(1, 2, 4, 4)))


def test_a_layer_of_another_kind_is_named() -> None:
    model = nn.Sequential(nn.Embedding(4, 3))
    with pytest.raises(MeasurementError, match=r"'0\.weight' to be the weight of a linear layer"):
        inputs_of(model, ["0.weight"], lambda: model(torch.tensor([1])))


def test_without_a_proxy_there_are_no_inputs() -> None:
    with pytest.raises(ConfigurationError, match="inputs of the layers for the pattern 'wanda'"):
        Wanda().cuts(Weights.of({"w": torch.ones(2, 2)}), [0.5])


@pytest.mark.parametrize("pattern", ["wanda", "sparsegpt", "per_row", "layerwise", "erk"])
def test_a_model_is_measured_by_any_pattern_and_stays_as_it_was(pattern: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
    x, y = torch.randn(60, 8), torch.randint(0, 2, (60,))
    before = {name: t.clone() for name, t in model.state_dict().items()}
    proxy = sw.Proxy(
        [(x, y)], lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction="none")
    )
    record = sw.measure(model, proxy, scope="layers", pattern=pattern, levels=[0.25, 0.5, 0.75])
    assert record.provenance.pattern == pattern
    assert record.curve.sparsity == pytest.approx((0, 0.25, 0.5, 0.75, 1), abs=0.05)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


# ------------------------------------------------------------------ controls


def trained() -> tuple[nn.Module, sw.Proxy]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
    x = torch.randn(200, 8)
    y = (x[:, 0] > 0).long()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    proxy = sw.Proxy(
        [(x, y)], lambda m, b: (m(b[0]).argmax(1) == b[1]).float(), higher_is_better=True
    )
    return model, proxy


def test_a_control_is_measured_at_the_same_levels() -> None:
    model, proxy = trained()
    record = sw.measure(model, proxy, scope="layers", controls=["random"])
    control = record.controls["random"]
    assert control.level == record.curve.level
    assert control.dense == record.curve.dense
    assert control.num_seen == record.curve.num_seen
    alone = sw.measure(model, proxy, scope="layers", pattern="random", levels=control.level[1:-1])
    for level, value, seen in zip(control.level, control.value, control.num_seen, strict=True):
        if seen == control.num_examples:
            index = alone.curve.level.index(level)
            assert value == pytest.approx(alone.curve.value[index], rel=1e-6)
    # magnitude keeps what counts far longer than chance does
    assert record.essential_sparsity.informative
    assert "cannot tell" not in record.essential_sparsity.reason


def test_where_chance_does_as_well_nobody_can_tell() -> None:
    model, proxy = trained()
    record = sw.measure(model, proxy, scope="layers", pattern="random", controls=["random"])
    assert "cannot tell random from" in record.essential_sparsity.reason


def curve_crossing_at(level: float, stderr: float | None) -> SparsityCurve:
    """Harm rises straight to twice what is tolerated, 0.01, and far beyond it."""
    errors = None if stderr is None else [0.0, *[stderr] * 6]
    sparsity = [0.0, *(share * level for share in (0.5, 0.8, 1.0, 1.2, 2.0)), 1.0]
    harm = [0.0, 0.005, 0.008, 0.01, 0.012, 0.02, 2.0]
    return SparsityCurve(sparsity, [1.0 + h for h in harm], errors, higher_is_better=False)


@pytest.mark.parametrize(
    ("control", "other_stderr", "word"),
    [
        (0.30, 0.004, ""),  # below the interval of the pattern, and above its own the pattern's
        (0.39, 0.0001, ""),  # within the interval, but surely below the pattern
        (0.30, 0.008, ""),  # not surely, but below the interval
        (0.39, 0.004, "cannot tell global from random, 0.39"),
        (0.41, 0.0001, "cannot tell global from random, 0.41"),
        (0.48, 0.0001, "random removes more, 0.48"),
        (0.401, None, "cannot tell global from random, 0.40"),
        (0.399, None, ""),
    ],
)
def test_a_control_cannot_be_told_apart_where_neither_is_outside_the_others_interval(
    control: float, other_stderr: float | None, word: str
) -> None:
    """The pattern crosses at 0.4, with an interval of 0.37 to 0.43."""
    run = RunContext(settings=sw.Settings(), scope=None)  # type: ignore[arg-type]
    run.__dict__["provenance"] = SimpleNamespace(tolerance_mode="relative")
    own = curve_crossing_at(0.4, 0.0005)
    other = SimpleNamespace(curve=curve_crossing_at(control, other_stderr))
    estimate = _estimate(own, {"random": other}, run)  # type: ignore[dict-item]
    assert estimate.informative
    assert estimate.reason.startswith(word)
    assert bool(estimate.reason) == bool(word)


@pytest.mark.parametrize("damping", [0.01, 0.1])
def test_the_factor_is_that_of_the_damped_moments_with_a_feature_that_is_never_on(
    damping: float,
) -> None:
    """Such a feature has the mean of the others, and so much of that is added to each."""
    inputs = np.random.default_rng(0).normal(size=(50, 4))
    inputs[:, 2] = 0.0
    moments = inputs.T @ inputs
    given = Moments.of(torch.tensor(moments), damping)
    upper = given.factor.double().numpy()
    assert given.dead.tolist() == [False, False, True, False]
    moments[2, 2] = mean = np.trace(moments) / 3
    damped = moments + damping * mean * np.eye(4)
    assert upper.T @ upper == pytest.approx(np.linalg.inv(damped), rel=1e-5, abs=1e-8)
    assert np.all(np.tril(upper, -1) == 0.0)


def test_sparsegpt_is_by_default_as_its_authors_ran_it() -> None:
    """Blocks of 128 features, and 1 % of the mean: arXiv:2301.00774, section 4 and its code."""
    assert (SparseGPT().block, SparseGPT().damping) == (128, 0.01)


class Shared(nn.Module):
    """Query, key and value of one input; a head that is tied to a layer; one input written to."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(6, 6), nn.Linear(6, 4), nn.Linear(6, 6)
        self.inner, self.head = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.head.weight = self.inner.weight
        self.inputs: dict[str, list[torch.Tensor]] = {}

    def of(self, name: str, inputs: torch.Tensor) -> torch.Tensor:
        self.inputs.setdefault(name, []).append(inputs.detach().clone().flatten(0, -2).double())
        return getattr(self, name)(inputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.of("query", x) + self.of("key", x).mean()
        h = h + self.of("inner", torch.tanh(h))
        x.mul_(2.0)  # the same tensor, and not the same input
        h = h + self.of("value", x)
        return self.of("head", torch.relu(h))


@pytest.mark.parametrize("inference", [False, True])
def test_inputs_that_layers_share_are_one_sum_and_tied_weights_see_every_use(
    inference: bool,
) -> None:
    torch.manual_seed(0)
    model, names = Shared(), [f"{n}.weight" for n in ("query", "key", "value", "inner")]

    def run() -> None:
        with torch.inference_mode(inference):
            for num in (3, 5):
                model(torch.randn(num, 2, 6))

    found = inputs_of(model, names, run, products=True)
    model.inputs["inner"] += model.inputs["head"]
    for name in names:
        own = torch.cat(model.inputs[name.removesuffix(".weight")])
        assert found.num[name] == len(own)
        torch.testing.assert_close(found.squares[name], own.square().sum(0))
        torch.testing.assert_close(found.products[name], own.T @ own)
    query, key, value, _ = (found.products[name] for name in names)
    assert (query is key) is not inference
    assert query is not value
