"""Whole tensors cut into the pieces that ranks hold of them, in many ways."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st

from sparsitywatch.ranks.protocol import Ranks
from sparsitywatch.ranks.reading import ShardBox, ShardedReader, Shards
from sparsitywatch.records import LedgerEntry
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import Snapshot

Spread = dict[str, list[ShardBox]]  # of each tensor, by rank
_WORDS = {torch.float32: np.uint32, torch.bfloat16: np.uint16, torch.float16: np.uint16}
#: Bits that are met too seldom by chance: zeros, the smallest, infinities, NaN, and their signs.
_ODD = {
    torch.float32: [0, 1, 0x7F800000, 0x7FC00000, 0x7F7FFFFF, 0xFF800000, 0xFFC00001, 0x80000000],
    torch.bfloat16: [0, 1, 0x7F80, 0x7FC0, 0x7F7F, 0xFF80, 0xFFC1, 0x8000],
    torch.float16: [0, 1, 0x7C00, 0x7E00, 0x7BFF, 0xFC00, 0xFE01, 0x8000],
}


@dataclass(frozen=True)
class Spreading:
    """Tensors, and the piece that each of ``size`` ranks holds of each."""

    size: int
    tensors: dict[str, torch.Tensor]
    spread: Spread

    @property
    def scope(self) -> Scope:
        kept = {"in_scope": True, "reason": "", "aliases": ()}
        return Scope(
            tuple(
                LedgerEntry(name=name, shape=tuple(t.shape), num_weights=t.numel(), **kept)
                for name, t in self.tensors.items()
            )
        )

    @property
    def whole(self) -> Snapshot:
        return Snapshot(0, self.scope, self.tensors)

    def of_rank(self, rank: int) -> Snapshot:
        """What one rank holds, in memory of its own."""
        held = {
            name: cut_out(t, self.spread[name][rank]).clone() for name, t in self.tensors.items()
        }
        return Snapshot(0, self.scope, held)

    def shards(self, rank: int) -> Shards:
        return Shards(pieces_by_rank(self.spread, self.size), rank)

    def reader(self, ranks: Ranks) -> ShardedReader:
        return ShardedReader(self.shards(ranks.rank), ranks, num_threads=1)


def pieces_by_rank(spread: Spread, size: int) -> list[dict[str, ShardBox]]:
    return [{name: pieces[rank] for name, pieces in spread.items()} for rank in range(size)]


def cut_out(tensor: torch.Tensor, piece: ShardBox) -> torch.Tensor:
    return tensor[slices(piece)]


def slices(piece: ShardBox) -> tuple[slice, ...]:
    return tuple(slice(o, o + s) for o, s in zip(piece.offset, piece.shape, strict=True))


def whole_of(shape: tuple[int, ...]) -> ShardBox:
    return ShardBox(shape, (0,) * len(shape), shape)


def nothing_of(shape: tuple[int, ...]) -> ShardBox:
    return ShardBox(shape, (0,) * len(shape), (0,) * len(shape))


def parts(draw: st.DrawFn, piece: ShardBox, num: int) -> list[ShardBox]:
    """``num`` pieces that make up one, side by side in one dimension; some may be empty."""
    axis = draw(st.integers(0, len(piece.shape) - 1))
    cuts = sorted(draw(st.integers(0, piece.shape[axis])) for _ in range(num - 1))
    found = []
    for begin, end in zip([0, *cuts], [*cuts, piece.shape[axis]], strict=True):
        offset, shape = list(piece.offset), list(piece.shape)
        offset[axis], shape[axis] = piece.offset[axis] + begin, end - begin
        is_empty = end == begin
        found.append(
            nothing_of(piece.whole) if is_empty else ShardBox(piece.whole, (*offset,), (*shape,))
        )
    return found


def pieces_of(draw: st.DrawFn, shape: tuple[int, ...], size: int) -> list[ShardBox]:
    """What each rank holds of one tensor: all of it, a part, a part of a part, or what others do.

    As of DTensors there is a dimension of the mesh for each factor of ``size``.
    """
    held = [whole_of(shape)]
    for factor in {1: [], 2: [2], 3: [3], 4: draw(st.sampled_from([[4], [2, 2]]))}[size]:
        is_cut = shape != () and draw(st.booleans())
        among = {
            piece: parts(draw, piece, factor) if is_cut and piece.num_weights else [piece] * factor
            for piece in dict.fromkeys(held)  # replicas are cut alike
        }
        held = [part for piece in held for part in among[piece]]
    return held


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, ...]:
    return tuple(draw(st.lists(st.integers(1, 5), max_size=3)))


@st.composite
def boxes(draw: st.DrawFn) -> ShardBox:
    """A box of a tensor; of none of its weights, too."""
    whole = tuple(draw(st.lists(st.integers(0, 5), max_size=4)))
    ends = [sorted((draw(st.integers(0, n)), draw(st.integers(0, n)))) for n in whole]
    return ShardBox(whole, tuple(a for a, _ in ends), tuple(b - a for a, b in ends))


@st.composite
def spreadings(
    draw: st.DrawFn, sizes: tuple[int, ...] = (1, 2, 3, 4), num_tensors: int = 4
) -> Spreading:
    size = draw(st.sampled_from(sizes))
    tensors, spread = {}, {}
    for index in range(draw(st.integers(1, num_tensors))):
        name, shape = f"layers.{index}.weight", draw(shapes())
        tensors[name] = draw(filled(shape))
        spread[name] = pieces_of(draw, shape, size)
    return Spreading(size, tensors, spread)


@st.composite
def filled(draw: st.DrawFn, shape: tuple[int, ...]) -> torch.Tensor:
    """Any bits at all, the odd ones often."""
    dtype = draw(st.sampled_from([*_WORDS]))
    kind, num = _WORDS[dtype], int(np.prod(shape))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    words = random.integers(0, np.iinfo(kind).max, num, kind, endpoint=True)
    is_odd = random.random(num) < draw(st.sampled_from([0.0, 0.3]))
    words[is_odd] = random.choice(np.array(_ODD[dtype], kind), int(is_odd.sum()))
    signed = words.view(f"i{words.itemsize}")
    return torch.from_numpy(signed).view(dtype).reshape(shape)


def bits_of(tensor: torch.Tensor) -> list[int]:
    """The words of a tensor: NaN equals NaN, and 0.0 is not -0.0."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()
