"""MagnitudeSpectrum against a sort: whatever the weights are, the counts are the sort's."""

from __future__ import annotations

import copy
import io
import itertools
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn.utils import prune

from sparsitywatch.errors import ConfigurationError, StateError
from sparsitywatch.weights.spectrum import MagnitudeSpectrum, num_pruned

pytestmark = pytest.mark.usefixtures("counted_by")

INTEGERS = {
    torch.float64: np.int64,
    torch.float32: np.int32,
    torch.bfloat16: np.int16,
    torch.float16: np.int16,
}
#: (exponent of the smallest normal, significant bits of a bin's end, largest finite value)
BINNED = {
    torch.float32: (-126, 9, torch.finfo(torch.float32).max),
    torch.float64: (-1022, 9, torch.finfo(torch.float64).max),
}
LEVELS = [0.0, 0.05, 0.25, 0.5, 0.7, 0.95, 1.0]


@st.composite
def weights(draw, dtypes=tuple(INTEGERS)):
    """Any bit patterns (denormals, NaN, infinities) beside ties and zeros of both signs."""
    dtype = draw(st.sampled_from(dtypes))
    info = np.iinfo(INTEGERS[dtype])
    bits = draw(st.lists(st.integers(info.min, info.max), max_size=20))
    any_bits = torch.from_numpy(np.array(bits, INTEGERS[dtype])).view(dtype)
    common = [0.0, -0.0, 1.0, -1.0, 1.5, 2e-2, -2e-2, math.inf, -math.inf, math.nan, 1e-45]
    ties = draw(st.lists(st.sampled_from(common), max_size=30))
    return torch.cat([any_bits, torch.tensor(ties, dtype=torch.float64).to(dtype)])


def magnitudes(*tensors):
    """|w| of all tensors, sorted, NaN last."""
    return np.sort(torch.cat([t.detach().double().flatten() for t in tensors]).abs().numpy())


def end_of_bin(magnitude, dtype):
    """Largest value of the bin that ``magnitude`` is in, by arithmetic instead of bits."""
    if dtype not in BINNED or magnitude == 0.0:
        return magnitude
    min_exponent, num_bits, largest = BINNED[dtype]
    exponent = max(math.frexp(magnitude)[1] - 1, min_exponent) - (num_bits - 1)
    scaled = math.ceil(math.ldexp(magnitude, -exponent))
    try:
        return min(math.ldexp(scaled, exponent), largest)
    except OverflowError:
        return largest


def counted(tensor, t):
    """What a mask ``w.abs() <= t`` in the tensor's own dtype would remove."""
    return int((tensor.detach().abs() <= t).sum())


@pytest.mark.slow
@settings(max_examples=120)
@given(weights())
def test_thresholds_and_counts_are_those_of_a_sort(tensor):
    spectrum = MagnitudeSpectrum.of({"w": tensor})
    ordered, num_weights = magnitudes(tensor), tensor.numel()
    assert spectrum.num_weights == num_weights
    assert spectrum.num_nan == np.isnan(ordered).sum()
    assert spectrum.num_inf == np.isinf(ordered).sum()
    assert spectrum.num_zero == (ordered == 0.0).sum()
    for level, t in zip(LEVELS, spectrum.thresholds(LEVELS), strict=True):
        k = num_pruned(num_weights, level)
        if k == 0:
            assert t == -math.inf
        elif math.isfinite(ordered[k - 1]):
            assert t == end_of_bin(ordered[k - 1], tensor.dtype)
        else:
            assert t == math.inf
        if num_weights:
            assert spectrum.sparsity_at(t) == counted(tensor, t) / num_weights
            assert t == math.inf or k <= counted(tensor, t)


@pytest.mark.parametrize("dtype", BINNED)
def test_thresholds_beside_infinities_in_the_same_bin(dtype):
    largest = torch.finfo(dtype).max
    values = [1.0, largest * (1 - 2**-20), largest, math.inf, -math.inf, math.nan]
    spectrum = MagnitudeSpectrum.of({"w": torch.tensor(values, dtype=dtype)})
    found = spectrum.thresholds([1 / 6, 2 / 6, 3 / 6, 4 / 6, 1.0])
    assert found == [1.0, largest, largest, math.inf, math.inf]


@pytest.mark.slow
@given(st.lists(weights(), min_size=2, max_size=4))
def test_thresholds_of_mixed_dtypes_count_right_in_each_tensor_s_own_dtype(parts):
    # beyond the range of the narrowest dtype a cast of t can only end at infinity
    parts = [torch.where(p.abs() <= 60000.0, p, 0.0).to(p.dtype) for p in parts]
    tensors = {f"w{i}": part for i, part in enumerate(parts)}
    spectrum = MagnitudeSpectrum.of(tensors)
    ordered = magnitudes(*parts)
    for level, t in zip(LEVELS, spectrum.thresholds(LEVELS), strict=True):
        k = num_pruned(len(ordered), level)
        assert t >= ordered[k - 1] if k else t == -math.inf
        num_removed = sum(counted(part, t) for part in parts)
        assert num_removed >= k
        if len(ordered):
            assert spectrum.sparsity_at(t) == num_removed / len(ordered)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-6, 1e-39])
