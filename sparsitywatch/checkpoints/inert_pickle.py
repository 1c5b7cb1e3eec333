"""Pickles read as descriptions: nothing is imported, nothing is called, no class is made.

``pickle.load`` runs what the file says. Here the same bytes only become data: a call is a
node that names what would have been called, and with what. Whoever reads the tree picks out
the few nodes that it knows; a malicious one is a node like any other and does nothing.
"""

from __future__ import annotations

import math
import pickletools
import re
import warnings
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, BinaryIO

import torch

from sparsitywatch.checkpoints.base import StoredTensor, StridedTensor, refused
from sparsitywatch.checkpoints.storage import ByteSource
from sparsitywatch.weights.layout import Entry

__all__ = [
    "STORAGE_DTYPES",
    "Call",
    "Compound",
    "Global",
    "PersistentId",
    "Region",
    "as_dtype",
    "as_sizes",
    "in_words",
    "read_inert",
    "stored_tensor",
    "stored_tensors",
]

#: Beyond what any pickle numbers; whole numbers of any length would hash to whatever one likes.
_MAX_MEMO = 2**32
_MAX_KEY_BITS = 64


@dataclass(frozen=True)
class Global:
    """A name that the pickle mentions; it is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False)
class Call:
    """A call or an object that the pickle describes; it is never made."""

    function: Any
    arguments: Any
    state: Any = None
    items: list[Any] = field(default_factory=list)
    pairs: dict[Any, Any] = field(default_factory=dict)


@dataclass(eq=False, repr=False)
class PersistentId:
    """What the pickle keeps outside of itself, such as the bytes of a tensor."""

    value: Any


@dataclass(eq=False, repr=False)
class Compound:
    """A key or a member of a set that is no plain value: itself, and equal to nothing else.

    The hash of a tuple is that of all that is in it, each time anew. Tuples of one tuple twice,
    forty deep, are a hundred bytes of a pickle and a year of hashing.
    """

    value: Any


def in_words(node: Any) -> str:
    """A node in a few words; what is in it, which may be without end, is not looked at.

    >>> in_words((1, 2)), in_words(10**5000), in_words(Call(Global("a", "b"), ()))
    ('a tuple', 'a large number', 'an object of a.b')
    """
    if isinstance(node, str):
        return node[:80]
    if isinstance(node, Compound):
        return in_words(node.value)
    if isinstance(node, Global):
        return f"{node.module[:40]}.{node.name[:40]}"
    if isinstance(node, Call):
        what = node.function
        return f"an object of {in_words(what)}" if isinstance(what, Global) else "an object"
    if isinstance(node, int) and node.bit_length() > _MAX_KEY_BITS:
        return "a large number"
    if node is None or isinstance(node, int | float):
        return str(node)
    return f"a {type(node).__name__}"


def _key(node: Any) -> Any:
    """What stands for a node in a dictionary or a set: something with a hash of its own."""
    is_long = type(node) is int and node.bit_length() > _MAX_KEY_BITS
    return Compound(node) if is_long or isinstance(node, tuple | frozenset) else node


#: Opcodes whose argument is the value.
_LITERALS = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)
#: Opcodes without an argument that push a value of their own.
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_DICT": dict, "EMPTY_SET": set
}  # fmt: skip
#: What else happens on the stack: to single values, to containers, to what pickle would call.
_ON_VALUES = frozenset(
    {
        *("MARK", "POP", "POP_MARK", "DUP", "PROTO", "FRAME"),
        *("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE", "GET", "BINGET", "LONG_BINGET"),
    }
)
_ON_CONTAINERS = frozenset(
    {
        *("APPEND", "APPENDS", "LIST", "ADDITEMS", "FROZENSET"),
        *("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "DICT", "SETITEM", "SETITEMS"),
    }
)
_NUM_ITEMS = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "APPEND": 1, "SETITEM": 2}
_ON_OBJECTS = frozenset(
    {
        *("GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "INST", "OBJ", "BUILD"),
        *("PERSID", "BINPERSID"),
    }
)
#: Calls without any effect that give a dictionary.
_DICTIONARIES = frozenset(
    {Global("collections", "OrderedDict"), Global("collections", "defaultdict")}
)


def read_inert(file: BinaryIO, outside: list[PersistentId] | None = None) -> Any:
    r"""What one pickle describes, made of plain data, ``Global``, ``Call`` and ``PersistentId``.

    Memory and time are linear in the bytes of the pickle: nothing that it shares is ever gone
    through twice, and no key is hashed that could be as large as the pickle.

    Args:
        file: stands at the beginning of the pickle, and behind its end afterwards.
        outside: takes every ``PersistentId`` in the order of the pickle.

    Raises:
        ValueError: the bytes are no pickle, or one that contradicts itself.

    >>> import io
    >>> evil = b"cposix\nsystem\n(S'rm -rf /'\ntR."
    >>> call = read_inert(io.BytesIO(evil))
    >>> str(call.function), call.arguments
    ('posix.system', ('rm -rf /',))
    """
    machine = _Machine([] if outside is None else outside)
    try:
        with warnings.catch_warnings():
            # odd escapes in a string: about the file's bytes, not about anybody's code
            warnings.simplefilter("ignore")
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name == "STOP":
                    return machine.stack.pop()
                machine.step(opcode.name, argument)
    except (
        IndexError, KeyError, TypeError, AttributeError, RecursionError, OverflowError
    ) as error:  # fmt: skip
        raise ValueError(f"a pickle that contradicts itself ({type(error).__name__})") from error
    raise ValueError("a pickle without an end")


class _Machine:
    """The stack of a pickle."""

    def __init__(self, outside: list[PersistentId]) -> None:
        self.outside = outside
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # stacks under the marks
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Do what one opcode says."""
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in _ON_VALUES:
            self._move(name, argument)
        elif name in _ON_CONTAINERS:
            self._collect(name)
        elif name in _ON_OBJECTS:
            self._describe(name, argument)
        else:
            raise ValueError(f"the pickle opcode {name}, which no checkpoint needs")

    def _move(self, name: str, argument: Any) -> None:
        if name == "MARK":
            self.below.append(self.stack)
            self.stack = []
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            if argument >= _MAX_MEMO:
                raise ValueError("a pickle that numbers more than a pickle can hold")
            self.memo[argument] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name == "DUP":
            self.stack.append(self.stack[-1])
        elif name == "POP_MARK" or (name == "POP" and not self.stack):
            self._to_mark()
        elif name == "POP":
            self.stack.pop()

    def _to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def _items(self, name: str) -> list[Any]:
        """What an opcode puts into a container: so many values, or all since the mark."""
        count = _NUM_ITEMS.get(name)
        if count is None:
            return self._to_mark()
        items = self.stack[-count:]
        if len(items) < count:
            raise IndexError("too few values")
        del self.stack[-count:]
        return items

    def _collect(self, name: str) -> None:
        items = self._items(name)
        if name.startswith("TUPLE"):
            self.stack.append(tuple(items))
        elif name == "FROZENSET":
            self.stack.append(frozenset(map(_key, items)))
        elif name in ("LIST", "DICT"):
            self.stack.append([] if name == "LIST" else {})
        target = self.stack[-1]
        if name in ("LIST", "APPEND", "APPENDS"):
            if not isinstance(target, list | Call):
                raise TypeError("expected a list")
            (target.items if isinstance(target, Call) else target).extend(items)
        elif name in ("DICT", "SETITEM", "SETITEMS"):
            self._set(target, items)
        elif name == "ADDITEMS":
            if not isinstance(target, set):
                raise TypeError("expected a set")
            target.update(map(_key, items))

    def _set(self, target: Any, pairs: list[Any]) -> None:
        if not isinstance(target, dict | Call) or len(pairs) % 2:
            raise ValueError("a pickle that sets items of something that is no dictionary")
        mapping = target.pairs if isinstance(target, Call) else target
        for key, value in zip(map(_key, pairs[::2]), pairs[1::2], strict=True):
            if key in mapping:
                raise ValueError(f"a dictionary with the key {in_words(key)!r} twice")
            mapping[key] = value

    def _describe(self, name: str, argument: Any) -> None:
        """What pickle would look up and call."""
        pop = self.stack.pop
        if name in ("PERSID", "BINPERSID"):
            self.outside.append(PersistentId(argument if name == "PERSID" else pop()))
            self.stack.append(self.outside[-1])
        elif name == "BUILD":
            state, target = pop(), self.stack[-1]
            if isinstance(target, Call):
                target.state = state  # that of a dictionary, torch's _metadata, is not needed
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            if name == "STACK_GLOBAL":
                attribute, module = pop(), pop()
            else:
                module, _, attribute = argument.partition(" ")
            if not isinstance(attribute, str) or not isinstance(module, str):
                raise TypeError("expected words")
            self.stack.append(Global(module, attribute))
        else:
            if name == "NEWOBJ_EX":
                keywords, arguments, function = pop(), pop(), pop()
                arguments = (arguments, keywords)
            elif name == "INST":
                module, _, attribute = argument.partition(" ")
                function, arguments = Global(module, attribute), tuple(self._to_mark())
            elif name == "OBJ":
                function, *rest = self._to_mark()
                arguments = tuple(rest)
            else:
                arguments, function = pop(), pop()
            is_dictionary = isinstance(function, Global) and function in _DICTIONARIES
            self.stack.append({} if is_dictionary else Call(function, arguments))


