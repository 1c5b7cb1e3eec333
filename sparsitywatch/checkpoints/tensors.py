"""One tensor of a file: found and checked without being read, and what is wrong with it."""

from __future__ import annotations

import math
import struct
import threading
import zipfile
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from sparsitywatch.checkpoints.storage import ByteSource, Range, one_line
from sparsitywatch.errors import CheckpointError, IncompleteCheckpointError
from sparsitywatch.weights.layout import Entry, clean_names

#: Longest name of a tensor, in characters; real ones have some dozens.
MAX_NAME = 4096


class ReadingError(Exception):
    """Why something cannot be read, and what to do; ``reading`` completes it with the file."""

    error: type[CheckpointError] = CheckpointError
    form = "Cannot read {where}: {cause}"

    def __init__(self, cause: str, tensor: str | None = None) -> None:
        super().__init__(cause)
        self.tensor = tensor

    def at(self, url: str, tensor: str | None = None) -> CheckpointError:
        """The error with the file, and the tensor where there is one."""
        name = self.tensor or tensor
        where = url if name is None else f"{url}, tensor {name[:120]!r}"
        return self.error(self.form.format(where=where, cause=self))


class UnfinishedError(ReadingError):
    """The same of what may be there later."""

    error = IncompleteCheckpointError


class RefusedError(ReadingError):
    """What a checkpoint says of itself and is not true."""

    form = "Refused {where}: {cause}. The file is damaged or forged; save it again."


@contextmanager
def reading(url: str, tensor: str | None = None) -> Iterator[None]:
    """The boundary around the bytes of one file: whatever they bring about is one line about it."""
    try:
        yield
    except CheckpointError:
        raise
    except ReadingError as error:
        raise error.at(url, tensor) from error
    except MemoryError as error:
        cause = (
            "expected that memory holds what it describes, it does not. Give more memory, or save "
            "it again if it is a small one."
        )
        raise ReadingError(cause).at(url, tensor) from error
    except Exception as error:  # no list of what bytes can raise is long enough
        cause = "The file is damaged, or of a kind that is not known here; save it again."
        raise ReadingError(f"{one_line(error)}. {cause}").at(url, tensor) from error


def cut_off(name: str, end: int, size: int) -> UnfinishedError:
    """A tensor that ends behind the end of its file."""
    return UnfinishedError(
        f"expected it to end at byte {end}, but the file ends at {size}. It may be half-written, "
        "or truncated.",
        name,
    )


# ------------------------------------------------------------------ tensors in files

#: How a record of a zip archive begins, and the length of the fixed part of its header.
ARCHIVE_START, ARCHIVE_HEADER_BYTES = b"PK\x03\x04", 30
#: What torch puts between the header of a record and its bytes, at most, so that they are aligned.
_MAX_PADDING = 128


class ArchiveRecord(ByteSource):
    """A record of a zip archive whose bytes lie as they are, checked against its contents."""

    def __init__(self, source: ByteSource, member: zipfile.ZipInfo) -> None:
        self.url, self.size = source.url, member.file_size
        self._source, self.member = source, member
        self._what = f"the record {member.filename[:80]!r}"

    @cached_property
    def _begin(self) -> int:
        """Its first byte: it comes behind a header of its own, which torch pads."""
        at = self.member.header_offset
        header = self._source.read(at, ARCHIVE_HEADER_BYTES)
        if not header.startswith(ARCHIVE_START):
            raise RefusedError(f"{self._what} has a false header")
        begin: int = at + len(header) + sum(struct.unpack("<HH", header[26:30]))
        if begin + self.size > self._source.size:
            raise RefusedError(f"{self._what} reaches too far")
        return begin

    def fill(self, buffer: memoryview, start: int) -> None:
        self._source.fill(buffer, self._begin + start)

    def range_of(self, start: int, length: int) -> tuple[ByteSource, Range]:
        at = self.member.header_offset  # the header is read with the beginning
        if start > _MAX_PADDING:
            return self._source.range_of(at, ARCHIVE_HEADER_BYTES)
        shortest = at + ARCHIVE_HEADER_BYTES + start + length
        longest = shortest + len(self.member.filename.encode()) + _MAX_PADDING
        return self._source, Range(at, min(longest, self._source.size), shortest)

    def whole(self) -> bytes:
        """All of a small one: nothing is ever unpacked."""
        data = self.read(0, self.size)
        if self.member.CRC and zlib.crc32(data) != self.member.CRC:
            raise RefusedError(f"{self._what} does not match its checksum")
        return data


