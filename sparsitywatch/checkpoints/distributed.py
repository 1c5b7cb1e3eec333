"""Folders of torch.distributed.checkpoint: a pickled ``.metadata``, tensors in pieces."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch

from sparsitywatch.checkpoints.base import Contents, Tree
from sparsitywatch.checkpoints.inert_pickle import Call, Global, in_words, read_inert
from sparsitywatch.checkpoints.storage import Location, SourceFile, Window
from sparsitywatch.checkpoints.tensors import (
    ReadingError,
    RefusedError,
    StoredTensor,
    cut_off,
    reading,
)
from sparsitywatch.checkpoints.torch_file import Pickled, as_dtype, as_sizes
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


class ArchivePlace(NamedTuple):
    """The archive that holds a block of a tensor, or something else that was saved."""

    file: str
    start: int
    length: int


@dataclass(frozen=True)
class Piece:
    """A block of a tensor."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    place: ArchivePlace


def read_distributed(place: Location, _: object = None) -> Contents:
    """A folder of torch.distributed.checkpoint; needs no process group."""
    source = place.inside(_METADATA).open()
    with reading(source.url):
        if source.size > _MAX_METADATA_BYTES:
            raise RefusedError(f"expected at most {_MAX_METADATA_BYTES} bytes of metadata")
        tree = _Pieces(place, parse_metadata(source.read(0, source.size)))
    return Contents(place=place, format="distributed", tree=tree)


class _Pieces(Tree):
    """The dictionaries that were saved; their ends lie in files of their own."""

    def __init__(self, place: Location, saved: Saved) -> None:
        super().__init__({})
        self._place = place
        for path, one in saved:
            *before, name = path
            inner = self.root
            for key in before:
                inner = inner.setdefault(key, {}) if isinstance(inner, dict) else None
            if not isinstance(inner, dict) or name in inner:
                raise RefusedError("it describes one of its tensors twice", ".".join(path))
            inner[name] = one

    def stored(self, tensors: Mapping[str, Any]) -> dict[str, StoredTensor]:
        files: dict[str, SourceFile] = {}
        found: dict[str, StoredTensor] = {}
        for name, one in tensors.items():
            for piece in one.pieces:
                file, start, length = piece.place
                if file not in files:
                    files[file] = self._place.inside(file).open()
                size, end = files[file].size, start + length
                needed = math.prod(piece.sizes) * one.entry.dtype.itemsize
                with reading(files[file].url, name):
                    if end > size:
                        raise cut_off(name, end, size)
                    if not needed <= length <= 2 * needed + _ARCHIVE_BYTES:
                        words = f"a piece of {needed} bytes and a little around it"
                        raise RefusedError(f"expected {words}, got {length}")
            places = (piece.place for piece in one.pieces)
            first = min(((files[at.file].url, at.start) for at in places), default=("", 0))
            entry = replace(one.entry, name=name)
            found[name] = replace(one, entry=entry, position=first, files=files)
        return found

    def whole(self, node: Any) -> int | None:
        """As of ``Tree``; a value that is no tensor is a small archive."""
        if not isinstance(node, ArchivePlace):
            return super().whole(node)
        if node.length > _ARCHIVE_BYTES:
            return None
        with closing(self._place.inside(node.file).source()) as source:
            inside = Pickled(Window(source, node.start, node.length))
            return inside.whole(inside.root)


# ------------------------------------------------------------------ tensors


