"""FSDP: what has to be minded when one reads or runs a model between two training steps.

FSDP2 (``fully_shard``) keeps weights as DTensors and gathers them for a forward. What is gathered
stays until it is let go, and stands in the place of the DTensors until then. A forward that fails
in its middle leaves FSDP in a state of "forward", and the other ranks waiting for gathers.

FSDP1 (``FullyShardedDataParallel``) lays the weights of a module end to end and cuts this flat
parameter in as many parts as there are ranks. Only counts are taken of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

__all__ = [
    "FlatShard",
    "ForwardOrder",
    "flat_parameters",
    "fsdp_modules",
    "reshard",
    "settle_root",
]


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
    """Let FSDP know that ``model`` is the outermost one, which it else takes the first to run for.

    A value function may run an inner part first, and the training would then be refused.
    """
    for root in fsdp_modules([model]):
        root._get_fsdp_state()._lazy_init()


class ForwardOrder:
    """In which order the modules of a model gather their weights, so that a forward can be ended.

    Args:
        model: its modules in their own order are a first guess.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = fsdp_modules(model.modules())
        self._order = list(self._modules)

    @contextlib.contextmanager
    def followed(self) -> Iterator[None]:
        """Around a forward: what is left of it when it fails here is gathered for the others.

        They wait for this rank at each module that they come to. So all of them end their
        forward, and can be told that it failed.
        """
        if not self._modules:
            yield
            return
        known, seen = set(map(id, self._modules)), []

        def note(module: nn.Module, _: Any) -> None:
            if id(module) in known:
                seen.append(module)

        handle = register_module_forward_pre_hook(note)
        try:
            yield
        except Exception:
            # the one that it failed in may have gathered already: then this does nothing
            for module in self._order[max(len(seen) - 1, 0) :]:
                module.unshard()
            self._set_idle()
            raise
        else:
            self._order = seen or self._order
        finally:
            handle.remove()

    def _set_idle(self) -> None:
        """No forward is going on any more: FSDP would take the next one for a part of this one.

        It would then not wait for the optimizer's step before it gathers weights.
        """
        for module in self._modules:
            state = module._get_fsdp_state()
            state._state_ctx.iter_forward_root = None
            for one in (state, *state._fsdp_param_groups):
                one._training_state = type(one._training_state).IDLE
        reshard(self._modules)


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


def flat_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters of FSDP1's modules by name, whole shapes without data; tied ones are one.

    Each has its ``FlatShard`` as the attribute ``flat_shard``.
    """
    paths = {id(module): path for path, module in model.named_modules(remove_duplicate=False)}
    found = []
    for module in model.modules():
        handle: Any = getattr(module, "_handle", None)
        flat: Any = getattr(handle, "flat_param", None)
        if not hasattr(flat, "_shard_param_infos"):
            continue
        made = {}
        parts = zip(flat._param_infos, flat._shapes, flat._shard_param_infos, strict=True)
        for i, (info, shape, part) in enumerate(parts):
            whole = torch.empty(
                shape, dtype=getattr(flat, "_local_shard", flat).dtype, device="meta"
            )
            placeholder = nn.Parameter(whole, requires_grad=False)
            owner = flat if flat._params is None else flat._params[i]
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
