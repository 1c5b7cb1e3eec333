"""Parameter names as the user wrote them, whatever has been wrapped around the model."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

__all__ = ["clean_name", "clean_names", "unwrap_model"]

#: Path components that wrappers insert; they may stand anywhere in a name.
_WRAPPER_COMPONENTS = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
)


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
    while found and all(name.startswith("module.") for name in found.values()):
        found = {raw: name.removeprefix("module.") for raw, name in found.items()}
    return found


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
