"""What is measured: frozen batches, and a value per example."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import io
import itertools
import logging
import math
import random
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sparsitywatch.errors import ProxyError, expect, expect_whole
from sparsitywatch.ranks.protocol import ALONE, Ranks
from sparsitywatch.redact import printable, redacted_error

#: Relative size up to which repeated evaluations may differ by the order of additions.
ROUNDING = 1e-4
#: Of the order in which examples are drawn into parts.
_ORDER_SEED = 0

_logger = logging.getLogger("sparsitywatch")

#: value(model, batch) -> tensor [N], one floating-point number per example.
ValueFunction = Callable[[nn.Module, Any], torch.Tensor]


class Runnable(NamedTuple):
    """What can be evaluated: a model, and the value function that runs it."""

    module: nn.Module
    value: Callable[..., torch.Tensor]


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


class Proxy:
    """A quick stand-in for how well the model does, always on the same examples.

    The batches are copied and hashed here, once, so that every later number is about the
    same examples. A source that draws, such as a DataLoader that shuffles or masks, draws the same
    at every launch; the global generators are left as they were. A run that is resumed goes on
    with the batches that its log kept, whatever the source gives now.

    Args:
        batches: an iterable of batches (a list, a DataLoader), each of tensors, arrays,
            numbers and strings in dicts, lists, tuples or dataclasses. Random masking
            belongs in here, not in ``value``.
        value: ``value(model, batch) -> tensor [N]``, one float per example, such as the
            loss of each sequence. It is called in evaluation mode without gradients, with
            the tensors of the batch on the model's device.
        higher_is_better: True for scores and accuracies, False (default) for losses.
        name: what the value is, for captions.
        max_batches: stop after so many batches; needed for an endless source.
        seed: of the global generators of torch, numpy and python while the batches are drawn, in
            [0, 2**32); None: they go on from where they are.

    Raises:
        ProxyError: there is no batch, or one holds something that cannot be copied.
    """

    def __init__(
        self,
        batches: Iterable[Any],
        value: ValueFunction,
        *,
        higher_is_better: bool = False,
        name: str = "",
        max_batches: int | None = None,
        seed: int | None = 0,
    ) -> None:
        if not callable(value):
            raise ProxyError(
                "Expected `value` to be a function value(model, batch) -> tensor [N], "
                f"got {value!r}."
            )
        if isinstance(batches, (torch.Tensor, str, bytes)) or not isinstance(batches, Iterable):
            raise ProxyError(
                "Expected `batches` to be an iterable of batches such as a list or a DataLoader, "
                f"got {type(batches).__name__}. Wrap a single batch in a list."
            )
        if max_batches is not None:
            expect_whole("max_batches", max_batches, 1)
        expect(isinstance(name, str), "name", "a text", name)
        if seed is not None and not (type(seed) is int and 0 <= seed < 2**32):
            raise ProxyError(f"Expected `seed` to be in [0, 2**32) or None, got {seed!r}.")
        self.value = value
        self.higher_is_better = higher_is_better
        self.name = name or getattr(value, "__name__", type(value).__name__)
        with preserve_rng():
            if seed is not None:
                _seed_generators(seed)
            some = itertools.islice(batches, max_batches)
            self._batches = [Batch(batch, f"batches[{i}]") for i, batch in enumerate(some)]
        if not self._batches:
            raise ProxyError("Expected `batches` with at least one batch, got none.")
        self._num_examples: int | None = None
        self._sizes: list[int] = []  # examples of each batch
        self._subsets: dict[tuple[float, ...], tuple[ExampleSubset, ...]] = {}  # by their shares
        self._is_kept_whole = False
        self.ranks: Ranks = ALONE  # that evaluate it between them
        self._identify()

    def shared(self, ranks: Ranks) -> Proxy:
        """This proxy, its batches evaluated by several ranks between them; each has all values.

        Where all ranks have the same batches, each evaluates some of them, so that an evaluation on
        R ranks takes about 1/R of the time. Where each has batches of its own, all of them count,
        by rank. Every rank runs as many forwards as any other, since a forward may communicate: who
        has no batch left runs one again. Every rank calls this, and from then on each method.

        Where a layer of the model is split over ranks each runs all batches.

        Raises:
            ProxyError: the ranks have proxies of different kinds, or different batches where they
                split layers.
        """
        kinds = ranks.gather((self.name, self.higher_is_better))
        if len(set(kinds)) > 1:
            raise ProxyError(
                "Expected a proxy of the same value on every rank, got "
                f"{', '.join(sorted({printable(name) for name, _ in kinds}))}."
            )
        other = copy.copy(self)
        other.ranks, other._subsets = ranks, {}
        other._identify()
        return other

    def _identify(self) -> None:
        """Which batches these are, and whether every rank has the same."""
        identity = f"{digest(self._batches)} {self.higher_is_better} {self.name}"
        own = hashlib.sha256(identity.encode()).hexdigest()[:16]
        every = self.ranks.gather(own)
        self._is_same = len(set(every)) == 1
        if not self._is_same and self.ranks.splits_layers:
            raise ProxyError(
                "Expected the same batches on every rank of a model whose layers are split "
                "over ranks (tensor parallel), got others. Make the proxy of a source that "
                "does not depend on the rank."
            )
        of_all = hashlib.sha256(" ".join(every).encode()).hexdigest()[:16]
        self.hash = own if self._is_same else of_all
        self._plan()

    def _plan(self) -> None:
        """Who evaluates which batches."""
        sizes = [batch.sizes() for batch in self._batches]
        self._turns, self._num_places = self.ranks.turns(sizes, is_same=self._is_same)

    def keep(self, file: Path) -> None:
        """Write the batches, for ``with_kept``: tensors and plain data, nothing to execute.

        Raises:
            OSError, RuntimeError, ValueError: they cannot be written.
        """
        temporary = file.with_suffix(".tmp")
        try:
            torch.save(packed(self._batches), temporary)
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)

    def with_kept(self, file: Path) -> Proxy:
        """This proxy with the batches that another one of its kind kept.

        Raises:
            ProxyError: they cannot be read, or are of another structure.
        """
        try:
            return self.with_leaves(torch.load(file, weights_only=True, map_location="cpu"))
        except ProxyError:
            raise
        except Exception as error:  # whatever a damaged file makes torch raise
            raise ProxyError(
                f"Expected the batches that a proxy kept in {str(file)!r}, got "
                f"{redacted_error(error)}."
            ) from error

    def with_leaves(self, leaves: Sequence[Sequence[Any]]) -> Proxy:
        """This proxy with other batches, as ``packed`` gave them.

        Raises:
            ProxyError: they are of another structure.
        """
        other = self._of(unpacked(self._batches, leaves))
        other._identify()
        return other

    @property
    def num_bytes(self) -> int:
        """Of the tensors and arrays of the batches."""
        leaves = (leaf for batch in packed(self._batches) for leaf in batch)
        return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, torch.Tensor))

    def __repr__(self) -> str:
        return f"<Proxy {printable(self.name)[:80]}: {self.num_batches} batches, {self.hash}>"

    @property
    def num_batches(self) -> int:
        """Calls of the value function per evaluation that count, on all ranks."""
        return self._num_places

    def evaluate(self, model: nn.Module, value: ValueFunction | None = None) -> np.ndarray:
        """The value of every example, float64 [N], of a model as it is.

        Each batch begins with the same state of the global generators every time, so a forward may
        sample: all models are compared on the same numbers. A watch evaluates a copy of the model,
        and gives the ``value`` that runs this copy.

        Raises:
            ProxyError: ``value`` did not return one floating-point number per example.
        """
        every = self.ranks.merged(self._own(self._turns, model, value or self.value))
        values = [every[place] for place in sorted(every)]
        examples: np.ndarray = np.concatenate(values)
        if self._num_examples not in (None, len(examples)):
            raise ProxyError(
                f"Expected `value` to return {self._num_examples} examples over all batches as "
                f"before, got {len(examples)}."
            )
        self._num_examples, self._sizes = len(examples), [*map(len, values)]
        return examples

    def check_repeats(self, values: np.ndarray, model: nn.Module, value: ValueFunction) -> None:
        """Evaluate the first two batches again, and refuse another value than just before.

        Args:
            values: what ``evaluate`` gave of the same model, float64 [N].
            model, value: as in ``evaluate``.

        Raises:
            ProxyError: the same batch has another value the second time; it says by how much.
        """
        ends = np.cumsum(self._sizes)
        for place, again in self._own(self._turns[:2], model, value).items():
            before = values[ends[place] - self._sizes[place] : ends[place]]
            if np.array_equal(again, before, equal_nan=True):
                continue
            apart = np.nanmax(np.abs(again - before)) if len(again) == len(before) else math.inf
            # kernels of accelerators may add in any order
            if _device_of(model).type == "cpu" or apart > ROUNDING * np.nanmax(np.abs(before)):
                raise ProxyError(
                    "Expected the same values of the same batch of the same model, but those of "
                    f"batch {place} differ by up to {apart:.3g} the second time. The model or "
                    "`value` keeps something that no copy of the model has (in a file, a library, "
                    "an object that is shared), and what changes there may change the training, "
                    "too. Keep it in a buffer, or leave `proxy` out."
                )

    def run_once(self, model: nn.Module, value: ValueFunction) -> None:
        """Evaluate the first batch; what there is to see is for ``value`` to note."""
        self._own(self._turns[:1], model, value)

    def _own(self, turns: Any, model: nn.Module, value: ValueFunction) -> dict[int, np.ndarray]:
        """The values of the batches that this rank evaluates, by their places."""
        own: dict[int, np.ndarray] = {}
        with preserve_rng():
            for index, place in turns:
                _seed_generators(place or 0)
                with self.ranks.all_or_none("evaluating a batch"), self.ranks.followed():
                    of_batch = self._of_batch(index, model, value)
                if place is not None:
                    own[place] = of_batch
        return own

    def _of_batch(self, index: int, model: nn.Module, value: ValueFunction) -> np.ndarray:
        result = value(model, self._batches[index].on(_device_of(model)))
        is_tensor = isinstance(result, torch.Tensor)
        # none of a batch is possible: examples without a label have no loss
        if not (is_tensor and result.ndim == 1 and result.is_floating_point()):
            raise ProxyError(_not_by_example(result, index))
        found: np.ndarray = result.detach().to("cpu", torch.float64).numpy()
        return found

    def subsets(self, shares: Sequence[float]) -> tuple[ExampleSubset, ...]:
        """The examples up to the first share of them, from there to the second, and so on.

        Batches that are alike in all but their examples are one population. Its examples are put
        into a random order, the same one always, so that those up to a share are a simple random
        sample of it, without replacement, in batches no larger than the ones given. Batches of
        other shapes, such as those padded to their longest sequence, are populations of their
        own, of which each part has its share. Where the examples of a batch depend on each other,
        as windows of one document do, those of a part do, too, by chance less.

        Args:
            shares: rising, in (0, 1).

        Returns:
            One part to each share; none where a tensor tells another number of examples than
            the others of its batch, since nobody knows then what an example is, where one would
            be empty, and after ``keep_whole``.
        """
        if self._is_kept_whole:
            return ()
        key = tuple(shares)
        if key not in self._subsets:
            self._subsets[key] = self._proxies_of(_drawn(self._batches, key))
        return self._subsets[key]

    def keep_whole(self, why: str) -> None:
        """Draw no parts from here on, since they would tell something else."""
        self._is_kept_whole = True
        _logger.warning(
            "sparsitywatch: every level is evaluated on all examples, which takes some four times "
            "as long: %s.",
            why,
        )

    def _proxies_of(self, drawn: Sequence[Drawn]) -> tuple[ExampleSubset, ...]:
        """The parts of all ranks together; each draws its share of its own batches."""
        own = [places for _, places in drawn]
        num_own = sum(size for batch in self._batches for size in batch.sizes()[:1])
        every = self.ranks.gather((own, num_own))
        # every rank has to run what the others run, so it needs something to run
        if not all(of_rank and all(map(len, of_rank)) for of_rank, _ in every):
            return ()
        if not self._is_same:
            first = np.cumsum([0, *(number for _, number in every)])
            placed = [[p + first[r] for p in of_rank] for r, (of_rank, _) in enumerate(every)]
            own = [np.concatenate(places) for places in zip(*placed, strict=True)]
        found = [(self._of(batches), p) for (batches, _), p in zip(drawn, own, strict=True)]
        return tuple(ExampleSubset(proxy, places, proxy.num_batches) for proxy, places in found)

    def _of(self, batches: list[Batch]) -> Proxy:
        """One like this, of other batches."""
        other = copy.copy(self)
        other._batches, other._num_examples, other._subsets = batches, None, {}
        other._plan()
        return other

    def halve(self) -> bool:
        """Split every batch in two where that can be done, to need less memory.

        The examples, their order and the hash stay. Values may differ in the last digits,
        so a sweep that has begun must begin again.

        Returns:
            Whether there was anything to split.
        """
        num_before = len(self._batches)
        self._batches = [half for batch in self._batches for half in batch.halves()]
        self._subsets = {}
        self._plan()
        return any(self.ranks.gather(len(self._batches) > num_before))

    def not_finite(self, values: np.ndarray) -> str:
        """Which examples have no value."""
        bad = np.flatnonzero(~np.isfinite(values))
        ends = np.cumsum(self._sizes)
        batch = int(np.searchsorted(ends, bad[0], side="right"))
        example = int(bad[0] - ends[batch] + self._sizes[batch])
        return (
            "Expected `value` to return a finite number for every example, got "
            f"{values[bad[0]]} for example {example} of batch {batch}"
            f"{f' and {len(bad) - 1} others' if len(bad) > 1 else ''}. A mean over nothing is NaN: "
            "leave out examples without a label. If the model has broken down, there is nothing "
            "to evaluate: leave out `proxy`."
        )


class ExampleSubset(NamedTuple):
    """Some examples, as a proxy of their own.

    Args:
        proxy: of these examples.
        places: where each is among all, int64 [n].
        num_batches: calls of the value function per evaluation.
    """

    proxy: Proxy
    places: NDArray[np.int64]
    num_batches: int


#: Batches of a part, and where its examples are.
Drawn = tuple[list["Batch"], NDArray[np.int64]]


def _drawn(batches: Sequence[Batch], shares: Sequence[float]) -> list[Drawn]:
    """The batches of each part, as ``Proxy.subsets`` says."""
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
        orders.append((places[keys.argsort()], max(sizes[i][0] for i in indices)))
    drawn: list[Drawn] = []
    for start, stop in zip([0.0, *shares], shares, strict=False):
        of_part: list[Batch] = []
        found: list[NDArray[np.int64]] = []
        for order, most in orders:
            begin, end = (math.ceil(share * len(order) - 1e-9) for share in (start, stop))
            for few in range(begin, end, most):
                found.append(np.sort(order[few : min(few + most, end)]))
                of_part.append(_rows(batches, first, found[-1]))
        drawn.append((of_part, np.concatenate(found or [np.zeros(0, np.int64)])))
    return drawn


def _rows(batches: Sequence[Batch], first: NDArray[np.int64], places: NDArray[np.int64]) -> Batch:
    """The examples that stand at rising ``places``; batch i begins at ``first[i]``."""
    of_batch = np.searchsorted(first, places, side="right") - 1
    return Batch.joined(
        [batches[i].some(places[of_batch == i] - first[i]) for i in np.unique(of_batch)]
    )


def _device_of(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    return torch.device("cpu") if parameter is None else parameter.device


def _seed_generators(seed: int) -> None:
    """Seed those that ``preserve_rng`` puts back, and no others."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


