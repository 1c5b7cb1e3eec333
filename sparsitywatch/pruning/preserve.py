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
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from sparsitywatch.errors import MeasurementError
from sparsitywatch.ranks.protocol import ALONE, Ranks
from sparsitywatch.shown import shown_name
from sparsitywatch.weights.sharded import fsdp_modules

__all__ = ["ModelState", "insist", "plain_state", "preserve_rng", "preserve_state"]

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
_NO_USERS_CLASSES = _LIBRARIES | {"builtins", "collections"}
_NOT_FOLLOWED = (
    *(torch.optim.Optimizer, torch.utils.data.DataLoader, torch.utils.data.Dataset),
    *(type, types.ModuleType),
)


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
    model: nn.Module,
    value: object = None,
    *,
    copies_parameters: bool = False,
    ranks: Ranks = ALONE,
) -> Iterator[ModelState]:
    """Evaluation mode, without gradients, eagerly; everything is as before afterwards.

    Put back are the global generators, the train/eval flag of every module, and all that
    ``ModelState`` knows of the model and of the value function. Weights that autocast has cast
    and cached are dropped before and after, and none are cached meanwhile: a cached cast would
    hide the masks. Compiled code runs eagerly. Forward hooks of the user fire as in any forward.
    Unless all ``ranks`` run it, no collective may begin where other processes would have to take
    part. The contents of parameters are put back with ``copies_parameters``; else a change
    of them is an error.

    Raises:
        MeasurementError: something was left behind that cannot be put back, or a collective
            was about to begin; the rest is as before.
    """
    modules = [*model.modules()]
    with contextlib.ExitStack() as stack:
        stack.enter_context(preserve_rng())
        stack.callback(_set_training, modules, [module.training for module in modules])
        stack.callback(torch.clear_autocast_cache)
        stack.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
        torch.clear_autocast_cache()
        torch.set_autocast_cache_enabled(False)
        if "torch._dynamo" in sys.modules:  # else nothing can have been compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.no_grad())
        # Not model.eval(): a user's own train() may freeze, merge or print.
        _set_training(modules, itertools.repeat(False))
        for module in fsdp_modules(modules):
            module.reshard()
        # what a value function counts or collects is its own; modules that it uses are not
        used = _Search(("the value function", value)).modules
        state = ModelState(_Search(("", model), *used), copies_parameters=copies_parameters)
        try:
            try:
                with ranks.evaluating():
                    yield state
            finally:
                insist(state.put_back)
        except Exception:
            state.refuse_lost()  # it may be the cause
            raise
        state.refuse_lost()


def insist(put_back: Callable[[], object]) -> None:
    """Put something back; a second Ctrl-C in the middle waits until that is done."""
    try:
        put_back()
    except BaseException:
        put_back()
        raise


def _set_training(modules: Sequence[nn.Module], flags: Iterable[bool]) -> None:
    for module, flag in zip(modules, flags, strict=False):
        module.training = flag


# ------------------------------------------------------------------ kinds of things that change


@dataclass(frozen=True, eq=False)
class _Kind:
    """How to copy what a mutable thing holds, and how to put the copy back (None: only reported).

    ``base`` of a container: its own methods are used, those of a subclass may convert or count.
    """

    copy: Callable[[Any], Any]
    put_back: Callable[[Any, Any], object] | None
    is_same: Callable[[Any, Any], bool] = operator.eq  # of two copies
    base: Any = None

    def contents(self, things: Sequence[Any]) -> Iterator[Any]:
        """Everything in some containers, one after the other: keys, and then values."""
        flat = itertools.chain.from_iterable
        keys = flat(map(self.base.__iter__, things))
        is_dict = issubclass(self.base, dict)
        return itertools.chain(keys, flat(map(self.base.values, things))) if is_dict else keys


def _same_items(a: Any, b: Any) -> bool:
    return len(a) == len(b) and all(map(operator.is_, a, b))


def _same_dict(a: dict[Any, Any], b: dict[Any, Any]) -> bool:
    return _same_items(a, b) and all(map(operator.is_, a.values(), b.values()))