class OldRecord(ArchiveRecord):
    """A storage in a file from before torch 1.6: behind 8 bytes that say how many numbers it is."""

    def __init__(self, source: ByteSource, key: str, at: int, num: int, itemsize: int) -> None:
        member = zipfile.ZipInfo(key)
        member.header_offset, member.file_size, member.CRC = at, num * itemsize, 0
        super().__init__(source, member)
        self._num = num

    @cached_property
    def _begin(self) -> int:
        at = self.member.header_offset
        if self._source.read(at, 8) != struct.pack("<q", self._num):
            raise RefusedError(f"{self._what} has a false length")
        return at + 8

    def range_of(self, start: int, length: int) -> tuple[ByteSource, Range]:
        at, end = self.member.header_offset, self.member.header_offset + 8 + start + length
        return self._source, Range(at if start == 0 else end - length, end, end)


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

    def pieces_at(self, starts: Sequence[int], length: int) -> Iterator[bytes]:
        """So many bytes from each of some rising places on, in an order that stays the same."""
        for data in self.chunks(memoryview(bytearray())):
            yield from (bytes(data[start : start + length]) for start in starts)


@dataclass(frozen=True, kw_only=True)
class StridedTensor(StoredTensor):
    """A tensor whose elements lie in one file as they lie in memory."""

    source: ByteSource
    start: int  # the first byte
    num_bytes: int  # from its first element to its last
    stride: tuple[int, ...] | None = None  # in elements; None: they lie in flat order
    crc: int | None = None  # the checksum of its bytes that the file itself states, if any

    def first_range(self, length: int) -> tuple[ByteSource, Range] | None:
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
        return super().chunks(buffer) if self.stride else self._as_they_lie(buffer)

    def pieces_at(self, starts: Sequence[int], length: int) -> Iterator[bytes]:
        with reading(self.source.url, self.entry.name):
            for start in starts:
                left = max(0, self.num_bytes - start)  # of one that is expanded little is there
                yield self.source.read(self.start + start, min(length, left))

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


def by_clean_names(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors by the names that their user wrote, all of them such as any log can take."""
    found: dict[str, StoredTensor] = {}
    for name in stored:
        shown = name.encode(errors="backslashreplace").decode()
        if len(name) > MAX_NAME:
            cause = f"expected names of at most {MAX_NAME} characters, got one of {len(name)}"
            raise RefusedError(cause, shown)
        if name != shown:
            raise RefusedError("expected names of Unicode, got half of a character", shown)
    for raw, name in clean_names(stored).items():
        entry = stored[raw].entry
        if name in found:
            raise RefusedError(f"two tensors have this name, one of them as {raw[:80]!r}", name)
        # torch multiplies empty dimensions, too, when it computes strides
        if math.prod(max(length, 1) for length in entry.shape) * entry.dtype.itemsize >= 2**63:
            raise RefusedError(f"expected a shape that memory could hold, got {entry.shape}", name)
        found[name] = stored[raw]
        if entry.name != name:
            found[name] = replace(stored[raw], entry=replace(entry, name=name))
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


def with_codes_told(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
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
            entry = replace(entry, name=name, stored_as=kind, problem=problem)
            one = StoredTensor(entry=entry)
        found[name] = one
    return found
