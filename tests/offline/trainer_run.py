"""A real Trainer that trains a tiny BERT under a watch; also a script."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
import transformers
from contracts.live_runs import held_out, sentences, tiny_bert

from sparsitywatch.integrations.huggingface import SparsityWatchCallback

STEPS, EVERY = 8, 2


class Sentences(torch.utils.data.Dataset):
    def __init__(self) -> None:
        self.all = sentences(7, 64)

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: tensor[index] for name, tensor in self.all.items()}


class WaitForSidecar(transformers.TrainerCallback):
    """Trains no further than step 6 before somebody has looked at a checkpoint."""

    def __init__(self, records: Path) -> None:
        self.records = records

    def on_step_end(self, args, state, control, **_) -> None:
        deadline = time.monotonic() + 100
        while state.global_step == 6 and not self._is_there() and time.monotonic() < deadline:
            time.sleep(0.01)

    def _is_there(self) -> bool:
        return self.records.exists() and self.records.stat().st_size > 0


def train(folder: Path, *callbacks: transformers.TrainerCallback) -> None:
    """Checkpoints go to ``folder``, the live log to ``folder/runs``."""
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, save_steps=EVERY, per_device_train_batch_size=8,
        report_to=[], disable_tqdm=True, use_cpu=True, logging_strategy="no", learning_rate=1e-3,
    )  # fmt: skip
    watch = SparsityWatchCallback(held_out(), every=EVERY, max_overhead=None)
    trainer = transformers.Trainer(
        tiny_bert(), arguments, train_dataset=Sentences(), callbacks=[watch, *callbacks]
    )
    trainer.train()


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(Path(sys.argv[1]), WaitForSidecar(Path(sys.argv[2])))
