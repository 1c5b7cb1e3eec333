"""The in-scope weights at one step, live or stored; a fixed sample of them, and masks of it."""

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
from torch import nn

from sparsitywatch.records import MaskOverlap
from sparsitywatch.weights.layout import natural_order
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.sharded import local_of
from sparsitywatch.weights.spectrum import MagnitudeSpectrum
from sparsitywatch.weights.spectrum.counting import LazyTensors

__all__ = [
    "FINGERPRINTED",
    "MASK_LEVELS",
    "MaskHistory",
    "SampleIndex",
    "Sampler",
    "Snapshot",
    "WarmCopy",
    "fingerprint",
    "float64_of",
    "gather_sample",
    "overlap",
    "removed",
]


@dataclass(frozen=True)
class Snapshot:
    """The in-scope weights at one step.

    Args:
        step: optimizer steps done.
        scope: which weights these are.
        tensors: name to weights, in the scope's order, detached; of a sharded model what this
            rank holds of each. From a live model they alias the model's own memory: read them
            before the next optimizer step, and write to none of them.
    """

    step: int
    scope: Scope
    tensors: Mapping[str, torch.Tensor]

    @classmethod
    def of(cls, model: nn.Module, scope: Scope, step: int) -> Snapshot:
        """The weights of a live model as they are now, without a copy.

        Raises:
            ScopeError: a parameter that was in scope is gone or has another shape.
        """
        return cls.of_parameters(scope.parameters(model), scope, step)

    @classmethod
    def of_parameters(
        cls, parameters: Mapping[str, torch.Tensor], scope: Scope, step: int
    ) -> Snapshot:
        """The same from the parameters that ``scope`` has found in the model."""
        return cls(step, scope, {name: local_of(p) for name, p in parameters.items()})

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Names of the dtypes present, sorted, such as ("bfloat16", "float32")."""
        if isinstance(self.tensors, LazyTensors):
            found = set(self.tensors.dtypes.values())
        else:
            found = {tensor.dtype for tensor in self.tensors.values()}
        return tuple(sorted(str(dtype).removeprefix("torch.") for dtype in found))


class WarmCopy:
    """Copies of snapshots in buffers that stay: at the speed of memory from the second on.

    Memory: the weights' own size, from the first copy until this is dropped.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    @property
    def is_warm(self) -> bool:
        """Whether there are buffers, which the next copy goes into."""
        return bool(self._buffers)

    def take(self, snapshot: Snapshot) -> Snapshot:
        """The same weights in memory of their own, until the next copy is taken.

        Args:
            snapshot: tensors of any float dtype, on any device; the copy is on the same.
        """
        fits = self._buffers.keys() == snapshot.tensors.keys() and all(
            (b.shape, b.dtype, b.device) == (t.shape, t.dtype, t.device)
            for b, t in zip(self._buffers.values(), snapshot.tensors.values(), strict=True)
        )
        if not fits:
            self._buffers = {
                name: torch.empty_like(t).zero_()  # zero_: the pages are touched here, once
                for name, t in snapshot.tensors.items()
            }
        # all tensors in one call, spread over torch's threads
        torch._foreach_copy_(list(self._buffers.values()), list(snapshot.tensors.values()))
        return Snapshot(snapshot.step, snapshot.scope, dict(self._buffers))


# ------------------------------------------------------------------ a sample

#: Integers of the width of a weight: any float dtype can be gathered from as these.
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
#: Floats that numpy has, too.
_NUMPYS = (torch.float32, torch.float16, torch.float64)


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

    def chosen(self, sizes: tuple[tuple[str, int], ...]) -> Mapping[str, SampleIndex]:
        """Which weights of each tensor are sampled, in the natural order of the names.

        Args:
            sizes: names of the in-scope tensors and numbers of their weights.
        """
        return _choose(sizes, self.num_samples, self.seed)

    def take(self, snapshot: Snapshot) -> dict[str, torch.Tensor]:
        """The sampled weights by name, in the natural order of the names, on the CPU."""
        chosen = self.chosen(snapshot.scope.sizes)
        return {name: some.of(snapshot.tensors[name]) for name, some in chosen.items()}

    def observed(self, snapshot: Snapshot, taken: dict[str, torch.Tensor]) -> Snapshot:
        """The same stored snapshot; what it reads is sampled on the way, and read once.

        Args:
            snapshot: whose tensors are read when they are asked for.
            taken: sampled weights are added to it; whole once every tensor has been read.
        """
        lazy = snapshot.tensors
        assert isinstance(lazy, LazyTensors)  # noqa: S101 for the type checker
        chosen = self.chosen(snapshot.scope.sizes)
        for name, some in chosen.items():
            taken[name] = torch.empty(some.num, dtype=lazy.dtypes[name], device="cpu")
        return Snapshot(
            snapshot.step, snapshot.scope, lazy.observed(_SampleObserver(chosen, taken))
        )


