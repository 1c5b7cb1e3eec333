"""Running somebody's model in the middle of training and leaving no trace."""

from __future__ import annotations

import contextlib
import dis
import functools
import itertools
import operator
import pickle
import random
import re
import sys
import types
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from sparsitywatch.errors import MeasurementError
from sparsitywatch.pruning.collectives import without_collectives
from sparsitywatch.shown import shown_name

__all__ = ["ModelState", "plain_state", "preserve_rng", "preserve_state", "same_bits"]

#: Tensors and arrays above this many bytes that are no buffers (a dataset, a cache) are not
#: copied; their version or a sample tells whether they have changed.
_MAX_COPY_BYTES = 2**26
#: A container with more elements than this is kept, but what its elements hold is not.
_MAX_FOLLOWED = 10_000

_ATOMS = frozenset(
    {int, float, bool, complex, str, bytes, type(None), type(...), range, slice, type}
    | {torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format}
    | {types.ModuleType, types.BuiltinFunctionType, types.CodeType}
)
#: Packages whose objects are machinery of the training, nothing that a forward counts with;
#: other threads may be writing to them.
_MACHINERY = frozenset(
    {"torch", "lightning", "pytorch_lightning", "lightning_fabric", "accelerate", "deepspeed"}
    | {"datasets", "tokenizers", "logging", "threading", "_thread", "queue", "_queue"}
    | {"concurrent", "asyncio", "socket", "multiprocessing", "io", "_io", "weakref", "re", "enum"}
    | {"typing", "abc", "inspect", "pathlib", "importlib", "unittest", "wandb", "tensorboard"}
    | {"tensorboardX", "mlflow", "tqdm", "sparsitywatch", "numpy", "scipy", "pandas", "sklearn"}
    | {"PIL", "jax"}
)
#: Who holds something of these shares itself with other threads or processes.
_SHARING = frozenset({"threading", "_thread", "queue", "_queue", "concurrent", "multiprocessing"})
#: Packages whose functions and classes are not looked into; their objects are.
_LIBRARIES = _MACHINERY | {"torchvision", "torchaudio", "transformers", "timm", "torchmetrics"}
_NOT_FOLLOWED = (
    *(torch.optim.Optimizer, torch.utils.data.DataLoader, torch.utils.data.Dataset),
    *(type, types.ModuleType),
)


# ------------------------------------------------------------------ kinds of things that change


class _Kind(NamedTuple):
    """How to copy what a mutable thing holds, whether it holds the same, how to put it back.

    Without ``put_back`` a change can only be told.
    """

    copy: Callable[[Any], Any]
    is_same: Callable[[Any, Any], bool]  # the thing itself, and a copy
    put_back: Callable[[Any, Any], object] | None


def _same_items(a: Any, b: Any) -> bool:
    return len(a) == len(b) and all(map(operator.is_, a, b))


def _same_set(thing: set[Any], held: set[Any]) -> bool:
    return len(thing) == len(held) and {*map(id, thing)} == {*map(id, held)}


def _by_copy(
    copy: Callable[[Any], Any],
    put_back: Callable[[Any, Any], object] | None,
    same: Any = operator.eq,
) -> _Kind:
    """A kind whose things are compared by what a copy of them says."""
    return _Kind(copy, lambda thing, held: bool(same(copy(thing), held)), put_back)


def _base(thing: dict[Any, Any]) -> type[dict[Any, Any]]:
    """Whose own methods to use: those of a subclass may convert or count."""
    return OrderedDict if isinstance(thing, OrderedDict) else dict


def _copy_dict(thing: dict[Any, Any]) -> dict[Any, Any]:
    return dict(_base(thing).items(thing)) if thing else {}


def _same_dict(thing: dict[Any, Any], held: dict[Any, Any]) -> bool:
    if len(thing) != len(held):
        return False
    base = _base(thing)  # most are empty: the hooks of modules
    return not held or (
        all(map(operator.is_, base.__iter__(thing), held))
        and all(map(operator.is_, base.values(thing), held.values()))
    )


def _refill_dict(thing: dict[Any, Any], held: dict[Any, Any]) -> None:
    base = _base(thing)
    base.clear(thing)
    for key, value in held.items():
        base.__setitem__(thing, key, value)


