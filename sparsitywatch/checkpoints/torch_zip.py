"""The zip archives of ``torch.save``: one pickle that describes, one record per storage."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection
from typing import Any

from sparsitywatch.checkpoints.base import refused
from sparsitywatch.checkpoints.inert_pickle import read_inert
from sparsitywatch.checkpoints.parts import DescriptionFile, RangeFile
from sparsitywatch.checkpoints.storage import ByteSource
from sparsitywatch.checkpoints.torch_tensors import Region
from sparsitywatch.errors import CheckpointError, IncompleteCheckpointError

__all__ = ["MAX_PICKLE_BYTES", "read_torch_zip"]

#: Largest description that is read. Tensors lie outside of it: a few MB in practice.
MAX_PICKLE_BYTES = 256 * 2**20

#: Largest table of contents that is read: some hundred thousand records.
_MAX_CONTENTS_BYTES = 64 * 2**20
_LOCAL_HEADER_BYTES = 30
_BUFFER_BYTES = 32 * 2**10


def read_torch_zip(
    source: ByteSource, start: int = 0, length: int | None = None
) -> tuple[Any, dict[str, Region]]:
    """What an archive describes, and where the bytes of its storages lie.

    Args:
        source: the file.
        start: where the archive begins in it.
        length: how long it is; None for the rest of the file.

    Raises:
        IncompleteCheckpointError: the archive has no end, where its table of contents is.
        CheckpointError: it is no archive of ``torch.save``, or not a true one.
    """
    length = source.size - start if length is None else length
    contents = RangeFile(source, start, length)
    view = DescriptionFile(contents, _MAX_CONTENTS_BYTES, _BUFFER_BYTES)
    try:
        archive = zipfile.ZipFile(view)
    except (zipfile.BadZipFile, EOFError) as error:
        raise IncompleteCheckpointError(
            f"Cannot read {source.url}: expected the table of contents at the end of a torch "
            f"archive, got {error}. It may be half-written, or truncated."
        ) from error
    if any(name.endswith("/constants.pkl") for name in archive.namelist()):
        raise CheckpointError(
            f"Cannot read {source.url}: expected a state dict, got a TorchScript program. Save its "
            "weights: torch.save(torch.jit.load(path).state_dict(), other_path)."
        )
    members = _members(source.url, archive, length)
    pickle = next((name for name in members if name.endswith("/data.pkl")), None)
    if pickle is None:
        raise CheckpointError(
            f"Cannot read {source.url}: expected a file that torch.save wrote, got a zip "
            f"archive without a data.pkl{_kind_of(members)}."
        )
    root = pickle.removesuffix("data.pkl")
    regions = {
        name.removeprefix(f"{root}data/"): Region(
            member.file_size,
            _finder(source, start, member, length),
            order=start + member.header_offset,
            crc=member.CRC or None,  # torch writes 0 where it was told to compute none
        )
        for name, member in members.items()
        if name.startswith(f"{root}data/")
    }
    if f"{root}byteorder" in members:
        _check_byteorder(source, start, members[f"{root}byteorder"], length)
    return _tree(source, start, members[pickle], length), regions


def _kind_of(members: Collection[str]) -> str:
    """What an archive is that torch.save did not write, where its records tell."""
    if any(name.endswith(".npy") for name in members):
        return " (one of numpy)"
    if any(
        "models/" in name or name.endswith("serialized_exported_program.json") for name in members
    ):
        return " (a program of torch.export; save the module's state_dict)"
    return " (one of Keras)" if "model.weights.h5" in members else ""


def _members(url: str, archive: zipfile.ZipFile, length: int) -> dict[str, zipfile.ZipInfo]:
    """The records by name, each as long as it says, inside the file, beside the others."""
    members: dict[str, zipfile.ZipInfo] = {}
    end = 0
    for member in sorted(archive.infolist(), key=lambda member: member.header_offset):
        name = member.filename
        if name in members:
            raise refused(url, f"the record {name[:80]!r} is there twice")
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise refused(url, f"expected records as torch writes them, {name[:80]!r} is packed")
        if member.flag_bits & 1:
            raise refused(url, f"the record {name[:80]!r} is encrypted")
        if member.header_offset < end:
            raise refused(url, f"the record {name[:80]!r} overlaps the one before it")
        end = member.header_offset + _LOCAL_HEADER_BYTES + member.file_size
        if member.header_offset < 0 or end > length:
            raise refused(url, f"the record {name[:80]!r} reaches beyond the end of the file")
        members[name] = member
    return members


def _finder(
    source: ByteSource, start: int, member: zipfile.ZipInfo, length: int
) -> Callable[[], int]:
    """Finds where a record's bytes begin: behind a local header that torch pads."""

    def find() -> int:
        header_start = start + member.header_offset
        header = source.read(header_start, _LOCAL_HEADER_BYTES)
        name_length, extra_length = struct.unpack("<HH", header[26:30])
        if header[:4] != b"PK\x03\x04":
            raise refused(source.url, f"the record {member.filename[:80]!r} has a false header")
        begin = header_start + _LOCAL_HEADER_BYTES + name_length + extra_length
        if begin + member.file_size > start + length:
            raise refused(source.url, f"the record {member.filename[:80]!r} reaches too far")
        return int(begin)

    return find


def _read_member(source: ByteSource, start: int, member: zipfile.ZipInfo, length: int) -> bytes:
    """The bytes of a small record, read as they lie: nothing is ever unpacked."""
    data = source.read(_finder(source, start, member, length)(), member.file_size)
    if member.CRC and zlib.crc32(data) != member.CRC:
        name = member.filename[:80]
        raise refused(source.url, f"the record {name!r} does not match its checksum")
    return data


def _check_byteorder(source: ByteSource, start: int, member: zipfile.ZipInfo, length: int) -> None:
    is_short = member.file_size <= len("little")
    order = _read_member(source, start, member, length) if is_short else b""
    if order != b"little":
        raise CheckpointError(
            f"Cannot read {source.url}: expected little-endian tensors, got byte order "
            f"{order!r}. Save it again on a little-endian machine, or as safetensors."
        )


def _tree(source: ByteSource, start: int, member: zipfile.ZipInfo, length: int) -> Any:
    if member.file_size > MAX_PICKLE_BYTES:
        raise refused(
            source.url,
            f"expected a description of at most {MAX_PICKLE_BYTES} bytes, got one of "
            f"{member.file_size}",
        )
    data = _read_member(source, start, member, length)
    try:
        return read_inert(io.BytesIO(data))
    except ValueError as error:
        raise refused(source.url, f"its description is broken: {error}") from error
