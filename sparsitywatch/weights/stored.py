"""Weights that lie somewhere else: read when they are asked for, whole or in stretches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

__all__ = ["LazyTensors", "LoadedStretch", "SeenStore", "Store", "Stretch", "in_flat_order"]


class Stretch(Protocol):
    """Some elements of one stored tensor. Threads may read stretches of a store side by side."""

    @property
    def position(self) -> tuple[str, int]:
        """File and place in it, to read in the order of the bytes."""

    @property
    def num_bytes(self) -> int:
        """Size of its elements."""

    @property
    def offset(self) -> int | None:
        """Bytes before its first in the flat tensor; None if elements come in another order."""

    def pieces(self, buffer: memoryview) -> Iterator[memoryview]:
        """The bytes of all its elements, a number of whole elements at once.

        Args:
            buffer: writable memory that the pieces may lie in, a multiple of eight bytes;
                each is good until the next is asked for.

        Raises:
            CheckpointError: they cannot be read, or are not what was stored.
        """


class Store(Protocol):
    """Where stored weights lie; a ``Checkpoint`` is one."""

    def stretches(self, name: str) -> Sequence[Stretch]:
        """The stretches that together hold each element of a tensor once."""

    def check_unchanged(self) -> None:
        """Raise if something was written since it was opened."""


class LazyTensors(Mapping[str, torch.Tensor]):
    """Name to weights, each read when it is asked for and not kept.

    Args:
        dtypes: every name with its dtype, in the order of the scope.
        read: reads one tensor by its name.
        store: gives the same weights in stretches, to be counted while they are read; None:
            each tensor is read first and counted then.
    """

    def __init__(
        self,
        dtypes: Mapping[str, torch.dtype],
        read: Callable[[str], torch.Tensor],
        store: Store | None = None,
    ) -> None:
        self.dtypes = dict(dtypes)
        self.store = store
        self._read = read

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self.dtypes:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.dtypes)

    def __len__(self) -> int:
        return len(self.dtypes)


@dataclass(frozen=True)
class LoadedStretch:
    """A tensor that can only be read as a whole, as one stretch.

    Args:
        position: file and place in it.
        num_bytes: its size.
        load: reads it.
        offset: as of ``Stretch``.
    """

    position: tuple[str, int]
    num_bytes: int
    load: Callable[[], torch.Tensor]
    offset: int | None = 0

    def pieces(self, buffer: memoryview) -> Iterator[memoryview]:  # noqa: ARG002  the tensor's own
        """All its bytes at once; memory: those of the tensor."""
        tensor = self.load().contiguous()
        if tensor.numel():
            yield tensor.reshape(-1).view(torch.uint8).numpy().data


def in_flat_order(
    stretches: Sequence[Stretch], load: Callable[[], torch.Tensor]
) -> Sequence[Stretch]:
    """The stretches of a tensor; where their elements come in another order, all of it as one.

    Args:
        stretches: of the tensor.
        load: reads it.
    """
    if all(stretch.offset is not None for stretch in stretches):
        return stretches
    position = min(stretch.position for stretch in stretches)
    return [LoadedStretch(position, sum(stretch.num_bytes for stretch in stretches), load)]


@dataclass(frozen=True)
class SeenStore:
    """A store whose weights are shown to somebody while they are read.

    Args:
        store: where they lie.
        read: reads a whole tensor: one that is stored in another order.
        see: gets a name, and some bytes of the flat tensor behind the offset at which they
            begin; from several threads, each element once.
    """

    store: Store
    read: Callable[[str], torch.Tensor]
    see: Callable[[str, int, memoryview], None]

    def stretches(self, name: str) -> Sequence[Stretch]:
        """Those of the store, or the whole tensor."""
        found = in_flat_order(self.store.stretches(name), lambda: self.read(name))
        return [_SeenStretch(name, stretch, self.see) for stretch in found]

    def check_unchanged(self) -> None:
        """Raise if something was written since it was opened."""
        self.store.check_unchanged()


@dataclass(frozen=True)
class _SeenStretch:
    name: str
    stretch: Stretch
    see: Callable[[str, int, memoryview], None]

    @property
    def position(self) -> tuple[str, int]:
        return self.stretch.position

    @property
    def num_bytes(self) -> int:
        return self.stretch.num_bytes

    @property
    def offset(self) -> int | None:
        return self.stretch.offset

    def pieces(self, buffer: memoryview) -> Iterator[memoryview]:
        at = self.stretch.offset or 0
        for piece in self.stretch.pieces(buffer):
            self.see(self.name, at, piece)
            at += len(piece)
            yield piece
