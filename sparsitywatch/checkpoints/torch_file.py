"""What ``torch.save`` writes: a pickle that describes, and the storages, mostly in a zip archive.

The model's state dict is somewhere inside, as the step is. DeepSpeed keeps such a file in a folder.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Collection, Hashable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import numpy as np
import torch

from sparsitywatch.checkpoints.base import Contents, Tree
from sparsitywatch.checkpoints.inert_pickle import (
    Call,
    Global,
    PersistentId,
    array_of,
    in_words,
    read_inert,
    whole_of,
)
from sparsitywatch.checkpoints.storage import ByteSource, DescriptionFile, Location, Range
from sparsitywatch.checkpoints.tensors import (
    ARCHIVE_HEADER_BYTES,
    MAX_NAME,
    ArchiveRecord,
    OldRecord,
    ReadingError,
    RefusedError,
    StoredTensor,
    StridedTensor,
    UnfinishedError,
    cut_off,
    reading,
)
from sparsitywatch.weights.layout import Entry

#: How files from before version 1.6 begin: with the pickled magic number.
OLD_START = b"\x80\x02\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little")


def read_torch(file: Location) -> Contents:
    """A file of torch.save: nanoGPT's, Lightning's, a bare state dict."""
    tree = Pickled(file.open())
    tree.root, modules = _opened(tree.root)
    kind, words = "torch", tree.root if isinstance(tree.root, dict) else {}
    if "pytorch-lightning_version" in words:
        kind = "lightning"
    elif isinstance(words.get("state"), dict) and "model" in words["state"]:
        kind = "composer"
    if modules:
        kind += f", a whole {modules[0]}"
    return Contents(place=file, format=kind, tree=tree)


#: What a module of torch keeps its tensors and its parts in; and how deep one lies, at most.
_PARTS, _MAX_DEPTH = ("_parameters", "_buffers", "_modules"), 8
_PASSING = "_non_persistent_buffers_set"


def _opened(root: Any) -> tuple[Any, list[str]]:
    """A tree with the tensors of each whole module in its place, and the classes of these."""
    known: dict[int, Any] = {}
    classes: list[str] = []

    def opened(node: Any, depth: int) -> Any:
        if id(node) not in known and depth < _MAX_DEPTH:
            if type(node) is dict:
                made = known[id(node)] = dict[Any, Any]()  # before what is in it: it may be itself
                made.update((key, opened(one, depth + 1)) for key, one in node.items())
            elif tensors := _of_module(node):
                known[id(node)] = tensors
                classes.append(re.sub(r"[^\w.]", "?", in_words(node.function), flags=re.ASCII))
        return known.get(id(node), node)

    return opened(root, 0), classes


def _of_module(module: Any) -> dict[str, Any]:
    """The tensors of a whole module by the names of its ``state_dict``; nothing is made."""
    found: dict[str, Any] = {}
    known, waiting = set[int](), [("", module)]
    while waiting:
        before, node = waiting.pop()
        state = node.state if isinstance(node, Call) and id(node) not in known else None
        state = state if isinstance(state, dict) else {}
        parts: list[Any] = [state.get(part) for part in _PARTS]
        if len(before) > MAX_NAME or not all(isinstance(part, dict) for part in parts):
            continue
        known.add(id(node))
        passing = state.get(_PASSING)
        if isinstance(passing, Call) and passing.arguments:
            (passing, *_) = passing.arguments
        for name, leaf in (*parts[0].items(), *parts[1].items()):
            if leaf is not None and name not in (passing or ()):
                found[f"{before}{name}"] = leaf
        waiting += [(f"{before}{name}.", part) for name, part in parts[2].items()]
    return found


class Pickled(Tree):
    """What an archive of torch.save describes; its ends are nodes of a pickle."""

    def __init__(self, source: ByteSource) -> None:
        is_old = source.read(0, min(source.size, len(OLD_START))) == OLD_START
        root, self._records = _read_old(source) if is_old else _read_zip(source)
        super().__init__(root)
        self._source = source

    def look(self, node: Any) -> tuple[Sequence[int], bool] | None:
        array = _array(node)
        if array is not None:
            return array.shape, array.dtype.kind == "f"
        function = _function(node)
        is_tensor = function is not None and function.name.startswith("_rebuild")
        is_tensor &= function is not None and function.module in ("torch._utils", "torch._tensor")
        if not is_tensor and _made_by_its_class(node) is None:
            return None
        call = _plain_call(node)
        size = as_sizes(call.arguments[2]) if call else None
        if call is None or size is None:  # of another kind, or broken: reading it says so
            return (0, 0), True
        storage = call.arguments[0]
        kind = storage.value[1] if isinstance(storage, PersistentId) else None
        name = kind.name if isinstance(kind, Global) else "UntypedStorage"
        base = _STORAGE_DTYPES.get(name, torch.float32)
        return size, base.is_floating_point or name == "UntypedStorage"

    def stored(self, tensors: Mapping[str, Any]) -> dict[str, StoredTensor]:
        """As of ``Tree``; views of one storage may come to more than the file, but not to much."""
        left = _MAX_TIMES_SIZE * self._source.size + _MAX_EXPANDED_BYTES
        seen: set[Hashable] = set()
        found = {name: self._at(name, node) for name, node in tensors.items()}
        for name, entry in [(name, one.entry) for name, one in found.items()]:
            if entry.problem or entry.storage in seen:
                continue
            if entry.num_bytes > left:
                problem = f"it is expanded to {entry.num_bytes} bytes that are not in the file"
                found[name] = StoredTensor(entry=replace(entry, problem=problem))
            else:
                left -= entry.num_bytes
                seen.add(entry.storage)
        return found

    def _at(self, name: str, node: Any) -> StoredTensor:
        """The tensor of a node, its place in the file checked against that of its storage."""
        call, array = _plain_call(node), _array(node)
        if array is not None:
            values = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
            entry = Entry(name=name, shape=array.shape, dtype=values.dtype)
            return _ArrayTensor(entry=entry, position=(self._source.url, 0), values=values)
        if call is None:
            return _unreadable(name, node)
        key, dtype, length = _storage_of(name, call)
        offset, shape, stride = _place_of(name, call)
        if key not in self._records:
            raise RefusedError(f"its storage {key[:40]!r} is not in the file", name)
        record, member = self._records[key], self._records[key].member
        reach, is_flat = extent(shape, stride)
        begin, num_bytes = offset * dtype.itemsize, reach * dtype.itemsize
        if begin + num_bytes > member.file_size:
            raise RefusedError(
                f"expected shape {shape} with strides {stride} of {dtype} inside its storage of "
                f"{member.file_size} bytes, it needs {begin + num_bytes}",
                name,
            )
        if member.file_size != length:
            raise RefusedError(
                f"expected a storage of {length} bytes, got {member.file_size}", name
            )
        return StridedTensor(
            entry=Entry(name=name, shape=shape, dtype=dtype, storage=(key, offset, shape, stride)),
            position=(self._source.url, member.header_offset + begin),
            source=record,
            start=begin,
            num_bytes=num_bytes,
            stride=None if is_flat else stride,
            # torch writes 0 where it was asked to compute none
            crc=(member.CRC or None) if num_bytes == member.file_size else None,
        )


@dataclass(frozen=True, kw_only=True)
class _ArrayTensor(StoredTensor):
    """An array of numpy, which lies in the description itself."""

    values: torch.Tensor

    def load(self) -> torch.Tensor:
        return self.values


def _array(node: Any) -> np.ndarray | None:
    return array_of(node) if isinstance(node, Call) else None


def _function(node: Any) -> Global | None:
    """What a node of a pickle calls, if it is a call of something by its name."""
    if isinstance(node, Call) and isinstance(node.function, Global):
        return node.function
    return None


def _made_by_its_class(node: Any) -> Global | None:
    """The class of a tensor that has a way of its own to be saved, such as one of fp8."""
    maker = node.function if isinstance(node, Call) else None
    if isinstance(maker, Call) and maker.arguments:
        maker = maker.arguments[0]  # a method of the class
    is_one = isinstance(maker, Global) and maker.name.rpartition(".")[2].endswith("Tensor")
    return maker if is_one else None


# ------------------------------------------------------------------ zip archives

#: Largest description that is read. Tensors lie outside of it: a few MB in practice.
_MAX_PICKLE_BYTES = 256 * 2**20
#: The three records at the end of an archive that lead to its table of contents.
_END_BYTES = 56 + 20 + 22
#: What torch writes into the small records; another number is of another version.
_ID = b"0" * 40
_MAX_VERSION = 10
_WORDS = {"byteorder": b"little", ".storage_alignment": b"64", ".format_version": b"1",
          "version": b"3\n", ".data/serialization_id": _ID}  # fmt: skip
#: Of a record: its length follows on it; its name is in UTF-8.
_FLAGS = 0x808
#: How the name of the record ends that describes all others.
_DATA = "/data.pkl"
#: Largest table of contents that is read: some hundred thousand records.
_MAX_CONTENTS_BYTES = 64 * 2**20


def _read_zip(source: ByteSource) -> tuple[Any, dict[str, ArchiveRecord]]:
    """What an archive describes, and the records of its storages by their keys."""
    records = _records(source)
    pickle = next(name for name in records if name.endswith(_DATA))
    root = pickle.removesuffix("data.pkl")
    if f"{root}version" not in records:
        raise RefusedError("it has no record of its version")
    if odd := [name for name in records if not (name.startswith(root) and name.isascii())]:
        raise RefusedError(f"the record {odd[0][:80]!r} is not in the folder of the others")
    is_far = not source.is_local
    for name, usual in _WORDS.items():
        one = records.get(root + name)
        # on a remote storage each is a request, and the checksum says it without
        if one is None or (is_far and (usual == _ID or zlib.crc32(usual) == one.member.CRC)):
            continue
        word = one.whole() if one.member.file_size <= len(usual) else b""
        if word != usual and name == "byteorder":
            raise ReadingError(
                f"expected little-endian tensors, got byte order {word!r}. Save it again on a "
                "little-endian machine, or as safetensors."
            )
        is_number = usual.strip().isdigit() and word.strip().isdigit()
        if word != usual and not (is_number and (name != "version" or int(word) <= _MAX_VERSION)):
            raise RefusedError(f"expected {usual!r} in its record {name!r}, got {word!r}")
    size = records[pickle].member.file_size
    if size > _MAX_PICKLE_BYTES:
        raise RefusedError(
            f"expected a description of at most {_MAX_PICKLE_BYTES} bytes, got one of {size}"
        )
    file, described = records[pickle].range_of(0, min(size, _MAX_PICKLE_BYTES // 16))
    file.expect([described])
    data = records[pickle].whole()
    try:
        tree = read_inert(data)
    except ValueError as error:
        raise RefusedError(f"its description is broken: {error}") from error
    before = f"{root}data/"
    return tree, {n.removeprefix(before): r for n, r in records.items() if n.startswith(before)}


#: What an archive is that torch.save did not write, by its records.
_KINDS_OF_ARCHIVES = (
    (" (one of numpy)", re.compile(r"\.npy$")),
    (" (a program of torch.export; save the module's state_dict)",
     re.compile(r"models/|serialized_exported_program\.json$")),
    (" (one of Keras)", re.compile(r"^model\.weights\.h5$")),
)  # fmt: skip


def _check_names(url: str, names: Collection[str]) -> None:
    """Raise, with what to write instead, unless an archive is one of torch.save, by its names."""
    if any(name.endswith("/constants.pkl") for name in names):
        raise ReadingError(
            "expected a state dict, got a TorchScript program. Save its weights: "
            "torch.save(torch.jit.load(path).state_dict(), other_path)."
        )
    if not any(name.endswith(_DATA) for name in names):
        kinds = (what for what, part in _KINDS_OF_ARCHIVES if any(map(part.search, names)))
        what = next(kinds, "") or f". Name what is inside of it: zip://::{url}, for all of it"
        raise ReadingError(
            f"expected a file that torch.save wrote, got a zip archive without a data.pkl{what}."
        )


def _check_end(source: ByteSource) -> None:
    """Raise unless an archive ends as torch ends one: whole, and with nothing before or behind."""
    end = source.read(max(0, source.size - _END_BYTES), min(source.size, _END_BYTES))
    mark, disk, first, num, total, size, offset, _ = struct.unpack("<4s4H2LH", end[-22:])
    is_wide = end[:4] == b"PK\6\6" and end[56:60] == b"PK\6\7"
    if is_wide:  # numbers of 64 bits, and where they lie
        disk, first, num, total, size, offset = struct.unpack("<2L4Q", end[16:56])
        place = struct.unpack("<LQL", end[60:76])
        is_wide = place == (0, source.size - _END_BYTES, 1)
    length = offset + size + (_END_BYTES if is_wide else 22)
    is_one = mark == b"PK\5\6" and {disk, first} <= {0, 0xFFFF} and num == total
    if not is_one or length != source.size:
        raise RefusedError("its table of contents contradicts its length")


def _records(source: ByteSource) -> dict[str, ArchiveRecord]:
    """The records by name, each as long as it says, inside the file, beside the others."""
    file: Any = DescriptionFile(source, _MAX_CONTENTS_BYTES)
    source.expect([Range(max(0, source.size - _END_BYTES), source.size, source.size + 1)])
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, EOFError) as error:
        raise UnfinishedError(
            f"expected the table of contents at the end of a torch archive, got {error}. It may be "
            "half-written, or truncated."
        ) from error
    _check_end(source)
    _check_names(source.url, archive.namelist())
    records: dict[str, ArchiveRecord] = {}
    end = 0
    for member in sorted(archive.infolist(), key=attrgetter("header_offset")):
        what = f"the record {member.filename[:80]!r}"
        if member.filename in records:
            raise RefusedError(f"{what} is there twice")
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise RefusedError(f"expected records as torch writes them, {what} is packed")
        if member.flag_bits & ~_FLAGS or member.volume:
            raise RefusedError(f"{what} is encrypted, or in a way that torch does not know")
        if member.header_offset < end:
            raise RefusedError(f"{what} overlaps the one before it")
        end = member.header_offset + ARCHIVE_HEADER_BYTES + member.file_size
        if member.header_offset < 0 or end > source.size:
            raise RefusedError(f"{what} reaches beyond the end of the file")
        records[member.filename] = ArchiveRecord(source, member)
    return records


# ------------------------------------------------------------------ files from before version 1.6

#: How much is read first of a description whose length nobody states, and how much more then.
_FIRST_BYTES, _TIMES = 2**15, 8
_OLD_PROTOCOL = 1001


def _read_old(source: ByteSource) -> tuple[Any, dict[str, ArchiveRecord]]:
    """The same: five pickles, the fourth of which describes, and the storages behind them."""
    most, length = min(source.size, _MAX_PICKLE_BYTES), _FIRST_BYTES
    while True:
        head, outside = io.BytesIO(source.read(0, min(length, most))), list[Any]()
        try:
            _, protocol, system, root, keys = (read_inert(head, outside) for _ in range(5))
            break
        except ValueError as error:
            if length >= source.size:
                raise UnfinishedError(
                    f"its description is broken: {error}. It may be half-written, or truncated."
                ) from error
            if length >= most:
                raise RefusedError(f"its description is broken: {error}") from error
            length *= _TIMES
    if protocol != _OLD_PROTOCOL or not isinstance(system, dict) or not system.get("little_endian"):
        raise ReadingError(
            "expected a file of protocol 1001 on a little-endian machine, got another. Write it "
            "anew: torch.save(torch.load(path, weights_only=True), path)."
        )
    sizes = {key: (num, base.itemsize) for key, base, num in map(_outside, outside)}
    if not isinstance(keys, list) or sorted(sizes) != sorted(map(str, keys)):
        raise RefusedError("its storages are not those that its description names")
    records: dict[str, ArchiveRecord] = {}
    end = head.tell()
    for key in keys:
        records[key] = OldRecord(source, key, end, *sizes[key])
        end += 8 + math.prod(sizes[key])
    if end > source.size:
        raise cut_off(keys[-1], end, source.size)
    if end < source.size:
        raise RefusedError(f"expected it to end at byte {end}, but it has {source.size}")
    return root, records


# ------------------------------------------------------------------ tensors

#: More dimensions than torch's own kernels take; a shape is never longer.
_MAX_DIMS = 64

#: dtypes of the storage classes that torch.save names.
_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool, "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64, "UntypedStorage": torch.uint8,
}  # fmt: skip
#: What rebuilds dense tensors, with how many arguments.
_PLAIN = {"_rebuild_tensor": (4,), "_rebuild_tensor_v2": (6, 7), "_rebuild_tensor_v3": (7, 8)}
_WRAPPED = frozenset({"_rebuild_parameter", "_rebuild_parameter_with_state"})
_FROM_TYPE = Global("torch._tensor", "_rebuild_from_type_v2")
#: What makes a tensor of a class that keeps its numbers in other tensors, such as torchao's.
_WRAPPER = Global("torch._utils", "_rebuild_wrapper_subclass")


def as_sizes(node: Any) -> tuple[int, ...] | None:
    """A shape, strides or offsets out of a pickle or JSON; None for what no tensor could have."""
    if _function(node) == Global("torch", "Size") and len(node.arguments) == 1:
        (node,) = node.arguments
    if not isinstance(node, tuple | list) or len(node) > _MAX_DIMS:
        return None
    for size in node:
        if type(size) is not int or not 0 <= size < 2**63:
            return None
    return tuple(node)


def as_dtype(node: Any) -> torch.dtype | None:
    """The dtype that a global such as torch.float32 names; None if it is something else."""
    is_of_torch = isinstance(node, Global) and node.module == "torch"
    found = vars(torch).get(node.name) if is_of_torch else None
    return found if isinstance(found, torch.dtype) else None


def _unwrapped(node: Any) -> Any:
    """What builds a tensor, out of what parameters and classes wrap around it."""
    for _ in range(4):
        function = _function(node)
        if function is None or not node.arguments:
            return node
        if function.module == "torch._utils" and function.name in _WRAPPED:
            node = node.arguments[0]
        elif function == _FROM_TYPE and [type(one) for one in node.arguments[2:3]] == [tuple]:
            node = Call(node.arguments[0], node.arguments[2])
        else:
            return node
    return node


def _plain_call(node: Any) -> Call | None:
    """The call that builds a dense tensor; None if it is of another kind."""
    node = _unwrapped(node)
    function = _function(node)
    if function is None or function.module != "torch._utils" or len(node.arguments) < 4:
        return None
    return node if function.name in _PLAIN else None


#: What a tensor is that is not dense, by the function that would make it.
_KINDS = (
    (re.compile(r"_rebuild_(sparse|sparse_csr)_tensor$"), "it is sparse"),
    (re.compile(r"_rebuild_qtensor$"), "it is codes of a quantised tensor"),
    (re.compile(r"_rebuild_nested_tensor$"), "it is a nested tensor"),
    (re.compile(r"_rebuild_meta_tensor"), "it is on the meta device, without data"),
)


def _unreadable(name: str, node: Any) -> StoredTensor:
    """The tensor of a node that is no dense one."""
    node = _unwrapped(node)
    function, kind = _function(node), _made_by_its_class(node)
    if function == _WRAPPER and node.arguments:
        kind = node.arguments[0] if isinstance(node.arguments[0], Global) else None
    problem = ""
    if kind is not None:
        how = "full_tensor()" if kind.name == "DTensor" else "dequantize()"
        problem = f"it is a {in_words(kind)}, a class of its own (save what its {how} gives)"
    elif function is not None:
        problem = next((why for one, why in _KINDS if one.match(function.name)), "")
    if not problem and (function is None or function.name in _PLAIN):
        raise RefusedError("expected a dense tensor, got another kind", name)
    problem = problem or f"it is a tensor of another kind ({in_words(function)})"
    # where they are given, the shape comes after the storage, or last among the parts
    some = node.arguments[:8]
    flat = [part for one in some for part in (one if isinstance(one, tuple) else (one,))]
    shape = next((shape for shape in map(as_sizes, (*some, *flat[:32])) if shape), ())
    what = kind.name if kind is not None else problem.removeprefix("it is ")
    entry = Entry(name=name, shape=shape, dtype=torch.uint8, stored_as=what, problem=problem)
    return StoredTensor(entry=entry)


#: What views of its storages may come to, as a multiple of a file and in bytes beside it.
_MAX_TIMES_SIZE, _MAX_EXPANDED_BYTES = 4, 64 * 2**20


def _storage_of(name: str, call: Call) -> tuple[Any, torch.dtype, Any]:
    """The key of the storage that a tensor is a part of, the tensor's dtype, and bytes of it."""
    storage = call.arguments[0]
    if not isinstance(storage, PersistentId) or not isinstance(storage.value, tuple):
        raise RefusedError("expected a tensor with a storage, got one without", name)
    key, base, num = _outside(storage.value, name)
    dtype: torch.dtype | None = base
    if call.function.name == "_rebuild_tensor_v3":
        dtype = as_dtype(call.arguments[6]) if len(call.arguments) > 6 else None
    if dtype is None:
        raise RefusedError("expected a dtype that torch has, got none", name)
    return key, dtype, num * base.itemsize


