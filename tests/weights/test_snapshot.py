"""Copies of weights, the same sample however they are held or stored, and parts of a model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from sparsitywatch.checkpoints import base
from sparsitywatch.checkpoints.base import stored_snapshot
from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.errors import ScopeError
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.sharded import expect_whole_model, modules_of
from sparsitywatch.weights.snapshot import Sampler, Snapshot, WarmCopy
from sparsitywatch.weights.spectrum import MagnitudeSpectrum


def snapshot(model: nn.Module, step: int = 1) -> Snapshot:
    return Snapshot.of(model, Scope.of(model, "matrices"), step)


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_copy_is_the_same_bits_and_stays_when_training_goes_on(dtype) -> None:
    net = model(dtype)
    with torch.no_grad():
        net[0].weight[0, 0] = float("nan")
        net[0].weight[0, 1] = -0.0
    before = {n: t.clone().view(torch.uint8) for n, t in snapshot(net).tensors.items()}
    copy = WarmCopy().take(snapshot(net, step=7))
    with torch.no_grad():
        net[0].weight.zero_()
    assert copy.step == 7
    for name, tensor in copy.tensors.items():
        assert torch.equal(tensor.view(torch.uint8), before[name])


def test_the_memory_stays_until_the_weights_change_their_form() -> None:
    net, warm = model(), WarmCopy()
    first = {n: t.data_ptr() for n, t in warm.take(snapshot(net)).tensors.items()}
    assert {n: t.data_ptr() for n, t in warm.take(snapshot(net)).tensors.items()} == first
    for name, tensor in snapshot(net).tensors.items():
        assert first[name] != tensor.data_ptr()
    copy = warm.take(snapshot(net.to(torch.float64)))
    assert all(t.dtype == torch.float64 for t in copy.tensors.values())


def test_strided_weights_are_copied_by_value() -> None:
    net = model()
    net[0].weight = nn.Parameter(torch.arange(35.0).reshape(5, 7).t())
    copy = WarmCopy().take(snapshot(net))
    assert torch.equal(copy.tensors["0.weight"], net[0].weight)


# ------------------------------------------------------------------ the sample


def made(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(50, 70), nn.Linear(70, 30), nn.Conv1d(3, 5, 7)).to(dtype)
    model[1].weight = nn.Parameter(torch.randn(70, 30).to(dtype).t())  # transposed in memory
    return model


def bits(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {n: t.view(torch.uint8).numpy().tobytes() for n, t in tensors.items()}


@pytest.mark.parametrize("num_samples", [1, 50, 1000, 10**6, None])
def test_a_sample_is_of_the_flat_tensor_rising(num_samples) -> None:
    model = nn.Linear(50, 70)
    model.weight = nn.Parameter(torch.arange(3500.0).reshape(70, 50))
    (found,) = Sampler(num_samples).take(snapshot(model)).values()
    assert len(found) == min(num_samples or 3500, 3500)
    assert torch.equal(found, found.sort().values)
    assert set(found.tolist()) <= set(range(3500))
    if num_samples == 1000:
        assert 800 < len(found.unique()) < 1000  # with replacement
        assert abs(float(found.mean()) - 1750) < 100


def test_a_sample_is_a_copy() -> None:
    model = made()
    for num_samples in (20, None):
        found = Sampler(num_samples).take(snapshot(model))
        before = bits(found)
        with torch.no_grad():
            model[0].weight.zero_()
        assert bits(found) == before
        model = made()


def save_safetensors(model: nn.Module, path: Path) -> Path:
    weights = {n: t.contiguous() for n, t in model.state_dict().items()}
    safetensors.torch.save_file(weights, path / "w.safetensors")
    return path / "w.safetensors"


def save_torch(model: nn.Module, path: Path) -> Path:
    torch.save(model.state_dict(), path / "w.pt")
    return path / "w.pt"


@pytest.mark.filterwarnings("ignore")  # torch's own, that no process group is there
def save_distributed(model: nn.Module, path: Path) -> Path:
    dcp.save({"model": model.state_dict()}, checkpoint_id=str(path / "dcp"), no_dist=True)
    return path / "dcp"


@pytest.mark.filterwarnings("ignore")  # torch's own, that no process group is there
@pytest.mark.parametrize("save", [save_safetensors, save_torch, save_distributed])
@pytest.mark.parametrize("num_samples", [77, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_taken_while_it_is_counted(
    save: Callable[[nn.Module, Path], Path], num_samples, dtype, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(base, "_CHUNK_BYTES", 400)
    model = made(dtype)
    expected = Sampler(num_samples).take(snapshot(model))
    with open_checkpoint(save(model, tmp_path)) as checkpoint:
        stored = stored_snapshot(checkpoint, snapshot(model).scope, 1)
        taken: dict[str, torch.Tensor] = {}
        observed = Sampler(num_samples).observed(stored, taken)
        spectrum = MagnitudeSpectrum.of(observed.tensors, num_threads=2)
        assert bits(taken) == bits(expected)
        assert list(taken) == list(expected)
        assert spectrum == MagnitudeSpectrum.of(snapshot(model).tensors)
        # and what is stored without being observed
        assert bits(Sampler(num_samples).take(stored)) == bits(expected)


def test_the_order_of_a_file_and_other_samplers_change_nothing() -> None:
    taken = snapshot(made())
    turned = Snapshot(1, taken.scope, dict(reversed(taken.tensors.items())))
    first = bits(Sampler(77).take(taken))
    assert bits(Sampler(77, seed=1).take(taken)) != first
    assert bits(Sampler(77).take(turned)) == first


# ------------------------------------------------------------------ is it all here?


class FSDPModule(nn.Module):
    """Known by its name: nothing is imported for it."""


def test_a_model_that_is_all_here() -> None:
    expect_whole_model(modules_of(model()))  # does not raise


@pytest.mark.parametrize(
    ("where", "attributes", "said"),
    [
        ("0.weight", {"ds_id": 3}, "parameter '0.weight' is partitioned over processes"),
        ("0.weight", {"_is_flat_param": True}, "parameter '0.weight' is a flattened shard"),
        ("counts", {"ds_id": 3}, "buffer 'counts' is partitioned over processes"),
        ("0", {"_tp_size": 2}, "module '0' is split over 2 processes (tensor parallel)"),
        ("0", {"out_per_partition": 4, "out": 8}, "holds 4 of 8, out_per_partition"),
    ],
)
def test_a_part_of_a_model_is_named(where: str, attributes: dict[str, object], said: str) -> None:
    net = model()
    net.register_buffer("counts", torch.zeros(2))
    owner, _, name = where.rpartition(".")
    for key, value in attributes.items():
        setattr(getattr(net.get_submodule(owner), name), key, value)
    with pytest.raises(ScopeError, match=f"{re.escape(said)}.*replay <folder> --follow"):
        expect_whole_model(modules_of(net))


def test_a_model_whose_class_shards_it_is_known_by_name() -> None:
    with pytest.raises(ScopeError, match=r"the model is sharded over processes \(FSDP2"):
        expect_whole_model(modules_of(FSDPModule()))
