"""The contract of every combination of score, structure and allocation, and what nobody may break.

    python tests/patterns/test_combinations.py

prints the table of combinations and invariances, of which docs/patterns.md has the short form.
"""

from __future__ import annotations

import functools
import itertools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # tests get it from pyproject.toml
    sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import pytest
import torch
from contracts.families import some_of
from contracts.thread_ranks import ThreadRanks, on_ranks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.pytorch_utils import Conv1D

import sparsitywatch as sw
from sparsitywatch.errors import ConfigurationError
from sparsitywatch.patterns.criteria import input_axes, inputs_on
from sparsitywatch.patterns.cuts import Inputs, Weights
from sparsitywatch.patterns.pattern import (
    _ALLOCATIONS,
    _SCORES,
    _STRUCTURES,
    Pattern,
    _Allocation,
    _lowest,
    _Score,
    as_pattern,
)
from sparsitywatch.patterns.selections import CountedCut, _in_whole
from sparsitywatch.proxy.batches import Runnable
from sparsitywatch.ranks.reading import ShardBox, ShardedReader, Shards
from sparsitywatch.weights.spectrum.magnitude import num_pruned

LEVELS = (0.0, 0.1, 0.33, 0.5, 0.77, 0.95, 1.0)
Tensors = dict[str, torch.Tensor]
#: Sparsities by name of the tensors of ``Net``.
BUDGETS = {
    "layers.0.up.weight": 0.3, "layers.0.down.weight": 0.9, "layers.1.up.weight": 0.5,
    "layers.1.down.weight": 0.0, "layers.2.up.weight": 0.7, "layers.2.down.weight": 1.0,
}  # fmt: skip


def combinations() -> dict[str, Pattern]:
    """Every one that makes sense, by its name."""
    found = [
        Pattern(score, "4:8", "owl") for score, row in _SCORES.items() if "N:M" in row.structures
    ]
    for score, row in _SCORES.items():
        for kind in row.structures:
            first, *more = ("2:4", "n:8") if kind == "N:M" else (kind,)
            found += [Pattern(score, structure) for structure in (first, *more)]
            others = [*_ALLOCATIONS.keys() - {"uniform"}, BUDGETS] if kind != "global" else []
            found += [Pattern(score, first, allocation) for allocation in others]
    return {pattern.name: pattern for pattern in sorted(found, key=lambda one: one.name)}


COMBINATIONS = combinations()


