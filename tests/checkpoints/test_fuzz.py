"""Bytes that nobody meant: they are read, or refused in one line, and nothing else happens."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import tempfile
from pathlib import Path

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint import metadata as md
from torch.distributed.checkpoint.filesystem import _StorageInfo

from sparsitywatch.checkpoints.distributed_metadata import parse_metadata
from sparsitywatch.checkpoints.inert_pickle import read_inert
from sparsitywatch.checkpoints.opening import open_checkpoint
from sparsitywatch.checkpoints.safetensors import DTYPES
from sparsitywatch.errors import CheckpointError

FOLDER = tempfile.TemporaryDirectory()
RELAXED = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}


def read_or_refuse(name: str, data: bytes) -> None:
    """Everything that can be said about any bytes at all."""
    path = Path(FOLDER.name) / name
    path.write_bytes(data)
    refusal = ""
    try:
        with open_checkpoint(path) as checkpoint:
            entries = checkpoint.entries()
            # nothing larger than the file itself is ever made on its word
            assert all(entry.num_bytes <= len(data) for entry in entries)
            for entry in entries:
                tensor = checkpoint.read(entry.name)
                assert (tuple(tensor.shape), tensor.dtype) == (entry.shape, entry.dtype)
    except CheckpointError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert not refusal or str(path) in refusal


def mutations(data: bytes) -> st.SearchStrategy[bytes]:
    """A few bytes changed, cut out or put in, anywhere."""
    place = st.integers(0, len(data) - 1)
    change = st.tuples(place, st.integers(0, 8), st.binary(max_size=9))

    def apply(changes: list[tuple[int, int, bytes]]) -> bytes:
        harmed = data
        for at, length, new in changes:
            harmed = harmed[:at] + new + harmed[at + length :]
        return harmed

    return st.lists(change, min_size=1, max_size=4).map(apply)


SIZES = st.one_of(st.integers(0, 12), st.integers(), st.sampled_from([2**31, 2**63, 2**64, -1]))
DESCRIPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.one_of(st.sampled_from(list(DTYPES)), st.text(max_size=4), st.none()),
        "shape": st.one_of(st.lists(SIZES, max_size=3), st.text(max_size=2), SIZES),
        "data_offsets": st.one_of(st.lists(SIZES, max_size=3), st.none()),
    },
)
HEADERS = st.dictionaries(
    st.text(max_size=3), st.one_of(DESCRIPTIONS, st.none(), st.text(max_size=2)), max_size=4
)


@settings(max_examples=1500, **RELAXED)
@given(HEADERS, st.binary(max_size=40), st.integers(-3, 3))
def test_headers_of_safetensors(header: dict, data: bytes, shift: int) -> None:
    text = json.dumps(header).encode()
    length = max(0, len(text) + shift * (shift % 2))
    read_or_refuse("w.safetensors", length.to_bytes(8, "little") + text + data)


def good_safetensors() -> bytes:
    header = {
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b.weight": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]},
    }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(range(32))


@settings(max_examples=800, **RELAXED)
@given(mutations(good_safetensors()))
def test_bytes_of_safetensors(data: bytes) -> None:
    read_or_refuse("w.safetensors", data)


def saved(**options: bool) -> bytes:
    buffer = io.BytesIO()
    content = {"model": {"a.weight": torch.ones(3, 2), "b": torch.ones(4).half()}, "step": 3}
    torch.save(content, buffer, **options)
    return buffer.getvalue()


@settings(max_examples=800, **RELAXED)
@given(mutations(saved()))
def test_bytes_of_torch_archives(data: bytes) -> None:
    read_or_refuse("w.pt", data)


@settings(max_examples=600, **RELAXED)
@given(mutations(saved(_use_new_zipfile_serialization=False)))
def test_bytes_of_old_torch_files(data: bytes) -> None:
    read_or_refuse("w.pt", data)


def good_metadata() -> bytes:
    tensor = md.TensorStorageMetadata(
        md.TensorProperties(dtype=torch.float32), torch.Size([4, 2]),
        [md.ChunkStorageMetadata(torch.Size([at, 0]), torch.Size([2, 2])) for at in (0, 2)],
    )  # fmt: skip
    storage = {
        md.MetadataIndex("w", torch.Size([at, 0])): _StorageInfo("__0_0.distcp", at * 500, 1000)
        for at in (0, 2)
    }
    return pickle.dumps(md.Metadata({"w": tensor}, {"w": ("model", "w")}, storage))


@settings(max_examples=1500, **RELAXED)
@given(mutations(good_metadata()))
def test_bytes_of_distributed_metadata(data: bytes) -> None:
    try:
        (tensors, _), refusal = parse_metadata("u", data), ""
    except CheckpointError as error:
        tensors, refusal = {}, str(error)
    assert "\n" not in refusal
    for described in tensors.values():
        covered = sum(torch.Size(chunk.sizes).numel() for chunk in described.chunks)
        assert covered == torch.Size(described.shape).numel()


@settings(max_examples=800, **RELAXED)
@given(st.binary(max_size=60))
def test_bytes_that_are_no_pickle(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        read_inert(io.BytesIO(data))
