"""Levels in, curve out, with canaries that catch what would be silently wrong."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sparsitywatch as sw
from sparsitywatch.errors import ConfigurationError, MeasurementError, is_out_of_memory
from sparsitywatch.evaluation.checks import check_proxy
from sparsitywatch.evaluation.masked import MaskedModel, run_sweep
from sparsitywatch.patterns.pattern import GlobalMagnitude
from sparsitywatch.proxy.batches import Batch
from sparsitywatch.proxy.proxy import Proxy
from sparsitywatch.sweeps import Bisection, Grid, Point, Sweep
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
        pruned = model[0].weight.detach() * (magnitudes > max(cut.thresholds.values()))
        hidden = torch.tanh(nn.functional.linear(x, pruned, model[0].bias))
        values = model[2](hidden).square().mean(dim=1).double().detach().numpy()
        assert result.curve.sparsity[index] == pytest.approx(float((pruned == 0).double().mean()))
        assert result.curve.value[index] == pytest.approx(values.mean(), rel=1e-6)
        by_hand = np.std(values - dense, ddof=1) / math.sqrt(10)
        assert result.curve.stderr[index] == pytest.approx(by_hand, abs=1e-7)
    assert result.curve.stderr[0] == 0.0
    assert result.curve.num_examples == 10


def test_a_sweep_of_ones_own_says_its_levels_as_it_goes() -> None:
    class Own(Sweep):
        def next_step(self, points, shares):
            assert shares == (1.0,)
            assert [point.share for point in points] == [1.0] * len(points)
            known = [point.level for point in points]
            return next(((level, 1.0) for level in (0.25, 0.5) if level not in known), None)

    curve = sweep(net(), levels=Own()).curve
    assert curve.level == (0.0, 0.25, 0.5, 1.0)
    by_grid = sweep(net(), levels=(0.25, 0.5)).curve
    assert curve == by_grid


@pytest.mark.parametrize("step", [(0.5, 1.0), (1.5, 1.0), (0.0, 1.0)])
def test_a_sweep_that_asks_for_no_new_level_is_refused_and_does_not_hang(step) -> None:
    class Stuck(Sweep):
        def next_step(self, points, shares):
            return step

    with pytest.raises(MeasurementError, match="Expected the next step of Stuck to be a level in"):
        sweep(net(), levels=Stuck())


def test_a_value_function_that_draws_what_nobody_can_repeat_is_caught() -> None:
    def noisy(model, batch):
        return mean_square(model, batch) + torch.rand(len(batch), generator=own)

    own = torch.Generator()

    with pytest.raises(MeasurementError, match="level 0 to equal the dense model bit for bit"):
        sweep(net(), noisy)


def test_a_value_function_of_another_model_is_caught() -> None:
    other = net()
    with pytest.raises(MeasurementError, match="value to change when every in-scope weight"):
        sweep(net(), lambda model, batch: mean_square(other, batch))


def dead() -> nn.Sequential:
    """No unit is alive: what comes out are the last biases, whatever the weights are."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2)
    )
    with torch.no_grad():
        model[2].bias.fill_(-100.0)
    return model


def test_a_model_without_a_unit_alive_is_measured_and_relies_on_nothing() -> None:
    model = dead()
    x = torch.cat(batches())
    by_hand = model[4].bias.detach().square().mean().item()
    assert mean_square(model, x).tolist() == pytest.approx([by_hand] * 10)
    curve = sweep(model).curve
    assert curve.value == pytest.approx([by_hand] * 4)
    record = sw.measure(model, Proxy(batches(), mean_square))
    assert record.valid, record.reason
    assert record.reliance == 0.0
    assert not record.essential_sparsity.informative
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_value_that_no_weight_reaches_is_refused_though_no_unit_is_alive() -> None:
    other = dead()
    with pytest.raises(MeasurementError, match="value to change when every in-scope weight"):
        sweep(dead(), lambda model, batch: mean_square(other, batch))


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


def measured(sweep: Sweep, harm: Callable[[float], float]) -> list[float]:
    """The levels that a sweep evaluates of a made-up curve, in their order."""
    points = {level: Point(level, harm(level)) for level in (0.0, 1.0)}
    while step := sweep.next_step([points[level] for level in sorted(points)], (1.0,)):
        assert step[0] not in points
        points[step[0]] = Point(step[0], harm(step[0]))
    return [*points]


@given(st.floats(0.001, 0.999), st.sampled_from([0.005, 0.02, 0.1]))
def test_bisection_brackets_the_crossing(crossing: float, resolution: float) -> None:
    levels = measured(
        Bisection((0.2, 0.4, 0.6, 0.8), resolution), lambda level: 1 + level - crossing
    )
    inside = max(level for level in levels if level <= crossing)
    beyond = min(level for level in levels if level > crossing)
    assert beyond - inside <= resolution + 1e-9
    assert len(levels) <= 6 + math.ceil(math.log2(0.2 / resolution)) + 1


