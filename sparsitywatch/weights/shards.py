"""Weights on several ranks: who holds and who counts which part.

A model on R ranks is held whole by each (DDP), in disjoint pieces (FSDP2, tensor parallel), or in
pieces that some ranks hold alike (HSDP, tensor parallel within FSDP2). A piece is a box of the
whole tensor. One rank counts each piece: the lowest that holds it.

Each method of ``Ranks`` is called by every rank, in the same order.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import distributed, nn

from sparsitywatch.errors import MeasurementError, RanksError, ScopeError, is_out_of_memory
from sparsitywatch.shown import shown_error, shown_name
from sparsitywatch.weights.sharded import FlatShard, fsdp_modules, is_sharded

__all__ = ["Piece", "Ranks", "Shards", "is_data_parallel"]


# ------------------------------------------------------------------ the ranks


class Ranks:
    """The ranks that watch one training together, in a process group of the watch's own.

    What is sent lies on the CPU. Before data is exchanged the ranks agree that all of them are at
    the same place and well: what failed on one of them fails on all, and none waits for it.

    Args:
        group: of every rank, by gloo.
    """

    def __init__(self, group: Any) -> None:
        self._group = group
        self.rank, self.size = distributed.get_rank(group), distributed.get_world_size(group)
        self.lost = ""  # why the ranks have lost each other; empty as long as they have not
        self.num_bytes = 0  # that this rank has given to collectives
        self._num_agreed = 0

    def agree(self, what: str, error: BaseException | None = None, value: int = 0) -> int:
        """Go on only if every rank does.

        Args:
            what: the place in the code; has to be the same on every rank.
            error: what has failed on this rank; None if nothing has.
            value: a number >= 0; that of rank 0 counts.

        Returns:
            Rank 0's value.

        Raises:
            RanksError: another rank is at another place, or does not answer.
            MeasurementError: it failed on another rank.
            MemoryError: memory was missing on another rank.
        """
        self._num_agreed += 1
        place = (zlib.crc32(what.encode()) << 24) + self._num_agreed % (1 << 24)
        code = 0 if error is None else 2 if is_out_of_memory(error) else 1
        own = torch.tensor([code, place, -place, value if self.rank == 0 else -1], device="cpu")
        self._reduce(own, distributed.ReduceOp.MAX)
        worst, highest, lowest, value = own.tolist()
        if highest != -lowest:
            self.lose(f"rank {self.rank} is at {what!r}, another one is not")
        if worst:
            self._raise(error, is_memory=worst == 2)
        return value

    @contextlib.contextmanager
    def together(self, what: str) -> Iterator[None]:
        """What is done inside succeeds on every rank, or fails on every rank."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, RanksError):
                self.agree(what, error)
            raise
        self.agree(what)

    def lose(self, why: str) -> None:
        """Note that nothing can be agreed on any more."""
        self.lost = self.lost or (
            f"the ranks have lost each other: {why}. Call `sw.watch`, `watcher.snapshot()` and "
            "`watcher.close()` on every rank, at the same step."
        )
        raise RanksError(self.lost)

    def sum(self, numbers: np.ndarray) -> np.ndarray:
        """The sum over ranks, int64 [N]; in place."""
        self._reduce(torch.from_numpy(numbers), distributed.ReduceOp.SUM)
        return numbers

    def union(self, bits: np.ndarray) -> np.ndarray:
        """What is set on any rank, packed bits, uint8 [B]; in place."""
        self._reduce(torch.from_numpy(bits), distributed.ReduceOp.BOR)
        return bits

    def highest(self, numbers: np.ndarray) -> np.ndarray:
        """The largest over ranks, int64 [N]; in place."""
        self._reduce(torch.from_numpy(numbers), distributed.ReduceOp.MAX)
        return numbers

    def gather(self, own: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
        """What each rank has, uint8 of ``sizes[rank]`` bytes."""
        longest = max(sizes)
        padded = torch.zeros(longest, dtype=torch.uint8, device="cpu")
        padded[: len(own)] = torch.from_numpy(own)
        found = [torch.empty_like(padded) for _ in sizes]
        self.num_bytes += longest
        with self._exchanged():
            distributed.all_gather(found, padded, group=self._group)
        return [part.numpy()[:size] for part, size in zip(found, sizes, strict=True)]

    def all_of(self, thing: Any) -> list[Any]:
        """What each rank gives, by rank; plain data."""
        found: list[Any] = [None] * self.size
        with self._exchanged():
            distributed.all_gather_object(found, thing, group=self._group)
        return found

    def of_first(self, thing: Any) -> Any:
        """What rank 0 gives; plain data."""
        found = [thing]
        with self._exchanged():
            distributed.broadcast_object_list(found, src=0, group=self._group)
        return found[0]

    def _reduce(self, numbers: torch.Tensor, operation: Any) -> None:
        self.num_bytes += numbers.nbytes
        with self._exchanged():
            distributed.all_reduce(numbers, operation, group=self._group)

    @contextlib.contextmanager
    def _exchanged(self) -> Iterator[None]:
        if self.lost:
            raise RanksError(self.lost)
        try:
            yield
        except (RuntimeError, ValueError) as error:  # a rank has gone, or does not answer in time
            self.lose(shown_error(error))

    def _raise(self, error: BaseException | None, *, is_memory: bool) -> None:
        """Fail on every rank; on others than the one that failed, by its words."""
        said = self.all_of("" if error is None else shown_error(error))
        if error is not None:
            raise error
        text = "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(said) if text)
        raise MemoryError(text) if is_memory else MeasurementError(f"failed on {text}")


# ------------------------------------------------------------------ pieces of tensors


def is_data_parallel(model: nn.Module) -> bool:
    """Whether each rank may run on examples of its own: not where a layer is split over ranks."""
    is_fsdp = bool(fsdp_modules(model.modules()))
    for parameter in model.parameters():
        if is_sharded(parameter):
            placements: Any = parameter.placements  # type: ignore[attr-defined]
            outer = all(placement.is_replicate() for placement in placements[:-1])
            if not (is_fsdp and outer and len(placements) <= 2):
                return False
    return True


@dataclass(frozen=True)
class Piece:
    """A box of a tensor.

    Args:
        whole: shape of the tensor.
        offset: where the box begins, in each dimension.
        shape: of the box; with a 0 in it the piece is empty.
    """

    whole: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor) -> Piece:
        """What this rank holds of a tensor.

        Raises:
            ScopeError: ranks hold summands of it instead of parts.
        """
        whole = tuple(tensor.shape)
        if hasattr(tensor, "flat_shard"):  # FSDP1
            flat: FlatShard = tensor.flat_shard
            return cls((tensor.numel(),), (flat.start,), (flat.num,))
        if not is_sharded(tensor):
            return cls(whole, (0,) * len(whole), whole)
        placements: Any = tensor.placements  # type: ignore[attr-defined]
        if any(placement.is_partial() for placement in placements):
            raise ScopeError(
                f"Expected each rank to hold weights of {shown_name(name)!r}, got summands of them "
                f"({', '.join(map(str, placements))}). Leave it out of `scope`."
            )
        from torch.distributed.tensor import _utils

        shape, offset = _utils.compute_local_shape_and_global_offset(
            tensor.shape,
            tensor.device_mesh,  # type: ignore[attr-defined]
            placements,
        )
        if len(shape) != len(whole) or math.prod(shape) == 0:  # also outside the mesh
            return cls(whole, (0,) * len(whole), (0,) * len(whole))
        return cls(whole, tuple(offset), tuple(shape))

    @property
    def num_weights(self) -> int:
        """In the box."""
        return math.prod(self.shape)

    def locate(self, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of some weights lie in the box, and where in it.

        Args:
            where: positions in the flat tensor, int64 [N], rising.

        Returns:
            Indices into ``where``, int64 [M], and positions in the flat box, int64 [M].
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
    """Which rank holds, and which counts, what of each in-scope tensor; the same all along.

    Args:
        pieces: of each rank, by name, in the order of the scope.
        rank: this one.

    Raises:
        ScopeError: the ranks together do not hold all of a tensor.
    """

    def __init__(self, pieces: Sequence[Mapping[str, Piece]], rank: int) -> None:
        self.pieces, self.rank = pieces, rank
        self.held = pieces[rank]
        #: Each distinct piece, by name: the ranks that hold it, of which the first counts it.
        self.holders: dict[tuple[str, Piece], list[int]] = {}
        for holder, of_rank in enumerate(pieces):
            for name, piece in of_rank.items():
                if piece.num_weights:
                    self.holders.setdefault((name, piece), []).append(holder)
        self.owned = frozenset(
            name for (name, piece), ranks in self.holders.items() if ranks[0] == rank
        )
        self.is_whole = all(
            piece.shape == piece.whole for of_rank in pieces for piece in of_rank.values()
        )
        self.has_replicas = any(len(ranks) > 1 for ranks in self.holders.values())
        self._check_all_there()
        #: The same by tensor: each piece, and the rank that counts it.
        self.counted: dict[str, list[tuple[Piece, int]]] = {}
        for (name, piece), ranks in self.holders.items():
            self.counted.setdefault(name, []).append((piece, ranks[0]))

    @classmethod
    def of(cls, parameters: Mapping[str, torch.Tensor], ranks: Ranks) -> Shards:
        """As the ranks' parameters say.

        Raises:
            ScopeError: a rank watches other tensors, or they do not hold all of one.
        """
        with ranks.together("which parts of the weights a rank holds"):
            own = {name: Piece.of(name, tensor) for name, tensor in parameters.items()}
        return cls(ranks.all_of(own), ranks.rank)

    def check(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Refuse a model that was sharded in another way since the attach.

        Raises:
            ScopeError: with the first tensor that is.
        """
        for name, tensor in parameters.items():
            piece = Piece.of(name, tensor)
            if piece != self.held[name]:
                raise ScopeError(
                    f"Expected this rank to hold {self.held[name].shape} of {shown_name(name)!r} "
                    f"from {self.held[name].offset} on as at attach, got {piece.shape} from "
                    f"{piece.offset} on. Attach a new watch after sharding the model."
                )

    def _check_all_there(self) -> None:
        held: dict[str, list[Piece]] = {name: [] for name in self.held}
        for name, piece in self.holders:
            held[name].append(piece)
        for name, pieces in held.items():
            whole = math.prod(self.held[name].whole)
            counted = sum(piece.num_weights for piece in pieces)
            if counted != whole or (whole and not _fill(pieces)):
                overlap = " in parts that overlap" if counted == whole else ""
                raise ScopeError(
                    f"Expected the ranks to hold the {whole:,} weights of {shown_name(name)!r} "
                    f"between them, got {counted:,}{overlap}. If each rank "
                    "trains a model of its own, or a stage of a pipeline, watch its checkpoints "
                    "instead: `sparsitywatch replay <folder> --follow`."
                )


def _fill(pieces: Sequence[Piece]) -> bool:
    """Whether distinct pieces that are not empty hold each weight of a tensor once.

    Where two of them meet, a corner of one is a corner of the other, of the other sign; what is
    left over has to be the corners of the whole.
    """
    if len(pieces) == 1:
        return pieces[0].shape == pieces[0].whole
    corners: Counter[tuple[int, ...]] = Counter()
    whole = pieces[0].whole
    for sign, offset, shape in (
        *((1, piece.offset, piece.shape) for piece in pieces),
        (-1, (0,) * len(whole), whole),
    ):
        for ends in itertools.product((0, 1), repeat=len(whole)):
            corner = tuple(o + s * end for o, s, end in zip(offset, shape, ends, strict=True))
            corners[corner] += sign * (-1) ** sum(ends)
    return not any(corners.values())
