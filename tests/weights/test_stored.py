"""Weights that lie somewhere else: counted as they are read, to the integers of those in memory."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from sparsitywatch.errors import CheckpointError, ConfigurationError
from sparsitywatch.weights.layout import Entry
from sparsitywatch.weights.spectrum import MagnitudeSpectrum, counting, stored
from sparsitywatch.weights.spectrum.bins import STORAGES
from sparsitywatch.weights.spectrum.stored import LazyTensors

pytestmark = pytest.mark.usefixtures("counted_by")


def entries_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, Entry]:
    return {
        name: Entry(name=f"stored.{name}", shape=tuple(t.shape), dtype=t.dtype)
        for name, t in tensors.items()
    }


@dataclass
class Chunks:
    """A store that gives away ``tensors`` under names of its own, ``size`` weights at once."""

    tensors: Mapping[str, torch.Tensor]
    size: int = 100
    was_written: bool = False
    begun: list[str] = field(default_factory=list, init=False)
    num_checks: int = field(default=0, init=False)
    chunk_bytes = 64

    def read(self, name: str) -> torch.Tensor:
        pytest.fail("read as a whole")

    def in_byte_order(self, names: Iterable[str]) -> list[str]:
        return sorted(names)

    def chunks(self, name: str, buffer: memoryview) -> Iterator[memoryview]:
        self.begun.append(name)
        tensor = self.tensors[name.removeprefix("stored.")]
        words = tensor.contiguous().reshape(-1)
        for chunk in words.split(self.size) if len(words) else ():
            yield chunk.clone().view(torch.uint8).numpy().data

    def check_unchanged(self) -> None:
        self.num_checks += 1
        if self.was_written:
            raise CheckpointError("written meanwhile")

    def lazy(self) -> LazyTensors:
        return LazyTensors(entries_of(self.tensors), self.read, self)


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
    monkeypatch.setattr(counting, "MIN_PIECE", 500)
    weights = some_weights(dtype)
    store = Chunks(weights)
    found = MagnitudeSpectrum.of(store.lazy(), num_threads=num_threads)
    assert found == MagnitudeSpectrum.of(weights)
    assert found.names == tuple(weights)
    assert store.num_checks == 1


@settings(deadline=None, max_examples=40)
@given(
    size=st.integers(1, 7000),
    most=st.integers(1, 4000),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.float8_e5m2]),
)
def test_however_it_comes(size, most, dtype) -> None:
    weights = some_weights(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "MAX_ADDED", most)
        lazy = Chunks(weights, size).lazy()
        assert MagnitudeSpectrum.of(lazy, num_threads=2) == MagnitudeSpectrum.of(weights)


def test_few_are_counted_without_numba(monkeypatch) -> None:
    monkeypatch.setattr(counting, "MIN_COMPILED", 1 << 18)
    monkeypatch.setattr(counting.kernel, "load", lambda num_bytes: pytest.fail("loaded"))
    weights = some_weights(torch.float32)
    assert MagnitudeSpectrum.of(Chunks(weights).lazy()) == MagnitudeSpectrum.of(weights)


def test_what_cannot_be_counted_is_refused_before_it_is_read() -> None:
    store = Chunks({"w": torch.ones(3, dtype=torch.int32)})
    with pytest.raises(ConfigurationError, match=r"'w'.*dtype torch\.int32"):
        MagnitudeSpectrum.of(store.lazy())
    assert store.begun == []


def test_a_store_that_was_written_meanwhile_is_noticed() -> None:
    store = Chunks(some_weights(torch.float32), was_written=True)
    with pytest.raises(CheckpointError, match="written meanwhile"):
        MagnitudeSpectrum.of(store.lazy())


def test_after_a_failure_nothing_more_is_read(monkeypatch) -> None:
    monkeypatch.setattr(counting, "MIN_PIECE", 500)
    emptied = threading.Event()

    class Queue(deque):
        def clear(self) -> None:
            super().clear()
            emptied.set()

    class Damaged(Chunks):
        def chunks(self, name: str, buffer: memoryview) -> Iterator[memoryview]:
            if name == "stored.000":
                self.begun.append(name)
                raise CheckpointError("damaged")
            assert emptied.wait(60)
            yield from super().chunks(name, buffer)

    monkeypatch.setattr(counting, "deque", Queue)
    store = Damaged({f"{at:03}": torch.ones(1000) for at in range(100)})
    with pytest.raises(CheckpointError, match="damaged"):
        MagnitudeSpectrum.of(store.lazy(), num_threads=2)
    assert len(store.begun) <= 2  # of a hundred: one by each thread


def test_tensors_are_begun_in_the_order_of_the_bytes() -> None:
    store = Chunks(some_weights(torch.float32))
    MagnitudeSpectrum.of(store.lazy(), num_threads=1)
    assert store.begun[:5] == ["stored.large", "stored.none", "stored.odd", "stored.one",
                               "stored.special"]  # fmt: skip


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


def test_whole_tensors_are_read_one_at_a_time_and_not_kept() -> None:
    weights = {f"w{at}": torch.randn(50, 4).t() for at in range(5)}
    weights["none"] = torch.ones(0)
    store = Whole(weights)
    lazy = LazyTensors(entries_of(weights), store.read)
    assert MagnitudeSpectrum.of(lazy, num_threads=1) == MagnitudeSpectrum.of(weights)
    assert store.most <= 2
    assert (list(lazy), len(lazy), "w9" in lazy) == (list(weights), 6, False)
    assert torch.equal(lazy["w2"], weights["w2"])
    with pytest.raises(KeyError):
        lazy["w9"]
