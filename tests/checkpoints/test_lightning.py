"""Checkpoints of Lightning, written by it."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from contracts.reader_contract import ReaderContract, small_bert
from torch import nn

import sparsitywatch as sw
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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_of_an_average_the_choice_is_listed_and_the_trained_weights_are_measured(
    tmp_path: Path,
) -> None:
    """EMAWeightAveraging puts the average where the model is, and the model elsewhere."""
    lightning = pytest.importorskip("lightning")
    callbacks = lightning.pytorch.callbacks
    if not hasattr(callbacks, "EMAWeightAveraging"):
        pytest.skip("an older Lightning")
    trained: dict[int, dict[str, torch.Tensor]] = {}

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 6))

        def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
            return (self.net(batch) - batch).square().mean()

        def on_train_batch_end(self, *_: object) -> None:
            state = self.state_dict()
            trained[self.trainer.global_step] = {n: t.clone() for n, t in state.items()}

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=0.05)

    torch.manual_seed(0)
    trainer = lightning.Trainer(
        max_steps=6, accelerator="cpu", logger=False, default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[callbacks.EMAWeightAveraging(decay=0.9), callbacks.ModelCheckpoint(
            tmp_path / "run", every_n_train_steps=2, save_top_k=-1)],
    )  # fmt: skip
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.randn(12, 6), batch_size=2))

    asked = sw.replay(tmp_path / "run", logdir=None, scope="layers")
    assert not any(record.valid for record in asked.records)
    assert [one.step for one in asked.failures] == [2, 4, 6]
    for failure in asked.failures:
        assert "'state_dict' (4 tensors), 'current_model_state' (4 tensors)" in failure.reason
        assert "--key current_model_state" in failure.reason
    replayed = sw.replay(tmp_path / "run", logdir=None, scope="layers", key="current_model_state")
    averaged = sw.replay(tmp_path / "run", logdir=None, scope="layers", key="state_dict")
    assert [record.step for record in replayed.records] == [2, 4, 6]
    for record, other in zip(replayed.records, averaged.records, strict=True):
        for layer, of_average in zip(record.layers, other.layers, strict=True):
            rms = trained[record.step][layer.name].double().square().mean().sqrt().item()
            assert layer.rms == pytest.approx(rms, rel=1e-3)
            assert abs(of_average.rms / rms - 1.0) > 1e-2
