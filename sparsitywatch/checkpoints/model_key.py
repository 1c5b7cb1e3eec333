"""Which tensors of a checkpoint are the model's: one rule, whatever the format.

A checkpoint is dictionaries in dictionaries with tensors at their ends. Of a file that knows no
dictionaries, such as one of safetensors, the dots in the names stand for them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, TypeGuard

from sparsitywatch.checkpoints.base import Candidate, ReadingError, RefusedError
from sparsitywatch.checkpoints.inert_pickle import Call, in_words
from sparsitywatch.series import count

#: A level of a checkpoint, and what is on the way to it, from the top on.
Level = Mapping[Any, Any]
Way = tuple[Level, ...]
#: Of a tensor its shape, and whether it holds floats; None of what is no tensor.
Seen = tuple[Sequence[int], bool]
Look = Callable[[Any], Seen | None]
#: Tensors by name, each with what was seen of it: nothing is looked at twice.
Looked = Mapping[str, tuple[Any, Seen]]

#: Levels, characters of the keys to one, words in front of all names (such as DDP's).
_MAX_LEVELS, _MAX_PREFIX, _MAX_WRAPPERS = 8, 256, 3
#: So many candidates are looked at more closely, and shown; there are a handful.
_MAX_CANDIDATES, _MAX_SHOWN = 1000, 12
#: What holds the state of an optimizer, by its key; others are known by what is in them.
_OPTIMIZER = re.compile(r"(?:^|[._-])(?:opt|optim|optimizers?)(?:$|[._\d-])", re.IGNORECASE)
_OPTIMIZER_GROUPS = "param_groups"
#: Where Lightning puts the trained weights if their average takes the place of the model.
_TRAINED = "current_model_state"
#: What holds a second set of weights, such as an average of the first.
_COPY = re.compile(
    r"(?:^|_)(?:ema|swa|polyak|shadow|averaged?|teacher|target|momentum)(?:$|[_\d])", re.IGNORECASE
)


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
    return _named(_leaves(tree, look, start, "", set()))


def candidates_of(tree: Level, look: Look) -> list[Candidate]:
    """The dictionaries that may be a model: those with matrices of floats, where there are any.

    What an optimizer keeps is none. Only where there are no matrices others count.
    """
    holders = list(_holders(look, (), (tree,), set()))
    ranks = [max(_rank(seen) for _, seen in own.values()) for _, _, own in holders]
    highest, found = max(ranks, default=0), []
    best = [one for one, rank in zip(holders, ranks, strict=True) if rank == highest]
    for keys, way, own in best[:_MAX_CANDIDATES]:
        for head, part in _parts(_named(own.items())).items():
            tensors = {name: leaf for name, (leaf, _) in part.items()}
            found.append(Candidate(".".join([*keys, head] if head else keys), tensors, way))
    return found


def _is_level(key: Any, node: Any) -> TypeGuard[Level]:
    return type(key) in (str, int) and isinstance(node, dict)


def _rank(seen: Seen) -> int:
    shape, is_float = seen
    return 0 if len(shape) < 2 else 1 + is_float


def _holders(
    look: Look, keys: tuple[str, ...], way: Way, known: set[int]
) -> Iterator[tuple[tuple[str, ...], Way, Mapping[Any, tuple[Any, Seen]]]]:
    """Each dictionary with tensors of its own, and these, by the keys to it; no optimizer's."""
    node = way[-1]
    known.add(id(node))
    is_far = len(keys) > _MAX_LEVELS or sum(map(len, keys)) > _MAX_PREFIX
    if is_far or _OPTIMIZER_GROUPS in node:
        return
    own = {key: (one, seen) for key, one in node.items() if (seen := look(one)) is not None}
    if own:
        yield keys, way, own
    for key, child in node.items():
        if _is_level(key, child) and id(child) not in known and not _OPTIMIZER.search(str(key)):
            yield from _holders(look, (*keys, str(key)), (*way, child), known)


def _leaves(
    node: Level, look: Look, start: str, before: str, known: set[int]
) -> Iterator[tuple[str, Any]]:
    known.add(id(node))
    for key, child in node.items():
        name = f"{before}{key}" if type(key) in (str, int) else ""
        if _is_level(key, child):
            is_on_way = start.startswith(f"{name}.") or f"{name}.".startswith(start)
            if is_on_way and id(child) not in known and len(name) < _MAX_PREFIX + len(start):
                yield from _leaves(child, look, start, f"{name}.", known)
        elif name.startswith(start) and name != start and look(child) is not None:
            yield name[len(start) :], child


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
