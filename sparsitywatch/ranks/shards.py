"""Weights on several ranks: who holds and who counts which part.

A model on R ranks is held whole by each (DDP), in disjoint boxes (FSDP2, tensor parallel), or in
boxes that some ranks hold alike (HSDP, tensor parallel within FSDP2). One rank counts each box:
the lowest that holds it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch

from sparsitywatch.errors import ScopeError
from sparsitywatch.ranks.protocol import Ranks
from sparsitywatch.redact import printable
from sparsitywatch.weights.sharded import FlatShard, is_sharded


@dataclass(frozen=True)
class ShardBox:
    """A box of a tensor: of a shape in a ``whole`` one; with a 0 in its own shape it is empty."""

    whole: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor) -> ShardBox:
        """What this rank holds of a tensor; a ScopeError where it is a summand, not a part."""
        whole = tuple(tensor.shape)
        nowhere = (0,) * len(whole)
        if hasattr(tensor, "flat_shard"):  # FSDP1
            flat: FlatShard = tensor.flat_shard
            return cls((tensor.numel(),), (flat.start,), (flat.num,))
        if not is_sharded(tensor):
            return cls(whole, nowhere, whole)
        placements: Any = tensor.placements  # type: ignore[attr-defined]
        if any(placement.is_partial() for placement in placements):
            raise ScopeError(
                f"Expected each rank to hold weights of {printable(name)!r}, got summands of them "
                f"({', '.join(map(str, placements))}). Leave it out of `scope`."
            )
        from torch.distributed.tensor import _utils

        shape, offset = _utils.compute_local_shape_and_global_offset(
            tensor.shape,
            tensor.device_mesh,  # type: ignore[attr-defined]
            placements,
        )
        if len(shape) != len(whole) or math.prod(shape) == 0:  # also outside the mesh
            return cls(whole, nowhere, nowhere)
        return cls(whole, tuple(offset), tuple(shape))

    @property
    def num_weights(self) -> int:
        """In the box."""
        return math.prod(self.shape)

    def locate(self, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of some weights lie in the box, and where in it.

        From rising positions in the flat tensor, int64 [N], to indices into these, int64 [M], and
        positions in the flat box, int64 [M].
        """
        row = math.prod(self.whole[1:])
        if self.whole[1:] == self.shape[1:]:  # whole rows lie side by side
            start = self.offset[0] * row if self.whole else 0
            first, last = where.searchsorted([start, start + self.num_weights])
            return np.arange(first, last), where[first:last] - start
        places = np.unravel_index(where, self.whole)
        axes = list(zip(places, self.offset, self.shape, strict=True))
        inside = np.logical_and.reduce([(p >= o) & (p < o + s) for p, o, s in axes])
        own = [p[inside] - o for p, o, _ in axes]
        local = np.ravel_multi_index(own, self.shape) if inside.any() else np.empty(0, np.int64)
        return np.flatnonzero(inside), local


class Shards:
    """Which rank holds, and which counts, what of each tensor; the same all along.

    ``boxes`` are those of each rank, by name, in the order of the model; ``rank`` is this one.
    """

    def __init__(self, boxes: Sequence[Mapping[str, ShardBox]], rank: int) -> None:
        self.held = boxes[rank]
        #: Each distinct box, by name: the ranks that hold it, of which the first counts it.
        self.holders: dict[tuple[str, ShardBox], list[int]] = {}
        for holder, of_rank in enumerate(boxes):
            for name, box in of_rank.items():
                if box.num_weights:
                    self.holders.setdefault((name, box), []).append(holder)
        self.owned = frozenset(name for (name, _), who in self.holders.items() if who[0] == rank)
        self.is_whole = all(b.shape == b.whole for of_rank in boxes for b in of_rank.values())
        self.has_replicas = any(len(who) > 1 for who in self.holders.values())
        self._check_all_there()

    @classmethod
    def of(cls, parameters: Mapping[str, torch.Tensor], ranks: Ranks) -> Shards:
        """As the ranks' parameters say; a ScopeError where some of a tensor is on none of them."""
        with ranks.all_or_none("which parts of the weights a rank holds"):
            own = {name: ShardBox.of(name, tensor) for name, tensor in parameters.items()}
        return cls(ranks.gather(own), ranks.rank)

    def _check_all_there(self) -> None:
        """Refuse parts of a tensor that do not make up the whole."""
        counted: Counter[str] = Counter()
        for name, box in self.holders:
            counted[name] += box.num_weights
        for name, box in self.held.items():
            if counted[name] != math.prod(box.whole):
                raise ScopeError(
                    f"Expected the ranks to hold the {math.prod(box.whole):,} weights of "
                    f"{printable(name)!r} between them, got {counted[name]:,}. If each rank "
                    "trains a model of its own, or a stage of a pipeline, watch its checkpoints "
                    "instead: `sparsitywatch replay <folder> --follow`."
                )


#: Of a model that each process holds all of, and that nobody else reads.
EVERYTHING: Final = Shards([{}], 0)
