"""Checkpoints as other libraries write them: read, or told what they are and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from contracts.sound_files import UNUSUAL, look_at

from sparsitywatch.checkpoints.formats import open_checkpoint


@pytest.mark.parametrize("name", UNUSUAL)
def test_it_is_read_or_told_what_it_is(name: str, tmp_path: Path) -> None:
    write, expected = UNUSUAL[name]
    came = look_at(write(tmp_path))
    assert expected in came
    assert "\n" not in came


def test_fp8_with_scales_is_refused_in_scope_only_and_without_it_is_the_weight(
    tmp_path: Path,
) -> None:
    path = tmp_path / "w.safetensors"
    codes = torch.ones(8, 8).to(torch.float8_e4m3fn)
    weights = {"l.weight": codes, "l.weight_scale": torch.ones(8), "m.weight": torch.ones(2, 2)}
    safetensors.torch.save_file(weights, str(path))
    assert "tensor 'l.weight': expected weights, but it is stored as float8_e4m3fn" in look_at(path)
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.read("m.weight").sum() == 4
    safetensors.torch.save_file({"l.weight": codes}, str(path))
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.read("l.weight").dtype == torch.float8_e4m3fn