def _not_by_example(result: object, index: int) -> str:
    """What a value function must return, and what it did."""
    if isinstance(result, torch.Tensor):
        came = f"a tensor of shape {tuple(result.shape)} and dtype {result.dtype}"
    else:
        came = type(result).__name__
    return (
        "Expected `value(model, batch)` to return a floating-point tensor of shape [N], one "
        f"number per example, got {came} for batch {index}. Do not average over the batch: use "
        "reduction='none' and average over each example's own positions."
    )


# ------------------------------------------------------------------ batches of any nesting

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_LEAVES = (torch.Tensor, np.ndarray, *_PLAIN)


class Batch:
    """A frozen batch: its tensors, arrays, numbers and texts, and what puts them together.

    The leaves share no memory with what they are of; ``where`` names it in an error.
    """

    def __init__(self, value: Any, where: str = "batch") -> None:
        self.leaves: list[Any] = []
        self.structure: list[str] = []  # types and names of what holds them; "" for each leaf
        self._build = self._taken_apart(value, where)
        self.leaves = [_copied(leaf) for leaf in self.leaves]

    def __reduce__(self) -> Any:
        return Batch, (self.built(self.leaves),)

    def _taken_apart(self, value: Any, where: str) -> Callable[[Iterator[Any]], Any]:
        """Note the leaves; what makes something like it of others."""
        if isinstance(value, _LEAVES):
            self.leaves.append(value)
            self.structure.append("")
            return next
        inside, make = _container(value, where)
        self.structure.append(type(value).__name__)
        builders = []
        for name, one in inside:
            self.structure.append(f"{name!r}")
            builders.append(self._taken_apart(one, f"{where}[{name!r}]"))
        return lambda leaves: make([build(leaves) for build in builders])

    def built(self, leaves: Iterable[Any]) -> Any:
        """A batch of these leaves, in containers of its own."""
        return self._build(iter(leaves))

    def on(self, device: torch.device) -> Any:
        """The batch with its tensors on a device."""
        return self.built(
            leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf for leaf in self.leaves
        )

    def with_leaves(self, leaves: list[Any]) -> Batch:
        """The same structure with others."""
        other = copy.copy(self)
        other.leaves = leaves
        return other

    def sizes(self) -> tuple[int, ...]:
        """How many examples there are, as the tensors and arrays say."""
        return tuple(sorted({len(leaf) for leaf in self.leaves if _has_examples(leaf)}))

    def halves(self) -> list[Batch]:
        """The first and the last half of the examples, as views; itself if there are none.

        There is one example, or tensors do not agree on how many there are. Those without a
        dimension go into both halves.
        """
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