# ------------------------------------------------------------------ what they are tried on


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), Conv1D(width, 2 * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    """Looks at each position by itself; in double precision, so that orders make no difference."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(30, 16)
        self.layers = nn.ModuleList(Layer(16) for _ in range(3))
        nn.init.normal_(self.tokens.weight, std=3.0)
        with torch.no_grad():
            self.tokens.weight[:, 3] = 0.0  # a feature that is never on
            for index, layer in enumerate(self.layers):
                nn.init.normal_(layer.down.weight, std=0.3)
                # never on either, whatever comes: units that are dead, and what they would read
                layer.up.weight[5:9] = 0.0
                layer.up.bias[5:9] = -1.0
                layer.down.weight[:, 3], layer.down.bias[3] = 0.0, 0.0
                layer.up.weight *= 1 + index * (torch.rand(32, 16) < 0.03) * 20  # outliers
        self.double()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        return x


NAMES = [f"layers.{i}.{name}.weight" for i in range(3) for name in ("up", "down")]


def value(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    squares = model(batch["input_ids"]).square().mean(-1)
    return (squares * batch["attention_mask"]).sum(1) / batch["attention_mask"].sum(1)


@functools.cache
def texts(*, padded: int = 0) -> dict[str, torch.Tensor]:
    """Twelve texts of 5 to 9 tokens, padded to so many."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(5, 10, (12, 1), generator=generator)
    mask = (torch.arange(max(padded, 9)) < lengths).long()
    tokens = torch.randint(1, 30, (12, 9), generator=generator)
    ids = torch.zeros_like(mask)
    ids[:, :9] = tokens
    return {"input_ids": ids * mask, "attention_mask": mask}


@functools.cache
def inputs(what: str) -> Inputs:
    """What comes into the layers of ``Net`` for texts that are the same, or the same turned."""
    batch = texts(padded=40 if what == "padded" else 0)
    if what == "examples":
        order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
        batch = {name: tensor[order] for name, tensor in batch.items()}
    if what == "tokens":
        batch = {name: tensor.flip(1) for name, tensor in batch.items()}
    model = Net()
    found, _ = inputs_on(sw.Proxy([batch], value), Runnable(model, value), NAMES, EVERYTHING)
    return found


EVERYTHING = sw.patterns.Pattern("sparsegpt")


@functools.cache
def dense() -> Tensors:
    named = dict(Net().named_parameters())
    return {name: named[name].detach().float() for name in NAMES}


def told(weights: Tensors, found: Inputs | None = None) -> Weights:
    known = found or inputs("as they are")
    return Weights.of(weights, input_axes=input_axes(Net(), NAMES), inputs=known)


def pruned(
    pattern: Pattern, level: float, known: Weights | None = None, weights: Tensors | None = None
) -> Tensors:
    """What a cut at a level makes of the weights."""
    weights = weights or dense()
    (cut,) = pattern.cuts(known or told(weights), [level])
    found = {}
    for name, tensor in weights.items():
        cut.prune(name, tensor, out := torch.full_like(tensor, 7))
        found[name] = out
    return found


def masks(pattern: Pattern, found: Inputs | None = None) -> list[Tensors]:
    """What goes at three levels."""
    known = told(dense(), found)
    return [
        {name: tensor == 0 for name, tensor in pruned(pattern, level, known).items()}
        for level in (0.25, 0.5, 0.75)
    ]


@functools.cache
def usual(name: str) -> list[Tensors]:
    return masks(COMBINATIONS[name])


def is_same(one: list[Tensors], other: list[Tensors]) -> bool:
    return all(torch.equal(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a)


# ------------------------------------------------------------------ what each must do


def counted(pattern: Pattern) -> bool:
    """What is said to go goes, and as many as asked for, to the last weight that there can be."""
    weights, found = filled(), inputs("as they are")
    squares = {name: t + 1e-3 * t.mean() for name, t in found.squares.items()}  # no ties at zero
    products = {
        name: t + torch.diag(squares[name] - t.diagonal()) for name, t in found.products.items()
    }
    known = told(weights, Inputs(found.num, squares, products))
    sizes = {name: t.numel() for name, t in weights.items()}
    total = sum(sizes.values())
    for level, cut in zip(LEVELS, pattern.cuts(known, LEVELS), strict=True):
        gone = {}
        for name, tensor in weights.items():
            cut.prune(name, tensor, out := torch.full_like(tensor, 7))
            gone[name] = int((out == 0).sum())
            if abs(cut.shares[name] * sizes[name] - gone[name]) > 1e-6:
                return False
        asked = num_pruned(total, level)
        if pattern.levels is not None:  # a group loses a whole number
            of = int(pattern.structure.partition(":")[2])
            lost = level if 0.0 < level < 1.0 and len(pattern.levels) > 1 else pattern.levels[0]
            asked = round((level if level in (0.0, 1.0) else round(lost * of) / of) * total)
        rows = {name: t.shape[1 if "up" in name else 0] for name, t in weights.items()}
        may = {
            "global": 0,
            "layer": len(sizes) / 2,
            "row": sum(sizes[n] / rows[n] for n in sizes) / 2,
        }
        if pattern.levels is not None and pattern.allocation != "uniform":
            may[pattern.structure] = max(sizes.values()) / of / 2
        if abs(sum(gone.values()) - asked) > may.get(pattern.structure, 0) + 1e-6:
            return False
        if abs(cut.sparsity * total - sum(gone.values())) > 1e-6:
            return False
    return True


def kept(pattern: Pattern) -> bool | None:
    """What stays is the same to the bit; None where what stays makes up for what goes."""
    if pattern.score == "sparsegpt":
        return None
    for level in LEVELS:
        for name, out in pruned(pattern, level).items():
            words, before = out.view(torch.int32), dense()[name].view(torch.int32)
            if not ((words == before) | (words == 0)).all():
                return False
    return True


def nested(pattern: Pattern) -> bool | None:
    """What a level removes is removed at every higher one; None where that is not claimed."""
    if not pattern.is_nested:
        return None
    known = told(dense())
    each = [{n: t == 0 for n, t in pruned(pattern, level, known).items()} for level in LEVELS]
    return all(
        not (low[name] & ~high[name]).any()
        for low, high in itertools.pairwise(each)
        for name in low
    )


def scaled(pattern: Pattern) -> bool:
    """Inputs in another unit."""
    found = inputs("as they are")
    squares, products = (
        {name: tensor * 1e6 for name, tensor in given.items()}
        for given in (found.squares, found.products)
    )
    return is_same(usual(pattern.name), masks(pattern, Inputs(found.num, squares, products)))


def reordered(pattern: Pattern) -> bool:
    """Tensors in another order."""
    weights = dict(reversed(dense().items()))
    other = [
        {name: t == 0 for name, t in pruned(pattern, level, told(weights), weights).items()}
        for level in (0.25, 0.5, 0.75)
    ]
    return is_same(usual(pattern.name), other)


def turned(what: str) -> Callable[[Pattern], bool]:
    return lambda pattern: is_same(usual(pattern.name), masks(pattern, inputs(what)))


CHECKS: dict[str, Callable[[Any], bool | None]] = {
    "counted": counted, "kept to the bit": kept, "nested": nested, "inputs scaled": scaled,
    "padded": turned("padded"), "examples turned": turned("examples"),
    "tokens turned": turned("tokens"), "layers turned": reordered,
}  # fmt: skip


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", some_of(COMBINATIONS, 3))
def test_the_contract(name: str, check: str) -> None:
    assert CHECKS[check](COMBINATIONS[name]) in (True, None)


def test_what_is_not_claimed_is_that_of_sparsegpt_alone() -> None:
    for name, pattern in COMBINATIONS.items():
        unclaimed = {check for check in ("kept to the bit", "nested") if not CHECKS[check](pattern)}
        assert bool(unclaimed) == name.startswith("sparsegpt")


def test_the_checks_can_fail() -> None:
    """Padding that counts, and a feature that is never on whose moment has a unit."""
    found = inputs("as they are")
    ids = texts(padded=40)["input_ids"]
    every = sw.Proxy([{"input_ids": ids, "attention_mask": torch.ones_like(ids)}], value)
    padded, _ = inputs_on(every, Runnable(Net(), value), NAMES, EVERYTHING)
    assert not is_same(usual("wanda"), masks(COMBINATIONS["wanda"], padded))
    uneven = {n: t * torch.linspace(1, 9, len(t)).double() for n, t in found.squares.items()}
    assert not is_same(usual("wanda"), masks(COMBINATIONS["wanda"], Inputs(found.num, uneven)))


# ------------------------------------------------------------------ what is added


def test_a_score_and_an_allocation_are_added_by_their_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """As CONTRIBUTING.md says; against a sort of numpy."""

    def distance(_: Pattern, weights: Weights) -> Callable[[str], Any]:
        means = {name: float(tensor.mean()) for name, tensor in weights.tensors.items()}
        return lambda name: lambda rows, _: (rows - means[name]).abs().float()

    def first_half(_: Pattern, weights: Weights, levels: Sequence[float]) -> list[dict[str, float]]:
        return [{name: level * (".up." in name) for name in weights.shapes} for level in levels]

    monkeypatch.setitem(_SCORES, "distance", _Score(("layer", "row"), _lowest(distance)))
    monkeypatch.setitem(_ALLOCATIONS, "up", _Allocation(first_half))
    pattern = Pattern("distance", "row", "up")
    assert pattern.name == "distance:row:up"
    for name, found in gone(pattern, 0.5).items():
        rows = rows_of(name, filled()[name])
        far = np.abs(rows - rows.mean()).astype(np.float32)
        expected = np.zeros(rows.shape, bool)
        if ".up." in name:
            order = np.argsort(far, 1, kind="stable")[:, : rows.shape[1] // 2]
            np.put_along_axis(expected, order, True, 1)
        assert np.array_equal(found, expected)
    with pytest.raises(ConfigurationError, match="Expected another `structure` than 'global'"):
        Pattern("distance", "global")


@dataclass(frozen=True, repr=False)
class _ColumnCut(CountedCut):
    """Removes its tensor's share of each column, of the lowest scores."""

    of_column: Mapping[str, int]
    scores: Any

    @classmethod
    def of(
        cls, _: Any, weights: Weights, levels: Sequence[float], shares: Any, scores: Any
    ) -> list[Any]:
        each = []
        for share in shares:
            sizes = {name: tensor.shape for name, tensor in weights.tensors.items()}
            axes = {name: weights.input_axis(name) for name in sizes}
            heights = {name: shape[1 - axes[name]] for name, shape in sizes.items()}
            of = {name: round(share[name] * height) for name, height in heights.items()}
            each.append(({name: n * sizes[name][axes[name]] for name, n in of.items()}, of))
        return cls.counted(weights, levels, each, scores=scores)

    def _prune(self, name: str, weights: torch.Tensor, out: torch.Tensor) -> None:
        rows = weights if self.axes[name] == 1 else weights.T
        worth = self.scores(name)(rows, slice(None)) if self.scores else rows.abs()
        stays = worth.argsort(dim=0, stable=True).argsort(dim=0) >= self.of_column[name]
        out.copy_(torch.where(stays if self.axes[name] == 1 else stays.T, weights, 0.0))


@pytest.mark.parametrize("score", ["magnitude", "wanda"])
def test_a_structure_is_added_by_its_row(monkeypatch: pytest.MonkeyPatch, score: str) -> None:
    """As CONTRIBUTING.md says; against a sort of numpy."""
    with pytest.raises(ConfigurationError, match="Expected `structure` to be"):
        Pattern(score, "column")
    monkeypatch.setitem(_STRUCTURES, "column", _ColumnCut.of)
    with pytest.raises(ConfigurationError, match="Expected another `structure` than 'column'"):
        Pattern(score, "column")  # no score says that it can have it
    row = _SCORES[score]
    monkeypatch.setitem(_SCORES, score, row._replace(structures=(*row.structures, "column")))
    pattern = Pattern(score, "column")
    assert pattern.name == f"{score}:column"
    scores = worth(score)
    for name, found in gone(pattern, 0.3).items():
        num = round(0.3 * len(found))
        expected = np.zeros(found.shape, bool)
        np.put_along_axis(expected, np.argsort(scores[name], 0, kind="stable")[:num], True, 0)
        assert np.array_equal(found, expected)
        assert 0 < num < len(found)


def test_a_row_without_its_function_is_refused() -> None:
    with pytest.raises(TypeError, match="cuts"):
        _Score(("layer",))  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="shares"):
        _Allocation()  # type: ignore[call-arg]


# ------------------------------------------------------------------ names


def test_every_combination_has_a_name_of_its_own_that_gives_it() -> None:
    assert len(COMBINATIONS) == 71
    for name, pattern in COMBINATIONS.items():
        if "budgets" not in name:
            assert as_pattern(name) == pattern
            assert eval(repr(pattern), {"Pattern": as_pattern}) == pattern
    assert as_pattern("wanda").name == "wanda" == sw.patterns.Pattern("wanda", "row").name
    assert as_pattern("wanda:layer:owl") == sw.patterns.Pattern("wanda", "layer", "owl")
    assert as_pattern("magnitude:1:3") == sw.patterns.KeepNM(1, 3)
    ours = sw.patterns.Pattern("ria", exponent=0.25), sw.patterns.SparseGPT(block=4)
    assert [one.name for one in ours] == ["ria(exponent=0.25):layer", "sparsegpt(block=4):layer"]
    assert (
        sw.patterns.Pattern("wanda", allocation="owl", outlier=7).name == "wanda:row:owl(outlier=7)"
    )
    names = {sw.patterns.Pattern(allocation={"w": share}).name for share in (0.1, 0.2)}
    assert len(names) == 2


def test_the_combinations_of_the_manual_are_what_they_say() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "patterns.md").read_text()
    lines = [line for line in manual.splitlines() if line.startswith("| `Pattern(")]
    assert len(lines) == 7
    for line in lines:
        code, *texts = re.findall(r"`([^`]+)`", line.split(" | ")[0])
        made = eval(code.replace(", ...}", "}"), {"Pattern": sw.patterns.Pattern})
        assert all(as_pattern(text.strip('"')) == made for text in texts)
    assert f"of the {len(COMBINATIONS)} combinations" in manual


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"score": "size"}, "`score` to be one of 'magnitude'"),
        ({"structure": "column"}, "`structure` to be 'global', 'layer', 'row', '2:4'"),
        ({"structure": "4:4"}, "`structure` to be 'global'"),
        ({"structure": "n:1"}, "`structure` to be 'global'"),
        ({"allocation": "lamp"}, "`allocation` to be one of 'uniform', 'erk', 'owl', or"),
        ({"allocation": {}}, "`allocation` to be one of"),
        ({"allocation": {"w": 1.5}}, r"`allocation\['w'\]` to be in \[0, 1\], got 1.5"),
        ({"structure": "N:M"}, "`structure` to be 'global', 'layer', 'row', '2:4'"),
        ({"structure": "global", "allocation": "erk"}, "'global', which has one threshold for all"),
        (
            {"structure": "global", "allocation": "owl"},
            "got 'owl'. Choose 'layer', 'row' or '2:4'",
        ),
        ({"structure": "n:4", "allocation": "owl"}, "'n:4', which is a curve over one N for all"),
        ({"structure": "global", "allocation": {"w": 0.5}}, "got 'sparsities by name'"),
        (
            {"score": "sparsegpt", "structure": "row"},
            "block by block of the inputs: choose 'layer'",
        ),
        ({"score": "normalised", "structure": "layer"}, "choose score='magnitude'"),
        ({"block": 64}, "`block` to be left out with the score 'magnitude'"),
        ({"score": "wanda", "outlier": 3}, "`outlier` to be left out"),
        ({"score": "ria", "exponent": "a"}, "`exponent` to be a number"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(given: dict[str, Any], words: str) -> None:
    with pytest.raises(sw.ConfigurationError, match=words):
        sw.patterns.Pattern(**given)


def test_n_of_m_with_an_allocation_removes_a_whole_number_of_each_group() -> None:
    eighths = dict(zip(NAMES, (2, 6, 4, 3, 1, 8), strict=True))
    pattern = sw.patterns.Pattern("magnitude", "4:8", {n: k / 8 for n, k in eighths.items()})
    (cut,) = pattern.cuts(told(filled()), [0.5])
    assert cut.shares == {name: number / 8 for name, number in eighths.items()}
    for name, tensor in filled().items():
        cut.prune(name, tensor, out := torch.full_like(tensor, 7))
        groups = tensor.abs().movedim(1 if "up" in name else 0, -1).reshape(-1, 8)
        gone = (out == 0).movedim(1 if "up" in name else 0, -1).reshape(-1, 8)
        assert gone.sum(1).tolist() == [eighths[name]] * len(groups)
        assert (groups.sort(1).values.gather(1, gone.sum(1, keepdim=True) - 1)
                >= groups.masked_fill(~gone, 0).amax(1, keepdim=True)).all()  # fmt: skip


def test_owl_keeps_more_of_a_group_where_there_are_more_outliers() -> None:
    known = told(dense())
    (shares,) = Pattern("wanda", "row", "owl", spread=0.3)._shares(known, [0.5])
    (cut,) = sw.patterns.Pattern("wanda", "4:8", "owl", spread=0.3).cuts(known, [0.5])
    assert len(set(cut.shares.values())) > 1
    for name, share in cut.shares.items():
        assert abs(8 * share - 8 * shares[name]) < 1
        assert round(8 * share) == 8 * share
    assert cut.sparsity == pytest.approx(0.5, abs=1 / 16)


@given(st.dictionaries(st.text(min_size=1), st.tuples(st.floats(0, 8), st.integers(1, 10**6)),
                       min_size=1, max_size=12))  # fmt: skip
def test_whole_numbers_come_as_near_to_what_is_wanted_as_the_largest_tensor_allows(drawn) -> None:
    wanted, groups = ({name: pair[i] for name, pair in drawn.items()} for i in (0, 1))
    found = _in_whole(wanted, groups)
    off = sum((found[name] - wanted[name]) * groups[name] for name in drawn)
    assert abs(off) <= max(groups.values()) / 2 + 1e-3
    assert all(abs(found[name] - wanted[name]) < 1 + 1e-6 for name in drawn)
    assert _in_whole(dict(reversed(wanted.items())), groups) == found


def test_budgets_of_other_tensors_are_refused() -> None:
    pattern = sw.patterns.Pattern(allocation={"w": 0.5, "x": 0.5})
    with pytest.raises(sw.ConfigurationError, match="got none for 'v' and one for 'x', which is"):
        pattern.cuts(Weights.of({"w": torch.ones(2, 2), "v": torch.ones(2, 2)}), [0.5])


def test_a_pattern_of_ones_own_needs_cuts_or_says_which_it_is() -> None:
    class Mine(sw.patterns.Pattern):
        name = "mine"

        def cuts(self, weights, levels):
            return sw.patterns.Wanda().cuts(weights, levels)

    class Named(sw.patterns.Pattern):
        def __init__(self) -> None:
            super().__init__("wanda", "2:4", name="ours")

    assert (Mine().name, Mine().ranks, Mine().levels) == ("mine", "replicas", None)
    assert (Named().name, Named().levels, Named().ranks) == ("ours", (0.5,), "alone")
    assert Mine() != Named()
    with pytest.raises(sw.ConfigurationError, match="Typo to have `cuts"):

        class Typo(sw.patterns.Pattern):
            def cut(self, weights, levels):
                return []


def test_where_each_can_be_used() -> None:
    ranks = {name: COMBINATIONS[name].ranks for name in COMBINATIONS}
    assert {n for n, r in ranks.items() if r == "shards"} == {
        "global", "global_normalised", "layerwise", sw.patterns.Pattern(allocation=BUDGETS).name,
    }  # fmt: skip
    alone = {n for n, r in ranks.items() if r == "alone"}
    assert alone == {n for n, p in COMBINATIONS.items() if p.needs_inputs}
    assert {"magnitude:layer:owl", "sparsegpt:2:4"} < alone


# ------------------------------------------------------------------ against numpy


def rows_of(name: str, tensor: torch.Tensor) -> np.ndarray:
    return (tensor if "up" in name else tensor.T).double().numpy()


def filled() -> Tensors:
    """Without zeros and ties among the weights, so that what went is what is zero."""
    return {
        name: torch.where(t == 0, 1e-9 * torch.arange(1, t.numel() + 1).view(t.shape), t)
        for name, t in dense().items()
    }


def worth(score: str) -> dict[str, np.ndarray]:
    """By the formulas, in numpy."""
    found = {}
    for name, tensor in filled().items():
        sizes = np.abs(rows_of(name, tensor))
        norms = np.sqrt(inputs("as they are").squares[name].numpy())
        by_column, by_row = sizes.sum(0), sizes.sum(1, keepdims=True)
        relative = sizes / by_column + sizes / by_row
        found[name] = {
            "magnitude": sizes, "normalised": sizes / np.sqrt((sizes**2).mean()),
            "wanda": sizes * norms, "ria": relative * norms**0.5,
        }[score]  # fmt: skip
    return found


def gone(pattern: Pattern, level: float) -> dict[str, np.ndarray]:
    found = pruned(pattern, level, told(filled()), filled())
    return {name: rows_of(name, tensor) == 0 for name, tensor in found.items()}


#: That are known from the weights and inputs alone: each needs its formula in ``worth``.
SCORES = [score for score, row in _SCORES.items() if row.is_nested and score != "random"]


@pytest.mark.parametrize("level", [0.3, 0.62])
@pytest.mark.parametrize("score", SCORES)
def test_one_threshold_for_all_is_where_numpy_sorts_it(score: str, level: float) -> None:
    scores = worth(score)
    every = np.sort(np.concatenate([s.ravel() for s in scores.values()]))
    limit = every[round(level * len(every)) - 1]
    for name, found in gone(sw.patterns.Pattern(score, "global"), level).items():
        assert np.array_equal(found, scores[name] <= limit * (1 + 1e-7))


@pytest.mark.parametrize("score", [s for s in SCORES if "row" in _SCORES[s].structures])
@pytest.mark.parametrize("structure", ["layer", "row", "2:4"])
def test_the_lowest_of_each_tensor_row_or_group_go(score: str, structure: str) -> None:
    scores = worth(score)
    for name, found in gone(sw.patterns.Pattern(score, structure), 0.5).items():
        own = scores[name]
        width = {"layer": own.size, "row": own.shape[1], "2:4": 4}[structure]
        order = np.argsort(own.reshape(-1, width), 1, kind="stable")[:, : width // 2]
        expected = np.zeros((own.size // width, width), bool)
        np.put_along_axis(expected, order, True, 1)
        highest = np.take_along_axis(own.reshape(-1, width), order[:, -1:], 1)
        # those that tie with the last one go together in a tensor, in a row by their index
        tied = (own.reshape(-1, width) == highest) if structure == "layer" else expected
        assert np.array_equal(found, (expected | tied).reshape(own.shape))


@pytest.mark.parametrize("level", [0.4, 0.7])
def test_owl_is_as_its_authors_have_it(level: float) -> None:
    """Blocks are as large as one another here, as they are there."""
    scores, ratios = worth("wanda"), []
    for block in range(3):
        every = np.concatenate([s.ravel() for n, s in scores.items() if f".{block}." in n])
        ratios.append((every > 5 * every.mean()).mean())
    assert max(ratios) > min(ratios)
    spread = (np.array(ratios) - min(ratios)) / (max(ratios) - min(ratios)) * 2 * 0.08
    kept_of = spread - spread.mean() + 1 - level
    (cut,) = sw.patterns.Pattern("wanda", "layer", "owl").cuts(told(dense()), [level])
    for name, share in cut.shares.items():
        block = int(name.split(".")[1])
        assert share == pytest.approx(1 - kept_of[block], abs=0.51 / dense()[name].numel())


def test_budgets_are_met_where_they_come_to_the_level_and_shift_elsewhere() -> None:
    sizes = {name: tensor.numel() for name, tensor in dense().items()}
    total = sum(sizes.values())
    level = sum(BUDGETS[name] * size for name, size in sizes.items()) / total
    pattern = sw.patterns.Pattern(allocation=BUDGETS)
    exact, higher = pattern.cuts(told(dense()), [level, level + 0.1])
    for name, share in BUDGETS.items():
        assert round(share * sizes[name]) == round(exact.shares[name] * sizes[name])
    moved = [higher.shares[n] - share for n, share in BUDGETS.items() if share < 0.8]
    assert max(moved) - min(moved) < 0.01
    assert higher.sparsity == pytest.approx(level + 0.1, abs=3 / total)


# ------------------------------------------------------------------ met to the weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["global", "global_normalised", "layerwise", "wanda:global"])
def test_a_level_is_met_to_the_weight(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weights = {"a": torch.randn(300, 200, dtype=dtype), "b": torch.randn(100, 200, dtype=dtype) * 9}
    known = Weights.of(weights, inputs=Inputs({}, {n: torch.rand(200) + 1 for n in weights}))
    for level in (0.101, 0.5, 0.9003):
        for cut in as_pattern(name).cuts(known, [level, level]):
            found = {n: pruned_alone(cut, n, w) for n, w in weights.items()}
            num = sum(int((out == 0).sum()) for out in found.values())
            assert num == round(level * 80_000) == round(cut.sparsity * 80_000)


@pytest.mark.parametrize("name", ["global", "layerwise", "global_normalised"])
@given(seed=st.integers(0, 2**31), level=st.floats(0.0, 1.0))
@settings(max_examples=60, deadline=None)
def test_thresholds_are_those_of_a_sort_whatever_the_weights(name, seed, level) -> None:
    """Of several dtypes together, with ties, zeros, denormals, infinities and NaN."""
    random = np.random.default_rng(seed)
    special = np.array([0.0, -0.0, 1e-42, 3e-41, 0.5, -0.5, np.inf, np.nan, 65504.0])
    weights = {}
    for i, dtype in enumerate((torch.float32, torch.bfloat16, torch.float64, torch.float16)):
        own = random.normal(size=random.integers(1, 60)) * 10.0 ** random.integers(-3, 3)
        own[random.random(len(own)) < 0.3] = random.choice(special)
        weights[f"{i}"] = torch.tensor(own).to(dtype)
    (cut,) = as_pattern(name).cuts(known := Weights.of(weights), [level])
    rms = {n: known.spectrum.layer_rms()[n] or 1.0 for n in weights}
    scale = {n: rms[n] if "normalised" in name and rms[n] == rms[n] else 1.0 for n in weights}
    sizes = {n: w.double().abs().numpy() / scale[n] for n, w in weights.items()}
    for names in [[n] for n in weights] if name == "layerwise" else [list(weights)]:
        every = np.sort(np.concatenate([sizes[n] for n in names]))  # NaN last
        num = round(level * len(every))
        limit = every[num - 1] if num else -1.0
        limit = np.inf if np.isnan(limit) else limit
        for n in names:
            expected = sizes[n] <= limit if level < 1.0 else np.ones(len(sizes[n]), bool)
            out = pruned_alone(cut, n, weights[n])
            before = weights[n].double()
            went = (out.double() == 0) & ~((before == 0) & torch.tensor(~expected))
            assert np.array_equal(went.numpy(), expected)
            assert cut.shares[n] * len(expected) == pytest.approx(expected.sum())


def pruned_alone(cut: sw.patterns.Cut, name: str, weights: torch.Tensor) -> torch.Tensor:
    cut.prune(name, weights, out := torch.empty_like(weights))
    return out


def test_without_the_weights_a_threshold_is_that_of_the_spectrum() -> None:
    torch.manual_seed(0)
    weights = {"a": torch.randn(300, 200)}
    spectrum = sw.MagnitudeSpectrum.of(weights)
    (cut,) = as_pattern("global").cuts(Weights(spectrum, {"a": (300, 200)}), [0.5])
    assert [cut.thresholds["a"]] == spectrum.thresholds([0.5])
    assert cut.sparsity == spectrum.sparsity_at(cut.thresholds["a"]) > 0.5


@pytest.mark.parametrize(
    "pattern", ["global", "global_normalised", "layerwise", {"a": 0.2, "b": 0.7}]
)
def test_ranks_that_hold_parts_cut_as_one_process_does(pattern: Any) -> None:
    """Three of them; two hold the same part, which counts once."""
    torch.manual_seed(0)
    weights = {"a": torch.randn(40, 50), "b": torch.randn(30, 50) * 9}
    made = (
        as_pattern(pattern) if isinstance(pattern, str) else sw.patterns.Pattern(allocation=pattern)
    )

    def said(known: Weights) -> list[Any]:
        cuts = made.cuts(known, [0.0, 0.31, 0.5, 0.77, 1.0])
        return [(cut.sparsity, cut.shares, cut.thresholds) for cut in cuts]

    parts = (slice(0, 17), slice(17, None), slice(0, 17))
    own = [{name: tensor[part] for name, tensor in weights.items()} for part in parts]
    boxes = [
        {
            n: ShardBox(tuple(weights[n].shape), (part.start, 0), tuple(t.shape))
            for n, t in of.items()
        }
        for part, of in zip(parts, own, strict=True)
    ]

    def on_rank(ranks: ThreadRanks) -> list[Any]:
        reader = ShardedReader(Shards(boxes, ranks.rank), ranks)
        tensors = own[ranks.rank]
        spectrum = sw.MagnitudeSpectrum.of(weights)
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        return said(Weights(spectrum, shapes, tensors=tensors, united=reader.united_numbers))

    assert made.ranks == "shards"
    assert on_ranks(3, on_rank) == [said(Weights.of(weights))] * 3


# ------------------------------------------------------------------ SparseGPT


def test_weights_of_features_that_are_never_on_go_first_up_to_the_level() -> None:
    """Half of the features are off, all of them in one block; in whatever unit the others are."""
    torch.manual_seed(0)
    weights = {"w": torch.randn(16, 64)}
    vectors = torch.randn(500, 64, dtype=torch.float64) * 1e-3
    vectors[:, 16:48] = 0.0
    known = Weights.of(
        weights,
        inputs=Inputs({"w": 500}, {"w": vectors.square().sum(0)}, {"w": vectors.T @ vectors}),
    )
    pattern = sw.patterns.SparseGPT(block=32)
    for level in (0.25, 0.5, 0.6):
        (cut,) = pattern.cuts(known, [level])
        out = pruned_alone(cut, "w", weights["w"])
        assert int((out == 0).sum()) == round(level * out.numel()) == round(cut.sparsity * 1024)
        dead, living = out[:, 16:48], torch.cat([out[:, :16], out[:, 48:]], 1)
        assert int((dead == 0).sum()) == min(round(level * 1024), 512)
        error = float((vectors @ (out - weights["w"]).double().T).square().sum())
        if level <= 0.5:
            assert not (living == 0).any()
            assert error < 1e-12
        else:  # the rest is shared out between the blocks
            gone_of = [int((out[:, part] == 0).sum()) for part in (slice(0, 16), slice(48, 64))]
            assert abs(gone_of[0] - gone_of[1]) <= 1


@pytest.mark.parametrize("columns", [12, 14])
def test_sparsegpt_of_groups_makes_up_column_by_column(columns: int) -> None:
    """The algorithm of the paper for 2:4, spelled out in numpy; a rest stays."""
    random = np.random.default_rng(0)
    weights = random.normal(size=(5, columns))
    vectors = random.normal(size=(200, columns)) @ random.normal(size=(columns, columns))
    moments = vectors.T @ vectors
    factor = np.linalg.cholesky(
        np.linalg.inv(moments + 0.01 * np.trace(moments) / columns * np.eye(columns))
    ).T
    expected = weights.copy()
    for j in range(columns // 4 * 4):
        if j % 4 == 0:
            cost = (expected[:, j : j + 4] / np.diag(factor)[j : j + 4]) ** 2
            goes = np.argsort(cost, 1)[:, :2] + j
        for row in range(5):
            if j in goes[row]:
                error = expected[row, j] / factor[j, j]
                expected[row, j:] -= error * factor[j, j:]
                expected[row, j] = 0.0
    tensor = {"w": torch.tensor(weights)}
    given = torch.tensor(moments)
    known = Weights.of(tensor, inputs=Inputs({"w": 200}, {"w": given.diagonal()}, {"w": given}))
    (cut,) = sw.patterns.Pattern("sparsegpt", "2:4", block=8).cuts(known, [0.5])
    found = pruned_alone(cut, "w", tensor["w"]).numpy()
    assert np.array_equal(found == 0, expected == 0)
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("score", ["magnitude", "wanda", "ria", "sparsegpt"])
def test_groups_of_a_convolution_lie_along_its_inputs(score: str) -> None:
    torch.manual_seed(0)
    weights = {"w": torch.randn(5, 8, 3, 3)}
    vectors = torch.randn(300, 72, dtype=torch.float64)
    given = Inputs({"w": 1}, {"w": vectors.square().sum(0)}, {"w": vectors.T @ vectors})
    known = Weights.of(weights, input_axes={"w": 1}, inputs=given)
    (cut,) = sw.patterns.Pattern(score, "2:4").cuts(known, [0.5])
    groups = (pruned_alone(cut, "w", weights["w"]) == 0).movedim(1, -1).reshape(-1, 4)
    assert groups.sum(1).tolist() == [2] * 90


# ------------------------------------------------------------------ N of M as a curve


def test_n_of_8_is_a_curve_whose_essential_sparsity_says_what_it_is_read_off() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 2))
    x = torch.randn(60, 8)
    proxy = sw.Proxy([(x, model(x).detach())], lambda m, b: (m(b[0]) - b[1]).square().mean(1) + 1)
    record = sw.measure(model, proxy, scope="layers", pattern="magnitude:n:8", tolerance=0.02)
    assert record.curve.sparsity == pytest.approx([n / 8 for n in range(9)])
    estimate = record.essential_sparsity
    assert estimate.informative
    below = max(s for s in record.curve.sparsity if s <= estimate.value)
    assert f"read between the 7 sparsities that magnitude:n:8 has, of which {below:.3g}" in (
        estimate.reason
    )
    with pytest.raises(sw.ConfigurationError, match="no `levels` with the pattern 'wanda:n:8'"):
        sw.Settings(pattern="wanda:n:8", levels=[0.5])


# ------------------------------------------------------------------ the table


def table() -> str:
    """A line for each combination: what holds, and what is not claimed."""
    words = {True: "yes", None: "-", False: "NO"}
    lines = [["combination", *CHECKS]]
    for name, pattern in COMBINATIONS.items():
        said = name.replace(sw.patterns.Pattern(allocation=BUDGETS).spec.split(":")[-1], "budgets")
        lines.append([said, *(words[check(pattern)] for check in CHECKS.values())])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


if __name__ == "__main__":
    print(table())