@pytest.mark.parametrize(("height", "crossing"), [(1.9, 0.9), (7.0, 0.27)])
def test_bisection_closes_in_on_the_crossing_of_the_best_rising_curve(height, crossing) -> None:
    """The mean of 0.4 and 0.6 is within the tolerance, or beyond it with 0.8, too."""
    levels = measured(
        Bisection((0.2, 0.4, 0.6, 0.8), 0.01),
        lambda level: height if 0.27 < level < 0.5 or level > 0.9 else 0.0,
    )
    assert crossing - 0.01 < max(level for level in levels if level <= crossing)


def test_bisection_spends_nothing_where_nothing_is_crossed() -> None:
    assert sorted(measured(Bisection((0.5,), 0.01), lambda level: level - 1)) == [0.0, 0.5, 1.0]


def test_bisection_ends_where_levels_cannot_be_told_apart() -> None:
    assert len(measured(Bisection((0.5,), 1e-9), lambda level: 2 * level)) < 30


@pytest.mark.parametrize("levels", [(1.0,), (-0.1,), (0.5, float("nan")), (), ("0.5",), (True,)])
@pytest.mark.parametrize("kind", [Grid, Bisection])
def test_levels_out_of_range_are_refused(levels, kind) -> None:
    with pytest.raises(ConfigurationError, match="`levels"):
        kind(levels)


def test_what_counts_as_out_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError) as real:
        torch.empty(1 << 50)  # what the CPU allocator really says
    assert is_out_of_memory(real.value)


def test_halves_together_are_the_batch() -> None:
    batch = {"x": torch.arange(10).reshape(5, 2), "y": (np.arange(5), 0.5), "t": torch.tensor(3.0)}
    first, last = (half.on(torch.device("cpu")) for half in Batch(batch).halves())
    assert torch.equal(torch.cat([first["x"], last["x"]]), batch["x"])
    assert np.array_equal(np.concatenate([first["y"][0], last["y"][0]]), batch["y"][0])
    assert first["y"][1] == last["y"][1] == 0.5
    assert first["t"] == last["t"] == 3.0


@pytest.mark.parametrize(
    "batch", [torch.ones(1, 3), torch.tensor(1.0), {"x": torch.ones(4), "y": torch.ones(3)}]
)
def test_what_cannot_be_halved(batch) -> None:
    whole = Batch(batch)
    assert whole.halves() == [whole]


class Hungry:
    """A value function with room for so many examples at once."""

    def __init__(self, room: float) -> None:
        self.room = room

    def __call__(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        if len(batch) > self.room:
            raise torch.OutOfMemoryError(f"no room for {len(batch)}")
        return model(batch).square().mean(dim=1)


def watched(room_later: float, **options) -> list[sw.Record]:
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    value = Hungry(math.inf)
    proxy = sw.Proxy([torch.randn(8, 4), torch.randn(3, 4)], value, name="value")
    options = {"scope": "matrices", "every": 1, "max_overhead": None} | options
    with sw.watch(model, optimizer, logdir=None, proxy=proxy, **options) as watcher:
        value.room = room_later
        for _ in range(4):
            model(torch.ones(2, 4)).sum().backward()
            optimizer.step()
        return watcher.records


@pytest.mark.slow
def test_a_watch_goes_on_with_smaller_batches_and_says_so(caplog) -> None:
    roomy, tight = watched(math.inf), watched(2, strict=True)
    assert [r.valid for r in tight] == [True] * 4
    for one, other in zip(roomy, tight, strict=True):
        assert other.curve.num_examples == 11
        assert other.curve.level == one.curve.level
        assert np.allclose(other.curve.value, one.curve.value, rtol=1e-6)
        assert other.provenance == one.provenance
    # 8 and 3 -> 4, 4, 1, 2 -> 2, 2, 2, 2, 1, 1, 1
    assert "smaller batches, 4 in all" in caplog.text
    # one cause, whatever the number: the second time is counted at the close
    assert "more times: out of memory while evaluating" in caplog.text


def test_without_any_room_records_are_marked_and_training_goes_on(caplog) -> None:
    records = watched(0)
    assert len(records) == 3  # then the watch is off; four steps were taken
    assert all(not r.valid and "OutOfMemoryError" in r.reason for r in records)
    assert all(r.near_zero for r in records)  # what needs no evaluation is there
    assert "switched itself off" in caplog.text


def test_other_errors_are_not_tried_again() -> None:
    calls = []

    def fails(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        calls.append(len(batch))
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        sweep(net(), fails)
    assert calls == [5]


def test_a_value_that_changes_its_number_of_examples_is_refused() -> None:
    """A batch whose halves do not hold half of the examples cannot give a true number."""

    def value(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return torch.ones(4)

    proxy = sw.Proxy([torch.ones(4, 2)], value)
    check_proxy(proxy, nn.Linear(2, 2))
    assert proxy.halve()
    with pytest.raises(sw.errors.ProxyError, match="4 examples over all batches as before, got 8"):
        check_proxy(proxy, nn.Linear(2, 2))
