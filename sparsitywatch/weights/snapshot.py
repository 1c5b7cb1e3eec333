"""The in-scope weights at one step, whichever side they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from sparsitywatch.shown import shown_name
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.spectrum.counting import LazyTensors

__all__ = ["Snapshot", "WarmCopy", "why_not_whole"]


@dataclass(frozen=True)
class Snapshot:
    """The in-scope weights at one step.

    Args:
        step: optimizer steps done.
        scope: which weights these are.
        tensors: name to weights, in the scope's order, detached. From a live model they
            alias the model's own memory: read them before the next optimizer step, and
            write to none of them.
    """

    step: int
    scope: Scope
    tensors: Mapping[str, torch.Tensor]

    @classmethod
    def of(cls, model: nn.Module, scope: Scope, step: int) -> Snapshot:
        """The weights of a live model as they are now, without a copy.

        Raises:
            ScopeError: a parameter that was in scope is gone or has another shape.
        """
        return cls.of_parameters(scope.parameters(model), scope, step)

    @classmethod
    def of_parameters(
        cls, parameters: Mapping[str, torch.Tensor], scope: Scope, step: int
    ) -> Snapshot:
        """The same from the parameters that ``scope`` has found in the model."""
        return cls(step, scope, {name: p.detach() for name, p in parameters.items()})

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Names of the dtypes present, sorted, such as ("bfloat16", "float32")."""
        if isinstance(self.tensors, LazyTensors):
            found = set(self.tensors.dtypes.values())
        else:
            found = {tensor.dtype for tensor in self.tensors.values()}
        return tuple(sorted(str(dtype).removeprefix("torch.") for dtype in found))


class WarmCopy:
    """Copies of snapshots in buffers that stay: at the speed of memory from the second on.

    Memory: the weights' own size, from the first copy until this is dropped.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def take(self, snapshot: Snapshot) -> Snapshot:
        """The same weights in memory of their own, until the next copy is taken.

        Args:
            snapshot: tensors of any float dtype, on any device; the copy is on the same.
        """
        fits = self._buffers.keys() == snapshot.tensors.keys() and all(
            (b.shape, b.dtype, b.device) == (t.shape, t.dtype, t.device)
            for b, t in zip(self._buffers.values(), snapshot.tensors.values(), strict=True)
        )
        if not fits:
            self._buffers = {
                name: torch.empty_like(t).zero_()  # zero_: the pages are touched here, once
                for name, t in snapshot.tensors.items()
            }
        # all tensors in one call, spread over torch's threads
        torch._foreach_copy_(list(self._buffers.values()), list(snapshot.tensors.values()))
        return Snapshot(snapshot.step, snapshot.scope, dict(self._buffers))


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
