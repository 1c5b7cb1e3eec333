"""What ranks that hold pieces of a model add up to: the same on every rank as of one process.

Integer counts add, so that no weight is gathered for a spectrum. Fixed samples of weights are
gathered: they have the same size for every model, or are a few of each tensor. What is taken of a
whole tensor depends on its name and size alone; each rank sends those that it counts.
"""

from __future__ import annotations

import contextlib
import hashlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from sparsitywatch.errors import ScopeError
from sparsitywatch.records import Replicas
from sparsitywatch.shown import shown_name
from sparsitywatch.weights.shards import Ranks, Shards
from sparsitywatch.weights.snapshot import SampleIndex, Sampler, Snapshot, gather_sample
from sparsitywatch.weights.spectrum import MagnitudeSpectrum
from sparsitywatch.weights.spectrum.histogram import STORAGES

__all__ = ["Together", "compared", "gathered", "marks_of", "summed"]


def summed(spectrum: MagnitudeSpectrum, shards: Shards, ranks: Ranks) -> MagnitudeSpectrum:
    """The spectrum of the whole model, on every rank, from those of what each of them holds.

    Which bins are occupied anywhere is exchanged first, as bits, so that the counts of these
    alone are: in int64, since 2.1 billion weights of one bin are possible.

    Args:
        spectrum: of the tensors that this rank holds, in the order of the scope.
    """
    names = spectrum.names
    ends = np.cumsum([STORAGES[spectrum.histogram(n).dtype].bins.inf_key for n in names])
    starts = dict(zip(names, [0, *ends[:-1].tolist()], strict=True))
    occupied = np.zeros(int(ends[-1]), bool)
    own = {name: spectrum.histogram(name) for name in names if name in shards.owned}
    for name, histogram in own.items():
        occupied[starts[name] + histogram.keys] = True
    ranks.union(bits := np.packbits(occupied))
    bins = np.flatnonzero(np.unpackbits(bits, count=len(occupied)))
    counts = np.zeros(len(bins) + 2 * len(names), np.int64)
    for row, name in enumerate(names):
        if name in own:
            counts[bins.searchsorted(starts[name] + own[name].keys)] = own[name].counts
            counts[len(bins) + 2 * row :][:2] = own[name].num_inf, own[name].num_nan
    ranks.sum(counts)
    cuts = bins.searchsorted(ends)
    keys = np.split(bins, cuts[:-1])
    counted = np.split(counts[: len(bins)], cuts[:-1])
    beyond = counts[len(bins) :].reshape(-1, 2).tolist()
    return spectrum.with_counts(
        {
            name: ((of_bins - starts[name]).astype(np.int32), of_counts, *of_beyond)
            for name, of_bins, of_counts, of_beyond in zip(
                names, keys, counted, beyond, strict=True
            )
        }
    )


def gathered(
    sampler: Sampler, snapshot: Snapshot, shards: Shards, ranks: Ranks
) -> dict[str, torch.Tensor]:
    """The weights that ``sampler`` would take of the whole model, on every rank.

    Args:
        snapshot: what this rank holds.
    """
    if shards.is_whole:
        return sampler.take(snapshot)
    chosen, tensors = sampler.chosen(snapshot.scope.sizes), snapshot.tensors
    found: dict[str, torch.Tensor] = {}
    for dtype in dict.fromkeys(tensors[name].dtype for name in chosen):
        alike = {name: some for name, some in chosen.items() if tensors[name].dtype == dtype}
        words = _exchanged(alike, _words(alike, tensors, shards), dtype.itemsize, shards, ranks)
        found |= {name: torch.from_numpy(part).view(dtype) for name, part in words.items()}
    return {name: found[name] for name in chosen}


@dataclass(frozen=True)
class _Plan:
    """Who sends which of some weights.

    Args:
        own: of what this rank holds, by name; those of others are absent.
        places: by rank, where what it sends stands among all of them, int64.
    """

    own: Mapping[str, SampleIndex]
    places: Sequence[np.ndarray]


@lru_cache(maxsize=16)  # the same samples at every snapshot
def _plan(chosen: tuple[tuple[str, SampleIndex], ...], shards: Shards) -> _Plan:
    own: dict[str, SampleIndex] = {}
    places: list[list[np.ndarray]] = [[np.empty(0, np.int64)] for _ in shards.pieces]
    start = 0
    for name, some in chosen:
        where = np.arange(some.num) if some.where is None else some.where
        for piece, rank in shards.counted.get(name, ()):
            index, local = piece.locate(where)
            if len(index):
                places[rank].append(start + index)
                if rank == shards.rank:
                    own[name] = SampleIndex(len(local), local)
        start += some.num
    return _Plan(own, [np.concatenate(parts) for parts in places])


def _words(
    chosen: Mapping[str, SampleIndex], tensors: Mapping[str, torch.Tensor], shards: Shards
) -> dict[str, np.ndarray]:
    """The words of what this rank sends of tensors of one dtype; in one transfer from a device."""
    own = _plan(tuple(chosen.items()), shards).own
    if not own:
        return {}
    words = gather_sample({name: tensors[name] for name in own}, own).numpy()
    ends = np.cumsum([some.num for some in own.values()])
    return dict(zip(own, np.split(words, ends[:-1]), strict=True))


