"""Rows, groups and chance: what goes is what numpy says, and exactly as many as counted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from contracts.pattern_contract import PatternContract, tensors, told
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import sparsitywatch as sw
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.patterns.cuts import Weights
from sparsitywatch.patterns.pattern import (
    GlobalMagnitude,
    GlobalNormalised,
    KeepNM,
    Layerwise,
    Pattern,
    PerRow,
    Random,
    RandomERK,
)
from sparsitywatch.patterns.selections import smallest, to_output_rows


class TestGlobal(PatternContract):
    def make(self) -> Pattern:
        return GlobalMagnitude()


class TestGlobalNormalised(PatternContract):
    def make(self) -> Pattern:
        return GlobalNormalised()

    def test_one_threshold_on_weights_over_their_rms(self) -> None:
        dense = {name: t.double() for name, t in tensors(torch.float32).items()}
        ratios = {n: (t.abs() / t.square().mean().sqrt()).numpy() for n, t in dense.items()}
        every = np.sort(np.concatenate([r.ravel() for r in ratios.values()]))
        (cut,) = self.make().cuts(told(dense), [0.5])
        limit = every[round(0.5 * len(every)) - 1]
        for name, weights in dense.items():
            out = torch.empty_like(weights)
            cut.prune(name, weights, out)
            gone = (out == 0).numpy()
            unlike = gone != (ratios[name] <= limit)
            assert unlike.mean() <= 0.02  # but for those in the bin at the threshold
            assert np.all(np.abs(ratios[name][unlike] / limit - 1) < 0.01)

    def test_tensors_of_other_scales_lose_alike(self) -> None:
        torch.manual_seed(0)
        weights = torch.randn(300, 300)
        (cut,) = self.make().cuts(Weights.of({"a": weights, "b": weights * 100}), [0.4])
        assert cut.shares["a"] == pytest.approx(0.4, abs=0.01)
        assert cut.shares["b"] == pytest.approx(0.4, abs=0.01)

    def test_a_tensor_of_zeros_goes_first(self) -> None:
        dense = {"zeros": torch.zeros(10), "ones": torch.ones(10)}
        (cut,) = self.make().cuts(Weights.of(dense), [0.5])
        assert cut.shares == {"zeros": 1.0, "ones": 0.0}


class TestLayerwise(PatternContract):
    def make(self) -> Pattern:
        return Layerwise()

    def test_each_tensor_loses_the_same_share(self) -> None:
        (cut,) = self.make().cuts(told(tensors(torch.float32)), [0.3])
        assert all(share == pytest.approx(0.3, abs=0.02) for share in cut.shares.values())


class TestPerRow(PatternContract):
    within = 0.06  # rows are short

    def make(self) -> Pattern:
        return PerRow()

    def test_each_output_loses_its_smallest_inputs(self) -> None:
        dense = tensors(torch.float32)
        (cut,) = self.make().cuts(told(dense), [0.5])
        views = {  # one row for each output
            "linear": lambda t: t.numpy(),
            "conv1d": lambda t: t.numpy().T,
            "conv": lambda t: t.numpy().reshape(6, -1),
        }
        for name, weights in dense.items():
            out = torch.empty_like(weights)
            cut.prune(name, weights, out)
            rows, pruned = views[name](weights), views[name](out)
            num = round(0.5 * rows.shape[1])
            for row, after in zip(rows, pruned, strict=True):
                order = np.argsort(np.abs(row), kind="stable")
                assert not after[order[:num]].any()
                assert np.array_equal(after[order[num:]], row[order[num:]])


@pytest.mark.slow
@pytest.mark.parametrize("num_threads", [1, 2])
def test_rows_of_many_parts_are_chosen_from_alone(num_threads: int) -> None:
    """Of a linear layer, of one turned, of a transposed convolution, whose rows are copies."""
    generator = np.random.default_rng(0)
    shapes = {"linear": ((700, 300), 1), "turned": ((300, 700), 0), "conv": ((30, 700, 2, 5), 0)}
    dense = {
        name: torch.from_numpy(generator.integers(-99, 100, shape).astype(np.float32))  # with ties
        for name, (shape, _) in shapes.items()
    }
    axes = {name: axis for name, (_, axis) in shapes.items()}
    (cut,) = PerRow().cuts(Weights.of(dense, input_axes=axes), [0.4])
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        for name, weights in dense.items():
            out = torch.full_like(weights, 7)
            cut.prune(name, weights, out)
            first = [t.movedim(axes[name], 1).reshape(700, 300).numpy() for t in (weights, out)]
            gone = np.argsort(np.abs(first[0]), 1, kind="stable")[:, :120]
            expected = first[0].copy()
            np.put_along_axis(expected, gone, 0.0, 1)
            assert np.array_equal(first[1], expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("pattern", [PerRow(), Random(), KeepNM(1, 3)], ids=lambda p: p.name)
def test_what_goes_is_plus_zero_and_what_stays_the_same_to_the_bit(pattern: Pattern) -> None:
    """Infinite and undefined weights, too, which times zero are no number."""
    weights = torch.tensor([math.inf, -math.inf, math.nan, -1.0, -0.0, 2.0]).repeat(50, 10)
    (cut,) = pattern.cuts(Weights.of({"w": weights}), [0.9])
    cut.prune("w", weights, out := torch.empty_like(weights))
    words, after = weights.view(torch.int32), out.view(torch.int32)
    gone = after != words
    assert not after[gone].any()
    assert not out[gone].isnan().any()
    assert (gone & ~weights.isfinite()).any()
    assert 0.5 < gone.double().mean() <= 0.9


class TestKeep2Of4(PatternContract):
    within = 0.0  # one point, whatever level is asked for

    def make(self) -> Pattern:
        return KeepNM(2, 4)


class TestRandom(PatternContract):
    within = 0.1  # of 420 weights

    def make(self) -> Pattern:
        return Random()

    def test_the_seed_and_the_name_decide(self) -> None:
        dense = {"a": torch.ones(50, 50), "b": torch.ones(50, 50)}

        def mask(seed: int, name: str) -> torch.Tensor:
            (cut,) = self.make().cuts(Weights.of(dense, seed=seed), [0.5])
            out = torch.empty(50, 50)
            cut.prune(name, dense[name], out)
            return out

        assert torch.equal(mask(0, "a"), mask(0, "a"))
        assert (mask(0, "a") != mask(1, "a")).float().mean() == pytest.approx(0.5, abs=0.05)
        assert (mask(0, "a") != mask(0, "b")).float().mean() == pytest.approx(0.5, abs=0.05)


class TestRandomERK(PatternContract):
    within = 0.1

    def make(self) -> Pattern:
        return RandomERK()

    @pytest.mark.parametrize("level", [0.2, 0.5, 0.8, 0.95])
    def test_densities_by_the_formula(self, level: float) -> None:
        shapes = {"small": (20, 30), "large": (200, 300), "conv": (32, 16, 3, 3)}
        dense = {name: torch.ones(shape) for name, shape in shapes.items()}
        (cut,) = self.make().cuts(Weights.of(dense), [level])
        sizes = {name: float(np.prod(shape)) for name, shape in shapes.items()}
        raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
        low, high = 0.0, 1e9  # the scale, by halving
        for _ in range(200):
            scale = (low + high) / 2
            kept = sum(min(1.0, scale * raw[name]) * sizes[name] for name in shapes)
            low, high = (scale, high) if kept < (1 - level) * sum(sizes.values()) else (low, scale)
        for name in shapes:
            expected = 1 - min(1.0, scale * raw[name])
            assert cut.shares[name] == pytest.approx(expected, abs=4 / sizes[name] ** 0.5)


# ------------------------------------------------------------------ N of M


@pytest.mark.parametrize(("keep", "of"), [(1, 2), (2, 4), (4, 8), (1, 4), (0, 3)])
@pytest.mark.parametrize(
    ("shape", "axis"), [((6, 19), 1), ((19, 6), 0), ((5, 19, 3, 3), 1), ((19, 5, 3, 3), 0)]
)
def test_the_largest_of_each_group_stay(
    keep: int, of: int, shape: tuple[int, ...], axis: int
) -> None:
    torch.manual_seed(1)
    weights = torch.randn(shape)
    known = Weights.of({"w": weights}, input_axes={"w": axis})
    (cut,) = KeepNM(keep, of).cuts(known, [0.5])
    out = torch.empty_like(weights)
    cut.prune("w", weights, out)
    last, pruned = (np.moveaxis(t.numpy(), axis, -1).reshape(-1, 19) for t in (weights, out))
    for row, after in zip(last, pruned, strict=True):
        for start in range(0, 19 // of * of, of):
            group = np.abs(row[start : start + of])
            kept = np.sort(np.argsort(group, kind="stable")[of - keep :])
            assert np.array_equal(np.flatnonzero(after[start : start + of]), kept)
        assert np.array_equal(after[19 // of * of :], row[19 // of * of :])  # the rest is left
    assert cut.sparsity == pytest.approx(float((out == 0).double().mean()), abs=1e-12)


def test_of_equal_weights_the_first_go_and_nan_stays() -> None:
    weights = torch.tensor([[1.0, 1.0, 1.0, 1.0, float("nan"), 2.0, float("nan"), 1.0]])
    (cut,) = KeepNM(2, 4).cuts(Weights.of({"w": weights}), [0.5])
    out = torch.empty_like(weights)
    cut.prune("w", weights, out)
    assert (out[0] == 0).tolist() == [True, True, False, False, False, True, False, True]


@given(
    st.sampled_from([(1, 2), (2, 4), (1, 4), (3, 4), (4, 8), (7, 8), (0, 8), (2, 5), (3, 16)]),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    st.integers(1, 40),
    st.integers(0, 2**31),
)
def test_of_any_width_the_largest_stay(groups: tuple, dtype: torch.dtype, num: int, seed: int):
    """Against a stable sort of each group by numpy: ties, zeros of both signs, infinities."""
    keep, of = groups
    random = np.random.default_rng(seed)
    some = np.array([-np.inf, -2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 3.0, np.inf])
    weights = torch.tensor(random.choice(some, (1, num * of))).to(dtype)
    (cut,) = KeepNM(keep, of).cuts(Weights.of({"w": weights}), [0.5])
    out = torch.empty_like(weights)
    cut.prune("w", weights, out)
    values = weights.double().numpy().reshape(-1, of)
    gone = np.argsort(np.abs(values), axis=1, kind="stable")[:, : of - keep]
    expected = values.copy()
    np.put_along_axis(expected, gone, 0.0, axis=1)
    found = out.double().numpy().reshape(-1, of)
    assert np.array_equal(found, expected)
    assert not np.signbit(np.take_along_axis(found, gone, axis=1)).any()


@pytest.mark.parametrize(("keep", "of"), [(4, 4), (5, 4), (-1, 4), (2.0, 4), (True, 4)])
def test_what_is_no_n_of_m_is_refused(keep: object, of: object) -> None:
    with pytest.raises(ConfigurationError, match="keeps two of four"):
        KeepNM(keep, of)


def test_one_thread_prunes_as_several_do() -> None:
    weights = torch.tensor([[0.1, -0.4, 0.3, 0.2]])
    (cut,) = KeepNM(2, 4).cuts(Weights.of({"w": weights}), [0.5])
    out = torch.empty_like(weights)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cut.prune("w", weights, out)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(out, torch.tensor([[0.0, -0.4, 0.3, 0.0]]))


def test_it_is_a_point_and_says_so() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    x, y = torch.randn(40, 8), torch.randint(0, 2, (40,))
    proxy = sw.Proxy(
        [(x, y)], lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction="none")
    )
    record = sw.measure(model, proxy, scope="layers", pattern=sw.patterns.KeepNM(2, 4))
    assert record.curve.sparsity == (0.0, 0.5, 1.0)
    assert not record.essential_sparsity.informative
    assert "a point, not a curve" in record.essential_sparsity.reason
    with pytest.raises(ConfigurationError, match="no `levels` with the pattern 'keep_2_of_4'"):
        sw.Settings(pattern=sw.patterns.KeepNM(2, 4), levels=[0.5])


# ------------------------------------------------------------------ helpers


def test_a_row_that_is_longer_than_what_is_cut_at_once() -> None:
    dense = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 40_001)).astype(np.float32))
    (cut,) = PerRow().cuts(Weights.of({"w": dense}, input_axes={"w": 1}), [0.3])
    out = torch.empty_like(dense)
    cut.prune("w", dense, out)
    for row, after in zip(dense.numpy(), out.numpy(), strict=True):
        limit = np.sort(np.abs(row))[round(0.3 * 40_001) - 1]
        assert np.array_equal(after, np.where(np.abs(row) <= limit, 0.0, row))


@given(st.integers(1, 6), st.integers(1, 30), st.integers(0, 30), st.integers(0, 2**31))
def test_the_smallest_of_each_row(num_rows: int, width: int, num: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 5, (num_rows, width)).astype(np.float32)  # with ties
    num = min(num, width)
    expected = np.zeros(scores.shape, bool)
    np.put_along_axis(expected, np.argsort(scores, 1, kind="stable")[:, :num], True, 1)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        chosen = smallest(torch.from_numpy(scores).to(dtype), num)
        assert np.array_equal(chosen.numpy(), expected)


def test_what_is_no_number_is_never_among_the_smallest() -> None:
    scores = torch.tensor([[math.nan, 1.0, math.inf, 0.0]])
    assert smallest(scores, 3).tolist() == [[False, True, True, True]]


def test_rows_of_experts_are_those_of_each_expert() -> None:
    experts = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(to_output_rows(experts, 2), experts.reshape(6, 4))
