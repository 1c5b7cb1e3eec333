"""The copy of a model that is evaluated: it shares the memory of the weights, and no more."""

from __future__ import annotations

import copy
import copyreg
import dis
import functools
import io
import operator
import pickle
import random
import sys
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from sparsitywatch.errors import TrainingChangedError
from sparsitywatch.proxy.batches import Runnable
from sparsitywatch.redact import printable
from sparsitywatch.weights.layout import clean_name
from sparsitywatch.weights.sharded import address_of, decoded, is_encoded

#: Larger tensors and arrays that are no buffers (a data set, say) are shared.
_MAX_COPY_BYTES = 2**26
#: What longer containers beside the model hold is not looked at.
_MAX_FOLLOWED = 10_000
#: Packages of the standard library whose objects are plain data.
_DATA = {"argparse", "array", "builtins", "collections", "functools", "types"}
#: Packages whose objects belong to the training, or to the process: they are shared. Modules,
#: tensors and generators are copied, whatever package their class is of.
_SHARED = (
    (sys.stdlib_module_names - _DATA)
    | {"torch", "lightning", "pytorch_lightning", "lightning_fabric", "accelerate", "deepspeed"}
    | {"datasets", "tokenizers", "wandb", "tensorboard", "tensorboardX", "mlflow", "tqdm"}
    | {"sparsitywatch", "numpy", "scipy", "pandas", "sklearn", "PIL", "jax"}
)
#: Packages whose classes and functions hold nothing that a forward changes.
_LIBRARIES = _SHARED | _DATA | {"torchvision", "torchaudio", "transformers", "timm", "torchmetrics"}
#: Who holds something of these is shared with another thread or process.
_CONCURRENT = {"threading", "_thread", "queue", "_queue", "concurrent", "multiprocessing"}

_ATOMS = frozenset({int, float, bool, complex, str, bytes, type(None)})
_PLAIN = _ATOMS | {dict, list, tuple, set, OrderedDict}
_CONTAINERS = (dict, list, set, deque, bytearray)
_GENERATORS = (random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator)
#: Not pickled: either copied in a way of its own, or shared.
_ON_ITS_OWN = (
    *(torch.Tensor, np.ndarray, torch.Generator, *_GENERATORS, torch.jit.ScriptModule),
    *(type, types.ModuleType, types.CodeType, torch.optim.Optimizer),
    *(torch.utils.data.DataLoader, torch.utils.data.Dataset),
)


