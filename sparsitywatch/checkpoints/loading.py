"""What is done with an open checkpoint: its weights as a snapshot, or all of it into a model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from sparsitywatch.checkpoints.base import Checkpoint, unreadable
from sparsitywatch.errors import CheckpointError
from sparsitywatch.weights.layout import Entry, clean_name, unwrap_model
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import Snapshot
from sparsitywatch.weights.spectrum.stored import LazyTensors

__all__ = ["load_into", "stored_snapshot"]


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
    found: dict[str, Entry] = {}
    for entry in scope.ledger:
        if not entry.in_scope:
            continue
        # of tied weights some formats keep one name only
        name = next((n for n in (entry.name, *entry.aliases) if n in there), entry.name)
        stored = there.get(name)
        problem = None
        if stored is None:
            problem = "it is not there"
        elif stored.problem:
            raise unreadable(checkpoint.url, stored)
        elif stored.shape != entry.shape:
            problem = f"expected shape {entry.shape}, got {stored.shape}"
        elif not stored.dtype.is_floating_point:
            problem = f"expected a floating-point dtype, got {stored.dtype}"
        if stored is None or problem:
            raise CheckpointError(
                f"Cannot read {checkpoint.url}, tensor {entry.name!r}: {problem}. Replay "
                "checkpoints of one model together, or choose another scope."
            )
        found[entry.name] = stored
    tensors = LazyTensors(found, lambda name: checkpoint.read(found[name].name), checkpoint)
    return Snapshot(step, scope, tensors)


def load_into(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Overwrite the parameters and stored buffers of ``model`` with those of a checkpoint.

    Nothing is left as it was: of a model that is half this and half that no number means
    anything. One tensor is held at a time. What the checkpoint has beyond the model is not
    read.

    Args:
        model: in whatever wrappers; on any device.
        checkpoint: open; names as the model's user wrote them.

    Raises:
        CheckpointError: a tensor of the model is not there, has another shape, or a dtype
            whose values the model's own cannot hold. Nothing has been overwritten then.
    """
    own = _own_tensors(model)
    stored = {entry.name: entry for entry in checkpoint.entries()}
    chosen: dict[str, torch.Tensor] = {}
    for names in _by_storage(own):
        name = next((name for name in names if name in stored), None)
        if name is None:
            raise CheckpointError(
                f"Cannot load {checkpoint.url}, tensor {names[0]!r}: the model has it, the "
                f"checkpoint does not; it has names such as {', '.join(list(stored)[:3])}. Give "
                "the model that was trained."
            )
        _check_fits(checkpoint.url, stored[name], own[name])
        chosen[name] = own[name]
    with torch.no_grad():
        for name, tensor in checkpoint.tensors(chosen):
            chosen[name].copy_(tensor)


def _own_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers by their clean names, every name of a tie."""
    state = unwrap_model(model).state_dict(keep_vars=True)
    return {
        clean_name(name): value.detach()
        for name, value in state.items()
        if isinstance(value, torch.Tensor)  # some modules keep other things in there
    }


def _by_storage(tensors: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """Names of tied tensors together: a checkpoint may have any one of them."""
    groups: dict[object, list[str]] = {}
    for name, tensor in tensors.items():
        place = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        groups.setdefault(place if tensor.numel() else name, []).append(name)
    return list(groups.values())


def _check_fits(url: str, stored: Entry, own: torch.Tensor) -> None:
    problem = ""
    if stored.problem:
        raise unreadable(url, stored)
    if stored.shape != tuple(own.shape):
        problem = f"expected shape {tuple(own.shape)} as in the model, got {stored.shape}"
    elif stored.dtype != own.dtype and torch.promote_types(stored.dtype, own.dtype) != own.dtype:
        problem = (
            f"expected dtype {own.dtype} as in the model or a narrower one, got {stored.dtype}"
        )
    if problem:
        raise CheckpointError(
            f"Cannot load {url}, tensor {stored.name!r}: {problem}. Give the model that was "
            "trained, in the dtype that it was saved in."
        )
