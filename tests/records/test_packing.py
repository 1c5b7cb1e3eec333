"""Packed spectra: every integer comes back, in hardly more bytes than they hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sparsitywatch.errors import StateError
from sparsitywatch.records.packing import pack, unpack
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn]


def narrow(numbers: list[int]) -> np.ndarray:
    return np.array(numbers, np.min_scalar_type(max(numbers, default=0)))


@st.composite
def bins(draw: st.DrawFn) -> dict[str, np.ndarray]:
    """Any counts of any bins of some tensors."""
    names = st.sampled_from([str(dtype).removeprefix("torch.") for dtype in DTYPES])
    dtypes = draw(st.lists(names, max_size=4))
    keys_of = st.lists(st.integers(0, 524_000), unique=True, max_size=12).map(sorted)
    keys = [draw(keys_of) for _ in dtypes]
    num = sum(map(len, keys))
    counts = draw(st.lists(st.integers(1, 2**40), min_size=num, max_size=num))
    return {
        "format": np.array(1),
        "dtypes": np.array(dtypes, np.str_),
        "num_bins": narrow([len(own) for own in keys]),
        "keys": narrow([key for own in keys for key in own]),
        "counts": narrow(counts),
    }


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
        assert found[name].dtype == array.dtype, name


def of(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return MagnitudeSpectrum.of(tensors).to_arrays()


@given(bins())
def test_any_counts_of_any_bins_come_back(arrays: dict[str, np.ndarray]) -> None:
    packed = pack(arrays)
    assert "counts" not in packed
    assert_same(unpack(packed), arrays)


@given(st.lists(st.sampled_from(DTYPES), max_size=4), st.integers(0, 2**32))
def test_spectra_of_every_dtype_come_back(dtypes: list[torch.dtype], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for i, dtype in enumerate(dtypes):
        scale = 10.0 ** torch.randint(-6, 3, (1,), generator=generator)
        weights = scale * torch.randn(500, generator=generator)
        weights[: 60 * i] = 0.0
        tensors[f"{i}"] = weights.to(dtype)
    arrays = of(tensors)
    packed = pack(arrays)
    assert "keys" not in packed
    assert_same(unpack(packed), arrays)
    again = MagnitudeSpectrum.from_arrays(unpack(packed))
    assert again == MagnitudeSpectrum.of(tensors)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"empty": torch.zeros(0)},
        {"zeros": torch.zeros(1000)},
        {"broken": torch.tensor([math.nan, math.inf, 1.0])},
        {"one value": torch.full((100_000,), 0.3)},
        {"tiny": torch.tensor([1e-45, 1e-40, 1.2e-38, 3e38])},
        {"rounded": torch.arange(1, 20_000).bfloat16().float()},
    ],
    ids=lambda tensors: next(iter(tensors), "none"),
)
def test_odd_tensors_come_back(tensors: dict[str, torch.Tensor]) -> None:
    assert_same(unpack(pack(of(tensors))), of(tensors))


def entropy_bytes(num_weights: int, scale: float) -> float:
    """What the counts of normal weights hold, the density being known: sum over the bins of the
    entropy of a Poisson number, in its normal limit or term by term."""
    edges = (np.arange(65_000, dtype=np.uint32) << 15).view(np.float32).astype(np.float64)
    below = np.array([math.erf(x / scale / math.sqrt(2.0)) for x in edges[edges < 12 * scale]])
    expected = num_weights * np.diff(below)
    bits = 0.5 * np.log2(2 * math.pi * math.e * np.maximum(expected, 1e-9))
    k = np.arange(200)
    log_factorials = np.array([math.lgamma(x + 1.0) for x in k])
    few = (expected < 100.0) & (expected > 1e-12)
    mean = expected[few][:, None]
    log_p = k * np.log(mean) - mean - log_factorials
    bits[few] = -(np.exp(log_p) * log_p).sum(axis=1) / math.log(2.0)
    bits[expected <= 1e-12] = 0.0
    return float(bits.sum()) / 8.0


def test_they_take_hardly_more_bytes_than_they_hold() -> None:
    """The tables of the codes are a larger part here than in a model of many matrices."""
    generator = torch.Generator().manual_seed(0)
    tensors = {f"{i}": 0.02 * torch.randn(300_000, generator=generator) for i in range(4)}
    packed = pack(of(tensors))
    num_bytes = sum(packed[name].nbytes for name in ("symbols", "low_bits", "octave_counts"))
    assert 1.0 < num_bytes / (4 * entropy_bytes(300_000, 0.02)) < 1.2


@pytest.mark.parametrize(
    "change",
    [
        {"format": np.array(1)},
        {"counts": np.array([3, 0, 1], np.uint8)},
        {"counts": np.array([3, 1], np.uint8)},
        {"counts": np.array([3, 1, 1], np.int64)},
        {"keys": np.array([5, 5, 7], np.uint8)},
        {"keys": np.array([5, 2**20, 7], np.uint32)},
        {"num_bins": np.array([2, 2], np.uint8)},
        {"dtypes": np.array(["float32"])},
    ],
)
def test_what_is_no_spectrum_is_left_as_it_is(change: dict[str, np.ndarray]) -> None:
    arrays = of({"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([0.5])})
    changed = {"other": np.arange(3)} if "format" in change else arrays | change
    assert_same(pack(changed), changed)
    assert_same(unpack(changed), changed)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("symbols", lambda a: a[: len(a) // 2]),
        ("symbols", lambda a: a + 1),
        ("num_by_class", lambda a: a[:-1]),
        ("num_by_class", lambda a: a[::-1]),
        ("octave_counts", lambda a: a * 3 + 9),
        ("escaped", lambda a: np.append(a, 3)),
        ("low_bits", lambda a: a[:-1]),
    ],
)
def test_what_is_damaged_is_refused(name: str, damage) -> None:
    packed = pack(of({"w": torch.randn(50_000, generator=torch.Generator().manual_seed(0))}))
    with pytest.raises(StateError, match="Expected a packed spectrum, got one"):
        unpack(packed | {name: damage(packed[name])})