# ------------------------------------------------------------------ what torch.save describes

#: More dimensions than torch's own kernels take; a shape is never longer.
_MAX_DIMS = 64

#: dtypes of the storage classes that torch.save names.
STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "UntypedStorage": torch.uint8,
}
_NAMED_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype)
}
_PLAIN = frozenset({"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"})
_WRAPPED = frozenset({"_rebuild_parameter", "_rebuild_parameter_with_state"})
_DENSE = _PLAIN | _WRAPPED | {"_rebuild_from_type_v2"}


@dataclass(frozen=True)
class Region:
    """The bytes of one storage.

    Args:
        num_bytes: how many.
        start: finds where they begin, when that is needed, and adds what it is given.
        order: about where they begin, to read in the order of the bytes.
        crc: their checksum, if the file states one.
    """

    num_bytes: int
    start: Callable[[int], int]
    order: int
    crc: int | None = None


def _function(node: Any) -> Global | None:
    if isinstance(node, Call) and isinstance(node.function, Global):
        return node.function
    return None


def as_sizes(node: Any) -> tuple[int, ...] | None:
    """A shape, strides or offsets out of a pickle or JSON; None for all that no tensor could have.

    >>> as_sizes([2, 3]), as_sizes((2**63,)), as_sizes([2.0]), as_sizes([1] * 1000)
    ((2, 3), None, None, None)
    """
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
    if isinstance(node, Global) and node.module == "torch":
        return _NAMED_DTYPES.get(node.name)
    return None


