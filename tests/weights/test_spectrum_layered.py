"""All tensors asked at once against each tensor asked alone: the same bits."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from sparsitywatch.errors import ConfigurationError
from sparsitywatch.weights.spectrum import MagnitudeSpectrum, layered

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
VALUES = [0.0, -0.0, 1.0, -1.5, 2e-2, 1e-3, 3e4, math.inf, -math.inf, math.nan, 1e-45, 1e-7]


@pytest.fixture(scope="module", params=[layered.GROUP, 40], autouse=True)
def bins_of_a_group(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layered, "GROUP", request.param)
        yield


@st.composite
def spectra(draw):
    """Up to five tensors of any dtypes: random, special, empty, all zero."""
    tensors = {}
    for i in range(draw(st.integers(0, 5))):
        size, scale = draw(st.sampled_from([0, 1, 300])), draw(st.sampled_from([0.0, 1e-5, 0.1]))
        generator = torch.Generator().manual_seed(i)
        random = scale * torch.randn(size, generator=generator, dtype=torch.float64)
        special = torch.tensor(draw(st.lists(st.sampled_from(VALUES), max_size=6)))
        dtype = draw(st.sampled_from(DTYPES))
        tensors[f"w{i}"] = torch.cat([random, special.double()]).to(dtype)
    return MagnitudeSpectrum.of(tensors)


def alone(spectrum):
    """Each tensor as a spectrum that has not been told anything by the whole."""
    return {name: layer + MagnitudeSpectrum() for name, layer in spectrum.layers().items()}


some_thresholds = st.lists(
    st.sampled_from([-math.inf, -1.0, 0.0, 1e-45, 0.1, 1.0, 1.001, 65504.0, 3e38, math.inf])
    | st.floats(0.0, 2.0),
    max_size=6,
)


@settings(deadline=None, max_examples=200)
@given(spectra(), some_thresholds)
def test_shares_are_those_of_each_tensor_alone(spectrum, asked):
    found = spectrum.layer_sparsity_at(asked)
    assert list(found) == list(spectrum.names)
    for name, layer in alone(spectrum).items():
        expected = [layer.sparsity_at(t) for t in asked]
        assert np.array_equal(found[name], expected, equal_nan=True)


@settings(deadline=None, max_examples=200)
@given(spectra(), st.floats(0.0, 3.0))
def test_scales_and_what_is_near_zero_are_those_of_each_tensor_alone(spectrum, factor):
    layers = alone(spectrum)
    told = [layer.rms for layer in spectrum.layers().values()]
    assert np.array_equal(told, [layer.rms for layer in layers.values()], equal_nan=True)
    near = [layer.near_zero(rms=factor) * layer.num_weights for layer in layers.values()]
    if spectrum.num_weights:
        expected = math.fsum(x for x in near if not math.isnan(x)) / spectrum.num_weights
        assert spectrum.near_zero(rms=factor) == pytest.approx(expected, rel=1e-12)


@settings(deadline=None, max_examples=100)
@given(spectra(), st.sampled_from([1, 10, 300]))
def test_log_histograms_are_those_of_each_tensor_alone(spectrum, bins_per_decade):
    found = spectrum.log10_histograms(bins_per_decade)
    assert list(found) == list(spectrum.names)
    for name, layer in alone(spectrum).items():
        expected = layer.log10_histograms(bins_per_decade)[name]
        assert np.array_equal(found[name].edges, expected.edges)
        assert np.array_equal(found[name].counts, expected.counts)


def test_a_threshold_that_is_nan_is_refused():
    spectrum = MagnitudeSpectrum.of({"w": torch.ones(3)})
    with pytest.raises(ConfigurationError, match="`thresholds` to be magnitudes, got NaN"):
        spectrum.layer_sparsity_at([0.1, math.nan])
    assert spectrum.layer_sparsity_at([]) == {"w": []}
