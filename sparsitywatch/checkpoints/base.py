"""The seam to stored weights: what every reader of a format gives, and what is made of it."""

from __future__ import annotations

import math
import struct
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from sparsitywatch.checkpoints.dictionaries import (
    EPOCH_KEYS,
    STEP_KEYS,
    Candidate,
    OptimizerState,
    optimizers_in,
    stated,
    whole_of,
)
from sparsitywatch.checkpoints.faults import ReadingError, RefusedError, reading
from sparsitywatch.checkpoints.storage import ByteSource, Location, Range
from sparsitywatch.errors import CheckpointError
from sparsitywatch.weights.layout import Entry, clean_name, clean_names, unwrap_model
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import LazyTensors, Snapshot

#: Longest name of a tensor, in characters; real ones have some dozens.
_MAX_NAME = 4096


@dataclass(frozen=True, kw_only=True)
class Signature:
    """What tells the format of a place before it is read."""

    names: Collection[str] = ()  # of the files and folders in a folder; of a file none
    own_name: str = ""  # of a file
    start: bytes = b""  # the first bytes of a file


# ------------------------------------------------------------------ tensors in files

#: How a record of a zip archive begins, and the length of the fixed part of its header.
ARCHIVE_START, ARCHIVE_HEADER_BYTES = b"PK\x03\x04", 30
#: What torch puts between the header of a record and its bytes, at most, so that they are aligned.
_MAX_PADDING = 128


@dataclass(frozen=True)
class ArchiveRecord:
    """A record of a zip archive whose bytes lie as they are, checked against its contents."""

    source: ByteSource
    member: zipfile.ZipInfo

    @property
    def url(self) -> str:
        """That of the file, as it is shown."""
        return self.source.url

    @cached_property
    def _begin(self) -> int:
        """Its first byte: it comes behind a header of its own, which torch pads."""
        what, at = f"the record {self.member.filename[:80]!r}", self.member.header_offset
        header = bytearray(ARCHIVE_HEADER_BYTES)
        self.source.fill(memoryview(header), at)
        if header[:4] != ARCHIVE_START:
            raise RefusedError(f"{what} has a false header")
        begin: int = at + len(header) + sum(struct.unpack("<HH", header[26:30]))
        if begin + self.member.file_size > self.source.size:
            raise RefusedError(f"{what} reaches too far")
        return begin

    def fill(self, buffer: memoryview, start: int) -> None:
        """Fill ``buffer`` with its bytes from ``start`` on; they are within it."""
        self.source.fill(buffer, self._begin + start)

    def range_of(self, start: int, length: int) -> tuple[ByteSource, Range]:
        """As of ``ByteSource``: its header is read with its beginning."""
        if start > _MAX_PADDING:
            return self.source.range_of(self.member.header_offset, ARCHIVE_HEADER_BYTES)
        shortest = self.member.header_offset + ARCHIVE_HEADER_BYTES + start + length
        longest = shortest + len(self.member.filename.encode()) + _MAX_PADDING
        return self.source, Range(
            self.member.header_offset, min(longest, self.source.size), shortest
        )

    def read(self) -> bytes:
        """All of a small one: nothing is ever unpacked."""
        data = self.source.read(self._begin, self.member.file_size)
        if self.member.CRC and zlib.crc32(data) != self.member.CRC:
            what = f"the record {self.member.filename[:80]!r}"
            raise RefusedError(f"{what} does not match its checksum")
        return data


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """One tensor in a file, found and checked but not read; this one alone cannot be read."""

    entry: Entry  # what is known without reading
    position: tuple[str, int] = ("", 0)  # URL of its file, and the first byte of it there

    def first_range(self, length: int) -> tuple[ByteSource, Range] | None:  # noqa: ARG002
        """Where its first bytes lie, ``length`` at most; None where nothing is known."""
        return None

    def load(self) -> torch.Tensor:
        """Read it. Of one with a ``problem`` the checkpoint says so before."""
        raise CheckpointError(self.entry.problem)

    def chunks(self, buffer: memoryview) -> Generator[memoryview, None, None]:  # noqa: ARG002
        """Its bytes in flat order, in ``buffer`` or, where they do not lie so, all at once."""
        if self.entry.num_weights:
            with reading(self.position[0], self.entry.name), _WHOLE:
                yield self.load().contiguous().reshape(-1).view(torch.uint8).numpy().data


