"""What one checkpoint says of itself: format, step, tensors, and which of them would count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparsitywatch.checkpoints.base import Checkpoint
from sparsitywatch.checkpoints.discovery import ListedCheckpoint
from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.errors import CheckpointError, IncompleteCheckpointError, ScopeError
from sparsitywatch.records import LedgerEntry
from sparsitywatch.shown import shown_url
from sparsitywatch.weights.scope import Scope, ScopeLike

__all__ = ["Description", "StoredTensorDescription", "Total", "describe", "step_source"]


@dataclass(frozen=True, kw_only=True)
class StoredTensorDescription:
    """One piece of storage in a checkpoint.

    Args:
        name: its first name, wrappers' prefixes removed.
        shape, dtype: as stored, such as ``(64, 64)`` and "bfloat16".
        num_weights: its number of elements.
        num_bytes: the size of its elements.
        in_scope: whether its weights would count; None if the scope cannot be decided.
        reason: why; empty if the scope cannot be decided.
        aliases: other names of the same storage, counted once.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    num_weights: int
    num_bytes: int
    in_scope: bool | None
    reason: str
    aliases: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Total:
    """So many tensors with so many weights, in so many bytes; each storage counts once."""

    num_tensors: int
    num_weights: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Description:
    """A checkpoint without its weights.

    Args:
        url: where it lies, as it is shown.
        format: how it is stored.
        step: optimizer steps done; None if nothing says so.
        step_from: "trainer state", "contents" or "name"; empty without a step.
        num_bytes_read: what was fetched of the weights' files to learn this.
        total: of all tensors.
        in_scope: of those that count; None if the scope cannot be decided.
        scope_hash: identity of the in-scope set, as in ``Provenance``; empty likewise.
        scope_problem: why the scope cannot be decided; empty otherwise.
        tensors: in the order of the file.
    """

    url: str
    format: str
    step: int | None
    step_from: str
    num_bytes_read: int
    total: Total
    in_scope: Total | None
    scope_hash: str
    scope_problem: str
    tensors: tuple[StoredTensorDescription, ...]


def step_source(found: ListedCheckpoint) -> str:
    """Where the step of a checkpoint comes from: "trainer state", "contents", "name" or ""."""
    # folders of transformers have no other place for it than the Trainer's file
    is_trainer = found.step_from == "contents" and found.format.startswith("huggingface")
    return "trainer state" if is_trainer else found.step_from


def describe(
    found: ListedCheckpoint,
    scope: ScopeLike = "blocks",
    storage_options: Mapping[str, Any] | None = None,
) -> Description:
    """Open a checkpoint that was discovered, and describe it; no weight is read.

    Args:
        found: as ``discover`` gives it.
        scope: which weights would count. One that cannot be decided, or selects nothing, is
            reported in ``scope_problem``: the names to choose from are needed most then.
        storage_options: passed on to fsspec.

    Raises:
        CheckpointError: it is not complete, or cannot be read; one line with the cause.
    """
    if found.state == "refused":
        raise CheckpointError(found.reason)
    if found.state == "incomplete":
        raise IncompleteCheckpointError(found.reason)
    with open_checkpoint(found.url, storage_options) as checkpoint:
        problem = ""
        decided: Scope | None = None
        try:
            decided = Scope.of_entries(checkpoint.entries(), scope)
        except ScopeError as error:
            problem = str(error)
        tensors = _tensors(checkpoint, decided)
        return Description(
            url=shown_url(found.url),
            format=checkpoint.format,
            step=found.step,
            step_from=step_source(found),
            num_bytes_read=checkpoint.num_bytes_read,
            total=_total(tensors),
            in_scope=None if decided is None else _total([t for t in tensors if t.in_scope]),
            scope_hash="" if decided is None else decided.hash,
            scope_problem=problem,
            tensors=tuple(tensors),
        )


def _tensors(checkpoint: Checkpoint, scope: Scope | None) -> list[StoredTensorDescription]:
    """Every storage once, with its verdict."""
    entries = {entry.name: entry for entry in checkpoint.entries()}
    described = []
    for line in _undecided(checkpoint) if scope is None else scope.ledger:
        entry = entries[line.name]
        described.append(
            StoredTensorDescription(
                name=line.name,
                shape=entry.shape,
                dtype=entry.stored_as or str(entry.dtype).removeprefix("torch."),
                num_weights=entry.num_weights,
                num_bytes=entry.num_bytes,
                in_scope=None if scope is None else line.in_scope,
                reason="; ".join(filter(None, (line.reason, entry.problem))),
                aliases=line.aliases,
            )
        )
    return described


def _undecided(checkpoint: Checkpoint) -> tuple[LedgerEntry, ...]:
    """The ledger of a checkpoint of which nothing is decided: all in, without a reason."""
    names: dict[object, list[str]] = {}
    for entry in checkpoint.entries():
        names.setdefault(entry.storage or entry.name, []).append(entry.name)
    return tuple(
        LedgerEntry(
            name=first, shape=(), num_weights=0, in_scope=False, reason="", aliases=tuple(others)
        )
        for first, *others in names.values()
    )


def _total(tensors: list[StoredTensorDescription]) -> Total:
    return Total(
        num_tensors=len(tensors),
        num_weights=sum(tensor.num_weights for tensor in tensors),
        num_bytes=sum(tensor.num_bytes for tensor in tensors),
    )
