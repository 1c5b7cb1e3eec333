"""Patterns that choose within the rows of a tensor, within groups of a row (N:M), or at random.

How many weights go follows from the shapes, exactly: ties fall by their index. A row is what one
output is made of: all inputs of an nn.Linear's output feature, all inputs and positions of a
convolution's output channel.
"""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.pruning.patterns import Cut, Pattern, Weights
from sparsitywatch.weights.spectrum.counting import map_threads
from sparsitywatch.weights.spectrum.magnitude import num_pruned

#: So many weights are looked at, or numbers drawn, at once: they stay in a core's cache.
_AT_ONCE = 1 << 17
#: So many weights of whole rows at once: fewer than torch shares out among threads of its own.
_ROWS_AT_ONCE = (1 << 15) - 1
#: Widths of groups whose ranks, a byte each, make up one integer; weights of these at once.
_PACKED, _GROUPS_AT_ONCE = (2, 4, 8), 1 << 18
#: Signed integers of the width of a weight.
WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, repr=False)
class CountedCut(Cut):
    """Removes of each tensor as many weights as its shape says."""

    axes: Mapping[str, int]  # of each tensor the one that runs over inputs

    @classmethod
    def counted(
        cls, level: float, weights: Weights, num_removed: Mapping[str, int], **fields: Any
    ) -> CountedCut:
        """A cut from how many weights it removes of each tensor."""
        sizes = {name: math.prod(shape) for name, shape in weights.shapes.items()}
        shares = {name: num_removed[name] / size if size else 0.0 for name, size in sizes.items()}
        sparsity = sum(num_removed.values()) / max(sum(sizes.values()), 1)
        axes = {name: weights.input_axis(name) for name in sizes}
        return cls(level, sparsity, shares, axes, **fields)

    def prune(self, name: str, weights: torch.Tensor, out: torch.Tensor) -> None:
        if self.level <= 0.0:
            out.copy_(weights)
        elif self.level >= 1.0:
            out.zero_()
        else:
            self.remove(name, weights, out)

    @abstractmethod
    def remove(self, name: str, weights: torch.Tensor, out: torch.Tensor) -> None:
        """The same where neither all nor none are removed."""


@dataclass(frozen=True, repr=False)
class SelectionCut(CountedCut):
    """Removes the weights that ``select`` marks, given a tensor's name and weights."""

    select: Callable[[str, torch.Tensor], torch.Tensor]

    def remove(self, name: str, weights: torch.Tensor, out: torch.Tensor) -> None:
        """As integers: a removed weight is +0, were it infinite."""
        words = WORDS[weights.dtype.itemsize]
        stays = self.select(name, weights).logical_not_()
        torch.mul(weights.view(words), stays, out=out.view(words))


def to_output_rows(tensor: torch.Tensor, input_axis: int) -> torch.Tensor:
    """A view or copy, [outputs, inputs]: one row for what each output is made of.

    What follows the second axis belongs to the inputs, as the positions of a convolution's kernel.
    """
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


@dataclass(frozen=True)
class PerRow(Pattern):
    """The same sparsity in each row: its smallest weights go.

    Args:
        name: what it is called in the provenance.
    """

    name: str = "per_row"

    def cuts(self, weights: Weights, levels: Sequence[float]) -> list[Cut]:
        return row_cuts(weights, levels, lambda _, rows: rows.abs())


def row_cuts(
    weights: Weights, levels: Sequence[float], score: Callable[[str, torch.Tensor], torch.Tensor]
) -> list[Cut]:
    """Cuts that remove the same share of each row: of the lowest ``score``, float like the rows."""
    shapes = row_shapes(weights)
    cuts: list[Cut] = []
    for level in levels:
        num_removed = {n: num * num_pruned(width, level) for n, (num, width) in shapes.items()}

        def select(name: str, rows: torch.Tensor, level: float = level) -> torch.Tensor:
            return smallest(score(name, rows), num_pruned(rows.shape[1], level))

        cuts.append(_RowCut.counted(level, weights, num_removed, select=select))
    return cuts


def row_shapes(weights: Weights) -> dict[str, tuple[int, int]]:
    """How many rows each tensor has, and of how many weights each."""
    found = {}
    for name, shape in weights.shapes.items():
        rows = to_output_rows(torch.empty(shape, device="meta"), weights.input_axis(name))
        found[name] = rows.shape[0], rows.shape[1]
    return found


