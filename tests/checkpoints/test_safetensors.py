"""Files of the safetensors library, one and sharded, and headers that lie."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from contracts.reader_contract import ReaderContract, same_bits
from contracts.sound_files import headed
from torch import nn

from sparsitywatch.checkpoints.formats import DTYPES, open_checkpoint
from sparsitywatch.errors import CheckpointError, IncompleteCheckpointError


class TestSafetensors(ReaderContract):
    format = "safetensors"

    def write(self, model: nn.Module, folder: Path) -> Path:
        safetensors.torch.save_model(model, str(folder / "weights.safetensors"))
        return folder / "weights.safetensors"


class TestSharded(ReaderContract):
    format = "huggingface/safetensors"

    def write(self, model: nn.Module, folder: Path) -> Path:
        model.save_pretrained(folder / "sharded", max_shard_size="8KB")
        assert len(list(folder.glob("sharded/*.safetensors"))) > 2
        return folder / "sharded"


def described(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


LIES = {
    "no JSON": (b"}{", b"", "header in JSON"),
    "not UTF-8": (b"\xff\xfe{}", b"", "header in JSON"),
    "a list": ([], b"", "header in JSON"),
    "nested too deep": (b"[" * 200_000, b"", "header in JSON"),
    "endless number": (b'{"w": ' + b"9" * 5000 + b"}", b"", "thousands of digits"),
    "no description": ({"w": 1}, b"", "'w': expected a description, got '1'"),
    "no dtype": ({"w": described("f 33")}, bytes(8), "'w': expected a dtype such as.*'f 33'"),
    "dtype of another kind": ({"w": described(["F32"])}, bytes(8), "'w': expected a dtype"),
    "negative size": ({"w": described(shape=[-2])}, bytes(8), "'w': expected a shape"),
    "size that is true": ({"w": described(shape=[True])}, bytes(8), "'w': expected a shape"),
    "size with a point": ({"w": described(shape=[2.0])}, bytes(8), "'w': expected a shape"),
    "shape that is a word": ({"w": described(shape="2")}, bytes(8), "'w': expected a shape"),
    "absurd size": ({"w": described(shape=[2**62, 2**62])}, bytes(8), "'w': expected 8507"),
    "beyond any size": ({"w": described(shape=[2**64])}, bytes(8), "'w': expected a shape"),
    "falling offsets": ({"w": described(offsets=[8, 0])}, bytes(8), "'w': expected two rising"),
    "one offset": ({"w": described(offsets=[0])}, bytes(8), "'w': expected two rising"),
    "offsets of another size": (
        {"w": described(offsets=[0, 4])}, bytes(8), r"'w': expected 8 bytes for shape \(2,\) of F32"
    ),
    "overlap": (
        {"a": described(), "b": described(offsets=[4, 12])}, bytes(12), "'b': it overlaps"
    ),
    "the same bytes twice": ({"a": described(), "b": described()}, bytes(8), "'b': it overlaps"),
    "hole": ({"a": described(), "b": described(offsets=[12, 20])}, bytes(20), "'b': it leaves a"),
    "more than it says": ({"w": described()}, bytes(9), "to end with its last tensor"),
    "the same name twice": (b'{"w": {}, "v": {}, "w": {}}', b"", "'w' twice"),
    "the same name but for a wrapper": (
        {"w": described(), "_orig_mod.w": described(offsets=[8, 16])}, bytes(16),
        "'w': two tensors have this name",
    ),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused_in_one_line(lie: str, tmp_path: Path) -> None:
    header, data, message = LIES[lie]
    path = headed(tmp_path / "w.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(path)
    assert not isinstance(caught.value, IncompleteCheckpointError)
    assert str(caught.value).startswith(f"Refused {path}")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_a_length_beyond_the_cap_is_refused_and_nothing_is_allocated(tmp_path: Path) -> None:
    path = headed(tmp_path / "w.safetensors", b"{}", length=2**62)
    with pytest.raises(CheckpointError, match="at most 100000000 bytes, got 4611686018427387904"):
        open_checkpoint(path)


def test_short_of_the_header_is_not_yet_complete(tmp_path: Path) -> None:
    tensors = {"a": described(), "b": described(offsets=[8, 16])}
    path = headed(tmp_path / "w.safetensors", tensors, bytes(12))
    with pytest.raises(IncompleteCheckpointError, match=r"'b': expected it to end at byte \d+"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_as_the_library_writes_it(name: str, tmp_path: Path) -> None:
    bits = torch.arange(48, dtype=torch.uint8).remainder(2 if name == "BOOL" else 100)
    tensor = bits.view(DTYPES[name]).reshape(3, -1)
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(
        {"w": tensor, "empty": tensor[:0].clone(), "scalar": tensor[0, 0].clone()}, str(path)
    )
    with open_checkpoint(path) as checkpoint:
        assert same_bits(checkpoint.read("w"), tensor)
        assert checkpoint.read("empty").shape == (0, tensor.shape[1])
        assert same_bits(checkpoint.read("scalar"), tensor[0, 0])


def test_a_shard_of_another_save_is_told(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.ones(2)}, str(tmp_path / "one.safetensors"))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}))
    with pytest.raises(IncompleteCheckpointError, match=r"one\.safetensors, tensor 'b'"):
        open_checkpoint(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    with pytest.raises(IncompleteCheckpointError, match=r"two\.safetensors: expected a file"):
        open_checkpoint(tmp_path)
    index.write_text('{"weight_map": {"a": ')
    with pytest.raises(IncompleteCheckpointError, match="ends too early"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["../one.safetensors", "/etc/passwd", "", "s3://a/b", "a\0b"])
def test_an_index_leads_nowhere_else(name: str, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="names of files inside the folder"):
        open_checkpoint(tmp_path)