@dataclass(frozen=True, eq=False)  # itself alone, so that it can be a key
class SampleIndex:
    """Which weights of a flat tensor are sampled.

    Args:
        num: how many.
        where: int64 [num], rising, so that they are met in the order of the bytes; None: all.
    """

    num: int
    where: np.ndarray | None

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The chosen weights, on the CPU, in memory of their own."""
        if tensor.device.type == "cpu":
            words = self.array_of(tensor)
            return torch.from_numpy(words.copy() if self.where is None else words).view(
                tensor.dtype
            )
        return self.bits_of(tensor).cpu().view(tensor.dtype)

    def array_of(self, tensor: torch.Tensor) -> np.ndarray:
        """The chosen weights of a tensor on the CPU, bit for bit; perhaps a view.

        Their dtype is numpy's, or where it has none, integers of the same width.
        """
        flat = tensor.detach() if tensor.requires_grad else tensor
        if flat.dtype not in _NUMPYS:
            flat = flat.view(_WORDS[flat.dtype.itemsize])
        words: np.ndarray = flat.numpy().reshape(-1)
        # by this thread alone; torch would wake its own
        return words if self.where is None else words[self.where]

    def bits_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The bits of the chosen weights as integers, on their own device; perhaps a view."""
        words = bits_of(tensor)
        return words if self.where is None else words[torch.from_numpy(self.where).to(words.device)]


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """The bits of a tensor's weights as integers, on its own device, [N]; perhaps a view."""
    return tensor.detach().reshape(-1).view(_WORDS[tensor.dtype.itemsize])


def gather_sample(
    tensors: Mapping[str, torch.Tensor], chosen: Mapping[str, SampleIndex]
) -> torch.Tensor:
    """The bits of the chosen weights of tensors of one dtype, one after another.

    Those on a device come in one transfer.

    Args:
        tensors: by name.
        chosen: of each of them.

    Returns:
        Integers of the width of a weight, on the CPU, in memory of their own.
    """
    if all(tensor.is_cpu for tensor in tensors.values()):
        found = [chosen[name].array_of(tensor) for name, tensor in tensors.items()]
        values = torch.from_numpy(np.concatenate(found))
        return values.view(_WORDS[values.dtype.itemsize])
    words = [chosen[name].bits_of(tensor) for name, tensor in tensors.items()]
    devices = {each.device for each in words}
    if len(devices) > 1:
        words = [each.cpu() for each in words]
    return torch.cat(words).cpu()


@lru_cache(maxsize=8)  # of the same model again and again, in a replay by samplers made anew
def _choose(
    sizes: tuple[tuple[str, int], ...], num_samples: int | None, seed: int
) -> Mapping[str, SampleIndex]:
    """Which weights of each tensor are sampled, in the natural order of the names."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(size for _, size in sizes)
    share = 1.0 if num_samples is None else min(1.0, num_samples / total)
    chosen = {}
    for name, size in sorted(sizes, key=lambda item: natural_order(item[0])):
        num, where = math.ceil(share * size), None
        if num < size:
            # With replacement: no permutation of a large tensor is ever built.
            where = np.sort(torch.randint(size, (num,), generator=generator, device="cpu").numpy())
        chosen[name] = SampleIndex(num, where)
    return MappingProxyType(chosen)


class _SampleObserver:
    """Copies the sampled weights out of those that are read.

    Args:
        chosen: which, of each tensor.
        taken: where they go: memory for as many.
    """

    def __init__(
        self, chosen: Mapping[str, SampleIndex], taken: Mapping[str, torch.Tensor]
    ) -> None:
        self._chosen, self._taken = chosen, taken
        self._words = {
            name: into.view(_WORDS[into.dtype.itemsize]).numpy() for name, into in taken.items()
        }

    def see(self, name: str, tensor: torch.Tensor) -> None:
        self._taken[name].copy_(self._chosen[name].of(tensor))

    def see_some(self, name: str, first: int, words: np.ndarray) -> None:
        into, where = self._words[name], self._chosen[name].where
        if where is None:
            into[first : first + len(words)] = words.view(into.dtype)
            return
        begin, end = where.searchsorted([first, first + len(words)])  # the sampled ones among them
        into[begin:end] = words.view(into.dtype)[where[begin:end] - first]


#: Whose bits are in a fingerprint, however many weights are compared between snapshots.
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


def float64_of(*tensors: torch.Tensor) -> np.ndarray:
    """The values of CPU tensors of any float dtype, one after another, in memory of their own.

    >>> float64_of(torch.tensor([[1.5, -2.0]]).bfloat16(), torch.tensor(3.0))
    array([ 1.5, -2. ,  3. ])
    """
    found, end = np.empty(sum(map(torch.numel, tensors))), 0
    for tensor in tensors:
        flat, start = tensor.detach().reshape(-1), end
        end += flat.numel()
        if flat.dtype is torch.bfloat16:  # the upper half of a float32
            words = flat.view(torch.int16).numpy().view(np.uint16).astype(np.uint32)
            found[start:end] = (words << np.uint32(16)).view(np.float32)
        else:
            found[start:end] = (flat.float() if flat.dtype.itemsize == 1 else flat).numpy()
    return found


# ------------------------------------------------------------------ masks compared over time
#
# While a model forms, the smallest weights of one snapshot are others at the next. Once pruning
# would remove the same ones snapshot after snapshot, its sparse structure is there.

#: Sparsities whose masks are compared.
MASK_LEVELS = (0.5, 0.7, 0.9)
#: Bits that are set in each byte; numpy counts them itself from version 2 on.
_NUM_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1)


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
    values = float64_of(*sample.values())
    np.abs(values, out=values)
    return np.stack([np.packbits(values <= threshold) for threshold in thresholds])


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
