"""What is measured: frozen batches, and a value per example."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import math
import pickle
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sparsitywatch.errors import ProxyError, expect, expect_whole
from sparsitywatch.proxy.apart import EVALUATING, Learner, apart, others, why_shared
from sparsitywatch.proxy.batches import (
    ROUNDING,
    Batch,
    Runnable,
    ValueFunction,
    device_of,
    digest,
    drawn,
    drawn_parts,
    packed,
    preserve_rng,
    save_whole,
    seed_generators,
    unit_of,
    unpacked,
)
from sparsitywatch.proxy.ready_made import (
    causal_batches,
    labelled_value,
    masked_batches,
    rows_of,
)
from sparsitywatch.ranks.protocol import ALONE, Ranks, Turns
from sparsitywatch.redact import logger, printable, redacted_error

T = TypeVar("T")

#: What a batch calls the masks of the positions that are no padding.
_MASKS = ("attention_mask", "decoder_attention_mask")


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
        positions: which positions of a batch count where a pattern looks at what comes into the
            layers: ``positions(batch)`` gives a mask, [N, L] of ones and zeros, a list of masks of
            different shapes, or None: all count. By default a batch that is a mapping tells it by
            its ``attention_mask``, and a ``decoder_attention_mask``; in any other all count.

    Raises:
        ProxyError: there is no batch, one holds something that cannot be copied, or ``positions``
            does not give masks.
    """

    #: Whether other threads may draw from the generators that an evaluation seeds.
    threads_draw = True
    #: How intervals become narrower where numbers are of batches.
    advice: str = "Return the mean of each example's own positions for narrower ones."

    def __init__(
        self,
        batches: Iterable[Any],
        value: ValueFunction,
        *,
        higher_is_better: bool = False,
        name: str = "",
        max_batches: int | None = None,
        seed: int | None = 0,
        positions: Callable[[Any], Any] | None = None,
    ) -> None:
        if not callable(value):
            raise ProxyError(
                "Expected `value` to be a function value(model, batch) -> tensor [N], "
                f"got {value!r}."
            )
        is_one = isinstance(batches, torch.Tensor | str | bytes | Mapping)
        if is_one or not isinstance(batches, Iterable):
            raise ProxyError(
                "Expected `batches` to be an iterable of batches such as a list or a DataLoader, "
                f"got {type(batches).__name__}. Wrap a single batch in a list."
            )
        if max_batches is not None:
            expect_whole("max_batches", max_batches, 1)
        expect(isinstance(name, str), "name", "a text", name)
        if seed is not None and not (type(seed) is int and 0 <= seed < 2**32):
            raise ProxyError(f"Expected `seed` to be in [0, 2**32) or None, got {seed!r}.")
        expect(positions is None or callable(positions), "positions", "a function", positions)
        self.value = value
        self.positions = positions
        self.higher_is_better = higher_is_better
        self.name = name or getattr(value, "__name__", type(value).__name__)

        def frozen() -> list[Batch]:
            some = itertools.islice(batches, max_batches)
            return [Batch(batch, f"batches[{i}]") for i, batch in enumerate(some)]

        # a list draws nothing
        self._batches = frozen() if type(batches) in (list, tuple) else drawn(frozen, seed)
        if not self._batches:
            raise ProxyError("Expected `batches` with at least one batch, got none.")
        self.ranks: Ranks = ALONE
        self.unit = ""  # what a number is of: "example", "token" or "batch"; known once evaluated
        self._num_examples: int | None = None
        self._sizes: list[int] = []  # numbers of each batch
        self._subsets: dict[tuple[float, ...], tuple[ExampleSubset, ...]] = {}  # by their shares
        self.is_kept_whole = False
        self._metric: Any = None  # of torchmetrics, whose states the batches add to
        self._identify()

    @classmethod
    def masked_lm(
        cls, dataset: Iterable[Any], tokenizer: Any, *, examples: int = 128, length: int = 128
    ) -> Proxy:
        """The loss of a masked language model, such as BERT, on some sequences of a dataset.

        15 % of the tokens of each sequence are hidden, once and for all (Devlin et al. 2019,
        arXiv:1810.04805, appendix A.1). Padding does not count.

        Args:
            dataset: held-out rows or batches with ``input_ids``, such as those of a Trainer's
                ``eval_dataset``, or texts, or rows with one text.
            tokenizer: of transformers, or one like it, with a mask token.
            examples: sequences, spread evenly over a dataset that can be indexed, else the first.
            length: tokens of a sequence at most; what is longer is cut.

        Raises:
            ProxyError: the dataset has no such rows, or the tokenizer no mask token.
        """
        batches = masked_batches(rows_of(dataset, tokenizer, examples, length), tokenizer)
        return cls(batches, labelled_value, name="held-out masked-LM loss")

    @classmethod
    def causal_lm(
        cls,
        dataset: Iterable[Any],
        tokenizer: Any = None,
        *,
        examples: int = 128,
        length: int = 128,
    ) -> Proxy:
        """The loss of a model that predicts each next token, on some sequences of a dataset.

        Padding, and positions whose label is -100, do not count.

        Args:
            dataset, examples, length: as of ``masked_lm``.
            tokenizer: needed for texts, and to tell padding without an ``attention_mask``.

        Raises:
            ProxyError: the dataset has no such rows.
        """
        batches = causal_batches(rows_of(dataset, tokenizer, examples, length), tokenizer)
        return cls(batches, partial(labelled_value, is_causal=True), name="held-out causal-LM loss")

    @classmethod
    def classification(
        cls, batches: Iterable[Any], *, metric: str = "loss", max_batches: int | None = None
    ) -> Proxy:
        """The loss or the accuracy of a classifier, one number for each example.

        Of an example with several labels, such as one for each token, it is their mean. Labels
        of -100 do not count.

        Args:
            batches: held-out batches (inputs, labels), such as those of a DataLoader, or mappings
                with ``labels``, such as those of a collator of transformers.
            metric: "loss", the cross-entropy, or "accuracy".
            max_batches: as of ``Proxy``.
        """
        expect(metric in ("loss", "accuracy"), "metric", "'loss' or 'accuracy'", metric)
        return cls(
            batches, partial(labelled_value, metric=metric), higher_is_better=metric == "accuracy",
            name=f"held-out {metric}", max_batches=max_batches,
        )  # fmt: skip

    @classmethod
    def of_metric(
        cls,
        batches: Iterable[Any],
        predict: Callable[[nn.Module, Any], Any],
        metric: Any,
        *,
        higher_is_better: bool | None = None,
        max_batches: int | None = None,
    ) -> Proxy:
        """A metric of torchmetrics: F1, AUROC, perplexity, BLEU, ...

        One that works sample by sample (``multidim_average="samplewise"``, ``reduction="none"``)
        gives a number for each example. Any other is of all batches together, its interval that of
        a paired jackknife over batches: give it 16 or more.

        Args:
            batches, max_batches: as of ``Proxy``.
            predict: ``predict(model, batch)`` returns what ``metric.update`` takes, such as
                (predictions, targets), or a dict of it.
            metric: its states have to be sums. One that keeps all examples (``cat``) is refused.
            higher_is_better: None: as the metric says.
        """
        from sparsitywatch.proxy.metric import BatchMetric

        own = BatchMetric(metric, higher_is_better)
        made = cls(
            batches, predict, higher_is_better=own.higher_is_better, name=type(metric).__name__,
            max_batches=max_batches,
        )  # fmt: skip
        made._metric, made.advice = own, own.advice
        return made

    def shared(self, ranks: Ranks, *, threads_draw: bool = False) -> Proxy:
        """This proxy, its batches evaluated by several ranks between them; each has all values."""
        # where all ranks have the same batches, each evaluates some of them, so that an evaluation
        # on R ranks takes about 1/R of the time. Where each has batches of its own, all of them
        # count, by rank. Every rank runs as many forwards as any other, since a forward may
        # communicate: who has no batch left runs one again. Every rank calls this, and from then on
        # each method.
        kinds = ranks.gather((self.name, self.higher_is_better))
        if len(set(kinds)) > 1:
            raise ProxyError(
                "Expected a proxy of the same value on every rank, got "
                f"{', '.join(sorted({printable(name) for name, _ in kinds}))}."
            )
        other = copy.copy(self)
        other.ranks, other.threads_draw, other._subsets = ranks, threads_draw, {}
        other._identify()
        return other

    def _identify(self) -> None:
        """Which batches these are, and whether every rank has the same."""
        identity = f"{digest(self._batches)} {self.higher_is_better} {self.name}"
        if self.positions is not None:  # else the batches say all there is to say
            masks = [Batch(self.counted(batch.on(torch.device("cpu")))) for batch in self._batches]
            identity += f" {digest(masks)}"
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

    def counted(self, batch: Any) -> list[torch.Tensor]:
        """Masks of the positions of a batch that count, bool; none where all do."""
        masks: Any = []
        if self.positions is not None:
            try:
                masks = self.positions(batch)
            except Exception as error:
                raise ProxyError(
                    "Expected `positions(batch)` to give a mask, but it raised "
                    f"{redacted_error(error)}."
                ) from error
        elif isinstance(batch, Mapping):
            of_batch = (batch.get(name) for name in _MASKS)
            masks = [m for m in of_batch if isinstance(m, torch.Tensor) and m.ndim == 2]
        masks = [] if masks is None else masks if isinstance(masks, list | tuple) else [masks]
        for mask in masks:
            is_tensor = isinstance(mask, torch.Tensor) and mask.ndim > 0
            if not (is_tensor and bool(((mask == 0) | (mask == 1)).all())):
                came = f"a tensor of shape {tuple(mask.shape)}" if is_tensor else repr(mask)[:80]
                raise ProxyError(
                    "Expected a mask of ones and zeros, 1 where a position counts, of a batch's "
                    f"`attention_mask` or of `positions`, got {came}. Give `positions`, a function "
                    "of the batch; None is all positions."
                )
        is_any_left_out = not all(bool(mask.all()) for mask in masks)
        return [mask == 1 for mask in masks] if is_any_left_out else []

    def keep(self, file: Path) -> None:
        """Write the batches, for ``with_kept``: tensors and plain data, nothing to execute."""
        save_whole(packed(self._batches), file)

    def with_kept(self, file: Path) -> Proxy:
        """This proxy with the batches that another one kept; a ProxyError where that cannot be."""
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

    # ------------------------------------------------------------------ the numbers of batches

    def _plan(self) -> None:
        """Who evaluates which batches."""
        sizes = [batch.sizes() for batch in self._batches]
        # num_batches: calls of the value function per evaluation that count, on all ranks
        self._turns, self.num_batches = self.ranks.turns(sizes, is_same=self._is_same)

    @property
    def places(self) -> list[int | None]:
        """The place of the batch of each call on this rank; None where another rank counts it."""
        return [place for _, place in self._turns]

    def values(self, model: nn.Module, value: ValueFunction) -> np.ndarray:
        """The value of every example, float64 [N]; of each batch, where that is what it gives."""
        return self.examples(self.by_batch(model, value))

    def by_batch(self, model: nn.Module, value: ValueFunction) -> dict[int, np.ndarray]:
        """The numbers of each batch, by its place."""
        return self.ranks.merged(self._own(self._turns, model, value))

    def examples(self, every: Mapping[int, np.ndarray]) -> np.ndarray:
        """The values of ``by_batch`` in one; one for each batch, where they are not of examples."""
        if self._metric is not None and not self._metric.is_by_example:
            self.unit, self._num_examples, self._sizes = "batch", len(every), [1] * len(every)
            of_batches: np.ndarray = self._metric.values(every)
            return of_batches
        values = [every[place] for place in sorted(every)]
        if not self.unit:  # as the tensors of the batches have it, on all ranks
            own = {place: self._batches[i].dims() for i, place in self._turns if place is not None}
            dims = self.ranks.merged(own)
            self.unit = unit_of([dims[place] for place in sorted(dims)], values)
        num = sum(map(len, values))
        if self.unit == "example":
            examples = np.concatenate(values)
        else:  # their mean is that of all numbers
            examples = np.array([of_batch.sum() * len(values) / num for of_batch in values])
        if self._num_examples not in (None, len(examples)):
            raise ProxyError(
                f"Expected `value` to return {self._num_examples} examples over all batches as "
                f"before, got {len(examples)}."
            )
        self._num_examples, self._sizes = len(examples), [*map(len, values)]
        return examples

    def _own(self, turns: Any, model: nn.Module, value: ValueFunction) -> dict[int, np.ndarray]:
        """The values of the batches that this rank evaluates, by their places."""
        own: dict[int, np.ndarray] = {}
        for index, place in turns:
            with self.ranks.all_or_none("evaluating a batch"), self.ranks.followed():
                of_batch = self._of_batch(self._batches[index], index, place or 0, model, value)
            if place is not None:
                own[place] = of_batch
        return own

    def _of_batch(
        self, batch: Batch, index: int, seed: int, model: nn.Module, value: ValueFunction
    ) -> np.ndarray:
        seed_generators(seed)
        result: Any = value(model, batch.on(device_of(model)))
        if self._metric is not None:
            of_metric: np.ndarray = self._metric.of_batch(result, index, device_of(model))
            return of_metric
        came = type(result).__name__
        if isinstance(result, torch.Tensor):
            came = f"a tensor of shape {tuple(result.shape)} and dtype {result.dtype}"
            # none of a batch is possible: examples without a label have no loss
            if result.ndim == 1 and result.is_floating_point():  # waits for the device
                return result.detach().to("cpu", torch.float64).numpy()
        raise ProxyError(
            "Expected `value(model, batch)` to return a floating-point tensor of shape [N], one "
            f"number per example, got {came} for batch {index}. Do not average over the batch: use "
            "reduction='none' and average over each example's own positions."
        )

    def subsets(self, shares: Sequence[float]) -> tuple[ExampleSubset, ...]:
        """The examples up to the first share of them, from there to the second, and so on."""
        # batches that are alike in all but their examples are one population. Its examples are put
        # into a random order, the same one always, so that those up to a share are a simple random
        # sample of it, without replacement, in batches no larger than the ones given. Batches of
        # other shapes, such as those padded to their longest sequence, are populations of their
        # own, of which each part has its share. There are none where nobody knows what an example
        # is, where one would be empty, and after keep_whole.
        if self.is_kept_whole or self.unit not in ("", "example"):
            return ()
        key = tuple(shares)
        if key not in self._subsets:
            self._subsets[key] = self._subsets_of(key)
        return self._subsets[key]

    def keep_whole(self, why: str) -> None:
        """Draw no parts from here on, since they would tell something else."""
        self.is_kept_whole = True
        words = "every level is evaluated on all examples, which takes some four times as long: %s."
        logger.warning(words, why)

    def _subsets_of(self, shares: Sequence[float]) -> tuple[ExampleSubset, ...]:
        """The parts of all ranks together; each draws its share of its own batches."""
        drawn = drawn_parts(self._batches, shares)
        own = [places for _, places in drawn]
        num_own = sum(size for batch in self._batches for size in batch.sizes()[:1])
        every = self.ranks.gather((own, num_own))
        num_all = num_own if self._is_same else sum(num for _, num in every)
        if self._num_examples not in (None, num_all):  # whose, nobody knows
            self.keep_whole(f"{num_all} examples have {self._num_examples} values")
            return ()
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
        """Split every batch in two, to need less memory, if that can be done; whether it was."""
        # values may differ in the last digits, so a sweep that has begun must begin again
        if self.unit not in ("", "example"):
            return False
        num_before = len(self._batches)
        self._batches = [half for batch in self._batches for half in batch.halves()]
        self._subsets = {}
        self._plan()
        return any(self.ranks.gather(len(self._batches) > num_before))

    def evaluate(self, model: nn.Module, value: ValueFunction | None = None) -> np.ndarray:
        """The value of every example, float64 [N], of a model as it is; of a batch if that is it.

        Each batch begins with the same state of the global generators every time, so a forward may
        sample: all models are compared on the same numbers. A watch evaluates a copy of the model,
        and gives the ``value`` that runs this copy.

        Raises:
            ProxyError: ``value`` did not return one floating-point number per example.
            MeasurementError: other threads may draw meanwhile, and it cannot run in a fork.
        """

        def evaluated() -> np.ndarray:
            with preserve_rng():
                return self.values(model, value or self.value)

        return self.apart(evaluated, model)

    def apart(self, run: Callable[[], T], model: nn.Module, *learners: Learner) -> T:
        """What evaluates, with nothing touched that other threads may use, as ``apart`` has it."""
        if self.threads_draw and others():
            return apart(run, model, self.ranks, self, *learners)
        with self.here():
            return run()

    def here(self) -> AbstractContextManager[Any]:
        """Around what evaluates in this process: one thread at a time; those of ranks wait."""
        return EVALUATING if self.ranks.is_alone else contextlib.nullcontext()

    def why_left_out(self, model: nn.Module) -> str:
        """Why that cannot be done now on some rank; empty if it can."""
        own = why_shared(model, self.ranks) if self.threads_draw else ""
        return next(filter(None, self.ranks.gather(own)), "")

    def learned(self) -> dict[str, Any]:
        """What evaluations have shown of the batches: plain data that ``learn`` takes up."""
        names = ("unit", "is_kept_whole", "_num_examples", "_sizes", "num_batches")
        return {name: getattr(self, name) for name in names}

    def learn(self, state: dict[str, Any]) -> None:
        """Take up what a copy of this proxy has learned in a fork."""
        while self.num_batches < state["num_batches"] and self.halve():
            continue
        vars(self).update(state)

    def check_repeats(
        self, before: Mapping[int, np.ndarray], fresh: Callable[[], Runnable]
    ) -> None:
        """Evaluate again in another order; refuse other values than ``by_batch`` just gave."""
        # each batch runs with its examples reversed; where numbers are not of examples, the batches
        # run from the last to the first. That shows that values repeat, and that they depend on no
        # order. Only where they are others, or something is drawn, the first two batches run as
        # they are, to tell the one from the other. On several ranks these alone run.
        copied = fresh()
        if self.unit != "example":
            if words := self._differing(before, self._turns[::-1], copied, "in another order"):
                self._compare(before, self._turns[:2], fresh())
                raise ProxyError(words)
            return
        turned = self._turned(*copied) if self.ranks.is_alone else {}
        others = [place for place, now in turned.items() if _most_differ(before[place], now)]
        alike = [p for p, now in turned.items() if not _apart(before[p], now, copied[0])]
        if not others and all(place in alike for _, place in self._turns[:2]):
            return
        if self.ranks.is_alone:  # whatever alternates is another at one of two times
            self._compare(before, self._turns[:1], fresh())
            copied = fresh()
        self._compare(before, self._turns[:2], copied)
        # what the copy keeps from call to call is its own
        if others and not self._differing(before, self._turns[:1], copied):
            raise ProxyError(
                "Expected the value of an example to be its own wherever it stands in its "
                f"batch, but those of batch {others[0]} are others with the examples reversed. "
                "Where examples depend on their order they are no examples: return one "
                "number for each group of them, or one for the batch."
            )

    def _compare(self, before: Mapping[int, np.ndarray], turns: Turns, copied: Runnable) -> None:
        if words := self._differing(before, turns, copied):
            raise ProxyError(words)

    def _differing(
        self, before: Mapping[int, np.ndarray], turns: Turns, copied: Runnable, order: str = ""
    ) -> str:
        """What is said where a batch of any rank has other values by now; else empty."""
        for place, again in self.ranks.merged(self._own(turns, *copied)).items():
            if apart := _apart(before[place], again, copied[0]):
                how = f", {order} of them" if order else ""
                return (
                    "Expected the same values of the same batch of the same model, but those of "
                    f"batch {place} differ by up to {apart:.3g} the second time{how}. The model "
                    "or `value` keeps something (a metric that adds up over batches), or depends "
                    "on what no copy of the model has (a file, a library, an object that is "
                    "shared), and what changes there may change the training, too. Compute each "
                    "batch anew, keep it in a buffer, or leave `proxy` out."
                )
        return ""

    def _turned(self, model: nn.Module, value: ValueFunction) -> dict[int, np.ndarray]:
        """The values of batches whose examples are reversed, where that says something."""
        found = {}
        for index, place in self._turns:
            batch = self._batches[index].reversed()
            if batch is None or place is None:
                continue
            seed_generators(place)
            state = drawn_from()
            turned = self._of_batch(batch, index, place, model, value)
            if drawn_from() == state and len(turned) == batch.sizes()[0]:
                found[place] = turned[::-1]
        return found

    def run_once(self, model: nn.Module, value: ValueFunction) -> None:
        """Evaluate the first batch; what there is to see is for ``value`` to note."""
        self._own(self._turns[:1], model, value)

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
    """Some examples, in batches of their own, and where each is among all, int64 [n]."""

    proxy: Proxy
    places: NDArray[np.int64]


def _apart(before: np.ndarray, again: np.ndarray, model: nn.Module) -> float:
    """By how much values differ, more than the order of additions explains; else 0."""
    if np.array_equal(again, before, equal_nan=True):
        return 0.0
    apart = float(np.nanmax(np.abs(again - before))) if len(again) == len(before) else math.inf
    # kernels of accelerators may add in any order
    is_rounding = apart <= ROUNDING * np.nanmax(np.abs(before))
    return 0.0 if is_rounding and device_of(model).type != "cpu" else apart


def _most_differ(before: np.ndarray, again: np.ndarray) -> bool:
    """Whether the values of most examples do, by more than the order of additions explains."""
    if len(before) != len(again):
        return True
    return bool(np.median(np.abs(again - before)) > ROUNDING * np.abs(before).max())


def drawn_from() -> list[bytes]:
    """The state of the generators that a forward may draw from."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    states = [state.numpy().tobytes() for state in (torch.get_rng_state(), *cuda)]
    return [*states, pickle.dumps((random.getstate(), np.random.get_state()))]  # noqa: NPY002