class ModelCopy:
    """A copy of a model in evaluation mode, and of the modules that a value function uses.

    Parameters are new objects on the same memory, or on that of a tensor ``instead``, by their id.
    Copied, as pickle does it, are buffers and other tensors, containers, plain objects, generators,
    variables of closures. Shared are data sets, optimizers, large tensors, and what else belongs to
    the training or refuses to be copied.
    """

    def __init__(
        self, model: nn.Module, value: Any = None, instead: Mapping[int, torch.Tensor] | None = None
    ) -> None:
        self._model = model
        self._memory = _Memory(model, instead or {})
        self._buffers = {id(buffer) for buffer in model.buffers()}
        self.shared: list[tuple[torch.Tensor, int]] = []  # with what was written to it before
        self._copies: list[tuple[Any, Any]] = []  # of what is not pickled, with the originals
        used: dict[int, nn.Module] = {}
        _with_modules(value, lambda module: used.setdefault(id(module), module))
        pickler = _Pickler((model, [*used.values()]))
        made = [*map(self._on_its_own, pickler.things)]
        self.module, own = _Unpickler(pickler.stream, made).load()
        for module in self.module.modules():
            module.training = False
        copies = dict(zip(used, own, strict=True))
        own_value = _with_modules(value, lambda module: copies[id(module)])
        self.runnable = Runnable(self.module, own_value)
        self.kinds: Iterable[type] = pickler.kinds  # of what was copied
        functions = [one for one in pickler.things if isinstance(one, types.FunctionType)]
        self.functions = [*functions, *pickler.functions]  # that the model holds, such as hooks
        self._refused = pickler.refused
        self._was: Any = None

    @property
    def uncopied(self) -> dict[str, str]:
        """What refused to be copied and is shared: its class, by its name."""
        refused = [one for one in self._refused if not isinstance(one, Iterator)]
        return {name_in(self._model, one): type(one).__name__ for one in refused}

    def note(self) -> None:
        """Remember what the copy consists of."""
        self._was = self._contents()

    def is_as_noted(self) -> bool:
        """Whether forwards have left nothing behind in the copy."""
        return self._was == self._contents() and all(
            same_bits(a, b) if isinstance(a, torch.Tensor) else _state(a) == _state(b)
            for a, b in self._copies
        )

    def _contents(self) -> Any:
        """What the copy consists of; the same as long as nothing is assigned or put into it."""
        pickler = _Pickler(self.module)
        tensors = [one for one in pickler.things if isinstance(one, torch.Tensor)]
        places = [(_place(tensor), tensor.requires_grad) for tensor in tensors]
        return pickler.stream, [*map(id, pickler.things)], places

    def _on_its_own(self, thing: Any) -> Any:
        """What stands in the copy for something that is not pickled."""
        if isinstance(thing, torch.Tensor):
            return self._tensor(thing)
        if isinstance(thing, torch.jit.ScriptModule):
            made = copy.deepcopy(thing)
            for own, parameter in zip(made.parameters(), thing.parameters(), strict=True):
                own.data = self._tensor(parameter).data
            return made.eval()
        if isinstance(thing, np.ndarray):
            is_copied = thing.nbytes <= _MAX_COPY_BYTES and not thing.dtype.hasobject
        else:
            is_copied = isinstance(thing, (torch.Generator, *_GENERATORS))
            is_copied &= not isinstance(thing, random.SystemRandom)
        if is_copied:
            is_torch = isinstance(thing, torch.Generator)
            made = thing.clone_state() if is_torch else copy.deepcopy(thing)
            self._copies.append((made, thing))
            return made
        is_plain_iterator = _package(type(thing)) in ("builtins", "itertools")
        is_moved_on = is_plain_iterator and isinstance(thing, Iterator)
        return _Uncopied(self._model, thing) if is_moved_on else thing

    def _tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        if nn.parameter.is_lazy(tensor):
            return tensor
        memory = self._memory.of(tensor)
        if memory is None:
            is_small = tensor.numel() * tensor.element_size() <= _MAX_COPY_BYTES
            is_weight = isinstance(tensor, nn.Parameter) or self._memory.holds(tensor)
            if not is_weight and (is_small or id(tensor) in self._buffers):
                clone = tensor.detach().clone()
                self._copies.append((clone, tensor))
                return clone.requires_grad_(tensor.requires_grad and tensor.is_leaf)
            memory = tensor.detach()
            self.shared.append((tensor, version_of(tensor)))
        if not isinstance(tensor, nn.Parameter):
            return memory
        made: torch.Tensor
        kind = type(tensor)
        # values in the place of codes are a parameter like any other
        if kind is nn.Parameter or type(memory) is not torch.Tensor or is_encoded(tensor):
            made = nn.Parameter(memory, tensor.requires_grad)
        else:
            made = torch.Tensor._make_subclass(kind, memory, tensor.requires_grad)
        vars(made).update(vars(tensor))
        return made


