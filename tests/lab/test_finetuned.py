"""Prune once, train with the mask held, evaluate: by hand, after a kill, and with what cheats."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import sparsitywatch as sw
from sparsitywatch.errors import ConfigurationError, MeasurementError, StateError
from sparsitywatch.lab.finetuned import _held

torch.manual_seed(0)
X = torch.randn(128, 8)
Y = (X[:, 0] * X[:, 1] > 0).long()
PRETRAINED = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 2)).state_dict()


def make_model() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 2))
    model[0].load_state_dict({k[2:]: v for k, v in PRETRAINED.items() if k.startswith("0.")})
    return model  # the head is new


class Train:
    """Some steps in a random order of the data; remembers what it has seen."""

    def __init__(self, optimizer: type = torch.optim.AdamW, **options: float) -> None:
        self.optimizer, self.options = optimizer, {"lr": 0.02} | options
        self.orders: list[list[int]] = []
        self.heads: list[torch.Tensor] = []
        self.models: list[nn.Module] = []

    def __call__(self, model: nn.Module) -> None:
        self.heads.append(model[2].bias.detach().clone())
        optimizer = self.optimizer(model.parameters(), **self.options)
        order = torch.randperm(128)
        self.orders.append(order.tolist())
        for batch in order.split(16) * 3:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(X[batch]), Y[batch]).backward()
            optimizer.step()
        self.models.append(model)


@torch.no_grad()
def evaluate(model: nn.Module) -> float:
    return -float(nn.functional.cross_entropy(model(X), Y))


def curve_of(train: object, levels: object = (0.3, 0.8), **options: object) -> object:
    return sw.finetuned_curve(
        make_model, train, evaluate, levels, **({"scope": ["0.weight"]} | options)
    )


def test_it_is_what_one_would_do_by_hand() -> None:
    curve = curve_of(Train(), [0.5], seeds=[3])
    torch.manual_seed(3)
    model = make_model()
    weight = model[0].weight
    limit = weight.detach().abs().flatten().sort().values[95]  # the 96th of 192
    mask = weight.detach().abs() > limit
    weight.data *= mask
    torch.manual_seed(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    for batch in torch.randperm(128).split(16) * 3:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X[batch]), Y[batch]).backward()
        weight.grad *= mask
        optimizer.step()
    assert curve.value[1] == evaluate(model)
    assert curve.level == (0.0, 0.5)
    assert curve.sparsity == pytest.approx((0.0, 0.5), abs=0.01)
    assert curve.evaluation == "fine-tuned"
    assert curve.stderr is None


def test_every_level_starts_alike_and_sees_the_same_data() -> None:
    train = Train()
    state = torch.get_rng_state()
    curve_of(train, seeds=[0, 1])
    assert torch.equal(torch.get_rng_state(), state)
    assert train.orders[0] == train.orders[1] == train.orders[2] != train.orders[3]
    assert torch.equal(train.heads[0], train.heads[2])
    assert not torch.equal(train.heads[0], train.heads[3])


def test_means_and_paired_errors_over_seeds() -> None:
    curve = curve_of(Train(), seeds=[0, 1, 2])
    values = np.array(curve.by_seed)
    assert values.shape == (3, 3)
    assert curve.value == pytest.approx(values.mean(0).tolist())
    drops = values - values[:, :1]
    assert curve.stderr == pytest.approx((drops.std(0, ddof=1) / 3**0.5).tolist())
    assert 0.0 <= sw.essential_sparsity(curve, tolerance=0.02).value < 0.8


@pytest.mark.parametrize(
    "train",
    [
        Train(torch.optim.SGD, momentum=0.9, weight_decay=0.1),
        Train(torch.optim.AdamW, weight_decay=0.1),
        Train(torch.optim.RMSprop, momentum=0.5),
        Train(torch.optim.Adam, weight_decay=0.1),
    ],
    ids=lambda t: t.optimizer.__name__,
)
def test_what_was_removed_stays_exactly_zero(train: Train) -> None:
    curve_of(train, [0.8])
    weight = train.models[-1][0].weight
    assert float((weight == 0).float().mean()) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_holding_is_masking_bit_for_bit(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(0)
    model = nn.Linear(40, 30, bias=False, dtype=dtype)
    mask = torch.rand(30, 40, generator=draw) < 0.5
    gradient = torch.randn(30, 40, generator=draw).to(dtype)
    for bad in (math.inf, -math.inf, math.nan, -0.0):
        gradient[torch.rand(30, 40, generator=draw) < 0.1] = bad
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    dense = model.weight.detach().clone()
    with _held(model, {"weight": mask}):
        (model.weight * gradient).sum().backward()
        optimizer.step()
    removed = gradient.masked_fill(mask, 0.0)
    same = functools.partial(torch.testing.assert_close, rtol=0.0, atol=0.0, equal_nan=True)
    same(model.weight.grad, removed)
    same(optimizer.state[model.weight]["momentum_buffer"], removed)
    same(model.weight.detach(), (dense - removed).masked_fill(mask, 0.0))
    model.weight.sum().backward()  # nothing is held any more
    assert bool((model.weight.grad[mask] == 1.0).all())


def test_a_training_that_writes_removed_weights_is_refused() -> None:
    def cheats(model: nn.Module) -> None:
        Train()(model)
        with torch.no_grad():
            model[0].weight.add_(1.0)

    with pytest.raises(MeasurementError, match=r"'0\.weight' to be zero after `train`"):
        curve_of(cheats)


@pytest.mark.slow
def test_after_a_kill_it_goes_on_from_what_is_done(tmp_path: Path) -> None:
    log = tmp_path / "runs" / "omp.jsonl"
    done: list[nn.Module] = []

    def killed(model: nn.Module) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        Train()(model)
        done.append(model)

    with pytest.raises(KeyboardInterrupt):
        curve_of(killed, log=log, seeds=[0, 1])
    with log.open("ab") as file:
        file.write(b'{"pattern": "glo')  # the last line of a kill
    train = Train()
    curve = curve_of(train, log=log, seeds=[0, 1])
    assert len(train.models) == 4
    assert curve == curve_of(Train(), seeds=[0, 1])
    again = Train()
    assert curve_of(again, log=log, seeds=[0, 1]) == curve
    assert not again.models


@pytest.mark.slow
@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"pattern": "random"}, r"to be of `pattern` .*'random'.* begun with .*'sparsegpt'"),
        (
            {"pattern": sw.patterns.SparseGPT(block=4)},
            r"to be of `pattern` .*'block': 4.*'block': 128",
        ),
        ({"scope": ["2.weight"]}, "to be of `scope`"),
        ({"settings": {"steps": 6}}, r"to be of `settings` \{'steps': 6\}, .* \{'steps': 3\}"),
        ({"settings": None}, "to be of `settings`"),
    ],
)
def test_a_log_of_another_experiment_is_refused(tmp_path: Path, other: dict, said: str) -> None:
    log = tmp_path / "runs.jsonl"
    proxy = sw.Proxy([(X, Y)], lambda m, b: m(b[0]).square().sum(1))
    own = {"levels": [0.5], "pattern": "sparsegpt", "settings": {"steps": 3}}
    curve_of(Train(), log=log, proxy=proxy, **own)
    before = log.read_bytes()
    train = Train()
    with pytest.raises(StateError, match=said):
        curve_of(train, log=log, proxy=proxy, **(own | other))
    assert not train.models
    assert log.read_bytes() == before
    curve_of(train, log=log, proxy=proxy, **own, seeds=[0, 1])  # seeds may be added
    assert len(train.models) == 2


def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    log = tmp_path / "runs.jsonl"
    log.write_text("no json\n")
    with pytest.raises(StateError, match="what it is of in line 1 of `log`"):
        curve_of(Train(), [0.5], log=log)
    log.unlink()
    curve_of(Train(), [0.5], log=log)
    log.write_text(log.read_text() + '{"seed": 0}\n')
    with pytest.raises(StateError, match="a training in line 4 of `log`"):
        curve_of(Train(), [0.5], log=log)
    with pytest.raises(ConfigurationError, match="`settings` to be numbers, texts"):
        curve_of(Train(), [0.5], settings={"model": X.numpy()})


@pytest.mark.parametrize(("num_seeds", "quantile"), [(2, 6.3138), (3, 2.9200), (4, 2.3534)])
def test_few_seeds_widen_the_interval_as_t_does(num_seeds: int, quantile: float) -> None:
    """Quantiles of Student's t at 0.95, from the usual tables."""
    curve = sw.FinetunedCurve(
        [0, 1], [0, 1], [0, 0.05], higher_is_better=False, seeds=tuple(range(num_seeds))
    )
    estimate = sw.essential_sparsity(curve, 0.5, "absolute")
    assert estimate.low == pytest.approx(0.5 / (1 + 0.05 * quantile), abs=1e-5)
    assert estimate.describe().endswith("by seeds")


