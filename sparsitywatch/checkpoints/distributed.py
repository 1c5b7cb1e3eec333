"""Folders of torch.distributed.checkpoint: a pickled ``.metadata``, tensors in pieces."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from sparsitywatch.checkpoints.base import StoredTensor, TensorTable, as_step, reading, refused
from sparsitywatch.checkpoints.distributed_metadata import Chunk, Described, parse_metadata
from sparsitywatch.checkpoints.parts import Window
from sparsitywatch.checkpoints.storage import Folder, Source
from sparsitywatch.checkpoints.torch_file import MODEL_KEYS, STEP_KEYS
from sparsitywatch.checkpoints.torch_tensors import stored_tensor
from sparsitywatch.checkpoints.torch_zip import read_torch_zip
from sparsitywatch.errors import CheckpointError, IncompleteCheckpointError
from sparsitywatch.weights.layout import Entry
from sparsitywatch.weights.stored import Stretch, in_flat_order

__all__ = ["MAX_METADATA_BYTES", "METADATA", "is_distributed", "open_distributed"]

METADATA = ".metadata"
#: Largest description that is read: millions of pieces.
MAX_METADATA_BYTES = 512 * 2**20

#: What the archive around a piece may add to its bytes.
_ARCHIVE_BYTES = 2**16


def is_distributed(names: Collection[str]) -> bool:
    """Whether a folder with these files is one of torch.distributed.checkpoint."""
    return METADATA in names or any(name.endswith(".distcp") for name in names)


def open_distributed(
    folder: Folder, url: str | None = None, kind: str = "distributed", step: int | None = None
) -> TensorTable:
    """A folder of torch.distributed.checkpoint; needs no process group.

    Args:
        folder: where its ``.metadata`` lies.
        url, kind: of the checkpoint that it is a part of, if it is.
        step: optimizer steps done, where somebody else says so.

    Raises:
        IncompleteCheckpointError: the metadata, which come last, or a file are missing.
        CheckpointError: the metadata are not true.
    """
    files: dict[str, Source] = {}
    stored: dict[str, StoredTensor] = {}
    source = folder.open(METADATA)
    if source.size > MAX_METADATA_BYTES:
        raise refused(source.url, f"expected at most {MAX_METADATA_BYTES} bytes of metadata")
    with reading(source.url):
        tensors, places = parse_metadata(source.url, source.read(0, source.size))
    for name, described in _of_the_model(source.url, tensors).items():
        for chunk in described.chunks:
            if chunk.file not in files:
                files[chunk.file] = folder.open(chunk.file)
            _check_place(files[chunk.file], name, chunk, described.dtype.itemsize)
        stored[name] = ChunkedTensor(described, files)
    sources = [source, *files.values()]
    own_step = partial(_step, folder, places)
    told = own_step if step is None else step
    return TensorTable(url or folder.url, kind, stored, sources, told)


def _of_the_model(url: str, tensors: Mapping[str, Described]) -> dict[str, Described]:
    """The model's tensors by their own names, out of a state dict that holds more."""
    if {described.path[0] for described in tensors.values()} <= {"state", "rng"}:  # Composer's
        inner = [d for d in tensors.values() if d.path[0] == "state" and len(d.path) > 1]
        tensors = {".".join(d.path[1:]): replace(d, path=d.path[1:]) for d in inner}
    heads = {described.path[0] for described in tensors.values() if len(described.path) > 1}
    key = next((key for key in MODEL_KEYS if key in heads), None)
    if key is not None:
        chosen = {
            ".".join(described.path[1:]): described
            for described in tensors.values()
            if described.path[0] == key
        }
    else:
        chosen = {
            name: described
            for name, described in tensors.items()
            if not described.path[0].startswith("optim")
        }
    if not chosen:
        raise CheckpointError(
            f"Cannot read {url}: expected tensors of a model, at the top or under one of "
            f"{', '.join(MODEL_KEYS)}; got {', '.join(list(tensors)[:5]) or 'none'}."
        )
    return chosen


