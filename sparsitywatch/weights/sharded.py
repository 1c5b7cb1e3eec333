"""Sharded models: what this process holds, and what to mind when it reads or runs one.

FSDP2 (``fully_shard``) keeps weights as DTensors and gathers them for a forward. What is gathered
stays until it is let go, and stands in the place of the DTensors until then. A forward that fails
in its middle leaves FSDP in a state of "forward", and the other ranks waiting for gathers.

FSDP1 (``FullyShardedDataParallel``) lays the weights of a module end to end and cuts this flat
parameter in as many parts as there are ranks. Only counts are taken of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from sparsitywatch.shown import shown_name

__all__ = [
    "FlatShard",
    "ForwardOrder",
    "Modules",
    "flat_parameters",
    "fsdp_modules",
    "is_sharded",
    "kept_for",
    "local_of",
    "modules_of",
    "reshard",
    "settle_root",
    "why_not_whole",
]


#: Those of a model by their paths, a shared one by each.
Modules = Sequence[tuple[str, nn.Module]]


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
    """What this rank holds of a tensor, in the same memory, detached."""
    if not is_sharded(tensor):
        return tensor.detach()
    if hasattr(tensor, "flat_shard"):  # FSDP1
        flat: torch.Tensor = tensor.flat_shard.local()
        return flat
    with torch.no_grad():
        local: torch.Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return local.detach()


def kept_for(tensor: torch.Tensor, held: torch.Tensor) -> torch.Tensor | None:
    """What this rank holds of something that is kept for a parameter, such as its gradient.

    None if it is not split as the parameter is, or is not dense.
    """
    if held.layout is not torch.strided:
        return None
    if hasattr(tensor, "flat_shard"):  # FSDP1
        part: torch.Tensor = tensor.flat_shard.part_of(held)
    elif getattr(held, "placements", None) != getattr(tensor, "placements", None):
        return None
    else:
        part = local_of(held)
    return part if part.numel() == local_of(tensor).numel() else None


# ------------------------------------------------------------------ is it all here?

#: Modules that keep parameters in parts and gather them when they run, by the name of a class
#: they are of: nothing is imported for it, and FairScale's are meant too.
_SHARDING_CLASSES = {
    "FullyShardedDataParallel": "FSDP",
    "FSDPModule": "FSDP2, fully_shard",
    "PipelineModule": "a stage of a pipeline",
}


def why_not_whole(
    model: nn.Module, *, together: bool = False, modules: Modules | None = None
) -> str:
    """Why the weights of a model cannot be watched, and what to do; empty if they can.

    Anywhere in the model, in scope or not: what is gathered in the middle of a forward hangs
    where one process runs alone.

    Args:
        together: whether all ranks watch. Then what torch has sharded is all there.
        modules: of ``model``, where they are known.
    """
    for name, what, is_known in _parts(modules or model.named_modules()):
        if together and is_known:
            continue
        return (
            f"{shown_name(name)} is {what}. What one process holds is then not the model, and "
            "running it needs every process. Watch the checkpoints instead: `sparsitywatch replay "
            "<folder> --follow` reads sharded ones."
        )
    return ""


def _parts(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[tuple[str, str, bool]]:
    """What is not all here, by name, how it is spread, and whether by torch's FSDP or DTensors."""
    for name, module in modules:
        where, held = f"module {name!r}" if name else "the model", vars(module)
        for what, is_known in _sharding_classes(type(module)):  # type: ignore[arg-type]
            yield where, what, is_known
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
        for kind_of, tensors in (("parameter", module._parameters), ("buffer", module._buffers)):
            for key, tensor in tensors.items():
                if tensor is not None and (what := _sharding_of(tensor)):
                    where = f"{kind_of} {f'{name}.{key}'.lstrip('.')!r}"
                    is_flat = getattr(tensor, "_is_flat_param", False)
                    yield where, what, is_flat or is_sharded(tensor)


