"""The N:M pattern: of each M weights in a row along the inputs the N largest are kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.pruning.patterns import Cut, Pattern, Weights
from sparsitywatch.pruning.selections import WORDS, SelectionCut, sizes_of
from sparsitywatch.weights.spectrum.counting import map_threads

#: Widths of groups whose ranks, a byte each, make up one integer; weights of these at once.
_PACKED, _AT_ONCE = (2, 4, 8), 1 << 18


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
        axes = {name: weights.input_axis(name) for name in weights.shapes}
        sizes = {name: math.prod(shape) for name, shape in weights.shapes.items()}
        ends = {0.0: dict.fromkeys(sizes, 0), 1.0: sizes}
        cuts: list[Cut] = []
        for level in levels:
            found = SelectionCut.counted(level, weights, ends.get(level, removed), self._smallest)
            cuts.append(_GroupCut(**vars(found), keep=self.keep, of=self.of, axes=axes))
        return cuts

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
    kept = np.zeros(len(sizes), np.bool_)
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
    axes: Mapping[str, int]

    def prune(self, name: str, weights: torch.Tensor, out: torch.Tensor) -> None:
        """Write ``weights`` without the removed ones to ``out``."""
        last, into = (tensor.movedim(self.axes[name], -1) for tensor in (weights, out))
        whole = last.shape[-1] // self.of * self.of
        is_packed = self.of in _PACKED and weights.device.type == "cpu" and whole > 0
        if not (is_packed and 0.0 < self.level < 1.0):
            super().prune(name, last, into)
            return
        words = last[..., :whole].contiguous().view(WORDS[weights.dtype.itemsize]).view(-1)
        is_in_place = whole == into.shape[-1] and into.is_contiguous()
        kept = into.view(words.dtype).view(-1) if is_in_place else torch.empty_like(words)
        pieces = (torch.split(tensor, _AT_ONCE) for tensor in (words, kept))
        map_threads(self._prune_piece, [*zip(*pieces, strict=True)], torch.get_num_threads())
        if not is_in_place:
            into[..., :whole] = kept.view(weights.dtype).view(*last.shape[:-1], whole)
            into[..., whole:] = last[..., whole:]

    def _prune_piece(self, piece: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Prune whole groups; as integers: a removed weight is +0, were it infinite."""
        words, out = (tensor.numpy() for tensor in piece)
        sizes = words & words.dtype.type(np.iinfo(words.dtype).max)
        np.multiply(words, _largest(sizes, self.keep, self.of), out=out)
