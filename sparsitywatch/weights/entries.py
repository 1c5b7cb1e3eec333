"""What is known of a stored tensor without reading it."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import nn

__all__ = ["Entry"]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor of a checkpoint, without its data.

    Args:
        name: its name, wrappers' prefixes removed.
        shape: its shape.
        dtype: its dtype.
        storage: equal for tensors that are one and the same piece of storage (tied
            weights); None where the format keeps every tensor by itself.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    storage: Hashable = None

    @property
    def num_weights(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Size of its elements, in bytes."""
        return self.num_weights * self.dtype.itemsize

    def placeholder(self) -> nn.Parameter:
        """A parameter of this shape and dtype without data, on the meta device."""
        data = torch.empty(self.shape, dtype=self.dtype, device="meta")
        # as a parameter in training has it; a file does not tell which were frozen
        return nn.Parameter(data, requires_grad=self.dtype.is_floating_point)
