"""Near-zero fractions and log histograms of a spectrum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.weights.spectrum import MagnitudeSpectrum


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "wide": torch.randn(40, 50, generator=generator).bfloat16(),
        "narrow": (0.01 * torch.randn(30, 10, generator=generator)).bfloat16(),
        "mostly zero": torch.tensor([0.0] * 90 + [0.5] * 10, dtype=torch.bfloat16),
        "broken": torch.full((5,), math.nan, dtype=torch.bfloat16),
        "empty": torch.empty(0, dtype=torch.bfloat16),
    }


def share(tensors, tau_of):
    near = sum(int((w.double().abs() <= tau_of(name, w)).sum()) for name, w in tensors.items())
    return near / sum(w.numel() for w in tensors.values())


def test_each_rule_counts_what_it_says(tensors):
    spectrum = MagnitudeSpectrum.of(tensors)
    reference = {"wide": 2.0, "narrow": 0.1, "mostly zero": 0.0, "broken": 1.0, "empty": 1.0}
    assert spectrum.near_zero(abs=1e-2) == share(tensors, lambda *_: 1e-2)
    assert spectrum.near_zero(abs=0.0) == 90 / 2405
    assert spectrum.near_zero(rms=0.1) == share(
        tensors, lambda _, w: 0.1 * w.double().square().mean().sqrt().item()
    )
    assert spectrum.near_zero(initial=0.1, reference=reference) == share(
        tensors, lambda name, _: 0.1 * reference[name]
    )


def test_near_zero_wants_exactly_one_rule(tensors):
    spectrum = MagnitudeSpectrum.of(tensors)
    with pytest.raises(ConfigurationError, match=r"exactly one of .* got \[\]"):
        spectrum.near_zero()
    with pytest.raises(ConfigurationError, match=r"got \['abs', 'rms'\]"):
        spectrum.near_zero(abs=0.1, rms=0.1)
    for wrong in (-0.1, math.nan, math.inf):
        with pytest.raises(ConfigurationError, match="`rms` to be a finite number >= 0"):
            spectrum.near_zero(rms=wrong)
    with pytest.raises(ConfigurationError, match=r"`reference`.*got none"):
        spectrum.near_zero(initial=0.1)
    with pytest.raises(ConfigurationError, match="no entry for 'narrow'"):
        spectrum.near_zero(initial=0.1, reference={"wide": 1.0})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bins_per_decade", [1, 10, 40])
def test_log_histogram_holds_each_finite_nonzero_weight(dtype, bins_per_decade):
    tensor = torch.randn(3000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    special = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf], dtype=torch.float64)
    tensor = torch.cat([tensor, special]).to(dtype)
    histogram = MagnitudeSpectrum.of({"w": tensor}).log10_histograms(bins_per_decade)["w"]
    assert histogram.counts.sum() == 3000
    assert histogram.counts.dtype == np.int64
    assert histogram.counts[0] > 0
    assert histogram.counts[-1] > 0
    places = histogram.edges * bins_per_decade
    assert np.allclose(places, np.round(places), atol=1e-9)
    assert np.allclose(np.diff(histogram.edges), 1 / bins_per_decade)
    # against the weights themselves: nobody is further away than a bin of the spectrum
    logs = np.log10(tensor.double().abs()[:3000].numpy())
    below = np.cumsum(histogram.counts)
    width = 0.0 if dtype in (torch.bfloat16, torch.float16) else math.log10(1 + 2**-8)
    for edge, count in zip(histogram.edges[1:], below, strict=True):
        assert (logs < edge - width).sum() <= count <= (logs < edge + width).sum()


def test_log_histogram_of_nothing_is_empty():
    tensors = {"zeros": torch.zeros(4), "none": torch.empty(0), "nan": torch.tensor(math.nan)}
    for histogram in MagnitudeSpectrum.of(tensors).log10_histograms().values():
        assert len(histogram.edges) == len(histogram.counts) == 0
    with pytest.raises(ConfigurationError, match="`bins_per_decade` of at least 1"):
        MagnitudeSpectrum.of(tensors).log10_histograms(0)


def test_log_histogram_takes_the_smallest_and_the_largest_magnitudes():
    for dtype in (torch.float64, torch.float32):
        info = torch.finfo(dtype)
        tensor = torch.tensor([info.smallest_normal * info.eps, info.max], dtype=dtype)
        histogram = MagnitudeSpectrum.of({"w": tensor}).log10_histograms(1)["w"]
        assert histogram.counts.sum() == 2
        assert histogram.edges[-1] == math.ceil(math.log10(info.max))
