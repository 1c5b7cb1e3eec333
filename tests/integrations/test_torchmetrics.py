"""Metrics about the weights, alone and logged by Lightning."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import sparsitywatch as sw
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.integrations.torchmetrics import NearZeroFraction, SpectrumMetric
from sparsitywatch.weights.spectrum import MagnitudeSpectrum


def model_of(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(),
                         nn.Linear(30, 2)).to(dtype)  # fmt: skip


def weights_of(*models: nn.Module) -> torch.Tensor:
    """Those in scope: all but the layer that makes the output."""
    return torch.cat([model[i].weight.detach().reshape(-1) for model in models for i in (0, 2)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fraction_near_zero_is_counted(dtype: torch.dtype) -> None:
    model, metric = model_of(dtype=dtype), NearZeroFraction(0.02)
    metric.update(model)
    assert (metric.counts.sum().item(), metric.counts.dtype) == (2000, torch.int64)
    exact = float((weights_of(model).abs() <= 0.02).double().mean())
    assert metric.compute().item() == pytest.approx(exact, abs=2e-3)
    watched = sw.measure(model, near_zero=["abs_0.02"]).near_zero["abs_0.02"]
    if dtype == torch.float32:
        assert metric.compute().item() == pytest.approx(watched, rel=1e-5)
    with torch.no_grad():
        model[0].weight[:10] = 0.0
    zero = NearZeroFraction(0.0)
    zero.update(model)
    assert zero.compute().item() == pytest.approx(0.1)


@pytest.mark.parametrize("level", [0.0, 0.3, 0.9, 1.0])
def test_the_magnitude_that_a_share_does_not_exceed(level: float) -> None:
    model, metric = model_of(), SpectrumMetric(level)
    metric.update(model)
    expected = MagnitudeSpectrum.of({"all": weights_of(model)})
    assert metric.spectrum == expected
    assert metric.counts.dtype == torch.int64
    assert metric.compute().item() == pytest.approx(expected.thresholds([level])[0], rel=1e-6)


def test_weights_that_are_none_are_counted_apart() -> None:
    model, metric = model_of(), SpectrumMetric()
    with torch.no_grad():
        model[0].weight[0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    metric.update(model)
    assert (metric.spectrum.num_nan, metric.spectrum.num_inf) == (1, 2)
    assert metric.spectrum.num_weights == 2000


@pytest.mark.parametrize("make", [NearZeroFraction, SpectrumMetric])
def test_parts_add_up_as_over_ranks(make) -> None:
    models = [model_of(seed) for seed in range(2)]
    whole, parts = make(), [make() for _ in models]
    for model, part in zip(models, parts, strict=True):
        whole.update(model)
        part.update(model)
    parts[0].merge_state(parts[1])
    for name, value in whole.metric_state.items():
        assert torch.equal(parts[0].metric_state[name], value)
    assert parts[0].compute().item() == whole.compute().item()
    whole.reset()
    assert not any(state.any() for state in whole.metric_state.values())


def test_a_scope_is_that_of_a_watch() -> None:
    model, metric = model_of(), NearZeroFraction(scope=["4.weight"])
    metric.update(model)
    assert metric.counts.sum().item() == 60


@pytest.mark.parametrize(("make", "bad"), [(NearZeroFraction, -1.0), (SpectrumMetric, 50)])
def test_numbers_out_of_range_are_refused(make, bad) -> None:
    with pytest.raises(ConfigurationError, match=r"Expected `(threshold|level)`"):
        make(bad)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lightning_logs_them(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about its own imports
        lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model_of()
            self.near_zero, self.median = NearZeroFraction(0.02), SpectrumMetric()

        def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
            return self.model(batch).square().mean()

        def on_train_epoch_end(self) -> None:
            self.near_zero.update(self.model)
            self.median.update(self.model)
            self.log("near_zero", self.near_zero)
            self.log("median", self.median)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=0.01)

    module = Module()
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, torch.utils.data.DataLoader(torch.randn(16, 20), 8))
    weights = weights_of(module.model)
    found = {name: value.item() for name, value in trainer.callback_metrics.items()}
    exact = float((weights.abs() <= 0.02).double().mean())
    assert found["near_zero"] == pytest.approx(exact, abs=2e-3)
    assert found["median"] == pytest.approx(float(weights.abs().median()), rel=0.01)
