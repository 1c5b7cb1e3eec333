"""Models from a config, and the proxy of a held-out text."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers

import sparsitywatch as sw
from sparsitywatch.cli import main
from sparsitywatch.errors import ConfigurationError, ProxyError
from sparsitywatch.evaluation.checks import check_proxy
from sparsitywatch.integrations.language_models import (
    make_model,
    text_proxy,
)
from sparsitywatch.proxy.ready_made import labelled_value
from sparsitywatch.sinks.jsonl import read_records

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 32}  # fmt: skip
WORDS = ["sparse", "dense", "weights", "are", "never", "always", "pruned", "kept"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT with its tokenizer, as save_pretrained leaves them, and a text."""
    folder = tmp_path_factory.mktemp("bert")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]",
    ).save_pretrained(folder)  # fmt: skip
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=len(vocabulary), **SMALL)
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    (folder / "text.txt").write_text(" ".join(WORDS * 100))
    return folder


def test_the_architecture_that_the_config_names(folder: Path) -> None:
    for arguments in ((str(folder),), (str(folder / "config.json"),), ("bert", folder)):
        model = make_model(*arguments)
        assert isinstance(model, transformers.BertForMaskedLM)
        assert model.config.hidden_size == 16


@pytest.mark.parametrize(
    ("content", "kind", "expected"),
    [
        ({"model_type": "bert", **SMALL}, None, "BertForMaskedLM"),
        ({**SMALL}, "bert", "BertForMaskedLM"),
        ({"n_layer": 1, "n_head": 2, "n_embd": 8, "vocab_size": 9}, "gpt2", "GPT2LMHeadModel"),
        ({"model_type": "bert", "architectures": ["BertForPreTraining"], **SMALL}, None,
         "BertForPreTraining"),
    ],
)  # fmt: skip
def test_configs_of_their_own(tmp_path: Path, content, kind, expected) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(content))
    model = make_model(str(path)) if kind is None else make_model(kind, path)
    assert type(model).__name__ == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_type": "no-such-model"}', "Expected a type of model"),
        ("{}", "Expected a type of model"),
        ("not json", "Expected a config in JSON"),
        ('{"model_type": "vit"}', "Expected a config with `architectures`"),
    ],
)
def test_configs_that_are_none(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigurationError, match=message):
        make_model(str(tmp_path))
    with pytest.raises(ConfigurationError, match="found none"):
        make_model("bert", tmp_path / "none.json")


def test_masked_tokens_are_a_fixed_share_and_always_the_same(folder: Path) -> None:
    model = make_model(str(folder))
    proxies = [
        text_proxy(folder / "text.txt", folder, model, num_examples=20, length=22) for _ in range(2)
    ]
    assert proxies[0].hash == proxies[1].hash
    assert (proxies[0].num_batches, proxies[0].higher_is_better) == (2, False)
    batches = []
    for proxy in proxies:
        proxy.value = lambda _, batch: batches.append(batch) or torch.ones(len(batch["labels"]))
        proxy.evaluate(model)
    tokens, labels = (torch.cat([b[n] for b in batches[:2]]) for n in ("input_ids", "labels"))
    assert tokens.shape == (20, 22)
    is_hidden = labels != -100
    assert is_hidden.sum(1).tolist() == [3] * 20  # 15 % of 20
    assert not is_hidden[:, [0, -1]].any()
    assert set(tokens[:, 0].tolist()) == {2}
    assert set(tokens[:, -1].tolist()) == {3}
    text = torch.tensor([5 + i % 8 for i in range(400)]).reshape(20, 20)
    whole = torch.where(is_hidden, labels, tokens)
    assert torch.equal(whole[:, 1:-1], text)
    # most are masks; some stand for another token or for themselves
    assert 0.6 < (tokens[is_hidden] == 4).double().mean() < 0.95


