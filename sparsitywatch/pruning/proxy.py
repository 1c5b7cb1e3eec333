"""What is measured: frozen batches and a value per example."""

from __future__ import annotations

import copy
import hashlib
import logging
import math
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sparsitywatch.errors import MeasurementError, ProxyError, expect, expect_whole
from sparsitywatch.pruning.batches import (
    digest,
    freeze,
    halve,
    joined,
    move,
    packed,
    shape_of,
    sizes_of,
    unpacked,
)
from sparsitywatch.pruning.preserve import preserve_rng, preserve_state
from sparsitywatch.shown import shown_error, shown_name
from sparsitywatch.weights.fsdp import ForwardOrder
from sparsitywatch.weights.shards import Ranks, is_data_parallel

__all__ = ["Part", "Proxy", "SharedProxy"]

#: Of the order in which examples are drawn into parts.
_ORDER_SEED = 0

_logger = logging.getLogger("sparsitywatch")

#: value(model, batch) -> tensor [N], one floating-point number per example.
ValueFunction = Callable[[nn.Module, Any], torch.Tensor]


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
            self._batches = _materialise(batches, max_batches)
        self._num_examples: int | None = None
        self._sizes: list[int] = []  # examples of each batch
        self._parts: dict[tuple[float, ...], tuple[Part, ...]] = {}  # by their shares
        self._is_kept_whole = False
        self.ranks: Ranks | None = None  # that evaluate it together; None: this process alone
        self.hash = self._identity()

    def _identity(self) -> str:
        identity = f"{digest(self._batches)} {self.higher_is_better} {self.name}"
        return hashlib.sha256(identity.encode()).hexdigest()[:16]

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
                f"{shown_error(error)}."
            ) from error

    def with_leaves(self, leaves: Sequence[Sequence[Any]]) -> Proxy:
        """This proxy with other batches, as ``packed`` gave them.

        Raises:
            ProxyError: they are of another structure.
        """
        other = copy.copy(self)
        other._batches = unpacked(self._batches, leaves)
        other._num_examples, other._parts = None, {}
        other.hash = other._identity()
        return other

    @property
    def num_bytes(self) -> int:
        """Of the tensors and arrays of the batches."""
        leaves = (leaf for batch in packed(self._batches) for leaf in batch)
        return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, torch.Tensor))

    def __repr__(self) -> str:
        return f"<Proxy {shown_name(self.name)[:80]}: {self.num_batches} batches, {self.hash}>"

    @property
    def num_batches(self) -> int:
        """Calls of the value function per evaluation."""
        return len(self._batches)

    def evaluate(self, model: nn.Module) -> np.ndarray:
        """The value of every example, float64 [N]; call it inside ``preserve_state``.

        Raises:
            ProxyError: ``value`` did not return one floating-point number per example.
        """
        values = self._values(model)
        examples: np.ndarray = np.concatenate(values)
        if self._num_examples not in (None, len(examples)):
            raise ProxyError(
                f"Expected `value` to return {self._num_examples} examples over all batches as "
                f"before, got {len(examples)}."
            )
        self._num_examples, self._sizes = len(examples), [*map(len, values)]
        return examples

    def _values(self, model: nn.Module) -> list[np.ndarray]:
        """The value of every example of each batch, float64."""
        values = []
        for index in range(len(self._batches)):
            values.append(self._of_batch(index, model))  # noqa: PERF401 a traceback shows less
        return values

    def _of_batch(self, index: int, model: nn.Module) -> np.ndarray:
        parameter = next(model.parameters(), None)
        device = torch.device("cpu") if parameter is None else parameter.device
        result = self.value(model, move(self._batches[index], device))
        is_tensor = isinstance(result, torch.Tensor)
        # none of a batch is possible: examples without a label have no loss
        if not (is_tensor and result.ndim == 1 and result.is_floating_point()):
            raise ProxyError(_not_by_example(result, index))
        found: np.ndarray = result.detach().to("cpu", torch.float64).numpy()
        return found

    def parts(self, shares: Sequence[float]) -> tuple[Part, ...]:
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
            the others of its batch, since nobody knows then what an example is, and after
            ``keep_whole``.
        """
        if self._is_kept_whole:
            return ()
        key = tuple(shares)
        if key not in self._parts:
            self._parts[key] = self._proxies_of(_drawn(self._batches, key))
        return self._parts[key]

    def keep_whole(self, why: str) -> None:
        """Draw no parts from here on, since they would tell something else."""
        self._is_kept_whole = True
        _logger.warning(
            "sparsitywatch: every level is evaluated on all examples, which takes some four times "
            "as long: %s.",
            why,
        )

    def _proxies_of(self, drawn: Sequence[_Drawn]) -> tuple[Part, ...]:
        found = [(self._of(batches), places) for batches, places in drawn]
        return tuple(Part(proxy, places, proxy.num_batches) for proxy, places in found)

    def _of(self, batches: list[Any]) -> Proxy:
        """One like this, of other batches."""
        other = copy.copy(self)
        other._batches, other._num_examples, other._parts = batches, None, {}
        return other

    def halve(self) -> bool:
        """Split every batch in two where that can be done, to need less memory.

        The examples, their order and the hash stay. Values may differ in the last digits,
        so a sweep that has begun must begin again.

        Returns:
            Whether there was anything to split.
        """
        halves = [halve(batch) or (batch,) for batch in self._batches]
        self._batches = [part for parts in halves for part in parts]
        self._parts = {}
        return len(self._batches) > len(halves)

    def check(self, model: nn.Module, *, has_weights: bool = True) -> None:
        """Evaluate once and refuse what could not be used, without disturbing the model.

        Args:
            model: what will be evaluated.
            has_weights: False if its weights are still to come, so that values mean nothing.

        Raises:
            ProxyError: ``value`` raises, or returns something else than [N] floats, or NaN or
                infinite ones; the forward begins a collective, or leaves behind what cannot be
                put back.
        """
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if nn.parameter.is_lazy(tensor):
                raise ProxyError(
                    f"Expected a model whose parameters are all there, but {shown_name(name)!r} is "
                    "made by the first forward. Run one forward before attaching."
                )
        try:
            together = self.ranks is not None
            with preserve_state(model, self.value, copies_parameters=True, together=together):
                values = self.evaluate(model)
        except ProxyError:
            raise
        except MeasurementError as error:  # it says all there is to say
            raise ProxyError(str(error)) from error
        except Exception as error:
            raise ProxyError(
                "Expected `value(model, batch)` of the proxy to work on the model as it is, but "
                f"it raised {type(error).__name__}: {error}."
            ) from error
        if values.size < 2:
            raise ProxyError(
                "Expected `value` to return at least two examples over all batches, so that an "
                f"error can be estimated, got {values.size}."
            )
        if has_weights and not np.isfinite(values).all():
            raise ProxyError(self._not_finite(values))

    def _not_finite(self, values: np.ndarray) -> str:
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


class Part(NamedTuple):
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
_Drawn = tuple[list[Any], NDArray[np.int64]]


def _drawn(batches: Sequence[Any], shares: Sequence[float]) -> list[_Drawn]:
    """The batches of each part, as ``Proxy.parts`` says."""
    sizes = [sizes_of(batch) for batch in batches]
    if any(len(size) != 1 for size in sizes):
        return []
    first = np.cumsum([0, *(size for (size,) in sizes)])
    alike: dict[Any, list[int]] = {}
    for index, batch in enumerate(batches):
        alike.setdefault(shape_of(batch), []).append(index)
    orders = []
    for stratum, indices in enumerate(alike.values()):
        places = np.concatenate([np.arange(first[i], first[i + 1]) for i in indices])
        keys = np.random.Generator(np.random.PCG64([_ORDER_SEED, stratum])).random(len(places))
        orders.append((places[keys.argsort()], max(sizes[i][0] for i in indices)))
    drawn: list[_Drawn] = []
    for start, stop in zip([0.0, *shares], shares, strict=False):
        of_part: list[Any] = []
        found: list[NDArray[np.int64]] = []
        for order, most in orders:
            begin, end = (math.ceil(share * len(order) - 1e-9) for share in (start, stop))
            for few in range(begin, end, most):
                found.append(np.sort(order[few : min(few + most, end)]))
                of_part.append(joined(_rows(batches, first, found[-1])))
        drawn.append((of_part, np.concatenate(found or [np.zeros(0, np.int64)])))
    return drawn


def _rows(
    batches: Sequence[Any], first: NDArray[np.int64], places: NDArray[np.int64]
) -> list[tuple[Any, NDArray[np.int64]]]:
    """Batches with the rows that stand at rising ``places``; batch i begins at ``first[i]``."""
    of_batch = np.searchsorted(first, places, side="right") - 1
    return [(batches[i], places[of_batch == i] - first[i]) for i in np.unique(of_batch)]


class SharedProxy(Proxy):
    """A proxy whose batches several ranks evaluate between them, in step; each has all values.

    Where all ranks have the same batches, each evaluates some of them, so that an evaluation on R
    ranks takes about 1/R of the time. Where each has batches of its own, all of them count, by
    rank. Every rank runs as many forwards as any other, since a forward may communicate: who has
    no batch left runs one again.

    Args:
        proxy: of this rank.
        ranks: all of them make one.
        model: that will be evaluated. Where a layer of it is split over ranks each runs all
            batches, and they have to be the same.

    Raises:
        ProxyError: the ranks have different batches where they must not, or proxies of different
            kinds.
    """

    ranks: Ranks

    def __init__(self, proxy: Proxy, ranks: Ranks, model: nn.Module) -> None:
        vars(self).update(vars(proxy))
        self.ranks, self._is_data_parallel = ranks, is_data_parallel(model)
        self._order = ForwardOrder(model)
        self._plan()

    def _plan(self) -> None:
        """Who evaluates which batches; all ranks are asked."""
        own = (
            super()._identity(),
            self.name,
            self.higher_is_better,
            [*map(sizes_of, self._batches)],
        )
        every = self.ranks.all_of(own)
        if any(other[1:3] != own[1:3] for other in every):
            raise ProxyError(
                "Expected a proxy of the same value on every rank, got "
                f"{', '.join(sorted({shown_name(name) for _, name, *_ in every}))}."
            )
        sizes = [of_rank for *_, of_rank in every]
        self._is_same = (
            len({(mark, len(of)) for (mark, *_), of in zip(every, sizes, strict=True)}) == 1
        )
        if self._is_data_parallel:
            turns = _shared(sizes) if self._is_same else _by_rank(sizes)
            self._turns = turns[self.ranks.rank]
        elif self._is_same:
            is_first = self.ranks.rank == 0
            self._turns = [(index, index if is_first else None) for index in range(len(sizes[0]))]
        else:
            raise ProxyError(
                "Expected the same batches on every rank of a model whose layers are split "
                "over ranks (tensor parallel), got others. Make the proxy of a source that "
                "does not depend on the rank."
            )
        self._num_places = len(sizes[0]) if self._is_same else sum(map(len, sizes))
        if not self._is_same:
            self.hash = hashlib.sha256(" ".join(mark for mark, *_ in every).encode()).hexdigest()
            self.hash = self.hash[:16]

    @property
    def num_batches(self) -> int:
        """Calls of the value function per evaluation that count, on all ranks together."""
        return self._num_places

    def _values(self, model: nn.Module) -> list[np.ndarray]:
        """The value of every example of each batch of every rank, on every rank."""
        own = []
        for index, place in self._turns:
            with self.ranks.together("evaluating a batch"), self._order.followed():
                values = self._of_batch(index, model)
            if place is not None:
                own.append((place, values))
        sizes = np.zeros(self._num_places, np.int64)
        for place, found in own:
            sizes[place] = len(found)
        self.ranks.sum(sizes)
        values = np.zeros(int(sizes.sum()), np.int64)  # bits of them, which add without rounding
        ends = np.cumsum(sizes)
        for place, found in own:
            values[ends[place] - sizes[place] : ends[place]] = found.view(np.int64)
        self.ranks.sum(values)
        return np.split(values.view(np.float64), ends[:-1])

    def halve(self) -> bool:
        """Split every batch in two, on every rank."""
        were_split = super().halve()
        self._plan()
        return bool(self.ranks.sum(np.array([were_split], np.int64))[0])

    def _proxies_of(self, drawn: Sequence[_Drawn]) -> tuple[Part, ...]:
        """The parts of all ranks together; each draws its share of its own batches."""
        places = [of_part for _, of_part in drawn]
        num_own = sum(size for batch in self._batches for size in sizes_of(batch)[:1])
        every = self.ranks.all_of((places, num_own))
        # every rank has to run what the others run, so it needs something to run
        if not all(len(of_rank) == len(places) > 0 for of_rank, _ in every):
            return ()
        if any(len(of_part) == 0 for of_rank, _ in every for of_part in of_rank):
            return ()
        if not self._is_same:
            first = np.cumsum([0, *(number for _, number in every)])
            by_rank = [[p + first[r] for p in of_rank] for r, (of_rank, _) in enumerate(every)]
            places = [np.concatenate(of_part) for of_part in zip(*by_rank, strict=True)]
        batches = [of_part for of_part, _ in drawn]
        return super()._proxies_of([*zip(batches, places, strict=True)])

    def _of(self, batches: list[Any]) -> Proxy:
        other = super()._of(batches)
        other._plan()  # type: ignore[attr-defined]
        return other

    def with_leaves(self, leaves: Sequence[Sequence[Any]]) -> Proxy:
        """This proxy with other batches; on every rank."""
        other = super().with_leaves(leaves)
        other._plan()  # type: ignore[attr-defined]
        return other


#: What a rank evaluates in its turns: a batch of its own, and the place of its values among those
#: of all batches; None for a batch that is run only since the others run theirs.
_Turns = list[tuple[int, int | None]]


def _shared(sizes: Sequence[Sequence[Any]]) -> list[_Turns]:
    """The turns of each rank where all have the same batches.

    In each turn all of them run batches of one size: what a forward exchanges with other ranks
    may have to be.

    >>> _shared([[8, 8, 8, 5], [8, 8, 8, 5]])
    [[(0, 0), (2, 2), (3, 3)], [(1, 1), (2, None), (3, None)]]
    """
    num_ranks = len(sizes)
    alike: dict[Any, list[int]] = {}
    for index, size in enumerate(sizes[0]):
        alike.setdefault(size, []).append(index)
    turns: list[_Turns] = [[] for _ in sizes]
    for indices in alike.values():
        for start in range(0, len(indices), num_ranks):
            together = indices[start : start + num_ranks]
            for rank, of_rank in enumerate(turns):
                is_own = rank < len(together)
                index = together[rank if is_own else 0]
                of_rank.append((index, index if is_own else None))
    return turns


def _by_rank(sizes: Sequence[Sequence[Any]]) -> list[_Turns]:
    """The turns of each rank where each has batches of its own; all of them count, by rank.

    >>> _by_rank([[8, 5], [8, 8, 5]])
    [[(0, 0), (1, 1), (1, None)], [(0, 2), (1, 3), (2, 4)]]
    """
    longest, turns, first = max(sizes, key=len), [], 0
    for own in sizes:
        of_rank: _Turns = [(index, first + index) for index in range(len(own))]
        for size in longest[len(own) :]:
            of_rank.append((list(own).index(size) if size in own else 0, None))
        turns.append(of_rank)
        first += len(own)
    return turns


def _seed_generators(seed: int) -> None:
    """Those that ``preserve_rng`` puts back, and no others."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


def _materialise(batches: Iterable[Any], max_batches: int | None) -> list[Any]:
    frozen = []
    for index, batch in enumerate(batches):
        frozen.append(freeze(batch, f"batches[{index}]"))
        if max_batches is not None and len(frozen) >= max_batches:
            break
    if not frozen:
        raise ProxyError("Expected `batches` with at least one batch, got none.")
    return frozen


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