@pytest.mark.parametrize("dtypes", list(itertools.combinations(INTEGERS, 2)))
def test_thresholds_of_two_dtypes_count_right_in_both(dtypes, scale):
    generator = torch.Generator().manual_seed(4)
    tensors = {
        str(dtype): (scale * torch.randn(4000, generator=generator, dtype=torch.float64)).to(dtype)
        for dtype in dtypes
    }
    spectrum = MagnitudeSpectrum.of(tensors)
    levels = [i / 50 for i in range(1, 50)]
    for level, t in zip(levels, spectrum.thresholds(levels), strict=True):
        num_removed = sum(counted(w, t) for w in tensors.values())
        assert spectrum.sparsity_at(t) == num_removed / 8000
        assert num_removed >= num_pruned(8000, level)
        # below the grid of float16, and next to zero, a bin holds all there is
        is_fine = scale == 1.0 or (scale > 1e-38 and torch.float16 not in dtypes)
        assert not is_fine or num_removed <= 8000 * (level + 0.01)


@pytest.mark.slow
@settings(max_examples=30)
@given(st.lists(weights(), max_size=4), st.integers(0, 30))
def test_counts_do_not_depend_on_how_weights_are_split(parts, cut):
    tensors = {f"w{i}": part for i, part in enumerate(parts)}
    whole = MagnitudeSpectrum.of(tensors)
    heads = MagnitudeSpectrum.of({name: w[:cut] for name, w in tensors.items()})
    tails = MagnitudeSpectrum.of({name: w[cut:] for name, w in tensors.items()})
    none = MagnitudeSpectrum()
    assert heads + tails == tails + heads == whole
    assert (none + heads) + tails == none + (heads + tails)
    one_by_one = sum((MagnitudeSpectrum.of({n: w}) for n, w in tensors.items()), none)
    assert one_by_one == sum(whole.layers().values(), none) == whole
    assert one_by_one.names == whole.names == tuple(whole.layers())
    for spectrum in (heads + tails, tails + heads):  # a repr tells every bit, and NaN from NaN
        assert repr(spectrum.layer_rms()) == repr(whole.layer_rms())


@pytest.mark.parametrize("dtype", INTEGERS)
def test_each_level_of_normal_weights_is_reached_within_half_a_point(dtype):
    generator = torch.Generator().manual_seed(0)
    tensor = (0.02 * torch.randn(200_000, generator=generator)).to(dtype)
    levels = [i / 100 for i in range(1, 100)]
    spectrum = MagnitudeSpectrum.of({"w": tensor})
    for level, t in zip(levels, spectrum.thresholds(levels), strict=True):
        assert level - 1e-9 <= spectrum.sparsity_at(t) <= level + 0.005


def test_a_t_within_a_bin_is_interpolated_linearly():
    # one bin of float32 is (1, 1 + 2**-8]; fill it evenly
    tensor = 1.0 + torch.arange(1, 1025) / 2**18
    spectrum = MagnitudeSpectrum.of({"w": tensor})
    for fraction in (0.0, 0.25, 0.5, 1.0):
        assert spectrum.sparsity_at(1.0 + fraction / 2**8) == pytest.approx(fraction, abs=1e-12)


def test_an_unlisted_t_is_interpolated_within_the_mass_of_its_bin():
    tensor = torch.randn(50_000, generator=torch.Generator().manual_seed(1))
    spectrum = MagnitudeSpectrum.of({"w": tensor})
    candidates = np.sort(np.random.default_rng(0).exponential(1.0, 300))
    found = [spectrum.sparsity_at(t) for t in candidates]
    assert found == sorted(found)
    for t, sparsity in zip(candidates.tolist(), found, strict=True):
        # a bin is at most 2**-8 of its lower end wide
        mass = counted(tensor, t * (1 + 2**-8)) - counted(tensor, t * (1 - 2**-8))
        assert abs(sparsity - counted(tensor, t) / 50_000) <= mass / 50_000
    ends = spectrum.sparsity_at(-1.0), spectrum.sparsity_at(-math.inf), spectrum.sparsity_at(9.9)
    assert ends == (0.0, 0.0, 1.0)