@pytest.mark.parametrize(("drop", "most"), [(0.0, 0.9), (0.2, 0.2)])
def test_seeds_that_agree_do_not_prove_that_all_would(drop: float, most: float) -> None:
    """Of three that are equal: up to 63 % of the others may differ, 1 - 0.05^(1/3)."""

    def value(model: nn.Module) -> float:
        return 0.9 - drop * bool((model[0].weight == 0).any())

    curve = sw.finetuned_curve(
        make_model, lambda model: None, value, [0.5], scope=["0.weight"], seeds=(0, 1, 2)
    )
    assert curve.value == pytest.approx((0.9, 0.9 - drop))
    assert curve.stderr[0] == 0.0
    assert 1.6448536 * curve.stderr[1] == pytest.approx((1 - 0.05 ** (1 / 3)) * most)


@pytest.mark.slow
def test_the_interval_of_three_seeds_covers() -> None:
    """A line whose harm is 1 at sparsity 1: each seed's drop at a level has noise of its own."""
    random, covered = np.random.default_rng(0), 0
    sparsity = np.linspace(0, 1, 6)
    for _ in range(400):
        drops = sparsity * (1 + 0.1 * random.normal(size=(3, 1)))
        curve = sw.FinetunedCurve(
            sparsity.tolist(), drops.mean(0).tolist(), (drops.std(0, ddof=1) / 3**0.5).tolist(),
            higher_is_better=False, seeds=(0, 1, 2),
        )  # fmt: skip
        estimate = sw.essential_sparsity(curve, 0.5, "absolute")
        covered += estimate.low <= 0.5 <= estimate.high
    assert 0.87 <= covered / 400 <= 0.95


