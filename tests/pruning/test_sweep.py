"""Levels in, curve out, with canaries that catch what would be silently wrong."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sparsitywatch.errors import ConfigurationError, MeasurementError
from sparsitywatch.pruning.masked import MaskedModel
from sparsitywatch.pruning.patterns import GlobalMagnitude
from sparsitywatch.pruning.point import Point
from sparsitywatch.pruning.proxy import Proxy
from sparsitywatch.pruning.sweep import Bisection, Grid, run_sweep, standard_error
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import Snapshot
from sparsitywatch.weights.spectrum import MagnitudeSpectrum


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 2))


def mean_square(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean(dim=1)


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(5, 6, generator=generator) for _ in range(2)]


def sweep(model: nn.Module, value=mean_square, levels=(0.3, 0.6), allowed=abs):
    scope = Scope.of(model)
    return run_sweep(
        MaskedModel(model, scope),
        Proxy(batches(), value),
        MagnitudeSpectrum.of(Snapshot.of(model, scope, 0).tensors),
        pattern=GlobalMagnitude(),
        sweep=Grid(levels) if isinstance(levels, tuple) else levels,
        allowed=allowed,
    )


def test_the_curve_against_pruning_by_hand() -> None:
    model = net()
    result = sweep(model)
    assert result.curve.level == (0.0, 0.3, 0.6, 1.0)
    assert result.num_forwards == 2 * (1 + 4)
    x = torch.cat(batches())
    dense = mean_square(model, x).double().detach().numpy()
    magnitudes = model[0].weight.detach().abs()
    for index, cut in enumerate(result.cuts):
        pruned = model[0].weight.detach() * (magnitudes > cut.threshold)
        hidden = torch.tanh(nn.functional.linear(x, pruned, model[0].bias))
        values = model[2](hidden).square().mean(dim=1).double().detach().numpy()
        assert result.curve.sparsity[index] == pytest.approx(float((pruned == 0).double().mean()))
        assert result.curve.value[index] == pytest.approx(values.mean(), rel=1e-6)
        by_hand = np.std(values - dense, ddof=1) / math.sqrt(10)
        assert result.curve.stderr[index] == pytest.approx(by_hand, abs=1e-7)
    assert result.curve.stderr[0] == 0.0
    assert result.curve.num_examples == 10


def test_a_value_function_that_is_random_is_caught() -> None:
    def noisy(model, batch):
        return mean_square(model, batch) + torch.rand(len(batch))

    with pytest.raises(MeasurementError, match="level 0 to equal the dense model bit for bit"):
        sweep(net(), noisy)


def test_a_value_function_of_another_model_is_caught() -> None:
    other = net()
    with pytest.raises(MeasurementError, match="value to change when every in-scope weight"):
        sweep(net(), lambda model, batch: mean_square(other, batch))


def test_kernels_that_are_not_deterministic_are_noise() -> None:
    calls = iter(range(10**6))

    def jitter(model, batch):
        return mean_square(model, batch) * (1 + 1e-7 * (next(calls) % 3))

    assert sweep(net(), jitter).curve.value[-1] > 0


def test_a_pruned_model_that_breaks_down_is_a_point_not_a_failure() -> None:
    def breaks(model, batch):
        return mean_square(model, batch) / (model[0].weight != 0).any()

    curve = sweep(net(), breaks).curve
    assert curve.value[-1] == math.inf
    assert math.isnan(curve.stderr[-1])
    assert all(map(math.isfinite, curve.value[:-1]))


class Curve:
    """A model-free oracle: harm that rises past the tolerance at a known sparsity."""

    def __init__(self, crossing: float) -> None:
        self.crossing, self.measured = crossing, []

    def measure(self, level: float) -> Point:
        self.measured.append(level)
        return Point(level, 1 + level - self.crossing)


@given(st.floats(0.001, 0.999), st.sampled_from([0.005, 0.02, 0.1]))
def test_bisection_brackets_the_crossing(crossing: float, resolution: float) -> None:
    curve = Curve(crossing)
    Bisection((0.2, 0.4, 0.6, 0.8), resolution).choose(curve.measure, ())
    inside = max(level for level in curve.measured if level <= crossing)
    beyond = min(level for level in curve.measured if level > crossing)
    assert beyond - inside <= resolution + 1e-9
    assert len(set(curve.measured)) <= 6 + math.ceil(math.log2(0.2 / resolution)) + 1


def test_bisection_closes_in_on_the_first_of_several_crossings() -> None:
    measured = []

    def measure(level: float) -> Point:
        measured.append(level)
        return Point(level, 2.0 if 0.27 < level < 0.5 or level > 0.9 else 0.0)

    Bisection((0.2, 0.4, 0.6, 0.8), 0.01).choose(measure, ())
    assert 0.26 < max(level for level in measured if level < 0.27) <= 0.27


def test_bisection_spends_nothing_where_nothing_is_crossed() -> None:
    curve = Curve(2.0)
    Bisection((0.5,), 0.01).choose(curve.measure, ())
    assert sorted(set(curve.measured)) == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("levels", [(1.0,), (-0.1,), (0.5, float("nan")), (), ("0.5",), (True,)])
@pytest.mark.parametrize("kind", [Grid, Bisection])
def test_levels_out_of_range_are_refused(levels, kind) -> None:
    with pytest.raises(ConfigurationError, match="`levels"):
        kind(levels)


def test_standard_error_of_a_broken_value_is_unknown() -> None:
    assert math.isnan(standard_error(np.array([1.0, np.inf]), np.zeros(2)))