def test_losses_are_means_over_the_tokens_that_are_asked_for(folder: Path) -> None:
    model = make_model(str(folder)).eval()
    tokens = torch.tensor([[2, 4, 6, 3], [2, 5, 4, 3]])
    labels = torch.tensor([[-100, 7, 8, -100], [-100, -100, 9, -100]])
    with torch.no_grad():
        log_p = model(input_ids=tokens).logits.log_softmax(-1).double()
        found = labelled_value(model, {"input_ids": tokens, "labels": labels})
    expected = [-(log_p[0, 1, 7] + log_p[0, 2, 8]) / 2, -log_p[1, 2, 9]]
    assert found.tolist() == pytest.approx([float(x) for x in expected], rel=1e-5)
    gpt = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=13)
    ).eval()
    with torch.no_grad():
        log_p = gpt(input_ids=tokens).logits.log_softmax(-1).double()
        found = labelled_value(gpt, {"input_ids": tokens, "labels": tokens}, is_causal=True)
    expected = [-sum(float(log_p[i, k, tokens[i, k + 1]]) for k in range(3)) / 3 for i in range(2)]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_texts_and_models_that_cannot_be_used(folder: Path, tmp_path: Path) -> None:
    model, text = make_model(str(folder)), folder / "text.txt"
    with pytest.raises(ConfigurationError, match=r"at least 12,600 tokens .* got 800"):
        text_proxy(text, folder, model, num_examples=100)
    with pytest.raises(ConfigurationError, match="--tokenizer FOLDER"):
        text_proxy(text, tmp_path, model)
    with pytest.raises(ConfigurationError, match="`examples` to be a whole number >= 2"):
        text_proxy(text, folder, model, num_examples=1, length=8)
    with pytest.raises(ConfigurationError, match=r"masked or causal language model .* Linear"):
        text_proxy(text, folder, torch.nn.Linear(2, 2))


class Sending(ThreadPoolExecutor):
    """Threads that are given what other processes would be: copies by pickle."""

    def submit(self, function, /, *arguments) -> Future:
        return super().submit(*pickle.loads(pickle.dumps((function, *arguments))))


@pytest.mark.slow
def test_from_a_text_on_the_command_line(folder: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("sparsitywatch.offline.jobs.processes", Sending)
    for step in (1, 2):
        torch.manual_seed(step)
        model = make_model(str(folder))
        model.save_pretrained(tmp_path / "run" / f"checkpoint-{step}")
    arguments = ["replay", str(tmp_path / "run"), "--logdir", str(tmp_path)]
    options = ["--model", str(folder), "--text", str(folder / "text.txt"), "--examples", "8",
               "--length", "16", "--workers", "2"]  # fmt: skip
    assert main([*arguments, *options]) == 0
    records = read_records(tmp_path / "sparsitywatch")
    assert [record.step for record in records] == [1, 2]
    proxy = text_proxy(
        folder / "text.txt", folder, make_model(str(folder)), num_examples=8, length=16
    )
    assert records[0].provenance.proxy_hash == proxy.hash
    here = sw.replay(
        tmp_path / "run", logdir=None, model=lambda: make_model(str(folder)), proxy=proxy
    )
    for ours, theirs in zip(here.records, records, strict=True):
        assert theirs.curve.value == pytest.approx(ours.curve.value, rel=1e-5)


def test_a_window_without_a_masked_token_has_no_loss() -> None:
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=20, **SMALL)).eval()
    tokens = torch.randint(20, (4, 6))
    labels = torch.full_like(tokens, -100)
    labels[0, 1], labels[2, :3] = 5, 7
    losses = labelled_value(model, {"input_ids": tokens, "labels": labels})
    logits = model(input_ids=tokens).logits.log_softmax(-1)
    expected = [-logits[0, 1, 5], -logits[2, :3, 7].mean()]
    torch.testing.assert_close(losses, torch.stack(expected))
    none = {"input_ids": tokens[1:2], "labels": labels[1:2]}
    assert labelled_value(model, none).shape == (0,)
    proxy = sw.Proxy([none, {"input_ids": tokens, "labels": labels}], labelled_value)
    check_proxy(proxy, model)  # two examples, and both are numbers


# ------------------------------------------------------------------ a proxy in one line

TEXTS = ["sparse weights are kept", "dense weights are never ever pruned always", "kept weights"]


@pytest.fixture(scope="module")
def words(folder: Path) -> transformers.PreTrainedTokenizerFast:
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def bert(folder: Path) -> torch.nn.Module:
    return make_model(str(folder)).eval()


class Rows(torch.utils.data.Dataset):
    """As of ``datasets``: a dict for each place."""

    def __init__(self, rows: list) -> None:
        self.rows, self.asked = rows, []

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> object:
        self.asked.append(index)
        return self.rows[index]


