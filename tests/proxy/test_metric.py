"""Metrics of torchmetrics as the value of a proxy."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from contracts.families import some_of
from torch import nn
from torchmetrics.aggregation import MeanMetric
from torchmetrics.classification import (
    BinaryAUROC,
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassF1Score,
)
from torchmetrics.text import BLEUScore, Perplexity
from torchmetrics.wrappers import MinMaxMetric

import sparsitywatch as sw
from sparsitywatch.errors import ConfigurationError, ProxyError
from sparsitywatch.evaluation.checks import check_proxy
from sparsitywatch.records.curve import t_quantile

WORDS = [f"word{i}" for i in range(20)]
Drawn = tuple[Any, Any, Any]  # what the dense and the pruned model say of examples, and the truth


def draw_f1(draws: torch.Generator, num: int) -> Drawn:
    truth, others = torch.randint(3, (2, num), generator=draws)
    wrong, more = torch.rand((2, num), generator=draws)
    dense = torch.where(wrong < 0.2, others, truth)
    return dense, torch.where(more < 0.1, 2 - dense, dense), truth


def draw_auroc(draws: torch.Generator, num: int) -> Drawn:
    truth = (torch.rand(num, generator=draws) < 0.4).long()
    noise, more = torch.randn((2, num), generator=draws)
    return (1.2 * truth + noise).sigmoid(), (truth + noise + 0.6 * more).sigmoid(), truth


def draw_perplexity(draws: torch.Generator, num: int) -> Drawn:
    truth = torch.randint(5, (num, 6), generator=draws)
    noise, more = torch.randn((2, num, 6, 5), generator=draws)
    clear = (0.4 * torch.randn((num, 1, 1), generator=draws)).exp()  # examples differ as a whole
    dense = 2.0 * clear * nn.functional.one_hot(truth, 5) + noise
    return dense, dense + 0.7 * more, truth


def draw_bleu(draws: torch.Generator, num: int) -> Drawn:
    truth, first, second = torch.randint(20, (3, num, 12), generator=draws)
    wrong, more = torch.rand((2, num, 12), generator=draws)
    dense = torch.where(wrong < 0.15, first, truth)
    pruned = torch.where(more < 0.08, second, dense)
    texts = [[" ".join(WORDS[i] for i in row) for row in ids] for ids in (dense, pruned, truth)]
    return texts[0], texts[1], [[text] for text in texts[2]]


METRICS: dict[str, tuple[Callable[[], Any], Callable[[torch.Generator, int], Drawn]]] = {
    "F1": (lambda: MulticlassF1Score(3, validate_args=False), draw_f1),
    "AUROC": (lambda: BinaryAUROC(thresholds=50, validate_args=False), draw_auroc),
    "perplexity": (Perplexity, draw_perplexity),
    "BLEU": (lambda: BLEUScore(n_gram=2), draw_bleu),
}


class Says(nn.Module):
    """A model of which it is known what it says, dense or pruned."""

    def __init__(self, which: int) -> None:
        super().__init__()
        self.which = which

    def forward(self, batch: Drawn) -> tuple[Any, Any]:
        return batch[self.which], batch[2]


def predict(model: nn.Module, batch: Drawn) -> tuple[Any, Any]:
    return model(batch)


def batches_of(name: str, seed: int, num: int = 16, size: int = 8) -> list[Drawn]:
    draws = torch.Generator().manual_seed(seed)
    return [METRICS[name][1](draws, size) for _ in range(num)]


def of_all(name: str, batches: list[Drawn], which: int) -> float:
    metric = METRICS[name][0]()
    for batch in batches:
        metric.update(batch[which], batch[2])
    return float(metric.compute())


@pytest.mark.parametrize("name", METRICS)
def test_the_value_is_that_of_all_batches_and_its_error_the_jackknifes(name: str) -> None:
    batches, metric = batches_of(name, 0), METRICS[name][0]()
    proxy = sw.Proxy.of_metric(batches, predict, metric)
    assert proxy.higher_is_better == (name != "perplexity")
    dense, pruned = (proxy.evaluate(Says(which)) for which in (0, 1))
    assert len(dense) == len(pruned) == 16
    assert proxy.unit == "batch"
    wholes = [of_all(name, batches, which) for which in (0, 1)]
    assert [dense.mean(), pruned.mean()] == pytest.approx(wholes, rel=1e-5)
    # by its definition: what leaving out one batch changes
    without = np.array([
        of_all(name, batches[:i] + batches[i + 1 :], 1)
        - of_all(name, batches[:i] + batches[i + 1 :], 0)
        for i in range(16)
    ])  # fmt: skip
    error = np.sqrt(15 / 16 * np.square(without - without.mean()).sum())
    assert (pruned - dense).std(ddof=1) / 4 == pytest.approx(error, rel=1e-3)
    assert not metric.update_called  # it is the user's own
    again = pickle.loads(pickle.dumps(proxy))
    assert again.evaluate(Says(1)).tolist() == pruned.tolist()


@pytest.mark.parametrize("name", some_of(METRICS, 2))
def test_the_interval_covers_what_resampling_shows(name: str) -> None:
    """Of the difference, of 16 batches of 8 examples, drawn 120 times from a population of 200."""
    proxy = sw.Proxy.of_metric(batches_of(name, 1, num=200), predict, METRICS[name][0]())
    states = [proxy.by_batch(Says(which), proxy.value) for which in (0, 1)]
    assert proxy.unit == ""  # nothing is summed yet

    def lost(batches: Any) -> np.ndarray:
        dense, pruned = (
            proxy.examples({i: of_model[k] for i, k in enumerate(batches)}) for of_model in states
        )
        return pruned - dense

    draws, true = np.random.Generator(np.random.PCG64(0)), lost(range(200)).mean()
    found = [lost(draws.integers(200, size=16)) for _ in range(120)]
    means, errors = np.array([(one.mean(), one.std(ddof=1) / 4) for one in found]).T
    covered = np.abs(means - true) <= t_quantile(0.95, 15) * errors
    assert 0.83 <= covered.mean() <= 0.97  # nominal: 0.9, with a standard deviation of 0.027
    assert errors.mean() == pytest.approx(means.std(), rel=0.15)


def test_a_metric_that_works_sample_by_sample_gives_values_per_example() -> None:
    torch.manual_seed(0)
    batches = [(torch.randint(3, (n, 5)), torch.randint(3, (n, 5)), torch.randint(3, (n, 5)))
               for n in (4, 6)]  # fmt: skip
    metric = MulticlassAccuracy(3, average="micro", multidim_average="samplewise")
    proxy = sw.Proxy.of_metric(batches, predict, metric)
    hits = [(batch[0] == batch[2]).double().mean(1) for batch in batches]
    assert proxy.evaluate(Says(0)) == pytest.approx(torch.cat(hits).numpy(), rel=1e-6)
    assert proxy.unit == "example"


def test_arguments_may_have_names() -> None:
    batches = batches_of("F1", 0)

    def named(model: nn.Module, batch: Drawn) -> dict[str, Any]:
        return {"target": batch[2], "preds": batch[model.which]}

    metric = METRICS["F1"][0]()
    found = [sw.Proxy.of_metric(batches, how, metric).evaluate(Says(0)) for how in (predict, named)]
    assert found[0].tolist() == found[1].tolist()


def test_metrics_that_cannot_be_used_are_refused_by_name() -> None:
    batches = batches_of("AUROC", 0, num=2)
    with pytest.raises(ProxyError, match=r"got BinaryAUROC, whose 'preds', 'target'.*thresholds"):
        sw.Proxy.of_metric(batches, predict, BinaryAUROC())
    with pytest.raises(ConfigurationError, match="`metric` to be a Metric of torchmetrics"):
        sw.Proxy.of_metric(batches, predict, torch.nn.functional.cross_entropy)
    with pytest.raises(ConfigurationError, match="`higher_is_better` to be True or False"):
        sw.Proxy.of_metric(batches, predict, MeanMetric())
    for composed in (METRICS["F1"][0]() + METRICS["F1"][0](), MinMaxMetric(METRICS["F1"][0]())):
        with pytest.raises(ProxyError, match=rf"got {type(composed).__name__}, whose states"):
            sw.Proxy.of_metric(batches, predict, composed, higher_is_better=True)
    alone = sw.Proxy.of_metric(batches, lambda _, batch: batch[0], METRICS["AUROC"][0]())
    with pytest.raises(ProxyError, match=r"\(predictions, targets\).* got Tensor"):
        check_proxy(alone, Says(0))
    each = MulticlassF1Score(3, average=None)
    with pytest.raises(ProxyError, match="of one number, such as a macro average, got tensor"):
        check_proxy(sw.Proxy.of_metric(batches_of("F1", 0), predict, each), Says(0))


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layers(inputs).squeeze(1)


def test_essential_sparsity_by_f1(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = Classifier()
    inputs = torch.randn(1024, 4)
    targets = (inputs[:, 0] * inputs[:, 1] > 0).long()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(200):
        loss = nn.functional.binary_cross_entropy_with_logits(model(inputs), targets.float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    batches = [*zip(inputs.split(32), targets.split(32), strict=True)]
    proxy = sw.Proxy.of_metric(
        batches, lambda model, batch: (model(batch[0]).sigmoid(), batch[1]), BinaryF1Score()
    )
    record = sw.measure(model, proxy, scope="layers", tolerance=0.05)
    assert record.valid, record.reason
    expected = BinaryF1Score()(model(inputs).sigmoid(), targets)
    assert record.curve.dense == pytest.approx(float(expected), rel=1e-5)
    estimate = record.essential_sparsity
    assert (estimate.unit, estimate.informative) == ("batch", True)
    assert 0.0 < estimate.low <= estimate.value <= estimate.high < 1.0
    assert "intervals are those of 32 batches. More batches make them narrower" in caplog.text
