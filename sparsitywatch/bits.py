"""The bits of things: what tensors, numbers and state dicts are compared by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

__all__ = ["Leaf", "detail", "leaf", "nested"]

_PLAIN = (str, bytes, bool, int, float, complex, type(None), torch.dtype, torch.device)


class Leaf(NamedTuple):
    """One thing that is compared: a tensor as its bytes, anything else as a text."""

    text: str
    data: bytes = b""
    itemsize: int = 0


def nested(name: str, value: Any) -> Iterator[tuple[str, Leaf]]:
    """The leaves of dicts, lists and tuples in each other."""
    items: Any = None
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    if items is None:
        yield name, leaf(value)
    elif not value:
        yield name, Leaf(f"empty {type(value).__name__}")
    else:
        for key, item in items:
            yield from nested(f"{name} {key}", item)


def leaf(value: Any) -> Leaf:
    """Bits, not values: NaN equals the same NaN, 0.0 is not -0.0.

    Of an object that is none of torch, numpy or plain python only the type counts.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach()
        value = value.to_local() if hasattr(value, "to_local") else value  # a DTensor's shard
        value = value if value.layout is torch.strided else value.to_dense()
        value = value.resolve_conj().resolve_neg().cpu().contiguous()
        text = f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
        return Leaf(
            text, value.reshape(-1).view(torch.uint8).numpy().tobytes(), value.element_size()
        )
    if isinstance(value, (np.ndarray, np.generic)):
        return Leaf(f"{value.dtype} {list(value.shape)}", value.tobytes(), value.itemsize)
    return Leaf(repr(value) if isinstance(value, _PLAIN) else type(value).__qualname__)


def detail(expected: Leaf | None, got: Leaf | None) -> str:
    """How two leaves of one name differ; None where there is no such leaf."""
    if expected == got:
        return "equal at the end"
    if expected is None or got is None:
        texts = ["nothing" if side is None else side.text for side in (expected, got)]
        return f"expected {texts[0]}, got {texts[1]}"
    if expected.itemsize and expected.text == got.text:  # dtype and shape are the same
        one, other = (
            np.frombuffer(side.data, np.uint8).reshape(-1, side.itemsize)
            for side in (expected, got)
        )
        differs = (one != other).any(axis=1)
        return f"{differs.sum()} of {differs.size} elements differ"
    if len(expected.text) + len(got.text) < 80:
        return f"expected {expected.text}, got {got.text}"
    odd = sorted(set(expected.text.split()) ^ set(got.text.split()))
    return f"only in one of the two: {' '.join(odd)}" if odd else "in another order"