def _copied(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return leaf.detach().clone()
    return leaf.copy() if isinstance(leaf, np.ndarray) else leaf


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
    return [
        [_as_bytes(leaf) if isinstance(leaf, np.ndarray) else leaf for leaf in batch.leaves]
        for batch in batches
    ]


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
            _as_array(other) if isinstance(leaf, np.ndarray) else other
            for leaf, other in zip(batch.leaves, others, strict=True)
        ]
        filled.append(batch.with_leaves(leaves))
    return filled


def _as_bytes(array: np.ndarray) -> torch.Tensor:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=False)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def _as_array(stored: torch.Tensor) -> np.ndarray:
    file = io.BytesIO(stored.numpy().tobytes())
    array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _container(value: Any, where: str) -> tuple[list[tuple[Any, Any]], Callable[[list[Any]], Any]]:
    """What a container holds, by name, and what makes one like it of others."""
    kind = type(value)
    if kind in (list, tuple):
        return [*enumerate(value)], kind
    if isinstance(value, Mapping):
        return [*_mapping(value).items()], partial(_mapping_like, value, where)
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


def _mapping(value: Mapping[Any, Any]) -> Mapping[Any, Any]:
    return value.data if isinstance(value, UserDict) else value  # transformers' BatchEncoding


def _mapping_like(value: Mapping[Any, Any], where: str, new: list[Any]) -> Any:
    items = dict(zip(_mapping(value), new, strict=True))
    if type(value) is dict:
        return items
    if isinstance(value, UserDict):
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