def forms(words: transformers.PreTrainedTokenizerFast) -> dict[str, object]:
    """The same three sequences in every form that a dataset may have."""
    ids = [words(text)["input_ids"] for text in TEXTS]
    padded = words(TEXTS, padding=True, return_tensors="pt")
    rows = [{"input_ids": one, "label": 1} for one in ids]
    return {
        "texts": TEXTS,
        "texts one by one": iter(TEXTS),
        "batches of texts": torch.utils.data.DataLoader(TEXTS, batch_size=2),
        "batches with a text": torch.utils.data.DataLoader([{"text": t} for t in TEXTS], 2),
        "rows with a text": Rows([{"text": text, "source": "a"} for text in TEXTS]),
        "rows with one text": [{"sentence": text, "label": 1} for text in TEXTS],
        "rows with ids": Rows(rows),
        "ids": ids,
        "tensors": [torch.tensor(one) for one in ids],
        "a row of a classification": [{**row, "labels": 1} for row in rows],
        "padded rows": [{name: padded[name][i] for name in padded} for i in range(3)],
        "padded rows without a mask": [{"input_ids": ids} for ids in padded["input_ids"]],
        "a batch": [dict(padded)],
        "a batch by itself": padded,
        "a batch without padding": [words(TEXTS)],
        "lists of different lengths": [ids[:2], ids[2:]],
        "tensors of different lengths": [[*map(torch.tensor, ids)]],
        "tuples of one": [(torch.tensor(one),) for one in ids],
        "batches of one": [[padded["input_ids"]]],
        "a collator's batches": torch.utils.data.DataLoader(
            rows, batch_size=2,
            collate_fn=lambda part: words.pad([{"input_ids": r["input_ids"]} for r in part],
                                              return_tensors="pt"),
        ),
    }  # fmt: skip


@pytest.mark.parametrize("make", [sw.Proxy.masked_lm, sw.Proxy.causal_lm])
def test_a_dataset_in_any_form_gives_the_same_proxy(words, bert, make) -> None:
    found = {name: make(dataset, words) for name, dataset in forms(words).items()}
    assert len(found) == 20
    hashes = {name: proxy.hash for name, proxy in found.items()}
    assert set(hashes.values()) == {hashes["texts"]}
    assert len(check_proxy(found["texts"], bert)) == 3


def test_padding_counts_in_no_loss(words, bert) -> None:
    proxy = sw.Proxy.causal_lm(TEXTS, words)
    with torch.no_grad():
        found = proxy.evaluate(bert)
        for text, value in zip(TEXTS, found, strict=True):
            ids = torch.tensor([words(text)["input_ids"]])
            log_p = bert(input_ids=ids).logits.log_softmax(-1)[0]
            own = [-float(log_p[k, ids[0, k + 1]]) for k in range(ids.shape[1] - 1)]
            assert value == pytest.approx(sum(own) / len(own), rel=1e-4)


def test_the_loss_of_a_masked_model_is_of_the_hidden_tokens_of_each_sequence(words, bert) -> None:
    proxy, seen = sw.Proxy.masked_lm(TEXTS, words), []
    loss = proxy.value
    with torch.no_grad():
        found = proxy.evaluate(bert, lambda m, b: seen.append(b) or loss(m, b))
    (batch,) = seen
    is_hidden = batch["labels"] != -100
    num = [len(words(text)["input_ids"]) - 2 for text in TEXTS]
    assert is_hidden.sum(1).tolist() == [max(1, round(0.15 * n)) for n in num]
    assert not (is_hidden & (batch["attention_mask"] == 0)).any()
    for i, value in enumerate(found):
        there = batch["attention_mask"][i] == 1
        with torch.no_grad():
            log_p = bert(input_ids=batch["input_ids"][i : i + 1, there]).logits.log_softmax(-1)[0]
        labels = batch["labels"][i, there]
        own = [-float(log_p[k, label]) for k, label in enumerate(labels.tolist()) if label >= 0]
        assert value == pytest.approx(sum(own) / len(own), rel=1e-4)


def test_what_has_no_label_is_not_asked_of_a_causal_model(bert, words) -> None:
    rows = [{"input_ids": [2, 5, 6, 7, 3], "labels": [-100, -100, 6, 7, 3]},
            {"input_ids": [2, 8, 9, 3], "labels": [-100, -100, -100, 3]}]  # fmt: skip
    with torch.no_grad():
        found = sw.Proxy.causal_lm(rows, words).evaluate(bert)
        for row, value in zip(rows, found, strict=True):
            log_p = bert(input_ids=torch.tensor([row["input_ids"]])).logits.log_softmax(-1)[0]
            own = [-float(log_p[k, x]) for k, x in enumerate(row["labels"][1:]) if x >= 0]
            assert value == pytest.approx(sum(own) / len(own), rel=1e-4)


