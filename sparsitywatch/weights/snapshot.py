"""The in-scope weights at one step, whichever side they come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from sparsitywatch.weights.scope import Scope

__all__ = ["Snapshot"]


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
        tensors = {name: p.detach() for name, p in scope.parameters(model).items()}
        return cls(step, scope, tensors)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Names of the dtypes present, sorted, such as ("bfloat16", "float32")."""
        return tuple(sorted({str(t.dtype).removeprefix("torch.") for t in self.tensors.values()}))
