"""Cuts that choose within the rows of a tensor, or within groups of a row (N:M).

How many weights go follows from the shapes, exactly: ties fall by their index. A row is what one
output is made of: all inputs of an nn.Linear's output feature, all inputs and positions of a
convolution's output channel.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sparsitywatch.patterns.cuts import Combination, Cut, Scores, Shares, Weights
from sparsitywatch.weights.spectrum.counting import map_threads
from sparsitywatch.weights.spectrum.magnitude import num_pruned

#: So many weights of whole rows at once: fewer than torch shares out among threads of its own.
_ROWS_AT_ONCE = (1 << 15) - 1
#: Widths of groups whose ranks, a byte each, make up one integer; weights of these at once.
_PACKED, _GROUPS_AT_ONCE = (2, 4, 8), 1 << 18
#: Signed integers of the width of a weight.
WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, repr=False)
class CountedCut(Cut):
    """Removes of each tensor a number of weights that is known beforehand."""

    axes: Mapping[str, int]  # of each tensor the one that runs over inputs

    @classmethod
    def counted(
        cls, weights: Weights, levels: Sequence[float], each: Sequence[tuple[Any, ...]], **rest: Any
    ) -> list[Cut]:
        """A cut for each level, from how many weights of each tensor go, and further fields."""
        sizes = {name: own.num_weights for name, own in weights.spectrum.histograms.items()}
        axes = {name: weights.input_axis(name) for name in weights.shapes}
        cuts: list[Cut] = []
        for level, (removed, *own) in zip(levels, each, strict=True):
            shares = {name: removed[name] / max(size, 1) for name, size in sizes.items()}
            sparsity = sum(removed.values()) / max(sum(sizes.values()), 1)
            cuts.append(cls(level, sparsity, shares, axes, *own, **rest))
        return cuts

    def prune(self, name: str, weights: torch.Tensor, out: torch.Tensor) -> None:
        if self.level >= 1.0:
            out.zero_()
        elif self.level <= 0.0:
            out.copy_(weights)
        else:
            self._prune(name, weights, out)

    @abstractmethod
    def _prune(self, name: str, weights: torch.Tensor, out: torch.Tensor) -> None:
        """The same at a level between 0 and 1."""


def to_output_rows(tensor: torch.Tensor, input_axis: int) -> torch.Tensor:
    """A view or copy, [outputs, inputs]: one row for what each output is made of."""
    # what follows the second axis belongs to the inputs, as the positions of a convolution's kernel
    if tensor.ndim < 2:
        return tensor.reshape(1, -1)
    if input_axis == tensor.ndim - 1:  # also experts, [experts, outputs, inputs]
        return tensor.reshape(-1, tensor.shape[-1])
    return (tensor if input_axis == 1 else tensor.transpose(0, 1)).flatten(1)


def smallest(scores: torch.Tensor, num: int) -> torch.Tensor:
    """The ``num`` smallest, none below 0, of each row; of equal ones the first; never NaN."""
    if num <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if scores.device.type == "cpu":
        return _smallest_on_cpu(scores, num)
    scores = torch.nan_to_num(scores, nan=math.inf, posinf=math.inf)
    limit = scores.kthvalue(num, dim=1, keepdim=True).values
    below, at = scores < limit, scores == limit
    missing = num - below.sum(1, keepdim=True)
    return below | (at & (at.cumsum(1) <= missing))


def _smallest_on_cpu(scores: torch.Tensor, num: int) -> torch.Tensor:
    """The same by numpy's partition, some four times as fast as torch's kthvalue."""
    sizes = sizes_of(scores.contiguous()).numpy()
    limit = np.partition(sizes, num - 1, axis=1)[:, num - 1 : num]
    chosen: np.ndarray = sizes <= limit
    if np.count_nonzero(chosen) > num * len(sizes):
        tied = np.flatnonzero(np.count_nonzero(chosen, axis=1) > num)
        below, at = sizes[tied] < limit[tied], sizes[tied] == limit[tied]
        missing = num - below.sum(1, keepdims=True)
        chosen[tied] = below | (at & (at.cumsum(1) <= missing))
    return torch.from_numpy(chosen)


def sizes_of(weights: torch.Tensor) -> torch.Tensor:
    """Magnitudes as integers: in the same order, and NaN beyond all."""
    words = weights.view(WORDS[weights.dtype.itemsize])
    return words & ((1 << (8 * words.itemsize - 1)) - 1)


# ------------------------------------------------------------------ rows


def row_cuts(
    _: Combination, weights: Weights, levels: Sequence[float], shares: Shares, scores: Scores
) -> list[Cut]:
    """Cuts that remove its tensor's share of each row, of the lowest scores."""
    shapes = {
        name: to_output_rows(torch.empty(shape, device="meta"), weights.input_axis(name)).shape
        for name, shape in weights.shapes.items()
    }
    each = []
    for share in shares:
        of_row = {name: num_pruned(width, share[name]) for name, (_, width) in shapes.items()}
        each.append(({name: num * of_row[name] for name, (num, _) in shapes.items()}, of_row))
    return _RowCut.counted(weights, levels, each, scores=scores)


