"""A fixed random sample of the in-scope weights: the same ones at every look, live or stored."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from sparsitywatch.weights.names import natural_order
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import Snapshot
from sparsitywatch.weights.stored import LazyTensors

__all__ = ["Sampler"]

#: Integers of the width of a weight: any float dtype can be picked from as these.
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Sampler:
    """Picks the same weights of a model again and again.

    The choice depends on names, sizes and the seed alone; not on the order in which a model
    or a file has its tensors.

    Args:
        num_samples: how many; None, or more than there are: every in-scope weight.
        seed: of the generator.
    """

    def __init__(self, num_samples: int | None, seed: int = 0) -> None:
        self.num_samples, self.seed = num_samples, seed
        self._indices: dict[str, torch.Tensor] = {}
        self._scope_hash = ""

    def take(self, snapshot: Snapshot) -> dict[str, torch.Tensor]:
        """The sampled weights by name, in the natural order of the names, on the CPU."""
        self._draw(snapshot.scope)
        return {name: self._pick(name, snapshot.tensors[name]) for name in self._indices}

    def tapped(self, snapshot: Snapshot, taken: dict[str, torch.Tensor]) -> Snapshot:
        """The same stored snapshot; what it reads is sampled on the way, and read once.

        Args:
            snapshot: whose tensors are read when they are asked for.
            taken: sampled weights are added to it; whole once every tensor has been read.
        """
        self._draw(snapshot.scope)

        def read(name: str) -> torch.Tensor:
            tensor = snapshot.tensors[name]
            taken[name] = self._pick(name, tensor)
            return tensor

        dtypes = snapshot.tensors.dtypes if isinstance(snapshot.tensors, LazyTensors) else {}
        return Snapshot(snapshot.step, snapshot.scope, LazyTensors(dtypes, read))

    def ordered(self, taken: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What ``tapped`` has taken, in the order of ``take``."""
        return {name: taken[name] for name in sorted(taken, key=natural_order)}

    def _pick(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        words = tensor.reshape(-1).view(_WORDS[tensor.dtype.itemsize])
        return words[self._indices[name].to(tensor.device)].view(tensor.dtype).cpu()

    def _draw(self, scope: Scope) -> None:
        if self._scope_hash == scope.hash:
            return
        generator = torch.Generator().manual_seed(self.seed)
        total = scope.summary.num_weights
        share = 1.0 if self.num_samples is None else min(1.0, self.num_samples / total)
        sizes = {entry.name: entry.num_weights for entry in scope.ledger if entry.in_scope}
        self._indices = {}
        for name in sorted(sizes, key=natural_order):
            size = math.ceil(share * sizes[name])
            if size == sizes[name]:
                self._indices[name] = torch.arange(size)
            else:
                # With replacement: no permutation of a large tensor is ever built.
                self._indices[name] = torch.randint(sizes[name], (size,), generator=generator)
        self._scope_hash = scope.hash
