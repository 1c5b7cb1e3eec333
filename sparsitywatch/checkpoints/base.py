"""The seam to stored weights: every reader of a format gives dictionaries, here read as a model.

A checkpoint is dictionaries in dictionaries with tensors at their ends. Of a file that knows no
dictionaries, such as one of safetensors, the dots in the names stand for them.
"""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import nn

from sparsitywatch.checkpoints.inert_pickle import Call, in_words, whole_of
from sparsitywatch.checkpoints.storage import ByteSource, Location, Range
from sparsitywatch.checkpoints.tensors import (
    ReadingError,
    RefusedError,
    StoredTensor,
    by_clean_names,
    reading,
    with_codes_told,
)
from sparsitywatch.errors import CheckpointError
from sparsitywatch.series import count
from sparsitywatch.weights.layout import Entry, clean_name, unwrap_model
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import LazyTensors, Snapshot

#: A level of a checkpoint, and what is on the way to it, from the top on: levels, and their keys.
Level = Mapping[Any, Any]
Way = tuple[Level, ...]
Keys = tuple[str, ...]
#: Of a tensor its shape, and whether it holds floats; None of what is no tensor.
Seen = tuple[Sequence[int], bool]


class Tree:
    """Dictionaries in dictionaries, as a file holds them; here stored tensors are the ends."""

    def __init__(self, root: Any) -> None:
        self.root = root

    def look(self, node: Any) -> Seen | None:
        """Of a tensor its shape, and whether it holds floats; None of what is no tensor."""
        if not isinstance(node, StoredTensor):
            return None
        entry = node.entry
        return entry.shape, entry.dtype.is_floating_point or bool(entry.stored_as)

    def stored(self, tensors: Mapping[str, Any]) -> Mapping[str, StoredTensor]:
        """The tensors of some ends, found and checked."""
        return tensors

    def whole(self, node: Any) -> int | None:
        """The whole number that an end stands for, also as a tensor with one element."""
        seen = self.look(node)
        if seen is None:
            return whole_of(node)
        if math.prod(seen[0]) != 1:
            return None
        (one,) = self.stored({"step": node}).values()
        return None if one.entry.problem else whole_of(one.load().item())


def _levels(
    way: Way, enters: Callable[[Keys, Any], bool], keys: Keys = (), known: set[int] | None = None
) -> Iterator[tuple[Keys, Way]]:
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
class ModelCandidate:
    """Tensors that may be the model."""

    key: str  # the dotted path that leads to them; "" at the top
    tensors: Mapping[str, Any]  # ends of a tree by their names below it
    way: Way  # the dictionaries around them, from the top on
    #: Of the one that is read: how many tensors each has that could be, by key.
    among: Mapping[str, int] = field(default_factory=dict)


