"""What the ``.metadata`` of torch.distributed.checkpoint says, checked before it is believed."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch

from sparsitywatch.checkpoints.base import refused
from sparsitywatch.checkpoints.inert_pickle import Call, Global, in_words, read_inert
from sparsitywatch.checkpoints.torch_file import MODEL_KEYS
from sparsitywatch.checkpoints.torch_tensors import as_dtype, as_shape
from sparsitywatch.errors import CheckpointError

__all__ = ["Chunk", "Described", "parse_metadata"]

#: State dicts are not nested deeper.
_MAX_PARTS = 64
#: In how many dimensions the pieces of one tensor may be cut: a mesh has two or three.
_MAX_CUTS = 8
_MODULE = "torch.distributed.checkpoint.metadata"


@dataclass(frozen=True)
class Chunk:
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
    chunks: tuple[Chunk, ...]


def parse_metadata(
    url: str, data: bytes
) -> tuple[dict[str, Described], dict[str, tuple[str, int, int]]]:
    """The tensors that a ``.metadata`` describes, and where other values lie: both by name.

    Raises:
        CheckpointError: they are not true. Nothing that they name is imported or called.
    """
    try:
        tree = read_inert(io.BytesIO(data))
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
    offsets = None if offset is None else as_shape(offset)
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
    sizes = as_shape((start, length))
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
    shape, nodes = as_shape(state.get("size")), state.get("chunks")
    if dtype is None or shape is None or not isinstance(nodes, list):
        raise refused(url, "expected dtype, shape and pieces in its metadata", name)
    chunks = []
    for chunk in nodes:
        fields = _fields(url, chunk, "ChunkStorageMetadata")
        offsets, sizes = as_shape(fields.get("offsets")), as_shape(fields.get("sizes"))
        if offsets is None or sizes is None or not len(offsets) == len(sizes) == len(shape):
            raise refused(url, "its pieces and its shape contradict each other", name)
        if (name, offsets) not in places:
            raise refused(url, f"the piece at {offsets} lies in no file", name)
        chunks.append(Chunk(offsets, sizes, *places[name, offsets]))
    _check_cover(url, name, shape, chunks)
    path = paths.get(name) if isinstance(paths, dict) else None
    return Described(name, _parts(path) or _guessed(name), dtype, shape, tuple(chunks))


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


def _check_cover(url: str, name: str, shape: tuple[int, ...], chunks: list[Chunk]) -> None:
    """Every element in exactly one piece: inside, disjoint, and as many as there are."""
    total = math.prod(shape)
    if total >= 2**63:
        raise refused(url, f"expected a shape that memory could hold, got {shape}", name)
    for chunk in chunks:
        ends = [offset + size for offset, size in zip(chunk.offsets, chunk.sizes, strict=True)]
        if any(end > size for end, size in zip(ends, shape, strict=True)):
            raise refused(url, f"the piece at {chunk.offsets} reaches beyond {shape}", name)
    covered = sum(math.prod(chunk.sizes) for chunk in chunks)
    if covered != total:
        raise refused(url, f"expected pieces of {total} elements together, got {covered}", name)
    filled = [chunk for chunk in chunks if 0 not in chunk.sizes]
    cut = [at for at, size in enumerate(shape) if any(c.sizes[at] != size for c in filled)]
    if len(cut) > _MAX_CUTS:
        raise refused(url, f"expected pieces cut in a few dimensions, got {len(cut)}", name)
    if len(filled) > 1 and not _is_tiled([shape[at] for at in cut], cut, filled):
        raise refused(url, "two of its pieces overlap", name)


def _is_tiled(shape: list[int], cut: list[int], chunks: list[Chunk]) -> bool:
    """Whether boxes fill a box, each point once; linear in their number.

    They do if their corners, each with the sign of a mixed difference, cancel to those of the
    whole: what has the same mixed derivative everywhere and is nothing far out is the same.
    """
    begins = np.array([[chunk.offsets[at] for at in cut] for chunk in chunks], dtype=np.int64)
    sizes = np.array([[chunk.sizes[at] for at in cut] for chunk in chunks], dtype=np.int64)
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
