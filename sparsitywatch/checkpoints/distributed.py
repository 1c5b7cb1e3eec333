"""Folders of torch.distributed.checkpoint: a pickled ``.metadata``, tensors in pieces."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch

from sparsitywatch.checkpoints.base import (
    Checkpoint,
    Signature,
    StoredTensor,
    as_step,
    cut_off,
    reading,
    refused,
)
from sparsitywatch.checkpoints.inert_pickle import Call, Global, in_words, read_inert
from sparsitywatch.checkpoints.storage import Location, Source, Window
from sparsitywatch.checkpoints.torch_file import (
    MODEL_KEYS,
    STEP_KEYS,
    as_dtype,
    as_sizes,
    read_torch_zip,
    stored_tensor,
)
from sparsitywatch.errors import CheckpointError
from sparsitywatch.weights.layout import Entry

_METADATA = ".metadata"
#: Largest description that is read: millions of pieces.
_MAX_METADATA_BYTES = 512 * 2**20

#: What the archive around a piece may add to its bytes.
_ARCHIVE_BYTES = 2**16
#: State dicts are not nested deeper.
_MAX_PARTS = 64
#: In how many dimensions the pieces of one tensor may be cut: a mesh has two or three.
_MAX_CUTS = 8
_MODULE = "torch.distributed.checkpoint.metadata"


@dataclass(frozen=True)
class Piece:
    """A block of a tensor, and the archive that holds it."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


@dataclass(frozen=True)
class Described:
    """A tensor as the metadata describe it."""

    name: str
    path: tuple[str, ...]
    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


def is_distributed(seen: Signature) -> bool:
    """Whether a folder is one of torch.distributed.checkpoint."""
    return _METADATA in seen.names or any(name.endswith(".distcp") for name in seen.names)


def open_distributed(place: Location, _: Signature) -> Checkpoint:
    """A folder of torch.distributed.checkpoint; needs no process group."""
    stored, find_step = read_distributed(place)
    return Checkpoint(place, "distributed", stored, find_step)


def read_distributed(
    place: Location,
) -> tuple[dict[str, StoredTensor], Callable[[], int | None]]:
    """The tensors of the model by name, and what looks the step up."""
    source = place.inside(_METADATA).open()
    if source.size > _MAX_METADATA_BYTES:
        raise refused(source.url, f"expected at most {_MAX_METADATA_BYTES} bytes of metadata")
    with reading(source.url):
        tensors, places = parse_metadata(source.url, source.read(0, source.size))
    files: dict[str, Source] = {}
    stored: dict[str, StoredTensor] = {}
    for name, described in _of_the_model(source.url, tensors).items():
        for piece in described.pieces:
            if piece.file not in files:
                files[piece.file] = place.inside(piece.file).open()
            _check_place(files[piece.file], name, piece, described.dtype.itemsize)
        first = min(((piece.file, piece.start) for piece in described.pieces), default=("", 0))
        entry = Entry(name=described.name, shape=described.shape, dtype=described.dtype)
        stored[name] = _ChunkedTensor(
            entry=entry, position=first, pieces=described.pieces, files=files
        )
    return stored, partial(_step, place, places)


def _of_the_model(url: str, tensors: Mapping[str, Described]) -> dict[str, Described]:
    """The model's tensors by their own names, out of a state dict that holds more."""
    if {described.path[0] for described in tensors.values()} <= {"state", "rng"}:  # Composer's
        inner = [d for d in tensors.values() if d.path[0] == "state" and len(d.path) > 1]
        tensors = {".".join(d.path[1:]): replace(d, path=d.path[1:]) for d in inner}
    heads = {described.path[0] for described in tensors.values() if len(described.path) > 1}
    key = next((key for key in MODEL_KEYS if key in heads), None)
    if key is not None:
        chosen = {".".join(d.path[1:]): d for d in tensors.values() if d.path[0] == key}
    else:
        chosen = {n: d for n, d in tensors.items() if not d.path[0].startswith("optim")}
    if not chosen:
        raise CheckpointError(
            f"Cannot read {url}: expected tensors of a model, at the top or under one of "
            f"{', '.join(MODEL_KEYS)}; got {', '.join(list(tensors)[:5]) or 'none'}."
        )
    return chosen


def _check_place(source: Source, name: str, piece: Piece, itemsize: int) -> None:
    needed = math.prod(piece.sizes) * itemsize
    if piece.start + piece.length > source.size:
        what = f", tensor {name[:120]!r}: expected it"
        raise cut_off(source, what, piece.start + piece.length)
    if not needed <= piece.length <= 2 * needed + _ARCHIVE_BYTES:
        raise refused(
            source.url,
            f"expected a piece of {needed} bytes and a little around it, got {piece.length}",
            name,
        )


