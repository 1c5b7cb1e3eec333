"""What the dictionaries of a checkpoint hold: the model, how far it had come, its optimizers.

A checkpoint is dictionaries in dictionaries with tensors at their ends. Of a file that knows no
dictionaries, such as one of safetensors, the dots in the names stand for them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np

from sparsitywatch.checkpoints.faults import ReadingError, RefusedError
from sparsitywatch.checkpoints.inert_pickle import Call, Global, in_words
from sparsitywatch.series import count
from sparsitywatch.weights.layout import Entry

#: A level of a checkpoint, and what is on the way to it, from the top on.
Level = Mapping[Any, Any]
Way = tuple[Level, ...]
#: Of a tensor its shape, and whether it holds floats; None of what is no tensor.
Seen = tuple[Sequence[int], bool]
Look = Callable[[Any], Seen | None]
#: A whole number out of a node of a file, such as a tensor with one element.
Whole = Callable[[Any], int | None]


def _levels(
    way: Way,
    enters: Callable[[tuple[str, ...], Any], bool],
    keys: tuple[str, ...] = (),
    known: set[int] | None = None,
) -> Iterator[tuple[tuple[str, ...], Way]]:
    """Each dictionary or list from the top on, once, by the keys to it, where ``enters`` is so."""
    known = {id(way[-1])} if known is None else known
    yield keys, way
    for key, child in way[-1].items():
        is_level = type(key) in (str, int) and isinstance(child, dict | list)
        if is_level and id(child) not in known and enters((*keys, str(key)), child):
            known.add(id(child))
            level = child if isinstance(child, dict) else dict(enumerate(child))
            yield from _levels((*way, level), enters, (*keys, str(key)), known)


# ------------------------------------------------------------------ which tensors are the model's

#: Tensors by name, each with what was seen of it: nothing is looked at twice.
Looked = Mapping[str, tuple[Any, Seen]]
#: Levels, characters of the keys to one, words in front of all names (such as DDP's).
_MAX_LEVELS, _MAX_PREFIX, _MAX_WRAPPERS = 8, 256, 3
#: So many candidates are looked at more closely, and shown; there are a handful.
_MAX_CANDIDATES, _MAX_SHOWN = 1000, 12
#: What holds the state of an optimizer, by its key; others are known by what is in them.
_OPTIMIZER = re.compile(r"(?:^|[._-])(?:opt|optim|optimizers?)(?:$|[._\d-])", re.IGNORECASE)
#: Where Lightning puts the trained weights if their average takes the place of the model.
_TRAINED = "current_model_state"
#: What holds a second set of weights, such as an average of the first.
_COPY = re.compile(
    r"(?:^|_)(?:ema|swa|polyak|shadow|averaged?|teacher|target|momentum)(?:$|[_\d])", re.IGNORECASE
)


@dataclass(frozen=True)
class Candidate:
    """Tensors that may be the model."""

    key: str  # the dotted path that leads to them; "" at the top
    tensors: Mapping[str, Any]  # ends of a tree by their names below it
    way: Way  # the dictionaries around them, from the top on
    #: Of the one that is read: how many tensors each has that could be, by key.
    among: Mapping[str, int] = field(default_factory=dict)


def choose(tree: Any, look: Look, key: str | None = None) -> Candidate:
    """The tensors under ``key``; without it the only ones that may be a model.

    Raises:
        ReadingError: none are, or several, or none is there under ``key``; the message lists them.
    """
    found = candidates_of(tree, look) if isinstance(tree, dict) else []
    among = {one.key: len(one.tensors) for one in found}
    words = [f"{one[:80]!r} ({count(num, 'tensor')})" for one, num in among.items()]
    more = f" and {len(words) - _MAX_SHOWN:,} more" if len(words) > _MAX_SHOWN else ""
    listed = f": {', '.join(words[:_MAX_SHOWN])}{more}" if words else ""
    chosen = [one for one in found if key in (None, one.key)]
    if key is not None and not chosen and isinstance(tree, dict):
        tensors = everything(tree, look, key)
        if not tensors:
            raise ReadingError(
                f"expected tensors under the key {key[:80]!r}, found none{listed}. Give another."
            )
        chosen = [Candidate(key, tensors, found[0].way if found else (tree,))]
    if not chosen:
        raise ReadingError(
            "expected tensors of a model in a state dict, or in a dictionary with one; got "
            f"{_what(tree)}. Save model.state_dict(), and name the file or folder that holds it."
        )
    if len(chosen) > 1:
        keys = [one.key for one in found]
        first = _TRAINED if _TRAINED in keys else keys[0]
        raise ReadingError(
            f"expected one dictionary of weights, got several{listed}. Say which one to read, such "
            f"as `--key {first or repr(first)}` (key={first!r})."
        )
    return replace(chosen[0], among=among)


def _what(tree: Any) -> str:
    if isinstance(tree, dict):
        keys = [in_words(key)[:40] for key in islice(tree, 8)]
        return f"a dictionary of {', '.join(keys) or 'nothing'}"
    return f"{in_words(tree)}, which is never made" if isinstance(tree, Call) else in_words(tree)


def everything(tree: Level, look: Look, key: str = "") -> dict[str, Any]:
    """All tensors whose dotted path begins with ``key``, by what follows on it."""
    start = key if key.endswith(("_", "/", ".")) or not key else f"{key}."

    def is_on_way(keys: tuple[str, ...], node: Any) -> bool:
        path = ".".join((*keys, ""))
        is_near = isinstance(node, dict) and len(path) <= _MAX_PREFIX + len(start)
        return is_near and (start.startswith(path) or path.startswith(start))

    found = []
    for keys, way in _levels((tree,), is_on_way):
        for key_of, leaf in way[-1].items():
            name = ".".join((*keys, str(key_of))) if type(key_of) in (str, int) else ""
            if name.startswith(start) and name != start and look(leaf) is not None:
                found.append((name[len(start) :], leaf))
    return _named(found)


def candidates_of(tree: Level, look: Look) -> list[Candidate]:
    """The dictionaries that may be a model: those with matrices of floats, where there are any.

    What an optimizer keeps is none. Only where there are no matrices others count.
    """
    holders = []
    for keys, way in _levels((tree,), _may_hold) if _may_hold((), tree) else ():
        own = {k: (one, seen) for k, one in way[-1].items() if (seen := look(one)) is not None}
        if own:
            holders.append((keys, way, own, max(_rank(seen) for _, seen in own.values())))
    highest, found = max((rank for *_, rank in holders), default=0), []
    best = [(keys, way, own) for keys, way, own, rank in holders if rank == highest]
    for keys, way, own in best[:_MAX_CANDIDATES]:
        for head, part in _parts(_named(own.items())).items():
            tensors = {name: leaf for name, (leaf, _) in part.items()}
            found.append(Candidate(".".join([*keys, head] if head else keys), tensors, way))
    return found


def _may_hold(keys: tuple[str, ...], node: Any) -> bool:
    """Whether a model may lie in a level: none does in an optimizer."""
    is_near = len(keys) <= _MAX_LEVELS and sum(map(len, keys)) <= _MAX_PREFIX
    is_level = is_near and isinstance(node, dict) and _GROUPS not in node
    return is_level and not _OPTIMIZER.search(keys[-1] if keys else "")


def _rank(seen: Seen) -> int:
    shape, is_float = seen
    return 0 if len(shape) < 2 else 1 + is_float


def _named(pairs: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for key, leaf in pairs:
        name = str(key) if type(key) is int else key
        if not isinstance(name, str) or name in named:
            raise RefusedError(f"expected names of tensors that occur once, got {in_words(key)}")
        named[name] = leaf
    return named


def _parts(tensors: Looked, depth: int = 0) -> dict[str, Looked]:
    """What lies in one dictionary of flat names, by the first word; "" for all that counts."""
    heads: dict[str, dict[str, tuple[Any, Seen]]] = {}
    for name, leaf in tensors.items():
        head, _, rest = name.partition(".")
        head, rest = (head, rest) if head and rest else ("", name)
        heads.setdefault(head, {})[rest] = leaf
    kept = {head: part for head, part in heads.items() if not _OPTIMIZER.search(head)}
    shapes = {head: _matrices(part) for head, part in kept.items() if head}
    every: Counter[tuple[int, ...]] = Counter()
    for own in shapes.values():
        every.update(own)
    copies = (own for head, own in shapes.items() if _COPY.search(head))
    if any(own and all(every[shape] >= 2 * num for shape, num in own.items()) for own in copies):
        return {head: kept[head] for head, own in shapes.items() if own}
    if len(heads) == 1 and "" not in heads and depth < _MAX_WRAPPERS:
        ((head, part),) = heads.items()
        inside = _parts(part, depth + 1)
        if inside.get("") is not part:
            return {f"{head}.{name}".rstrip("."): inner for name, inner in inside.items()}
    if len(kept) == len(heads) or not kept:
        return {"": tensors}
    if len(kept) == 1 and "" not in kept:
        return {**kept}
    return {"": {n: leaf for n, leaf in tensors.items() if not _OPTIMIZER.search(n.split(".")[0])}}


def _matrices(tensors: Looked) -> Counter[tuple[int, ...]]:
    return Counter(tuple(seen[0]) for _, seen in tensors.values() if _rank(seen))


# ------------------------------------------------------------------ how far it had come

#: Keys under which a checkpoint keeps the number of optimizer steps done, and that of epochs.
STEP_KEYS = ("global_step", "step_count", "iter_num", "step", "global_steps", "iteration",
             "num_updates", "steps_done", "iter", "global_iter", "current_step", "n_iter",
             "n_total_iter", "ss_steps")  # fmt: skip
EPOCH_KEYS = ("epoch", "current_epoch", "epoch_num", "ss_epoch")
#: Dictionaries beside the model, or around it, in which they lie as well. Settings are none.
PROGRESS = ("trainer", "trainer_state", "train_state", "training_state", "train_iterator", "meta",
            "metadata", "extra_state", "optimizer_history", "timestamp", "Timestamp")  # fmt: skip
#: As Composer calls the number of optimizer steps in its time stamp.
_COMPOSER_STAMP, _COMPOSER_KEYS = "Timestamp", ("batch",)


def stated(around: Sequence[Mapping[Any, Any]], keys: Sequence[str], whole: Whole) -> int | None:
    """The first whole number under one of ``keys``, from the top of a checkpoint to its model."""
    for place, name in _places(around):
        own = _COMPOSER_KEYS if name == _COMPOSER_STAMP and keys is STEP_KEYS else keys
        found = (whole(place[key]) for key in own if key in place)
        number = next((number for number in found if number is not None), None)
        if number is not None:
            return number
    return None


def _places(around: Sequence[Mapping[Any, Any]]) -> Iterator[tuple[Mapping[Any, Any], str]]:
    for place in around:
        yield place, ""
    for place in around:
        yield from _inside(place, 2)


def _inside(place: Mapping[Any, Any], depth: int) -> Iterator[tuple[Mapping[Any, Any], str]]:
    for name in PROGRESS:
        child = place.get(name)
        if isinstance(child, list) and child:  # fairseq's history of its optimizers
            child = child[-1]
        if isinstance(child, dict):
            yield child, name
            if depth > 1:
                yield from _inside(child, depth - 1)


_SCALAR = re.compile(r"numpy\.(?:core|_core)\.multiarray$")


def whole_of(node: Any) -> int | None:
    """The number of steps that a node of a pickle, or a word of a header, stands for.

    >>> [whole_of(node) for node in (500, 500.0, "500", 0.5, True, -1, 10**5000)]
    [500, 500, 500, None, None, None, None]
    """
    if isinstance(node, str):
        return int(node) if re.fullmatch(r"[0-9]{1,18}", node) else None
    if isinstance(node, Call):
        node = _of_numpy(node)
    if isinstance(node, float) and node.is_integer():
        node = int(node)
    return node if type(node) is int and 0 <= node < 2**63 else None


def _of_numpy(call: Call) -> int | float | None:
    """The value of a scalar of numpy, or of an array with one element."""
    function, arguments = call.function, call.arguments
    if not isinstance(function, Global) or not _SCALAR.match(function.module):
        return None
    if function.name == "_reconstruct" and isinstance(call.state, tuple) and len(call.state) > 4:
        arguments = (call.state[2], call.state[4])
    elif function.name != "scalar" or not isinstance(arguments, tuple) or len(arguments) != 2:
        return None
    dtype, data = arguments
    if isinstance(data, Call) and isinstance(data.arguments, tuple) and data.arguments:
        data = data.arguments[0]  # bytes as a pickle of protocol 2 has them
        data = data.encode("latin-1", "replace") if isinstance(data, str) else data
    kind = dtype.arguments[0] if isinstance(dtype, Call) and dtype.arguments else None
    if not isinstance(kind, str) or not re.fullmatch("[iu][1248]|f[48]", kind):
        return None
    if not isinstance(data, bytes) or len(data) != int(kind[1]):
        return None
    order = ">" if isinstance(dtype.state, tuple) and ">" in dtype.state[:2] else "<"
    value: int | float = np.frombuffer(data, order + kind)[0].item()
    return value


# ------------------------------------------------------------------ its optimizers

#: What has the shape of its parameter, in every optimizer of torch.
_OF_ITS_SHAPE = ("exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg", "sum", "acc_delta",
                 "grad_avg", "exp_inf", "max_exp_avg_sq", "ax", "prev")  # fmt: skip
_STATE, _GROUPS, _PARAMS, _STEP = "state", "param_groups", "params", "step"
#: Levels of a checkpoint in which optimizers are looked for.
_MAX_OPTIMIZER_LEVELS = 4


@dataclass(frozen=True)
class OptimizerState:
    """Of one optimizer in one checkpoint."""

    misfit: str  # why it is not of the weights beside it; empty if it may be
    num_updates: int | None  # of the first parameter that it has counted them for


def optimizers_in(
    root: Any, look: Look, whole: Whole, entries: Sequence[Entry]
) -> dict[str, OptimizerState]:
    """The optimizers in a tree by their keys, beside the tensors of a model; as of ``Tree``."""
    weights = Counter({e.storage or e.name: e.shape for e in entries}.values())
    found: dict[tuple[str, ...], OptimizerState] = {}

    def enters(keys: tuple[str, ...], _: Any) -> bool:
        return len(keys) <= _MAX_OPTIMIZER_LEVELS and keys[:-1] not in found

    for keys, way in _levels((root,), enters) if isinstance(root, dict) else ():
        node, kept = way[-1], way[-1].get(_STATE)
        # groups may lie elsewhere
        if not isinstance(kept, dict) or not (_GROUPS in node or "optim" in ".".join(keys)):
            continue
        states = [state for state in kept.values() if isinstance(state, dict)]
        groups = [group for group in _listed(node.get(_GROUPS)) if isinstance(group, dict)]
        shapes = Counter(filter(None, (_shape(state, look) for state in states)))
        num_parameters = max(len(states), sum(len(_listed(g.get(_PARAMS))) for g in groups))
        first = next((one[_STEP] for one in (*states, *groups) if _STEP in one), None)
        num_updates = None if first is None else whole(first)
        found[keys] = OptimizerState(_misfit(shapes, num_parameters, weights), num_updates)
    return {".".join(keys): state for keys, state in found.items()}


def _listed(node: Any) -> list[Any]:
    return node if isinstance(node, list) else []


def _shape(state: Mapping[Any, Any], look: Look) -> tuple[int, ...] | None:
    """The shape of the parameter that a state is of, if it tells that."""
    seen = (look(state[name]) for name in _OF_ITS_SHAPE if name in state)
    return next((tuple(one[0]) for one in seen if one), None)


def _misfit(
    shapes: Counter[tuple[int, ...]], num_parameters: int, weights: Counter[tuple[int, ...]]
) -> str:
    for shape, num in (shapes - weights).items():
        words = " x ".join(map(str, shape))
        there = weights[shape]
        return f"it is of {there + num:,} tensors of shape {words}, and the weights have {there:,}"
    if num_parameters > weights.total():
        return f"it is of {num_parameters:,} parameters, and there are {weights.total():,} tensors"
    return ""