def _exchanged(
    chosen: Mapping[str, SampleIndex],
    own: Mapping[str, np.ndarray],
    itemsize: int,
    shards: Shards,
    ranks: Ranks,
) -> dict[str, np.ndarray]:
    """What belongs to some weights of the whole tensors, on every rank.

    Args:
        chosen: of each whole tensor.
        own: what belongs to those of them that this rank sends, by name.
        itemsize: bytes of what belongs to one weight.

    Returns:
        Unsigned integers, by name, in memory of their own.
    """
    if not chosen:
        return {}
    plan = _plan(tuple(chosen.items()), shards)
    mine = [own[name].view(np.uint8) for name in plan.own]
    sizes = [itemsize * len(places) for places in plan.places]
    sent = ranks.gather(np.concatenate([np.empty(0, np.uint8), *mine]), sizes)
    ends = np.cumsum([some.num for some in chosen.values()])
    found = np.empty(ends[-1], f"u{itemsize}")
    for places, part in zip(plan.places, sent, strict=True):
        found[places] = part.view(found.dtype)
    return dict(zip(chosen, np.split(found, ends[:-1]), strict=True))


class Together:
    """Parameters of which a rank may hold a part only, read as one process would read the whole.

    Args:
        shards: of all parameters of the model.
        ranks: that read them.
    """

    def __init__(self, shards: Shards, ranks: Ranks) -> None:
        self._shards, self._ranks = shards, ranks

    @classmethod
    def of(cls, parameters: Mapping[str, torch.Tensor], ranks: Ranks) -> Together | None:
        """None if each rank holds all of them.

        Raises:
            ScopeError: the ranks do not hold all of one between them.
        """
        shards = Shards.of(parameters, ranks)
        return None if shards.is_whole else cls(shards, ranks)

    def reading(self, what: str, names: Iterable[str]) -> contextlib.AbstractContextManager[None]:
        """Around what is read of some parameters: it succeeds, or fails, on every rank."""
        return self._ranks.together(f"{what}: {zlib.crc32(' '.join(names).encode())}")

    def own(self, chosen: Mapping[str, SampleIndex]) -> Mapping[str, SampleIndex]:
        """Those of some weights of whole tensors that this rank reads, in what it holds."""
        return _plan(tuple(chosen.items()), self._shards).own

    def gather_sample(
        self, tensors: Mapping[str, torch.Tensor], chosen: Mapping[str, SampleIndex]
    ) -> torch.Tensor:
        """What ``snapshot.gather_sample`` gives for the whole tensors.

        Args:
            tensors: what this rank holds of them, of one dtype.
            chosen: of the whole ones.
        """
        with self.reading("a sample of parameters", tensors):
            for name, tensor in tensors.items():
                if tensor.numel() != (held := self._shards.held[name]).num_weights:
                    raise ScopeError(
                        f"Expected this rank to hold {held.shape} of {shown_name(name)!r} as at "
                        f"attach, got {tuple(tensor.shape)}. Attach a new watch after sharding "
                        "the model."
                    )
            own = _words(chosen, tensors, self._shards)
        itemsize = next(iter(tensors.values())).dtype.itemsize
        found = _exchanged(chosen, own, itemsize, self._shards, self._ranks)
        words = np.concatenate([*found.values()])
        return torch.from_numpy(words if itemsize == 1 else words.view(f"i{itemsize}"))

    def gathered(
        self, chosen: Mapping[str, SampleIndex], own: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        """A number that belongs to each of some weights of whole tensors, from those of ``own``.

        Args:
            chosen: which weights.
            own: float64, by name.
        """
        found = _exchanged(chosen, own, 8, self._shards, self._ranks)
        return {name: words.view(float) for name, words in found.items()}

    def highest(self, numbers: np.ndarray) -> np.ndarray:
        """The largest over ranks, int64 [N]; in place."""
        return self._ranks.highest(numbers)


# ------------------------------------------------------------------ whether replicas agree


def compared(marks: Mapping[str, int], shards: Shards, ranks: Ranks) -> Replicas | None:
    """Whether ranks that hold the same weights hold the same bits; None if no two do.

    Where the largest and the smallest mark over ranks agree, so do all.

    Args:
        marks: of what this rank holds, by name.
    """
    if not shards.has_replicas:
        return None
    slots = list(shards.holders)
    own = np.full((2, len(slots)), np.iinfo(np.int64).min, np.int64)
    for column, (name, piece) in enumerate(slots):
        if shards.held[name] == piece:
            own[:, column] = marks[name], -marks[name]
    high, low = ranks.highest(own.reshape(-1)).reshape(2, -1)
    unlike = [slots[column] for column in np.flatnonzero(high != -low)]
    if not unlike:
        return Replicas(num_ranks=ranks.size)
    said = ranks.all_of(
        {slot: marks[slot[0]] for slot in unlike if shards.held[slot[0]] == slot[1]}
    )
    return Replicas(
        num_ranks=ranks.size,
        ranks=tuple(sorted({rank for slot in unlike for rank in _odd_ones(slot, said)})),
        tensors=tuple(dict.fromkeys(name for name, _ in unlike)),
    )


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

    No single bit can flip unseen.

    Args:
        spectrum: of what this rank holds, before anything was added up.
        snapshot: the same weights.
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
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        if flat.device.type == "cpu":
            # by this thread alone; torch would wake its own beside a training
            bytes_ = flat.numpy()
            wide = bytes_[: len(bytes_) // 8 * 8].view(np.int64)
            rest = zlib.crc32(bytes_[len(wide) * 8 :].tobytes())
            found[name] = int(np.bitwise_xor.reduce(wide)) ^ rest
        else:
            there.setdefault(flat.device, {})[name] = _sum_of(flat)
    for sums in there.values():  # one transfer from each device
        found |= zip(sums, torch.stack([*sums.values()]).tolist(), strict=True)
    return found


def _sum_of(flat: torch.Tensor) -> torch.Tensor:
    """The sum of all words, on their device, int64; of bytes in a row."""
    wide = flat[: len(flat) // 4 * 4].view(torch.int32)
    return wide.sum(dtype=torch.int64) + flat[len(wide) * 4 :].sum()
