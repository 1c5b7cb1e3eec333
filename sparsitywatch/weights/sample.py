"""A fixed random sample of the in-scope weights, the same at every snapshot, live or stored."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from sparsitywatch.records import MaskOverlap
from sparsitywatch.weights.dormancy import float64_of
from sparsitywatch.weights.layout import natural_order
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import Snapshot
from sparsitywatch.weights.spectrum import MagnitudeSpectrum
from sparsitywatch.weights.spectrum.counting import LazyTensors

__all__ = [
    "FINGERPRINTED",
    "MASK_LEVELS",
    "MaskHistory",
    "Sampler",
    "fingerprint",
    "overlap",
    "removed",
]

#: Integers of the width of a weight: any float dtype can be picked from as these.
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Sampler:
    """Picks the same weights of a model again and again.

    The choice depends on names, sizes and the seed alone; not on the order in which a model
    or a file has its tensors.

    Args:
        num_samples: how many; None, or more than there are: every in-scope weight.
        seed: of the generator.
    """

    def __init__(self, num_samples: int | None, seed: int = 0) -> None:
        self.num_samples, self.seed = num_samples, seed

    def take(self, snapshot: Snapshot) -> dict[str, torch.Tensor]:
        """The sampled weights by name, in the natural order of the names, on the CPU."""
        drawn = self._drawn(snapshot.scope)
        return {name: index.of(snapshot.tensors[name]) for name, index in drawn.items()}

    def tapped(self, snapshot: Snapshot, taken: dict[str, torch.Tensor]) -> Snapshot:
        """The same stored snapshot; what it reads is sampled on the way, and read once.

        Args:
            snapshot: whose tensors are read when they are asked for.
            taken: sampled weights are added to it; whole once every tensor has been read.
        """
        lazy, drawn = snapshot.tensors, self._drawn(snapshot.scope)
        assert isinstance(lazy, LazyTensors)  # noqa: S101 for the type checker
        for name, index in drawn.items():
            taken[name] = torch.empty(index.num, dtype=lazy.dtypes[name], device="cpu")
        return Snapshot(snapshot.step, snapshot.scope, lazy.tapped(_Tap(drawn, taken)))

    def _drawn(self, scope: Scope) -> Mapping[str, _Index]:
        """What is sampled of each tensor, in the order of ``take``."""
        in_scope = (entry for entry in scope.ledger if entry.in_scope)
        sizes = tuple((entry.name, entry.num_weights) for entry in in_scope)
        return _draw(sizes, self.num_samples, self.seed)


#: Whose bits are in a fingerprint, however many weights are compared from look to look.
FINGERPRINTED = Sampler(65_536)


def fingerprint(spectrum: MagnitudeSpectrum, sample: Mapping[str, torch.Tensor]) -> str:
    """What tells weights from others: 16 hexadecimal digits.

    Args:
        spectrum: of all of them; counts them by magnitude, without their place.
        sample: of ``FINGERPRINTED``; has signs and last bits of some, in their place.
    """
    state = hashlib.sha256(spectrum.digest().encode())
    for name, tensor in sorted(sample.items()):
        state.update(name.encode() + tensor.view(torch.uint8).numpy().tobytes())
    return state.hexdigest()[:16]


@dataclass(frozen=True)
class _Index:
    """Which weights of a flat tensor are sampled.

    Args:
        num: how many.
        where: int64 [num], rising, so that they are met in the order of the bytes; None: all.
    """

    num: int
    where: np.ndarray | None

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """They, on the CPU, in memory of their own."""
        words = tensor.detach().reshape(-1).view(_WORDS[tensor.dtype.itemsize])
        if self.where is None:
            picked = words.to("cpu", copy=True)
        elif words.device.type == "cpu":  # by this thread alone; torch would wake its own
            picked = torch.from_numpy(words.numpy()[self.where])
        else:
            picked = words[torch.from_numpy(self.where).to(words.device)].cpu()
        return picked.view(tensor.dtype)

    def put(self, words: np.ndarray, first: int, into: np.ndarray) -> None:
        """Put those that are among ``words``, which lie from index ``first`` on, to the others."""
        if self.where is None:
            into[first : first + len(words)] = words
            return
        begin, end = self.where.searchsorted([first, first + len(words)])
        into[begin:end] = words[self.where[begin:end] - first]


class _Tap:
    """Takes the sampled ones of the weights that are read.

    Args:
        drawn: which, of each tensor.
        taken: where they go: memory for as many.
    """

    def __init__(self, drawn: Mapping[str, _Index], taken: Mapping[str, torch.Tensor]) -> None:
        self._drawn, self._taken = drawn, taken
        self._words = {
            name: into.view(_WORDS[into.dtype.itemsize]).numpy() for name, into in taken.items()
        }

    def see(self, name: str, tensor: torch.Tensor) -> None:
        self._taken[name].copy_(self._drawn[name].of(tensor))

    def see_some(self, name: str, first: int, words: np.ndarray) -> None:
        into = self._words[name]
        self._drawn[name].put(words.view(into.dtype), first, into)


@lru_cache(maxsize=8)  # of the same model again and again, in a replay by samplers made anew
def _draw(
    sizes: tuple[tuple[str, int], ...], num_samples: int | None, seed: int
) -> Mapping[str, _Index]:
    generator = torch.Generator().manual_seed(seed)
    total = sum(size for _, size in sizes)
    share = 1.0 if num_samples is None else min(1.0, num_samples / total)
    drawn = {}
    for name, size in sorted(sizes, key=lambda item: natural_order(item[0])):
        num, where = math.ceil(share * size), None
        if num < size:
            # With replacement: no permutation of a large tensor is ever built.
            where = np.sort(torch.randint(size, (num,), generator=generator, device="cpu").numpy())
        drawn[name] = _Index(num, where)
    return MappingProxyType(drawn)


def removed(sample: Mapping[str, torch.Tensor], thresholds: Sequence[float]) -> np.ndarray:
    """The weights that go at each threshold, as packed bits.

    Args:
        sample: floating point, [N] in all, by name.
        thresholds: K of them; a weight goes if |w| <= threshold.

    Returns:
        uint8 [K, ceil(N / 8)].

    >>> removed({"w": torch.tensor([0.1, -2.0, 0.3, float("nan")])}, [0.2, 9.0])
    array([[128],
           [224]], dtype=uint8)
    """
    together = float64_of(*sample.values())
    np.abs(together, out=together)
    return np.stack([np.packbits(together <= threshold) for threshold in thresholds])


# ------------------------------------------------------------------ masks compared over time
#
# While a model forms, the smallest weights of one snapshot are others at the next. Once pruning
# would remove the same ones snapshot after snapshot, its sparse structure is there.

#: Sparsities whose masks are compared.
MASK_LEVELS = (0.5, 0.7, 0.9)
#: Bits that are set in each byte; numpy counts them itself from version 2 on.
_NUM_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1)


def overlap(before: np.ndarray, now: np.ndarray) -> float:
    """Of what was removed before, the fraction that is removed now; NaN if that was nothing.

    Args:
        before, now: packed bits, uint8 [B].

    >>> overlap(np.packbits([1, 1, 1, 0]), np.packbits([0, 1, 1, 1]))
    0.6666666666666666
    """
    num_before = int(_NUM_BITS[before].sum())
    return int(_NUM_BITS[before & now].sum()) / num_before if num_before else math.nan


class MaskHistory:
    """Remembers what pruning would have removed at the last snapshot."""

    def __init__(self) -> None:
        self._step, self._removed = -1, np.empty((0, 0), np.uint8)

    def update(self, step: int, bits: np.ndarray, num_sampled: int) -> MaskOverlap:
        """Compare with the last snapshot, and remember this one.

        Args:
            step: of the snapshot.
            bits: what goes, packed, uint8 [K, B], one row for each of ``MASK_LEVELS``.
            num_sampled: weights that the bits stand for.
        """
        since, before = self._step, self._removed
        self._step, self._removed = step, bits
        if before.shape == bits.shape:
            found = [overlap(*rows) for rows in zip(before, bits, strict=True)]
        else:
            since, found = -1, [math.nan] * len(bits)
        return MaskOverlap(
            level=MASK_LEVELS, overlap=tuple(found), num_sampled=num_sampled, since_step=since
        )

    def state_dict(self) -> dict[str, Any]:
        """The masks of the last snapshot."""
        return {"step": self._step, "removed": self._removed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` gave."""
        self._step = int(state["step"])
        self._removed = np.array(state["removed"], np.uint8)