def _outside(value: Any, name: str | None = None) -> tuple[str, torch.dtype, int]:
    """The key, the dtype and the length of a storage, as a pickle names it."""
    # before version 1.6 a sixth word says which part of another storage it is: since 0.4 none
    is_one = isinstance(value, tuple) and value[5:] in ((), (None,)) and value[:1] == ("storage",)
    if not is_one or len(value) < 5:
        raise RefusedError("expected a storage, got something else", name)
    kind, key, device, num = value[1:5]
    base = _STORAGE_DTYPES.get(kind.name) if isinstance(kind, Global) else None
    if base is None:
        raise RefusedError(f"expected a dtype that torch has, got {in_words(kind)}", name)
    if type(num) is not int or num < 0 or not (isinstance(device, str) and isinstance(key, str)):
        raise RefusedError("expected a storage with a key, a device and a length", name)
    return key, base, num


def _place_of(name: str, call: Call) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    """Where a tensor begins in its storage, its shape and its strides, in elements."""
    if len(call.arguments) not in _PLAIN[call.function.name]:
        raise RefusedError("it is made with more or less than torch needs", name)
    _, offset, size, steps, *rest = call.arguments
    shape, stride = as_sizes(size), as_sizes(steps)
    is_place = type(offset) is int and offset >= 0
    # whether it requires grad, and what torch keeps beside it
    is_place &= not rest or type(rest[0]) is bool
    is_place &= all(isinstance(one, dict) for one in rest[2:] if call.function.name[-1] == "2")
    if not is_place or shape is None or stride is None or len(shape) != len(stride):
        raise RefusedError("its shape, strides and offset contradict each other", name)
    return offset, shape, stride


