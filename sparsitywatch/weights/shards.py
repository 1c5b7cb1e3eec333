"""Whether a model in memory is the whole model, or one process's part of it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from sparsitywatch.shown import shown_name

__all__ = ["why_not_whole"]

#: Modules that keep parameters in parts and gather them when they run, by the name of a class
#: they are of: nothing is imported for it, and FairScale's are meant too.
_SHARDING_CLASSES = {
    "FullyShardedDataParallel": "FSDP",
    "FSDPModule": "FSDP2, fully_shard",
    "PipelineModule": "a stage of a pipeline",
}
_WAY_OUT = (
    "What one process holds is then not the model, and running it needs every process. Watch the "
    "checkpoints instead: `sparsitywatch replay <folder> --follow` reads sharded ones"
)


def why_not_whole(model: nn.Module) -> str:
    """Why this process does not hold all of the model's weights, and what to do; empty if it does.

    Anywhere in the model, in scope or not: what is gathered in the middle of a forward hangs
    where one process runs alone.
    """
    for name, what in _parts(model):
        return f"{shown_name(name)} is {what}. {_WAY_OUT}."
    return ""


def _parts(model: nn.Module) -> Iterator[tuple[str, str]]:
    for name, module in model.named_modules():
        where = f"module {name!r}" if name else "the model"
        for kind in type(module).__mro__:
            if kind.__name__ in _SHARDING_CLASSES:
                yield where, f"sharded over processes ({_SHARDING_CLASSES[kind.__name__]})"
        if (getattr(module, "_tp_size", None) or 1) > 1:  # transformers, tp_plan=
            yield where, f"split over {module._tp_size} processes (tensor parallel)"
        for key, part in vars(module).items():
            # Megatron's and FairScale's layers: output_size_per_partition beside output_size
            whole = vars(module).get(key.removesuffix("_per_partition"), part)
            if key.endswith("_per_partition") and isinstance(whole, int) and whole != part:
                yield where, f"split over processes (holds {part} of {whole}, {key})"
        for key, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and (what := _sharding_of(tensor)):
                kind_of = "parameter" if key in module._parameters else "buffer"
                yield f"{kind_of} {f'{name}.{key}'.lstrip('.')!r}", what


def _sharding_of(tensor: torch.Tensor) -> str:
    """How a tensor is spread over processes; empty if it is all here."""
    if hasattr(tensor, "ds_id"):
        return "partitioned over processes (DeepSpeed ZeRO-3)"
    if getattr(tensor, "_is_flat_param", False):
        return "a flattened shard of many (FSDP)"
    if any(kind.__name__ == "DTensor" for kind in type(tensor).__mro__):
        placements = ", ".join(str(p) for p in tensor.placements)  # type: ignore[attr-defined]
        return f"spread over processes (DTensor, {placements})"
    return ""
