"""Where a parameter lives: its module, and whether that lies in a transformer block."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from sparsitywatch.weights.names import clean_name

__all__ = ["ATTENTION", "Owner", "is_linear", "output_layer", "owners_of"]

_BLOCK_CLASS = re.compile(r"(block|layer)$", re.IGNORECASE)
#: Attention, or what stands in its place, by the name of its class or attribute.
ATTENTION = re.compile(r"attention|attn|mixer", re.IGNORECASE)


@dataclass(frozen=True)
class Owner:
    """The module that holds a parameter as ``attribute``; ``in_block``: inside a block."""

    module: nn.Module
    attribute: str
    in_block: bool


def owners_of(model: nn.Module) -> dict[str, Owner]:
    """The owner of every parameter name of ``model``, tied names included."""
    blocks = _block_prefixes(model)
    owners = {}
    for path, module in model.named_modules(remove_duplicate=False):
        inside = any(path == b or path.startswith(f"{b}.") for b in blocks)
        for attribute, _ in module.named_parameters(recurse=False):
            name = clean_name(f"{path}.{attribute}" if path else attribute)
            owners[name] = Owner(module, attribute, inside)
    return owners


def _block_prefixes(model: nn.Module) -> list[str]:
    """Paths of the transformer blocks: members of a module list that hold attention.

    A list of one kind whose class is called a block or layer counts as well where its
    members hold two or more linear layers (MLP-Mixer, state-space models).
    """
    prefixes: list[str] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) == 0:
            continue
        if any(path.startswith(f"{prefix}.") for prefix in prefixes):
            continue
        for name, child in module.named_children():
            if _is_block(child):
                prefixes.append(f"{path}.{name}" if path else name)
    return prefixes


def _is_block(module: nn.Module) -> bool:
    if isinstance(module, nn.ModuleList | nn.Sequential):
        return False
    if ATTENTION.search(type(module).__name__):
        return False  # a list of attentions lies inside a block or is none
    parts = [(name, part) for name, part in module.named_modules() if name]
    if not any(is_linear(part) for _, part in parts):
        return False
    if any(
        ATTENTION.search(type(part).__name__) or ATTENTION.search(name.rsplit(".", 1)[-1])
        for name, part in parts
    ):
        return True
    linear = [part for _, part in parts if isinstance(part, nn.Linear)]
    return bool(_BLOCK_CLASS.search(type(module).__name__)) and len(linear) >= 2


def is_linear(module: nn.Module) -> bool:
    """Whether a module's weight is a matrix product's: linear, convolution, attention."""
    # transformers' Conv1D is a linear layer with a transposed weight; known by name so
    # that transformers need not be imported.
    return isinstance(module, nn.Linear | nn.modules.conv._ConvNd | nn.MultiheadAttention) or type(
        module
    ).__name__ in ("Conv1D", "Conv1DCompat")


def output_layer(model: nn.Module, owners: Mapping[str, Owner]) -> nn.Module | None:
    """The layer that makes the model's output: declared by the model, else the last linear."""
    getter = getattr(model, "get_output_embeddings", None)
    if callable(getter) and (head := getter()) is not None:
        return head if isinstance(head, nn.Module) else None
    linear = [owner.module for owner in owners.values() if is_linear(owner.module)]
    return linear[-1] if linear else None
