"""What ranks that hold parts of a model read together: on every rank what one process would read.

Integer counts add, so that no weight is gathered for a spectrum. Fixed samples of weights are
gathered: they have the same size for every model, or are a few of each tensor. What is taken of a
whole tensor depends on its name and size alone; each rank sends those that it counts.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import nn

from sparsitywatch.errors import ScopeError
from sparsitywatch.ranks.protocol import ALONE, Ranks
from sparsitywatch.ranks.shards import EVERYTHING, Shards
from sparsitywatch.records import Replicas
from sparsitywatch.shown import shown_name
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.sharded import fsdp_modules, modules_of, why_not_whole
from sparsitywatch.weights.snapshot import (
    SampleIndex,
    Sampler,
    Snapshot,
    bits_of,
    gather_sample,
)
from sparsitywatch.weights.spectrum import MagnitudeSpectrum
from sparsitywatch.weights.spectrum.histogram import STORAGES, Histogram


class ShardedReader:
    """Reads what ranks hold of some parameters as one process would read the whole.

    Args:
        shards: of these parameters.
        ranks: that read them; every rank calls each method, in the same order.
        fsdp: modules that FSDP2 shards, which may have gathered weights for a forward.
    """

    def __init__(
        self, shards: Shards = EVERYTHING, ranks: Ranks = ALONE, fsdp: Sequence[Any] = ()
    ) -> None:
        self._shards, self.ranks, self._fsdp = shards, ranks, fsdp

    @classmethod
    def of(
        cls, model: nn.Module, find: Callable[[], Mapping[str, torch.Tensor]], ranks: Ranks
    ) -> ShardedReader:
        """Of the parameters that ``find`` finds in a model as the optimizer steps on it.

        Raises:
            ScopeError: the ranks do not hold all of one between them.
        """
        fsdp = fsdp_modules(model.modules())
        for module in fsdp:
            module.reshard()
        return cls(Shards.of(find(), ranks), ranks, fsdp)

    @property
    def holds(self) -> Literal["alone", "replicas", "shards"]:
        """What this process has of the parameters: all, as others do; or a part."""
        if self.ranks.is_alone:
            return "alone"
        return "replicas" if self._shards.is_whole else "shards"

    @property
    def behind(self) -> ShardedReader:
        """The same for the thread behind the training."""
        return ShardedReader(self._shards, self.ranks.behind, self._fsdp)

    def lookup(
        self, model: nn.Module, scope: Scope
    ) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
        """The in-scope parameters as they are now, by name; and every one.

        Raises:
            ScopeError: one is gone or has another shape, or the model has been sharded since.
        """
        modules = modules_of(model)
        if why := why_not_whole(modules, are_parts_read=not self.ranks.is_alone):
            raise ScopeError(f"Expected a model that this process holds all of, but {why}")
        for module in self._fsdp:  # what a forward has gathered stands in the place of its own
            module.reshard()
        parameters, every = scope.lookup(model, modules)
        self._shards.check(parameters)
        return parameters, every

    # ------------------------------------------------------------------ counts

    def counted(
        self, snapshot: Snapshot, num_threads: int | None = None
    ) -> tuple[MagnitudeSpectrum, Replicas | None]:
        """The spectrum of the whole model; and whether ranks that hold the same weights agree."""
        shards = self._shards
        with self.ranks.all_or_none("counting the weights"):
            spectrum = MagnitudeSpectrum.of(snapshot.tensors, num_threads=num_threads)
            marks = marks_of(spectrum, snapshot) if shards.has_replicas else {}
        replicas = self.compared(marks)
        if not shards.is_whole or (replicas is not None and replicas.ranks):
            spectrum = self.summed(spectrum)
        return spectrum, replicas

    def summed(self, spectrum: MagnitudeSpectrum) -> MagnitudeSpectrum:
        """The spectrum of the whole model, from those of what each rank holds.

        Which bins are occupied anywhere is exchanged first, as bits, so that the counts of these
        alone are: in int64, since 2.1 billion weights of one bin are possible.
        """
        names, ranks = spectrum.names, self.ranks
        own = {name: spectrum.histogram(name) for name in names if name in self._shards.owned}
        ends = np.cumsum([STORAGES[spectrum.histogram(n).dtype].bins.inf_key for n in names])
        starts = dict(zip(names, [0, *ends[:-1].tolist()], strict=True))
        occupied = np.zeros(int(ends[-1]), bool)
        for name, histogram in own.items():
            occupied[starts[name] + histogram.keys] = True
        bits = ranks.union(np.packbits(occupied))
        bins = np.flatnonzero(np.unpackbits(bits, count=len(occupied)))
        counts = np.zeros(len(bins), np.int64)
        beyond = np.zeros((len(names), 2), np.int64)
        for row, name in enumerate(names):
            if name in own:
                counts[bins.searchsorted(starts[name] + own[name].keys)] = own[name].counts
                beyond[row] = own[name].num_inf, own[name].num_nan
        summed = ranks.sum(np.concatenate([counts, beyond.reshape(-1)]))
        cuts = bins.searchsorted(ends)
        keys = np.split(bins, cuts[:-1])
        *counted, last = np.split(summed, cuts)
        of_tensors = zip(names, keys, counted, last.reshape(-1, 2).tolist(), strict=True)
        found = {}
        for name, of_bins, of_counts, of_beyond in of_tensors:
            own_keys = (of_bins - starts[name]).astype(np.int32)
            dtype = spectrum.histogram(name).dtype
            found[name] = Histogram(dtype, own_keys, of_counts, *of_beyond)
        return MagnitudeSpectrum(found)

    # ------------------------------------------------------------------ samples

    def sample(self, sampler: Sampler, snapshot: Snapshot) -> dict[str, torch.Tensor]:
        """The weights that ``sampler`` would take of the whole model."""
        if self._shards.is_whole:
            return sampler.take(snapshot)
        chosen, tensors = sampler.chosen(snapshot.scope.sizes), snapshot.tensors
        found: dict[str, torch.Tensor] = {}
        for dtype in dict.fromkeys(tensors[name].dtype for name in chosen):
            alike = {name: some for name, some in chosen.items() if tensors[name].dtype == dtype}
            words = self._exchanged(alike, self._words(alike, tensors), dtype.itemsize)
            found |= {name: torch.from_numpy(part).view(dtype) for name, part in words.items()}
        return {name: found[name] for name in chosen}

    def gather_sample(
        self, tensors: Mapping[str, torch.Tensor], chosen: Mapping[str, SampleIndex]
    ) -> torch.Tensor:
        """What ``snapshot.gather_sample`` gives for the whole tensors.

        Args:
            tensors: what this rank holds of them, of one dtype.
            chosen: of the whole ones.
        """
        if self._shards.is_whole:
            return gather_sample(tensors, chosen)
        with self.ranks.all_or_none("a sample of parameters", tensors):
            for name, tensor in tensors.items():
                if tensor.numel() != (held := self._shards.held[name]).num_weights:
                    raise ScopeError(
                        f"Expected this rank to hold {held.shape} of {shown_name(name)!r} as at "
                        f"attach, got {tuple(tensor.shape)}. Attach a new watch after sharding "
                        "the model."
                    )
            own = self._words(chosen, tensors)
        itemsize = next(iter(tensors.values())).dtype.itemsize
        words = np.concatenate([*self._exchanged(chosen, own, itemsize).values()])
        return torch.from_numpy(words if itemsize == 1 else words.view(f"i{itemsize}"))

    def own(self, chosen: Mapping[str, SampleIndex]) -> Mapping[str, SampleIndex]:
        """Those of some weights of whole tensors that this rank reads, in what it holds."""
        return chosen if self._shards.is_whole else _plan(tuple(chosen.items()), self._shards).own

    def gathered(
        self, chosen: Mapping[str, SampleIndex], own: Mapping[str, np.ndarray]
    ) -> Mapping[str, np.ndarray]:
        """A float64 for each of some weights of whole tensors, from those of ``own``, by name."""
        if self._shards.is_whole:
            return own
        found = self._exchanged(chosen, own, 8)
        return {name: words.view(float) for name, words in found.items()}

    def _words(
        self, chosen: Mapping[str, SampleIndex], tensors: Mapping[str, torch.Tensor]
    ) -> dict[str, np.ndarray]:
        """The words of what this rank sends, of tensors of one dtype; one transfer a device."""
        own = _plan(tuple(chosen.items()), self._shards).own
        if not own:
            return {}
        words = gather_sample({name: tensors[name] for name in own}, own).numpy()
        ends = np.cumsum([some.num for some in own.values()])
        return dict(zip(own, np.split(words, ends[:-1]), strict=True))

    def _exchanged(
        self, chosen: Mapping[str, SampleIndex], own: Mapping[str, np.ndarray], itemsize: int
    ) -> dict[str, np.ndarray]:
        """What belongs to some weights of the whole tensors, ``itemsize`` bytes each, by name."""
        if not chosen:
            return {}
        plan = _plan(tuple(chosen.items()), self._shards)
        mine = [own[name].view(np.uint8) for name in plan.own]
        sizes = [itemsize * len(places) for places in plan.places]
        sent = self.ranks.gather_bytes(np.concatenate([np.empty(0, np.uint8), *mine]), sizes)
        ends = np.cumsum([some.num for some in chosen.values()])
        found = np.empty(ends[-1], f"u{itemsize}")
        for places, part in zip(plan.places, sent, strict=True):
            found[places] = part.view(found.dtype)
        return dict(zip(chosen, np.split(found, ends[:-1]), strict=True))

    # ------------------------------------------------------------------ whether replicas agree

    def compared(self, marks: Mapping[str, int]) -> Replicas | None:
        """Whether ranks that hold the same weights hold the same bits; None if no two do.

        ``marks`` are of what this rank holds. Where the largest and the smallest one over ranks
        agree, so do all.
        """
        held = self._shards.held
        if not self._shards.has_replicas:
            return None
        slots = list(self._shards.holders)
        own = np.full((2, len(slots)), np.iinfo(np.int64).min, np.int64)
        for column, (name, box) in enumerate(slots):
            if held[name] == box:
                own[:, column] = marks[name], -marks[name]
        high, low = self.ranks.highest(own)
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


@dataclass(frozen=True)
class _Plan:
    """Who sends which of some weights."""

    own: Mapping[str, SampleIndex]  # of what this rank holds, by name; others are absent
    places: Sequence[np.ndarray]  # by rank, where what it sends stands among all, int64


@lru_cache(maxsize=16)  # the same samples at every snapshot
def _plan(chosen: tuple[tuple[str, SampleIndex], ...], shards: Shards) -> _Plan:
    own: dict[str, SampleIndex] = {}
    places: list[list[np.ndarray]] = [[np.empty(0, np.int64)] for _ in range(shards.size)]
    start = 0
    for name, some in chosen:
        where = np.arange(some.num) if some.where is None else some.where
        for box, rank in shards.counted[name]:
            index, local = box.locate(where)
            if len(index):
                places[rank].append(start + index)
                if rank == shards.rank:
                    own[name] = SampleIndex(len(local), local)
        start += some.num
    return _Plan(own, [np.concatenate(parts) for parts in places])


def _odd_ones(slot: Any, said: Sequence[Mapping[Any, int]]) -> list[int]:
    """The ranks that do not hold what most of them hold; of two that differ, both."""
    by_mark: dict[int, list[int]] = {}
    for rank, marks in enumerate(said):
        if slot in marks:
            by_mark.setdefault(marks[slot], []).append(rank)
    groups = sorted(by_mark.values(), key=len, reverse=True)
    majority = groups[0] if len(groups[0]) > len(groups[1]) else []
    return [rank for group in groups if group is not majority for rank in group]


def marks_of(spectrum: MagnitudeSpectrum, snapshot: Snapshot) -> dict[str, int]:
    """A positive int64 for each tensor: of its integer counts, and of all its words together.

    No single bit can flip unseen. ``spectrum`` is of the same weights, before it was summed.
    """
    words, found = _checksums(snapshot.tensors), {}
    for name in spectrum.names:
        own = spectrum.histogram(name)
        counts = zlib.crc32(own.counts.tobytes(), zlib.crc32(own.keys.tobytes()))
        text = f"{own.dtype} {counts} {own.num_inf} {own.num_nan} {words[name]}"
        mark = hashlib.blake2b(text.encode(), digest_size=8).digest()
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
