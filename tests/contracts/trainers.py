"""A small BERT under a ``transformers.Trainer``."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from contracts.live_runs import loss_per_sentence, sentences, tiny_bert
from torch.utils.data import Dataset

import sparsitywatch as sw


class Sentences(Dataset):
    """What ``sentences`` gives, one by one."""

    def __init__(self, num: int = 64, seed: int = 0) -> None:
        self.sentences = sentences(seed, num)

    def __len__(self) -> int:
        return len(self.sentences["labels"])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: values[index] for name, values in self.sentences.items()}


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
        model=tiny_bert() if model is None else model,
        args=arguments,
        train_dataset=Sentences(),
        callbacks=[*(before or []), *([callback] if callback else [])],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))
