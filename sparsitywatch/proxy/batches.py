"""Frozen batches of any nesting, and the generators that a forward may draw from."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import io
import math
import random
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sparsitywatch.errors import MeasurementError, ProxyError
from sparsitywatch.proxy.apart import EVALUATING, apart
from sparsitywatch.ranks.protocol import ALONE

T = TypeVar("T")

#: value(model, batch) -> tensor [N], one floating-point number per example.
ValueFunction = Callable[[nn.Module, Any], torch.Tensor]
#: Relative size up to which repeated evaluations may differ by the order of additions.
ROUNDING = 1e-4
#: Of the order in which examples are drawn into subsets.
_ORDER_SEED = 0
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_LEAVES = (torch.Tensor, np.ndarray, *_PLAIN)


class Runnable(NamedTuple):
    """What can be evaluated: a model, and the value function that runs it."""

    module: nn.Module
    value: ValueFunction


class Batch:
    """A frozen batch: its tensors, arrays, numbers and texts, and what puts them together."""

    def __init__(self, value: Any, where: str = "batch") -> None:
        self.leaves: list[Any] = []  # share no memory with what they are of
        self.structure: list[str] = []  # types and names of what holds them; "" for each leaf
        self._build = self._taken_apart(value, where)

    def __reduce__(self) -> Any:
        return Batch, (self._build(iter(self.leaves)),)

    def _taken_apart(self, value: Any, where: str) -> Callable[[Iterator[Any]], Any]:
        """Note the leaves; what makes something like it of others."""
        if isinstance(value, _LEAVES):
            self.leaves.append(
                value.detach().clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value)
            )
            self.structure.append("")
            return next
        inside, make = _container(value, where)
        self.structure.append(type(value).__name__)
        builders = []
        for name, one in inside:
            self.structure.append(f"{name!r}")
            builders.append(self._taken_apart(one, f"{where}[{name!r}]"))
        return lambda leaves: make([build(leaves) for build in builders])

    def on(self, device: torch.device) -> Any:
        """The batch with its tensors on a device, in containers of its own."""
        leaves = [  # waits for the device
            leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf for leaf in self.leaves
        ]
        return self._build(iter(leaves))

    def with_leaves(self, leaves: list[Any]) -> Batch:
        """The same structure with others."""
        other = copy.copy(self)
        other.leaves = leaves
        return other

    def sizes(self) -> tuple[int, ...]:
        """How many examples there are, as the tensors and arrays say."""
        return tuple(sorted({len(leaf) for leaf in self.leaves if _has_examples(leaf)}))

    def dims(self) -> list[tuple[int, ...]]:
        """The first two dimensions of each tensor and array."""
        return [tuple(leaf.shape[:2]) for leaf in self.leaves if _has_examples(leaf)]

    def reversed(self) -> Batch | None:
        """From the last example to the first; None where something may not be turned with them."""
        sizes, num_others = self.sizes(), sum(not _has_examples(leaf) for leaf in self.leaves)
        if len(sizes) != 1 or num_others >= sizes[0]:  # one for each example, such as a text
            return None
        return self.some(np.arange(sizes[0])[::-1].copy())

    def halves(self) -> list[Batch]:
        """The first and the last half of the examples, as views; itself if it has no two."""
        sizes = self.sizes()
        if len(sizes) != 1 or sizes[0] < 2:
            return [self]
        middle = sizes[0] // 2
        return [self.some(slice(None, middle)), self.some(slice(middle, None))]

    def some(self, which: Any) -> Batch:
        """Some of the examples."""
        leaves = [leaf[which] if _has_examples(leaf) else leaf for leaf in self.leaves]
        return self.with_leaves(leaves)

    def kind(self) -> Any:
        """The same for batches that can be joined, which differ in their examples alone."""
        of_leaves = (
            f"{type(leaf)} {leaf.dtype} {tuple(leaf.shape[1:])}"
            if _has_examples(leaf)
            else digest([Batch(leaf)])
            for leaf in self.leaves
        )
        return (*self.structure, *of_leaves)

    @staticmethod
    def joined(batches: Sequence[Batch]) -> Batch:
        """All examples of several that are alike, in one."""
        leaves = []
        for column in zip(*(batch.leaves for batch in batches), strict=True):
            if not _has_examples(column[0]):
                leaves.append(column[0])
            elif isinstance(column[0], torch.Tensor):
                leaves.append(torch.cat(column))
            else:
                leaves.append(np.concatenate(column))
        return batches[0].with_leaves(leaves)


def _has_examples(leaf: Any) -> bool:
    return isinstance(leaf, (torch.Tensor, np.ndarray)) and leaf.ndim > 0


def digest(batches: Iterable[Batch]) -> str:
    """Identity of batches, contents and structure: 16 hexadecimal digits."""
    state = hashlib.sha256()
    for batch in batches:
        state.update(b"batch")
        leaves = iter(batch.leaves)
        for word in batch.structure:
            leaf = None if word else next(leaves)
            if word:
                state.update(word.encode())
            elif isinstance(leaf, torch.Tensor):
                array = leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
                state.update(f"tensor {leaf.dtype} {tuple(leaf.shape)}".encode())
                state.update(array.tobytes())
            elif isinstance(leaf, np.ndarray):
                state.update(f"array {leaf.dtype} {leaf.shape}".encode() + leaf.tobytes())
            else:
                state.update(f"{type(leaf).__name__} {leaf!r}".encode())
    return state.hexdigest()[:16]


def packed(batches: Iterable[Batch]) -> list[list[Any]]:
    """The leaves of each batch, weights-only safe: arrays as the bytes of numpy's own format."""

    def plain(leaf: Any) -> Any:
        if not isinstance(leaf, np.ndarray):
            return leaf
        file = io.BytesIO()
        np.lib.format.write_array(file, leaf, allow_pickle=False)
        return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)

    return [[*map(plain, batch.leaves)] for batch in batches]