def _same_set(a: set[Any], b: set[Any]) -> bool:
    return {*map(id, a)} == {*map(id, b)}


def _dict_kind(base: Any) -> _Kind:
    def put_back(thing: dict[Any, Any], held: dict[Any, Any]) -> None:
        base.clear(thing)
        for key, value in held.items():
            base.__setitem__(thing, key, value)

    return _Kind(lambda thing: dict(base.items(thing)), put_back, _same_dict, base)


def _refill_deque(thing: deque[Any], held: list[Any]) -> None:
    thing.clear()
    thing.extend(held)


def _refill_set(thing: set[Any], held: set[Any]) -> None:
    set.clear(thing)
    set.update(thing, held)


def _named_values(thing: Any) -> dict[str, Any]:
    """Data of a class, or of an object with slots; what is in a variable of a closure."""
    if isinstance(thing, type):
        return {
            name: value
            for name, value in vars(thing).items()
            if not name.startswith("__") and not callable(value) and not hasattr(value, "__get__")
        }
    found = {}
    for name in _slots(type(thing)):
        with contextlib.suppress(AttributeError, ValueError):  # there may be nothing in it
            found[name] = getattr(thing, name)
    return found


def _slots(kind: type) -> list[str]:
    if kind is types.CellType:
        return ["cell_contents"]
    names: dict[str, None] = {}
    for base in kind.__mro__:
        declared = vars(base).get("__slots__", ())
        names |= dict.fromkeys([declared] if isinstance(declared, str) else declared)
    names.pop("__dict__", None)
    names.pop("__weakref__", None)
    return [*names]


def _refill_attributes(thing: Any, held: dict[str, Any]) -> None:
    """For classes and slots: what has no dict to write to."""
    for name in _named_values(thing).keys() - held.keys():
        delattr(thing, name)
    for name, value in held.items():
        setattr(thing, name, value)


class _Globals(NamedTuple):
    """The global variables that a function reads or writes."""

    variables: dict[str, Any]
    names: tuple[str, ...]

    def values(self) -> dict[str, Any]:
        found = {}
        for name in self.names:
            if name in self.variables:
                found[name] = self.variables[name]
        return found

    def put_back(self, held: dict[str, Any]) -> None:
        for name in self.names:
            if name in held:
                self.variables[name] = held[name]
            else:
                self.variables.pop(name, None)


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


def _bit_generator(generator: Any) -> Any:
    own = getattr(generator, "bit_generator", None)
    return own or getattr(generator, "_bit_generator", generator)


_DICT, _ORDERED_DICT = _dict_kind(dict), _dict_kind(OrderedDict)
_LIST = _Kind(list, lambda a, held: list.__setitem__(a, slice(None), held), _same_items, list)
_DEQUE = _Kind(list, _refill_deque, _same_items, deque)
_SET = _Kind(set, _refill_set, _same_set, set)
_BYTES = _Kind(bytes, lambda a, held: a.__setitem__(slice(None), held))
_NAMED = _Kind(_named_values, _refill_attributes, _same_dict)
_GLOBALS = _Kind(_Globals.values, _Globals.put_back, _same_dict)
_ARRAY = _Kind(np.copy, np.copyto, lambda a, b: a.tobytes() == b.tobytes())
_TORCH_GENERATOR = _Kind(lambda g: g.get_state(), lambda g, state: g.set_state(state), torch.equal)
_PYTHON_GENERATOR = _Kind(lambda g: g.getstate(), lambda g, state: g.setstate(state))
_NUMPY_GENERATOR = _Kind(  # its state may hold arrays
    lambda g: pickle.dumps(_bit_generator(g).state),
    lambda g, state: setattr(_bit_generator(g), "state", pickle.loads(state)),  # noqa: S301 dumped above
)
_ONLY_REPORTED = _Kind(_fingerprint, None)
_LEAVES = {set: _SET, bytearray: _BYTES, torch.Generator: _TORCH_GENERATOR}
_LEAVES |= {random.Random: _PYTHON_GENERATOR, np.random.BitGenerator: _NUMPY_GENERATOR}
_LEAVES |= {np.random.Generator: _NUMPY_GENERATOR, np.random.RandomState: _NUMPY_GENERATOR}