def _plain_call(node: Any) -> Call | None:
    """The call that builds a dense tensor, out of what parameters wrap around it."""
    for _ in range(4):
        function = _function(node)
        if function is None or not isinstance(node.arguments, tuple) or not node.arguments:
            return None
        if function.module == "torch._utils" and function.name in _PLAIN:
            return node  # type: ignore[no-any-return]
        if function.module == "torch._utils" and function.name in _WRAPPED:
            node = node.arguments[0]
        elif function == Global("torch._tensor", "_rebuild_from_type_v2"):
            if len(node.arguments) < 3 or not isinstance(node.arguments[2], tuple):
                return None
            node = Call(node.arguments[0], node.arguments[2])
        else:
            return None
    return None


#: What a tensor is that is not dense, by the function that would make it.
_KINDS = (
    (re.compile(r"_rebuild_(sparse|sparse_csr)_tensor$"), "it is sparse"),
    (re.compile(r"_rebuild_qtensor$"), "it is codes of a quantised tensor"),
    (re.compile(r"_rebuild_nested_tensor$"), "it is a nested tensor"),
    (re.compile(r"_rebuild_meta_tensor"), "it is on the meta device, without data"),
)


def _unreadable(url: str, name: str, node: Any) -> StoredTensor:
    """The tensor of a node that is no dense one."""
    function = _function(node)
    problem = ""
    if function is not None:
        problem = next((why for kind, why in _KINDS if kind.match(function.name)), "")
    if function is None or (not problem and function.name in _DENSE):
        raise refused(url, "expected a dense tensor, got another kind", name)
    problem = problem or f"it is a tensor of another kind ({in_words(function)})"
    # where they are given, the shape comes after the storage, or last among the parts
    arguments = node.arguments if isinstance(node.arguments, tuple) else ()
    flat = [part for one in arguments[:8] for part in (one if isinstance(one, tuple) else (one,))]
    shapes = [shape for part in flat[:32] if (shape := as_sizes(part)) is not None]
    shape = next((shape for shape in shapes if shape), ())
    what = problem.removeprefix("it is ")
    entry = Entry(name=name, shape=shape, dtype=torch.uint8, stored_as=what, problem=problem)
    return StoredTensor(entry=entry)


#: What views of its storages may come to, as a multiple of a file and in bytes beside it.
_MAX_TIMES_SIZE, _MAX_EXPANDED_BYTES = 4, 64 * 2**20


