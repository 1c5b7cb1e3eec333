"""What this process holds of a model that may be spread over several, or kept in another form.

FSDP2 (``fully_shard``) keeps weights as DTensors and gathers them for a forward. What is gathered
stays until it is let go, and stands in the place of the DTensors until then.

FSDP1 (``FullyShardedDataParallel``) lays the weights of a module end to end and cuts this flat
parameter in as many parts as there are ranks. Only counts are taken of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from sparsitywatch.errors import ScopeError
from sparsitywatch.redact import printable

#: Those of a model by their paths, a shared one by each.
Modules = Sequence[tuple[str, nn.Module]]
#: Those of a model, or of a part of it, by name.
Tensors = Mapping[str, torch.Tensor]


def modules_of(model: nn.Module) -> Modules:
    """Every module; who asks several things of them walks through the model once."""
    return [*model.named_modules(remove_duplicate=False)]


def is_sharded(tensor: torch.Tensor) -> bool:
    """Whether each rank may hold a part of it only: a DTensor, or a parameter of FSDP1."""
    return hasattr(tensor, "flat_shard") or _is_dtensor(type(tensor))


@lru_cache(maxsize=64)  # it is asked of every tensor at every snapshot
def _is_dtensor(kind: type) -> bool:
    return any(one.__name__ == "DTensor" for one in kind.__mro__)


def local_of(tensor: torch.Tensor) -> torch.Tensor:
    """What this rank holds of a tensor, in the same memory, detached; dequantised if need be."""
    if not is_sharded(tensor):
        values = decoded(tensor) if is_encoded(tensor) else None
        return tensor.detach() if values is None else values
    if hasattr(tensor, "flat_shard"):  # FSDP1
        flat: torch.Tensor = tensor.flat_shard.local()
        return flat
    with torch.no_grad():
        local: torch.Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return local.detach()


def stepped_on(parameter: torch.Tensor) -> torch.Tensor:
    """What an optimizer has of a parameter: itself but under FSDP1."""
    flat = getattr(parameter, "flat_shard", None)
    return parameter if flat is None else flat.owner


def kept_for(tensor: torch.Tensor, held: torch.Tensor) -> torch.Tensor | None:
    """What this rank holds of a parameter's gradient, if it is dense and split alike."""
    if held.layout is not torch.strided:
        return None
    if hasattr(tensor, "flat_shard"):  # FSDP1
        part: torch.Tensor = tensor.flat_shard.part_of(held)
    elif getattr(held, "placements", None) != getattr(tensor, "placements", None):
        return None
    else:
        part = local_of(held)
    return part if part.numel() == local_of(tensor).numel() else None


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


# ------------------------------------------------------------------ is it all here?

#: Modules that keep parameters in parts and gather them when they run, by the name of a class
#: they are of: nothing is imported for it, and FairScale's are meant too.
_SHARDING_CLASSES = {
    "FullyShardedDataParallel": "FSDP",
    "FSDPModule": "FSDP2, fully_shard",
    "PipelineModule": "a stage of a pipeline",
}


def expect_whole_model(modules: Modules, *, are_parts_read: bool = False) -> None:
    """Refuse a model that is not all here, but for torch's own parts where all ranks read them."""
    # in scope or not: what is gathered in a forward hangs where one process runs alone
    for name, what, is_known in _parts(modules):
        if not (are_parts_read and is_known):
            raise ScopeError(
                f"Expected a model that this process holds all of, but {printable(name)} is {what}."
                " What one process holds is then not the model, and running it needs every process."
                " Watch the checkpoints instead: `sparsitywatch replay <folder> --follow` reads "
                "sharded ones."
            )