def _step(folder: Location, places: Mapping[str, tuple[str, int, int]]) -> int | None:
    """The step that was saved beside the model, read without making any object."""
    for file, start, length in (places[key] for key in STEP_KEYS if key in places):
        with closing(folder.inside(file).source()) as source:
            if length <= _ARCHIVE_BYTES:
                step = as_step(read_torch_zip(Window(source, start, length))[0])
                if step is not None:
                    return step
    return None


# ------------------------------------------------------------------ tensors


@dataclass(frozen=True, kw_only=True)
class _ChunkedTensor(StoredTensor):
    """A tensor in pieces, each an archive of torch.save inside a larger file."""

    pieces: tuple[Piece, ...]
    files: Mapping[str, Source]

    def load(self) -> torch.Tensor:
        """Read it; memory: its own size and that of its largest piece."""
        tensor = torch.empty(self.entry.shape, dtype=self.entry.dtype, device="cpu")
        for piece in self.pieces:
            target = tensor
            for dim, (offset, size) in enumerate(zip(piece.offsets, piece.sizes, strict=True)):
                target = target.narrow(dim, offset, size)
            target.copy_(self._open(piece).load())
        return tensor

    def parts(self) -> Iterable[StoredTensor]:
        """Its pieces, unless they are cut across rows."""
        if any(piece.sizes[1:] != self.entry.shape[1:] for piece in self.pieces):
            return (self,)
        return map(self._open, sorted(self.pieces, key=lambda piece: piece.offsets))

    def _open(self, piece: Piece) -> StoredTensor:
        """The tensor in the archive of a piece."""
        name, dtype, source = self.entry.name, self.entry.dtype, self.files[piece.file]
        with reading(source.url, name):
            part = Window(source, piece.start, piece.length)
            tree, regions = read_torch_zip(part)
            found = stored_tensor(part, name, tree, regions)
        own = found.entry
        if own.problem:
            raise refused(source.url, "expected a dense tensor, got another kind", name)
        if (own.shape, own.dtype) != (piece.sizes, dtype):
            raise refused(
                source.url,
                f"expected a piece of shape {piece.sizes} and {dtype}, got {own.shape} and "
                f"{own.dtype}",
                name,
            )
        return found


# ------------------------------------------------------------------ metadata


def parse_metadata(
    url: str, data: bytes
) -> tuple[dict[str, Described], dict[str, tuple[str, int, int]]]:
    """The tensors that a ``.metadata`` describes, and where other values lie: both by name."""
    try:
        tree = read_inert(data)
    except ValueError as error:
        raise refused(url, f"its metadata are broken: {error}") from error
    state = _fields(url, tree, "Metadata")
    described, storage = state.get("state_dict_metadata"), state.get("storage_data")
    if not isinstance(described, dict) or not isinstance(storage, dict):
        raise refused(url, "expected metadata of tensors and of files, got something else")
    paths = state.get("planner_data")
    places = {_index(url, key): _place(url, value) for key, value in storage.items()}
    if len(places) != len(storage):
        raise refused(url, "it places one of its pieces twice")
    tensors = {}
    for name, node in described.items():
        if not isinstance(name, str):
            raise refused(url, f"expected names, got {in_words(name)!r}")
        if isinstance(node, Call) and node.function == Global(_MODULE, "TensorStorageMetadata"):
            tensors[name] = _described(url, name, node, paths, places)
    others = {name: place for (name, offsets), place in places.items() if offsets is None}
    return tensors, others


def _fields(url: str, node: Any, kind: str, module: str = _MODULE) -> dict[str, Any]:
    if not isinstance(node, Call) or node.function != Global(module, kind):
        raise refused(url, f"expected {kind} in its metadata, got {in_words(node)}")
    if not isinstance(node.state, dict):
        raise refused(url, f"expected the fields of {kind} in its metadata, got none")
    return node.state


def _index(url: str, node: Any) -> tuple[str, tuple[int, ...] | None]:
    state = _fields(url, node, "MetadataIndex")
    name, offset = state.get("fqn"), state.get("offset")
    offsets = None if offset is None else as_sizes(offset)
    if not isinstance(name, str) or (offset is not None and offsets is None):
        raise refused(url, "expected a name and offsets in its metadata, got something else")
    return name, offsets


def _place(url: str, node: Any) -> tuple[str, int, int]:
    state = _fields(url, node, "_StorageInfo", "torch.distributed.checkpoint.filesystem")
    file, start, length = (state.get(k) for k in ("relative_path", "offset", "length"))
    if state.get("transform_descriptors"):
        raise CheckpointError(
            f"Cannot read {url}: expected tensors as they are, got some that are transformed "
            f"({in_words(state['transform_descriptors'])}). Save without extensions."
        )
    sizes = as_sizes((start, length))
    if not isinstance(file, str) or sizes is None:
        raise refused(url, "expected a file and a range in its metadata, got something else")
    return file, sizes[0], sizes[1]


