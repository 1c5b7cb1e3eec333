"""Pickles read as descriptions: nothing is imported, nothing is called, no class is made.

``pickle.load`` runs what the file says. Here the same bytes only become data: a call is a
node that names what would have been called, and with what. Whoever reads the tree picks out
the few nodes that it knows; a malicious one is a node like any other and does nothing.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

__all__ = ["Call", "Compound", "Global", "PersistentId", "in_words", "read_inert"]

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
_FRESH: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
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
                    return machine.pop()
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

    def pop(self) -> Any:
        return self.stack.pop()

    def to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _FRESH:
            self.stack.append(_FRESH[name]())
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            if argument >= _MAX_MEMO:
                raise ValueError("a pickle that numbers more than a pickle can hold")
            self.memo[argument] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name not in ("PROTO", "FRAME"):
            method = getattr(self, f"do_{name.lower()}", None)
            if method is None:
                raise ValueError(f"the pickle opcode {name}, which no checkpoint needs")
            method(argument)

    def do_mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def do_pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.to_mark()

    def do_pop_mark(self, _: Any) -> None:
        self.to_mark()

    def do_dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def do_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    # ------------------------------------------------------------ containers

    def do_append(self, _: Any) -> None:
        self._extend([self.pop()])

    def do_appends(self, _: Any) -> None:
        self._extend(self.to_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list | Call):
            raise TypeError("expected a list")
        (target.items if isinstance(target, Call) else target).extend(items)

    def do_additems(self, _: Any) -> None:
        items, target = self.to_mark(), self.stack[-1]
        if not isinstance(target, set):
            raise TypeError("expected a set")
        target.update(map(_key, items))

    def do_list(self, _: Any) -> None:
        items = self.to_mark()
        self.stack.append(items)

    def do_tuple(self, _: Any) -> None:
        items = self.to_mark()
        self.stack.append(tuple(items))

    def do_tuple1(self, _: Any) -> None:
        self.stack[-1:] = [(self.stack[-1],)]

    def do_tuple2(self, _: Any) -> None:
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def do_tuple3(self, _: Any) -> None:
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def do_frozenset(self, _: Any) -> None:
        items = self.to_mark()
        self.stack.append(frozenset(map(_key, items)))

    def do_dict(self, _: Any) -> None:
        pairs = self.to_mark()
        self.stack.append({})
        self._set(pairs)

    def do_setitem(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self._set([key, value])

    def do_setitems(self, _: Any) -> None:
        self._set(self.to_mark())

    def _set(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict | Call) or len(pairs) % 2:
            raise ValueError("a pickle that sets items of something that is no dictionary")
        mapping = target.pairs if isinstance(target, Call) else target
        for key, value in zip(map(_key, pairs[::2]), pairs[1::2], strict=True):
            if key in mapping:
                raise ValueError(f"a dictionary with the key {in_words(key)!r} twice")
            mapping[key] = value

    # ------------------------------------------- what pickle would look up and call

    def do_global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(Global(module, name))

    def do_stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError("expected words")
        self.stack.append(Global(module, name))

    def _call(self, function: Any, arguments: Any) -> None:
        is_dictionary = isinstance(function, Global) and function in _DICTIONARIES
        self.stack.append({} if is_dictionary else Call(function, arguments))

    def do_reduce(self, _: Any) -> None:
        arguments, function = self.pop(), self.pop()
        self._call(function, arguments)

    do_newobj = do_reduce

    def do_newobj_ex(self, _: Any) -> None:
        keywords, arguments, function = self.pop(), self.pop(), self.pop()
        self.stack.append(Call(function, (arguments, keywords)))

    def do_inst(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._call(Global(module, name), tuple(self.to_mark()))

    def do_obj(self, _: Any) -> None:
        function, *arguments = self.to_mark()
        self._call(function, tuple(arguments))

    def do_build(self, _: Any) -> None:
        state = self.pop()
        target = self.stack[-1]
        if isinstance(target, Call):
            target.state = state  # that of a dictionary, torch's _metadata, is not needed

    def do_persid(self, argument: Any) -> None:
        self.outside.append(PersistentId(argument))
        self.stack.append(self.outside[-1])

    def do_binpersid(self, _: Any) -> None:
        self.do_persid(self.pop())