def _parts(modules: Modules) -> Iterator[tuple[str, str, bool]]:
    """What is not all here, by name, how it is spread, and whether by torch's FSDP or DTensors."""
    for name, module in modules:
        where, held = f"module {name!r}" if name else "the model", vars(module)
        for kind in type(module).__mro__:
            if kind.__name__ in _SHARDING_CLASSES:
                what = f"sharded over processes ({_SHARDING_CLASSES[kind.__name__]})"
                yield where, what, kind.__module__.startswith("torch.distributed.fsdp")
        num_parts = held.get("_tp_size")  # transformers, tp_plan=
        if (num_parts or 1) > 1:
            yield where, f"split over {num_parts} processes (tensor parallel)", False
        # Megatron's and FairScale's layers: output_size_per_partition beside output_size. All
        # names are asked at once, since one by one they are the most of this at every snapshot
        parted = [*held] if "_per_partition" in " ".join(held) else []
        for key in parted:
            part = held[key]
            whole = held.get(key.removesuffix("_per_partition"), part)
            if isinstance(whole, int) and whole != part:
                yield where, f"split over processes (holds {part} of {whole}, {key})", False
        for sort, tensors in (("parameter", module._parameters), ("buffer", module._buffers)):
            for key, tensor in tensors.items():
                what, is_known = ("", False) if tensor is None else _sharding_of(tensor)
                if what:
                    yield f"{sort} {f'{name}.{key}'.lstrip('.')!r}", what, is_known


def _sharding_of(tensor: torch.Tensor) -> tuple[str, bool]:
    """How a tensor is spread over processes, empty if it is all here; and whether by torch."""
    if hasattr(tensor, "ds_id"):
        return "partitioned over processes (DeepSpeed ZeRO-3)", False
    if getattr(tensor, "_is_flat_param", False):
        return "a flattened shard of many (FSDP)", True
    if is_sharded(tensor):
        placements = ", ".join(map(str, tensor.placements))  # type: ignore[attr-defined]
        return f"spread over processes (DTensor, {placements})", True
    return "", False


def fsdp_modules(modules: Iterable[nn.Module]) -> list[Any]:
    """Those that FSDP2 shards."""
    return [m for m in modules if any(kind.__name__ == "FSDPModule" for kind in type(m).__mro__)]


@dataclass(frozen=True)
class FlatShard:
    """What this rank holds of one parameter of FSDP1."""

    flat: Any  # the flat parameter of a module
    owner: torch.Tensor  # what the optimizer steps on: the flat parameter, or the parameter itself
    offset: int  # where the parameter begins in this rank's part of ``flat``
    num: int  # how many of its weights are there; 0 for none
    start: int  # the first of them, in the flat parameter by itself

    def local(self) -> torch.Tensor:
        """The weights, 1-D, in the memory that the optimizer writes to."""
        # until the first forward the flat parameter itself is this rank's part
        local: torch.Tensor = getattr(self.flat, "_local_shard", self.flat)
        return local.detach()[self.offset : self.offset + self.num]

    def part_of(self, held: torch.Tensor) -> torch.Tensor:
        """The same part of what is kept for ``owner``, such as its gradient; 1-D."""
        flat = held.detach().reshape(-1)
        return flat[self.offset : self.offset + self.num] if self.owner is self.flat else flat


def flat_parameters(modules: Modules) -> list[tuple[str, nn.Parameter]]:
    """FSDP1's parameters by name, in whole shapes without data, with a ``flat_shard`` each."""
    handles: dict[int, Any] = {id(module): vars(module).get("_handle") for _, module in modules}
    flats = [handle.flat_param for handle in handles.values() if hasattr(handle, "flat_param")]
    if not flats:
        return []
    paths = {id(module): path for path, module in modules}
    found = []
    for flat in flats:
        made = {}
        parts = zip(flat._param_infos, flat._shapes, flat._shard_param_infos, strict=True)
        for i, (info, shape, part) in enumerate(parts):
            dtype = getattr(flat, "_local_shard", flat).dtype
            owner = flat if flat._params is None else flat._params[i]
            whole = torch.empty(shape, dtype=dtype, device="meta")
            placeholder = nn.Parameter(whole, requires_grad=owner.requires_grad)
            place = (part.offset_in_shard, part.numel_in_shard, part.intra_param_start_idx)
            shard = FlatShard(flat, owner, *(number or 0 for number in place))
            placeholder.flat_shard = shard  # type: ignore[attr-defined]
            made[id(info.module), info.param_name] = placeholder
            found.append((info.module, info.param_name, placeholder))
        for info in flat._shared_param_infos:
            first = made[id(info.prim_module), info.prim_param_name]
            found.append((info.module, info.param_name, first))
    return [(f"{paths[id(module)]}.{name}".lstrip("."), one) for module, name, one in found]