def save_whole(thing: Any, file: Path) -> None:
    """There is the whole file or none; a full disk makes torch raise a RuntimeError."""
    temporary = file.with_suffix(".tmp")
    try:
        torch.save(thing, temporary)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def unpacked(batches: Sequence[Batch], kept: Sequence[Sequence[Any]]) -> list[Batch]:
    """``batches`` with the leaves of others, as ``packed`` gave them; refuses other structures."""
    if len(batches) != len(kept):
        raise ProxyError(f"Expected {len(kept)} batches as were kept, got {len(batches)}.")
    filled = []
    for batch, others in zip(batches, kept, strict=True):
        if len(batch.leaves) != len(others):
            word = "larger" if len(batch.leaves) > len(others) else "smaller"
            raise ProxyError(f"Expected batches like those that were kept, got {word} ones.")
        leaves = [
            np.lib.format.read_array(io.BytesIO(other.numpy().tobytes()), allow_pickle=False)
            if isinstance(leaf, np.ndarray)
            else other
            for leaf, other in zip(batch.leaves, others, strict=True)
        ]
        filled.append(batch.with_leaves(leaves))
    return filled


def _container(value: Any, where: str) -> tuple[list[tuple[Any, Any]], Callable[[list[Any]], Any]]:
    """What a container holds, by name, and what makes one like it of others."""
    kind = type(value)
    if kind in (list, tuple):
        return [*enumerate(value)], kind
    if isinstance(value, Mapping):
        return [*value.items()], partial(_mapping_like, value, where)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [*zip(value._fields, value, strict=True)], lambda new: kind(*new)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        held = {field.name: vars(value)[field.name] for field in dataclasses.fields(value)}
        return [*held.items()], lambda new: dataclasses.replace(
            value, **dict(zip(held, new, strict=True))
        )
    raise ProxyError(
        "Expected `batches` of tensors, arrays, numbers and strings in dicts, lists, tuples or "
        f"dataclasses, got {kind.__name__} at {where}. Convert it before making the Proxy."
    )


def _mapping_like(value: Mapping[Any, Any], where: str, new: list[Any]) -> Any:
    items = dict(zip(value, new, strict=True))
    if type(value) is dict:
        return items
    if isinstance(value, UserDict):  # such as transformers' BatchEncoding
        result = copy.copy(value)
        result.data = items
        return result
    try:
        return type(value)(items)  # type: ignore[call-arg]
    except TypeError as error:
        raise ProxyError(
            f"Expected a mapping at {where} that can be made from a dict, got "
            f"{type(value).__name__} ({error}). Pass plain dicts."
        ) from error


