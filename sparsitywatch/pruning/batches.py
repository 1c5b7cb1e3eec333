"""Batches of any nesting: copied once, moved between devices, hashed."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
from collections import UserDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from sparsitywatch.errors import ProxyError

__all__ = ["digest", "freeze", "halve", "move", "packed", "unpacked"]

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_Leaf = Callable[[Any], Any]


def freeze(batch: Any, where: str) -> Any:
    """A deep copy whose tensors share no memory with anything.

    Args:
        batch: tensors, arrays, numbers and strings in dicts, lists, tuples, dataclasses.
        where: names the batch in an error.

    Raises:
        ProxyError: something else is in it.
    """

    def leaf(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach().clone()
        return value.copy() if isinstance(value, np.ndarray) else value

    return _map(batch, leaf, where)


def move(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on ``device``, in containers of its own."""

    def leaf(value: Any) -> Any:
        return value.to(device) if isinstance(value, torch.Tensor) else value

    return _map(batch, leaf, "batch")


def halve(batch: Any) -> tuple[Any, Any] | None:
    """The first and the last half of a batch's examples; views of its tensors.

    Returns:
        None if it cannot be halved: there is one example, or its tensors and arrays do not
        agree on how many there are. Those without a dimension go into both halves.
    """
    sizes = set()

    def see(value: Any) -> Any:
        if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim > 0:
            sizes.add(value.shape[0])
        return value

    _map(batch, see, "batch")
    if len(sizes) != 1 or max(sizes) < 2:
        return None
    middle = sizes.pop() // 2

    def part(span: slice) -> Any:
        def leaf(value: Any) -> Any:
            has_examples = isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim > 0
            return value[span] if has_examples else value

        return _map(batch, leaf, "batch")

    return part(slice(None, middle)), part(slice(middle, None))


def digest(batches: Iterable[Any]) -> str:
    """Identity of frozen batches, contents and structure: 16 hexadecimal digits."""
    state = hashlib.sha256()

    def leaf(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            array = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            state.update(f"tensor {value.dtype} {tuple(value.shape)}".encode())
            state.update(array.tobytes())
        elif isinstance(value, np.ndarray):
            state.update(f"array {value.dtype} {value.shape}".encode() + value.tobytes())
        else:
            state.update(f"{type(value).__name__} {value!r}".encode())
        return value

    for batch in batches:
        state.update(b"batch")
        _map(batch, leaf, "batch", state.update)
    return state.hexdigest()[:16]


def packed(batches: Iterable[Any]) -> list[list[Any]]:
    """The tensors, arrays, numbers and strings of each batch, in order; weights-only safe."""

    def pack(batch: Any) -> list[Any]:
        leaves: list[Any] = []

        def leaf(value: Any) -> Any:
            leaves.append(_as_bytes(value) if isinstance(value, np.ndarray) else value)
            return value

        _map(batch, leaf, "batch")
        return leaves

    return [pack(batch) for batch in batches]


def unpacked(batches: Iterable[Any], leaves: Sequence[Sequence[Any]]) -> list[Any]:
    """``batches`` with the leaves of others of the same structure, as ``packed`` gave them.

    Raises:
        ProxyError: the structure is another one.
    """

    def unpack(batch: Any, others: Sequence[Any]) -> Any:
        waiting = list(reversed(others))

        def leaf(value: Any) -> Any:
            if not waiting:
                raise ProxyError("Expected batches like those that were kept, got larger ones.")
            other = waiting.pop()
            return _as_array(other) if isinstance(value, np.ndarray) else other

        result = _map(batch, leaf, "batch")
        if waiting:
            raise ProxyError("Expected batches like those that were kept, got smaller ones.")
        return result

    frozen = list(batches)
    if len(frozen) != len(leaves):
        raise ProxyError(f"Expected {len(leaves)} batches as were kept, got {len(frozen)}.")
    return [unpack(batch, others) for batch, others in zip(frozen, leaves, strict=True)]


def _as_bytes(array: np.ndarray) -> torch.Tensor:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=False)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def _as_array(stored: torch.Tensor) -> np.ndarray:
    file = io.BytesIO(stored.numpy().tobytes())
    array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _map(
    value: Any, leaf: _Leaf, where: str, announce: Callable[[bytes], object] = lambda _: None
) -> Any:
    """``value`` rebuilt with ``leaf`` applied to everything that is not a container."""
    if isinstance(value, (torch.Tensor, np.ndarray, *_PLAIN)):
        return leaf(value)

    def inner(part: Any, name: object) -> Any:
        announce(f"{name!r}".encode())
        return _map(part, leaf, f"{where}[{name!r}]", announce)

    announce(type(value).__name__.encode())
    if isinstance(value, UserDict):  # also transformers' BatchEncoding
        result = copy.copy(value)
        result.data = {key: inner(item, key) for key, item in value.data.items()}
        return result
    if isinstance(value, Mapping):
        items = {key: inner(item, key) for key, item in value.items()}
        return items if type(value) is dict else _rebuild(value, items, where)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(inner(getattr(value, f), f) for f in value._fields))
    if type(value) in (list, tuple):
        return type(value)(inner(item, index) for index, item in enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: inner(getattr(value, f.name), f.name) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    raise ProxyError(
        "Expected `batches` of tensors, arrays, numbers and strings in dicts, lists, tuples or "
        f"dataclasses, got {type(value).__name__} at {where}. Convert it before making the Proxy."
    )


def _rebuild(value: Mapping[Any, Any], items: dict[Any, Any], where: str) -> Any:
    try:
        return type(value)(items)  # type: ignore[call-arg]
    except TypeError as error:
        raise ProxyError(
            f"Expected a mapping at {where} that can be made from a dict, got "
            f"{type(value).__name__} ({error}). Pass plain dicts."
        ) from error