@dataclass(frozen=True, repr=False)
class _RowCut(SelectionCut):
    """Selects from rows alone; on the CPU some at a time, so that they stay in a core's cache."""

    def remove(self, name: str, weights: torch.Tensor, out: torch.Tensor) -> None:
        """Along the rows, however the tensor has them."""
        rows, into = (to_output_rows(tensor, self.axes[name]) for tensor in (weights, out))
        at_once = _ROWS_AT_ONCE // max(1, rows.shape[1]) if weights.is_cpu else len(rows)
        pieces = (torch.split(tensor, max(1, at_once)) for tensor in (rows, into))

        def remove_piece(piece: tuple[torch.Tensor, torch.Tensor]) -> None:
            with torch.no_grad():  # which each thread has to say
                SelectionCut.remove(self, name, *piece)

        map_threads(remove_piece, list(zip(*pieces, strict=True)), torch.get_num_threads())
        if into.data_ptr() != out.data_ptr():  # a copy
            out.copy_(from_output_rows(into, out.shape, self.axes[name]))


def from_output_rows(rows: torch.Tensor, shape: Sequence[int], input_axis: int) -> torch.Tensor:
    """What ``to_output_rows`` made, back in the shape of the tensor."""
    if len(shape) < 2 or input_axis == len(shape) - 1 or input_axis == 1:
        return rows.reshape(*shape)
    return rows.reshape(shape[1], shape[0], *shape[2:]).transpose(0, 1)


# ------------------------------------------------------------------ at random


@dataclass(frozen=True)
class Random(Pattern):
    """Weights go at random, each with the same probability: what any criterion has to beat.

    The same weights go at every snapshot, by the seed and the name of their tensor.

    Args:
        name: what it is called in the provenance.
    """

    name: str = "random"

    def cuts(self, weights: Weights, levels: Sequence[float]) -> list[Cut]:
        return _random_cuts(weights, levels, [dict.fromkeys(weights.shapes, p) for p in levels])


@dataclass(frozen=True)
class RandomERK(Pattern):
    """Weights go at random, more of them in large tensors: densities by Erdős-Rényi kernels.

    The density of a tensor is in proportion to the sum of its dimensions over their product, at
    most 1: the random baseline of the paper's code.

    Args:
        name: what it is called in the provenance.

    Reference: Evci et al. 2020, arXiv:1911.11134, section 3.
    """

    name: str = "erk"

    def cuts(self, weights: Weights, levels: Sequence[float]) -> list[Cut]:
        return _random_cuts(weights, levels, [_erk(weights.shapes, level) for level in levels])


def _erk(shapes: Mapping[str, tuple[int, ...]], level: float) -> dict[str, float]:
    """The probability of each tensor's weights to go, so that ``level`` of all do."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / max(sizes[name], 1) for name, shape in shapes.items()}
    full: set[str] = set()  # tensors that keep everything
    while True:
        left = (1.0 - level) * sum(sizes.values()) - sum(sizes[name] for name in full)
        rest = sum(raw[name] * sizes[name] for name in shapes.keys() - full)
        scale = max(left, 0.0) / rest if rest else 0.0
        over = {name for name in shapes.keys() - full if scale * raw[name] > 1.0}
        if not over:
            return {name: 0.0 if name in full else 1.0 - scale * raw[name] for name in shapes}
        full |= over


def _random_cuts(
    weights: Weights, levels: Sequence[float], probabilities: Sequence[Mapping[str, float]]
) -> list[Cut]:
    """Cuts whose probability of each tensor's weights to go is given, counted."""
    counts = [dict.fromkeys(weights.shapes, 0) for _ in levels]
    for name, shape in weights.shapes.items():
        for _, draws in _draws(name, math.prod(shape), weights.seed):
            for num_removed, chance in zip(counts, probabilities, strict=True):
                num_removed[name] += int(np.count_nonzero(draws < chance[name]))
    cuts: list[Cut] = []
    for level, chance, num_removed in zip(levels, probabilities, counts, strict=True):

        def select(
            name: str, dense: torch.Tensor, chance: Mapping[str, float] = chance
        ) -> torch.Tensor:
            drawn = torch.empty(dense.shape, dtype=torch.bool, device="cpu")
            flat = drawn.reshape(-1).numpy()
            for start, draws in _draws(name, dense.numel(), weights.seed):
                flat[start : start + len(draws)] = draws < chance[name]
            return drawn.to(dense.device)

        cuts.append(SelectionCut.counted(level, weights, num_removed, select=select))
    return cuts


def _draws(name: str, num: int, seed: int) -> Iterator[tuple[int, np.ndarray]]:
    """Uniform numbers in [0, 1) for each weight of a tensor, with where each piece begins."""
    key = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(key, "little")))
    for start in range(0, num, _AT_ONCE):
        yield start, generator.random(min(_AT_ONCE, num - start), dtype=np.float32)


# ------------------------------------------------------------------ N of M


