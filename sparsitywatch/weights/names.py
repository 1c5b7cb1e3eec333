"""Parameter names as the user wrote them, whatever has been wrapped around the model."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn

__all__ = ["clean_name", "clean_names", "natural_order", "unwrap_model"]

#: Path components that wrappers insert; they may stand anywhere in a name.
_WRAPPER_COMPONENTS = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
)

_LEADING = "module."
_LEADING_ALL = re.compile(r"(?:module\.)*")


def clean_name(name: str) -> str:
    """A parameter name without the components that wrappers insert.

    >>> clean_name("_orig_mod.encoder._checkpoint_wrapped_module.weight")
    'encoder.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_COMPONENTS)


def clean_names(names: Iterable[str]) -> dict[str, str]:
    """Stored names of one model's tensors to the names that its user wrote.

    ``module.``, which data-parallel wrappers put in front, goes where every name has it: a
    model may have a part of that name.

    >>> clean_names(["module._orig_mod.weight", "module.module.weight"])
    {'module._orig_mod.weight': 'weight', 'module.module.weight': 'module.weight'}
    """
    found = {name: clean_name(name) for name in names}
    # at once: names come from files, and may consist of it
    depth = min((_num_leading(name) for name in found.values()), default=0)
    return {raw: name[depth * len(_LEADING) :] for raw, name in found.items()}


def _num_leading(name: str) -> int:
    """How often a name begins with ``module.``."""
    return len(_LEADING_ALL.match(name)[0]) // len(_LEADING)  # type: ignore[index]


def natural_order(name: str) -> tuple[list[tuple[int, str]], str]:
    """What to sort names by, so that numbers inside them count by their value.

    >>> sorted(["layer.10.a", "layer.2.b", "layer.2.a"], key=natural_order)
    ['layer.2.a', 'layer.2.b', 'layer.10.a']
    """
    parts = []
    for part in re.split(r"([0-9]+)", name):
        number = part.lstrip("0")
        # by length, then by digits: names come from files, and may hold numbers of any length
        parts.append((len(number), number) if part.isdecimal() else (-1, part))
    return parts, name


def unwrap_model(model: nn.Module) -> nn.Module:
    """The user's own module inside torch.compile, DDP and DataParallel wrappers.

    A forward of the inner module takes part in no collective and compiles nothing.
    """
    while True:
        inner = getattr(model, "_orig_mod", None)  # as torch.compile(model) names it
        if isinstance(inner, nn.Module):
            model = inner
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model
