"""Snapshots of stored weights: the same thing as live ones, read when they are looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from sparsitywatch.checkpoints.base import Checkpoint, unreadable
from sparsitywatch.errors import CheckpointError
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import Snapshot
from sparsitywatch.weights.stored import LazyTensors, Stretch

__all__ = ["stored_snapshot"]


def stored_snapshot(checkpoint: Checkpoint, scope: Scope, step: int) -> Snapshot:
    """The in-scope weights of a checkpoint, to be read while it is open.

    Args:
        checkpoint: an open checkpoint.
        scope: of a live model, or ``Scope.of_entries(checkpoint.entries())``.
        step: optimizer steps done.

    Raises:
        CheckpointError: a tensor that is in scope is not there, or has another shape, or
            is of whole numbers, or its values cannot be read.
    """
    there = {entry.name: entry for entry in checkpoint.entries()}
    names: dict[str, str] = {}
    for entry in scope.ledger:
        if not entry.in_scope:
            continue
        # of tied weights some formats keep one name only
        name = next((n for n in (entry.name, *entry.aliases) if n in there), entry.name)
        stored, names[entry.name] = there.get(name), name
        problem = None
        if stored is None:
            problem = "it is not there"
        elif stored.problem:
            raise unreadable(checkpoint.url, stored)
        elif stored.shape != entry.shape:
            problem = f"expected shape {entry.shape}, got {stored.shape}"
        elif not stored.dtype.is_floating_point:
            problem = f"expected a floating-point dtype, got {stored.dtype}"
        if problem:
            raise CheckpointError(
                f"Cannot read {checkpoint.url}, tensor {entry.name!r}: {problem}. Replay "
                "checkpoints of one model together, or choose another scope."
            )
    dtypes = {name: there[stored].dtype for name, stored in names.items()}
    store = _Renamed(checkpoint, names)
    return Snapshot(step, scope, LazyTensors(dtypes, store.read, store))


@dataclass(frozen=True)
class _Renamed:
    """A checkpoint's tensors by the names that the scope has for them."""

    checkpoint: Checkpoint
    names: Mapping[str, str]

    def read(self, name: str) -> torch.Tensor:
        return self.checkpoint.read(self.names[name])

    def stretches(self, name: str) -> Sequence[Stretch]:
        return self.checkpoint.stretches(self.names[name])

    def check_unchanged(self) -> None:
        self.checkpoint.check_unchanged()
