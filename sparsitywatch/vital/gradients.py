"""How large the gradients are, tensor by tensor: every element of each is counted, where it lies.

A sample would miss a row that holds most of a gradient, as of a table of tokens. They are read as
the step has left them: unscaled by a GradScaler, added up over the micro-batches, after any clip.
Arrays are [T], by tensor.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sparsitywatch.ranks.reading import ShardedReader
from sparsitywatch.records import BlockGradient, Gradient
from sparsitywatch.records.run import block_of
from sparsitywatch.vital.judgement import TensorFacts
from sparsitywatch.weights.sharded import Tensors, kept_for, stepped_on
from sparsitywatch.weights.snapshot import float64_of

#: Snapshots whose norms are remembered; elements that are counted at once, and on a device: so
#: many that float32 counts them all.
_NUM_PAST, _CHUNK, _ON_DEVICE = 8, 1 << 17, 1 << 24
#: Mean squares of float32 that its own arithmetic adds up.
_LEAST, _MOST = 1e-30, 1e30


@dataclass(frozen=True)
class GradientSums:
    """What all ranks together hold of the gradients of one step."""

    names: tuple[str, ...]  # of T tensors that an optimizer steps on itself
    squares: np.ndarray  # sum of squares
    nonzero: np.ndarray  # elements that are not 0
    num: np.ndarray  # elements; 0 without a gradient
    before_clip: float = math.nan

    @classmethod
    def of(
        cls, parameters: Tensors, names: Sequence[str], reader: ShardedReader, before_clip: float
    ) -> GradientSums:
        """Those of some parameters; one rank counts what several hold."""
        counted = np.zeros((len(names), 3))
        with reader.ranks.all_or_none("sizes of gradients"):
            # first what ranks do together: nothing that may fail on one of them alone
            helds = [
                _split_as(parameters[name], stepped_on(parameters[name]).grad) for name in names
            ]
            parts = {}
            for i, (name, held) in enumerate(zip(names, helds, strict=True)):
                part = None if held is None else _part_of(parameters[name], held)
                if part is not None and reader.counts(name):
                    parts[i], counted[i, 2] = part
            _count(parts, counted)
        squares, nonzero, num = reader.added(counted).T
        return cls(tuple(names), squares, nonzero, num, before_clip)


def _split_as(tensor: torch.Tensor, held: Any) -> torch.Tensor | None:
    """A gradient in the same parts as its tensor: each rank may hold a summand of the whole."""
    # as of a norm in sequence parallel; so the optimizer adds them up, too
    placements = getattr(tensor, "placements", None)
    if getattr(held, "placements", placements) != placements:
        held = None if placements is None else held.redistribute(placements=placements)
    found: torch.Tensor | None = held
    return found


def _part_of(tensor: torch.Tensor, held: torch.Tensor) -> tuple[torch.Tensor, int] | None:
    """What this rank holds of a gradient, and of how many elements; None if it is split otherwise.

    All but what it holds is zero, as of a sparse one. In the order of memory, as real numbers.
    """
    if held.layout is torch.sparse_coo:  # an element that comes twice is the sum of both
        part: torch.Tensor | None = held.coalesce().values()
    else:
        part = kept_for(tensor, held)
    if part is None or part.is_meta:
        return None
    part = torch.view_as_real(part.resolve_conj()) if part.is_complex() else part
    order = sorted(range(part.dim()), key=part.stride, reverse=True)
    flat = part.detach().permute(order).reshape(-1)  # a view, if there are no gaps
    return flat, flat.numel() if held.layout is torch.strided else held.numel()


@torch.no_grad()
def _count(parts: Mapping[int, torch.Tensor], found: np.ndarray) -> None:
    """Put the sum of squares, and the elements other than 0, of each into its row."""
    there: dict[torch.device, list[tuple[int, torch.Tensor]]] = {}
    for i, flat in parts.items():
        if flat.is_cpu:
            found[i, :2] = _counted_here(flat)
        elif flat.numel():
            own = torch.split(flat, _ON_DEVICE)
            there.setdefault(flat.device, []).extend((i, piece) for piece in own)
    for pieces in there.values():  # each in one transfer, which waits for the device
        norms = [_norm(piece, order) for order in (2, 0) for _, piece in pieces]
        sizes, nonzero = torch.stack(norms).cpu().double().numpy().reshape(2, -1)
        places = [i for i, _ in pieces]
        np.add.at(found, (places, 0), np.square(sizes))
        np.add.at(found, (places, 1), nonzero)


def _norm(piece: torch.Tensor, order: int) -> torch.Tensor:
    kind = torch.float32 if piece.dtype.itemsize < 4 else None
    norm: torch.Tensor = torch.linalg.vector_norm(piece, order, dtype=kind)
    return norm.float()


def _counted_here(flat: torch.Tensor) -> tuple[float, int]:
    """Sum of squares, and elements other than 0, by this thread alone."""
    squares, nonzero, is_single = 0.0, 0, flat.dtype is torch.float32
    is_some = np.empty(min(flat.numel(), _CHUNK), bool)  # once: fresh memory costs more than this
    for piece in torch.split(flat, _CHUNK) if flat.numel() else ():
        values = piece.numpy() if is_single else float64_of(piece)
        with np.errstate(all="ignore"):  # what is not finite is told beside
            own = float(np.einsum("i,i->", values, values))
            if is_single and own and not _LEAST < own / len(values) < _MOST:
                own = float(np.square(values, dtype=np.float64).sum())
        squares += own
        nonzero += int(np.count_nonzero(np.not_equal(values, 0, out=is_some[: len(values)])))
    return squares, nonzero


class GradientHistory:
    """Remembers norms of gradients, to say how each stands beside its own past."""

    def __init__(self) -> None:
        self._past: deque[dict[str, float]] = deque(maxlen=_NUM_PAST)  # squares, by tensor

    @np.errstate(all="ignore")  # what is not finite is told beside
    def told(
        self, sums: GradientSums | None, facts: TensorFacts
    ) -> tuple[Gradient | None, dict[str, dict[str, float]]]:
        """What is said of all and of each block; and of each tensor, by field and name."""
        moved = np.where(facts.rms > 0.0, facts.unexplained / facts.rms, math.nan)
        of_tensors = {"update_to_weight": dict(zip(facts.name, moved.tolist(), strict=True))}
        if sums is None or not sums.num.any():
            return None, of_tensors
        has_one = np.flatnonzero(sums.num).tolist()
        numbers = {sums.names[i]: self._numbers(sums, [i]) for i in has_one}
        for place, field in enumerate(("gradient", "gradient_zeros", "gradient_change")):
            of_tensors[field] = {name: own[place] for name, own in numbers.items()}
        blocks: dict[str, list[int]] = {}
        for i in has_one:
            blocks.setdefault(block_of(sums.names[i]), []).append(i)
        moves = _moves(facts)
        said = []
        for block, rows in blocks.items():
            change, size = np.sum([moves.get(sums.names[i], (0.0, 0.0)) for i in rows], axis=0)
            update = math.sqrt(change / size) if size > 0.0 and change >= 0.0 else math.nan
            norm, zeros, ratio = self._numbers(sums, rows)
            said.append(
                BlockGradient(
                    name=block, norm=norm, zeros=zeros, change=ratio, update_to_weight=update
                )
            )
        norm, zeros, ratio = self._numbers(sums, has_one)
        self._past.append({sums.names[i]: float(sums.squares[i]) for i in has_one})
        whole = Gradient(
            num_tensors=len(has_one), norm=norm, zeros=zeros, change=ratio,
            before_clip=sums.before_clip, blocks=tuple(said),
        )  # fmt: skip
        return whole, of_tensors

    def _numbers(self, sums: GradientSums, rows: Sequence[int]) -> tuple[float, float, float]:
        """Norm, share of zeros and change of some tensors together."""
        norm = float(np.sqrt(sums.squares[rows].sum()))
        names = [sums.names[i] for i in rows]
        past = [[step[n] for n in names if n in step] for step in self._past]
        norms = [math.sqrt(x) for x in map(sum, filter(None, past)) if 0.0 <= x < math.inf]
        usual = float(np.median(norms)) if norms else 0.0
        zeros = 1.0 - float(sums.nonzero[rows].sum() / sums.num[rows].sum())
        return norm, zeros, norm / usual if usual > 0.0 else math.nan

    def state(self) -> list[dict[str, float]]:
        """What ``restore`` goes on from."""
        return [dict(step) for step in self._past]

    def restore(self, state: Sequence[Mapping[str, Any]]) -> None:
        """Go on from what ``state`` gave; from nothing, forget all."""
        self._past.clear()
        self._past.extend({name: float(x) for name, x in step.items()} for step in state)


def _moves(facts: TensorFacts) -> dict[str, tuple[float, float]]:
    """Sums of squares of each tensor's unexplained change, and of its weights before."""
    squares = facts.num_weights * np.square([facts.unexplained, facts.rms])
    return dict(zip(facts.name, zip(*squares.tolist(), strict=True), strict=True))
