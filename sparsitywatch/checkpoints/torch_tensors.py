"""Tensors as the pickles of ``torch.save`` describe them: which storage, which part of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sparsitywatch.checkpoints.base import StoredTensor, Unreadable, as_sizes, refused
from sparsitywatch.checkpoints.inert_pickle import Call, Global, PersistentId, in_words
from sparsitywatch.checkpoints.storage import ByteSource
from sparsitywatch.checkpoints.strided import StridedTensor, extent
from sparsitywatch.weights.layout import Entry

__all__ = [
    "STORAGE_DTYPES",
    "Region",
    "View",
    "as_dtype",
    "as_shape",
    "is_tensor",
    "stored_tensor",
    "unreadable_tensor",
    "view_of",
]

#: dtypes of the storage classes that torch.save names.
STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "UntypedStorage": torch.uint8,
}
_NAMED_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype)
}
_PLAIN = frozenset({"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"})
_WRAPPED = frozenset({"_rebuild_parameter", "_rebuild_parameter_with_state"})


@dataclass(frozen=True)
class Region:
    """The bytes of one storage: their number, where they begin, their checksum if stated."""

    num_bytes: int
    start: int | Callable[[], int]
    order: int
    crc: int | None = None


@dataclass(frozen=True)
class View:
    """One tensor of a pickle: a part of the storage ``key``."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    storage_itemsize: int


def _function(node: Any) -> Global | None:
    if isinstance(node, Call) and isinstance(node.function, Global):
        return node.function
    return None


def as_shape(node: Any) -> tuple[int, ...] | None:
    """A tuple, list or torch.Size of whole numbers; None if it is something else."""
    if _function(node) == Global("torch", "Size") and len(node.arguments) == 1:
        (node,) = node.arguments
    return as_sizes(node)


def as_dtype(node: Any) -> torch.dtype | None:
    """The dtype that a global such as torch.float32 names; None if it is something else."""
    if isinstance(node, Global) and node.module == "torch":
        return _NAMED_DTYPES.get(node.name)
    return None


def _plain_call(node: Any) -> Call | None:
    """The call that builds a dense tensor, out of what parameters wrap around it."""
    for _ in range(4):
        function = _function(node)
        if function is None or not isinstance(node.arguments, tuple) or not node.arguments:
            return None
        if function.module == "torch._utils" and function.name in _PLAIN:
            return node  # type: ignore[no-any-return]
        if function.module == "torch._utils" and function.name in _WRAPPED:
            node = node.arguments[0]
        elif function == Global("torch._tensor", "_rebuild_from_type_v2"):
            if len(node.arguments) < 3 or not isinstance(node.arguments[2], tuple):
                return None
            node = Call(node.arguments[0], node.arguments[2])
        else:
            return None
    return None


def is_tensor(node: Any) -> bool:
    """Whether a node of a pickle describes a tensor of any kind."""
    function = _function(node)
    return function is not None and (
        (function.module == "torch._utils" and function.name.startswith("_rebuild"))
        or (function.module == "torch._tensor" and function.name.startswith("_rebuild"))
    )


#: What a tensor is that is not dense, by the function that would make it.
_KINDS = (
    (re.compile(r"_rebuild_(sparse|sparse_csr)_tensor$"), "it is sparse"),
    (re.compile(r"_rebuild_qtensor$"), "it is codes of a quantised tensor"),
    (re.compile(r"_rebuild_nested_tensor$"), "it is a nested tensor"),
    (re.compile(r"_rebuild_meta_tensor"), "it is on the meta device, without data"),
)


def unreadable_tensor(name: str, node: Any) -> Unreadable | None:
    """The tensor of a node that is no dense one; None for a dense one, and for nonsense."""
    function = _function(node)
    if function is None or _plain_call(node) is not None:
        return None
    problem = next((why for kind, why in _KINDS if kind.match(function.name)), "")
    if not problem:
        if function.name in _PLAIN | _WRAPPED | {"_rebuild_from_type_v2"}:
            return None
        problem = f"it is a tensor of another kind ({in_words(function)})"
    # where they are told, the shape comes after the storage, or last among the parts
    arguments = node.arguments if isinstance(node.arguments, tuple) else ()
    flat = [part for one in arguments[:8] for part in (one if isinstance(one, tuple) else (one,))]
    shapes = [shape for part in flat[:32] if (shape := as_shape(part)) is not None]
    shape = next((shape for shape in shapes if shape), ())
    what = problem.removeprefix("it is ")
    entry = Entry(name=name, shape=shape, dtype=torch.uint8, stored_as=what, problem=problem)
    return Unreadable(entry)


def view_of(url: str, name: str, node: Any) -> View:
    """What a node says of its tensor.

    Raises:
        CheckpointError: it is no dense tensor, or contradicts itself.
    """
    call = _plain_call(node)
    if call is None or len(call.arguments) < 4:
        raise refused(url, "expected a dense tensor, got another kind", name)
    storage, offset, size, steps = call.arguments[:4]
    shape, stride = as_shape(size), as_shape(steps)
    if not isinstance(storage, PersistentId) or not isinstance(storage.value, tuple):
        raise refused(url, "expected a tensor with a storage, got one without", name)
    if len(storage.value) < 5 or storage.value[0] != "storage":
        raise refused(url, "expected a storage, got something else", name)
    kind, key = storage.value[1], storage.value[2]
    base = STORAGE_DTYPES.get(kind.name) if isinstance(kind, Global) else None
    dtype = base
    if call.function.name == "_rebuild_tensor_v3":
        dtype = as_dtype(call.arguments[6]) if len(call.arguments) > 6 else None
    if base is None or dtype is None:
        raise refused(url, f"expected a dtype that torch has, got {in_words(kind)}", name)
    is_whole = shape is not None and stride is not None and len(shape) == len(stride)
    if not is_whole or type(offset) is not int or offset < 0 or not isinstance(key, str):
        raise refused(url, "its shape, strides and offset contradict each other", name)
    assert shape is not None and stride is not None  # noqa: S101, PT018
    return View(key, dtype, shape, stride, offset, base.itemsize)


def stored_tensor(
    source: ByteSource, name: str, node: Any, regions: Mapping[str, Region]
) -> StoredTensor:
    """The tensor of a node, its place in the file checked against that of its storage."""
    view = view_of(source.url, name, node)
    region = regions.get(view.key)
    if region is None:
        raise refused(source.url, f"its storage {view.key[:40]!r} is not in the file", name)
    reach, itemsize = extent(view.shape, view.stride), view.dtype.itemsize
    end = (view.offset + reach) * itemsize
    if end > region.num_bytes:
        raise refused(
            source.url,
            f"expected shape {view.shape} with strides {view.stride} of {view.dtype} inside its "
            f"storage of {region.num_bytes} bytes, it needs {end}",
            name,
        )
    begin = view.offset * itemsize
    start: int | Callable[[], int]
    if isinstance(region.start, int):
        start = region.start + begin
    else:
        find = region.start
        start = lambda: find() + begin  # noqa: E731
    is_whole = begin == 0 and reach * itemsize == region.num_bytes
    return StridedTensor(
        source, name, view.dtype, view.shape, start, view.stride,
        storage=(source.path, view.key, view.offset, view.shape, view.stride),
        crc=region.crc if is_whole else None,
        order=region.order + begin,
    )  # fmt: skip
