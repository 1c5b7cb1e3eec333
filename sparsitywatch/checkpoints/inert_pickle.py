"""Pickles read as descriptions: nothing is imported, nothing is called, no class is made.

A call becomes a node that names what would have been called, and with what. Readers pick out the
few nodes that they know; a malicious one is a node like any other and does nothing.
"""

from __future__ import annotations

import copy
import io
import math
import pickletools
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Beyond what any pickle numbers; whole numbers of any length would hash to whatever one likes.
_MAX_MEMO = 2**32
_MAX_KEY_BITS = 64


@dataclass(frozen=True)
class Global:
    """A name that the pickle mentions; it is never looked up."""

    module: str
    name: str


@dataclass(eq=False, repr=False)
class Call:
    """A call or an object that the pickle describes; it is never made."""

    function: Any
    arguments: tuple[Any, ...]
    state: Any = None  # of one that is a list or a dictionary the items are not kept


@dataclass(eq=False, repr=False)
class PersistentId:
    """What the pickle keeps outside of itself, such as the bytes of a tensor."""

    value: Any


@dataclass(eq=False, repr=False)
class Compound:
    """A key or a member of a set that is no plain value: itself, and equal to nothing else."""

    # tuples of one tuple twice, forty deep, are a hundred bytes of a pickle and a year of hashing

    value: Any


def in_words(node: Any) -> str:
    """A node in a few words; what is in it, which may be without end, is not looked at."""
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


def read_inert(data: bytes | io.BytesIO, outside: list[Any] | None = None) -> Any:
    """What a pickle describes, in time linear in its bytes; ValueError where it is none."""
    # ``outside`` gets what it names of what lies beside it; a file is left behind its end
    machine, protocol = _Machine(), 2
    file = data if isinstance(data, io.BytesIO) else io.BytesIO(data)
    try:
        with warnings.catch_warnings():
            # odd escapes in a string: about the file's bytes, not about anybody's code
            warnings.simplefilter("ignore")
            for opcode, argument, at in pickletools.genops(file):
                if opcode.name == "STOP":
                    return machine.stack.pop()
                protocol = max(2, int(argument or 0)) if opcode.name == "PROTO" else protocol
                if opcode.proto > protocol:
                    raise ValueError(f"{opcode.name}, which its protocol {protocol} does not have")
                if opcode.name == "FRAME" and (at or 0) + 9 + int(argument or 0) > len(
                    file.getbuffer()
                ):
                    raise ValueError("a frame that ends behind it")
                machine.step(opcode.name, argument)
                if opcode.name == "BINPERSID" and outside is not None:
                    outside.append(machine.stack[-1].value)
    except (LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"a pickle that contradicts itself ({type(error).__name__})") from error
    raise ValueError("a pickle without an end")


class _Machine:
    """The stack of a pickle."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # stacks under the marks
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Do what one opcode says."""
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _VALUES:
            self.stack.append(copy.copy(_VALUES[name]))
        elif name in _MAKERS:
            count, make = _MAKERS[name]
            made = make(self._take(count))  # first: this may exchange the stack
            self.stack.append(made)
        elif name in _CHANGERS:
            count, change = _CHANGERS[name]
            items = self._take(count)
            change(self.stack[-1], items)
        elif name == "GLOBAL":
            self.stack.append(_named(argument.split(" ", 1)))
        else:
            self._move(name, argument)

    def _move(self, name: str, argument: Any) -> None:
        """What only moves values between the stack, those below it, and the memo."""
        if name == "MARK":
            self.below.append(self.stack)
            self.stack = []
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            number = len(self.memo) if name == "MEMOIZE" else argument
            if number >= _MAX_MEMO:
                raise ValueError("a pickle that numbers more than a pickle can hold")
            self.memo[number] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name not in ("PROTO", "FRAME"):
            raise ValueError(f"the pickle opcode {name}, which no checkpoint needs")

    def _take(self, count: int | None) -> list[Any]:
        """The last values, off the stack; all since the mark for None."""
        if count is None:
            items, self.stack = self.stack, self.below.pop()
            return items
        items = self.stack[-count:]
        if len(items) < count:
            raise IndexError("too few values")
        del self.stack[-count:]
        return items


def _key(node: Any) -> Any:
    """What stands for a node in a dictionary or a set: something with a hash of its own."""
    is_long = type(node) is int and node.bit_length() > _MAX_KEY_BITS
    return Compound(node) if is_long or isinstance(node, tuple | frozenset) else node


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)
    elif not isinstance(target, Call):
        raise TypeError("expected a list")


def _add(target: Any, items: list[Any]) -> None:
    if not isinstance(target, set):
        raise TypeError("expected a set")
    target.update(map(_key, items))


def _set_items(target: Any, pairs: list[Any]) -> Any:
    if not isinstance(target, dict | Call) or len(pairs) % 2:
        raise ValueError("a pickle that sets items of something that is no dictionary")
    if isinstance(target, Call):
        return target
    for key, value in zip(map(_key, pairs[::2]), pairs[1::2], strict=True):
        if key in target:
            raise ValueError(f"a dictionary with the key {in_words(key)!r} twice")
        target[key] = value
    return target


