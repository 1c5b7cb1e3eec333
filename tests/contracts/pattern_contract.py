"""What every pattern must do. A pattern's test class inherits this and fills it in::

class TestMine(PatternContract):
    def make(self) -> Pattern: ...
"""

from __future__ import annotations

import pytest
import torch

from sparsitywatch.patterns.cuts import Inputs, Weights
from sparsitywatch.patterns.pattern import Pattern, as_pattern

LEVELS = (0.0, 0.1, 0.33, 0.5, 0.77, 0.95, 1.0)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def tensors(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A linear layer, one as transformers' Conv1D, a convolution; no zero among the weights."""
    generator = torch.Generator().manual_seed(5)
    shapes = {"linear": (10, 12), "conv1d": (12, 7), "conv": (6, 4, 3, 3)}
    found = {}
    for name, shape in shapes.items():
        weights = torch.randn(shape, generator=generator) * (3.0 if name == "conv" else 0.1)
        found[name] = torch.where(weights == 0, 1.0, weights).to(dtype)
    return found


def told(weights: dict[str, torch.Tensor]) -> Weights:
    """What a pattern is told of them, the inputs of the layers too."""
    generator = torch.Generator().manual_seed(6)
    vectors = {
        name: torch.randn(200, width, generator=generator) * torch.linspace(0.1, 3, width)
        for name, width in {"linear": 12, "conv1d": 12, "conv": 36}.items()
    }
    return Weights.of(
        weights,
        input_axes={"linear": 1, "conv1d": 0, "conv": 1},
        inputs=Inputs(
            num=dict.fromkeys(vectors, 200),
            squares={name: v.square().sum(0) for name, v in vectors.items()},
            products={name: v.T @ v for name, v in vectors.items()},
        ),
    )


class PatternContract:
    """Any pattern."""

    #: largest distance of the counted sparsity from the level
    within = 0.02
    #: whether kept weights change, to make up for what goes
    updates = False

    def make(self) -> Pattern:
        raise NotImplementedError

    def test_its_name_gives_it(self) -> None:
        pattern = self.make()
        assert as_pattern(pattern.name) == pattern

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_it_counts_what_it_removes_and_keeps_the_rest(self, dtype: torch.dtype) -> None:
        dense = tensors(dtype)
        total = sum(t.numel() for t in dense.values())
        for cut in self.make().cuts(told(dense), LEVELS):
            removed = 0
            for name, weights in dense.items():
                before = weights.clone()
                out = torch.full_like(weights, 7)
                cut.prune(name, weights, out)
                assert torch.equal(weights, before)
                gone = out == 0
                assert cut.shares[name] == pytest.approx(float(gone.double().mean()), abs=1e-12)
                removed += int(gone.sum())
                if not self.updates:
                    assert torch.equal(out[~gone], weights[~gone])
            assert cut.sparsity == pytest.approx(removed / total, abs=1e-12)
            if self.within:
                assert cut.sparsity == pytest.approx(cut.level, abs=self.within)

    def test_level_0_is_the_same_to_the_bit_and_level_1_nothing(self) -> None:
        dense = {name: t.clone() for name, t in tensors(torch.float32).items()}
        dense["linear"][0, 0], dense["linear"][0, 1] = float("nan"), -0.0
        nothing, everything = self.make().cuts(told(dense), [0.0, 1.0])
        for name, weights in dense.items():
            out = torch.full_like(weights, 7)
            nothing.prune(name, weights, out)
            assert torch.equal(out.view(torch.int32), weights.view(torch.int32))
            everything.prune(name, weights, out)
            assert torch.equal(out, torch.zeros_like(out))
        assert (nothing.sparsity, everything.sparsity) == (0.0, 1.0)

    def test_masks_of_rising_levels_are_nested_where_it_says_so(self) -> None:
        if not self.make().is_nested:
            return
        dense = tensors(torch.bfloat16)  # with ties
        before = {name: torch.zeros_like(t, dtype=torch.bool) for name, t in dense.items()}
        for cut in self.make().cuts(told(dense), LEVELS):
            for name, weights in dense.items():
                out = torch.empty_like(weights)
                cut.prune(name, weights, out)
                assert not (before[name] & (out != 0)).any()
                before[name] = out == 0

    def test_it_removes_the_same_weights_every_time(self) -> None:
        dense = tensors(torch.float32)
        for cut, again in zip(
            self.make().cuts(told(dense), [0.5]), self.make().cuts(told(dense), [0.5]), strict=True
        ):
            for name, weights in dense.items():
                outs = [torch.empty_like(weights) for _ in range(2)]
                cut.prune(name, weights, outs[0])
                again.prune(name, weights, outs[1])
                assert torch.equal(*outs)

    def test_a_view_of_other_strides_is_pruned_alike(self) -> None:
        dense = tensors(torch.float32)
        (cut,) = self.make().cuts(told(dense), [0.5])
        weights = dense["linear"]
        straight, turned = torch.empty_like(weights), torch.empty(12, 10).T
        cut.prune("linear", weights, straight)
        cut.prune("linear", weights, turned)
        assert torch.equal(straight, turned)
