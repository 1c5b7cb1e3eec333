"""The seam to stored weights: what every reader of a format gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch

from sparsitywatch.errors import CheckpointError
from sparsitywatch.weights.entries import Entry
from sparsitywatch.weights.names import clean_names
from sparsitywatch.weights.stored import Stretch

__all__ = ["Checkpoint", "File", "StoredTensor", "TensorTable", "refused"]


def refused(url: str, cause: str, tensor: str | None = None) -> CheckpointError:
    """The error for a checkpoint whose own description is not true, in one line."""
    where = url if tensor is None else f"{url}, tensor {tensor[:120]!r}"
    return CheckpointError(
        f"Refused {where}: {cause}. The file is damaged or forged; save it again."
    )


@runtime_checkable
class Checkpoint(Protocol):
    """The weights of one step at rest.

    Opening reads descriptions only; they are checked before anything is allocated. A tensor
    is read when it is asked for, and nothing is held afterwards: memory is that of the
    tensors in use. What cannot be read raises ``CheckpointError``. Threads may read tensors
    and stretches side by side; a checkpoint that was open at a fork is not for the child.
    """

    @property
    def url(self) -> str:
        """Where it lies."""

    @property
    def format(self) -> str:
        """How it is stored, such as "safetensors"."""

    @property
    def step(self) -> int | None:
        """Optimizer steps done, where the contents say so."""

    @property
    def num_bytes_read(self) -> int:
        """Bytes taken from the storage so far."""

    def entries(self) -> tuple[Entry, ...]:
        """Every tensor of the model, in the order of the file; optimizer state is none."""

    def read(self, name: str) -> torch.Tensor:
        """One tensor, on the CPU, in its own dtype."""

    def tensors(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors one at a time, in the order of the bytes; all of them for None."""

    def stretches(self, name: str) -> Sequence[Stretch]:
        """What together holds each element of a tensor once, to be read piece by piece."""

    def check_unchanged(self) -> None:
        """Raise ``IncompleteCheckpointError`` if a file was written since it was opened."""

    def close(self) -> None:
        """Let go of the files; calling it again does nothing."""

    def __enter__(self) -> Checkpoint: ...  # noqa: PYI034 typing.Self needs Python 3.11

    def __exit__(self, *_: object) -> None: ...


class StoredTensor(Protocol):
    """One tensor in a file, found and checked but not read."""

    @property
    def entry(self) -> Entry:
        """What is known without reading, under the name that the file gives."""

    @property
    def position(self) -> tuple[str, int]:
        """File and place in it, to read in the order of the bytes."""

    def load(self) -> torch.Tensor:
        """Read it."""

    def stretches(self) -> Sequence[Stretch]:
        """What together holds each of its elements once."""


class File(Protocol):
    """What a table reads from."""

    url: str
    num_bytes_read: int

    def check_unchanged(self) -> None:
        """Raise if it was written since it was opened."""

    def close(self) -> None:
        """Let go of it."""


class TensorTable:
    """A checkpoint as a table of stored tensors: what every reader here ends in.

    Args:
        url: where it lies.
        format: how it is stored.
        stored: the tensors of the model by the names that the files give.
        sources: the open files; closed with this.
        step: optimizer steps done, or a function that looks it up when it is asked for.

    Raises:
        CheckpointError: there is no tensor, or two have the same name once the prefixes of
            wrappers are removed.
    """

    def __init__(
        self,
        url: str,
        format: str,  # noqa: A002
        stored: Mapping[str, StoredTensor],
        sources: Iterable[File],
        step: int | Callable[[], int | None] | None = None,
    ) -> None:
        self.url, self.format = url, format
        self._step = step
        self._sources = list(sources)
        with ExitStack() as unless_sound:
            unless_sound.callback(self.close)
            self._stored = _by_clean_name(url, format, stored)
            unless_sound.pop_all()

    @property
    def step(self) -> int | None:
        """Optimizer steps done, where the contents say so."""
        if callable(self._step):
            self._step = self._step()
        return self._step

    @property
    def num_bytes_read(self) -> int:
        """Bytes taken from the storage so far."""
        return sum(source.num_bytes_read for source in self._sources)

    def entries(self) -> tuple[Entry, ...]:
        """Every tensor, in the order of the files."""
        return tuple(replace(stored.entry, name=name) for name, stored in self._stored.items())

    def read(self, name: str) -> torch.Tensor:
        """One tensor, on the CPU, in its own dtype.

        Raises:
            KeyError: there is no tensor of this name.
            CheckpointError: it cannot be read.
        """
        return self._stored[name].load()

    def tensors(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors one at a time, in the order of the bytes.

        Raises:
            KeyError: there is no tensor of one of these names; raised before any is read.
            CheckpointError: one cannot be read, or a file was written meanwhile.
        """
        chosen = {name: self._stored[name] for name in (self._stored if names is None else names)}
        for name in sorted(chosen, key=lambda name: chosen[name].position):
            yield name, self._stored[name].load()
        self.check_unchanged()

    def stretches(self, name: str) -> Sequence[Stretch]:
        """What together holds each element of a tensor once, to be read piece by piece.

        Raises:
            KeyError: there is no tensor of this name.
        """
        return self._stored[name].stretches()

    def check_unchanged(self) -> None:
        """Compare every file with what was opened.

        Raises:
            IncompleteCheckpointError: one was written meanwhile.
        """
        for source in self._sources:
            source.check_unchanged()

    def close(self) -> None:
        """Let go of the files; calling it again does nothing."""
        for source in self._sources:
            source.close()

    def __enter__(self) -> TensorTable:  # noqa: PYI034 typing.Self needs Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _by_clean_name(
    url: str, kind: str, stored: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for raw, name in clean_names(stored).items():
        if name in found:
            raise refused(url, f"two tensors have this name, one of them as {raw[:80]!r}", name)
        found[name] = stored[raw]
    if not found:
        raise CheckpointError(
            f"Cannot read {url}: expected tensors, found none in {kind}. Name the file or folder "
            "that holds the model's weights."
        )
    return found
