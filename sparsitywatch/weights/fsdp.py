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


def flat_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The parameters of FSDP1's modules by name, whole shapes without data; tied ones are one.

    Each has its ``FlatShard`` as the attribute ``flat_shard``.
    """
    held: list[Any] = [getattr(vars(m).get("_handle"), "flat_param", None) for m in model.modules()]
    flats = [flat for flat in held if hasattr(flat, "_shard_param_infos")]
    if not flats:
        return []
    paths = {id(module): path for path, module in model.named_modules(remove_duplicate=False)}
    found = []
    for flat in flats:
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
