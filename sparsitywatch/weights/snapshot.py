"""The in-scope weights at one step, live or stored; a fixed sample of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Protocol

import numpy as np
import torch
from torch import nn

from sparsitywatch.weights.layout import Entry, natural_order
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.sharded import Tensors, local_of

#: Integers of the width of a weight: the bits of any float dtype can be read as these.
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Snapshot:
    """The in-scope weights at one step; of a live model its own memory: read it before a step."""

    step: int  # optimizer steps done
    scope: Scope
    tensors: Tensors  # in the scope's order, detached; what this rank holds

    @classmethod
    def of(cls, model: nn.Module, scope: Scope, step: int) -> Snapshot:
        """The weights of a live model as they are now, without a copy."""
        return cls.of_parameters(scope.parameters(model), scope, step)

    @classmethod
    def of_parameters(cls, parameters: Tensors, scope: Scope, step: int) -> Snapshot:
        """The same from the parameters that ``scope`` has found in the model."""
        held = map(local_of, parameters.values())
        return cls(step, scope, dict(zip(parameters, held, strict=True)))

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Names of the dtypes present, sorted, such as ("bfloat16", "float32")."""
        lazy = self.tensors.entries if isinstance(self.tensors, LazyTensors) else None
        found = {str(one.dtype).removeprefix("torch.") for one in (lazy or self.tensors).values()}
        return tuple(sorted(found))


class WarmCopy:
    """Copies of snapshots in buffers that stay: at the speed of memory from the second on."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    @property
    def is_warm(self) -> bool:
        """Whether there are buffers, which the next copy goes into."""
        return bool(self._buffers)

    def take(self, snapshot: Snapshot) -> Snapshot:
        """The same weights in memory of their own, on their device, until the next copy."""
        buffers = self.buffers(snapshot.tensors)
        # all tensors in one call, spread over torch's threads
        torch._foreach_copy_(list(buffers.values()), list(snapshot.tensors.values()))
        return replace(snapshot, tensors=buffers)

    def buffers(self, tensors: Tensors) -> dict[str, torch.Tensor]:
        """Room for tensors of these shapes, dtypes and devices, whatever is in it."""
        fits = self._buffers.keys() == tensors.keys() and all(
            (b.shape, b.dtype, b.device) == (t.shape, t.dtype, t.device)
            for b, t in zip(self._buffers.values(), tensors.values(), strict=True)
        )
        if not fits:  # zero_: the pages are touched here, once
            self._buffers = {name: torch.empty_like(t).zero_() for name, t in tensors.items()}
        return dict(self._buffers)


#: Sees stored weights while they are read for somebody else: a tensor's name, and the bits, as
#: unsigned integers, of its weights from an index on. From several threads; perhaps twice.
ReadObserver = Callable[[str, int, np.ndarray], None]


class Store(Protocol):
    """Where stored weights lie; a ``Checkpoint`` is one. Threads may read side by side."""

    @property
    def chunk_bytes(self) -> int:
        """How long the buffer for ``chunks`` should be."""

    def read(self, name: str) -> torch.Tensor:
        """A whole tensor."""

    def in_byte_order(self, names: Iterable[str]) -> list[str]:
        """Names of tensors in the order in which they are best read."""

    def chunks(self, name: str, buffer: memoryview) -> Generator[memoryview, None, None]:
        """The bytes of a tensor in flat order, whole weights; each good until the next one."""

    def check_unchanged(self) -> None:
        """Raise if something was written since it was opened."""


class LazyTensors(Mapping[str, torch.Tensor]):
    """Name to stored weights, each read when it is asked for and not kept."""

    def __init__(
        self, entries: Mapping[str, Entry], store: Store, observers: Sequence[ReadObserver] = ()
    ) -> None:
        self.entries = dict(entries)  # in the order of the scope, with their names in the store
        self.store = store
        self._observers = tuple(observers)

    def observed(self, observer: ReadObserver) -> LazyTensors:
        """The same weights; ``observer``, too, sees the chunks that are read of them."""
        return LazyTensors(self.entries, self.store, (*self._observers, observer))

    def chunks(self, name: str, buffer: memoryview) -> Generator[np.ndarray, None, None]:
        """The bits of a tensor in flat order, as unsigned integers; as in ``Store.chunks``."""
        entry, first = self.entries[name], 0
        # closed whatever happens: the next one may wait for what it holds
        with closing(self.store.chunks(entry.name, buffer)) as chunks:
            for chunk in chunks:
                bits = np.frombuffer(chunk, f"u{entry.dtype.itemsize}")
                for observe in self._observers:
                    observe(name, first, bits)
                first += len(bits)
                yield bits

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.store.read(self.entries[name].name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


@dataclass(frozen=True, eq=False)  # itself alone, so that it can be a key
class SampleIndex:
    """Which weights of a flat tensor are sampled."""

    num: int
    #: int64 [num], rising, so that they are met in the order of the bytes; None: all.
    where: np.ndarray | None

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sampled weights, 1-D, on the tensor's own device, in memory of their own."""
        bits = bits_of(tensor)
        if bits.is_cpu:  # by numpy, in this thread alone; torch would wake its own
            flat = bits.numpy()
            found = torch.from_numpy(flat.copy() if self.where is None else flat[self.where])
        elif self.where is None:
            found = bits.clone()
        else:
            found = bits[torch.from_numpy(self.where).to(bits.device)]  # waits for the device
        return found.view(tensor.dtype)