class _Pickler(pickle.Pickler):
    """Pickles what a model consists of; what is copied in another way, or shared, stays outside."""

    def __init__(self, thing: Any) -> None:
        file = io.BytesIO()
        super().__init__(file, protocol=5)
        self.things: list[Any] = []  # that stay outside
        self.refused: list[Any] = []
        self.functions: list[types.FunctionType] = []  # that are made anew
        self.kinds: dict[type, None] = {}
        self._index: dict[Any, int] = {}
        self.dump(thing)
        self.stream = file.getvalue()

    def persistent_id(self, thing: Any) -> int | None:
        """The number of what stays outside."""
        if type(thing) in _PLAIN:
            return None
        key: Any = id(thing)
        if type(thing) is _Outside:
            thing = thing.thing
            key = "outside", id(thing)
        elif key not in self._index and not self._stays_outside(thing, type(thing)):
            return None
        if key not in self._index:
            self._index[key] = len(self.things)
            self.things.append(thing)
        return self._index[key]

    def _stays_outside(self, thing: Any, kind: type) -> bool:
        # not isinstance: a weakref.proxy passes itself off as what it is of
        if issubclass(kind, _ON_ITS_OWN):
            return True
        if issubclass(kind, nn.Module):
            return False
        if issubclass(kind, types.FunctionType):
            return not thing.__closure__ or _package(thing) == "torch"
        if issubclass(kind, types.BuiltinFunctionType):  # a list's append goes with the list
            return not issubclass(type(thing.__self__), _CONTAINERS)
        if kind is weakref.ref:
            return thing() is None
        if issubclass(kind, types.MethodType):
            return False
        if is_of_the_training(thing, kind):
            return True
        try:
            reduce = copyreg.dispatch_table.get(kind)
            reduced = reduce(thing) if reduce else thing.__reduce_ex__(4)
        except Exception:  # noqa: BLE001 whatever somebody's class raises
            self.refused.append(thing)
            return True
        # to make it anew may open a connection, say
        return isinstance(reduced, str) or not (
            reduced[0].__module__ == "copyreg" or _package(kind) in _DATA
        )

    def reducer_override(self, thing: Any) -> Any:
        """How the copy of a thing is made, and filled."""
        if isinstance(thing, nn.Module):
            self.kinds[type(thing)] = None
            if "_orig_mod" in thing._modules:  # a wrapper of torch.compile, which runs the original
                return operator.itemgetter(0), ([thing._orig_mod],)
            return object.__new__, (type(thing),), _held_by(thing), None, None, _fill_module
        if isinstance(thing, types.FunctionType):
            self.functions.append(thing)
            held = [_held_in(cell) for cell in thing.__closure__ or ()]
            state = (held, thing.__defaults__, thing.__kwdefaults__, vars(thing))
            return _new_function, (_Outside(thing),), state, None, None, _fill_function
        if isinstance(thing, types.MethodType):
            return types.MethodType, (thing.__func__, thing.__self__)
        if type(thing) is weakref.ref:
            return weakref.ref, (thing(),)
        self.kinds[type(thing)] = None
        if isinstance(thing, list | dict) and type(thing) not in _PLAIN:
            reduced: Any = thing.__reduce_ex__(4)
            make, arguments, *held = reduced
            is_usual = make is vars(copyreg)["__newobj__"] and len(held) == 3
            if is_usual and not hasattr(thing, "__setstate__"):
                state, values, items = held
                filling = (state, [*(values or ())], [*(items or ())])
                return make, arguments, filling, None, None, _fill_container
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    """Makes the copy; what stayed outside is given."""

    def __init__(self, stream: bytes, made: Sequence[Any]) -> None:
        super().__init__(io.BytesIO(stream))
        self._made = made

    def persistent_load(self, number: int) -> Any:
        """What stands for the thing of this number."""
        return self._made[number]


class _Outside(NamedTuple):
    """Keeps something outside of the pickle that would be pickled by itself."""

    thing: Any


def _held_by(module: nn.Module) -> dict[str, Any]:
    """What a module holds, but for the hook of a watch, which waits for a forward of it."""
    held = vars(module)
    hooks: dict[int, Any] = held.get("_forward_pre_hooks", {})
    own = {number: h for number, h in hooks.items() if _package(type(h)) != "sparsitywatch"}
    return held if len(own) == len(hooks) else {**held, "_forward_pre_hooks": type(hooks)(own)}


def _fill_module(made: nn.Module, held: dict[str, Any]) -> None:
    vars(made).update(held, training=False)
    if "_compiled_call_impl" in held:  # by module.compile(): of the original
        vars(made)["_compiled_call_impl"] = None
    if "_trainer" in held:  # of Lightning: it would log an evaluation among the training's numbers
        vars(made)["log"] = _log_nothing


def _log_nothing(*_: object, **__: object) -> None:
    pass


def _fill_container(made: Any, held: tuple[Any, list[Any], list[Any]]) -> None:
    # not by its own methods, which may want its attributes first, or note what is put in
    state, values, items = held
    for attributes in state if isinstance(state, tuple) else (state,):
        for name, value in (attributes or {}).items():
            object.__setattr__(made, name, value)
    if isinstance(made, list):
        list.extend(made, values)
    else:
        dict.update(made, items)