def _check_place(source: Source, name: str, chunk: Chunk, itemsize: int) -> None:
    needed = math.prod(chunk.sizes) * itemsize
    if chunk.start + chunk.length > source.size:
        raise IncompleteCheckpointError(
            f"Cannot read {source.url}, tensor {name[:120]!r}: expected it to end at byte "
            f"{chunk.start + chunk.length}, but the file ends at {source.size}. It may be "
            "half-written, or truncated."
        )
    if not needed <= chunk.length <= 2 * needed + _ARCHIVE_BYTES:
        raise refused(
            source.url,
            f"expected a piece of {needed} bytes and a little around it, got {chunk.length}",
            name,
        )


def _step(folder: Folder, places: Mapping[str, tuple[str, int, int]]) -> int | None:
    """The step that was saved beside the model, read without making any object."""
    for key in STEP_KEYS:
        if key in places:
            file, start, length = places[key]
            source = folder.open(file)
            try:
                if length <= _ARCHIVE_BYTES:
                    value, _ = read_torch_zip(source, start, length)
                    if (step := as_step(value)) is not None:
                        return step
            finally:
                source.close()
    return None


# ------------------------------------------------------------------ tensors


@dataclass(frozen=True)
class ChunkedTensor:
    """A tensor in pieces, each an archive of torch.save inside a larger file."""

    described: Described
    files: Mapping[str, Source]

    @property
    def entry(self) -> Entry:
        """What is known without reading."""
        described = self.described
        return Entry(name=described.name, shape=described.shape, dtype=described.dtype)

    @property
    def position(self) -> tuple[str, int]:
        """Where its first piece lies."""
        chunk = min(self.described.chunks, key=lambda c: (c.file, c.start), default=None)
        return (chunk.file, chunk.start) if chunk else ("", 0)

    def load(self) -> torch.Tensor:
        """Read it; memory: its own size and that of its largest piece."""
        tensor = torch.empty(self.described.shape, dtype=self.described.dtype, device="cpu")
        for chunk in self.described.chunks:
            target = tensor
            for dim, (offset, size) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
                target = target.narrow(dim, offset, size)
            target.copy_(self.piece(chunk).load())
        return tensor

    def stretches(self) -> Sequence[Stretch]:
        """One for each piece."""
        return [_ChunkStretch(self, chunk) for chunk in self.described.chunks]

    def piece(self, chunk: Chunk) -> StoredTensor:
        """The tensor in the archive of a chunk; read as a whole from a remote storage."""
        described, source = self.described, self.files[chunk.file]
        with reading(source.url, described.name):
            if source.is_local:
                tree, regions = read_torch_zip(source, chunk.start, chunk.length)
                piece = stored_tensor(source, described.name, tree, regions)
            else:  # one request in place of some
                window = Window(source, chunk.start, chunk.length)
                tree, regions = read_torch_zip(window)
                piece = stored_tensor(window, described.name, tree, regions)
        if (piece.entry.shape, piece.entry.dtype) != (chunk.sizes, described.dtype):
            raise refused(
                source.url,
                f"expected a piece of shape {chunk.sizes} and {described.dtype}, got "
                f"{piece.entry.shape} and {piece.entry.dtype}",
                described.name,
            )
        return piece


@dataclass(frozen=True)
class _ChunkStretch:
    """The elements of one chunk."""

    tensor: ChunkedTensor
    chunk: Chunk

    @property
    def position(self) -> tuple[str, int]:
        return self.chunk.file, self.chunk.start

    @property
    def num_bytes(self) -> int:
        return math.prod(self.chunk.sizes) * self.tensor.described.dtype.itemsize

    @property
    def offset(self) -> int | None:
        shape, chunk = self.tensor.described.shape, self.chunk
        if chunk.sizes[1:] != shape[1:]:  # cut across rows
            return None
        itemsize = self.tensor.described.dtype.itemsize
        return math.prod(shape[1:]) * itemsize * (chunk.offsets[0] if shape else 0)

    def pieces(self, buffer: memoryview) -> Iterator[memoryview]:
        piece = self.tensor.piece(self.chunk)
        for stretch in in_flat_order(piece.stretches(), piece.load):
            yield from stretch.pieces(buffer)