def test_patterns_that_look_at_inputs_need_a_proxy() -> None:
    with pytest.raises(ConfigurationError, match="a `proxy` for the pattern 'wanda'"):
        curve_of(Train(), [0.5], pattern="wanda")
    proxy = sw.Proxy([(X, Y)], lambda m, b: m(b[0]).square().sum(1))
    curve = curve_of(Train(), [0.5], pattern="wanda", proxy=proxy)
    assert curve.sparsity[1] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"levels": []}, "at least one sparsity"),
        ({"levels": [1.0]}, r"`levels\[0\]`"),
        ({"seeds": []}, "`seeds`"),
        ({"seeds": [0.5]}, r"`seeds\[0\]`"),
        ({"train": 3}, "`train`"),
        ({"pattern": "omp"}, "`pattern`"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(wrong: dict, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        curve_of(**({"train": Train()} | wrong))


# ------------------------------------------------------------------ masks


def test_masks_by_hand() -> None:
    a = {"w": torch.tensor([[True, True, True, False]]), "v": torch.tensor([1.0, 0.0])}
    b = {"w": torch.tensor([[True, False, True, False]]), "v": torch.tensor([0.0, 2.0])}
    found = sw.mask_similarity(a, b)
    assert found.num_weights == 6
    assert found.cosine == pytest.approx(2 / (4 * 3) ** 0.5)
    assert found.cosine_by_chance == pytest.approx((4 / 6 * 3 / 6) ** 0.5)
    assert found.overlap == pytest.approx(1 / 2)  # one of the two that a removes
    assert found.overlap_by_chance == pytest.approx(3 / 6)
    assert found.layers["v"].cosine == 0.0
    assert found.layers["w"].overlap == 1.0


@pytest.mark.parametrize("density", [0.9, 0.6, 0.3])
def test_chance_is_what_random_masks_have(density: float) -> None:
    torch.manual_seed(0)
    a, b = ({"w": torch.rand(400, 400) < density} for _ in range(2))
    found = sw.mask_similarity(a, b)
    assert found.cosine == pytest.approx(found.cosine_by_chance, abs=0.01)
    assert found.cosine_by_chance == pytest.approx(density, abs=0.01)
    assert found.overlap == pytest.approx(found.overlap_by_chance, abs=0.01)


def test_masks_that_do_not_match_are_refused() -> None:
    one = torch.ones(2, dtype=torch.bool)
    with pytest.raises(ConfigurationError, match="masks of the same tensors"):
        sw.mask_similarity({"a": one}, {"b": one})
    with pytest.raises(ConfigurationError, match="same shape of 'a'"):
        sw.mask_similarity({"a": one}, {"a": torch.ones(3, dtype=torch.bool)})
    nothing = sw.mask_similarity({"a": ~one}, {"a": one})
    assert np.isnan(nothing.cosine)
    assert np.isnan(nothing.overlap)
