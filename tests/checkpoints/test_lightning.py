"""Checkpoints of Lightning, written by it."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from contracts.reader_contract import ReaderContract, small_bert
from torch import nn

from sparsitywatch.checkpoints.discovery import discover


class TestLightning(ReaderContract):
    format = "lightning"
    step = 4

    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns about its own imports
            pytest.importorskip("lightning")

    @pytest.mark.filterwarnings("ignore")
    def write(self, model: nn.Module, folder: Path) -> Path:
        import lightning

        class Module(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.model = model["model"]

            def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
                return self.model(input_ids=batch, labels=batch).loss

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.AdamW(self.parameters())

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = lightning.Trainer(
                max_steps=4, accelerator="cpu", logger=False, default_root_dir=folder,
                enable_progress_bar=False, enable_model_summary=False,
                callbacks=[lightning.pytorch.callbacks.ModelCheckpoint(
                    folder, every_n_train_steps=2, save_top_k=-1, save_last=True)],
            )  # fmt: skip
            trainer.fit(Module(), torch.utils.data.DataLoader(torch.arange(48).reshape(8, 6)))
        return folder / "epoch=0-step=4.ckpt"

    def model(self) -> nn.Module:
        # Lightning's names carry the attribute that the user gave to the model
        return nn.ModuleDict({"model": small_bert()})

    def test_last_is_a_duplicate(self, written) -> None:
        found = discover(written[1].parent)
        assert [(f.step, f.state, Path(f.url).name) for f in found] == [
            (2, "complete", "epoch=0-step=2.ckpt"),
            (4, "complete", "epoch=0-step=4.ckpt"),
            (4, "duplicate", "last.ckpt"),
        ]