@dataclass(frozen=True, kw_only=True)
class StridedTensor(StoredTensor):
    """A tensor whose elements lie in one file as they lie in memory."""

    source: ByteSource | ArchiveRecord
    start: int  # the first byte
    num_bytes: int  # from its first element to its last
    stride: tuple[int, ...] | None = None  # in elements; None: they lie in flat order
    crc: int | None = None  # the checksum of its bytes that the file itself states, if any

    def first_range(self, length: int) -> tuple[ByteSource, Range] | None:
        """As of ``StoredTensor``."""
        return self.source.range_of(self.start, min(length, self.num_bytes))

    def load(self) -> torch.Tensor:
        """Read it; memory: ``num_bytes``."""
        shape, dtype = self.entry.shape, self.entry.dtype
        data = torch.empty(self.num_bytes // dtype.itemsize, dtype=dtype, device="cpu")
        for _ in self._as_they_lie(memoryview(data.view(torch.uint8).numpy().data)):
            pass  # it is one
        if self.stride is None or self.num_bytes == 0:
            return data.view(shape)
        return data.as_strided(shape, self.stride)

    def chunks(self, buffer: memoryview) -> Generator[memoryview, None, None]:
        """As of ``StoredTensor``."""
        return super().chunks(buffer) if self.stride else self._as_they_lie(buffer)

    def _as_they_lie(self, buffer: memoryview) -> Generator[memoryview, None, None]:
        if self.num_bytes == 0:
            return
        with reading(self.source.url, self.entry.name):
            crc = 0
            for done in range(0, self.num_bytes, len(buffer)):
                chunk = buffer[: self.num_bytes - done]
                self.source.fill(chunk, self.start + done)
                crc = crc if self.crc is None else zlib.crc32(chunk, crc)
                yield chunk
            if self.crc is not None and crc != self.crc:
                raise RefusedError("its bytes do not match the checksum beside them")


#: Tensors that only come as a whole, and are in memory at once however many threads ask.
_WHOLE = threading.Semaphore(2)

#: Stored tensors by name.
Stored = Mapping[str, StoredTensor]


def _by_clean_names(stored: Stored) -> dict[str, StoredTensor]:
    """The tensors by the names that their user wrote, all of them such as any log can take."""
    found: dict[str, StoredTensor] = {}
    for name in stored:
        shown = name.encode(errors="backslashreplace").decode()
        if len(name) > _MAX_NAME:
            cause = f"expected names of at most {_MAX_NAME} characters, got one of {len(name)}"
            raise RefusedError(cause, shown)
        if name != shown:
            raise RefusedError("expected names of Unicode, got half of a character", shown)
    for raw, name in clean_names(stored).items():
        entry = stored[raw].entry
        if name in found:
            raise RefusedError(f"two tensors have this name, one of them as {raw[:80]!r}", name)
        # torch multiplies empty dimensions, too, when it computes strides
        size = math.prod(max(length, 1) for length in entry.shape) * entry.dtype.itemsize
        if size >= 2**63:
            raise RefusedError(f"expected a shape that memory could hold, got {entry.shape}", name)
        found[name] = stored[raw]
    return found


# ------------------------------------------------------------------ codes of quantised weights
#
# The layouts: fp8 of DeepSeek-V3 and transformers (``weight_scale_inv``), of compressed-tensors,
# FBGEMM and ModelOpt (``weight_scale``), bitsandbytes (``weight``, ``SCB``), GPTQ and AWQ
# (``qweight``), MXFP4 as of gpt-oss (``_blocks``).

_FP8 = frozenset({torch.float8_e4m3fn, torch.float8_e5m2})
#: Scales that fp8 codes are multiplied by, by what follows the name of the codes.
_SCALES = ("_scale_inv", "_scale")
_WHOLE_CODES = frozenset({torch.int8, torch.uint8, torch.int32})
#: Attributes that hold packed codes.
_PACKED = ("qweight", "weight_packed")
_BLOCKS, _BLOCK_SCALES = "_blocks", "_scales"


def _with_codes_told(stored: Stored) -> dict[str, StoredTensor]:
    """The same tensors; those that are codes have the name of the weight, and cannot be read."""
    found: dict[str, StoredTensor] = {}
    for name, one in stored.items():
        module, _, attribute = name.rpartition(".")
        entry = one.entry
        is_matrix = len(entry.shape) >= 2 and not entry.problem
        of = ""
        if is_matrix and entry.dtype in _FP8:
            scale = next((end for end in _SCALES if name + end in stored), "")
            of = f"a quantised weight, beside their scale ({attribute}{scale})" if scale else ""
        elif is_matrix and entry.dtype in _WHOLE_CODES:
            own = ""
            if name.removesuffix(_BLOCKS) + _BLOCK_SCALES in stored:
                own = attribute.removesuffix(_BLOCKS)
            elif attribute in _PACKED:
                own = "weight"
            weight = f"{module}.{own}" if module else own
            is_packed = own != "" and weight not in stored
            if is_packed or (attribute == "weight" and entry.dtype != torch.int32):
                of = f"a quantised weight ({attribute})"
                name = weight if is_packed else name
        if of:
            kind = f"{str(entry.dtype).removeprefix('torch.')} codes"
            problem = f"it is stored as {kind} of {of}"
            one = StoredTensor(entry=replace(entry, stored_as=kind, problem=problem))
        found[name] = one
    return found


# ------------------------------------------------------------------ checkpoints


class Tree:
    """Dictionaries in dictionaries, as a file holds them, with tensors and numbers at their ends.

    What these ends are is up to the format; here they are stored tensors and words.
    """

    def __init__(self, root: Any) -> None:
        self.root = root

    def look(self, node: Any) -> tuple[Sequence[int], bool] | None:
        """Of a tensor its shape, and whether it holds floats; None of what is no tensor."""
        if not isinstance(node, StoredTensor):
            return None
        entry = node.entry
        return entry.shape, entry.dtype.is_floating_point or bool(entry.stored_as)

    def stored(self, tensors: Mapping[str, Any]) -> Stored:
        """The tensors of some ends, found and checked."""
        return tensors

    def whole(self, node: Any) -> int | None:
        """The whole number that an end stands for, also as a tensor with one element."""
        seen = self.look(node)
        if seen is None:
            return whole_of(node)
        if math.prod(seen[0]) != 1:
            return None
        (one,) = self.stored({"step": node}).values()
        return None if one.entry.problem else whole_of(one.load().item())


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a reader finds."""

    place: Location  # the files that are open there are closed with the checkpoint
    format: str  # how it is stored, such as "safetensors"
    tree: Tree
    step: int | None = None  # what is known of it beside the tree
    counts_saves: bool = False  # a number in its name counts saves, not steps
    beside: Callable[[], Tree] | None = None  # reads the optimizer's file, where it has its own


#: Bytes that are read before they are counted. From a local file: what stays in a core's cache,
#: and is long beside the wait for the interpreter lock that comes between two of them. From a
#: remote storage: what is long beside the wait for an answer.
_CHUNK_BYTES, _REMOTE_CHUNK_BYTES = 1 << 21, 1 << 24


class Checkpoint(AbstractContextManager["Checkpoint"]):
    """The weights of one step at rest; every reader ends in one.

    Opening reads descriptions only; they are checked before anything is allocated. A tensor
    is read when it is asked for, and nothing is held afterwards. One that was closed is opened
    again by ``with``, and its descriptions are not read again. Threads may read side by side; a
    checkpoint that was open at a fork is not for the child.
    """

    def __init__(self, contents: Contents, model: Candidate) -> None:
        self.url = contents.place.shown
        self.format = contents.format
        self._place = contents.place
        self._contents, self._way = contents, model.way
        #: What leads to the model in it, and how many tensors each has that might be it.
        self.key, self.among = model.key, model.among
        #: Whether a number in its name counts saves.
        self.counts_saves = contents.counts_saves
        #: How long the buffer for ``chunks`` should be.
        self.chunk_bytes = _CHUNK_BYTES if self._place.is_local else _REMOTE_CHUNK_BYTES
        self._stored: dict[str, StoredTensor] = {}
        stored = contents.tree.stored(model.tensors)
        for name, one in _with_codes_told(_by_clean_names(stored)).items():
            if one.entry.name != name:
                one = replace(one, entry=replace(one.entry, name=name))
            self._stored[name] = one

    @cached_property
    def step(self) -> int | None:
        """Optimizer steps done, where the contents say so."""
        step = self._contents.step
        return self._number(STEP_KEYS) if step is None else step

    @cached_property
    def epoch(self) -> int | None:
        """Epochs, as the contents count them, where they do."""
        return self._number(EPOCH_KEYS)

    def _number(self, keys: Sequence[str]) -> int | None:
        with reading(self.url):
            return stated(self._way, keys, self._contents.tree.whole)

    def optimizers(self) -> dict[str, OptimizerState]:
        """What is kept of optimizers beside the weights, by key; reads a number of each."""
        entries, beside = self.entries(), self._contents.beside
        with reading(self.url):
            trees = [self._contents.tree, *([beside()] if beside else ())]
            found = [optimizers_in(one.root, one.look, one.whole, entries) for one in trees]
        return {key: state for one in found for key, state in one.items()}

    @property
    def num_bytes_read(self) -> int:
        """Bytes taken from the files of the weights so far."""
        return sum(source.num_bytes_read for source in self._place.opened.values())

    @property
    def version(self) -> str:
        """What changes while files without checksums are written; empty where checksums tell."""
        if "safetensors" not in self.format:
            return ""
        return " ".join(source.version for source in self._place.opened.values())

    def files(self) -> dict[str, tuple[str, frozenset[str]]]:
        """The files of weights by name: the hash that the storage has, or "", and the tensors."""
        hashes = {one.url: one.stated_hash for one in self._place.opened.values()}
        names: dict[str, set[str]] = {}
        for name, one in self._stored.items():
            names.setdefault(one.position[0], set()).add(name)
        return {
            url.rpartition("/")[2]: (hashes.get(url, ""), frozenset(held))
            for url, held in names.items()
        }

    def entries(self) -> tuple[Entry, ...]:
        """Every tensor, in the order of the files."""
        return tuple(one.entry for one in self._stored.values())

    def read(self, name: str) -> torch.Tensor:
        """One tensor, on the CPU, in its own dtype."""
        stored = self._readable(name)
        with reading(self.url, name):
            return stored.load()

    def tensors(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors one at a time, in the order of the bytes; all of them for None.

        Raises:
            KeyError: there is no tensor of one of these names; raised before any is read.
            CheckpointError: one cannot be read, or a file was written meanwhile.
        """
        for name in self.in_byte_order(self._stored if names is None else names):
            yield name, self.read(name)
        self.check_unchanged()

    def in_byte_order(self, names: Iterable[str]) -> list[str]:
        """Names of tensors as the files have them, to be read next; KeyError if one is missing."""
        ordered = sorted(names, key=lambda name: self._stored[name].position)
        expected: dict[ByteSource, list[Range]] = {}
        for name in ordered:
            found = self._stored[name].first_range(self.chunk_bytes)
            if found is not None:
                expected.setdefault(found[0], []).append(found[1])
        for source, ranges in expected.items():
            source.expect(ranges)
        return ordered

    def chunks(self, name: str, buffer: memoryview) -> Generator[memoryview, None, None]:
        """The bytes of a tensor in flat order, a number of whole elements at once.

        ``buffer``, a multiple of eight bytes, is where they may lie; each chunk is good until the
        next is asked for. Layouts that have no bytes in that order come as one chunk.
        """
        return self._readable(name).chunks(buffer)

    def _readable(self, name: str) -> StoredTensor:
        stored = self._stored[name]
        if stored.entry.problem:
            raise no_weights(stored.entry).at(self.url)
        return stored

    def check_unchanged(self) -> None:
        """Raise ``IncompleteCheckpointError`` if a file was written since it was opened."""
        for source in self._place.opened.values():
            source.check_unchanged()

    def left_alone_s(self) -> float:
        """Seconds since a local file without checksums was written; NaN where there is none.

        The size of such a file may have been set before its bytes.
        """
        if not self.version:
            return math.nan
        times = [source.modified_s for source in self._place.opened.values()]
        return time.time() - max(times, default=math.nan)

    def close(self) -> None:
        """Let go of the files; calling it again does nothing."""
        self._place.close()

    def __enter__(self) -> Checkpoint:  # noqa: PYI034 typing.Self needs Python 3.11
        with ExitStack() as unless_open:
            unless_open.callback(self.close)
            self._place.reopen()
            unless_open.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# ------------------------------------------------------------------ what is made of one


def no_weights(entry: Entry) -> ReadingError:
    """A tensor that is what it says, and still holds no weights to be read."""
    return ReadingError(
        f"expected weights, but {entry.problem}. Leave it out of the scope, or save the model in "
        "bfloat16 or float32.",
        entry.name,
    )


def stored_snapshot(checkpoint: Checkpoint, scope: Scope, step: int) -> Snapshot:
    """The in-scope weights of an open checkpoint, to be read while it is open."""
    there = {entry.name: entry for entry in checkpoint.entries()}
    found: dict[str, Entry] = {}
    for entry in scope.ledger:
        if not entry.in_scope:
            continue
        # of tied weights some formats keep one name only
        name = next((n for n in (entry.name, *entry.aliases) if n in there), entry.name)
        stored = there.get(name)
        problem = ""
        if stored is None:
            problem = "it is not there"
        elif stored.problem:
            raise no_weights(stored).at(checkpoint.url)
        elif stored.shape != entry.shape:
            problem = f"expected shape {entry.shape}, got {stored.shape}"
        elif not stored.dtype.is_floating_point:
            problem = f"expected a floating-point dtype, got {stored.dtype}"
        if stored is None or problem:
            advice = "Replay checkpoints of one model together, or choose another scope."
            raise ReadingError(f"{problem}. {advice}", entry.name).at(checkpoint.url)
        found[entry.name] = stored
    return Snapshot(step, scope, LazyTensors(found, checkpoint))


def beyond(first: Scope, own: Scope) -> list[str]:
    """Names of weights in scope that the first checkpoint of a series does not have at all."""
    known = {name for line in first.ledger for name in (line.name, *line.aliases)}
    ours = [line for line in own.ledger if line.in_scope]
    return [line.name for line in ours if known.isdisjoint((line.name, *line.aliases))]


def load_into(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Overwrite the parameters and stored buffers of ``model`` with those of a checkpoint.

    All of them, or none and an error: of a model that is half this and half that no number means
    anything. One tensor is held at a time. What the checkpoint has beyond the model is not read.
    """
    own = {
        clean_name(name): value.detach()
        for name, value in unwrap_model(model).state_dict(keep_vars=True).items()
        if isinstance(value, torch.Tensor)  # some modules keep other things in there
    }
    ties: dict[object, list[str]] = {}  # a checkpoint may have any one name of tied tensors
    for name, tensor in own.items():
        storage = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        ties.setdefault(storage if tensor.numel() else name, []).append(name)
    stored = {entry.name: entry for entry in checkpoint.entries()}
    chosen: dict[str, torch.Tensor] = {}
    for names in ties.values():
        found = next((name for name in names if name in stored), names[0])
        if found in stored:
            problem = _why_not(stored[found], own[found])
        else:
            some = ", ".join(list(stored)[:3])
            problem = f"the model has it, the checkpoint does not; it has names such as {some}"
        if problem:
            raise CheckpointError(
                f"Cannot load {checkpoint.url}, tensor {found!r}: {problem}. Give the model that "
                "was trained, in the dtype that it was saved in."
            )
        chosen[found] = own[found]
    with torch.no_grad():
        for name, tensor in checkpoint.tensors(chosen):
            chosen[name].copy_(tensor)


def _why_not(stored: Entry, own: torch.Tensor) -> str:
    """Why a tensor of a model cannot take the values of a checkpoint's; empty if it can."""
    if stored.problem:
        return f"expected weights, but {stored.problem}"
    if stored.shape != tuple(own.shape):
        return f"expected shape {tuple(own.shape)} as in the model, got {stored.shape}"
    if stored.dtype != own.dtype and torch.promote_types(stored.dtype, own.dtype) != own.dtype:
        return f"expected dtype {own.dtype} as in the model or a narrower one, got {stored.dtype}"
    return ""
