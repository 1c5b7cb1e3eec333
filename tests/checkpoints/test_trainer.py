"""A real run of the transformers Trainer: its checkpoints as they come and as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from contracts.reader_contract import ReaderContract, small_bert
from torch import nn

from sparsitywatch.checkpoints.discovery import discover
from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.errors import IncompleteCheckpointError


class Sentences(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens = torch.arange(6) + index
        return {"input_ids": tokens, "labels": tokens}


class TestTrainer(ReaderContract):
    format = "huggingface/safetensors"
    step = 4

    def write(self, model: nn.Module, folder: Path) -> Path:
        arguments = transformers.TrainingArguments(
            output_dir=str(folder), max_steps=4, save_steps=2, per_device_train_batch_size=2,
            report_to=[], disable_tqdm=True, use_cpu=True, logging_strategy="no",
        )  # fmt: skip
        trainer = transformers.Trainer(model, arguments, train_dataset=Sentences())
        trainer.train()
        return folder / "checkpoint-4"

    def test_a_run_of_it(self, written, tmp_path: Path) -> None:
        run = written[1].parent
        found = discover(run / "checkpoint-*")
        assert [(f.step, f.step_from, f.state) for f in found] == [
            (2, "trainer state", "complete"),
            (4, "trainer state", "complete"),
        ]
        assert discover(run) == found

    def test_while_the_trainer_writes_it(self, own: Path) -> None:
        (own / "trainer_state.json").unlink()
        with pytest.raises(IncompleteCheckpointError, match=r"expected trainer_state\.json"):
            open_checkpoint(own)
        (found,) = discover(own)
        assert (found.step, found.step_from, found.state) == (4, "name", "incomplete")

    def test_only_the_weights_are_fetched(self, written) -> None:
        weights = (written[1] / "model.safetensors").stat().st_size
        with open_checkpoint(written[1]) as checkpoint:
            for _ in checkpoint.tensors():
                pass
            assert checkpoint.num_bytes_read <= weights


def test_a_trainer_saves_nothing_else_that_is_read_as_a_checkpoint(tmp_path: Path) -> None:
    small_bert().save_pretrained(tmp_path / "final")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        torch.save({"weight": torch.ones(3)}, tmp_path / name)
    (found,) = discover(tmp_path)
    assert (found.url, found.step) == (str(tmp_path / "final"), None)