def bits_of(tensor: torch.Tensor) -> torch.Tensor:
    """The bits of a tensor's weights as integers, on its own device, [N]; perhaps a view."""
    return tensor.detach().reshape(-1).view(BITS[tensor.dtype.itemsize])


def gather_sample(tensors: Tensors, chosen: Mapping[str, SampleIndex]) -> dict[str, torch.Tensor]:
    """The chosen weights by name, 1-D, on the CPU, in memory of their own."""
    found: dict[str, torch.Tensor] = {}
    on_devices: dict[tuple[torch.device, torch.dtype], list[str]] = {}
    for name, some in chosen.items():
        one = found[name] = some.of(tensors[name])
        if not one.is_cpu:
            on_devices.setdefault((one.device, one.dtype), []).append(name)
    for (_, dtype), names in on_devices.items():  # each in one transfer, which waits for the device
        bits = torch.cat([bits_of(found[name]) for name in names]).cpu().view(dtype)
        found.update(zip(names, torch.split(bits, [chosen[n].num for n in names]), strict=True))
    return found


@dataclass(frozen=True)
class Sampler:
    """Takes the same weights again and again, by names, sizes and seed; in whatever order."""

    num_samples: int | None  # None, or more than there are: every in-scope weight
    seed: int = 0

    # of the same model again and again, in a replay by samplers made anew
    @lru_cache(maxsize=8)  # noqa: B019  what it keeps alive is two numbers
    def chosen(self, sizes: tuple[tuple[str, int], ...]) -> Mapping[str, SampleIndex]:
        """Which weights are sampled of tensors of these names and sizes, in natural order."""
        generator = torch.Generator().manual_seed(self.seed)
        total = sum(size for _, size in sizes)
        share = 1.0 if self.num_samples is None else min(1.0, self.num_samples / total)
        chosen = {}
        for name, size in sorted(sizes, key=lambda item: natural_order(item[0])):
            num, where = math.ceil(share * size), None
            if num < size:
                # With replacement: no permutation of a large tensor is ever built.
                drawn = torch.randint(size, (num,), generator=generator, device="cpu")
                where = np.sort(drawn.numpy())
            chosen[name] = SampleIndex(num, where)
        return MappingProxyType(chosen)

    def take(self, snapshot: Snapshot) -> dict[str, torch.Tensor]:
        """The sampled weights by name, in the natural order of the names, on the CPU."""
        return gather_sample(snapshot.tensors, self.chosen(snapshot.scope.sizes))

    def observed(self, snapshot: Snapshot, taken: dict[str, torch.Tensor]) -> Snapshot:
        """The same stored snapshot, sampled into ``taken`` while it is read, which is once."""
        lazy = snapshot.tensors
        assert isinstance(lazy, LazyTensors)  # noqa: S101 for the type checker
        chosen = self.chosen(snapshot.scope.sizes)
        into: dict[str, np.ndarray] = {}
        for name, some in chosen.items():
            dtype = lazy.entries[name].dtype
            taken[name] = torch.empty(some.num, dtype=dtype, device="cpu")
            into[name] = taken[name].view(BITS[dtype.itemsize]).numpy()

        def observe(name: str, first: int, bits: np.ndarray) -> None:
            own, where = into[name], chosen[name].where
            bits, last = bits.view(own.dtype), first + len(bits)
            if where is None:
                own[first:last] = bits
            else:
                begin, end = where.searchsorted([first, last])  # the sampled ones among them
                own[begin:end] = bits[where[begin:end] - first]

        return replace(snapshot, tensors=lazy.observed(observe))


#: Whose bits are in a fingerprint, however many weights are compared between snapshots.
FINGERPRINTED = Sampler(65_536)


def fingerprint(digest: str, sample: Tensors) -> str:
    """What tells weights from others: 16 hexadecimal digits."""
    state = hashlib.sha256(digest.encode())  # of all by magnitude, wherever they are
    for name, tensor in sorted(sample.items()):  # signs and last bits of some, in their place
        state.update(name.encode() + tensor.view(torch.uint8).numpy().tobytes())
    return state.hexdigest()[:16]


@np.errstate(invalid="ignore")  # a NaN may be a signalling one
def float64_of(*tensors: torch.Tensor) -> np.ndarray:
    """The values of CPU tensors of any float dtype, one after another, in memory of their own."""
    found, end = np.empty(sum(map(torch.numel, tensors))), 0
    for tensor in tensors:
        flat, start = tensor.detach().reshape(-1), end
        end += flat.numel()
        if flat.dtype is torch.bfloat16:  # the upper half of a float32
            bits = flat.view(torch.int16).numpy().view(np.uint16).astype(np.uint32)
            found[start:end] = (bits << np.uint32(16)).view(np.float32)
        else:
            found[start:end] = (flat.float() if flat.dtype.itemsize == 1 else flat).numpy()
    return found