@lru_cache(maxsize=1 << 10)  # a model has few kinds of modules, and is asked at every snapshot
def _sharding_classes(kind: type) -> tuple[tuple[str, bool], ...]:
    """How modules of a class are spread over processes, and whether by torch's own FSDP."""
    return tuple(
        (
            f"sharded over processes ({_SHARDING_CLASSES[one.__name__]})",
            one.__module__.startswith("torch.distributed.fsdp"),
        )
        for one in kind.__mro__
        if one.__name__ in _SHARDING_CLASSES
    )


def _sharding_of(tensor: torch.Tensor) -> str:
    """How a tensor is spread over processes; empty if it is all here."""
    if hasattr(tensor, "ds_id"):
        return "partitioned over processes (DeepSpeed ZeRO-3)"
    if getattr(tensor, "_is_flat_param", False):
        return "a flattened shard of many (FSDP)"
    if is_sharded(tensor):
        placements = ", ".join(map(str, tensor.placements))  # type: ignore[attr-defined]
        return f"spread over processes (DTensor, {placements})"
    return ""


# ------------------------------------------------------------------ FSDP2


def fsdp_modules(modules: Iterable[nn.Module]) -> list[Any]:
    """Those that FSDP2 shards."""
    return [m for m in modules if any(kind.__name__ == "FSDPModule" for kind in type(m).__mro__)]


def reshard(modules: Iterable[nn.Module]) -> None:
    """Let go of the weights that were gathered for a forward.

    Until then ``named_parameters`` gives gathered copies, what is written into them is lost, and
    the parameters that the optimizer steps on are not to be found.
    """
    for module in fsdp_modules(modules):
        module.reshard()


def settle_root(model: nn.Module) -> None:
    """Let FSDP know which modules are the outermost, which it else takes the first to run for.

    A value function may run an inner part first, and the training would then be refused.
    """
    # outer modules come first; they settle the inner ones, for which this then does nothing
    for module in fsdp_modules(model.modules()):
        module._get_fsdp_state()._lazy_init()


