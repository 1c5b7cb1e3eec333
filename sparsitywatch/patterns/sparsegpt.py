"""SparseGPT: weights go column by column, and those that follow make up for each that goes.

Its authors' code sets weights of features that are never on to zero before it counts, so that more
go than were asked for; here they go first, and count.

Reference: Frantar and Alistarh 2023, arXiv:2301.00774, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch

from sparsitywatch.patterns.cuts import Combination, Cut, Grams, Inputs, Shares, Weights
from sparsitywatch.patterns.selections import (
    CountedCut,
    from_output_rows,
    groups_at,
    smallest,
    to_output_rows,
)
from sparsitywatch.weights.spectrum.magnitude import num_pruned


class Moments(NamedTuple):
    """What the inputs of a layer say of its features."""

    dead: torch.Tensor  # which are never on, bool [in]
    factor: torch.Tensor  # upper Cholesky factor of the inverse of the damped moments, [in, in]

    @classmethod
    def of(cls, products: torch.Tensor, damping: float) -> Moments:
        """Damped by a share of the mean moment of those features that are on."""
        moments = products.to(torch.float64, copy=True)
        diagonal = moments.diagonal()
        dead = diagonal == 0.0
        mean = 1.0 if dead.all() else float(diagonal[~dead].mean())
        diagonal[dead] = mean  # nothing else depends on it
        diagonal += damping * mean
        del diagonal  # so that no more than two matrices are held beside the products
        moments = torch.linalg.cholesky(moments)
        moments = torch.cholesky_inverse(moments)
        moments = torch.linalg.cholesky(moments, upper=True)
        return cls(dead, moments.float())


def updating_cuts(
    pattern: Combination, weights: Weights, levels: Sequence[float], shares: Shares
) -> list[Cut]:
    """Cuts of each tensor's share, or of each group along the inputs."""
    given = cast("Inputs", weights.inputs).products  # ``Pattern.cuts`` has seen to it
    products = given if isinstance(given, Grams) else Grams([[*given]], lambda _: given)
    is_grouped = pattern.structure != "layer"
    orders = {name: _order(weights, name, is_grouped=is_grouped) for name in weights.shapes}

    def moments(name: str) -> Moments:
        def turn(own: torch.Tensor) -> Moments:
            order = orders[name].reshape(-1).to(own.device)
            is_turned = len(orders[name]) > 1
            return Moments.of(own[order][:, order] if is_turned else own, pattern.damping)

        found: Moments = products.turned(name, (pattern.damping, is_grouped), turn)
        return found

    each: list[tuple[Any, ...]] = []
    for level, share in zip(levels, shares, strict=True):
        if is_grouped:
            removed, lost, of = groups_at(pattern, weights, level, share)
        else:
            sizes = {name: math.prod(shape) for name, shape in weights.shapes.items()}
            removed = {name: num_pruned(size, share[name]) for name, size in sizes.items()}
            lost, of = {}, 0
        width = max(pattern.block // of, 1) * of if of else pattern.block
        each.append((removed, removed, lost, of, width))
    return _UpdatingCut.counted(weights, levels, each, moments=moments, orders=orders)


def _order(weights: Weights, name: str, *, is_grouped: bool) -> torch.Tensor:
    """The columns in the order in which they are decided on, [segments, columns]."""
    # groups lie along the inputs: of a convolution at one position of the kernel after another
    shape, axis = weights.shapes[name], weights.input_axis(name)
    width = to_output_rows(torch.empty(shape, device="meta"), axis).shape[1]
    return torch.arange(width).view(shape[axis] if is_grouped and shape else width, -1).T


@dataclass(frozen=True, repr=False)
class _UpdatingCut(CountedCut):
    """Removes weights of a tensor block by block and changes those that follow."""

    to_remove: Mapping[str, int]
    lost: Mapping[str, int]  # of each group, by name of the tensor
    of: int  # weights of a group; 0 where there are none
    width: int  # of a block, whole groups
    moments: Callable[[str], Moments]
    orders: Mapping[str, torch.Tensor]

    def _prune(self, name: str, weights: torch.Tensor, out: torch.Tensor) -> None:
        num = self.to_remove[name]
        if num in (0, weights.numel()):
            out.copy_(weights if num == 0 else torch.zeros_like(weights))
            return
        order = self.orders[name].to(weights.device)
        rows = to_output_rows(weights, self.axes[name]).float()[:, order.reshape(-1)]
        work = _Rows(rows, Moments(*(one.to(weights.device) for one in self.moments(name))))
        if not self.of:
            work.prune_dead(num)
        for start, end in self._blocks(*order.shape):
            if self.of:
                work.prune_groups(start, end, self.lost[name], self.of)
            else:
                work.prune_block(start, end)
        pruned = torch.empty_like(rows)
        pruned[:, order.reshape(-1)] = rows
        out.copy_(from_output_rows(pruned, out.shape, self.axes[name]))

    def _blocks(self, num_segments: int, width: int) -> Iterator[tuple[int, int]]:
        """Where each block begins and ends: none is in two segments."""
        for first in range(0, num_segments * width, width):
            for start in range(first, first + width, self.width):
                yield start, min(start + self.width, first + width)


class _Rows:
    """The rows of a tensor, [outputs, inputs], float32, while weights of them go; in place."""

    def __init__(self, rows: torch.Tensor, moments: Moments) -> None:
        self._rows, (self._dead, self._factor) = rows, moments
        self._on = (~self._dead).cumsum(0).tolist()  # features up to each that are ever on
        self._num_left = self._num_gone = 0

    def prune_dead(self, num: int) -> None:
        """Remove weights of features that are never on, all or ``num``; the rest is for others."""
        own = self._rows[:, self._dead]
        num_dead = min(num, own.numel())
        goes = smallest(own.abs().reshape(1, -1), num_dead).view_as(own)
        self._rows[:, self._dead] = own.masked_fill(goes, 0.0)
        self._num_left = num - num_dead

    def prune_block(self, start: int, end: int) -> None:
        """Remove what costs least of a block: its share of what is left to go."""
        cost = self._cost(start, end)
        cost[:, self._dead[start:end]] = math.inf  # decided on before
        by_now = round(self._num_left * self._on[end - 1] / max(self._on[-1], 1))
        num = min(by_now - self._num_gone, int(cost.isfinite().sum()))
        self._num_gone += num
        goes = smallest(cost.reshape(1, -1), num).view_as(cost)
        self._update(start, end, lambda _: goes)

    def prune_groups(self, start: int, end: int, num: int, of: int) -> None:
        """Remove so many of each group, decided on when its first weight's turn comes."""
        goes = torch.zeros_like(self._rows[:, start:end], dtype=torch.bool)

        def decided(j: int) -> torch.Tensor:
            if j % of == 0 and j + of <= end - start:
                goes[:, j : j + of] = smallest(self._cost(start + j, start + j + of), num)
            return goes

        self._update(start, end, decided)

    def _cost(self, start: int, end: int) -> torch.Tensor:
        """What the layer's output would lose by each weight of some columns."""
        cost = (self._rows[:, start:end] / self._factor.diagonal()[start:end]).square()
        cost[:, self._dead[start:end]] = 0.0
        return cost

    def _update(self, start: int, end: int, goes: Callable[[int], torch.Tensor]) -> None:
        """Remove column after column; those that follow, here and after the block, make up."""
        own, upper = self._rows[:, start:end], self._factor[start:end, start:end]
        errors = torch.zeros_like(own)
        for j in range(end - start):
            column = own[:, j].clone()
            own[:, j] = torch.where(goes(j)[:, j], 0.0, column)
            errors[:, j] = (column - own[:, j]) / upper[j, j]
            own[:, j + 1 :] -= errors[:, j, None] * upper[None, j, j + 1 :]
        self._rows[:, end:] -= errors @ self._factor[start:end, end:]