def test_sequences_are_spread_over_the_dataset_and_cut(words) -> None:
    rows = Rows([{"input_ids": [5 + i % 8] * 40} for i in range(1000)])
    seen: list[torch.Tensor] = []
    proxy = sw.Proxy.causal_lm(rows, words, examples=5, length=12)
    assert rows.asked == [0, 250, 500, 749, 999]
    proxy.evaluate(torch.nn.Linear(1, 1), lambda _, b: seen.append(b["input_ids"])
                   or torch.ones(len(b["input_ids"])))  # fmt: skip
    assert seen[0].tolist() == [[5 + i % 8] * 12 for i in rows.asked]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            {"train": TEXTS, "validation": TEXTS},
            r"a mapping of \['train', 'validation'\].*dataset\['",
        ),
        ("sparse weights", "rows or batches with `input_ids`"),
        ([{"question": "a b", "answer": "c d"}], r"one text in dataset\[0\], got \['answer', 'q"),
        ([{"label": 1}], r"`input_ids` or one text in dataset\[0\], got \['label'\]"),
        ([{"input_ids": [0.5, 1.0]}], r"whole numbers .* of dataset\[0\], got float64 of shape"),
        ([(torch.arange(9), torch.arange(9))], r"of dataset\[0\], got a tuple of 2.*inputs alone"),
        ([[torch.ones(2, 9).long()] * 2], r"got int64 of shape \(2, 9\).*inputs alone"),
        (["sparse weights"], "at least 2 sequences of 2 tokens or more in `dataset`, got 1"),
        ([], "at least 2 sequences of 2 tokens or more in `dataset`, got 0"),
    ],
)
def test_a_dataset_that_is_none_is_refused(words, dataset, message) -> None:
    with pytest.raises(sw.SparsityWatchError, match=message):
        sw.Proxy.masked_lm(dataset, words)


def test_a_tokenizer_without_a_mask_is_refused_for_a_masked_model(folder) -> None:
    words = transformers.AutoTokenizer.from_pretrained(folder, mask_token=None)
    with pytest.raises(ProxyError, match=r"with a mask token, got .*causal_lm"):
        sw.Proxy.masked_lm(TEXTS, words)
    with pytest.raises(ConfigurationError, match="tokenizer"):
        sw.Proxy.causal_lm(TEXTS, "bert-base-uncased")
    with pytest.raises(ConfigurationError, match="examples"):
        sw.Proxy.causal_lm(TEXTS, words, examples=1)


def test_ids_need_no_tokenizer(words, bert) -> None:
    ids = [words(text)["input_ids"] for text in TEXTS]
    alone, with_one = sw.Proxy.causal_lm(ids), sw.Proxy.causal_lm(ids, words)
    assert alone.evaluate(bert).tolist() == with_one.evaluate(bert).tolist()
    with pytest.raises(ConfigurationError, match=r"`tokenizer` to be .*, for texts"):
        sw.Proxy.causal_lm(TEXTS)


@pytest.mark.parametrize("empty", ["", {"text": ""}, {"input_ids": []}, {"input_ids": [2, 3]}])
def test_empty_rows_make_room_for_others(words, empty) -> None:
    """As those of wikitext: two of three say nothing."""
    rows = [TEXTS[i % 3] if i % 3 == 0 else empty for i in range(900)]
    for make in (sw.Proxy.masked_lm, sw.Proxy.causal_lm):
        seen: list[int] = []
        make(rows, words, examples=32).evaluate(
            torch.nn.Linear(1, 1),
            lambda _, b, seen=seen: seen.append(len(b["input_ids"])) or torch.ones(seen[-1]),
        )
        assert sum(seen) == 32


@pytest.mark.parametrize("make", [sw.Proxy.masked_lm, sw.Proxy.causal_lm])
def test_a_source_that_draws_leaves_the_generators_and_draws_the_same(words, make) -> None:
    source = torch.utils.data.DataLoader(TEXTS * 20, batch_size=None, shuffle=True)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = make(source, words, examples=8)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert make(source, words, examples=8).hash == first.hash