def _described(
    url: str,
    name: str,
    node: Call,
    paths: Any,
    places: Mapping[tuple[str, tuple[int, ...] | None], tuple[str, int, int]],
) -> Described:
    state = _fields(url, node, "TensorStorageMetadata")
    properties = state.get("properties")
    values = properties.state if isinstance(properties, Call) else None
    dtype = as_dtype(values[0]) if isinstance(values, tuple) and values else None
    shape, nodes = as_sizes(state.get("size")), state.get("chunks")
    if dtype is None or shape is None or not isinstance(nodes, list):
        raise refused(url, "expected dtype, shape and pieces in its metadata", name)
    pieces = []
    for piece in nodes:
        fields = _fields(url, piece, "ChunkStorageMetadata")
        offsets, sizes = as_sizes(fields.get("offsets")), as_sizes(fields.get("sizes"))
        if offsets is None or sizes is None or not len(offsets) == len(sizes) == len(shape):
            raise refused(url, "its pieces and its shape contradict each other", name)
        if (name, offsets) not in places:
            raise refused(url, f"the piece at {offsets} lies in no file", name)
        pieces.append(Piece(offsets, sizes, *places[name, offsets]))
    _check_cover(url, name, shape, pieces)
    path = paths.get(name) if isinstance(paths, dict) else None
    return Described(name, _parts(path) or _guessed(name), dtype, shape, tuple(pieces))


def _parts(path: Any) -> tuple[str, ...]:
    """The keys that lead to a tensor in the state dict; nothing if they are no such keys."""
    if not isinstance(path, tuple) or len(path) > _MAX_PARTS:
        return ()
    is_path = all(isinstance(part, str) or (type(part) is int and part < 2**63) for part in path)
    return tuple(map(str, path)) if is_path else ()


def _guessed(name: str) -> tuple[str, ...]:
    head, _, rest = name.partition(".")
    is_known = head in MODEL_KEYS or head.startswith("optim")
    return (head, rest) if is_known and rest else (name,)


def _check_cover(url: str, name: str, shape: tuple[int, ...], pieces: list[Piece]) -> None:
    """Every element in exactly one piece: inside, disjoint, and as many as there are."""
    total = math.prod(shape)
    if total >= 2**63:
        raise refused(url, f"expected a shape that memory could hold, got {shape}", name)
    for piece in pieces:
        ends = [offset + size for offset, size in zip(piece.offsets, piece.sizes, strict=True)]
        if any(end > size for end, size in zip(ends, shape, strict=True)):
            raise refused(url, f"the piece at {piece.offsets} reaches beyond {shape}", name)
    covered = sum(math.prod(piece.sizes) for piece in pieces)
    if covered != total:
        raise refused(url, f"expected pieces of {total} elements together, got {covered}", name)
    filled = [piece for piece in pieces if 0 not in piece.sizes]
    cut = [at for at, size in enumerate(shape) if any(c.sizes[at] != size for c in filled)]
    if len(cut) > _MAX_CUTS:
        raise refused(url, f"expected pieces cut in a few dimensions, got {len(cut)}", name)
    if len(filled) > 1 and not _is_tiled([shape[at] for at in cut], cut, filled):
        raise refused(url, "two of its pieces overlap", name)


def _is_tiled(shape: list[int], cut: list[int], pieces: list[Piece]) -> bool:
    """Whether boxes fill a box, each point once; linear in their number.

    They do if their corners, each with the sign of a mixed difference, cancel to those of the
    whole: what has the same mixed derivative everywhere and is nothing far out is the same.
    """
    begins = np.array([[piece.offsets[at] for at in cut] for piece in pieces], dtype=np.int64)
    sizes = np.array([[piece.sizes[at] for at in cut] for piece in pieces], dtype=np.int64)
    whole = np.zeros((1, len(cut)), np.int64), np.array([shape], np.int64)
    corners, signs = [], []
    for origin, size, sign in ((begins, sizes, 1), (*whole, -1)):
        for which in product((0, 1), repeat=len(cut)):
            corners.append(origin + size * np.array(which, np.int64))
            signs.append(np.full(len(origin), sign * (-1) ** sum(which)))
    points, weights = np.concatenate(corners), np.concatenate(signs)
    if not cut:
        return not bool(weights.sum())
    order = np.lexsort(points.T)
    points, weights = points[order], weights[order]
    is_first = np.concatenate([[True], (points[1:] != points[:-1]).any(axis=1)])
    return not bool(np.add.reduceat(weights, np.flatnonzero(is_first)).any())