@dataclass(frozen=True)
class KeepNM(Pattern):
    """Of each M weights in a row along the inputs, the N largest are kept.

    The paper's 2:4 keeps two of four; its text and its code differ on what 1:4 is, so the name says
    what is kept. A rest of fewer than M inputs is left whole. It is one point, not a curve.

    Args:
        keep: N, at least 0.
        of: M, more than N.

    Reference: Jaiswal et al. 2023, arXiv:2306.03805, section 4 (N:M sparsity).

    Raises:
        ConfigurationError: not 0 <= N < M.

    >>> KeepNM(2, 4).name
    'keep_2_of_4'
    """

    keep: int
    of: int
    name: str = field(init=False)
    levels: tuple[float, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not (type(self.keep) is int and type(self.of) is int and 0 <= self.keep < self.of):
            raise ConfigurationError(
                "Expected `keep` and `of` to be whole numbers, 0 <= keep < of, got "
                f"{self.keep!r} and {self.of!r}. KeepNM(2, 4) keeps two of four."
            )
        object.__setattr__(self, "name", f"keep_{self.keep}_of_{self.of}")
        object.__setattr__(self, "levels", (1.0 - self.keep / self.of,))

    def cuts(self, weights: Weights, levels: Sequence[float]) -> list[Cut]:
        """One cut per level; at every level between 0 and 1 the same one."""
        removed = {}
        for name, shape in weights.shapes.items():
            inputs = shape[weights.input_axis(name)] if shape else 1
            groups = inputs // self.of * (math.prod(shape) // max(inputs, 1))
            removed[name] = groups * (self.of - self.keep)
        sizes = {name: math.prod(shape) for name, shape in weights.shapes.items()}
        ends = {0.0: dict.fromkeys(sizes, 0), 1.0: sizes}
        own = {"select": self._smallest, "keep": self.keep, "of": self.of}
        return [
            _GroupCut.counted(level, weights, ends.get(level, removed), **own) for level in levels
        ]

    def _smallest(self, _: str, weights: torch.Tensor) -> torch.Tensor:
        """Which go of groups along the last axis, bool; of equal ones the first."""
        whole = weights.shape[-1] // self.of * self.of
        goes = torch.zeros(weights.shape, dtype=torch.bool, device=weights.device)
        lanes = goes[..., :whole].view(*weights.shape[:-1], -1, self.of)
        groups = sizes_of(weights[..., :whole]).view(lanes.shape).unbind(-1)
        for place, num_exceeded in enumerate(_num_exceeded(groups)):
            lanes[..., place] = num_exceeded < self.of - self.keep
        return goes


def _largest(sizes: np.ndarray, keep: int, of: int) -> np.ndarray:
    """Which, int [N], are among the ``keep`` largest of their group; of equal ones the last.

    Each is compared with those after it, all at once. A group's ranks are the bytes of one integer:
    what one gains and another loses is that integer times a constant.
    """
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


def _num_exceeded(sizes: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """How many of its group each weight exceeds, int8, for each place in a group."""
    ranks = [torch.zeros_like(lane, dtype=torch.int8) for lane in sizes]
    for i in range(len(sizes)):
        for j in range(i):
            first_is_larger = (sizes[j] > sizes[i]).view(torch.int8)
            ranks[j] += first_is_larger
            ranks[i] += 1
            ranks[i] -= first_is_larger
    return ranks


@dataclass(frozen=True, repr=False)
class _GroupCut(SelectionCut):
    """Selects along the axis of each tensor that runs over inputs."""

    keep: int
    of: int

    def remove(self, name: str, weights: torch.Tensor, out: torch.Tensor) -> None:
        """Along the inputs; on the CPU whole groups at once where that can be done."""
        last, into = (tensor.movedim(self.axes[name], -1) for tensor in (weights, out))
        whole = last.shape[-1] // self.of * self.of
        if self.of not in _PACKED or not weights.is_cpu or whole == 0:
            super().remove(name, last, into)
            return
        words = last[..., :whole].contiguous().view(WORDS[weights.dtype.itemsize]).view(-1)
        is_in_place = whole == into.shape[-1] and into.is_contiguous()
        kept = into.view(words.dtype).view(-1) if is_in_place else torch.empty_like(words)
        pieces = (torch.split(tensor, _GROUPS_AT_ONCE) for tensor in (words, kept))
        map_threads(self._prune_piece, [*zip(*pieces, strict=True)], torch.get_num_threads())
        if not is_in_place:
            into[..., :whole] = kept.view(weights.dtype).view(*last.shape[:-1], whole)
            into[..., whole:] = last[..., whole:]

    def _prune_piece(self, piece: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Prune whole groups; as integers: a removed weight is +0, were it infinite."""
        words, out = (tensor.numpy() for tensor in piece)
        # all in the memory of ``out``: that of a new array is mapped for each piece anew
        sizes = np.bitwise_and(words, words.dtype.type(np.iinfo(words.dtype).max), out=out)
        out[:] = _largest(sizes, self.keep, self.of)
        out *= words
