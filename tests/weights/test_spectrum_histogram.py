"""What a spectrum tells of each tensor, against a sort; near-zero rules, and what each counts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

import sparsitywatch as sw
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.weights.spectrum import MagnitudeSpectrum
from sparsitywatch.weights.spectrum.histogram import BINS_PER_DECADE, STORAGES, Rows, decades
from sparsitywatch.weights.spectrum.magnitude import (
    DEFAULT_RULES,
    TOGETHER,
    NearZeroRule,
    near_zero_rules,
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
VALUES = [0.0, -0.0, 1.0, -1.5, 2e-2, 1e-3, 3e4, math.inf, -math.inf, math.nan, 1e-45, 1e-7]


@st.composite
def some_tensors(draw):
    """Up to five tensors of any dtypes: random, special, empty, all zero."""
    tensors = {}
    for i in range(draw(st.integers(0, 5))):
        size, scale = draw(st.sampled_from([0, 1, 300])), draw(st.sampled_from([0.0, 1e-5, 0.1]))
        generator = torch.Generator().manual_seed(i)
        random = scale * torch.randn(size, generator=generator, dtype=torch.float64)
        special = torch.tensor(draw(st.lists(st.sampled_from(VALUES), max_size=6)))
        dtype = draw(st.sampled_from(DTYPES))
        tensors[f"w{i}"] = torch.cat([random, special.double()]).to(dtype)
    return tensors


def cut(ordered, t):
    """How many of sorted magnitudes, NaN last, are at most ``t``."""
    return int(np.searchsorted(ordered, t, side="right"))


def around(t, dtype):
    """Less and more than ``t`` by no less than its bin is wide: counts lie between theirs."""
    if dtype.itemsize == 2 or t <= 0.0 or math.isinf(t):
        return t, t
    width = max(t * 2**-8, 2.0**-134)
    return t - width, t + width


some_thresholds = st.lists(
    st.sampled_from([-math.inf, -1.0, 0.0, 1e-45, 0.1, 1.0, 1.001, 65504.0, 3e38, math.inf])
    | st.floats(0.0, 2.0),
    max_size=6,
)


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(some_tensors(), some_thresholds)
def test_counts_are_those_of_a_sort_and_cut(tensors, asked):
    spectrum = MagnitudeSpectrum.of(tensors)
    ordered = {n: np.sort(w.double().abs().numpy()) for n, w in tensors.items()}
    whole = np.zeros(len(asked))
    for name, magnitudes in ordered.items():
        found = Rows([spectrum.histograms[name]]).at_most(np.array([asked], float))[0]
        whole += found
        for t, count in zip(asked, found.tolist(), strict=True):
            low, high = around(t, tensors[name].dtype)
            assert cut(magnitudes, low) <= count <= cut(magnitudes, high)
    for t, count in zip(asked, whole.tolist(), strict=True):
        if spectrum.num_weights:
            expected = count / spectrum.num_weights
            assert spectrum.sparsity_at(t) == pytest.approx(expected, rel=1e-14)


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(some_tensors(), st.floats(0.01, 3.0))
def test_what_is_near_zero_by_any_rule_is_what_a_sort_cuts_off(tensors, factor):
    spectrum = MagnitudeSpectrum.of(tensors)
    initial = {name: 0.01 * (1 + i) for i, name in enumerate(tensors)}
    rules = {kind: NearZeroRule(kind, factor) for kind in ("abs", "rms", "initial")}
    whole, by_layer = spectrum.near_zero_by_rule(rules | near_zero_rules(["zero"]), initial)
    near = dict.fromkeys(whole, 0.0)
    for name, w in tensors.items():
        ordered = np.sort(w.double().abs().numpy())
        rms = spectrum.layer_rms()[name]
        scale = {"abs": 1.0, "rms": rms, "initial": initial[name], "zero": 0.0}
        for rule, share in by_layer[name].items():
            t = factor * scale[rule]
            if w.numel() and not math.isnan(t):
                low, high = around(t, w.dtype)
                # back from a fraction to a number
                assert cut(ordered, low) - 1e-6 <= share * w.numel() <= cut(ordered, high) + 1e-6
            near[rule] += 0.0 if math.isnan(share) else share * w.numel()
    if spectrum.num_weights:
        assert whole == pytest.approx({r: n / spectrum.num_weights for r, n in near.items()})


def test_a_tensor_among_many_is_told_what_it_is_told_alone():
    # more than are asked together, of several kinds of bins, some without weights or without any
    # but zeros
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for i in range(TOGETHER + 40):
        weights = torch.randn(i % 7 * 9, generator=generator).double() * 10.0 ** (i % 11 - 5)
        weights[: i % 5] = [0.0, math.inf, -0.0, math.nan, 1e-300][i % 5]
        tensors[f"{i}"] = (weights * (i % 13 > 0)).to(DTYPES[i % len(DTYPES)])
    spectrum, rules = MagnitudeSpectrum.of(tensors), near_zero_rules(DEFAULT_RULES)
    initial = dict.fromkeys(tensors, 0.5)
    of_each = spectrum.near_zero_by_rule(rules, initial)[1]
    histograms = spectrum.log10_histograms()
    for name, alone in spectrum.layers().items():
        assert repr(spectrum.layer_rms()[name]) == repr(alone.layer_rms()[name])
        found = alone.near_zero_by_rule(rules, initial)[1][name]
        assert np.array_equal([*of_each[name].values()], [*found.values()], equal_nan=True)
        own = alone.log10_histograms()[name]
        assert np.array_equal(histograms[name].edges, own.edges)
        assert np.array_equal(histograms[name].counts, own.counts)


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_histogram_holds_each_finite_nonzero_weight(dtype):
    tensor = torch.randn(3000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    special = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf], dtype=torch.float64)
    tensor = torch.cat([tensor, special]).to(dtype)
    found = MagnitudeSpectrum.of({"w": tensor}).log10_histograms()["w"]
    assert found.counts.sum() == 3000
    assert found.counts.dtype == np.int64
    assert found.counts[0] > 0
    assert found.counts[-1] > 0
    places = found.edges * BINS_PER_DECADE
    assert np.allclose(places, np.round(places), atol=1e-9)
    assert np.allclose(np.diff(found.edges), 1 / BINS_PER_DECADE)
    # against the weights themselves: nobody is further away than a bin of the spectrum
    logs = np.log10(tensor.double().abs()[:3000].numpy())
    below = np.cumsum(found.counts)
    width = 0.0 if dtype in (torch.bfloat16, torch.float16) else math.log10(1 + 2**-8)
    for edge, count in zip(found.edges[1:], below, strict=True):
        assert (logs < edge - width).sum() <= count <= (logs < edge + width).sum()


def test_log_histogram_of_nothing_is_empty():
    tensors = {"zeros": torch.zeros(4), "none": torch.empty(0), "nan": torch.tensor(math.nan)}
    for found in MagnitudeSpectrum.of(tensors).log10_histograms().values():
        assert len(found.edges) == len(found.counts) == 0


def test_log_histogram_takes_the_smallest_and_the_largest_magnitudes():
    for dtype in (torch.float64, torch.float32):
        info = torch.finfo(dtype)
        tensor = torch.tensor([info.smallest_normal * info.eps, info.max], dtype=dtype)
        found = MagnitudeSpectrum.of({"w": tensor}).log10_histograms()["w"]
        assert found.counts.sum() == 2
        tenths = math.log10(info.max) * BINS_PER_DECADE
        assert found.edges[-1] == math.ceil(tenths) / BINS_PER_DECADE


# ------------------------------------------------------------------ near zero


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


@pytest.mark.parametrize("name", ["small", "rms", "rms_", "rms_-1", "rms_inf", "abs_0", "zero_1"])
def test_a_name_that_is_no_rule_is_refused(name):
    with pytest.raises(ConfigurationError, match=f"`near_zero` to be rules such .* got '{name}'"):
        near_zero_rules([*DEFAULT_RULES, name])
    with pytest.raises(ConfigurationError, match="`near_zero` to be a list of rules"):
        near_zero_rules(name)


def test_thresholds_that_do_not_move_are_known_beforehand():
    initial_rms = {"a": 2.0, "b": 0.5}
    fixed = {n: NearZeroRule.parse(n).fixed_thresholds(initial_rms) for n in DEFAULT_RULES}
    assert fixed == {
        "initial_0.1": {"a": 0.2, "b": 0.05},
        "rms_0.1": None,
        "abs_0.001": {"a": 0.001, "b": 0.001},
        "zero": {"a": 0.0, "b": 0.0},
    }


@pytest.fixture
def flushed() -> Iterator[None]:
    """As with ``torch.set_flush_denormal(True)``, which is often advised on CPUs."""
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush denormals")
    yield
    torch.set_flush_denormal(False)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.usefixtures("flushed")
def test_bins_are_the_same_where_denormals_are_flushed(dtype: torch.dtype) -> None:
    known = STORAGES[dtype].bins
    fresh = replace(known)  # nothing is kept of another mode
    bits = [0, 1, 2, fresh.inf_key - 1]
    significand = fresh.significand_bits + fresh.shift
    for key in bits[:-1]:  # denormals: their bits times the smallest one
        smallest = Fraction(2) ** (1 - fresh.exponent_bias - significand)
        assert fresh.edges[key] == (key << fresh.shift) * smallest
    assert fresh.edges[-1] == torch.finfo(dtype).max
    assert (np.diff(fresh.edges) > 0.0).all()
    assert (np.diff(decades(fresh)[1:]) >= 0).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("flushed")
def test_a_model_with_denormals_is_measured_where_they_are_flushed(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).to(dtype)
    torch.set_flush_denormal(False)
    with torch.no_grad():
        model[0].weight[:8] *= 1e-40 if dtype is torch.float32 else 1e-310
    torch.set_flush_denormal(True)
    proxy = sw.Proxy([torch.randn(64, 64, dtype=dtype)], lambda m, x: m(x).square().mean(1))
    flushed = sw.measure(model, proxy, scope="layers")
    torch.set_flush_denormal(False)
    plain = sw.measure(model, proxy, scope="layers")
    assert flushed.valid, flushed.reason
    assert flushed.num_zero == plain.num_zero
    if dtype is torch.float32:  # in float64 those that are flushed count as zero, which they are
        assert flushed.near_zero == plain.near_zero
    assert flushed.curve.value == pytest.approx(plain.curve.value, rel=1e-6)
