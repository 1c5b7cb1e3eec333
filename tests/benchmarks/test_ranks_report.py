"""What the table of several ranks rests on: real processes, and a model that can be checked."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ranks
import torch
from ranking import scaling

from sparsitywatch.ranks.reading import ShardBox, ShardedReader, Shards
from sparsitywatch.weights.spectrum import MagnitudeSpectrum

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reports/scaling.md"


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {str(i): 0.02 * torch.randn(size) for i, size in enumerate([300_000, 300_000, 600_000])}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_occupied_bins_are_foreseen(weights: dict[str, torch.Tensor], dtype: torch.dtype) -> None:
    for tensor in weights.values():
        magnitudes = tensor.to(dtype).to(torch.float64).abs().numpy()
        if dtype is torch.float32:  # nine significant bits, rounded up
            fractions, exponents = np.frexp(magnitudes)
            magnitudes = np.ldexp(np.ceil(np.ldexp(fractions, 9)), exponents)
        counted = len(np.unique(magnitudes))
        assert scaling.expected_bins(len(tensor), dtype) == pytest.approx(counted, rel=0.015)


@pytest.mark.slow
def test_bytes_of_the_spectrum_are_foreseen(weights: dict[str, torch.Tensor]) -> None:
    given: list[int] = []
    ranks = SimpleNamespace(
        union=lambda bits: given.append(bits.nbytes) or bits,
        sum=lambda counts: given.append(counts.nbytes) or counts,
    )
    pieces = {name: ShardBox.of(name, tensor) for name, tensor in weights.items()}
    ShardedReader(Shards([pieces, pieces], 0), ranks).summed(MagnitudeSpectrum.of(weights))
    assert len(given) == 2
    foreseen = scaling.spectrum_bytes(Counter(map(len, weights.values())))
    assert sum(given) == pytest.approx(foreseen, rel=0.01)


def test_the_models_are_of_the_size_that_their_names_say() -> None:
    small, large = scaling.CLUSTERS
    assert small.in_scope == 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert small.num_weights == pytest.approx(6.74e9, rel=1e-3)
    assert large.num_weights == pytest.approx(70.55e9, rel=1e-3)
    assert (small.num_tensors, large.num_tensors) == (224, 560)


def test_the_page_shows_what_the_model_computes() -> None:
    assert "\n".join(scaling.model_table()) in PAGE.read_text()


def test_the_page_shows_what_was_measured() -> None:
    page = PAGE.read_text()
    (name,) = set(re.findall(r"benchmarks/results/(ranks-[\d-]+\.md)", page))
    measured = (ROOT / "benchmarks/results" / name).read_text()
    shown = re.findall(r"^\| .* \| (?:not )?reached \|$", page, re.MULTILINE)
    assert len(shown) == 9
    assert [line for line in shown if line not in measured] == []


@pytest.mark.slow
def test_processes_that_fail_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "SCRIPT", Path("nowhere.py"))
    monkeypatch.setattr(ranks, "IMPORTS", "json")
    with pytest.raises(RuntimeError, match=r"(?s)1 ranks .* 'nothing'.*No such file .*nowhere.py"):
        ranks.measured_on(1, "nothing", small=True)


@pytest.mark.slow
def test_two_processes_attach() -> None:
    found = ranks.measured_on(2, "attach", small=True)
    assert found["ranks"] == 2
    for case in ("alone_s", "together_s"):
        wall, processor = found[case]
        assert wall > 0.0
        assert processor > 0.0
