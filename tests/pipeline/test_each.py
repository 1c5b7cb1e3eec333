"""``measure(each=True)``: essential sparsity of each tensor where all others stay as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from contracts.page import inside_of
from torch import nn
from torch.nn.utils import prune

import sparsitywatch as sw
from sparsitywatch.records import from_json, to_json

LEVELS = [0.2, 0.4, 0.6, 0.8, 0.9]


class Net(nn.Module):
    """Two layers that matter, one that hardly does, and one that no example goes through."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 24), nn.Linear(24, 1)
        self.faint, self.unused = nn.Linear(8, 1), nn.Linear(8, 1)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(rows).relu()) + 1e-4 * self.faint(rows)


def loss(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    return (model(rows)[:, 0] - rows.sum(1).abs()).square()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    for step in range(150):
        torch.manual_seed(step)
        optimizer.zero_grad()
        loss(net, torch.randn(64, 8)).mean().backward()
        optimizer.step()
    return net


def proxy() -> sw.Proxy:
    torch.manual_seed(1000)
    return sw.Proxy([torch.randn(64, 8) for _ in range(4)], loss)


NAMES = [f"{name}.weight" for name in ("first", "second", "faint", "unused")]
FIELDS = {"scope": NAMES, "tolerance": 0.1}


@pytest.fixture(scope="module")
def record(model: nn.Module) -> sw.Record:
    return sw.measure(model, proxy(), each=True, levels=LEVELS, **FIELDS)


@pytest.mark.parametrize("name", NAMES[:2])
def test_it_is_what_pruning_one_layer_by_hand_gives(
    model: nn.Module, record: sw.Record, name: str
) -> None:
    values = []
    for level in [0.0, *LEVELS, 1.0]:
        net = Net()
        net.load_state_dict(model.state_dict())
        layer = net.get_submodule(name.removesuffix(".weight"))
        prune.l1_unstructured(layer, "weight", round(level * layer.weight.numel()))
        with torch.no_grad():
            values.append(torch.cat([loss(net, rows) for rows in batches()]).double())
    lost = [value - values[0] for value in values]
    sizes = model.get_parameter(name).numel()
    curve = sw.SparsityCurve(
        sparsity=[round(level * sizes) / sizes for level in [0.0, *LEVELS, 1.0]],
        value=[float(value.mean()) for value in values],
        stderr=[float(one.std() / len(one) ** 0.5) for one in lost],
        higher_is_better=False,
        num_examples=len(lost[0]),
    )
    expected = sw.essential_sparsity(curve, tolerance=0.1)
    assert record.alone[name].value == pytest.approx(expected.value, rel=1e-5)
    assert record.alone[name].low == pytest.approx(expected.low, rel=1e-4)
    assert record.alone[name].informative


def batches() -> list[torch.Tensor]:
    torch.manual_seed(1000)
    return [torch.randn(64, 8) for _ in range(4)]


def test_all_of_a_tensor_may_go(record: sw.Record) -> None:
    estimate = record.alone["faint.weight"]
    assert (estimate.value, estimate.low, estimate.informative) == (1.0, 1.0, True)
    assert "all of it can go" in estimate.reason


def test_a_tensor_that_nothing_reaches_says_so(record: sw.Record) -> None:
    estimate = record.alone["unused.weight"]
    assert not estimate.informative
    assert "same bit for bit" in estimate.reason


def test_raced_it_is_that_of_a_scope_of_one_tensor(model: nn.Module) -> None:
    raced = sw.measure(model, proxy(), each=True, **FIELDS)
    assert list(raced.alone) == NAMES
    for name in NAMES[:2]:
        own = sw.measure(model, proxy(), scope=[name], tolerance=0.1)
        assert raced.alone[name] == own.essential_sparsity
    whole = sw.measure(model, proxy(), **FIELDS)
    assert raced.essential_sparsity == whole.essential_sparsity
    assert not whole.alone


def test_a_log_has_it_and_a_page_shows_it(record: sw.Record, tmp_path: Path) -> None:
    assert repr(from_json(sw.Record, to_json(record)).alone) == repr(record.alone)
    page = sw.Run([record]).report(tmp_path / "alone.html").read_text()
    assert inside_of(page)["details"]["maps"]["rows"]["alone"][0] == [1000]  # faint.weight


def test_the_model_stays_as_it_is(model: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sw.measure(model, proxy(), each=True, levels=[0.5], **FIELDS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_what_cannot_be_is_refused(model: nn.Module) -> None:
    with pytest.raises(sw.ConfigurationError, match=r"`each`.*without a `proxy`"):
        sw.measure(model, each=True)
    pattern = sw.patterns.Pattern(allocation=dict.fromkeys(NAMES, 0.5))
    with pytest.raises(sw.ConfigurationError, match=r"`each`.*by name of the tensor"):
        sw.measure(model, proxy(), each=True, pattern=pattern, **FIELDS)