def _new_function(function: types.FunctionType) -> types.FunctionType:
    cells = tuple(types.CellType() for _ in function.__closure__ or ())
    code, variables = function.__code__, function.__globals__
    return types.FunctionType(code, variables, function.__name__, None, cells)


def _fill_function(made: types.FunctionType, state: Any) -> None:
    held, made.__defaults__, made.__kwdefaults__, attributes = state
    vars(made).update(attributes)
    for cell, value in zip(made.__closure__ or (), held, strict=True):
        if value is not _EMPTY:
            cell.cell_contents = value


def _with_modules(value: Any, own_of: Callable[[nn.Module], nn.Module]) -> Any:
    """A value function on other modules than it uses; what it counts or collects is its own."""
    # it uses those in its closure and arguments, and what it is a method of
    if isinstance(value, nn.Module):
        return own_of(value)
    if isinstance(value, types.MethodType):
        holder = _with_modules(value.__self__, own_of)
        return value if holder is value.__self__ else types.MethodType(value.__func__, holder)
    if isinstance(value, functools.partial):
        inside = [value.func, *value.args, *value.keywords.values()]
        own = [_with_modules(one, own_of) for one in inside]
        if not all(map(operator.is_, own, inside)):
            num = 1 + len(value.args)
            keywords = dict(zip(value.keywords, own[num:], strict=True))
            return functools.partial(own[0], *own[1:num], **keywords)
    if isinstance(value, types.FunctionType):
        inside = [_held_in(cell) for cell in value.__closure__ or ()]
        own = [own_of(one) if isinstance(one, nn.Module) else one for one in inside]
        if not all(map(operator.is_, own, inside)):
            made = _new_function(value)
            _fill_function(made, (own, value.__defaults__, value.__kwdefaults__, {}))
            return made
    return value


class _Uncopied:
    """In the place of an iterator that cannot be copied: to move it on is refused."""

    def __init__(self, model: nn.Module, thing: Any) -> None:
        self._model = model
        self._thing = thing

    def __iter__(self) -> _Uncopied:
        return self

    def __next__(self) -> Any:
        raise changes_the_training([name_in(self._model, self._thing)])

    send = throw = __next__


