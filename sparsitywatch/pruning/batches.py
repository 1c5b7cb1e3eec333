"""Batches of any nesting: tensors, arrays, numbers and strings in containers."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from sparsitywatch.errors import ProxyError

__all__ = [
    "digest",
    "freeze",
    "halve",
    "joined",
    "move",
    "packed",
    "shape_of",
    "sizes_of",
    "unpacked",
]

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_LEAVES = (torch.Tensor, np.ndarray, *_PLAIN)


def freeze(batch: Any, where: str) -> Any:
    """A deep copy whose tensors share no memory with anything; ``where`` names it in an error."""

    def copied(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach().clone()
        return value.copy() if isinstance(value, np.ndarray) else value

    return _map(batch, copied, where)


def move(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on ``device``, in containers of its own."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, _LEAVES):
        return batch
    parts, rebuild = _parts(batch, "batch")
    return rebuild([move(part, device) for _, part in parts])


def halve(batch: Any) -> tuple[Any, Any] | None:
    """The first and the last half of a batch's examples; views of its tensors.

    None if it cannot be halved: there is one example, or its tensors and arrays do not agree
    on how many there are. Those without a dimension go into both halves.
    """
    sizes = {len(leaf) for leaf in _leaves(batch) if _has_examples(leaf)}
    if len(sizes) != 1 or max(sizes) < 2:
        return None
    middle = sizes.pop() // 2
    first, last = slice(None, middle), slice(middle, None)
    return (
        _map(batch, lambda value: value[first] if _has_examples(value) else value),
        _map(batch, lambda value: value[last] if _has_examples(value) else value),
    )


def sizes_of(batch: Any) -> tuple[int, ...]:
    """How many examples a batch has, as its tensors and arrays say."""
    return tuple(sorted({len(leaf) for leaf in _leaves(batch) if _has_examples(leaf)}))


def shape_of(batch: Any) -> Any:
    """The same for batches that can be joined: they differ in their examples, in nothing else."""
    if _has_examples(batch):
        return type(batch), str(batch.dtype), tuple(batch.shape[1:])
    if isinstance(batch, _LEAVES):
        return digest([batch])
    parts, _ = _parts(batch, "batch")
    return type(batch), tuple((repr(name), shape_of(part)) for name, part in parts)


def joined(rows: Sequence[tuple[Any, np.ndarray]]) -> Any:
    """One batch of some examples of several that are alike: pairs of a batch and indices [N]."""
    pieces = [
        [leaf[index] if _has_examples(leaf) else leaf for leaf in _leaves(batch)]
        for batch, index in rows
    ]
    columns = iter(zip(*pieces, strict=True))

    def of_all(value: Any) -> Any:
        column = next(columns)
        if not _has_examples(value):
            return value
        tensors = isinstance(value, torch.Tensor)
        return torch.cat(column) if tensors else np.concatenate(column)

    return _map(rows[0][0], of_all)


def _has_examples(value: Any) -> bool:
    return isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim > 0


def digest(batches: Iterable[Any]) -> str:
    """Identity of frozen batches, contents and structure: 16 hexadecimal digits."""
    state = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            array = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            state.update(f"tensor {value.dtype} {tuple(value.shape)}".encode())
            state.update(array.tobytes())
        elif isinstance(value, np.ndarray):
            state.update(f"array {value.dtype} {value.shape}".encode() + value.tobytes())
        elif isinstance(value, _PLAIN):
            state.update(f"{type(value).__name__} {value!r}".encode())
        else:
            state.update(type(value).__name__.encode())
            for name, part in _parts(value, "batch")[0]:
                state.update(f"{name!r}".encode())
                add(part)

    for batch in batches:
        state.update(b"batch")
        add(batch)
    return state.hexdigest()[:16]


def packed(batches: Iterable[Any]) -> list[list[Any]]:
    """The tensors, arrays, numbers and strings of each batch, in order; weights-only safe."""
    return [
        [_as_bytes(leaf) if isinstance(leaf, np.ndarray) else leaf for leaf in _leaves(batch)]
        for batch in batches
    ]


def unpacked(batches: Sequence[Any], leaves: Sequence[Sequence[Any]]) -> list[Any]:
    """``batches`` with the leaves of others, as ``packed`` gave them; refuses other structures."""
    if len(batches) != len(leaves):
        raise ProxyError(f"Expected {len(leaves)} batches as were kept, got {len(batches)}.")
    filled = []
    for batch, others in zip(batches, leaves, strict=True):
        more = len(_leaves(batch)) - len(others)
        if more:
            word = "larger" if more > 0 else "smaller"
            raise ProxyError(f"Expected batches like those that were kept, got {word} ones.")
        filled.append(_map(batch, partial(_other, iter(others))))
    return filled


def _other(others: Iterator[Any], value: Any) -> Any:
    """What has been kept in the place of a value, or of one of its type."""
    other = next(others)
    return _as_array(other) if isinstance(value, np.ndarray) else other


def _as_bytes(array: np.ndarray) -> torch.Tensor:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=False)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def _as_array(stored: torch.Tensor) -> np.ndarray:
    file = io.BytesIO(stored.numpy().tobytes())
    array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _leaves(value: Any) -> list[Any]:
    """Everything in it that is not a container, in order."""
    if isinstance(value, _LEAVES):
        return [value]
    return [leaf for _, part in _parts(value, "batch")[0] for leaf in _leaves(part)]


def _map(value: Any, change: Callable[[Any], Any], where: str = "batch") -> Any:
    """``value`` rebuilt with ``change`` applied to everything that is not a container."""
    if isinstance(value, _LEAVES):
        return change(value)
    parts, rebuild = _parts(value, where)
    return rebuild([_map(part, change, f"{where}[{name!r}]") for name, part in parts])


def _parts(value: Any, where: str) -> tuple[list[tuple[Any, Any]], Callable[[list[Any]], Any]]:
    """What a container holds, by name, and what makes one like it of other parts."""
    kind = type(value)
    if kind in (list, tuple):
        return [*enumerate(value)], kind
    if isinstance(value, Mapping):
        return [*_mapping(value).items()], partial(_mapping_like, value, where)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(name, getattr(value, name)) for name in value._fields], lambda new: kind(*new)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return [(name, getattr(value, name)) for name in names], lambda new: dataclasses.replace(
            value, **dict(zip(names, new, strict=True))
        )
    raise ProxyError(
        "Expected `batches` of tensors, arrays, numbers and strings in dicts, lists, tuples or "
        f"dataclasses, got {kind.__name__} at {where}. Convert it before making the Proxy."
    )


def _mapping(value: Mapping[Any, Any]) -> Mapping[Any, Any]:
    return value.data if isinstance(value, UserDict) else value  # transformers' BatchEncoding


def _mapping_like(value: Mapping[Any, Any], where: str, new: list[Any]) -> Any:
    items = dict(zip(_mapping(value), new, strict=True))
    if type(value) is dict:
        return items
    if isinstance(value, UserDict):
        result = copy.copy(value)
        result.data = items
        return result
    try:
        return type(value)(items)  # type: ignore[call-arg]
    except TypeError as error:
        raise ProxyError(
            f"Expected a mapping at {where} that can be made from a dict, got "
            f"{type(value).__name__} ({error}). Pass plain dicts."
        ) from error
