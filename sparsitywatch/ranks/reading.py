"""What ranks that hold parts of a model read together: on every rank what one process would read.

Integer counts add, so that no weight is sent for a spectrum. Fixed samples of weights are sent:
they have the same size for every model, or are a few of each tensor. What is taken of a whole
tensor depends on its name and size alone; each rank sends those that it counts.

A model on R ranks is held whole by each (DDP), in disjoint boxes (FSDP2, tensor parallel), or in
boxes that some ranks hold alike (HSDP, tensor parallel within FSDP2). One rank counts each box:
the lowest that holds it.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from sparsitywatch.errors import ScopeError
from sparsitywatch.ranks.protocol import ALONE, Ranks
from sparsitywatch.records import Replicas
from sparsitywatch.redact import printable
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.sharded import FlatShard, expect_whole_model, is_sharded, modules_of
from sparsitywatch.weights.snapshot import SampleIndex, Sampler, Snapshot, bits_of, gather_sample
from sparsitywatch.weights.spectrum import MagnitudeSpectrum
from sparsitywatch.weights.spectrum.histogram import STORAGES, Histogram


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
        mesh: Any = tensor.device_mesh  # type: ignore[attr-defined]
        if any(placement.is_partial() for placement in placements):
            raise ScopeError(
                f"Expected each rank to hold weights of {printable(name)!r}, got summands of them "
                f"({', '.join(map(str, placements))}). Leave it out of `scope`."
            )
        from torch.distributed.tensor import _utils

        shape, offset = _utils.compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
        if len(shape) != len(whole) or math.prod(shape) == 0:  # also outside the mesh
            return cls(whole, nowhere, nowhere)
        return cls(whole, tuple(offset), tuple(shape))

    @property
    def num_weights(self) -> int:
        """In the box."""
        return math.prod(self.shape)

    def locate(self, where: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of some weights, at rising places of the flat tensor, lie in the box, and where."""
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
    """Which rank holds, and which counts, what of each tensor; ``rank`` is this one."""

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


# ------------------------------------------------------------------ reading them