class _Memory:
    """Where the parameters of a model lie, and what stands in their place."""

    def __init__(self, model: nn.Module, instead: Mapping[int, torch.Tensor]) -> None:
        self._replaces = bool(instead)
        self._at: dict[Any, torch.Tensor | None] = {}
        self._around: dict[int, dict[Any, torch.Tensor]] = {}
        parameters = [*model.parameters()]
        for storage, parameter in zip([*map(address_of, parameters)], parameters, strict=True):
            place = _place(parameter)
            # tied parameters may be several objects
            self._at[place] = instead.get(id(parameter), self._at.get(place))
            if storage is not None:
                self._around.setdefault(storage, {})[place] = parameter

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor lies in the memory of a parameter."""
        return address_of(tensor) in self._around

    def of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """What stands in the place of a parameter, or of a view of one; None if nothing does."""
        if not self._replaces:
            return None
        place = _place(tensor)
        if place in self._at:
            return self._at[place]
        around = self._around.get(address_of(tensor) or -1, {})
        if len(around) != 1:
            return None
        ((place, parameter),) = around.items()
        instead = self._at[place]
        if instead is None or tensor.dtype != parameter.dtype:
            return None
        offset = tensor.storage_offset() - parameter.storage_offset() + instead.storage_offset()
        return instead.as_strided(tensor.shape, tensor.stride(), offset)


def plain_state(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """By name what the modules of a model hold beside parameters and buffers, as plain data."""
    for path, module in model.named_modules():
        for key, value in _held_by(module).items():
            name = f"{path}.{key}".lstrip(".")
            if key in ("_parameters", "_buffers", "_modules", "training"):
                continue
            if type(value) in _ATOMS or isinstance(value, torch.Tensor):
                yield name, value
            elif value:
                # hooks have numbers of the process
                pickler = _Pickler([*value.values()] if "_hooks" in key else value)
                yield name, pickler.stream
                for number, thing in enumerate(pickler.things):
                    if isinstance(thing, torch.Tensor):
                        yield f"{name}[{number}]", thing
                    elif isinstance(thing, (np.ndarray, torch.Generator, *_GENERATORS)):
                        yield f"{name}[{number}]", _state(thing)


# ------------------------------------------------------------------ beside the model


class Surroundings:
    """What no copy reaches, so that it is put back.

    These are attributes of classes, globals, defaults, and which objects the modules of the
    ``model`` in training hold.
    """

    def __init__(self, copied: ModelCopy, model: nn.Module) -> None:
        self.tensors: list[tuple[torch.Tensor, int]] = []  # with what was written to them before
        self._variables: list[tuple[Any, tuple[str, ...] | None, dict[str, Any]]] = []
        self._containers: list[tuple[Any, Any]] = []
        self._seen: dict[int, Any] = {}
        for one in model.modules():
            for held in (vars(one), one._parameters, one._buffers, one._modules):
                self._containers.append((held, held.copy()))
        for kind in copied.kinds:
            for base in kind.__mro__:
                self._follow(base)
        for function in copied.functions:
            self._follow(function)

    def put_back(self) -> bool:
        """Make everything as it was; whether anything was not."""
        is_changed = False
        for holder, names, was in self._variables:
            now = _variables(holder, names)
            for name in now.keys() | was.keys():
                if now.get(name, _EMPTY) is not was.get(name, _EMPTY):
                    _set_variable(holder, name, was.get(name, _EMPTY))
                    is_changed = True
        for thing, was in self._containers:
            if not _has_same(thing, was):
                thing.clear()
                (thing.update if isinstance(thing, dict | set) else thing.extend)(was)
                is_changed = True
        return is_changed

    def _follow(self, thing: Any) -> None:
        kind = type(thing)
        if kind in _ATOMS or id(thing) in self._seen:
            return
        self._seen[id(thing)] = thing
        if issubclass(kind, torch.Tensor):
            self.tensors.append((thing, version_of(thing)))
        elif issubclass(kind, _CONTAINERS):
            self._containers.append((thing, copy.copy(thing)))
            inside = thing.values() if issubclass(kind, dict) else thing
            for one in [*inside] if len(thing) <= _MAX_FOLLOWED else ():
                self._follow(one)
        elif issubclass(kind, type):
            if _package(thing) not in _LIBRARIES:
                self._keep(thing, None)
                for own in vars(thing).values():
                    code = own.fget if isinstance(own, property) else own
                    code = code.__func__ if isinstance(code, classmethod | staticmethod) else code
                    self._follow_function(code)
        elif issubclass(kind, types.FunctionType):
            self._follow_function(thing)
        elif not is_of_the_training(thing, kind) and _package(kind) not in _LIBRARIES:
            self._follow(getattr(thing, "__dict__", None))

    def _follow_function(self, function: Any) -> None:
        if isinstance(function, types.FunctionType) and _package(function) not in _LIBRARIES:
            self._keep(function.__globals__, _global_names(function.__code__))
            for default in (*(function.__defaults__ or ()), function.__kwdefaults__):
                self._follow(default)

    def _keep(self, holder: Any, names: tuple[str, ...] | None) -> None:
        held = _variables(holder, names)
        self._variables.append((holder, names, held))
        for value in held.values():
            if not isinstance(value, type):  # a class is looked at where the model is of it
                self._follow(value)


def _variables(holder: Any, names: tuple[str, ...] | None) -> dict[str, Any]:
    """The data of a class, or those of a file's global variables that have these names."""
    if names is not None:
        return {name: holder[name] for name in names if name in holder}
    return {
        name: value
        for name, value in vars(holder).items()
        if not name.startswith("__") and not callable(value) and not hasattr(value, "__get__")
    }


def _set_variable(holder: Any, name: str, value: Any) -> None:
    is_class = isinstance(holder, type)
    if value is not _EMPTY:
        setattr(holder, name, value) if is_class else holder.update({name: value})
    else:
        delattr(holder, name) if is_class else holder.pop(name)


