"""Proxies of classifiers: the loss or the accuracy of each example that has a label."""

from __future__ import annotations

import pickle

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F  # noqa: N812

import sparsitywatch as sw
from sparsitywatch.errors import ConfigurationError, ProxyError
from sparsitywatch.pruning.checks import check_proxy


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def data(num: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(num, 6), torch.randint(4, (num,))


def test_pairs_give_a_loss_or_a_hit_for_each_example(model) -> None:
    inputs, labels = data()
    batches = [(inputs[:8], labels[:8]), [inputs[8:], labels[8:]]]
    losses = sw.Proxy.classification(batches)
    hits = sw.Proxy.classification(batches, metric="accuracy")
    assert (losses.higher_is_better, hits.higher_is_better) == (False, True)
    assert losses.hash != hits.hash
    with torch.no_grad():
        logits = model(inputs)
    expected = F.cross_entropy(logits, labels, reduction="none")
    assert check_proxy(losses, model) == pytest.approx(expected.numpy(), rel=1e-5)
    assert check_proxy(hits, model).tolist() == (logits.argmax(1) == labels).double().tolist()
    assert (losses.unit, hits.unit) == ("example", "example")
    again = pickle.loads(pickle.dumps(losses))
    assert again.evaluate(model).tolist() == losses.evaluate(model).tolist()


def test_an_example_without_a_label_counts_in_neither(model) -> None:
    inputs, labels = data()
    labels[[2, 5]] = -100
    there = labels >= 0
    for metric in ("loss", "accuracy"):
        few = sw.Proxy.classification([(inputs[there], labels[there])], metric=metric)
        values = sw.Proxy.classification([(inputs, labels)], metric=metric).evaluate(model)
        assert values == pytest.approx(few.evaluate(model), rel=1e-6)


class Segments(nn.Module):
    """Classes for each pixel, the second dimension, as torch has it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 4, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layer(image)


def test_of_several_labels_of_an_example_the_mean_counts() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(5, 2, 4, 3), torch.randint(4, (5, 4, 3))  # as many rows as classes
    labels[0, 0] = -100
    model = Segments()
    proxy = sw.Proxy.classification([(images, labels)])
    with torch.no_grad():
        for i, value in enumerate(proxy.evaluate(model)):
            expected = F.cross_entropy(model(images[i : i + 1]), labels[i : i + 1])
            assert value == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.slow
def test_batches_of_transformers_pad_no_loss() -> None:
    """Mappings; tokens whose class is last, padding by the attention mask."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, num_labels=6,
    )  # fmt: skip
    tokens = torch.randint(20, (3, 6))
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2, [1] * 3 + [0] * 3])
    whole = transformers.BertForSequenceClassification(config).eval()
    labels = torch.tensor([1, 0, 5])
    for name in ("labels", "label"):
        batch = {"input_ids": tokens, "attention_mask": mask, name: labels}
        values = sw.Proxy.classification([batch]).evaluate(whole)
        with torch.no_grad():
            logits = whole(input_ids=tokens, attention_mask=mask).logits
        expected = F.cross_entropy(logits, labels, reduction="none")
        assert values == pytest.approx(expected.numpy(), rel=1e-5)
    each = transformers.BertForTokenClassification(config).eval()
    labels = torch.randint(6, (3, 6))
    batch = transformers.BatchEncoding(
        {"input_ids": tokens, "attention_mask": mask, "labels": labels}
    )
    values = sw.Proxy.classification([batch], metric="accuracy").evaluate(each)
    with torch.no_grad():
        hits = each(input_ids=tokens, attention_mask=mask).logits.argmax(-1) == labels
    expected = [float(hits[i, : mask[i].sum()].double().mean()) for i in range(3)]
    assert values == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("batch", "came"),
    [
        ((torch.randn(4, 6), torch.randn(4)), r"torch\.float32 \(4,\) for logits \(4, 4\)"),
        ((torch.randn(4, 6), torch.zeros(3, dtype=torch.int64)), r"torch\.int64 \(3,\)"),
        ({"input": torch.randn(4, 6)}, r"Got labels None for logits \(4, 4\)"),
    ],
)
def test_what_has_no_labels_is_refused(model, batch, came) -> None:
    proxy = sw.Proxy.classification([batch])
    with pytest.raises(ProxyError, match=rf"(?s){came}.*function of your own"):
        check_proxy(proxy, model)


def test_another_metric_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="`metric` to be 'loss' or 'accuracy', got 'f1'"):
        sw.Proxy.classification([data()], metric="f1")