def _refill_deque(thing: deque[Any], held: list[Any]) -> None:
    thing.clear()
    thing.extend(held)


def _refill_set(thing: set[Any], held: set[Any]) -> None:
    set.clear(thing)
    set.update(thing, held)


def _refill_attributes(thing: Any, held: dict[str, Any]) -> None:
    """For classes and slots: what has no dict to write to."""
    for name in _named_values(thing).keys() - held.keys():
        delattr(thing, name)
    for name, value in held.items():
        setattr(thing, name, value)


def _named_values(thing: Any) -> dict[str, Any]:
    """Data of a class, or of an object with slots."""
    if isinstance(thing, type):
        return {
            name: value
            for name, value in vars(thing).items()
            if not name.startswith("__") and not callable(value) and not hasattr(value, "__get__")
        }
    slots = itertools.chain.from_iterable(
        [declared] if isinstance(declared := vars(kind).get("__slots__", ()), str) else declared
        for kind in type(thing).__mro__
    )
    names = [name for name in slots if name not in ("__dict__", "__weakref__")]
    return {name: getattr(thing, name) for name in names if hasattr(thing, name)}


class _Globals(NamedTuple):
    """The global variables that a function reads or writes."""

    variables: dict[str, Any]
    names: tuple[str, ...]

    def values(self) -> dict[str, Any]:
        return {name: self.variables[name] for name in self.names if name in self.variables}

    def put_back(self, held: dict[str, Any]) -> None:
        for name in self.names:
            if name in held:
                self.variables[name] = held[name]
            else:
                self.variables.pop(name, None)


