"""What is measured: frozen batches, and a value per example."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import logging
import math
import pickle
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sparsitywatch.errors import ProxyError, expect, expect_whole
from sparsitywatch.pruning.batches import Batch, digest, one_by_batch, packed, unit_of, unpacked
from sparsitywatch.ranks.protocol import ALONE, Ranks, Turns
from sparsitywatch.redact import printable, redacted_error

#: Relative size up to which repeated evaluations may differ by the order of additions.
ROUNDING = 1e-4
#: Of the order in which examples are drawn into parts.
_ORDER_SEED = 0

_logger = logging.getLogger("sparsitywatch")

#: value(model, batch) -> tensor [N], one floating-point number per example.
ValueFunction = Callable[[nn.Module, Any], torch.Tensor]


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
            the tensors of the batch on the model's device. Where it returns one number for a
            batch, or several for an example, such as one per token, errors are those of batches.
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
        self._sizes: list[int] = []  # numbers of each batch
        self.unit = ""  # what a number is of: "example", "token" or "batch"; known once evaluated
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
            kept = torch.load(file, weights_only=True, map_location="cpu")
            other = self._of(unpacked(self._batches, kept))
        except ProxyError:
            raise
        except Exception as error:  # whatever a damaged file makes torch raise
            raise ProxyError(
                f"Expected the batches that a proxy kept in {str(file)!r}, got "
                f"{redacted_error(error)}."
            ) from error
        other.unit = ""
        other._identify()
        return other

    @property
    def num_bytes(self) -> int:
        """Of the tensors and arrays of the batches."""
        leaves = (leaf for batch in self._batches for leaf in batch.leaves)
        return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, torch.Tensor | np.ndarray))

    def __repr__(self) -> str:
        return f"<Proxy {printable(self.name)[:80]}: {self.num_batches} batches, {self.hash}>"

    @property
    def num_batches(self) -> int:
        """Calls of the value function per evaluation that count, on all ranks."""
        return self._num_places

    def evaluate(self, model: nn.Module, value: ValueFunction | None = None) -> np.ndarray:
        """The value of every example, float64 [N], of a model as it is; of a batch if that is it.

        Each batch begins with the same state of the global generators every time, so a forward may
        sample: all models are compared on the same numbers. A watch evaluates a copy of the model,
        and gives the ``value`` that runs this copy.

        Raises:
            ProxyError: ``value`` did not return one floating-point number per example.
        """
        with preserve_rng():
            return self.values(model, value or self.value)

    def values(self, model: nn.Module, value: ValueFunction) -> np.ndarray:
        """The same of a copy; the global generators go on from wherever that ends."""
        return self.examples(self.by_batch(model, value))

    def by_batch(self, model: nn.Module, value: ValueFunction) -> dict[int, np.ndarray]:
        """The numbers of each batch, by its place."""
        return self.ranks.merged(self._own(self._turns, model, value))

    def examples(self, every: Mapping[int, np.ndarray]) -> np.ndarray:
        """The values of ``by_batch`` in one; one for each batch, where they are not of examples."""
        values = [every[place] for place in sorted(every)]
        self.unit = self.unit or self._unit_of(values)
        examples = np.concatenate(values) if self.unit == "example" else one_by_batch(values)
        if self._num_examples not in (None, len(examples)):
            raise ProxyError(
                f"Expected `value` to return {self._num_examples} examples over all batches as "
                f"before, got {len(examples)}."
            )
        self._num_examples, self._sizes = len(examples), [*map(len, values)]
        return examples

    def _unit_of(self, values: Sequence[np.ndarray]) -> str:
        """What each number is of, as the tensors of the batches have it, on all ranks."""
        own = {place: self._batches[i].dims() for i, place in self._turns if place is not None}
        every = self.ranks.merged(own)
        return unit_of([every[place] for place in sorted(every)], values)

    def check_repeats(
        self, before: Mapping[int, np.ndarray], model: nn.Module, value: ValueFunction
    ) -> None:
        """Evaluate the first two batches again, and refuse other values than just before.

        Also those of examples whose value is another where they stand in another place: each batch
        is run with its examples reversed, unless something is drawn, or kept from call to call.

        Args:
            before: what ``by_batch`` gave of the same model.
            model, value: as in ``evaluate``.

        Raises:
            ProxyError: a batch, or an example, has another value the second time; by how much.
        """
        self._compare(before, self._turns[:2], model, value)
        if self.unit != "example" or not self.ranks.is_alone:
            return
        (first,) = self._own(self._turns[:1], model, value).items()
        if _apart(before[first[0]], first[1], model):
            return  # it keeps something, which is its own
        for index, place in self._turns:
            turned = self._turned(index, place or 0, model, value)
            if turned is not None and _most_differ(before[place or 0], turned):
                raise ProxyError(
                    "Expected the value of an example to be its own wherever it stands in its "
                    f"batch, but those of batch {place} are others with the examples reversed. "
                    "Where examples depend on their order they are no examples: return one "
                    "number for each group of them, or one for the batch."
                )

    def check_order(
        self, before: Mapping[int, np.ndarray], model: nn.Module, value: ValueFunction
    ) -> None:
        """Evaluate from the last batch to the first; batches that count as independent are.

        Raises:
            ProxyError: a batch has another value than in the usual order.
        """
        self._compare(before, self._turns[::-1], model, value, ", in another order of them")

    def _compare(
        self,
        before: Mapping[int, np.ndarray],
        turns: Turns,
        model: nn.Module,
        value: ValueFunction,
        order: str = "",
    ) -> None:
        for place, again in self._own(turns, model, value).items():
            if apart := _apart(before[place], again, model):
                raise ProxyError(
                    "Expected the same values of the same batch of the same model, but those of "
                    f"batch {place} differ by up to {apart:.3g} the second time{order}. The model "
                    "or `value` keeps something (a metric that adds up over batches), or depends "
                    "on what no copy of the model has (a file, a library, an object that is "
                    "shared), and what changes there may change the training, too. Compute each "
                    "batch anew, keep it in a buffer, or leave `proxy` out."
                )

    def _turned(
        self, index: int, place: int, model: nn.Module, value: ValueFunction
    ) -> np.ndarray | None:
        """The values of a batch whose examples are reversed; None where that says nothing."""
        batch = self._batches[index].reversed()
        if batch is None or self.unit != "example":
            return None
        _seed_generators(place)
        state = _drawn_from()
        turned = self._of_batch(index, model, value, batch)
        has_drawn = _drawn_from() != state
        return None if has_drawn or len(turned) != batch.sizes()[0] else turned[::-1]

    def run_once(self, model: nn.Module, value: ValueFunction) -> None:
        """Evaluate the first batch; what there is to see is for ``value`` to note."""
        self._own(self._turns[:1], model, value)

    def _own(self, turns: Any, model: nn.Module, value: ValueFunction) -> dict[int, np.ndarray]:
        """The values of the batches that this rank evaluates, by their places."""
        own: dict[int, np.ndarray] = {}
        for index, place in turns:
            _seed_generators(place or 0)
            with self.ranks.all_or_none("evaluating a batch"), self.ranks.followed():
                of_batch = self._of_batch(index, model, value)
            if place is not None:
                own[place] = of_batch
        return own

    def _of_batch(
        self, index: int, model: nn.Module, value: ValueFunction, batch: Batch | None = None
    ) -> np.ndarray:
        result = value(model, (batch or self._batches[index]).on(_device_of(model)))
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
            the others of its batch, since nobody knows then what an example is, where a number is
            not of an example, where one would be empty, and after ``keep_whole``.
        """
        if self._is_kept_whole or self.unit not in ("", "example"):
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
        subsets = zip(drawn, own, strict=True)
        found = [ExampleSubset(self._of(batches), places) for (batches, _), places in subsets]
        return tuple(found)

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
            Whether there was anything to split; not where errors are those of batches.
        """
        if self.unit not in ("", "example"):
            return False
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
    """

    proxy: Proxy
    places: NDArray[np.int64]


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


def _apart(before: np.ndarray, again: np.ndarray, model: nn.Module) -> float:
    """By how much values differ, more than the order of additions explains; else 0."""
    if np.array_equal(again, before, equal_nan=True):
        return 0.0
    apart = float(np.nanmax(np.abs(again - before))) if len(again) == len(before) else math.inf
    # kernels of accelerators may add in any order
    is_rounding = apart <= ROUNDING * np.nanmax(np.abs(before))
    return 0.0 if is_rounding and _device_of(model).type != "cpu" else apart


def _most_differ(before: np.ndarray, again: np.ndarray) -> bool:
    """Whether the values of most examples do, by more than the order of additions explains."""
    if len(before) != len(again):
        return True
    return bool(np.median(np.abs(again - before)) > ROUNDING * np.abs(before).max())


def _drawn_from() -> list[bytes]:
    """The state of the generators that a forward may draw from."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    states = [state.numpy().tobytes() for state in (torch.get_rng_state(), *cuda)]
    return [*states, pickle.dumps((random.getstate(), np.random.get_state()))]  # noqa: NPY002


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
