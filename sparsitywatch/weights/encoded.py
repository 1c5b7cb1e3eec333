"""Parameters that are kept in another form than their values: quantised ones, tensor subclasses."""

from __future__ import annotations

import torch
from torch import nn


def is_encoded(tensor: torch.Tensor) -> bool:
    """Whether the memory of a tensor may hold something else than its values."""
    kind = type(tensor)
    if kind in (torch.Tensor, nn.Parameter):
        return tensor.is_quantized
    return kind.dequantize is not torch.Tensor.dequantize or address_of(tensor) is None


def address_of(tensor: torch.Tensor) -> int | None:
    """The address of a tensor's memory; None if it has none of its own."""
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):  # sparse, or a subclass around other tensors
        return None


def decoded(tensor: torch.Tensor) -> torch.Tensor | None:
    """The values of an encoded tensor as plain floats; None if it does not give them."""
    try:
        with torch.no_grad():
            values = tensor.dequantize()
    except (RuntimeError, NotImplementedError, TypeError):
        return None
    is_plain = type(values) in (torch.Tensor, nn.Parameter) and not is_encoded(values)
    if not (is_plain and values.is_floating_point() and values.shape == tensor.shape):
        return None
    return values.detach()