@dataclass(frozen=True, repr=False)
class _RowCut(CountedCut):
    """Selects from rows alone; on the CPU some at a time, so that they stay in a core's cache."""

    of_row: Mapping[str, int]  # how many of each row go
    scores: Scores

    def _prune(self, name: str, weights: torch.Tensor, out: torch.Tensor) -> None:
        rows, into = (to_output_rows(tensor, self.axes[name]) for tensor in (weights, out))
        score = None if self.scores is None else self.scores(name)
        at_once = max(1, _ROWS_AT_ONCE // max(1, rows.shape[1]) if weights.is_cpu else len(rows))

        def remove_piece(start: int) -> None:
            at = slice(start, start + at_once)
            with torch.no_grad():  # which each thread has to say
                # not every device has arithmetic of 8 bits
                own = rows[at].float() if rows.itemsize == 1 else rows[at]
                worth = own.abs() if score is None else score(own, at)
                keep_bits(rows[at], smallest(worth, self.of_row[name]).logical_not_(), into[at])

        map_threads(remove_piece, range(0, len(rows), at_once), torch.get_num_threads())
        if into.data_ptr() != out.data_ptr():  # a copy
            out.copy_(from_output_rows(into, out.shape, self.axes[name]))


def keep_bits(weights: torch.Tensor, stays: torch.Tensor, out: torch.Tensor) -> None:
    """As integers: a removed weight is +0, were it infinite."""
    words = WORDS[weights.dtype.itemsize]
    torch.mul(weights.view(words), stays, out=out.view(words))


def from_output_rows(rows: torch.Tensor, shape: Sequence[int], input_axis: int) -> torch.Tensor:
    """What ``to_output_rows`` made, back in the shape of the tensor."""
    if len(shape) < 2 or input_axis == len(shape) - 1 or input_axis == 1:
        return rows.reshape(*shape)
    return rows.reshape(shape[1], shape[0], *shape[2:]).transpose(0, 1)


# ------------------------------------------------------------------ N of M


def group_cuts(
    pattern: Combination, weights: Weights, levels: Sequence[float], shares: Shares, scores: Scores
) -> list[Cut]:
    """Cuts that keep as many of each group of a tensor, along the inputs, of highest scores."""
    each = [groups_at(pattern, weights, *one) for one in zip(levels, shares, strict=True)]
    return _GroupCut.counted(weights, levels, each, scores=scores)


def groups_at(
    pattern: Combination, weights: Weights, level: float, share: Mapping[str, float]
) -> tuple[dict[str, int], dict[str, int], int]:
    """How many go of each tensor, and of each group of it, of how many."""
    # between 0 and 1 as many at every level, or, of N:M as a curve, what is nearest to the level
    keep, _, text = pattern.structure.partition(":")
    of, groups = int(text), {}
    for name, shape in weights.shapes.items():
        inputs = shape[weights.input_axis(name)] if shape else 1
        groups[name] = inputs // of * (math.prod(shape) // max(inputs, 1))
    if pattern.allocation == "uniform":
        lost = dict.fromkeys(groups, num_pruned(of, level) if keep == "n" else of - int(keep))
    else:
        lost = _in_whole({name: of * share[name] for name in groups}, groups)
    if level <= 0.0 or level >= 1.0:
        sizes = {name: math.prod(shape) for name, shape in weights.shapes.items()}
        return sizes if level >= 1.0 else dict.fromkeys(sizes, 0), lost, of
    return {name: num * lost[name] for name, num in groups.items()}, lost, of


def _in_whole(wanted: Mapping[str, float], groups: Mapping[str, int]) -> dict[str, int]:
    """Whole numbers that in all groups come nearest to what is wanted: up where most is missing."""
    found = {name: math.floor(number + 1e-9) for name, number in wanted.items()}
    left = sum((wanted[name] - found[name]) * groups[name] for name in found)
    # in whatever order tensors come: a tie falls by the name
    for name in sorted(found, key=lambda name: (round(found[name] - wanted[name], 9), name)):
        if found[name] + 1e-9 < wanted[name] and groups[name] <= 2.0 * left:
            found[name], left = found[name] + 1, left - groups[name]
    return found


def _largest(sizes: np.ndarray, keep: int, of: int) -> np.ndarray:
    """Which, int [N], are among the ``keep`` largest of their group; of equal ones the last."""
    # each is compared with those after it, all at once. A group's ranks are the bytes of one
    # integer: what one gains and another loses is that integer times a constant
    kept = np.empty(len(sizes), np.bool_)
    larger = kept.view(f"<u{of}")
    integer = larger.dtype.type
    # were all alike, each would exceed those before it
    ranks = np.full(len(larger), sum(place << 8 * place for place in range(of)), larger.dtype)
    for apart in range(1, of):
        np.greater(sizes[:-apart], sizes[apart:], out=kept[:-apart])
        larger &= integer(sum(1 << 8 * place for place in range(of - apart)))
        larger *= integer((1 - (1 << 8 * apart)) % (1 << 8 * of))
        ranks += larger
    return np.greater_equal(ranks.view(np.uint8), of - keep, out=kept)


@dataclass(frozen=True, repr=False)
class _GroupCut(CountedCut):
    """Selects along the axis of each tensor that runs over inputs."""

    lost: Mapping[str, int]  # of each group, by name of the tensor
    of: int
    scores: Scores

    def _prune(self, name: str, weights: torch.Tensor, out: torch.Tensor) -> None:
        axis, worth = self.axes[name], weights
        if self.scores is not None:
            found = self.scores(name)(to_output_rows(weights, axis), slice(None))
            worth = from_output_rows(found, weights.shape, axis)
        last, by, into = (tensor.movedim(axis, -1) for tensor in (weights, worth, out))
        whole = last.shape[-1] // self.of * self.of
        if self.of not in _PACKED or not weights.is_cpu or whole == 0:
            keep_bits(last, self._stays(by, whole, self.lost[name]), into)
            return
        words, sizes = (
            tensor[..., :whole].contiguous().view(WORDS[tensor.dtype.itemsize]).view(-1)
            for tensor in (last, by)
        )
        is_in_place = whole == into.shape[-1] and into.is_contiguous()
        kept = into.view(words.dtype).view(-1) if is_in_place else torch.empty_like(words)
        pieces = (torch.split(tensor, _GROUPS_AT_ONCE) for tensor in (words, sizes, kept))

        def prune(piece: tuple[torch.Tensor, ...]) -> None:
            """Prune whole groups; as integers: a removed weight is +0, were it infinite."""
            words, by, out = (tensor.numpy() for tensor in piece)
            # all in the memory of ``out``: that of a new array is mapped for each piece anew
            space = out if by.dtype == out.dtype else None
            sizes = np.bitwise_and(by, by.dtype.type(np.iinfo(by.dtype).max), out=space)
            out[:] = _largest(sizes, self.of - self.lost[name], self.of)
            out *= words

        map_threads(prune, [*zip(*pieces, strict=True)], torch.get_num_threads())
        if not is_in_place:
            into[..., :whole] = kept.view(weights.dtype).view(*last.shape[:-1], whole)
            into[..., whole:] = last[..., whole:]

    def _stays(self, worth: torch.Tensor, whole: int, lost: int) -> torch.Tensor:
        """Which stay of groups along the last axis, bool; of equal ones the last."""
        stays = torch.ones(worth.shape, dtype=torch.bool, device=worth.device)
        lanes = stays[..., :whole].view(*worth.shape[:-1], -1, self.of)
        groups = sizes_of(worth[..., :whole]).view(lanes.shape).unbind(-1)
        # how many of its group each weight exceeds, for each place in a group
        ranks = [torch.zeros_like(lane, dtype=torch.int8) for lane in groups]
        for i in range(self.of):
            for j in range(i):
                first_is_larger = (groups[j] > groups[i]).view(torch.int8)
                ranks[j] += first_is_larger
                ranks[i] += 1
                ranks[i] -= first_is_larger
        for place, rank in enumerate(ranks):
            lanes[..., place] = rank >= lost
        return stays
