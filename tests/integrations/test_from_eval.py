"""The proxy of a Trainer's own held-out rows and collator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from torch import nn
from torch.nn import functional as F  # noqa: N812

import sparsitywatch as sw
from sparsitywatch.errors import ConfigurationError, ProxyError
from sparsitywatch.integrations.huggingface import SparsityWatchCallback
from sparsitywatch.integrations.language_models import eval_proxy
from sparsitywatch.sinks.jsonl import read_records

SMALL = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 16, "num_labels": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def words() -> transformers.PreTrainedTokenizerFast:
    special = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]",
               "mask_token": "[MASK]", "unk_token": "[UNK]"}  # fmt: skip
    names = [*special.values(), *(f"word{i}" for i in range(35))]
    model = tokenizers.models.WordLevel({name: i for i, name in enumerate(names)}, "[UNK]")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(model), **special
    )


def rows(num: int = 40, **more: Any) -> list[dict[str, Any]]:
    """Of different lengths, not padded, with a column that no model takes."""
    draws = torch.Generator().manual_seed(0)
    return [
        {"input_ids": torch.randint(5, 40, (8 + i % 9,), generator=draws).tolist(),
         "attention_mask": [1] * (8 + i % 9), "source": f"row {i}"}
        | {name: value(i) for name, value in more.items()}
        for i in range(num)
    ]  # fmt: skip


def trainer_of(
    folder: Path, model: torch.nn.Module, held_out: Any, collator: Any, **options: Any
) -> transformers.Trainer:
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=4, per_device_eval_batch_size=8, report_to=[], use_cpu=True,
        disable_tqdm=True, save_strategy="no", dataloader_persistent_workers=False, **options,
    )  # fmt: skip
    return transformers.Trainer(
        model, arguments, data_collator=collator, train_dataset=held_out, eval_dataset=held_out
    )


def batches(proxy: sw.Proxy) -> list[dict[str, torch.Tensor]]:
    seen: list[dict[str, torch.Tensor]] = []

    def keep(_: torch.nn.Module, batch: Any) -> torch.Tensor:
        seen.append(dict(batch))
        return torch.ones(len(batch["input_ids"]))

    proxy.evaluate(torch.nn.Linear(1, 1), keep)
    return seen


@pytest.mark.slow
def test_a_masked_model_is_asked_for_what_the_collator_hides(tmp_path: Path, words) -> None:
    torch.manual_seed(0)
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL)).eval()
    collator = transformers.DataCollatorForLanguageModeling(words)
    trainer = trainer_of(tmp_path, model, rows(), collator)
    state = torch.get_rng_state()
    first, second = eval_proxy(trainer, 20), eval_proxy(trainer, 20)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.hash == second.hash  # masked once, the same way
    own = batches(second)
    assert [len(batch["input_ids"]) for batch in own] == [7, 8, 3]  # two of 20 have no mask
    assert set(own[0]) == {"input_ids", "attention_mask", "labels"}
    expected = []
    for batch in own:
        for ids, mask, labels in zip(
            batch["input_ids"], batch["attention_mask"] == 1, batch["labels"], strict=True
        ):
            assert (labels[~mask] == -100).all()
            with torch.no_grad():
                logits = model(input_ids=ids[mask][None]).logits[0]
            expected.append(float(F.cross_entropy(logits, labels[mask])))
    assert first.evaluate(model) == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_a_causal_model_is_asked_for_the_next_token(tmp_path: Path, words) -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=40)
    model = transformers.GPT2LMHeadModel(config).eval()
    collator = transformers.DataCollatorForLanguageModeling(words, mlm=False)
    held_out = rows()
    values = eval_proxy(trainer_of(tmp_path, model, held_out, collator), 40).evaluate(model)
    for row, value in zip(held_out, values, strict=True):
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            expected = float(model(input_ids=ids, labels=ids).loss)
        assert value == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_a_model_that_decodes_is_given_its_labels(tmp_path: Path, words) -> None:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
        decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    model = transformers.T5ForConditionalGeneration(config).eval()
    held_out = rows(labels=lambda i: [5 + i % 30] * (3 + i % 4))
    collator = transformers.DataCollatorForSeq2Seq(words)
    values = eval_proxy(trainer_of(tmp_path, model, held_out, collator), 40).evaluate(model)
    for row, value in zip(held_out, values, strict=True):
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        with torch.no_grad():
            expected = float(model(input_ids=ids, labels=labels).loss)
        assert value == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_one_line_watches_a_trainer_by_its_own_rows(tmp_path: Path, words) -> None:
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL))
    collator = transformers.DataCollatorWithPadding(words)
    trainer = trainer_of(tmp_path, model, rows(label=lambda i: i % 3), collator)
    callback = SparsityWatchCallback.from_eval(
        trainer, examples=24, every=2, logdir=str(tmp_path), max_overhead=None, strict=True
    )
    trainer.add_callback(callback)
    trainer.train()
    records = read_records(tmp_path / "sparsitywatch")
    assert [record.step for record in records] == [2, 4]
    assert {record.curve.num_examples for record in records} == {24}
    mine = trainer.evaluate()["eval_loss"]  # of all 40 rows
    assert records[-1].curve.dense == pytest.approx(mine, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("mlm", [True, False])
def test_short_rows_have_masks_or_are_left_out(tmp_path: Path, words, mlm: bool) -> None:
    """Of five tokens about half have none that is hidden; one token has no next one."""
    torch.manual_seed(0)
    if mlm:
        model = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL))
    else:
        config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=40)
        model = transformers.GPT2LMHeadModel(config)
    held_out = [{"input_ids": [*range(5 + i % 30, 10 + i % 30 - 4 * (i % 2))]} for i in range(160)]
    collator = transformers.DataCollatorForLanguageModeling(words, mlm=mlm)
    proxy = eval_proxy(trainer_of(tmp_path, model, held_out, collator), 160)
    labels = torch.cat([nn.functional.pad(x["labels"], (0, 5 - x["labels"].shape[1]), value=-100)
                        for x in batches(proxy)])  # fmt: skip
    assert (labels[:, 0 if mlm else 1 :] != -100).any(1).all()
    record = sw.measure(model, proxy, tolerance=0.5)
    assert record.valid, record.reason
    assert record.curve.num_examples == len(labels)
    assert len(labels) < 160


class Drawing(torch.utils.data.Dataset):
    """Rows that are cut at random whenever they are asked for."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = rows()[index]
        end = int(torch.randint(4, len(row["input_ids"]) + 1, ()))
        return {name: row[name][:end] for name in ("input_ids", "attention_mask")}


