"""What ``torch.save`` writes: a zip archive of a pickle that describes, and a record a storage.

The model's state dict is somewhere inside, as the step is.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Collection, Mapping
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import Any

from sparsitywatch.checkpoints.base import Checkpoint, StoredTensor, as_step, refused
from sparsitywatch.checkpoints.inert_pickle import (
    Call,
    Global,
    Region,
    in_words,
    read_inert,
    stored_tensors,
)
from sparsitywatch.checkpoints.storage import ByteSource, DescriptionFile, Source
from sparsitywatch.errors import CheckpointError, IncompleteCheckpointError

__all__ = [
    "MODEL_KEYS",
    "STEP_KEYS",
    "TORCH_STARTS",
    "open_torch",
    "read_torch",
    "read_torch_zip",
    "step_in",
]

#: Keys under which a checkpoint keeps the model, in the order in which they are tried.
MODEL_KEYS = ("state_dict", "model", "module", "model_state_dict", "net")
#: Keys under which a checkpoint keeps the number of optimizer steps done.
STEP_KEYS = (
    "global_step",
    "iter_num",
    "step",
    "global_steps",
    "iteration",
    "num_updates",
    "steps_done",
)
#: The first bytes of a file from before version 1.6: the pickled magic number.
_OLD_START = b"\x80\x02\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
#: How files of torch.save begin.
TORCH_STARTS = (b"PK\x03\x04", _OLD_START)

_MAX_DEPTH = 3
#: Where Composer keeps the model, and the number of batches done.
_COMPOSER = "state"
_COMPOSER_STEP = (_COMPOSER, "timestamp", "Timestamp", "batch")


def read_torch(source: Source) -> tuple[dict[str, StoredTensor], Any]:
    """The tensors of the model by name, and all that the file describes."""
    tree, nodes, regions = _described(source)
    return stored_tensors(source, nodes, regions), tree


def open_torch(source: Source) -> Checkpoint:
    """A file of torch.save as a checkpoint: nanoGPT's, Lightning's, a bare state dict."""
    tree, nodes, regions = _described(source)
    kind = "torch"
    if isinstance(tree, dict) and "pytorch-lightning_version" in tree:
        kind = "lightning"
    elif isinstance(tree, dict) and _around_model(tree) is tree.get(_COMPOSER, tree):
        kind = "composer"
    step = step_in(tree)
    return Checkpoint(source.url, kind, stored_tensors(source, nodes, regions), [source], step)


def _described(source: Source) -> tuple[Any, dict[Any, Any], dict[str, Region]]:
    """All that a file describes, the tensors of the model in it, and where storages lie."""
    if source.read(0, min(source.size, len(_OLD_START))) == _OLD_START:
        raise CheckpointError(
            f"Cannot read {source.url}: expected a zip archive, as torch.save writes since version "
            "1.6, got a file from before. Write it anew: torch.save(torch.load(path, "
            "weights_only=True), path)."
        )
    tree, regions = read_torch_zip(source)
    weights = _search(tree, set())
    # a loss beside the model does not make the top a state dict
    inner = _around_model(tree) if weights is None or weights is tree else None
    if inner is not None:
        weights = _search(inner, set())
    if weights is None:
        raise CheckpointError(
            f"Cannot read {source.url}: expected a state dict, or one under "
            f"{', '.join(MODEL_KEYS)}; got {_what(tree)}. Save model.state_dict() and read that."
        )
    return tree, {key: node for key, node in weights.items() if _is_tensor(node)}, regions


def _is_tensor(node: Any) -> bool:
    """Whether a node of a pickle describes a tensor of any kind."""
    if not isinstance(node, Call) or not isinstance(node.function, Global):
        return False
    module, name = node.function.module, node.function.name
    return module in ("torch._utils", "torch._tensor") and name.startswith("_rebuild")


def _search(node: Any, seen: set[int], depth: int = 0) -> Mapping[Any, Any] | None:
    """The first dictionary that holds tensors, under the keys of a model or at the top.

    Each dictionary is searched once, however often it is mentioned.
    """
    if not isinstance(node, dict) or depth == _MAX_DEPTH or id(node) in seen:
        return None
    seen.add(id(node))
    for key in MODEL_KEYS:
        found = _search(node.get(key), seen, depth + 1)
        if found is not None:
            return found
    return node if any(_is_tensor(value) for value in node.values()) else None


def _around_model(tree: Any) -> Mapping[Any, Any] | None:
    """The one dictionary at the top that holds a model under its key, whatever its own is.

    None if there are several: which one is watched nobody has said.
    """
    seen: set[int] = set()
    holders = [
        node
        for node in (tree.values() if isinstance(tree, dict) else ())
        if isinstance(node, dict) and any(_search(node.get(key), seen) for key in MODEL_KEYS)
    ]
    return holders[0] if len(holders) == 1 else None


def _what(tree: Any) -> str:
    if isinstance(tree, dict):
        keys = [in_words(key)[:40] for key in islice(tree, 8)]
        return f"a dictionary of {', '.join(keys) or 'nothing'}"
    return f"{in_words(tree)}, which is never made" if isinstance(tree, Call) else in_words(tree)


def step_in(tree: Any) -> int | None:
    """The number of optimizer steps that a checkpoint states, at its top or beside the model."""
    for node in (tree, _around_model(tree)):
        if isinstance(node, dict):
            for key in STEP_KEYS:
                if key in node and (step := as_step(node[key])) is not None:
                    return step
    node = tree
    for key in _COMPOSER_STEP:
        node = node.get(key) if isinstance(node, dict) else None
    return None if node is None else as_step(node)


# ------------------------------------------------------------------ zip archives

#: Largest description that is read. Tensors lie outside of it: a few MB in practice.
MAX_PICKLE_BYTES = 256 * 2**20

#: Largest table of contents that is read: some hundred thousand records.
_MAX_CONTENTS_BYTES = 64 * 2**20
_LOCAL_HEADER_BYTES = 30
_BUFFER_BYTES = 32 * 2**10


def read_torch_zip(source: ByteSource) -> tuple[Any, dict[str, Region]]:
    """What an archive describes, and where the bytes of its storages lie, by their keys."""
    members = _members(source)
    pickle = next((name for name in members if name.endswith("/data.pkl")), None)
    if pickle is None:
        raise CheckpointError(
            f"Cannot read {source.url}: expected a file that torch.save wrote, got a zip "
            f"archive without a data.pkl{_kind_of(members)}."
        )
    root = pickle.removesuffix("data.pkl")
    regions = {}
    for name, member in members.items():
        if name.startswith(f"{root}data/"):
            regions[name.removeprefix(f"{root}data/")] = Region(
                member.file_size,
                partial(_data_start, source, member),
                order=member.header_offset,
                crc=member.CRC or None,  # torch writes 0 where it was asked to compute none
            )
    if f"{root}byteorder" in members:
        _check_byteorder(source, members[f"{root}byteorder"])
    if members[pickle].file_size > MAX_PICKLE_BYTES:
        cause = f"expected a description of at most {MAX_PICKLE_BYTES} bytes, got one of "
        raise refused(source.url, cause + str(members[pickle].file_size))
    data = _read_member(source, members[pickle])
    try:
        return read_inert(io.BytesIO(data)), regions
    except ValueError as error:
        raise refused(source.url, f"its description is broken: {error}") from error


def _kind_of(members: Collection[str]) -> str:
    """What an archive is that torch.save did not write, where its records show it."""
    if any(name.endswith(".npy") for name in members):
        return " (one of numpy)"
    if any(
        "models/" in name or name.endswith("serialized_exported_program.json") for name in members
    ):
        return " (a program of torch.export; save the module's state_dict)"
    return " (one of Keras)" if "model.weights.h5" in members else ""


def _members(source: ByteSource) -> dict[str, zipfile.ZipInfo]:
    """The records by name, each as long as it says, inside the file, beside the others."""
    url = source.url
    file = DescriptionFile(source, source.size, _MAX_CONTENTS_BYTES, _BUFFER_BYTES)
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, EOFError) as error:
        raise IncompleteCheckpointError(
            f"Cannot read {url}: expected the table of contents at the end of a torch archive, got "
            f"{error}. It may be half-written, or truncated."
        ) from error
    if any(name.endswith("/constants.pkl") for name in archive.namelist()):
        raise CheckpointError(
            f"Cannot read {url}: expected a state dict, got a TorchScript program. Save its "
            "weights: torch.save(torch.jit.load(path).state_dict(), other_path)."
        )
    members: dict[str, zipfile.ZipInfo] = {}
    end = 0
    for member in sorted(archive.infolist(), key=attrgetter("header_offset")):
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
        if member.header_offset < 0 or end > source.size:
            raise refused(url, f"the record {name[:80]!r} reaches beyond the end of the file")
        members[name] = member
    return members


def _data_start(source: ByteSource, member: zipfile.ZipInfo, offset: int = 0) -> int:
    """Where a byte of a record lies: they begin behind a local header that torch pads."""
    header = bytearray(_LOCAL_HEADER_BYTES)
    source.fill(memoryview(header), member.header_offset)
    if header[:4] != b"PK\x03\x04":
        raise refused(source.url, f"the record {member.filename[:80]!r} has a false header")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    begin = member.header_offset + _LOCAL_HEADER_BYTES + int(name_length) + int(extra_length)
    if begin + member.file_size > source.size:
        raise refused(source.url, f"the record {member.filename[:80]!r} reaches too far")
    return begin + offset


def _read_member(source: ByteSource, member: zipfile.ZipInfo) -> bytes:
    """The bytes of a small record, read as they lie: nothing is ever unpacked."""
    data = source.read(_data_start(source, member), member.file_size)
    if member.CRC and zlib.crc32(data) != member.CRC:
        cause = f"the record {member.filename[:80]!r} does not match its checksum"
        raise refused(source.url, cause)
    return data


def _check_byteorder(source: ByteSource, member: zipfile.ZipInfo) -> None:
    is_short = member.file_size <= len("little")
    order = _read_member(source, member) if is_short else b""
    if order != b"little":
        raise CheckpointError(
            f"Cannot read {source.url}: expected little-endian tensors, got byte order "
            f"{order!r}. Save it again on a little-endian machine, or as safetensors."
        )
