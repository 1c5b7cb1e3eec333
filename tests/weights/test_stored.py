"""Weights that lie somewhere else: counted as they are read, to the integers of those in memory."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from sparsitywatch.errors import CheckpointError, ConfigurationError
from sparsitywatch.weights.spectrum import MagnitudeSpectrum, counter, reading, stored
from sparsitywatch.weights.spectrum.bins import STORAGES
from sparsitywatch.weights.stored import LazyTensors, LoadedStretch

pytestmark = pytest.mark.usefixtures("counted_by")


@dataclass(frozen=True)
class Part:
    """Some bytes of a tensor, given away in pieces, each at an address ``shift`` off."""

    data: bytes
    at_once: int
    shift: int = 0
    position: tuple[str, int] = ("", 0)

    @property
    def offset(self) -> int:
        return self.position[1]

    @property
    def num_bytes(self) -> int:
        return len(self.data)

    def pieces(self, buffer: memoryview) -> Iterator[memoryview]:
        for start in range(0, len(self.data), self.at_once):
            piece = self.data[start : start + self.at_once]
            into = memoryview(bytearray(len(piece) + self.shift))[self.shift :]
            into[:] = piece
            yield memoryview(piece) if self.shift == 0 else into  # bytes may not be written to


@dataclass
class Parts:
    """A store that gives away ``tensors`` in parts of ``size`` weights."""

    tensors: Mapping[str, torch.Tensor]
    size: int = 1000
    at_once: int = 100
    shift: int = 0
    was_written: bool = False
    num_checks: int = field(default=0, init=False)

    def read(self, name: str) -> torch.Tensor:
        pytest.fail("read as a whole")

    def stretches(self, name: str) -> list[Part]:
        tensor = self.tensors[name]
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        step = self.size * tensor.itemsize
        return [
            Part(data[i : i + step], self.at_once * tensor.itemsize, self.shift, (name, i))
            for i in range(0, len(data), step)
        ]

    def check_unchanged(self) -> None:
        self.num_checks += 1
        if self.was_written:
            raise CheckpointError("written meanwhile")

    def lazy(self) -> LazyTensors:
        dtypes = {name: t.dtype for name, t in self.tensors.items()}
        return LazyTensors(dtypes, self.read, self)


def some_weights(dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {
        name: torch.randn(shape, generator=generator).to(dtype)
        for name, shape in {"large": (70, 90), "one": (1,), "none": (0, 3), "odd": (3, 7)}.items()
    }
    special = [0.0, -0.0, torch.nan, torch.inf, -torch.inf, torch.finfo(dtype).max]
    found["special"] = torch.tensor(special, dtype=torch.float64).to(dtype)
    return found


@pytest.mark.parametrize("dtype", STORAGES, ids=str)
@pytest.mark.parametrize("num_threads", [1, 3])
def test_the_same_integers_as_in_memory(dtype, num_threads, monkeypatch) -> None:
    monkeypatch.setattr(reading, "MIN_PIECE", 500)
    weights = some_weights(dtype)
    store = Parts(weights)
    found = MagnitudeSpectrum.of(store.lazy(), num_threads=num_threads)
    assert found == MagnitudeSpectrum.of(weights)
    assert found.names == tuple(weights)
    assert store.num_checks == 1


@settings(deadline=None, max_examples=40)
@given(
    size=st.integers(1, 3000),
    at_once=st.integers(1, 3000),
    shift=st.integers(0, 9),
    most=st.integers(1, 4000),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.float8_e5m2]),
)
def test_however_it_comes(size, at_once, shift, most, dtype) -> None:
    weights = some_weights(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "MAX_ADDED", most)
        lazy = Parts(weights, size, at_once, shift).lazy()
        assert MagnitudeSpectrum.of(lazy, num_threads=2) == MagnitudeSpectrum.of(weights)


def test_few_are_counted_without_numba(monkeypatch) -> None:
    monkeypatch.setattr(counter, "MIN_COMPILED", 1 << 18)
    monkeypatch.setattr(counter.kernel, "load", lambda num_bytes: pytest.fail("loaded"))
    weights = some_weights(torch.float32)
    assert MagnitudeSpectrum.of(Parts(weights).lazy()) == MagnitudeSpectrum.of(weights)


def test_what_cannot_be_counted_is_refused_before_it_is_read() -> None:
    store = Parts({"w": torch.ones(3, dtype=torch.int32)})
    store.stretches = lambda name: pytest.fail("read")  # type: ignore[method-assign]
    with pytest.raises(ConfigurationError, match=r"'w'.*dtype torch\.int32"):
        MagnitudeSpectrum.of(store.lazy())


def test_a_store_that_was_written_meanwhile_is_noticed() -> None:
    store = Parts(some_weights(torch.float32), was_written=True)
    with pytest.raises(CheckpointError, match="written meanwhile"):
        MagnitudeSpectrum.of(store.lazy())


def test_after_a_failure_nothing_more_is_read(monkeypatch) -> None:
    monkeypatch.setattr(reading, "MIN_PIECE", 500)
    begun: list[tuple[str, int]] = []
    emptied = threading.Event()

    class Queue(deque):
        def clear(self) -> None:
            super().clear()
            emptied.set()

    def pieces(self: Part, buffer: memoryview) -> Iterator[memoryview]:
        begun.append(self.position)
        if self.position == ("w", 0):
            raise CheckpointError("damaged")
        assert emptied.wait(60)
        yield memoryview(self.data)

    monkeypatch.setattr(reading, "deque", Queue)
    monkeypatch.setattr(Part, "pieces", pieces)
    weights = {"w": torch.ones(100_000)}
    with pytest.raises(CheckpointError, match="damaged"):
        MagnitudeSpectrum.of(Parts(weights).lazy(), num_threads=2)
    assert len(begun) <= 2  # of a hundred: one by each thread


def test_stretches_are_begun_in_the_order_of_the_bytes(monkeypatch) -> None:
    begun: list[tuple[str, int]] = []
    plain = Part.pieces

    def pieces(self: Part, buffer: memoryview) -> Iterator[memoryview]:
        begun.append(self.position)
        return plain(self, buffer)

    monkeypatch.setattr(Part, "pieces", pieces)
    MagnitudeSpectrum.of(Parts(some_weights(torch.float32)).lazy(), num_threads=1)
    assert begun == sorted(begun)
    assert len(begun) > 7


class Whole:
    """A store that can only give whole tensors; the most that lived at once."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.most = 0
        self._alive: list[weakref.ref[torch.Tensor]] = []

    def read(self, name: str) -> torch.Tensor:
        tensor = self.tensors[name].clone()
        self._alive.append(weakref.ref(tensor))
        self.most = max(self.most, sum(ref() is not None for ref in self._alive))
        return tensor

    def stretches(self, name: str) -> list[LoadedStretch]:
        return [LoadedStretch((name, 0), self.tensors[name].nbytes, lambda: self.read(name))]

    def check_unchanged(self) -> None:
        pass


@pytest.mark.parametrize("in_stretches", [True, False])
def test_whole_tensors_are_read_one_at_a_time_and_not_kept(in_stretches) -> None:
    weights = {f"w{at}": torch.randn(50, 4).t() for at in range(5)}
    weights["none"] = torch.ones(0)
    store = Whole(weights)
    dtypes = {name: tensor.dtype for name, tensor in weights.items()}
    lazy = LazyTensors(dtypes, store.read, store if in_stretches else None)
    assert MagnitudeSpectrum.of(lazy, num_threads=1) == MagnitudeSpectrum.of(weights)
    assert store.most <= 2
    assert (list(lazy), len(lazy), "w9" in lazy) == (list(weights), 6, False)
    assert torch.equal(lazy["w2"], weights["w2"])
    with pytest.raises(KeyError):
        lazy["w9"]