@functools.lru_cache(maxsize=4096)
def _global_names(code: types.CodeType) -> tuple[str, ...]:
    """The global variables that code reads or writes, inner functions included."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname.endswith("_GLOBAL")}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names.update(_global_names(constant))
    return tuple(sorted(names))


def _has_same(thing: Any, was: Any) -> bool:
    """Whether a container holds the same objects as a copy of it that was made before."""
    if isinstance(thing, bytearray):
        return bool(thing == was)
    if isinstance(thing, dict):
        return _has_same([*thing, *thing.values()], [*was, *was.values()])
    if isinstance(thing, set):
        return {*map(id, thing)} == {*map(id, was)}
    return len(thing) == len(was) and all(map(operator.is_, thing, was))


# ------------------------------------------------------------------ what things are, and are equal

_EMPTY: Any = type("_Empty", (), {})()


def refuse_written(model: nn.Module, tensors: Iterable[tuple[torch.Tensor, int]]) -> None:
    """Refuse tensors that were written to since they had these versions; by their names."""
    changed = [tensor for tensor, version in tensors if version_of(tensor) != version]
    if changed:
        raise changes_the_training([name_in(model, tensor) for tensor in changed])


def changes_the_training(names: Sequence[str]) -> TrainingChangedError:
    """What is said of a forward that changes what the copy shares with the training."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return TrainingChangedError(
        "Expected a forward that changes nothing which the evaluated copy of the model shares with "
        f"the training, but it changed {', '.join(names[:5])}{more}. Let the module do so only `if "
        "self.training`, or leave `proxy` out."
    )


def name_in(model: nn.Module, thing: Any) -> str:
    """The name that something has in a model; its class where no module holds it."""
    for path, module in model.named_modules():
        for held in (module._parameters, module._buffers, vars(module)):
            for name, value in held.items():
                if value is thing:
                    return printable(clean_name(f"{path}.{name}" if path else name))
    return f"a {type(thing).__name__} that the model uses"


def is_of_the_training(thing: Any, kind: type) -> bool:
    """Whether an object belongs to the training, to the process, or to another thread, too."""
    for base in kind.__mro__[:-1]:
        module = str(base.__module__)
        if module in ("abc", "typing") or module.startswith("torch.distributions"):
            continue
        if module.partition(".")[0] in _SHARED or module.startswith("transformers.trainer"):
            return True
    held = getattr(thing, "__dict__", None)
    if type(held) is not dict:
        return False
    return not _CONCURRENT.isdisjoint(map(_package, map(type, held.values())))


def version_of(tensor: torch.Tensor) -> int:
    """How often operators have written to a tensor; -1 where torch does not count."""
    return -1 if tensor.is_inference() else tensor._version


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are the same bit for bit: NaN equals the same NaN."""
    if a.shape != b.shape or a.dtype != b.dtype or a.layout != b.layout:
        return False
    if a.layout is not torch.strided or a.is_meta:
        return True
    if is_encoded(a):
        values = [one for one in (decoded(a), decoded(b)) if one is not None]
        return len(values) < 2 or same_bits(*values)
    plain = [tensor.detach().resolve_conj().resolve_neg().contiguous() for tensor in (a, b)]
    # torch compares one word after the other, whatever its width
    word = {4: torch.int32, 8: torch.int64}.get(a.itemsize, torch.uint8)
    return torch.equal(*(tensor.reshape(-1).view(word) for tensor in plain))


def _state(thing: Any) -> bytes:
    """Of an array, or of a generator."""
    state = thing.get_state().numpy() if isinstance(thing, torch.Generator) else thing
    return pickle.dumps(state)


def _package(kind: Any) -> str:
    return str(getattr(kind, "__module__", None) or "").partition(".")[0]


def _held_in(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _EMPTY


def _place(tensor: torch.Tensor) -> Any:
    """Where a tensor begins, and how it lies; one without memory is at a place of its own."""
    is_strided = tensor.layout is torch.strided
    is_plain = is_strided and type(tensor) in (torch.Tensor, nn.Parameter)
    has_memory = is_plain or address_of(tensor) is not None
    address = tensor.data_ptr() if has_memory else id(tensor)
    return address, tuple(tensor.shape), is_strided and tensor.stride(), tensor.dtype
