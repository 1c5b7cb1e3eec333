"""Criteria that look at what comes into each layer, not at the weights alone: Wanda, SparseGPT.

The inputs are those of the dense model on the proxy's batches, every position of them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import nn

from sparsitywatch.errors import ConfigurationError, MeasurementError, expect_number, expect_whole
from sparsitywatch.pruning.patterns import Cut, Inputs, Pattern, Weights
from sparsitywatch.pruning.selections import (
    CountedCut,
    from_output_rows,
    row_cuts,
    row_shapes,
    smallest,
    to_output_rows,
)
from sparsitywatch.redact import printable
from sparsitywatch.weights.layout import clean_name
from sparsitywatch.weights.spectrum.magnitude import num_pruned


def input_axes(model: nn.Module, names: Sequence[str]) -> dict[str, int]:
    """The axis of each tensor that runs over inputs, where its layer says so."""
    layers = _layers(model, names)
    return {name: axis for name, layer in layers.items() if (axis := _axis(layer)) is not None}


def _axis(layer: nn.Module) -> int | None:
    kinds = {kind.__name__ for kind in type(layer).__mro__}
    if "Conv1D" in kinds or "_ConvTransposeNd" in kinds:  # transformers' linear layer
        return 0
    return 1 if isinstance(layer, nn.Linear) or "_ConvNd" in kinds else None


def _layers(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """The module that holds each parameter."""
    modules = {clean_name(path): module for path, module in model.named_modules()}
    return {name: modules.get(name.rpartition(".")[0], model) for name in names}


def inputs_of(
    model: nn.Module, names: Sequence[str], run: Callable[[], object], *, products: bool = False
) -> Inputs:
    """What comes into the layers of some tensors while ``run`` runs the model.

    A MeasurementError where a layer is of another kind than it says, or nothing came into it.
    """
    num = dict.fromkeys(names, 0)
    squares: dict[str, torch.Tensor] = {}
    found: dict[str, torch.Tensor] = {}

    def note(name: str, layer: nn.Module, args: Any) -> None:
        vectors = _vectors(layer, args[0]).float()
        num[name] += len(vectors)
        added = vectors.square().sum(0)
        squares[name] = squares[name] + added if name in squares else added
        if products:
            added = vectors.T @ vectors
            found[name] = found[name] + added if name in found else added

    with contextlib.ExitStack() as stack, torch.no_grad():
        for name, layer in _layers(model, names).items():
            if _axis(layer) is None or (isinstance(layer, nn.Conv2d) and layer.groups > 1):
                raise MeasurementError(
                    f"Expected {printable(name)!r} to be the weight of a linear layer or of an "
                    f"nn.Conv2d without groups, got one of {type(layer).__name__}. Leave it out of "
                    "`scope`, or choose a pattern that does not ask for inputs."
                )

            stack.callback(layer.register_forward_pre_hook(partial(note, name)).remove)
        run()
    missing = [name for name, count in num.items() if count == 0]
    if missing:
        raise MeasurementError(
            f"Expected inputs of every in-scope layer, got none of {printable(missing[0])!r}"
            f"{f' and {len(missing) - 1} others' if len(missing) > 1 else ''}: the value function "
            "does not call these modules. Leave them out of `scope`."
        )
    return Inputs(num, squares, found)


def _vectors(layer: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """What each output position is made of, [positions, inputs]."""
    if not isinstance(layer, nn.Conv2d):
        return inputs.detach().reshape(-1, inputs.shape[-1])
    padding: Any = layer.padding
    if padding == "same":
        padding = [d * (k - 1) // 2 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    elif padding == "valid":
        padding = 0
    patches = nn.functional.unfold(
        inputs.detach(), layer.kernel_size, layer.dilation, padding, layer.stride
    )
    return patches.transpose(1, 2).reshape(-1, patches.shape[1])


def _inputs(weights: Weights, name: str) -> Inputs:
    if weights.inputs is None:
        raise ConfigurationError(
            f"Expected the inputs of the layers for the pattern {name!r}, got none. Give a proxy: "
            "they are those of its batches."
        )
    return weights.inputs


@dataclass(frozen=True)
class Wanda(Pattern):
    """In each row the weights go whose ``|w|`` times the norm of their input is smallest.

    Args:
        name: what it is called in the provenance.

    Reference: Sun et al. 2023, arXiv:2306.11695, section 3.
    """

    name: str = "wanda"
    needs_inputs = "squares"
    ranks = "alone"

    def cuts(self, weights: Weights, levels: Sequence[float]) -> list[Cut]:
        norms = {n: s.sqrt() for n, s in _inputs(weights, self.name).squares.items()}

        def score(name: str, rows: torch.Tensor) -> torch.Tensor:
            return rows.abs().float() * norms[name].to(rows.device)

        return row_cuts(weights, levels, score)


@dataclass(frozen=True)
class SparseGPT(Pattern):
    """Weights go block by block, and those that follow make up for it.

    Within a block of input features the weights go whose loss would cost the layer's output least,
    by the inverse of the inputs' second moments; the error that each makes is spread over the
    features that come after it. Kept weights change, in the masked model only, so masks of rising
    levels are not nested.

    Args:
        block: input features that are decided on together.
        damping: added to the diagonal of the moments, as a share of its mean.
        name: what it is called in the provenance.

    Reference: Frantar and Alistarh 2023, arXiv:2301.00774, section 3.

    Raises:
        ConfigurationError: ``block`` is less than 1 or ``damping`` not above 0.
    """

    block: int = 128
    damping: float = 0.01
    name: str = "sparsegpt"
    needs_inputs = "products"
    is_nested = False
    ranks = "alone"

    def __post_init__(self) -> None:
        expect_whole("block", self.block, 1)
        expect_number("damping", self.damping, lambda d: 0.0 < d < math.inf, "a share > 0")

    def cuts(self, weights: Weights, levels: Sequence[float]) -> list[Cut]:
        products = _inputs(weights, self.name).products

        @cache  # made when a tensor is first pruned
        def factor(name: str) -> torch.Tensor:
            return _inverse_factor(products[name], self.damping)

        shapes = row_shapes(weights)
        cuts: list[Cut] = []
        for level in levels:
            num_removed = {
                name: sum(num_pruned(num * size, level) for _, size in _blocks(width, self.block))
                for name, (num, width) in shapes.items()
            }
            own = {"block": self.block, "factor": factor}
            cuts.append(_UpdatingCut.counted(level, weights, num_removed, **own))
        return cuts


def _inverse_factor(products: torch.Tensor, damping: float) -> torch.Tensor:
    """The upper Cholesky factor of the inverse of the damped second moments, float32 [in, in]."""
    moments = products.double()
    diagonal = moments.diagonal()
    diagonal[diagonal == 0.0] = 1.0  # a feature that is never on
    diagonal += damping * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    upper: torch.Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper.float()


def _blocks(width: int, size: int) -> Iterator[tuple[int, int]]:
    """Where each block begins, and how many features it has."""
    for start in range(0, width, size):
        yield start, min(size, width - start)


@dataclass(frozen=True, repr=False)
class _UpdatingCut(CountedCut):
    """Removes weights of a tensor block by block and changes those that follow."""

    block: int
    factor: Callable[[str], torch.Tensor]

    def remove(self, name: str, weights: torch.Tensor, out: torch.Tensor) -> None:
        """Write the kept weights, changed, to ``out``."""
        axis = self.axes[name]
        rows = to_output_rows(weights, axis).float().clone()
        factor = self.factor(name).to(rows.device)
        for start, width in _blocks(rows.shape[1], self.block):
            self._prune_block(rows, factor, start, start + width)
        out.copy_(from_output_rows(rows, out.shape, axis))

    def _prune_block(self, rows: torch.Tensor, factor: torch.Tensor, start: int, end: int) -> None:
        own = rows[:, start:end]
        upper = factor[start:end, start:end]
        cost = (own / upper.diagonal()).square().reshape(1, -1)
        goes = smallest(cost, num_pruned(cost.numel(), self.level)).view_as(own)
        errors = torch.zeros_like(own)
        for j in range(end - start):
            column = own[:, j].clone()
            own[:, j] = torch.where(goes[:, j], 0.0, column)
            errors[:, j] = (column - own[:, j]) / upper[j, j]
            own[:, j + 1 :] -= errors[:, j, None] * upper[None, j, j + 1 :]
        rows[:, end:] -= errors @ factor[start:end, end:]