class ForwardOrder:
    """What FSDP gathers and lets go of in a forward of a model, so that one can be ended.

    Args:
        model: its modules in their own order are a first guess.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = fsdp_modules(model.modules())
        groups = [group for m in self._modules for group in _groups(m._get_fsdp_state())]
        self._groups = list(dict.fromkeys(groups))  # several modules may be in one
        self._order = [(group, is_gather) for group in self._groups for is_gather in (True, False)]

    @contextlib.contextmanager
    def followed(self) -> Iterator[None]:
        """Around a forward: what is left of it when it fails here is gathered for the others.

        They wait for this rank at each module that they come to. So all of them end their
        forward, and can be told that it failed.
        """
        if not self._modules:
            yield
            return
        seen: list[tuple[Any, bool]] = []
        try:
            with self._noted(seen), self._without_backward():
                yield
        except Exception:
            try:
                self._follow(self._rest(sum(is_gather for _, is_gather in seen)))
            finally:
                self._set_idle()
            raise
        self._order = seen or self._order

    @contextlib.contextmanager
    def _noted(self, seen: list[tuple[Any, bool]]) -> Iterator[None]:
        """Note each call by which FSDP asks for the weights of a group, or lets them go."""

        def noting(group: Any, call: Any, *, is_gather: bool) -> Any:
            def noted(*args: Any, **kwargs: Any) -> Any:
                seen.append((group, is_gather))
                return call(*args, **kwargs)

            return noted

        for group in self._groups:
            group.unshard = noting(group, group.unshard, is_gather=True)
            group.reshard = noting(group, group.reshard, is_gather=False)
        try:
            yield
        finally:
            for group in self._groups:
                del group.unshard, group.reshard  # those of its class are back

    def _rest(self, num_gathers: int) -> list[tuple[Any, bool]]:
        """What follows so many gathers."""
        for place, (_, is_gather) in enumerate(self._order):
            if not num_gathers:
                return self._order[place:]
            num_gathers -= is_gather
        return []

    @staticmethod
    def _follow(rest: Iterable[tuple[Any, bool]]) -> None:
        """Gather, and let go of, what the others do: one group after the other."""
        for group, is_gather in rest:
            # gathered already, or kept after the forward: then it does nothing here as there
            group._training_state = type(group._training_state).FORWARD
            if is_gather:
                group.unshard()
                group.wait_for_unshard()
            else:
                group.reshard()

    @contextlib.contextmanager
    def _without_backward(self) -> Iterator[None]:
        """FSDP notes each forward for the backward to come: here there is none.

        The next backward would gather weights after these notes, other ones on each rank where
        a forward has failed.
        """
        before = [(each, len(each)) for each in self._notes()]
        try:
            yield
        finally:
            lengths = {id(each): length for each, length in before}
            for each in self._notes():
                del each[lengths.get(id(each), 0) :]

    def _notes(self) -> list[list[Any]]:
        orders = [group.comm_ctx.post_forward_order for group in self._groups]
        return [*orders, *(group._post_forward_indices for group in self._groups)]

    def _set_idle(self) -> None:
        """No forward is going on any more: FSDP would take the next one for a part of this one.

        It would then not wait for the optimizer's step before it gathers weights.
        """
        for module in self._modules:
            state = module._get_fsdp_state()
            state._state_ctx.iter_forward_root = None
            state._modules_to_run_forward.clear()
            for one in (state, *_groups(state)):
                one._training_state = type(one._training_state).IDLE
        reshard(self._modules)


def _groups(state: Any) -> list[Any]:
    """Of the parameters that a call of ``fully_shard`` took: one of them in older torch."""
    if hasattr(state, "_fsdp_param_groups"):
        return list(state._fsdp_param_groups)
    return [group for group in [state._fsdp_param_group] if group is not None]


# ------------------------------------------------------------------ FSDP1


@dataclass(frozen=True)
class FlatShard:
    """What this rank holds of one parameter of FSDP1.

    Args:
        flat: the flat parameter of a module.
        owner: what the optimizer steps on: the flat parameter, or the parameter itself.
        offset: where the parameter begins in this rank's part of ``flat``.
        num: how many of its weights are there; 0 for none.
        start: the first of them, in the flat parameter by itself.
    """

    flat: Any
    owner: torch.Tensor
    offset: int
    num: int
    start: int

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
    """The parameters of FSDP1's modules by name, whole shapes without data; tied ones are one.

    Each has its ``FlatShard`` as the attribute ``flat_shard``.
    """
    held: dict[int, Any] = {
        id(module): handle.flat_param
        for _, module in modules
        if (handle := vars(module).get("_handle")) is not None and hasattr(handle, "flat_param")
    }
    flats = [flat for flat in held.values() if hasattr(flat, "_shard_param_infos")]
    if not flats:
        return []
    paths = {id(module): path for path, module in modules}
    found = []
    for flat in flats:
        made = {}
        parts = zip(flat._param_infos, flat._shapes, flat._shard_param_infos, strict=True)
        for i, (info, shape, part) in enumerate(parts):
            whole = torch.empty(
                shape, dtype=getattr(flat, "_local_shard", flat).dtype, device="meta"
            )
            owner = flat if flat._params is None else flat._params[i]
            placeholder = nn.Parameter(whole, requires_grad=owner.requires_grad)
            place = (part.offset_in_shard, part.numel_in_shard, part.intra_param_start_idx)
            shard = FlatShard(flat, owner, *(number or 0 for number in place))
            placeholder.flat_shard = shard  # type: ignore[attr-defined]
            made[id(info.module), info.param_name] = placeholder
            found.append((_joined(paths[id(info.module)], info.param_name), placeholder))
        for info in flat._shared_param_infos:
            first = made[id(info.prim_module), info.prim_param_name]
            found.append((_joined(paths[id(info.module)], info.param_name), first))
    return found


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