@dataclass(frozen=True, kw_only=True)
class _ChunkedTensor(StoredTensor):
    """A tensor in pieces, each an archive of torch.save inside a larger file."""

    pieces: tuple[Piece, ...]
    files: Mapping[str, SourceFile] = field(default_factory=dict)  # open, once it is to be read

    def load(self) -> torch.Tensor:
        """Read it; memory: its own size and that of its largest piece."""
        tensor = torch.empty(self.entry.shape, dtype=self.entry.dtype, device="cpu")
        for piece in self.pieces:
            target = tensor
            for dim, (offset, size) in enumerate(zip(piece.offsets, piece.sizes, strict=True)):
                target = target.narrow(dim, offset, size)
            target.copy_(self._open(piece).load())
        return tensor

    def chunks(self, buffer: memoryview) -> Generator[memoryview, None, None]:
        """Piece by piece, unless they are cut across rows."""
        if any(piece.sizes[1:] != self.entry.shape[1:] for piece in self.pieces):
            yield from super().chunks(buffer)
            return
        for piece in sorted(self.pieces, key=lambda piece: piece.offsets):
            yield from self._open(piece).chunks(buffer)

    def pieces_at(self, starts: Sequence[int], length: int) -> Iterator[bytes]:
        end = 0
        for piece in sorted(self.pieces, key=lambda piece: piece.offsets):
            begin, end = end, end + math.prod(piece.sizes) * self.entry.dtype.itemsize
            if own := [start - begin for start in starts if begin <= start < end]:
                yield from self._open(piece).pieces_at(own, length)

    def _open(self, piece: Piece) -> StoredTensor:
        """The tensor in the archive of a piece."""
        name, dtype, source = self.entry.name, self.entry.dtype, self.files[piece.place.file]
        with reading(source.url, name):
            inside = Pickled(Window(source, *piece.place[1:]))
            (found,) = inside.stored({name: inside.root}).values()
            own = found.entry
            if own.problem:
                raise RefusedError("expected a dense tensor, got another kind")
            if (own.shape, own.dtype) != (piece.sizes, dtype):
                raise RefusedError(
                    f"expected a piece of shape {piece.sizes} and {dtype}, got {own.shape} and "
                    f"{own.dtype}"
                )
        return found


# ------------------------------------------------------------------ metadata


#: What was saved, each with the keys that lead to it.
Saved = Sequence[tuple[tuple[str, ...], _ChunkedTensor | ArchivePlace]]
#: Where something lies, by its name and, of a tensor, its offsets.
Places = dict[tuple[str, tuple[int, ...] | None], ArchivePlace]


def parse_metadata(data: bytes) -> Saved:
    """What a ``.metadata`` describes, tensors first."""
    try:
        tree = read_inert(data)
    except ValueError as error:
        raise RefusedError(f"its metadata are broken: {error}") from error
    state = _fields(tree, "Metadata")
    described, storage = state.get("state_dict_metadata"), state.get("storage_data")
    if not isinstance(described, dict) or not isinstance(storage, dict):
        raise RefusedError("expected metadata of tensors and of files, got something else")
    planned = state.get("planner_data")
    paths = planned if isinstance(planned, dict) else {}
    places = {_index(key): _place(value) for key, value in storage.items()}
    if len(places) != len(storage):
        raise RefusedError("it places one of its pieces twice")
    saved: list[tuple[tuple[str, ...], _ChunkedTensor | ArchivePlace]] = []
    for name, node in described.items():
        if not isinstance(name, str):
            raise RefusedError(f"expected names, got {in_words(name)!r}")
        if isinstance(node, Call) and node.function == Global(_MODULE, "TensorStorageMetadata"):
            saved.append((_path(name, paths), _described(name, node, places)))
    others = [(name, place) for (name, offsets), place in places.items() if offsets is None]
    return saved + [(_path(name, paths), place) for name, place in others]


def _fields(node: Any, kind: str, module: str = _MODULE) -> dict[str, Any]:
    if not isinstance(node, Call) or node.function != Global(module, kind):
        raise RefusedError(f"expected {kind} in its metadata, got {in_words(node)}")
    if not isinstance(node.state, dict):
        raise RefusedError(f"expected the fields of {kind} in its metadata, got none")
    return node.state


def _index(node: Any) -> tuple[str, tuple[int, ...] | None]:
    state = _fields(node, "MetadataIndex")
    name, offset = state.get("fqn"), state.get("offset")
    offsets = None if offset is None else as_sizes(offset)
    if not isinstance(name, str) or (offset is not None and offsets is None):
        raise RefusedError("expected a name and offsets in its metadata, got something else")
    return name, offsets


def _place(node: Any) -> ArchivePlace:
    state = _fields(node, "_StorageInfo", "torch.distributed.checkpoint.filesystem")
    file, start, length = (state.get(k) for k in ("relative_path", "offset", "length"))
    if state.get("transform_descriptors"):
        raise ReadingError(
            "expected tensors as they are, got some that are transformed "
            f"({in_words(state['transform_descriptors'])}). Save without extensions."
        )
    sizes = as_sizes((start, length))
    if not isinstance(file, str) or sizes is None:
        raise RefusedError("expected a file and a range in its metadata, got something else")
    return ArchivePlace(file, *sizes)


