"""A spectrum as plain arrays: what is stored is what comes back."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch

from sparsitywatch.errors import StateError
from sparsitywatch.weights.spectrum import MagnitudeSpectrum


def a_spectrum():
    generator = torch.Generator().manual_seed(0)
    tensors = {
        dtype: torch.randn(300, generator=generator).to(getattr(torch, dtype))
        for dtype in ("float64", "float32", "bfloat16", "float16", "float8_e4m3fn")
    }
    tensors["özel.weight"] = torch.tensor([0.0, math.nan, math.inf, 1e-40, 3e38])
    tensors["empty"] = torch.empty(0)
    return MagnitudeSpectrum.of(tensors)


@pytest.mark.parametrize("spectrum", [a_spectrum(), MagnitudeSpectrum()], ids=["full", "empty"])
def test_npz_round_trip_without_pickle(spectrum):
    file = io.BytesIO()
    np.savez(file, **spectrum.to_arrays())
    file.seek(0)
    with np.load(file, allow_pickle=False) as stored:
        loaded = MagnitudeSpectrum.from_arrays(stored)
    assert loaded == spectrum
    assert loaded.names == spectrum.names
    assert loaded.thresholds([0.3, 0.9]) == spectrum.thresholds([0.3, 0.9])
    assert str(loaded.rms) == str(spectrum.rms)


def test_stored_counts_are_compact():
    tensor = torch.randn(100_000, generator=torch.Generator().manual_seed(1))
    stored = MagnitudeSpectrum.of({"w": tensor}).to_arrays()
    assert stored["keys"].dtype == np.uint16
    assert stored["counts"].itemsize <= 2
    assert sum(array.nbytes for array in stored.values()) < tensor.nbytes / 20


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("counts", None, "none named 'counts'"),
        ("format", lambda a: a + 1, "format 1, got 2"),
        ("counts", lambda a: a[:-1], "agree on 7 tensors"),
        ("names", lambda a: a[:-1], "agree on 7 tensors"),
        ("dtypes", lambda a: np.full_like(a, "int32"), "float dtype .* got 'int32'"),
        ("keys", lambda a: a[::-1], "rising bins"),
        ("counts", lambda a: a * 0, "positive counts"),
        ("keys", lambda a: a + np.uint64(1 << 22), "rising bins"),
    ],
)
def test_damaged_arrays_are_refused(name, change, message):
    stored = a_spectrum().to_arrays()
    if change is None:
        del stored[name]
    else:
        stored[name] = change(stored[name])
    with pytest.raises(StateError, match=message):
        MagnitudeSpectrum.from_arrays(stored)