@pytest.mark.slow
@pytest.mark.parametrize("mlm", [True, False])
def test_the_training_is_the_same_bit_for_bit(tmp_path: Path, words, mlm: bool) -> None:
    """Also where rows, masks and dropout are drawn; a mirror has all before other callbacks end."""
    found: list[dict[str, torch.Tensor]] = []
    hashes, steps = set(), []

    class Ends(transformers.TrainerCallback):
        def on_train_end(self, *_: Any, **__: Any) -> None:
            steps.append("end")

    for is_watched in (False, True, True):
        torch.manual_seed(0)
        if mlm:
            model = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL))
        else:
            config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=40)
            model = transformers.GPT2LMHeadModel(config)
        collator = transformers.DataCollatorForLanguageModeling(words, mlm=mlm)
        trainer = trainer_of(tmp_path / str(len(found)), model, Drawing(), collator)
        if is_watched:
            trainer.add_callback(Ends)
            mirror = sw.sinks.Mirror(lambda _, step: steps.append(step))
            callback = SparsityWatchCallback.from_eval(
                trainer, examples=12, every=2, max_overhead=None, strict=True, sinks=[mirror]
            )
            trainer.add_callback(callback)
        trainer.train()
        if is_watched:
            hashes |= {record.provenance.proxy_hash for record in callback.watcher.records}
        found.append(model.state_dict())
    for name, weights in found[0].items():
        assert all(torch.equal(weights, other[name]) for other in found[1:]), name
    assert len(hashes) == 1
    assert steps == [2, 4, "end"] * 2


def test_a_trainer_without_rows_of_its_own_is_refused(tmp_path: Path, words) -> None:
    model = transformers.BertForMaskedLM(transformers.BertConfig(**SMALL))
    collator = transformers.DataCollatorForLanguageModeling(words)
    trainer = trainer_of(tmp_path, model, rows(), collator)
    trainer.eval_dataset = {"first": rows(), "second": rows()}
    with pytest.raises(ProxyError, match="one split of it"):
        SparsityWatchCallback.from_eval(trainer)
    trainer.eval_dataset = None
    for one in (trainer, model):
        with pytest.raises(ConfigurationError, match="to be a Trainer with an `eval_dataset`"):
            SparsityWatchCallback.from_eval(one)
    with pytest.raises(ConfigurationError, match="examples"):
        SparsityWatchCallback.from_eval(trainer, examples=1)
