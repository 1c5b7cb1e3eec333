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
from sparsitywatch.evaluation.checks import check_proxy


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


class Parts(nn.Module):
    """A model whose logits come in a container."""

    def __init__(self, wrap) -> None:
        super().__init__()
        self.layer, self.wrap = nn.Linear(6, 4), wrap

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor | None = None) -> object:
        assert labels is None  # a model that is given them may compute a loss in vain
        return self.wrap(self.layer(inputs))


@pytest.mark.parametrize(
    "wrap",
    [lambda x: x, lambda x: (x, None), lambda x: [x, x], lambda x: {"loss": 0.0, "logits": x}],
)
def test_logits_may_come_beside_other_things(wrap) -> None:
    inputs, labels = data()
    models = Parts(wrap), Parts(lambda x: x)
    models[1].load_state_dict(models[0].state_dict())
    batches = [(inputs, labels)], [{"inputs": inputs, "labels": labels}]
    found = [
        check_proxy(sw.Proxy.classification(own), one).tolist() for one in models for own in batches
    ]
    assert found == [found[0]] * 4


def test_padding_of_an_encoder_hides_no_label_of_a_decoder() -> None:
    """Also where both sequences are as long."""
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
        decoder_start_token_id=0, pad_token_id=0,
    )).eval()  # fmt: skip
    tokens, labels = torch.randint(1, 40, (2, 3, 6))
    mask = (torch.arange(6) < torch.tensor([[6], [4], [2]])).long()
    batch = {"input_ids": tokens, "attention_mask": mask, "labels": labels}
    values = sw.Proxy.classification([batch]).evaluate(model)
    for i, value in enumerate(values):
        with torch.no_grad():
            expected = model(**{name: x[i : i + 1] for name, x in batch.items()}).loss
        assert value == pytest.approx(float(expected), rel=1e-4)


INPUTS = torch.randn(4, 6)


@pytest.mark.parametrize(
    ("batch", "came"),
    [
        ((INPUTS, torch.randn(4)), r"labels torch\.float32 \(4,\) for logits \(4, 4\)"),
        ((INPUTS, torch.zeros(3, dtype=torch.int64)), r"labels torch\.int64 \(3,\)"),
        ((INPUTS, [0, 1, 2, 3]), r"Got no tensor of labels in a tuple"),
        ((INPUTS,), r"Got no tensor of labels in a tuple"),
        ([INPUTS], r"Got no tensor of labels in a list"),
        (INPUTS, r"Got no tensor of labels in a Tensor"),
        ({"input": INPUTS}, r"Got no tensor of labels in a dict of \['input'\]"),
    ],
)
def test_what_has_no_labels_is_refused(model, batch, came) -> None:
    proxy = sw.Proxy.classification([batch])
    with pytest.raises(ProxyError, match=rf"(?s){came}.*function of your own"):
        check_proxy(proxy, model)


@pytest.mark.parametrize("label", [4, -1, -99, 2**40])
def test_a_label_that_is_no_class_is_refused(model, label: int) -> None:
    inputs, labels = data()
    labels[3], labels[4] = label, -100
    for metric in ("loss", "accuracy"):
        with pytest.raises(ProxyError, match=rf"labels in \[0, 4\),.* got {label}\."):
            check_proxy(sw.Proxy.classification([(inputs, labels)], metric=metric), model)


@pytest.mark.parametrize("is_own", [True, False])
def test_a_sweep_where_examples_have_no_label(model, caplog, is_own: bool) -> None:
    """Nobody knows which, so that all are evaluated at every level."""
    inputs, labels = data(600)

    def own(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        losses = F.cross_entropy(model(batch[0]), batch[1].clamp_min(0), reduction="none")
        return losses[batch[1] >= 0]

    labels[::7], labels[:40] = -100, -100  # a whole batch, and others here and there
    batches = [*zip(inputs.split(40), labels.split(40), strict=True)]
    proxy = sw.Proxy(batches, own) if is_own else sw.Proxy.classification(batches)
    record = sw.measure(model, proxy, tolerance=0.5)
    assert record.valid, record.reason
    there = labels >= 0
    assert record.curve.num_examples == there.sum()
    with torch.no_grad():
        expected = F.cross_entropy(model(inputs[there]), labels[there])
    assert record.curve.dense == pytest.approx(float(expected), rel=1e-5)
    assert f"600 examples have {there.sum()} values" in caplog.text


def test_examples_without_any_label_are_refused(model) -> None:
    inputs, labels = data()
    proxy = sw.Proxy.classification([(inputs, labels.fill_(-100))])
    with pytest.raises(ProxyError, match=r"at least two examples .*got 0\. None has a label"):
        check_proxy(proxy, model)


@pytest.mark.parametrize("wrap", [lambda x: {"scores": x}, lambda _: None, lambda _: (1.0,)])
def test_a_model_without_logits_is_refused(wrap) -> None:
    with pytest.raises(
        ProxyError, match=r"Got no logits in a (dict of|NoneType|tuple).*function of your own"
    ):
        check_proxy(sw.Proxy.classification([data()]), Parts(wrap))


def test_another_metric_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="`metric` to be 'loss' or 'accuracy', got 'f1'"):
        sw.Proxy.classification([data()], metric="f1")
