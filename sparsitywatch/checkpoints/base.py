"""The seam to stored weights: what every reader of a format gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch

from sparsitywatch.checkpoints.storage import one_line
from sparsitywatch.errors import CheckpointError
from sparsitywatch.weights.layout import Entry, clean_names
from sparsitywatch.weights.stored import Stretch

__all__ = [
    "Checkpoint",
    "File",
    "StoredTensor",
    "TensorTable",
    "Unreadable",
    "as_sizes",
    "as_step",
    "reading",
    "refused",
    "unreadable",
]

#: More dimensions than torch's own kernels take; a shape is never longer.
_MAX_DIMS = 64
#: Longest name of a tensor, in characters; real ones have some dozens.
_MAX_NAME = 4096


def refused(url: str, cause: str, tensor: str | None = None) -> CheckpointError:
    """The error for a checkpoint whose own description is not true, in one line."""
    return CheckpointError(
        f"Refused {_where(url, tensor)}: {cause}. The file is damaged or forged; save it again."
    )


def unreadable(url: str, entry: Entry) -> CheckpointError:
    """The error for a tensor that is what it says, and still holds no weights to be read."""
    return CheckpointError(
        f"Cannot read {_where(url, entry.name)}: expected weights, but {entry.problem}. Leave it "
        "out of the scope, or save the model in a floating-point dtype."
    )


def _where(url: str, tensor: str | None) -> str:
    return url if tensor is None else f"{url}, tensor {tensor[:120]!r}"


@contextmanager
def reading(url: str, tensor: str | None = None) -> Iterator[None]:
    """The boundary around the bytes of one file: what they do to a reader is one line about it.

    Readers say what they know to be wrong. Everything else that bytes can bring about, such as
    a ``RecursionError``, ``MemoryError``, ``OverflowError`` or ``struct.error``, is a fault of
    this file as well, and the next file is read. Ctrl-C and an exit are no faults of a file,
    they pass.

    Raises:
        CheckpointError: for any ``Exception``, with the file named.
    """
    try:
        yield
    except CheckpointError:
        raise
    except MemoryError as error:
        raise CheckpointError(
            f"Cannot read {_where(url, tensor)}: expected that memory holds what it describes, it "
            "does not. Give more memory, or save it again if it is a small one."
        ) from error
    except Exception as error:  # what bytes bring about, no list is long enough
        raise CheckpointError(
            f"Cannot read {_where(url, tensor)}: {one_line(error)}. The file is damaged, or of a "
            "kind that is not known here; save it again."
        ) from error


def as_sizes(node: object) -> tuple[int, ...] | None:
    """A shape, strides or offsets out of a file; None for all that no tensor could have.

    >>> as_sizes([2, 3]), as_sizes((2**63,)), as_sizes([2.0]), as_sizes([1] * 1000)
    ((2, 3), None, None, None)
    """
    if not isinstance(node, tuple | list) or len(node) > _MAX_DIMS:
        return None
    return tuple(node) if all(type(s) is int and 0 <= s < 2**63 for s in node) else None


def as_step(node: object) -> int | None:
    """A number of optimizer steps out of a file; None if it is something else.

    >>> as_step(500), as_step(True), as_step(-1), as_step(10**5000)
    (500, None, None, None)
    """
    return node if type(node) is int and 0 <= node < 2**63 else None


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


#: Stored tensors by name.
Resolved = Mapping[str, StoredTensor]


@dataclass(frozen=True)
class Unreadable:
    """A tensor whose values cannot be read: what it is, and why.

    Args:
        own: its entry, with the ``problem``.
        position: as of ``StoredTensor``.
    """

    own: Entry
    position: tuple[str, int] = ("", 0)

    @property
    def entry(self) -> Entry:
        """What is known of it."""
        return self.own

    def load(self) -> torch.Tensor:
        """Raise: a table asks for the ``problem`` first."""
        raise CheckpointError(self.own.problem)

    def stretches(self) -> Sequence[Stretch]:
        """Raise likewise."""
        raise CheckpointError(self.own.problem)


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
        self._stored = _by_clean_name(url, format, stored)

    @property
    def step(self) -> int | None:
        """Optimizer steps done, where the contents say so."""
        if callable(self._step):
            with reading(self.url):
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
        stored = self._readable(name)
        with reading(self.url, name):
            return stored.load()

    def tensors(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors one at a time, in the order of the bytes.

        Raises:
            KeyError: there is no tensor of one of these names; raised before any is read.
            CheckpointError: one cannot be read, or a file was written meanwhile.
        """
        chosen = {name: self._stored[name] for name in (self._stored if names is None else names)}
        for name in sorted(chosen, key=lambda name: chosen[name].position):
            yield name, self.read(name)
        self.check_unchanged()

    def stretches(self, name: str) -> Sequence[Stretch]:
        """What together holds each element of a tensor once, to be read piece by piece.

        Raises:
            KeyError: there is no tensor of this name.
            CheckpointError: it cannot be read; also when a stretch is.
        """
        stored = self._readable(name)
        with reading(self.url, name):
            return [_Bounded(self.url, name, stretch) for stretch in stored.stretches()]

    def _readable(self, name: str) -> StoredTensor:
        stored = self._stored[name]
        if stored.entry.problem:
            raise unreadable(self.url, replace(stored.entry, name=name))
        return stored

    def resolve(self, resolver: Callable[[Resolved], Resolved]) -> None:
        """Take what lies in the file as what it stands for, such as codes as weights."""
        self._stored = dict(resolver(self._stored))

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


@dataclass(frozen=True)
class _Bounded:
    """A stretch inside the boundary of its file."""

    url: str
    name: str
    stretch: Stretch

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
        with reading(self.url, self.name):
            yield from self.stretch.pieces(buffer)


def _by_clean_name(
    url: str, kind: str, stored: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    found: dict[str, StoredTensor] = {}
    for raw in stored:
        _check_name(url, raw)
    for raw, name in clean_names(stored).items():
        if name in found:
            raise refused(url, f"two tensors have this name, one of them as {raw[:80]!r}", name)
        entry = stored[raw].entry
        # torch multiplies empty dimensions, too, when it computes strides
        if math.prod(max(size, 1) for size in entry.shape) * entry.dtype.itemsize >= 2**63:
            raise refused(url, f"expected a shape that memory could hold, got {entry.shape}", name)
        found[name] = stored[raw]
    if not found:
        raise CheckpointError(
            f"Cannot read {url}: expected tensors, found none in {kind}. Name the file or folder "
            "that holds the model's weights."
        )
    return found


def _check_name(url: str, name: str) -> None:
    """A name that every log can take: some kilobytes of Unicode."""
    if len(name) > _MAX_NAME:
        cause = f"expected names of at most {_MAX_NAME} characters, got one of {len(name)}"
        raise refused(url, cause, name)
    if any("\ud800" <= letter <= "\udfff" for letter in name):
        cause = "expected names of Unicode, got half of a character"
        raise refused(url, cause, name.encode(errors="backslashreplace").decode())
