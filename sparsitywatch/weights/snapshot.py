"""The in-scope weights at one step, whichever side they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.stored import LazyTensors

__all__ = ["Snapshot", "WarmCopy"]


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