class _Group:
    """Things of one kind. Containers are compared all at once: a model has thousands of dicts."""

    def __init__(self, kind: _Kind, named: list[tuple[str, Any]]) -> None:
        self.kind = kind
        self.names, self.things = zip(*named, strict=True)
        self.copies = [*map(kind.copy, self.things)]
        if kind.base is not None:
            self.sizes = [*map(kind.base.__len__, self.things)]
            self.filled = [*itertools.compress(self.things, self.sizes)]
            self.contents = [*kind.contents(self.filled)]

    def changed(self) -> list[tuple[str, Any, Any]]:
        """The name, the thing and the copy, where they no longer agree."""
        base, is_same = self.kind.base, self.kind.is_same
        is_as_large = base is not None and [*map(base.__len__, self.things)] == self.sizes
        if is_as_large and all(map(operator.is_, self.kind.contents(self.filled), self.contents)):
            return []
        copied = zip(self.names, self.things, self.copies, strict=True)
        return [item for item in copied if not is_same(self.kind.copy(item[1]), item[2])]


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

    def __init__(self, *roots: tuple[str, Any]) -> None:
        self.held: dict[_Kind, list[tuple[str, Any]]] = defaultdict(list)
        self.tensors: list[tuple[str, torch.Tensor]] = []
        self.modules: list[tuple[str, nn.Module]] = []
        self._seen: dict[int, Any] = {}  # by id, which is one thing's only while that lives
        todo = [*roots][::-1]
        while todo:
            name, thing = todo.pop()
            if type(thing) not in _ATOMS and id(thing) not in self._seen:
                self._seen[id(thing)] = thing
                # in reverse, so that what stands first is met, and named, first
                todo += [*self._visit(name, thing)][::-1]

    def _visit(self, name: str, thing: Any) -> Iterable[tuple[str, Any]]:
        """What hangs on a thing, after noting what of itself may change."""
        kind = type(thing)  # not isinstance: a weakref.proxy passes itself off as what it is of
        if issubclass(kind, (dict, list, tuple, deque)):
            return self._container(name, thing)
        if issubclass(kind, torch.Tensor):
            if not nn.parameter.is_lazy(thing):
                self.tensors.append((name, thing))
            return ()
        if issubclass(kind, (types.FunctionType, types.MethodType, functools.partial)):
            return self._callable(name, thing)
        if issubclass(kind, nn.Module):
            self.modules.append((name, thing))
        elif (leaf := _leaf_kind(thing)) is not None:
            self.held[leaf].append((name, thing))
            return ()
        elif issubclass(kind, _NOT_FOLLOWED) or _is_machinery(thing):
            return ()
        return itertools.chain(self._attributes(name, thing), self._class(kind))

    def _container(self, name: str, thing: Any) -> Iterable[tuple[str, Any]]:
        if isinstance(thing, dict):
            kind = _ORDERED_DICT if isinstance(thing, OrderedDict) else _DICT
            self.held[kind].append((name, thing))
            if not kind.base.__len__(thing) and kind.base is type(thing):
                return ()  # as most of a module's
            keys, values = map(_key, kind.base.keys(thing), itertools.count()), kind.base.values
            pairs = zip(keys, values(thing), strict=False)
        else:
            if not isinstance(thing, tuple):
                self.held[_DEQUE if isinstance(thing, deque) else _LIST].append((name, thing))
            pairs = zip(map(str, itertools.count()), thing, strict=False)
        is_followed = len(thing) <= _MAX_FOLLOWED
        inside = ((f"{name}[{key}]", value) for key, value in pairs if type(value) not in _ATOMS)
        is_plain = type(thing).__module__ in ("builtins", "collections")
        own = () if is_plain else self._attributes(name, thing)
        return itertools.chain(inside if is_followed else (), own)

    def _attributes(self, name: str, thing: Any) -> Iterable[tuple[str, Any]]:
        found: dict[str, Any] = {}
        held = getattr(thing, "__dict__", None)
        if type(held) is dict:
            self.held[_DICT].append((name, held))
            found |= held if len(held) <= _MAX_FOLLOWED else {}
        if isinstance(thing, torch.jit.ScriptModule):  # its tensors are in no dict of Python's
            tensors = [*thing.named_parameters(recurse=False), *thing.named_buffers(recurse=False)]
            found |= {f"_buffers['{key}']": tensor for key, tensor in tensors}
        if _slots(type(thing)):
            self.held[_NAMED].append((name, thing))
            found |= _named_values(thing)
        return (
            (f"{name}.{key}", value) for key, value in found.items() if type(value) not in _ATOMS
        )

    def _callable(self, name: str, thing: Any) -> list[tuple[str, Any]]:
        if isinstance(thing, types.MethodType):
            return [(name, thing.__self__), (name, thing.__func__)]
        if isinstance(thing, functools.partial):
            return [(name, thing.func), (name, thing.args), (name, thing.keywords)]
        if _package(thing) in _MACHINERY:
            return []
        held = [(name, thing.__dict__), (name, thing.__defaults__), (name, thing.__kwdefaults__)]
        for variable, cell in zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True):
            held.append((f"{name}'s {variable}", cell))
        if _package(thing) in _LIBRARIES:
            return held
        found = _Globals(thing.__globals__, _global_names(thing.__code__))
        self.held[_GLOBALS].append((f"{name}'s globals", found))
        for variable, value in found.values().items():
            # a class or a function of another package is not this model's
            is_code = isinstance(value, (type, types.FunctionType))
            if not is_code or (_package(value) == _package(thing) and not isinstance(value, type)):
                held.append((f"global {variable}", value))
        return held

    def _class(self, kind: type) -> list[tuple[str, Any]]:
        """The data of a user's class, and the functions in it."""
        held = []
        for base in kind.__mro__:
            if _package(base) in _NO_USERS_CLASSES or id(base) in self._seen:
                continue
            self._seen[id(base)] = base
            self.held[_NAMED].append((f"class {base.__name__}", base))
            for key, value in _named_values(base).items():
                held.append((f"class {base.__name__}.{key}", value))
            for key, value in vars(base).items():
                code = getattr(value, "fget", None) or getattr(value, "__func__", None) or value
                if isinstance(code, types.FunctionType):
                    held.append((f"{base.__name__}.{key}", code))
        return held