def _described(name: str, node: Call, places: Places) -> _ChunkedTensor:
    state = _fields(node, "TensorStorageMetadata")
    properties = state.get("properties")
    values = properties.state if isinstance(properties, Call) else None
    dtype = as_dtype(values[0]) if isinstance(values, tuple) and len(values) == 5 else None
    shape, nodes = as_sizes(state.get("size")), state.get("chunks")
    if dtype is None or shape is None or not isinstance(nodes, list):
        raise RefusedError("expected dtype, shape and pieces in its metadata", name)
    pieces = []
    for piece in nodes:
        fields = _fields(piece, "ChunkStorageMetadata")
        offsets, sizes = as_sizes(fields.get("offsets")), as_sizes(fields.get("sizes"))
        if offsets is None or sizes is None or not len(offsets) == len(sizes) == len(shape):
            raise RefusedError("its pieces and its shape contradict each other", name)
        if (name, offsets) not in places:
            raise RefusedError(f"the piece at {offsets} lies in no file", name)
        pieces.append(Piece(offsets, sizes, places[name, offsets]))
    _check_cover(name, shape, pieces)
    return _ChunkedTensor(entry=Entry(name=name, shape=shape, dtype=dtype), pieces=tuple(pieces))


def _path(name: str, paths: Mapping[Any, Any]) -> tuple[str, ...]:
    """The keys that lead to what was saved under a name; the name if they are no such keys."""
    path = paths.get(name)
    if not isinstance(path, tuple) or not path or len(path) > _MAX_PARTS:
        return (name,)
    is_path = all(isinstance(part, str) or (type(part) is int and part < 2**63) for part in path)
    if is_path and not ".".join(map(str, path)).endswith(name):
        raise RefusedError("the keys that lead to it are others", name)
    return tuple(map(str, path)) if is_path else (name,)


def _check_cover(name: str, shape: tuple[int, ...], pieces: list[Piece]) -> None:
    """Every element in exactly one piece: inside, disjoint, and as many as there are."""
    total = math.prod(shape)
    if total >= 2**63:
        raise RefusedError(f"expected a shape that memory could hold, got {shape}", name)
    for piece in pieces:
        ends = [offset + size for offset, size in zip(piece.offsets, piece.sizes, strict=True)]
        if any(end > size for end, size in zip(ends, shape, strict=True)):
            raise RefusedError(f"the piece at {piece.offsets} reaches beyond {shape}", name)
    covered = sum(math.prod(piece.sizes) for piece in pieces)
    if covered != total:
        raise RefusedError(f"expected pieces of {total} elements together, got {covered}", name)
    filled = [piece for piece in pieces if 0 not in piece.sizes]
    cut = [at for at, size in enumerate(shape) if any(c.sizes[at] != size for c in filled)]
    if len(cut) > _MAX_CUTS:
        raise RefusedError(f"expected pieces cut in a few dimensions, got {len(cut)}", name)
    if len(filled) > 1 and not _is_tiled([shape[at] for at in cut], cut, filled):
        raise RefusedError("two of its pieces overlap", name)


def _is_tiled(shape: list[int], cut: list[int], pieces: list[Piece]) -> bool:
    """Whether boxes fill a box, each point once."""
    # they do if their corners, each with the sign of a mixed difference, cancel to those of the
    # whole: what has the same mixed derivative everywhere and is nothing far out is the same
    begins = np.array([[piece.offsets[at] for at in cut] for piece in pieces], dtype=np.int64)
    sizes = np.array([[piece.sizes[at] for at in cut] for piece in pieces], dtype=np.int64)
    whole = np.zeros((1, len(cut)), np.int64), np.array([shape], np.int64)
    corners, signs = [], []
    for origin, size, sign in ((begins, sizes, 1), (*whole, -1)):
        for which in product((0, 1), repeat=len(cut)):
            corners.append(origin + size * np.array(which, np.int64))
            signs.append(np.full(len(origin), sign * (-1) ** sum(which)))
    _, places = np.unique(np.concatenate(corners), axis=0, return_inverse=True)
    return not np.bincount(places.ravel(), np.concatenate(signs)).any()
