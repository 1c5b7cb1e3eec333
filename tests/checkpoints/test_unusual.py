"""Checkpoints as other libraries write them: read, or told what they are and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from faulting.sound import UNUSUAL, look_at

from sparsitywatch.checkpoints.opening import open_checkpoint


@pytest.mark.parametrize("name", UNUSUAL)
def test_it_is_read_or_told_what_it_is(name: str, tmp_path: Path) -> None:
    write, expected = UNUSUAL[name]
    came = look_at(write(tmp_path))
    assert expected in came
    assert "\n" not in came


@pytest.mark.parametrize(
    ("shape", "scales", "end"),
    [
        ((300, 260), (3, 3), "_scale_inv"),  # DeepSeek's blocks, the last ones cut
        ((4, 6), (4, 1), "_scale"),
        ((4, 6), (4,), "_scale"),
        ((4, 6), (), "_scale"),
        ((4, 6), (1,), "_scale"),
        ((2, 256, 128), (2, 2, 1), "_scale_inv"),  # experts in one tensor
    ],
)
def test_fp8_with_scales_are_the_weights_that_they_stand_for(
    shape: tuple[int, ...], scales: tuple[int, ...], end: str, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randn(shape, generator=generator).to(torch.float8_e4m3fn)
    scale = torch.rand(scales, generator=generator)
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"l.weight": codes, f"l.weight{end}": scale}, str(path))
    expected = codes.float()
    per_scale = scale.reshape(scales + (1,) * (len(shape) - len(scales)))
    for index in torch.cartesian_prod(*map(torch.arange, shape)).tolist()[
        :: max(1, codes.numel() // 500)
    ]:
        place = [i // (128 if n > 1 and n != s else 1) if n > 1 else 0
                 for i, n, s in zip(index, per_scale.shape, shape, strict=True)]  # fmt: skip
        expected[tuple(index)] *= per_scale[tuple(place)]
    with open_checkpoint(path) as checkpoint:
        (entry,) = checkpoint.entries()
        assert (entry.name, entry.dtype, entry.shape) == ("l.weight", torch.float32, shape)
        read = checkpoint.read("l.weight")
    checked = torch.cartesian_prod(*map(torch.arange, shape))[:: max(1, codes.numel() // 500)]
    for index in checked.tolist():
        assert read[tuple(index)] == expected[tuple(index)]


def test_scales_that_nobody_can_apply_are_refused_in_scope_only(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    codes = torch.ones(8, 8).to(torch.float8_e4m3fn)
    weights = {"l.weight": codes, "l.weight_scale": torch.ones(3, 5), "m.weight": torch.ones(2, 2)}
    safetensors.torch.save_file(weights, str(path))
    assert "weight_scale cannot be applied to them" in look_at(path)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.read("m.weight").sum() == 4


def test_an_expanded_tensor_is_what_torch_loads(tmp_path: Path) -> None:
    expanded = torch.arange(8.0).expand(4, 8)
    torch.save({"w": expanded, "v": torch.ones(2, 2)}, tmp_path / "w.pt")
    with open_checkpoint(tmp_path / "w.pt") as checkpoint:
        assert torch.equal(checkpoint.read("w"), expanded)
