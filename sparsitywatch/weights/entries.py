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
        stored_as: what it is in the file, where ``dtype`` does not say it: "F4", "int8 codes".
        problem: why its values cannot be read, as "it is sparse"; empty if they can. It is in
            scope by its name and shape all the same, and refused only there.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    storage: Hashable = None
    stored_as: str = ""
    problem: str = ""

    @property
    def may_be_weights(self) -> bool:
        """Whether its values are weights, or would be if they could be read."""
        return self.dtype.is_floating_point or bool(self.problem)

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
        dtype = torch.float32 if self.problem else self.dtype
        data = torch.empty(self.shape, dtype=dtype, device="meta")
        # as a parameter in training has it; a file does not tell which were frozen
        return nn.Parameter(data, requires_grad=dtype.is_floating_point)
