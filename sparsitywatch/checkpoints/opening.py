"""From a URL to the reader of what lies there."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from typing import Any

from sparsitywatch.checkpoints.base import TensorTable, reading
from sparsitywatch.checkpoints.deepspeed import is_deepspeed, not_supported
from sparsitywatch.checkpoints.distributed import is_distributed, open_distributed
from sparsitywatch.checkpoints.huggingface import TRAINER_STATE, open_huggingface, weights_in
from sparsitywatch.checkpoints.safetensors import read_safetensors
from sparsitywatch.checkpoints.storage import Folder, Source, filesystem, url_at
from sparsitywatch.checkpoints.torch_file import TORCH_STARTS, open_torch
from sparsitywatch.errors import CheckpointError, IncompleteCheckpointError

__all__ = ["format_of", "open_checkpoint"]

_START_BYTES = 14
_SHARDED = ".index.json"
_SHARD = re.compile(r"-\d+-of-\d+\.(?:safetensors|bin)$")


def format_of(names: Collection[str]) -> str | None:
    """The format of a folder with these files and folders; None if it is no checkpoint."""
    if is_distributed(names):
        return "distributed"
    # a Trainer under DeepSpeed writes whole weights beside the partitions where it can
    if weights_in(names):
        return "huggingface"
    if is_deepspeed(names):
        return "deepspeed"
    # shards come before the index that says which there are
    is_begun = TRAINER_STATE in names or any(_SHARD.search(name) for name in names)
    return "huggingface" if is_begun else None


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
        raise not_supported(folder.url)
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
    raise CheckpointError(
        f"Cannot read {source.url}: expected a file of safetensors or of torch.save, got one "
        f"that begins with {start!r}."
    )
