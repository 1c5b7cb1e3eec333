"""What is measured: frozen batches and a value per example."""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sparsitywatch.arguments import expect, expect_whole
from sparsitywatch.errors import MeasurementError, ProxyError
from sparsitywatch.pruning.batches import digest, freeze, halve, move, packed, unpacked
from sparsitywatch.pruning.undisturbed import preserved_rng, undisturbed
from sparsitywatch.shown import shown_error, shown_name

__all__ = ["Proxy"]

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
        with preserved_rng():
            if seed is not None:
                _seed_generators(seed)
            self._batches = _materialise(batches, max_batches)
        self._num_examples: int | None = None
        self._sizes: list[int] = []  # examples of each batch
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
            leaves = torch.load(file, weights_only=True, map_location="cpu")
            other = copy.copy(self)
            other._batches = unpacked(self._batches, leaves)
            other._num_examples = None
            other.hash = other._identity()
        except ProxyError:
            raise
        except Exception as error:  # whatever a damaged file makes torch raise
            raise ProxyError(
                f"Expected the batches that a proxy kept in {str(file)!r}, got "
                f"{shown_error(error)}."
            ) from error
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
        """The value of every example, float64 [N]; call it inside ``undisturbed``.

        Raises:
            ProxyError: ``value`` did not return one floating-point number per example.
        """
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        values: list[torch.Tensor] = []
        for index, batch in enumerate(self._batches):
            result = self.value(model, move(batch, device))
            _check(result, index)
            values.append(result.detach().to("cpu", torch.float64))
        examples: np.ndarray = torch.cat(values).numpy()
        if self._num_examples not in (None, len(examples)):
            raise ProxyError(
                f"Expected `value` to return {self._num_examples} examples over all batches as "
                f"before, got {len(examples)}."
            )
        self._num_examples = len(examples)
        self._sizes = [len(value) for value in values]
        return examples

    def halve(self) -> bool:
        """Split every batch in two where that can be done, to need less memory.

        The examples, their order and the hash stay. Values may differ in the last digits,
        so a sweep that has begun must begin again.

        Returns:
            Whether there was anything to split.
        """
        halves = [halve(batch) or (batch,) for batch in self._batches]
        self._batches = [part for parts in halves for part in parts]
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
            with undisturbed(model, self.value, copies_parameters=True):
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


def _seed_generators(seed: int) -> None:
    """Those that ``preserved_rng`` puts back, and no others."""
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


def _check(result: object, index: int) -> None:
    if isinstance(result, torch.Tensor):
        # none of a batch is possible: examples without a label have no loss
        if result.ndim == 1 and result.is_floating_point():
            return
        came = f"a tensor of shape {tuple(result.shape)} and dtype {result.dtype}"
    else:
        came = type(result).__name__
    raise ProxyError(
        "Expected `value(model, batch)` to return a floating-point tensor of shape [N], one "
        f"number per example, got {came} for batch {index}. Do not average over the batch: use "
        "reduction='none' and average over each example's own positions."
    )
