"""Files of ``torch.save`` from before version 1.6: pickles one after the other, then storages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sparsitywatch.checkpoints.base import refused
from sparsitywatch.checkpoints.inert_pickle import Global, PersistentId, read_inert
from sparsitywatch.checkpoints.parts import DescriptionFile, RangeFile
from sparsitywatch.checkpoints.storage import Source
from sparsitywatch.checkpoints.torch_tensors import STORAGE_DTYPES, Region
from sparsitywatch.errors import CheckpointError, IncompleteCheckpointError

__all__ = ["LEGACY_START", "read_torch_legacy"]

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
#: The first bytes of such a file: the pickled magic number.
LEGACY_START = b"\x80\x02\x8a\x0a" + _MAGIC_NUMBER.to_bytes(10, "little")

_PROTOCOL = 1001
_COUNT_BYTES = 8
_BUFFER_BYTES = 2**18
#: Largest description that is read, all pickles together; tensors lie behind it.
_MAX_DESCRIPTION_BYTES = 256 * 2**20


def read_torch_legacy(source: Source) -> tuple[Any, dict[str, Region]]:
    """What the file describes, and where the bytes of its storages lie.

    Raises:
        IncompleteCheckpointError: the file ends before its last storage does.
        CheckpointError: it is no such file, or not a true one.
    """
    length = min(source.size, _MAX_DESCRIPTION_BYTES)
    file = DescriptionFile(RangeFile(source, 0, length), length, _BUFFER_BYTES)
    outside: list[PersistentId] = []
    try:
        magic, protocol, system = (read_inert(file) for _ in range(3))
        tree = read_inert(file, outside)
        keys = read_inert(file)
    except CheckpointError:
        raise
    except ValueError as error:
        if length == source.size and (file.is_short or file.tell() == length):
            raise IncompleteCheckpointError(
                f"Cannot read {source.url}: expected its description to end, the file ends first. "
                "It may be half-written, or truncated."
            ) from error
        raise refused(source.url, f"its description is broken: {error}") from error
    if magic != _MAGIC_NUMBER or protocol != _PROTOCOL or not isinstance(system, dict):
        raise refused(source.url, "it does not begin as files of torch.save do")
    if system.get("little_endian") is not True:
        raise CheckpointError(
            f"Cannot read {source.url}: expected little-endian tensors, got others. Save it again "
            "with a current torch."
        )
    sizes = _sizes(source.url, outside)
    is_list = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not is_list or sorted(keys) != sorted(sizes):
        raise refused(source.url, "its list of storages is not that of its tensors")
    regions: dict[str, Region] = {}
    position = file.tell()
    for key in keys:
        count, itemsize = sizes[key]
        num_bytes = count * itemsize
        begin = position + _COUNT_BYTES
        if begin + num_bytes > source.size:
            raise IncompleteCheckpointError(
                f"Cannot read {source.url}: expected storage {key[:40]!r} to end at byte "
                f"{begin + num_bytes}, but the file ends at {source.size}. It may be "
                "half-written, or truncated."
            )
        regions[key] = Region(num_bytes, _checked_start(source, begin, count), order=begin)
        position = begin + num_bytes
    return tree, regions


def _sizes(url: str, outside: list[PersistentId]) -> dict[str, tuple[int, int]]:
    """Number of elements and their size of every storage, by key."""
    sizes: dict[str, tuple[int, int]] = {}
    for persistent in outside:
        value = persistent.value
        if isinstance(value, tuple) and len(value) == 6 and value[0] == "storage":
            _, kind, key, _, count, view = value
            dtype = STORAGE_DTYPES.get(kind.name) if isinstance(kind, Global) else None
            is_sound = dtype and isinstance(key, str) and type(count) is int and count >= 0
            if is_sound and view is None and sizes.get(key, (count,))[0] == count:
                assert dtype is not None  # noqa: S101
                sizes[key] = (count, dtype.itemsize)
                continue
        elif isinstance(value, tuple) and value[:1] == ("module",):
            continue  # source code of a pickled module; not needed
        raise refused(url, "it has a storage of a kind that current torch does not write")
    return sizes


def _checked_start(source: Source, begin: int, count: int) -> Callable[[], int]:
    """Where a storage begins, once the number of elements in front of it has been compared."""

    def find() -> int:
        said = int.from_bytes(source.read(begin - _COUNT_BYTES, _COUNT_BYTES), "little")
        if said != count:
            raise refused(source.url, f"expected a storage of {count} elements, got one of {said}")
        return begin

    return find