def choose(tree: Tree, key: str | None = None) -> ModelCandidate:
    """The tensors under ``key``; without it the only ones that may be a model; else an error."""
    root = tree.root
    found = candidates_of(tree) if isinstance(root, dict) else []
    among = {one.key: len(one.tensors) for one in found}
    words = [f"{one[:80]!r} ({count(num, 'tensor')})" for one, num in among.items()]
    more = f" and {len(words) - _MAX_SHOWN:,} more" if len(words) > _MAX_SHOWN else ""
    listed = f": {', '.join(words[:_MAX_SHOWN])}{more}" if words else ""
    chosen = [one for one in found if key in (None, one.key)]
    if key is not None and not chosen and isinstance(root, dict):
        tensors = everything(tree, key)
        if not tensors:
            raise ReadingError(
                f"expected tensors under the key {key[:80]!r}, found none{listed}. Give another."
            )
        chosen = [ModelCandidate(key, tensors, found[0].way if found else (root,))]
    if not chosen:
        raise ReadingError(
            "expected tensors of a model in a state dict, or in a dictionary with one; got "
            f"{_what(root)}. Save model.state_dict(), and name the file or folder that holds it."
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


def everything(tree: Tree, key: str = "") -> dict[str, Any]:
    """All tensors whose dotted path begins with ``key``, by what follows on it."""
    start = key if key.endswith(("_", "/", ".")) or not key else f"{key}."

    def is_on_way(keys: Keys, node: Any) -> bool:
        path = ".".join((*keys, ""))
        is_near = isinstance(node, dict) and len(path) <= _MAX_PREFIX + len(start)
        return is_near and (start.startswith(path) or path.startswith(start))

    found = []
    for keys, way in _levels((tree.root,), is_on_way):
        for key_of, leaf in way[-1].items():
            name = ".".join((*keys, str(key_of))) if type(key_of) in (str, int) else ""
            if name.startswith(start) and name != start and tree.look(leaf) is not None:
                found.append((name[len(start) :], leaf))
    return _named(found)


def candidates_of(tree: Tree) -> list[ModelCandidate]:
    """The dictionaries that may be a model: those with matrices of floats, where there are any."""
    holders, look = [], tree.look
    for keys, way in _levels((tree.root,), _may_hold) if _may_hold((), tree.root) else ():
        own = {k: (one, seen) for k, one in way[-1].items() if (seen := look(one)) is not None}
        if own:
            holders.append((keys, way, own, max(_rank(seen) for _, seen in own.values())))
    highest, found = max((rank for *_, rank in holders), default=0), []
    best = [(keys, way, own) for keys, way, own, rank in holders if rank == highest]
    for keys, way, own in best[:_MAX_CANDIDATES]:
        if odd := next((key for key in way[-1] if type(key) not in (str, int)), None):
            raise RefusedError(f"expected names beside tensors, got {in_words(odd)}")
        for head, part in _parts(_named(own.items())).items():
            tensors = {name: leaf for name, (leaf, _) in part.items()}
            found.append(ModelCandidate(".".join([*keys, head] if head else keys), tensors, way))
    return found


def _may_hold(keys: Keys, node: Any) -> bool:
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
    shapes = {
        head: Counter(tuple(seen[0]) for _, seen in part.values() if _rank(seen))
        for head, part in kept.items()
        if head
    }
    every = Counter(shape for own in shapes.values() for shape in own.elements())
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


def stated(around: Way, keys: Sequence[str], whole: Callable[[Any], int | None]) -> int | None:
    """The first whole number under one of ``keys``, from the top of a checkpoint to its model."""
    inside = (one for place in around for one in _inside(place, 2))
    for place, name in (*((place, "") for place in around), *inside):
        own = _COMPOSER_KEYS if name == _COMPOSER_STAMP and keys is STEP_KEYS else keys
        found = (whole(place[key]) for key in own if key in place)
        number = next((number for number in found if number is not None), None)
        if number is not None:
            return number
    return None


def _inside(place: Mapping[Any, Any], depth: int) -> Iterator[tuple[Mapping[Any, Any], str]]:
    for name in PROGRESS:
        child = place.get(name)
        if isinstance(child, list) and child:  # fairseq's history of its optimizers
            child = child[-1]
        if isinstance(child, dict):
            yield child, name
            if depth > 1:
                yield from _inside(child, depth - 1)


# ------------------------------------------------------------------ its optimizers

#: What has the shape of its parameter, in every optimizer of torch.
_OF_ITS_SHAPE = ("exp_avg", "exp_avg_sq", "momentum_buffer", "square_avg", "sum", "acc_delta",
                 "grad_avg", "exp_inf", "max_exp_avg_sq", "ax", "prev")  # fmt: skip
_STATE, _GROUPS, _PARAMS, _STEP = "state", "param_groups", "params", "step"
#: Levels of a checkpoint in which optimizers are looked for.
_MAX_OPTIMIZER_LEVELS = 4
Shapes = Counter[tuple[int, ...]]


@dataclass(frozen=True)
class OptimizerState:
    """Of one optimizer in one checkpoint."""

    misfit: str  # why it is not of the weights beside it; empty if it may be
    num_updates: int | None  # of the first parameter that it has counted them for


def optimizers_in(tree: Tree, entries: Sequence[Entry]) -> dict[str, OptimizerState]:
    """The optimizers in a tree by their keys, beside the tensors of a model."""
    weights = Counter({e.storage or e.name: e.shape for e in entries}.values())
    found: dict[tuple[str, ...], OptimizerState] = {}

    def enters(keys: Keys, _: Any) -> bool:
        return len(keys) <= _MAX_OPTIMIZER_LEVELS and keys[:-1] not in found

    for keys, way in _levels((tree.root,), enters) if isinstance(tree.root, dict) else ():
        node, kept = way[-1], way[-1].get(_STATE)
        # groups may lie elsewhere
        if not isinstance(kept, dict) or not (_GROUPS in node or "optim" in ".".join(keys)):
            continue
        states = [state for state in kept.values() if isinstance(state, dict)]
        groups = [group for group in _listed(node.get(_GROUPS)) if isinstance(group, dict)]
        shapes = Counter(filter(None, (_shape(state, tree) for state in states)))
        num_parameters = max(len(states), sum(len(_listed(g.get(_PARAMS))) for g in groups))
        first = next((one[_STEP] for one in (*states, *groups) if _STEP in one), None)
        num_updates = None if first is None else tree.whole(first)
        found[keys] = OptimizerState(_misfit(shapes, num_parameters, weights), num_updates)
    return {".".join(keys): state for keys, state in found.items()}


def _listed(node: Any) -> list[Any]:
    return node if isinstance(node, list) else []


def _shape(state: Mapping[Any, Any], tree: Tree) -> tuple[int, ...] | None:
    """The shape of the parameter that a state is of, if it tells that."""
    seen = (tree.look(state[name]) for name in _OF_ITS_SHAPE if name in state)
    return next((tuple(one[0]) for one in seen if one), None)


def _misfit(shapes: Shapes, num_parameters: int, weights: Shapes) -> str:
    for shape, num in (shapes - weights).items():
        words = " x ".join(map(str, shape))
        there = weights[shape]
        return f"it is of {there + num:,} tensors of shape {words}, and the weights have {there:,}"
    if num_parameters > weights.total():
        return f"it is of {num_parameters:,} parameters, and there are {weights.total():,} tensors"
    return ""


# ------------------------------------------------------------------ checkpoints


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a reader finds."""

    place: Location  # the files that are open there are closed with the checkpoint
    format: str  # how it is stored, such as "safetensors"
    tree: Tree
    step: int | None = None  # what is known of it beside the tree
    counts_saves: bool = False  # a number in its name counts saves, not steps
    beside: Callable[[], Tree] | None = None  # reads the optimizer's file, where it has its own


#: Bytes that are read before they are counted: what stays in a core's cache, and is long beside
#: the wait for the interpreter lock; from a remote storage what is long beside that for an answer.
_CHUNK_BYTES, _REMOTE_CHUNK_BYTES = 1 << 21, 1 << 24


class Checkpoint(AbstractContextManager["Checkpoint"]):
    """The weights of one step at rest; every reader ends in one.

    Opening reads descriptions only, once, and checks them before anything is allocated. ``with``
    opens again what was closed. Threads may read side by side; a child of a fork may not.
    """

    def __init__(self, contents: Contents, model: ModelCandidate) -> None:
        self.url = contents.place.shown
        self.format = contents.format
        self._place = contents.place
        self._contents, self._way = contents, model.way
        #: What leads to the model in it, and how many tensors each has that might be it.
        self.key, self.among = model.key, model.among
        #: Whether a number in its name counts saves.
        self.counts_saves = contents.counts_saves
        #: How long the buffer for ``chunks`` should be.
        self.chunk_bytes = _CHUNK_BYTES if self._place.is_local else _REMOTE_CHUNK_BYTES
        #: Bytes that a piece of a tensor should have to be worth its way, pieces at most, and what
        #: is read around those of one tensor.
        self.piece_bytes, self.max_pieces = (2**7, 2**10) if self._place.is_local else (2**12, 96)
        self.around_bytes = 2**11 if contents.format == "distributed" else 0
        self._stored = with_codes_told(by_clean_names(contents.tree.stored(model.tensors)))

    @cached_property
    def step(self) -> int | None:
        """Optimizer steps done, where the contents say so."""
        step = self._contents.step
        return self._number(STEP_KEYS) if step is None else step

    @cached_property
    def epoch(self) -> int | None:
        """Epochs, as the contents count them, where they do."""
        return self._number(EPOCH_KEYS)

    def _number(self, keys: Sequence[str]) -> int | None:
        with reading(self.url):
            return stated(self._way, keys, self._contents.tree.whole)

    def optimizers(self) -> dict[str, OptimizerState]:
        """What is kept of optimizers beside the weights, by key; reads a number of each."""
        entries, beside = self.entries(), self._contents.beside
        with reading(self.url):
            trees = [self._contents.tree, *([beside()] if beside else ())]
            return {k: one for tree in trees for k, one in optimizers_in(tree, entries).items()}

    @property
    def num_bytes_read(self) -> int:
        """Bytes taken from the files of the weights so far."""
        return sum(source.num_bytes_read for source in self._place.opened.values())

    @property
    def version(self) -> str:
        """What changes while files without checksums are written; empty where checksums tell."""
        if "safetensors" not in self.format:
            return ""
        return " ".join(source.version for source in self._place.opened.values())

    def files(self) -> dict[str, tuple[str, frozenset[str]]]:
        """The files of weights by name: the hash that the storage has, or "", and the tensors."""
        hashes = {one.url: one.stated_hash for one in self._place.opened.values()}
        names: dict[str, set[str]] = {}
        for name, one in self._stored.items():
            names.setdefault(one.position[0], set()).add(name)
        return {
            url.rpartition("/")[2]: (hashes.get(url, ""), frozenset(held))
            for url, held in names.items()
        }

    def entries(self) -> tuple[Entry, ...]:
        """Every tensor, in the order of the files."""
        return tuple(one.entry for one in self._stored.values())

    def read(self, name: str) -> torch.Tensor:
        """One tensor, on the CPU, in its own dtype."""
        stored = self._readable(name)
        with reading(self.url, name):
            return stored.load()

    def tensors(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors one at a time, in the order of the bytes; all of them for None."""
        for name in self.in_byte_order(self._stored if names is None else names):
            yield name, self.read(name)
        self.check_unchanged()

    def in_byte_order(self, names: Iterable[str]) -> list[str]:
        """Names of tensors as the files have them, to be read next; KeyError if one is missing."""
        ordered = sorted(names, key=lambda name: self._stored[name].position)
        expected: dict[ByteSource, list[Range]] = {}
        for name in ordered:
            found = self._stored[name].first_range(self.chunk_bytes)
            if found is not None:
                expected.setdefault(found[0], []).append(found[1])
        for source, ranges in expected.items():
            source.expect(ranges)
        return ordered

    def chunks(self, name: str, buffer: memoryview) -> Generator[memoryview, None, None]:
        """The bytes of a tensor in flat order, whole elements, or all where they lie otherwise."""
        # buffer, a multiple of eight bytes, is where they may lie until the next are asked for
        return self._readable(name).chunks(buffer)

    def pieces_at(self, name: str, starts: Sequence[int], length: int) -> bytes:
        """So many bytes of a tensor from each of some rising places on, one after another."""
        return b"".join(self._readable(name).pieces_at(starts, length))

    def _readable(self, name: str) -> StoredTensor:
        stored = self._stored[name]
        if stored.entry.problem:
            raise no_weights(stored.entry).at(self.url)
        return stored

    def check_unchanged(self) -> None:
        """Raise ``IncompleteCheckpointError`` if a file was written since it was opened."""
        for source in self._place.opened.values():
            source.check_unchanged()

    def left_alone_s(self) -> float:
        """Seconds since a local file without checksums was written; NaN where there is none."""
        files = self._place.opened.values() if self.version else ()
        return time.time() - max((file.modified_s for file in files), default=math.nan)

    def close(self) -> None:
        """Let go of the files; calling it again does nothing."""
        self._place.close()

    def __enter__(self) -> Checkpoint:  # noqa: PYI034 typing.Self needs Python 3.11
        with ExitStack() as unless_open:
            unless_open.callback(self.close)
            self._place.reopen()
            unless_open.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# ------------------------------------------------------------------ what is made of one


def no_weights(entry: Entry) -> ReadingError:
    """A tensor that is what it says, and still holds no weights to be read."""
    return ReadingError(
        f"expected weights, but {entry.problem}. Leave it out of the scope, or save the model in "
        "bfloat16 or float32.",
        entry.name,
    )


def stored_snapshot(checkpoint: Checkpoint, scope: Scope, step: int) -> Snapshot:
    """The in-scope weights of an open checkpoint, to be read while it is open."""
    there = {entry.name: entry for entry in checkpoint.entries()}
    found: dict[str, Entry] = {}
    for entry in scope.ledger:
        if not entry.in_scope:
            continue
        # of tied weights some formats keep one name only
        stored = next((there[n] for n in (entry.name, *entry.aliases) if n in there), None)
        problem = ""
        if stored is None:
            problem = "it is not there"
        elif stored.problem:
            raise no_weights(stored).at(checkpoint.url)
        elif stored.shape != entry.shape:
            problem = f"expected shape {entry.shape}, got {stored.shape}"
        elif not stored.dtype.is_floating_point:
            problem = f"expected a floating-point dtype, got {stored.dtype}"
        if stored is None or problem:
            advice = "Replay checkpoints of one model together, or choose another scope."
            raise ReadingError(f"{problem}. {advice}", entry.name).at(checkpoint.url)
        found[entry.name] = stored
    return Snapshot(step, scope, LazyTensors(found, checkpoint))


def beyond(first: Scope, own: Scope) -> list[str]:
    """Names of weights in scope that the first checkpoint of a series does not have at all."""
    known = {name for line in first.ledger for name in (line.name, *line.aliases)}
    ours = [line for line in own.ledger if line.in_scope]
    return [line.name for line in ours if known.isdisjoint((line.name, *line.aliases))]


def load_into(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Overwrite all parameters and stored buffers of ``model``, or none of them and raise."""
    own = {
        clean_name(name): value.detach()
        for name, value in unwrap_model(model).state_dict(keep_vars=True).items()
        if isinstance(value, torch.Tensor)  # some modules keep other things in there
    }
    ties: dict[object, list[str]] = {}  # a checkpoint may have any one name of tied tensors
    for name, tensor in own.items():
        storage = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        ties.setdefault(storage if tensor.numel() else name, []).append(name)
    stored = {entry.name: entry for entry in checkpoint.entries()}
    chosen: dict[str, torch.Tensor] = {}
    for names in ties.values():
        found = next((name for name in names if name in stored), names[0])
        if found in stored:
            problem = _why_not(stored[found], own[found])
        else:
            some = ", ".join(list(stored)[:3])
            problem = f"the model has it, the checkpoint does not; it has names such as {some}"
        if problem:
            raise CheckpointError(
                f"Cannot load {checkpoint.url}, tensor {found!r}: {problem}. Give the model that "
                "was trained, in the dtype that it was saved in."
            )
        chosen[found] = own[found]
    with torch.no_grad():
        for name, tensor in checkpoint.tensors(chosen):
            chosen[name].copy_(tensor)


def _why_not(stored: Entry, own: torch.Tensor) -> str:
    """Why a tensor of a model cannot take the values of a checkpoint's; empty if it can."""
    if stored.problem:
        return f"expected weights, but {stored.problem}"
    if stored.shape != tuple(own.shape):
        return f"expected shape {tuple(own.shape)} as in the model, got {stored.shape}"
    if stored.dtype != own.dtype and torch.promote_types(stored.dtype, own.dtype) != own.dtype:
        return f"expected dtype {own.dtype} as in the model or a narrower one, got {stored.dtype}"
    return ""