def _build(target: Any, items: list[Any]) -> None:
    (state,) = items
    if isinstance(target, Call):
        target.state = state
    elif not isinstance(state, dict):  # that of a dictionary, torch's _metadata, is not needed
        raise TypeError("expected a state")


_NAME = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")


def _named(items: list[Any]) -> Global:
    if not all(isinstance(item, str) and _NAME.fullmatch(item) for item in items):
        raise TypeError("expected names")
    return Global(*items)


#: Calls without any effect that give a dictionary.
_DICTIONARIES = (Global("collections", "OrderedDict"), Global("collections", "defaultdict"))


def _reduced(items: list[Any], kind: Any = Global | Call) -> Any:
    function, arguments = items
    if not isinstance(arguments, tuple) or not isinstance(function, kind):
        raise TypeError("expected a function and arguments")
    is_dictionary = isinstance(function, Global) and function in _DICTIONARIES
    return {} if is_dictionary else Call(function, arguments)


#: Opcodes whose argument is the value.
_LITERALS = frozenset(
    one.name
    for one in pickletools.opcodes
    if one.arg and not one.stack_before and one.stack_after not in ([], [pickletools.anyobject])
)
#: Opcodes that push a value of their own.
_VALUES: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False,
           "EMPTY_LIST": [], "EMPTY_TUPLE": (), "EMPTY_DICT": {}, "EMPTY_SET": set()}  # fmt: skip
#: What becomes of the last values, or for None of all since the mark: a new value.
_MAKERS: dict[str, tuple[int | None, Callable[[list[Any]], Any]]] = {
    **{f"TUPLE{num or ''}": (num, tuple) for num in (None, 1, 2, 3)},
    "LIST": (None, list),
    "DICT": (None, lambda pairs: _set_items({}, pairs)),
    "FROZENSET": (None, lambda items: frozenset(map(_key, items))),
    "STACK_GLOBAL": (2, _named),
    "REDUCE": (2, _reduced),
    "NEWOBJ": (2, lambda items: _reduced(items, Global)),
    "NEWOBJ_EX": (3, lambda items: _reduced([items[0], tuple(items[1:])], Global)),
    "BINPERSID": (1, lambda items: PersistentId(*items)),
}
#: The same: what they do to the value before them.
_CHANGERS: dict[str, tuple[int | None, Callable[[Any, list[Any]], object]]] = {
    "APPEND": (1, _extend),
    "APPENDS": (None, _extend),
    "ADDITEMS": (None, _add),
    "SETITEM": (2, _set_items),
    "SETITEMS": (None, _set_items),
    "BUILD": (1, _build),
}


# ------------------------------------------------------------------ numbers


def whole_of(node: Any) -> int | None:
    """The number of steps that a node of a pickle, or a word of a header, stands for."""
    if isinstance(node, str):
        return int(node) if re.fullmatch(r"[0-9]{1,18}", node) else None
    if isinstance(node, Call):
        array = array_of(node)
        node = None if array is None or array.size != 1 else array.item()
    if isinstance(node, float) and node.is_integer():
        node = int(node)
    return node if type(node) is int and 0 <= node < 2**63 else None


_OF_NUMPY = re.compile(r"numpy\.(?:core|_core)\.multiarray$")


def array_of(call: Call) -> np.ndarray | None:
    """The numbers of an array or a scalar of numpy, read-only; None of what is none, or broken."""
    function, parts = call.function, call.arguments
    if not isinstance(function, Global) or not _OF_NUMPY.match(function.module):
        return None
    shape: Any = ()
    is_fortran = False
    if function.name == "_reconstruct" and isinstance(call.state, tuple) and len(call.state) > 4:
        _, shape, dtype, is_fortran, data = call.state[:5]
    elif function.name == "scalar" and len(parts) == 2:
        dtype, data = parts
    else:
        return None
    if isinstance(data, Call) and data.arguments:
        data = data.arguments[0]  # bytes as a pickle of protocol 2 has them
        data = data.encode("latin-1", "replace") if isinstance(data, str) else data
    kind = dtype.arguments[0] if isinstance(dtype, Call) and dtype.arguments else None
    if not isinstance(kind, str) or not re.fullmatch("[iu][1248]|f[248]|b1", kind):
        return None
    order = ">" if isinstance(dtype.state, tuple) and ">" in dtype.state[:2] else "<"
    is_shape = isinstance(shape, tuple) and all(type(n) is int and 0 <= n < 2**63 for n in shape)
    if not is_shape or type(data) is not bytes or len(data) != math.prod(shape) * int(kind[1]):
        return None
    numbers = np.frombuffer(data, order + kind)
    return np.asarray(numbers.reshape(shape, order="F" if is_fortran else "C"))