def extent(shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, bool]:
    """How many elements of storage a tensor reaches over, and whether they lie in flat order."""
    if 0 in shape:
        return 0, True
    reach, num_flat, is_flat = 1, 1, True
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        reach += (size - 1) * step
        is_flat &= size == 1 or step == num_flat
        num_flat *= size
    return reach, is_flat


# ------------------------------------------------------------------ DeepSpeed

_STATES = "_model_states.pt"
#: All weights of a model, where it is neither sharded (ZeRO-3) nor split between ranks.
_WHOLE = "mp_rank_00_model_states.pt"
_LATEST = "latest"
_MAX_TAG_BYTES = 256


def read_beside(file: Location) -> Tree:
    """What a file beside that of the weights holds, under its own name."""
    with reading(file.shown):
        tree = Pickled(file.open())
    tree.root = {file.path.rpartition("/")[2]: tree.root}
    return tree


def read_deepspeed(place: Location, names: Collection[str]) -> Contents:
    """A folder of DeepSpeed, or the one inside that its ``latest`` names; no partition is read."""
    states = [name for name in names if name.endswith(_STATES)]
    if not states and _LATEST in names:
        with closing(place.inside(_LATEST).source()) as latest:
            tag = latest.read(0, min(latest.size, _MAX_TAG_BYTES)).decode(errors="replace").strip()
        if tag in names:
            place = place.inside(tag)
            states = [name for name in place.names() if name.endswith(_STATES)]
    is_whole = states == [_WHOLE]
    if is_whole:
        file = place.inside(_WHOLE)
        with reading(file.shown):
            contents = read_torch(file)
        tree = contents.tree.root
        is_whole = not isinstance(tree, dict) or (whole_of(tree.get("mp_world_size")) or 1) == 1
    if not is_whole:
        raise ReadingError(
            "expected whole tensors, got the partitions of DeepSpeed ZeRO. Make them whole: run "
            "`python zero_to_fp32.py . consolidated --safe_serialization` in that folder and read "
            "`consolidated`, or train with stage3_gather_16bit_weights_on_model_save."
        )
    return replace(contents, place=place, format="deepspeed")
