"""How weights are counted: in memory, whatever strides, dtype and threads; and as they are read."""

from __future__ import annotations

import math
import random
import threading
from collections import deque
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from sparsitywatch.errors import CheckpointError, ConfigurationError
from sparsitywatch.weights.layout import Entry
from sparsitywatch.weights.snapshot import LazyTensors
from sparsitywatch.weights.spectrum import MagnitudeSpectrum, counting
from sparsitywatch.weights.spectrum.histogram import STORAGES

pytestmark = pytest.mark.usefixtures("counted_by")

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
FLOAT8 = [dtype for dtype in STORAGES if dtype.itemsize == 1]


def random_tensor(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def all_bits(dtype):
    """Weights of every exponent and sign, infinities, denormals and odd NaN included."""
    if dtype.itemsize == 1:
        return torch.arange(256, dtype=torch.uint8).repeat(3).view(dtype)
    top = np.arange(1 << 16, dtype=np.uint64)
    num_bits = 8 * dtype.itemsize
    low = np.array([0, 1, (1 << (num_bits - 16)) - 1], np.uint64)
    words = (top[:, None] << np.uint64(num_bits - 16) | low).ravel().astype(f"u{dtype.itemsize}")
    return torch.from_numpy(words.view(f"i{dtype.itemsize}")).view(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "view",
    [
        lambda w: w.t(),
        lambda w: w[:, ::2],
        lambda w: w[1:-1, 3:40],
        lambda w: w.flatten()[::3],
        lambda w: w.view(30, 4, 5, 10).to(memory_format=torch.channels_last),
        lambda w: w[:, :, None].expand(-1, -1, 3),
        lambda w: w.view(1, 120, 1, 50)[:, ::7],
        lambda w: w[5, 7],
        lambda w: w[:0],
    ],
)
def test_any_strides_count_like_a_copy(dtype, view, monkeypatch):
    monkeypatch.setattr(counting, "MIN_PIECE", 700)
    monkeypatch.setattr(counting, "CHUNK", 256)
    tensor = view(random_tensor(120, 50, dtype=dtype))
    copy = tensor.clone(memory_format=torch.contiguous_format)
    of_view = MagnitudeSpectrum.of({"w": tensor}, num_threads=2)
    assert of_view == MagnitudeSpectrum.of({"w": copy}, num_threads=1)
    assert of_view.num_weights == tensor.numel()


def test_permuted_tensors_are_walked_as_they_lie_in_memory():
    tensor = random_tensor(6, 8, 10)
    for view in (tensor, tensor.permute(2, 0, 1), tensor.transpose(0, 1)):
        bits = counting.bits_of("w", view)
        assert bits.is_contiguous()
        assert bits.data_ptr() == tensor.data_ptr()


@pytest.mark.parametrize("dtype", DTYPES)
def test_pieces_hold_each_element_once_and_stay_small(dtype):
    base = torch.arange(6000).to(dtype).view(3, 40, 50)
    for bits in (base, base.transpose(0, 2), base[:, ::3, 1:], base[0, 0, 0], base[:0]):
        found = list(counting.pieces(bits, 64))
        assert all(piece.numel() <= 64 for piece in found)
        flat = torch.cat([piece.flatten() for piece in found])
        assert torch.equal(flat.double().sort().values, bits.double().flatten().sort().values)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_number_of_threads_does_not_matter(dtype, monkeypatch):
    monkeypatch.setattr(counting, "MIN_PIECE", 1000)
    tensors = {f"w{i}": random_tensor(61 + i, 97, dtype=dtype, seed=i) for i in range(5)}
    tensors["all bits"] = all_bits(dtype)
    one, three = (MagnitudeSpectrum.of(tensors, num_threads=n) for n in (1, 3))
    assert one == three
    assert one.names == three.names == tuple(tensors)


@pytest.mark.parametrize("max_bins", [1 << 24, 140_000])
def test_counting_on_a_device_is_counting_on_cpu(max_bins, monkeypatch):
    # the device path runs on any device; here it is given CPU tensors
    monkeypatch.setattr(counting, "MAX_DEVICE_BINS", max_bins)
    tensors = {"none": torch.empty(0)} | {str(dtype): all_bits(dtype) for dtype in DTYPES + FLOAT8}
    tensors |= {f"strided {name}": tensor[::3] for name, tensor in tensors.items()}
    spectrum = MagnitudeSpectrum.of(tensors)
    on_device = counting._count_on_device(
        {name: counting.bits_of(name, w) for name, w in tensors.items()},
        {name: STORAGES[w.dtype] for name, w in tensors.items()},
    )
    assert on_device == spectrum.histograms


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinities_and_odd_nan_are_told_from_the_largest_values(dtype):
    tensor = all_bits(dtype)
    spectrum = MagnitudeSpectrum.of({"w": tensor})
    assert spectrum.num_nan == int(tensor.isnan().sum())
    assert spectrum.num_inf == int(tensor.isinf().sum())
    assert spectrum.num_zero == int((tensor == 0).sum())
    largest = torch.finfo(dtype).max
    num_finite = int(tensor.isfinite().sum())
    assert spectrum.sparsity_at(largest) == num_finite / tensor.numel()
    assert spectrum.sparsity_at(math.inf) == (num_finite + spectrum.num_inf) / tensor.numel()


@pytest.mark.parametrize("dtype", FLOAT8)
def test_float8_is_counted_by_value(dtype):
    tensor = torch.arange(256, dtype=torch.uint8).view(dtype)
    values = tensor.to(torch.float64).abs()
    spectrum = MagnitudeSpectrum.of({"w": tensor})
    assert spectrum.dtypes == (str(dtype).removeprefix("torch."),)
    assert spectrum.num_nan == int(values.isnan().sum())
    assert spectrum.num_inf == int(values.isinf().sum())
    for value in values[values.isfinite()].unique().tolist():
        assert spectrum.sparsity_at(value) * 256 == int((values <= value).sum())
    levels = [i / 16 for i in range(1, 12)]
    ordered = values.sort().values.tolist()
    assert spectrum.thresholds(levels) == [ordered[round(256 * level) - 1] for level in levels]


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_nothing_of_the_caller_is_touched(three_threads):
    torch.manual_seed(7)
    model = nn.Linear(600, 700)
    model(torch.randn(2, 600)).sum().backward()
    tensors = dict(model.named_parameters())
    before = [w.detach().clone() for w in tensors.values()]
    state = caller_state(tensors)
    spectrum = MagnitudeSpectrum.of(tensors, num_threads=2)
    spectrum.thresholds([0.1, 0.5])
    spectrum.near_zero(rms=0.1)
    assert caller_state(tensors) == state
    assert all(torch.equal(a, b) for a, b in zip(before, tensors.values(), strict=True))


def caller_state(tensors):
    python_threads = [thread.name for thread in threading.enumerate()]
    return {
        "torch rng": torch.get_rng_state().tolist(),
        "numpy rng": repr(np.random.get_state()),  # noqa: NPY002  the global one is meant
        "python rng": random.getstate(),
        "versions": [w._version for w in tensors.values()],
        "autograd": [(w.requires_grad, w.grad_fn, w.is_leaf) for w in tensors.values()],
        "grad mode": torch.is_grad_enabled(),
        "threads of torch": torch.get_num_threads(),
        "threads of torch in a new thread": num_threads_in_a_new_thread(),
        "living threads": python_threads,
    }


def num_threads_in_a_new_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def test_a_worker_that_sets_threads_would_be_noticed(three_threads):
    # meta-test: set_num_threads in one thread is also the default of all later ones
    state = caller_state({})
    thread = threading.Thread(target=lambda: torch.set_num_threads(1))
    thread.start()
    thread.join()
    assert caller_state({}) != state


def test_default_device_and_inference_mode_do_not_matter():
    tensor = random_tensor(50, 40)
    expected = MagnitudeSpectrum.of({"w": tensor})
    with torch.device("meta"):
        assert MagnitudeSpectrum.of({"w": tensor}) == expected
    with torch.inference_mode():
        assert MagnitudeSpectrum.of({"w": tensor.clone()}) == expected


class Sharded(torch.Tensor):
    def to_local(self):
        return self


@pytest.mark.parametrize(
    ("tensor", "got"),
    [
        (torch.ones(3, dtype=torch.int32), "dtype torch.int32"),
        (torch.ones(3, dtype=torch.bool), "dtype torch.bool"),
        (torch.ones(3, dtype=torch.complex64), "dtype torch.complex64"),
        (torch.eye(3).to_sparse(), "layout torch.sparse_coo"),
        (torch.ones(3, device="meta"), "meta tensor"),
        (torch.ones(3).as_subclass(Sharded), "Sharded.*to_local"),
        (np.ones(3), "type ndarray"),
    ],
)
def test_what_cannot_be_counted_is_refused_by_name(tensor, got):
    with pytest.raises(ConfigurationError, match=rf"tensors\['odd'\].*{got}"):
        MagnitudeSpectrum.of({"fine": torch.ones(2), "odd": tensor})


def test_num_threads_is_at_least_one():
    with pytest.raises(ConfigurationError, match="`num_threads` to be a whole number >= 1, got 0"):
        MagnitudeSpectrum.of({"w": torch.ones(3)}, num_threads=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_counts_like_cpu(dtype):
    tensors = {"all": all_bits(dtype), "t": random_tensor(300, 200, dtype=dtype).t()[::3]}
    on_cuda = {name: w.cuda() for name, w in tensors.items()}
    spectrum = MagnitudeSpectrum.of(on_cuda)
    assert spectrum == MagnitudeSpectrum.of(tensors)
    levels = [0.1, 0.5, 0.8]
    assert spectrum.thresholds(levels) == MagnitudeSpectrum.of(tensors).thresholds(levels)


# ------------------------------------------------------------------ stored weights


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

    def chunks(self, name: str, buffer: memoryview) -> Generator[memoryview, None, None]:
        self.begun.append(name)
        tensor = self.tensors[name.removeprefix("stored.")]
        flat = tensor.contiguous().reshape(-1)
        for chunk in flat.split(self.size) if len(flat) else ():
            yield chunk.clone().view(torch.uint8).numpy().data

    def check_unchanged(self) -> None:
        self.num_checks += 1
        if self.was_written:
            raise CheckpointError("written meanwhile")

    def lazy(self) -> LazyTensors:
        return LazyTensors(entries_of(self.tensors), self)


def some_weights(dtype: torch.dtype, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {
        name: torch.randn(shape, generator=generator).to(dtype)
        for name, shape in {"large": (70, 90), "one": (1,), "none": (0, 3), "odd": (3, 7)}.items()
    }
    special = [0.0, -0.0, torch.nan, torch.inf, -torch.inf, torch.finfo(dtype).max]
    found["special"] = torch.tensor(special, dtype=torch.float64).to(dtype)
    return found


@pytest.mark.slow
@settings(max_examples=30)
@given(
    size=st.integers(1, 7000),
    most=st.integers(1, 4000) | st.just(1 << 30),
    num_threads=st.sampled_from([1, 3]),
    dtype=st.sampled_from([*STORAGES]),
)
def test_however_it_comes_the_same_integers_as_in_memory(size, most, num_threads, dtype) -> None:
    weights = some_weights(dtype)
    store = Chunks(weights, size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "MIN_PIECE", 500)
        patch.setattr(counting, "MAX_ADDED", most)
        found = MagnitudeSpectrum.of(store.lazy(), num_threads=num_threads)
    assert found == MagnitudeSpectrum.of(weights)
    assert found.names == tuple(weights)
    assert store.num_checks == 1


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
        def chunks(self, name: str, buffer: memoryview) -> Generator[memoryview, None, None]:
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


def test_one_is_read_as_a_whole_when_it_is_asked_for() -> None:
    class Whole(Chunks):
        def read(self, name: str) -> torch.Tensor:
            return self.tensors[name.removeprefix("stored.")]

    weights = some_weights(torch.float32)
    lazy = Whole(weights).lazy()
    assert (list(lazy), len(lazy), "w9" in lazy) == (list(weights), 5, False)
    assert torch.equal(lazy["large"], weights["large"])
    with pytest.raises(KeyError):
        lazy["w9"]