def test_the_same_weights_go_as_with_global_unstructured():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(40, 50), nn.ReLU(), nn.Linear(50, 30), nn.Linear(30, 7))
    layers = [module for module in model if isinstance(module, nn.Linear)]
    tensors = {f"{i}.weight": layer.weight for i, layer in enumerate(layers)}
    sizes = [w.numel() for w in tensors.values()]
    num_weights = sum(sizes)
    # each the end of a bin, and alone in it: a threshold is then the magnitude that a sort gives
    ends = (256 + torch.arange(256)) * 2.0 ** torch.arange(-25, -10)[:, None]
    ends = ends.flatten()[torch.randperm(ends.numel())[:num_weights]]
    signs = torch.randint(2, (num_weights,)) * 2 - 1
    with torch.no_grad():
        for w, part in zip(tensors.values(), (ends * signs).split(sizes), strict=True):
            w.copy_(part.view_as(w))
    thresholds = MagnitudeSpectrum.of(tensors).thresholds([0.1, 0.5, 0.9])
    ordered = magnitudes(*tensors.values())
    assert thresholds == [ordered[num_pruned(num_weights, s) - 1] for s in (0.1, 0.5, 0.9)]
    for level, t in zip([0.1, 0.5, 0.9], thresholds, strict=True):
        copies = copy.deepcopy(layers)
        pruned = [(layer, "weight") for layer in copies]
        prune.global_unstructured(pruned, prune.L1Unstructured, amount=level)
        for layer in copies:
            assert torch.equal(layer.weight_mask.bool(), layer.weight_orig.abs() > t)
        assert sum(counted(w, t) for w in tensors.values()) == num_pruned(num_weights, level)


@pytest.mark.parametrize("dtype", INTEGERS)
def test_rms_is_the_direct_one(dtype):
    tensor = (0.02 * torch.randn(100_000, generator=torch.Generator().manual_seed(2))).to(dtype)
    direct = tensor.double().square().mean().sqrt().item()
    tolerance = 1e-4 if dtype in BINNED else 1e-12
    assert MagnitudeSpectrum.of({"w": tensor}).layer_rms()["w"] == pytest.approx(
        direct, rel=tolerance
    )


@pytest.mark.parametrize("scale", [5e-324, 1e-310, 1e-200, 1.0, 1e200, 1.7e308])
def test_rms_neither_overflows_nor_underflows(scale):
    tensor = torch.full((9,), scale, dtype=torch.float64)
    # equal weights may sit at either end of a bin of 0.4 %, or in the one bin above zero
    found = MagnitudeSpectrum.of({"w": tensor}).layer_rms()["w"]
    assert found == pytest.approx(scale, rel=4e-3, abs=2.0**-1030)
    assert math.isfinite(found)


def test_rms_leaves_out_what_is_not_finite():
    tensor = torch.tensor([3.0, -4.0, math.nan, math.inf, -math.inf], dtype=torch.bfloat16)
    assert MagnitudeSpectrum.of({"w": tensor}).layer_rms()["w"] == pytest.approx(
        math.sqrt(12.5), rel=1e-15
    )
    assert math.isnan(MagnitudeSpectrum.of({"w": tensor[2:]}).layer_rms()["w"])
    assert MagnitudeSpectrum.of({"w": torch.zeros(3)}).layer_rms()["w"] == 0.0


def test_nothing_to_count_gives_nan_fractions():
    for spectrum in (MagnitudeSpectrum(), MagnitudeSpectrum.of({"w": torch.empty(0, 4)})):
        assert spectrum.thresholds([0.0, 0.5, 1.0]) == [-math.inf] * 3
        assert math.isnan(spectrum.sparsity_at(1.0))
        assert math.isnan(spectrum.near_zero(abs=1.0))
        assert math.isnan(spectrum.near_zero(rms=0.1))
        assert all(map(math.isnan, spectrum.layer_rms().values()))


def test_num_pruned_rounds_as_torch_does():
    for numel in (0, 1, 7, 10, 999, 84_934_656):
        for level in np.linspace(0.0, 1.0, 41).tolist():
            expected = prune._compute_nparams_toprune(level, numel)
            assert num_pruned(numel, level) == expected


@pytest.mark.parametrize("level", [-0.01, 1.01, math.nan, math.inf])
def test_a_level_that_is_no_fraction_is_refused(level):
    spectrum = MagnitudeSpectrum.of({"w": torch.ones(3)})
    with pytest.raises(ConfigurationError, match=r"`level`.*in \[0, 1\]"):
        spectrum.thresholds([0.5, level])
    with pytest.raises(ConfigurationError, match="`t` to be a magnitude, got nan"):
        spectrum.sparsity_at(math.nan)


def test_a_name_keeps_its_dtype_when_spectra_are_added():
    single = MagnitudeSpectrum.of({"w": torch.ones(3)})
    half = MagnitudeSpectrum.of({"w": torch.ones(3, dtype=torch.float16)})
    with pytest.raises(ConfigurationError, match=r"'w'.*float32 and torch\.float16"):
        single + half
    assert single != half
    assert single.dtypes == ("float32",)
    assert (single + MagnitudeSpectrum.of({"v": torch.ones(2).half()})).dtypes == (
        "float16",
        "float32",
    )
    assert single != "a spectrum"
    assert repr(single) == "MagnitudeSpectrum(1 tensors, 3 weights, float32)"


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
    assert repr(loaded.layer_rms()) == repr(spectrum.layer_rms())


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
