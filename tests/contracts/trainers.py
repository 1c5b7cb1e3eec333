"""A small BERT under a ``transformers.Trainer``."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from torch.utils.data import Dataset

import sparsitywatch as sw


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


def bert(**options) -> transformers.BertForMaskedLM:
    config = transformers.BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        **options,
    )
    return transformers.BertForMaskedLM(config)


def loss_per_sentence(model, batch) -> torch.Tensor:
    logits = model(input_ids=batch["input_ids"]).logits
    loss = torch.nn.functional.cross_entropy(
        logits.transpose(1, 2), batch["labels"], reduction="none", ignore_index=-100
    )
    return loss.sum(1) / (batch["labels"] != -100).sum(1)


def proxy(batch: int = 16) -> sw.Proxy:
    held_out = torch.utils.data.DataLoader(Sentences(16, seed=1), batch)
    return sw.Proxy(held_out, loss_per_sentence)


def train(
    folder: Path,
    steps: int,
    callback: transformers.TrainerCallback | None,
    resume: bool | str = False,
    before: list[transformers.TrainerCallback] | None = None,
    kind: type[transformers.Trainer] = transformers.Trainer,
    model: torch.nn.Module | None = None,
    **options,
) -> transformers.Trainer:
    transformers.set_seed(0)
    arguments = transformers.TrainingArguments(
        **{
            "output_dir": str(folder),
            "max_steps": steps,
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-3,
            "lr_scheduler_type": "constant",
            "save_steps": 4,
            "logging_steps": 2,
            "report_to": ["tensorboard"],
            "use_cpu": True,
            "disable_tqdm": True,
        }
        | options,
    )
    trainer = kind(
        model=bert() if model is None else model,
        args=arguments,
        train_dataset=Sentences(),
        callbacks=[*(before or []), *([callback] if callback else [])],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


class SeesStep(sw.detectors.Detector):
    """A detector with an event at a given step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def update(self, step, value, context=None):
        if step != self.step:
            return None
        return sw.Event(
            series="",
            direction="up",
            onset_step=step,
            detected_step=step,
            baseline=0.0,
            value=value,
        )

    def state_dict(self):
        return {"step": self.step}

    def load_state_dict(self, state):
        self.step = state["step"]


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))
