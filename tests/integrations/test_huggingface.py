"""The callback on a real Trainer training a real BERT."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import Dataset

import sparsitywatch as sw
from sparsitywatch.integrations.huggingface import SparsityWatchCallback
from sparsitywatch.sinks.jsonl import read_records


class Sentences(Dataset):
    """Random tokens whose neighbours predict each other; a third is masked."""

    def __init__(self, num: int = 64, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        start = torch.randint(4, 30, (num, 1), generator=generator)
        self.labels = (start + torch.arange(8)) % 30 + 4
        self.masked = torch.rand(num, 8, generator=generator) < 0.33
        self.masked[:, 0] = True

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        labels, masked = self.labels[index], self.masked[index]
        return {
            "input_ids": labels.masked_fill(masked, 3),
            "labels": labels.masked_fill(~masked, -100),
        }


def bert() -> transformers.BertForMaskedLM:
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    return transformers.BertForMaskedLM(config)


def loss_per_sentence(model, batch) -> torch.Tensor:
    logits = model(input_ids=batch["input_ids"]).logits
    loss = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), batch["labels"], reduction="none", ignore_index=-100
    )
    return loss.sum(1) / (batch["labels"] != -100).sum(1)


def proxy() -> sw.Proxy:
    data = Sentences(16, seed=1)
    return sw.Proxy(
        [torch.utils.data.default_collate([data[i] for i in range(16)])], loss_per_sentence
    )


def train(
    folder: Path,
    steps: int,
    callback: SparsityWatchCallback | None,
    resume: bool = False,
    **options,
) -> transformers.Trainer:
    transformers.set_seed(0)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        save_steps=4,
        logging_steps=2,
        report_to=["tensorboard"],
        use_cpu=True,
        disable_tqdm=True,
        **options,
    )
    trainer = transformers.Trainer(
        model=bert(),
        args=arguments,
        train_dataset=Sentences(),
        callbacks=[callback] if callback else [],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def weights(trainer: transformers.Trainer) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in trainer.model.state_dict().items()}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_one_line_watches_a_trainer_beside_its_own_run(tmp_path: Path) -> None:
    callback = SparsityWatchCallback(proxy(), max_overhead=None, every=2, strict=True)
    watched = train(tmp_path / "on", 8, callback, gradient_accumulation_steps=2)
    records = read_records(tmp_path / "tb" / "sparsitywatch")
    assert [r.step for r in records] == [2, 4, 6, 8]
    assert records[0].scope.num_tensors == 12
    ours = EventAccumulator(str(tmp_path / "tb" / "sparsitywatch")).Reload()
    theirs = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert "near_zero/initial_0.1" in ours.Tags()["scalars"]
    assert "train/loss" in theirs.Tags()["scalars"]
    assert "near_zero/initial_0.1" not in theirs.Tags()["scalars"]
    plain = train(tmp_path / "off", 8, None, gradient_accumulation_steps=2)
    torch.testing.assert_close(weights(watched), weights(plain), rtol=0, atol=0)


def test_a_resumed_trainer_goes_on_in_the_same_log(tmp_path: Path) -> None:
    whole = SparsityWatchCallback(
        proxy(), max_overhead=None, every=2, logdir=str(tmp_path / "whole"), strict=True
    )
    train(tmp_path / "a", 10, whole)
    first = SparsityWatchCallback(
        proxy(), max_overhead=None, every=2, logdir=str(tmp_path / "log"), strict=True
    )
    train(tmp_path / "b", 6, first)  # saves at 4 and at its end, 6
    (tmp_path / "b" / "checkpoint-6").rename(tmp_path / "b" / "gone")
    second = SparsityWatchCallback(
        proxy(), max_overhead=None, every=2, logdir=str(tmp_path / "log"), strict=True
    )
    train(tmp_path / "b", 10, second, resume=True)
    expected = read_records(tmp_path / "whole" / "sparsitywatch")
    resumed = read_records(tmp_path / "log" / "sparsitywatch")
    assert [r.step for r in resumed] == [2, 4, 6, 8, 10]
    for ours, theirs in zip(resumed, expected, strict=True):
        assert (ours.curve, ours.near_zero, ours.dormant) == (
            theirs.curve,
            theirs.near_zero,
            theirs.dormant,
        )
        assert ours.decay_clock == theirs.decay_clock


def test_an_unknown_option_is_refused_when_the_callback_is_made() -> None:
    with pytest.raises(sw.ConfigurationError, match=r"got \['evry'\]"):
        SparsityWatchCallback(evry=3)
