"""What a pruned model is worth on other data is foretold, and each tensor has its own sparsity."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import sparsitywatch as sw
from sparsitywatch.offline.export import Foretold, export

TRAININGS = 30
FIELDS = {
    "scope": "layers",
    "levels": (0.3, 0.5, 0.7, 0.9),
    "tolerance": 0.2,
    "tolerance_mode": "absolute",
}


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 1)
    )


def loss(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    return (model(rows)[:, 0] - rows.sum(1).abs()).square()


def data(seed: int, num: int = 64) -> torch.Tensor:
    return torch.randn(num, 8, generator=torch.Generator().manual_seed(seed))


def trained(seed: int, steps: int = 50) -> nn.Module:
    torch.manual_seed(seed)
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(steps):
        optimizer.zero_grad()
        loss(model, data(1000 * seed + step)).mean().backward()
        optimizer.step()
    return model


def halves(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of the examples choose what goes, and which foretell what that costs."""
    subsets = sw.Proxy([data(10**6 + seed)], loss).subsets((0.5, 1.0))
    first, second = (subset.places for subset in subsets)
    assert sorted([*first, *second]) == list(range(64))
    return first, second


def exported(folder: Path, seed: int, **options) -> tuple[dict[str, torch.Tensor], object]:
    torch.save(trained(seed).state_dict(), folder / f"step-{seed}.pt")
    output, proxy = folder / f"{seed}.safetensors", sw.Proxy([data(10**6 + seed)], loss)
    settings = sw.Settings(**FIELDS)
    options = {
        "what": "pruned",
        "model": make_model,
        "proxy": proxy,
        "settings": settings,
        **options,
    }
    card = export(folder / f"step-{seed}.pt", output, **options)
    return (load_file(output) if output.suffix == ".safetensors" else {}), card


@pytest.mark.slow
def test_the_interval_holds_the_loss_on_other_data(tmp_path: Path) -> None:
    held = []
    for seed in range(TRAININGS):
        weights, card = exported(tmp_path, seed, at="essential" if seed % 2 else 0.5)
        model = make_model()
        model.load_state_dict(weights)
        with torch.no_grad():
            other = float(loss(model, data(2 * 10**6 + seed)).mean())
            each = loss(model, data(10**6 + seed))
        # where they chose nothing all examples foretell, else those that did not
        same = float(each[halves(seed)[1]].mean() if seed % 2 else each.mean())
        assert card.foretold.num_examples == (32 if seed % 2 else 64)
        assert card.foretold.value == pytest.approx(same, rel=1e-6)
        held.append(card.foretold.low <= other <= card.foretold.high)
    assert sum(held) >= 0.9 * TRAININGS


def test_of_other_samples_it_holds_as_many_as_it_says() -> None:
    draw = np.random.default_rng(0)
    held = []
    for _ in range(2000):
        seen, other = draw.gamma(2.0, size=(2, 32))
        foretold = Foretold.of(seen, seen)
        held.append(foretold.low <= other.mean() <= foretold.high)
    assert 0.93 <= np.mean(held) <= 0.97


def test_too_few_or_broken_examples_foretell_nothing() -> None:
    for values in (np.ones(4), np.array([1.0, np.inf, 1.0, 1.0, 1.0])):
        foretold = Foretold.of(values, np.ones(len(values)))
        assert np.isnan([foretold.low, foretold.high]).all()


@pytest.mark.parametrize(
    ("num", "choose", "words"), [(9, 9, "not measured"), (10, 5, "on 5 other")]
)
def test_of_fewer_than_ten_examples_all_choose_and_none_foretells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num: int, choose: int, words: str
) -> None:
    asked: list[int] = []

    def measured(model: nn.Module, proxy: sw.Proxy, **_) -> SimpleNamespace:
        asked.append(len(proxy.evaluate(model)))
        whole = SimpleNamespace(informative=True, value=0.5, reason="")
        return SimpleNamespace(essential_sparsity=whole, alone={})

    monkeypatch.setattr("sparsitywatch.offline.export.measure", measured)
    _, card = exported(tmp_path, 5, at="essential", proxy=sw.Proxy([data(7, num)], loss))
    assert asked == [choose]
    assert (card.foretold is None) == (num < 10)
    (line,) = (line for line in card.lines() if line.startswith(("- what", "- value")))
    assert words in line


def test_each_tensor_loses_its_own_essential_sparsity(tmp_path: Path) -> None:
    weights, card = exported(tmp_path, 1, at="essential", each=True)
    model = make_model()
    model.load_state_dict(torch.load(tmp_path / "step-1.pt", weights_only=True))
    proxy = sw.Proxy([data(10**6 + 1)[halves(1)[0]]], loss)
    record = sw.measure(model, proxy, each=True, **FIELDS)
    assert card.pattern == "magnitude:layer:essential-each"
    assert any(one.informative for one in record.alone.values())
    for name, estimate in record.alone.items():
        own = estimate if estimate.informative else record.essential_sparsity
        share = float((weights[name] == 0).float().mean())
        assert share == pytest.approx(card.sparsities[name])
        assert share == pytest.approx(own.value, abs=1.0 / weights[name].numel())


def test_what_each_may_lose_alone_is_not_what_all_may(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, card = exported(tmp_path, 1, at="essential", each=True)
    assert card.foretold.value - card.foretold.dense > FIELDS["tolerance"]
    assert "what all cost together" in caplog.text
    caplog.clear()
    exported(tmp_path, 2, at=0.6, each=True)
    exported(tmp_path, 3, at="essential")
    assert not caplog.text


def test_a_budget_in_which_nothing_is_known_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*args, **fields) -> sw.Record:
        record = sw.measure(*args, **fields)
        noise = {n: replace(e, informative=False, reason="noise") for n, e in record.alone.items()}
        return replace(record, alone=noise)

    monkeypatch.setattr("sparsitywatch.offline.export.measure", unknown)
    with pytest.raises(sw.MeasurementError, match="what is essential: noise"):
        exported(tmp_path, 1, at=0.6, each=True)


def test_each_tensor_at_a_given_sparsity(tmp_path: Path) -> None:
    torch.save(trained(2).state_dict(), tmp_path / "step-2.pt")
    _, card = exported(tmp_path, 2, at=0.6, each=True)
    assert card.num_removed / card.num_weights == pytest.approx(0.6, abs=2e-3)
    assert len({round(share, 3) for share in card.sparsities.values()}) > 1
    (tmp_path / "card.json").write_text(sw_json(card))
    pattern = sw.patterns.from_budget(tmp_path / "card.json")
    assert pattern.allocation == pytest.approx(card.sparsities)


def sw_json(card: object) -> str:
    from sparsitywatch.records import to_json

    assert json.loads(to_json(card))["foretold"]["num_examples"] == 32
    return to_json(card)


def test_a_model_that_does_not_rely_on_its_weights_has_no_budget(tmp_path: Path) -> None:
    settings = sw.Settings(**{**FIELDS, "tolerance": 1e6})
    with pytest.raises(sw.MeasurementError, match="does not rely on these weights"):
        exported(tmp_path, 3, at="essential", each=True, settings=settings)
    assert not (tmp_path / "3.safetensors").exists()


def test_each_is_by_magnitude(tmp_path: Path) -> None:
    settings = sw.Settings(scope="layers", pattern="random")
    with pytest.raises(sw.ConfigurationError, match="`--each`"):
        exported(tmp_path, 3, at=0.6, each=True, settings=settings)