def _cell_contents(cell: types.CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # it is empty
        return ()


def _refill_cell(cell: types.CellType, held: tuple[Any, ...]) -> None:
    if held:
        cell.cell_contents = held[0]
    else:
        del cell.cell_contents


def _fingerprint(thing: Any) -> Any:
    """Tells whether an iterator was moved on, as far as it lets one see."""
    if isinstance(thing, types.GeneratorType):
        frame = thing.gi_frame
        if frame is None:
            return "ended"
        atoms = {k: v for k, v in frame.f_locals.items() if type(v) in _ATOMS}
        return frame.f_lasti, repr(atoms)
    if isinstance(thing, np.ndarray):
        flat = thing.reshape(-1)
        return zlib.crc32(flat[:: max(1, flat.size // 2**18)].tobytes())
    return repr(thing), operator.length_hint(thing, -1)


_DICT = _Kind(_copy_dict, _same_dict, _refill_dict)
_LIST = _Kind(list, _same_items, lambda a, held: list.__setitem__(a, slice(None), held))
_DEQUE = _Kind(list, _same_items, _refill_deque)
_SET = _Kind(set, _same_set, _refill_set)
_BYTES = _Kind(bytes, operator.eq, lambda a, held: a.__setitem__(slice(None), held))
_CELL = _by_copy(_cell_contents, _refill_cell, _same_items)
_NAMED = _by_copy(_named_values, _refill_attributes, _same_dict)
_GLOBALS = _by_copy(_Globals.values, _Globals.put_back, _same_dict)
_CLASS_OF = _by_copy(type, lambda a, held: setattr(a, "__class__", held), operator.is_)
_ARRAY = _Kind(np.copy, lambda a, held: a.tobytes() == held.tobytes(), np.copyto)
_TORCH_GENERATOR = _by_copy(
    lambda g: g.get_state(), lambda g, state: g.set_state(state), torch.equal
)
_PYTHON_GENERATOR = _by_copy(lambda g: g.getstate(), lambda g, state: g.setstate(state))
_NUMPY_GENERATOR = _by_copy(  # a bit generator; its state may hold arrays
    lambda g: pickle.dumps(g.state),
    lambda g, state: setattr(g, "state", pickle.loads(state)),  # noqa: S301 dumped above
)
_CONTAINERS = {dict: _DICT, list: _LIST, set: _SET, deque: _DEQUE, bytearray: _BYTES}
_ONLY_TOLD = _by_copy(_fingerprint, None)


# ------------------------------------------------------------------ finding them


@functools.lru_cache(maxsize=4096)
def _global_names(code: types.CodeType) -> tuple[str, ...]:
    """The global variables that code reads or writes, inner functions included."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname.endswith("_GLOBAL")}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(_global_names(constant))
    return tuple(sorted(names))


def _package(kind: Any) -> str:
    return str(getattr(kind, "__module__", None) or "").partition(".")[0]


class _Search:
    """Goes through everything that hangs on some roots; each thing is met once."""

    def __init__(self) -> None:
        self.items: list[tuple[str, Any, _Kind]] = []
        self.tensors: list[tuple[str, torch.Tensor]] = []
        self.modules: list[tuple[str, nn.Module]] = []
        self._seen: dict[int, Any] = {}  # by id, which is one thing's only while that lives
        self._todo: list[tuple[str, Any]] = []

    def run(self, roots: Iterable[tuple[str, Any]]) -> None:
        self._todo = [*roots][::-1]
        while self._todo:
            name, thing = self._todo.pop()
            if type(thing) in _ATOMS or id(thing) in self._seen:
                continue
            self._seen[id(thing)] = thing
            self._visit(name, thing)

    def _visit(self, name: str, thing: Any) -> None:
        kind = type(thing)  # not isinstance: a weakref.proxy passes itself off as what it is of
        if issubclass(kind, torch.Tensor):
            if not nn.parameter.is_lazy(thing):
                self.tensors.append((name, thing))
        elif issubclass(kind, nn.Module):
            self.modules.append((name, thing))
            self.items.append((name, thing, _CLASS_OF))
            self._attributes(name, thing)
            if issubclass(kind, torch.jit.ScriptModule):  # its tensors are in no dict of Python's
                named = [
                    *thing.named_parameters(recurse=False),
                    *thing.named_buffers(recurse=False),
                ]
                self._todo += [(f"{name}._buffers['{key}']", tensor) for key, tensor in named]
            self._class(kind)
        elif issubclass(kind, (dict, list, tuple, set, frozenset, deque, bytearray)):
            self._container(name, thing)
        elif issubclass(kind, (types.FunctionType, types.MethodType, functools.partial)):
            self._callable(name, thing)
        elif kind is types.CellType:
            self.items.append((name, thing, _CELL))
            self._todo.extend((name, inner) for inner in _cell_contents(thing))
        elif (leaf := _leaf(thing)) is not None:
            self.items.append((name, *leaf))
        elif not issubclass(kind, _NOT_FOLLOWED) and not _is_machinery(thing):
            self._attributes(name, thing)
            self._class(kind)

    def _attributes(self, name: str, thing: Any) -> None:
        held = getattr(thing, "__dict__", None)
        if type(held) is dict:
            self.items.append((name, held, _DICT))
            self._follow(((f"{name}.{key}", value) for key, value in held.items()), len(held))
        if slots := _named_values(thing):
            self.items.append((name, thing, _NAMED))
            self._follow(((f"{name}.{k}", value) for k, value in slots.items()), len(slots))

    def _container(self, name: str, thing: Any) -> None:
        for base, kind in _CONTAINERS.items():
            if isinstance(thing, base):
                self.items.append((name, thing, kind))
        if isinstance(thing, dict):
            entries = enumerate(_base(thing).items(thing))  # hooks have numbers of the process
            pairs = ((f"{name}[{i if type(k) is int else _key(k)}]", v) for i, (k, v) in entries)
        elif isinstance(thing, (list, tuple, deque)):
            pairs = ((f"{name}[{index}]", value) for index, value in enumerate(thing))
        else:
            return  # what can be hashed is not written to
        self._follow(pairs, len(thing))
        if type(thing).__module__ not in ("builtins", "collections"):
            self._attributes(name, thing)

    def _callable(self, name: str, thing: Any) -> None:
        if isinstance(thing, types.MethodType):
            self._todo += [(name, thing.__self__), (name, thing.__func__)]
            return
        if isinstance(thing, functools.partial):
            self._todo += [(name, thing.func), (name, thing.args), (name, thing.keywords)]
            return
        if _package(thing) in _MACHINERY:
            return
        self._todo += [(name, thing.__dict__), (name, thing.__defaults__)]
        self._todo += [(name, thing.__kwdefaults__)]
        for variable, cell in zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True):
            self._todo.append((f"{name}'s {variable}", cell))
        if _package(thing) in _LIBRARIES:
            return
        found = _Globals(thing.__globals__, _global_names(thing.__code__))
        self.items.append((f"{name}'s globals", found, _GLOBALS))
        for variable, value in found.values().items():
            # a class or a function of another package is not this model's
            is_code = isinstance(value, (type, types.FunctionType))
            if not is_code or (_package(value) == _package(thing) and not isinstance(value, type)):
                self._todo.append((f"global {variable}", value))

    def _class(self, kind: type) -> None:
        """The data of a user's class, and the functions in it."""
        for base in kind.__mro__:
            if _package(base) in _LIBRARIES | {"builtins", "collections"} or id(base) in self._seen:
                continue
            self._seen[id(base)] = base
            name = f"class {base.__name__}"
            self.items.append((name, base, _NAMED))
            held = [(f"{name}.{key}", value) for key, value in _named_values(base).items()]
            code = [(f"{base.__name__}.{key}", _code(value)) for key, value in vars(base).items()]
            self._todo += held + [pair for pair in code if pair[1] is not None]

    def _follow(self, pairs: Iterator[tuple[str, Any]], number: int) -> None:
        if number <= _MAX_FOLLOWED:
            # in reverse, so that what stands first is met, and named, first
            self._todo += [pair for pair in pairs if type(pair[1]) not in _ATOMS][::-1]


def _code(value: Any) -> types.FunctionType | None:
    """The function behind an entry of a class; None if there is none."""
    value = getattr(value, "fget", None) or getattr(value, "__func__", None) or value
    return value if isinstance(value, types.FunctionType) else None


def _key(key: object) -> str:
    return repr(key) if type(key) in _ATOMS else type(key).__name__


def _is_machinery(thing: Any) -> bool:
    """Whether an object belongs to the training's machinery, or is shared with a thread."""
    kind = type(thing)
    bases = {_package(base) for base in kind.__mro__} - {"abc", "typing"}
    is_trainer = any(base.__module__.startswith("transformers.trainer") for base in kind.__mro__)
    if is_trainer or _package(kind) in _MACHINERY or bases & _MACHINERY:
        return True
    held = getattr(thing, "__dict__", None)
    return type(held) is dict and any(_package(type(v)) in _SHARING for v in held.values())


def _leaf(thing: Any) -> tuple[Any, _Kind] | None:
    """A mutable thing that nothing else hangs on, as what holds its state, and its kind."""
    kind = type(thing)
    if issubclass(kind, np.ndarray):
        is_copied = not thing.dtype.hasobject and thing.nbytes <= _MAX_COPY_BYTES
        return thing, _ARRAY if is_copied else _ONLY_TOLD
    if issubclass(kind, torch.Generator):
        return thing, _TORCH_GENERATOR
    if issubclass(kind, random.Random) and not issubclass(kind, random.SystemRandom):
        return thing, _PYTHON_GENERATOR
    if issubclass(kind, np.random.Generator):
        return thing.bit_generator, _NUMPY_GENERATOR
    if issubclass(kind, np.random.RandomState):
        return thing._bit_generator, _NUMPY_GENERATOR
    if issubclass(kind, np.random.BitGenerator):
        return thing, _NUMPY_GENERATOR
    if issubclass(kind, Iterator) and _package(kind) in ("builtins", "itertools"):
        return thing, _ONLY_TOLD
    return None


# ------------------------------------------------------------------ tensors


class _Tensor:
    """A tensor, its memory, and a copy of its contents unless these can only be told."""

    def __init__(self, name: str, tensor: torch.Tensor, *, copies: bool) -> None:
        self.name, self.tensor = name, tensor
        self.requires_grad = tensor.requires_grad
        self.version = _version(tensor)
        self.alias = tensor.detach()  # the memory as it is now, whatever .data becomes
        self.copy = self.alias.clone() if copies and _can_copy(tensor) else None
        self.grad = tensor.grad if tensor.is_leaf else None
        self.grad_version = None if self.grad is None else _version(self.grad)
        self.is_volatile = False  # it has been changed by a forward before
        self.is_parameter, self.was_written = isinstance(tensor, nn.Parameter), False

    def put_back(self, *, fully: bool) -> None:
        tensor = self.tensor
        if not _is_same_memory(tensor, self.alias):
            tensor.data = self.alias
            self.is_volatile = True
        moved = _version(tensor) != self.version
        # bitwise; what was not written to is not, either
        if self.copy is not None and (fully or moved or self.is_volatile):
            if not same_bits(tensor, self.copy):
                self.is_volatile = self.was_written = True
                tensor.data.copy_(self.copy)
            if not self.is_parameter:
                self.version = _version(tensor)
        if tensor.is_leaf and tensor.grad is not self.grad:
            tensor.grad = self.grad
        if tensor.is_leaf and tensor.requires_grad != self.requires_grad:
            tensor.requires_grad_(self.requires_grad)

    def lost(self) -> str:
        """What could not be put back; empty if all was."""
        # a snapshot has no copy of a parameter, so what can be put back at the attach is lost later
        written = self.is_parameter and self.was_written
        if written or _version(self.tensor) != self.version:
            return f"{self.name} (changed in place)"
        if self.grad is not None and _version(self.grad) != self.grad_version:
            return f"the gradient of {self.name} (changed in place)"
        return ""


def _version(tensor: torch.Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _can_copy(tensor: torch.Tensor) -> bool:
    is_plain = type(tensor) in (torch.Tensor, nn.Parameter, nn.Buffer)
    is_dense = tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_meta
    return is_plain and is_dense


def _is_same_memory(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.layout is not torch.strided or a.shape != b.shape or a.dtype != b.dtype:
        return a.layout is not torch.strided
    try:
        return a.stride() == b.stride() and a.data_ptr() == b.data_ptr()
    except RuntimeError:  # a subclass without memory of its own
        return True


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two dense tensors are the same bit for bit: NaN equals the same NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(_bytes(a), _bytes(b))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    plain = tensor.detach().resolve_conj().resolve_neg()
    return plain.contiguous().reshape(-1).view(torch.uint8)


# ------------------------------------------------------------------ all of it


class ModelState:
    """Everything that running some modules and functions may change, as it is now.

    ModelState are, of every module: its attributes and what containers and plain objects in them
    hold, its dicts of parameters, buffers, modules and hooks, its class; the contents of
    buffers and other tensors; generators of torch, numpy and python; variables of closures,
    of the user's classes, and those globals that the functions name. Of a parameter its
    memory, gradient and ``requires_grad`` are kept and its contents are watched: a copy would be
    as large as the model. Not seen: what C++ holds, files, other processes.

    Args:
        model: what runs.
        value: a function that runs it. Of this only the modules are kept that it uses, such
            as a loss with a state: what else it counts or collects is its own.
        copies_parameters: keep the contents of parameters, too.
    """

    def __init__(
        self, model: nn.Module, value: object = None, *, copies_parameters: bool = False
    ) -> None:
        uses = _Search()
        uses.run([("the value function", value)])
        search = _Search()
        search.run([("", model), *uses.modules])
        self._items = [(name, thing, kind, kind.copy(thing)) for name, thing, kind in search.items]
        parameters = [t for _, t in search.tensors if isinstance(t, nn.Parameter)]
        of_parameters = {_storage(t) for t in parameters} - {None}
        self._tensors = []
        for name, tensor in search.tensors:
            if isinstance(tensor, nn.Parameter):
                copies = copies_parameters
            else:
                is_buffer = "._buffers[" in name
                is_small = tensor.numel() * tensor.element_size() <= _MAX_COPY_BYTES
                copies = (is_small or is_buffer) and _storage(tensor) not in of_parameters
            self._tensors.append(_Tensor(name, tensor, copies=copies))

    def put_back(self, *, fully: bool = True) -> None:
        """Make everything as it was; may be called again.

        Args:
            fully: compare the contents of every tensor; False: only of those that have been
                written to by an operator, or at any time before.
        """
        for _, thing, kind, held in self._items:
            if kind.put_back is not None and not kind.is_same(thing, held):
                kind.put_back(thing, held)
        for tensor in self._tensors:
            tensor.put_back(fully=fully)

    def lost(self) -> list[str]:
        """Names of what is not as it was, after ``put_back``."""
        items = [
            _readable(name)
            for name, thing, kind, held in self._items
            if not kind.is_same(thing, held)
        ]
        return items + [_readable(lost) for t in self._tensors if (lost := t.lost())]


def _storage(tensor: torch.Tensor) -> int | None:
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):  # sparse, or a subclass without memory
        return None


def _readable(name: str) -> str:
    """A path as a user writes it: a module's own dicts stand for what is in them.

    >>> _readable("._modules['encoder']._buffers['mean']")
    'encoder.mean'
    """
    path = re.sub(r"\._(?:modules|buffers|parameters)\['([^']*)'\]", r".\1", name).lstrip(".")
    return shown_name(path)


def plain_state(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """By name what ``ModelState`` keeps beside parameters and buffers, as plain data."""
    search = _Search()
    search.run([("", model)])
    for name, thing, kind in search.items:
        held = kind.copy(thing)
        if kind in (_ARRAY, _TORCH_GENERATOR, _PYTHON_GENERATOR, _NUMPY_GENERATOR, _BYTES):
            yield _readable(name), held
        elif isinstance(held, dict):
            pairs = ((key, value) for key, value in held.items() if type(value) in _ATOMS)
            yield from (
                (_readable(f"{name}.{key if type(key) is str else _key(key)}"), value)
                for key, value in pairs
            )
        elif kind in (_LIST, _DEQUE, _CELL):
            yield _readable(name), [v if type(v) in _ATOMS else type(v).__name__ for v in held]
        elif kind is _SET:
            yield _readable(name), sorted(map(_key, held))
    for name, tensor in search.tensors:
        is_told = isinstance(tensor, nn.Parameter) or "._buffers[" in name
        if not is_told and tensor.layout is torch.strided and not tensor.is_meta:
            yield _readable(name), tensor


@contextlib.contextmanager
def preserve_rng() -> Iterator[None]:
    """Put the global generators of torch (all devices), numpy and python back afterwards.

    Iterating a DataLoader draws from torch's generator even where nothing is shuffled.
    """
    cuda = torch.cuda.is_available()
    torch_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if cuda else []
    # numpy's global generator is what user code draws from, whether we like it or not
    numpy_state = np.random.get_state()  # noqa: NPY002
    python_state = random.getstate()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)
        if cuda:
            torch.cuda.set_rng_state_all(cuda_states)


@contextlib.contextmanager
def preserve_state(
    model: nn.Module, value: object = None, *, copies_parameters: bool = False
) -> Iterator[ModelState]:
    """Evaluation mode, without gradients, eagerly; everything is as before afterwards.

    Put back are the global generators, the train/eval flag of every module, and all that
    ``ModelState`` knows of the model and of the value function. Weights that autocast has cast and
    cached are dropped before and after, and none are cached meanwhile: a cached cast would
    hide the masks. Compiled code runs eagerly. Forward hooks of the user fire as in any forward. No
    collective may begin where other processes would have to take part.

    Args:
        model: what runs.
        value: a function that runs it, and may keep something itself.
        copies_parameters: put back the contents of parameters, too; else a change is an error.

    Raises:
        MeasurementError: something was left behind that cannot be put back, or a collective
            was about to begin; the rest is as before.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(preserve_rng())
        stack.enter_context(_preserved_flags(model))
        stack.enter_context(_uncached_autocast())
        if "torch._dynamo" in sys.modules:  # else nothing can have been compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.no_grad())
        for module in model.modules():
            # Not model.eval(): a user's own train() may freeze, merge or print.
            module.training = False
        kept = ModelState(model, value, copies_parameters=copies_parameters)
        try:
            with without_collectives():
                yield kept
        except Exception:
            _put_back(kept)
            _refuse_lost(kept)  # it may be the cause
            raise
        finally:
            _put_back(kept)
        _refuse_lost(kept)


def _refuse_lost(kept: ModelState) -> None:
    if lost := kept.lost():
        raise MeasurementError(
            "Expected a forward that leaves nothing behind which cannot be put back, since the "
            f"training goes on from it, but it changed {', '.join(lost[:5])}"
            f"{f' and {len(lost) - 5} more' if len(lost) > 5 else ''}. Let the module do so "
            "only `if self.training`, or leave `proxy` out."
        )


def _put_back(kept: ModelState) -> None:
    try:
        kept.put_back()
    except BaseException:  # a second Ctrl-C in the middle: finish first, then let it out
        kept.put_back()
        raise


@contextlib.contextmanager
def _preserved_flags(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextlib.contextmanager
def _uncached_autocast() -> Iterator[None]:
    enabled = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)
        torch.clear_autocast_cache()