class ShardedReader:
    """Reads some parameters as one process would; each rank calls each method, in this order."""

    def __init__(
        self, shards: Shards = EVERYTHING, ranks: Ranks = ALONE, num_threads: int | None = None
    ) -> None:
        self.ranks = ranks
        self._shards = shards
        self._num_threads = num_threads  # None for as many as torch uses

    @classmethod
    def of(cls, parameters: Mapping[str, torch.Tensor], ranks: Ranks) -> ShardedReader:
        """Of some parameters; a ScopeError where the ranks do not hold all of one between them."""
        with ranks.all_or_none("which parts of the weights a rank holds"):
            own = {name: ShardBox.of(name, tensor) for name, tensor in parameters.items()}
        return cls(Shards(ranks.gather(own), ranks.rank), ranks)

    @property
    def holds(self) -> Literal["alone", "replicas", "shards"]:
        """What this process has of the parameters: all, as others do; or a part."""
        if self.ranks.is_alone:
            return "alone"
        return "replicas" if self._shards.is_whole else "shards"

    @property
    def behind(self) -> ShardedReader:
        """The same for the thread behind the training."""
        return ShardedReader(self._shards, self.ranks.behind, num_threads=1)

    def lookup(
        self, model: nn.Module, scope: Scope, *, is_whole: bool = False
    ) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
        """As ``Scope.lookup``; also a ScopeError where the model has been sharded since."""
        modules = modules_of(model)
        expect_whole_model(modules, are_parts_read=not self.ranks.is_alone)
        for module in self.ranks.fsdp:  # what a forward has gathered stands in the place of its own
            module.reshard()
        parameters, every = scope.lookup(model, modules, is_whole=is_whole)
        for name, held in self._shards.held.items():
            box = ShardBox.of(name, parameters[name])
            if box != held:
                raise ScopeError(
                    f"Expected this rank to hold {held.shape} of {printable(name)!r} "
                    f"from {held.offset} on as at attach, got {box.shape} from "
                    f"{box.offset} on. Attach a new watch after sharding the model."
                )
        return parameters, every

    # ------------------------------------------------------------------ counts

    def counted(self, snapshot: Snapshot) -> tuple[MagnitudeSpectrum, Replicas | None]:
        """The spectrum of the whole model; and whether ranks that hold the same weights agree."""
        shards = self._shards
        with self.ranks.all_or_none("counting the weights"):
            spectrum = MagnitudeSpectrum.of(snapshot.tensors, num_threads=self._num_threads)
            marks = marks_of(spectrum, snapshot) if shards.has_replicas else {}
        replicas = self.compared(marks) if shards.has_replicas else None
        if not shards.is_whole or (replicas is not None and replicas.ranks):
            spectrum = self.summed(spectrum)
        return spectrum, replicas

    def summed(self, spectrum: MagnitudeSpectrum) -> MagnitudeSpectrum:
        """The spectrum of the whole model, from those of what each rank holds."""
        # which bins are occupied anywhere is exchanged first, as bits, so that the counts of these
        # alone are: in int64, since 2.1 billion weights of one bin are possible
        names = spectrum.names
        own = {name: spectrum.histograms[name] for name in names if name in self._shards.owned}
        ends = np.cumsum([STORAGES[spectrum.histograms[n].dtype].bins.inf_key for n in names])
        starts = dict(zip(names, [0, *ends[:-1].tolist()], strict=True))
        occupied = np.zeros(int(ends[-1]), bool)
        for name, histogram in own.items():
            occupied[starts[name] + histogram.keys] = True
        bits = self.ranks.union(np.packbits(occupied))
        bins = np.flatnonzero(np.unpackbits(bits, count=len(occupied)))
        counts, beyond = np.zeros(len(bins), np.int64), np.zeros((len(names), 2), np.int64)
        for row, name in enumerate(names):
            if name in own:
                counts[bins.searchsorted(starts[name] + own[name].keys)] = own[name].counts
                beyond[row] = own[name].num_inf, own[name].num_nan
        cuts = bins.searchsorted(ends)
        summed = self.ranks.sum(np.concatenate([counts, beyond.reshape(-1)]))
        *counted, last = np.split(summed, cuts)
        keys = np.split(bins, cuts[:-1])
        of_tensors = zip(names, keys, counted, last.reshape(-1, 2).tolist(), strict=True)
        found = {}
        for name, of_bins, of_counts, of_beyond in of_tensors:
            own_keys = (of_bins - starts[name]).astype(np.int32)
            dtype = spectrum.histograms[name].dtype
            found[name] = Histogram(dtype, own_keys, of_counts, *of_beyond)
        return MagnitudeSpectrum(found)

    def united_numbers(
        self, find: Callable[[], dict[str, list[np.ndarray]]]
    ) -> dict[str, list[np.ndarray]]:
        """Numbers by name that are found in what each rank holds: those of the whole tensors."""
        with self.ranks.all_or_none("weights at a threshold"):
            own = find()
        if self.ranks.is_alone:
            return own
        every = self.ranks.gather({name: own[name] for name in own if name in self._shards.owned})
        parts = {name: [of_rank[name] for of_rank in every if name in of_rank] for name in own}
        return {
            name: [np.concatenate(column) for column in zip(*of_ranks, strict=True)]
            for name, of_ranks in parts.items()
        }

    # ------------------------------------------------------------------ samples

    def sample(self, sampler: Sampler, snapshot: Snapshot) -> dict[str, torch.Tensor]:
        """The weights that ``sampler`` would take of the whole model."""
        return self.gather_sample(snapshot.tensors, sampler.chosen(snapshot.scope.sizes))

    def gather_sample(
        self, tensors: Mapping[str, torch.Tensor], chosen: Mapping[str, SampleIndex]
    ) -> dict[str, torch.Tensor]:
        """What ``snapshot.gather_sample`` gives for whole tensors, from what this rank holds."""
        if self._shards.is_whole:
            return gather_sample(tensors, chosen)
        with self.ranks.all_or_none(f"a sample of {' '.join(chosen)}"):
            for name in chosen:
                held = self._shards.held[name]
                if tensors[name].numel() != held.num_weights:
                    raise ScopeError(
                        f"Expected this rank to hold {held.shape} of {printable(name)!r} as at "
                        f"attach, got {tuple(tensors[name].shape)}. Attach a new watch after "
                        "sharding the model."
                    )
            own = gather_sample(tensors, self.own(chosen))
            bits = {name: bits_of(one).numpy() for name, one in own.items()}
        found: dict[str, torch.Tensor] = {}
        for dtype in dict.fromkeys(tensors[name].dtype for name in chosen):
            alike = {name: s for name, s in chosen.items() if tensors[name].dtype == dtype}
            united = self.united(alike, bits, f"i{dtype.itemsize}")
            found |= {name: torch.from_numpy(one).view(dtype) for name, one in united.items()}
        return {name: found[name] for name in chosen}

    def own(self, chosen: Mapping[str, SampleIndex]) -> Mapping[str, SampleIndex]:
        """Those of some weights of whole tensors that this rank reads, in what it holds."""
        return chosen if self._shards.is_whole else _own(tuple(chosen.items()), self._shards)[0]

    def united(
        self, chosen: Mapping[str, SampleIndex], own: Mapping[str, np.ndarray], dtype: npt.DTypeLike
    ) -> Mapping[str, np.ndarray]:
        """A number for each of some weights of whole tensors, from those of ``own``, by name."""
        if self._shards.is_whole or not chosen:
            return own
        read, places = _own(tuple(chosen.items()), self._shards)
        ends = np.cumsum([some.num for some in chosen.values()])
        found = np.zeros(ends[-1], dtype)
        found[places] = np.concatenate([np.empty(0, dtype), *(own[name] for name in read)])
        self.ranks.union(found.view(np.uint8))  # each is 0 on all ranks but one
        return dict(zip(chosen, np.split(found, ends[:-1]), strict=True))

    def counts(self, name: str) -> bool:
        """Whether this rank counts what it holds of a tensor, for all that hold the same."""
        return self._shards.is_whole or name in self._shards.owned

    def added(self, numbers: np.ndarray) -> np.ndarray:
        """The sum over ranks of what each has counted, of any shape and type."""
        return numbers if self._shards.is_whole else np.sum(self.ranks.gather(numbers), axis=0)

    def compared(self, marks: Mapping[str, int]) -> Replicas:
        """Whether ranks that hold the same weights hold the same bits, by their ``marks``."""
        held = self._shards.held
        slots = list(self._shards.holders)
        own = np.full((2, len(slots)), np.iinfo(np.int64).min, np.int64)
        for column, (name, box) in enumerate(slots):
            if held[name] == box:
                own[:, column] = marks[name], -marks[name]
        high, low = self.ranks.highest(own)  # where these agree, so do all
        unlike = [slots[column] for column in np.flatnonzero(high != -low)]
        if not unlike:
            return Replicas(num_ranks=self.ranks.size)
        said = self.ranks.gather({(n, box): marks[n] for n, box in unlike if held[n] == box})
        return Replicas(
            num_ranks=self.ranks.size,
            ranks=tuple(sorted({rank for slot in unlike for rank in _odd_ones(slot, said)})),
            tensors=tuple(dict.fromkeys(name for name, _ in unlike)),
        )