def unit_of(dims: Sequence[Sequence[tuple[int, ...]]], values: Sequence[np.ndarray]) -> str:
    """What the numbers of each batch are of: "example", "token" or "batch".

    Fewer numbers than examples are of those that have one, such as a label. In a batch of another
    layout the examples may be the second dimension. What each batch repeats is of the batch.
    ``dims`` are the first two dimensions of each tensor, by batch.

    >>> batches = [[(4, 7), (4,)], [(2, 7), (2,)]]
    >>> [unit_of(batches, [np.ones(n), np.ones(m)]) for n, m in [(4, 2), (28, 14), (1, 1)]]
    ['example', 'token', 'batch']
    """
    counts = [len(of_batch) for of_batch in values]
    firsts = [{dim[0] for dim in of_batch} for of_batch in dims]
    by_batch = [*zip(counts, firsts, strict=True)]
    if all(count == 1 for count in counts) and any(f and 1 not in f for f in firsts):
        return "batch"
    means = {float(of_batch[0]) for of_batch in values if len(of_batch)}
    repeated = all(len(set(of_batch.tolist())) == 1 < len(of_batch) for of_batch in values)
    if repeated and len(means) == len(values) > 2:
        return "batch"
    seconds = [{dim[1] for dim in of_batch if len(dim) > 1} for of_batch in dims]
    if all(seconds) and all({n} == second for n, second in zip(counts, seconds, strict=True)):
        return "example"
    return "token" if any(first and count > max(first) for count, first in by_batch) else "example"


def drawn_parts(
    batches: Sequence[Batch], shares: Sequence[float]
) -> list[tuple[list[Batch], NDArray[np.int64]]]:
    """The batches of each part, as ``Proxy.subsets`` says, and where its examples are."""
    sizes = [batch.sizes() for batch in batches]
    if any(len(size) != 1 for size in sizes):
        return []
    first = np.cumsum([0, *(size for (size,) in sizes)])
    alike: dict[Any, list[int]] = {}
    for index, batch in enumerate(batches):
        alike.setdefault(batch.kind(), []).append(index)
    orders = []
    for stratum, indices in enumerate(alike.values()):
        places = np.concatenate([np.arange(first[i], first[i + 1]) for i in indices])
        keys = np.random.Generator(np.random.PCG64([_ORDER_SEED, stratum])).random(len(places))
        whole, most = Batch.joined([batches[i] for i in indices]), max(sizes[i][0] for i in indices)
        orders.append((whole, places, keys.argsort(), most))
    drawn = []
    for start, stop in zip([0.0, *shares], shares, strict=False):
        of_part: list[Batch] = []
        found: list[NDArray[np.int64]] = []
        for whole, places, order, most in orders:
            begin, end = (math.ceil(share * len(order) - 1e-9) for share in (start, stop))
            for few in range(begin, end, most):
                some = np.sort(order[few : min(few + most, end)])
                of_part.append(whole.some(some))
                found.append(places[some])
        drawn.append((of_part, np.concatenate(found or [np.zeros(0, np.int64)])))
    return drawn


def device_of(model: nn.Module) -> torch.device:
    """Where the parameters of a model are."""
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


# ------------------------------------------------------------------ generators


@contextlib.contextmanager
def preserve_rng() -> Iterator[None]:
    """Put the global generators of torch (all devices), numpy and python back afterwards."""
    cuda = torch.cuda.is_available()
    torch_state = torch.get_rng_state()
    cuda_states = torch.cuda.get_rng_state_all() if cuda else []
    # numpy's global generator is what user code draws from, whether we like it or not
    numpy_state = np.random.get_state()  # noqa: NPY002
    python_state = random.getstate()

    def put_back() -> None:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)
        if cuda:
            torch.cuda.set_rng_state_all(cuda_states)

    try:
        yield
    finally:
        finish_despite_interrupt(put_back)


def drawn(make: Callable[[], list[T]], seed: int | None) -> list[T]:
    """What is made of a source that may draw, from the seed on; generators stay as they were."""

    def made() -> list[T]:
        with EVALUATING, preserve_rng():
            if seed is not None:
                seed_generators(seed)
            return make()

    try:
        return apart(made, None, ALONE)  # in a fork if need be, so that no iterator is moved on
    except MeasurementError as error:
        words = "Make the proxy before these threads begin, or of a list of batches."
        raise ProxyError(f"{error} {words}") from error


def finish_despite_interrupt(put_back: Callable[[], object]) -> None:
    """Put something back; a second Ctrl-C in the middle waits until that is done."""
    try:
        put_back()
    except BaseException:
        put_back()
        raise


def seed_generators(seed: int) -> None:
    """Seed those that ``preserve_rng`` puts back, and no others."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)