def _leaf_kind(thing: Any) -> _Kind | None:
    """The kind of a mutable thing that holds no others to be searched."""
    kind = type(thing)
    if issubclass(kind, np.ndarray):
        is_copied = not thing.dtype.hasobject and thing.nbytes <= _MAX_COPY_BYTES
        return _ARRAY if is_copied else _ONLY_REPORTED
    if issubclass(kind, Iterator) and _package(kind) in ("builtins", "itertools"):
        return _ONLY_REPORTED
    if issubclass(kind, random.SystemRandom):  # it has no state
        return None
    for base, leaf in _LEAVES.items():
        if issubclass(kind, base):
            return leaf
    return None


def _key(key: object, position: int | None = None) -> str:
    if position is not None and type(key) is int:
        return str(position)  # hooks have numbers of the process
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


# ------------------------------------------------------------------ tensors


class _TensorState:
    """A tensor, its memory, and a copy of its contents unless these can only be reported."""

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
            if not _same_bits(tensor, self.copy):
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


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two dense tensors are the same bit for bit: NaN equals the same NaN."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    plain = [tensor.detach().resolve_conj().resolve_neg().contiguous() for tensor in (a, b)]
    return torch.equal(*(tensor.reshape(-1).view(torch.uint8) for tensor in plain))


def _storage(tensor: torch.Tensor) -> int | None:
    try:
        return tensor.untyped_storage().data_ptr() or None
    except (RuntimeError, NotImplementedError):  # sparse, or a subclass without memory
        return None


# ------------------------------------------------------------------ all of it