#: Of a process that holds the whole model, by itself.
WHOLE_MODEL: Final = ShardedReader()


@lru_cache(maxsize=16)  # the same samples at every snapshot
def _own(
    chosen: tuple[tuple[str, SampleIndex], ...], shards: Shards
) -> tuple[dict[str, SampleIndex], np.ndarray]:
    """Which of some weights this rank sends, and where they stand among all of them, int64."""
    own: dict[str, SampleIndex] = {}
    places, start = [np.empty(0, np.int64)], 0
    for name, some in chosen:
        if name in shards.owned:
            where = np.arange(some.num) if some.where is None else some.where
            index, local = shards.held[name].locate(where)
            own[name] = SampleIndex(len(local), local)
            places.append(start + index)
        start += some.num
    return own, np.concatenate(places)


def _odd_ones(
    slot: tuple[str, ShardBox], said: Sequence[Mapping[tuple[str, ShardBox], int]]
) -> list[int]:
    """The ranks that do not hold what most of them hold; of two that differ, both."""
    held = {rank: marks[slot] for rank, marks in enumerate(said) if slot in marks}
    (usual, most), (_, next_most) = Counter(held.values()).most_common(2)
    return [rank for rank, mark in held.items() if mark != usual or most == next_most]


def marks_of(spectrum: MagnitudeSpectrum, snapshot: Snapshot) -> dict[str, int]:
    """A positive int64 for each tensor, of its counts and all its words: no bit flips unseen."""
    sums, found = _checksums(snapshot.tensors), {}
    for name in spectrum.names:
        own = spectrum.histograms[name]
        text = f"{own.dtype} {own.num_inf} {own.num_nan} {sums[name]} ".encode()
        text += own.keys.tobytes() + own.counts.tobytes()
        mark = hashlib.blake2b(text, digest_size=8).digest()
        found[name] = int.from_bytes(mark, "big") >> 1
    return found


def _checksums(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """All words of each tensor in one, at the speed of memory; any bit that flips shows."""
    found: dict[str, int] = {}
    there: dict[torch.device, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        words = bits_of(tensor)
        if words.is_cpu:  # by this thread alone; torch would wake its own beside a training
            found[name] = int(np.bitwise_xor.reduce(words.numpy()))
        else:
            there.setdefault(words.device, {})[name] = words.sum(dtype=torch.int64)
    for sums in there.values():  # one transfer from each device
        found |= zip(sums, torch.stack([*sums.values()]).tolist(), strict=True)
    return found
