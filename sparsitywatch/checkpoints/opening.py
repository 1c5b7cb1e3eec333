"""From a URL to the reader of what lies there."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from typing import Any

from sparsitywatch.checkpoints.base import TensorTable, reading
from sparsitywatch.checkpoints.deepspeed import is_deepspeed, open_deepspeed
from sparsitywatch.checkpoints.distributed import is_distributed, open_distributed
from sparsitywatch.checkpoints.huggingface import (
    FSDP_FOLDER,
    is_adapter,
    is_begun,
    not_a_model,
    open_huggingface,
    weights_in,
)
from sparsitywatch.checkpoints.nanotron import is_nanotron, open_nanotron
from sparsitywatch.checkpoints.quantised import as_weights
from sparsitywatch.checkpoints.safetensors import read_safetensors
from sparsitywatch.checkpoints.storage import Folder, Source, filesystem, url_at
from sparsitywatch.checkpoints.torch_file import TORCH_STARTS, open_torch
from sparsitywatch.errors import CheckpointError, IncompleteCheckpointError

__all__ = ["foreign", "format_of", "open_checkpoint"]

_START_BYTES = 14
_SHARDED = ".index.json"


def format_of(names: Collection[str]) -> str | None:
    """The format of a folder with these files and folders; None if it is no checkpoint."""
    if is_distributed(names):
        return "distributed"
    # a Trainer under DeepSpeed writes whole weights beside the partitions where it can
    if weights_in(names) or FSDP_FOLDER in names:
        return "huggingface"
    if is_nanotron(names):
        return "nanotron"
    if is_deepspeed(names):
        return "deepspeed"
    return "huggingface" if is_begun(names) else None


#: What other libraries write, by the ends of names; none of it is read.
_FOREIGN = (
    ("GGUF, as llama.cpp takes it", (".gguf",)),
    ("flax or JAX, as msgpack", (".msgpack",)),
    ("orbax (JAX)", ("_CHECKPOINT_METADATA", "manifest.ocdbt", "orbax.checkpoint")),
    ("TensorFlow or Keras", (".h5", ".keras", "saved_model.pb", ".ckpt.index", ".ckpt.meta")),
    ("ONNX", (".onnx",)),
    ("numpy or MLX", (".npz", ".npy")),
    ("NeMo, an archive", (".nemo",)),
)


def foreign(names: Iterable[str]) -> str:
    """What files of other libraries there are, in a sentence; empty if there are none."""
    names = list(names)
    for kind, ends in _FOREIGN:
        one = next((name for name in names if name.endswith(ends)), None)
        if one is not None:
            return (
                f"There is {one[-80:]!r}, a format of {kind}, which is not read. Load it with the "
                "library that wrote it, and save the weights with torch.save or as safetensors."
            )
    return ""


def open_checkpoint(
    url: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None
) -> TensorTable:
    """Open one checkpoint, whatever its format; reads descriptions, no weights.

    Args:
        url: a file or a folder, local or on any storage that fsspec knows.
        storage_options: passed on to fsspec, such as credentials and an endpoint.

    Returns:
        The open checkpoint, a context manager.

    Raises:
        IncompleteCheckpointError: something is missing or cut off; it may still be written.
        CheckpointError: it cannot be read, or is refused. One line with file and cause.
    """
    fs, path = filesystem(url, storage_options)
    full = url_at(os.fspath(url), fs, path, path)
    folder = Folder(fs, path, full)
    with ExitStack() as unless_open, reading(folder.url):
        if folder.is_folder():
            unless_open.callback(folder.close)
            checkpoint = _open_folder(folder)
        elif path.endswith(_SHARDED):
            parent, _, name = path.rpartition("/")
            beside = Folder(fs, parent, url_at(full, fs, path, parent))
            unless_open.callback(beside.close)
            checkpoint = open_huggingface(beside, [name])
        else:
            source = Source(fs, path, full)
            unless_open.callback(source.close)
            checkpoint = _open_file(source)
        if is_adapter([entry.name for entry in checkpoint.entries()]):
            raise not_a_model(checkpoint.url)
        checkpoint.resolve(as_weights)
        unless_open.pop_all()
        return checkpoint


def _open_folder(folder: Folder) -> TensorTable:
    names = folder.names()
    kind = format_of(names)
    if kind == "distributed":
        return open_distributed(folder)
    if kind == "huggingface":
        return open_huggingface(folder, names)
    if kind == "deepspeed":
        return open_deepspeed(folder, names)
    if kind == "nanotron":
        return open_nanotron(folder)
    if told := foreign(names):
        raise CheckpointError(f"Cannot read {folder.url}: expected a checkpoint. {told}")
    raise IncompleteCheckpointError(
        f"Cannot read {folder.url}: expected a checkpoint, got a folder with "
        f"{', '.join(names[:8]) or 'nothing'} in it. Name the file that holds the weights."
    )


def _open_file(source: Source) -> TensorTable:
    if source.size == 0:
        raise IncompleteCheckpointError(
            f"Cannot read {source.url}: expected weights, got an empty file. It may be "
            "half-written."
        )
    start = source.read(0, min(_START_BYTES, source.size))
    if start.startswith(TORCH_STARTS):
        return open_torch(source)
    if source.path.endswith(".safetensors") or start[8:9] == b"{":
        return TensorTable(source.url, "safetensors", read_safetensors(source), [source])
    if told := foreign([source.path]):
        raise CheckpointError(f"Cannot read {source.url}: expected a checkpoint. {told}")
    raise CheckpointError(
        f"Cannot read {source.url}: expected a file of safetensors or of torch.save, got one "
        f"that begins with {start!r}."
    )