class ModelState:
    """Everything that running some modules and functions may change, as it is now.

    Kept are, of every module: its attributes and what containers and plain objects in them
    hold, its dicts of parameters, buffers, modules and hooks, its class; the contents of
    buffers and other tensors; generators of torch, numpy and python; variables of closures,
    of the user's classes, and those globals that the functions name. Of a parameter its
    memory, gradient and ``requires_grad`` are kept and its contents are watched: a copy would be
    as large as the model; ``copies_parameters`` makes one. Not seen: what C++ holds, files,
    other processes.
    """

    def __init__(self, found: _Search, *, copies_parameters: bool) -> None:
        self._sharded = fsdp_modules([module for _, module in found.modules])
        self._classes = [(module, type(module)) for _, module in found.modules]
        self._groups = [*map(_Group, found.held.keys(), found.held.values())]
        parameters = [t for _, t in found.tensors if isinstance(t, nn.Parameter)]
        of_parameters = {*map(_storage, parameters)} - {None}
        self._tensors = []
        for name, tensor in found.tensors:
            is_small = tensor.numel() * tensor.element_size() <= _MAX_COPY_BYTES
            copies = is_small or "._buffers[" in name
            if isinstance(tensor, nn.Parameter):
                copies = copies_parameters
            elif _storage(tensor) in of_parameters:
                copies = False
            self._tensors.append(_TensorState(name, tensor, copies=copies))

    def put_back(self, *, fully: bool = True) -> None:
        """Make everything as it was; may be called again.

        Unless ``fully``, contents are compared only of tensors that have been written to by an
        operator, or at any time before.
        """
        for module in self._sharded:  # what a forward has gathered stands in the place of its own
            module.reshard()
        for module, kind in self._classes:
            if type(module) is not kind:
                module.__class__ = kind
        for group in self._groups:
            if (put_back := group.kind.put_back) is not None:
                for _, thing, copy in group.changed():
                    put_back(thing, copy)
        for tensor in self._tensors:
            tensor.put_back(fully=fully)

    def refuse_lost(self) -> None:
        """Refuse, by its name, what is not as it was after ``put_back``."""
        lost = [name for group in self._groups for name, _, _ in group.changed()]
        lost += filter(None, [tensor.lost() for tensor in self._tensors])
        if lost:
            raise MeasurementError(
                "Expected a forward that leaves nothing behind which cannot be put back, since the "
                f"training goes on from it, but it changed {', '.join(map(_readable, lost[:5]))}"
                f"{f' and {len(lost) - 5} more' if len(lost) > 5 else ''}. Let the module do so "
                "only `if self.training`, or leave `proxy` out."
            )


def _readable(name: str) -> str:
    """A path as a user writes it: a module's own dicts stand for what is in them.

    >>> _readable("._modules['encoder']._buffers['mean']")
    'encoder.mean'
    """
    path = name.replace(".cell_contents", "")
    path = re.sub(r"\._(?:modules|buffers|parameters)\['([^']*)'\]", r".\1", path).lstrip(".")
    return shown_name(path)


def plain_state(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """By name what ``ModelState`` keeps beside parameters and buffers, as plain data."""
    found = _Search(("", model))
    for kind, named in found.held.items():
        for name, thing in named:
            yield from _plain(kind, name, kind.copy(thing))
    for name, tensor in found.tensors:
        is_named = isinstance(tensor, nn.Parameter) or "._buffers[" in name
        if not is_named and tensor.layout is torch.strided and not tensor.is_meta:
            yield _readable(name), tensor


def _plain(kind: _Kind, name: str, held: Any) -> Iterator[tuple[str, Any]]:
    if kind in (_ARRAY, _TORCH_GENERATOR, _PYTHON_GENERATOR, _NUMPY_GENERATOR, _BYTES):
        yield _readable(name), held
    elif isinstance(held, dict):
        for key, value in held.items():
            if type(value) in _ATOMS:
                yield _readable(f"{name}.{key if type(key) is str else _key(key)}"), value
    elif kind in (_LIST, _DEQUE):
        yield _readable(name), [v if type(v) in _ATOMS else type(v).__name__ for v in held]
    elif kind is _SET:
        yield _readable(name), sorted(map(_key, held))