def stored_tensors(
    source: ByteSource, weights: Mapping[Any, Any], regions: Mapping[str, Region]
) -> dict[str, StoredTensor]:
    """The tensors of a state dict by name, out of nodes that describe tensors of any kind.

    Views of one storage may be many and large: what a few bytes of a pickle make of it can be
    read as long as all together is not much more than the file.
    """
    left = _MAX_TIMES_SIZE * source.size + _MAX_EXPANDED_BYTES
    seen: set[Hashable] = set()
    stored: dict[str, StoredTensor] = {}
    for key, node in weights.items():
        name = str(key) if type(key) is int else key
        if not isinstance(name, str) or name in stored:
            problem = f"names of tensors that occur once, got {in_words(key)}"
            raise refused(source.url, f"expected {problem}")
        one = stored[name] = stored_tensor(source, name, node, regions)
        entry = one.entry
        if not entry.problem and entry.storage not in seen:
            seen.add(entry.storage)
            num_bytes = math.prod(entry.shape) * entry.dtype.itemsize
            left -= num_bytes
            if left < 0:
                left += num_bytes
                problem = f"it is expanded to {num_bytes} bytes that are not in the file"
                stored[name] = StoredTensor(entry=replace(entry, problem=problem))
    return stored


def stored_tensor(
    source: ByteSource, name: str, node: Any, regions: Mapping[str, Region]
) -> StoredTensor:
    """The tensor of a node, its place in the file checked against that of its storage."""
    call = _plain_call(node)
    if call is None or len(call.arguments) < 4:
        return _unreadable(source.url, name, node)
    _, offset, size, steps = call.arguments[:4]
    key, dtype = _storage_of(source.url, name, call)
    shape, stride = as_sizes(size), as_sizes(steps)
    is_sound = shape is not None and stride is not None and len(shape) == len(stride)
    if not is_sound or type(offset) is not int or offset < 0:
        raise refused(source.url, "its shape, strides and offset contradict each other", name)
    assert shape is not None and stride is not None  # noqa: S101, PT018
    region = regions.get(key)
    if region is None:
        raise refused(source.url, f"its storage {key[:40]!r} is not in the file", name)
    reach, is_flat = extent(shape, stride)
    begin, num_bytes = offset * dtype.itemsize, reach * dtype.itemsize
    if begin + num_bytes > region.num_bytes:
        raise refused(
            source.url,
            f"expected shape {shape} with strides {stride} of {dtype} inside its storage of "
            f"{region.num_bytes} bytes, it needs {begin + num_bytes}",
            name,
        )
    storage = (source.path, key, offset, shape, stride)
    return StridedTensor(
        entry=Entry(name=name, shape=shape, dtype=dtype, storage=storage),
        position=(source.path, region.order + begin),
        source=source,
        start=partial(region.start, begin),
        num_bytes=num_bytes,
        stride=None if is_flat else stride,
        crc=region.crc if num_bytes == region.num_bytes else None,
    )


def _storage_of(url: str, name: str, call: Call) -> tuple[str, torch.dtype]:
    """The key of the storage that a tensor is a part of, and the tensor's dtype."""
    storage = call.arguments[0]
    if not isinstance(storage, PersistentId) or not isinstance(storage.value, tuple):
        raise refused(url, "expected a tensor with a storage, got one without", name)
    if len(storage.value) < 5 or storage.value[0] != "storage":
        raise refused(url, "expected a storage, got something else", name)
    kind, key = storage.value[1], storage.value[2]
    base = STORAGE_DTYPES.get(kind.name) if isinstance(kind, Global) else None
    dtype = base
    if call.function.name == "_rebuild_tensor_v3":
        dtype = as_dtype(call.arguments[6]) if len(call.arguments) > 6 else None
    if base is None or dtype is None:
        raise refused(url, f"expected a dtype that torch has, got {in_words(kind)}", name)
    if not isinstance(key, str):
        raise refused(url, "its shape, strides and offset contradict each other", name)
    return key, dtype


def extent(shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, bool]:
    """How many elements of storage a tensor reaches over, and whether they lie in flat order.

    >>> extent((3, 1, 2), (2, 9, 1)), extent((3, 2), (5, 1)), extent((3, 2), (1, 3))
    ((6, True), (12, False), (6, False))
    """
    if 0 in shape:
        return 0, True
    reach, num_flat, is_flat = 1, 1, True
    for size, step in zip(reversed(shape), reversed(stride), strict=True):
        reach += (size - 1) * step
        is_flat &= size == 1 or step == num_flat
        num_flat *= size
    return reach, is_flat
