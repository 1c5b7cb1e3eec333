"""The proxy freezes its batches, checks its value function, and disturbs nothing."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import OrderedDict, UserDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sparsitywatch.errors import ProxyError
from sparsitywatch.pruning.evaluation import check_proxy
from sparsitywatch.pruning.proxy import Batch, Proxy, packed, unpacked
from sparsitywatch.pruning.proxy import digest as digest_of


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclasses.dataclass
class Sample:
    x: torch.Tensor
    name: str


def digest(batches: list) -> str:
    return digest_of(map(Batch, batches))


def nested() -> dict:
    return {
        "ids": torch.arange(6).reshape(2, 3),
        "pair": Pair(torch.ones(2), [np.arange(3), 1.5]),
        "sample": Sample(torch.zeros(2, dtype=torch.bfloat16), "a"),
        "ordered": OrderedDict(mask=torch.tensor([True, False])),
        "nothing": None,
    }


def test_frozen_shares_no_memory_and_keeps_every_type() -> None:
    batch = nested()
    frozen = Batch(batch)
    before = digest_of([frozen])
    batch["ids"].zero_()
    batch["pair"].right[0][:] = 7
    batch["sample"].x.fill_(3)
    assert digest_of([frozen]) == before
    frozen = frozen.on(torch.device("cpu"))
    assert type(frozen["pair"]) is Pair
    assert type(frozen["sample"]) is Sample
    assert type(frozen["ordered"]) is OrderedDict


def test_a_tokenizers_batch_stays_one() -> None:
    batch = transformers.BatchEncoding({"input_ids": torch.ones(2, 3, dtype=torch.long)})
    frozen = Batch(batch).on(torch.device("cpu"))
    assert type(frozen) is transformers.BatchEncoding
    assert torch.equal(frozen.input_ids, batch.input_ids)
    assert frozen.input_ids.data_ptr() != batch.input_ids.data_ptr()


@pytest.mark.parametrize(
    "change",
    [
        lambda b: b["ids"].__setitem__((0, 0), 9),
        lambda b: b.update(ids=b["ids"].to(torch.int32)),
        lambda b: b.update(ids=b["ids"].reshape(3, 2)),
        lambda b: b.update(renamed=b.pop("ids")),
        lambda b: b["sample"].__setattr__("name", "b"),
        lambda b: b["pair"].right.append(0),
    ],
)
def test_any_change_changes_the_digest(change) -> None:
    batch = nested()
    assert digest([batch]) == digest([nested()])
    change(batch)
    assert digest([batch]) != digest([nested()])


def test_order_and_grouping_of_batches_matter() -> None:
    a, b = torch.ones(2), torch.zeros(2)
    assert len({digest([a, b]), digest([b, a]), digest([[a, b]]), digest([a])}) == 4


def test_moving_gives_containers_of_its_own() -> None:
    batch = {"x": torch.ones(2), "y": [torch.ones(1)]}
    frozen = Batch(batch)
    moved = frozen.on(torch.device("cpu"))
    moved.pop("x")
    moved["y"].clear()
    again = frozen.on(torch.device("cpu"))
    assert "x" in again
    assert len(again["y"]) == 1


def test_what_cannot_be_copied_is_refused_with_its_place() -> None:
    with pytest.raises(ProxyError, match=r"got object at batches\[3\]\['a'\]\[1\]"):
        Batch({"a": [1, object()]}, "batches[3]")


def test_kept_batches_come_back_into_the_same_structure(tmp_path: Path) -> None:
    def batches(offset: int) -> list:
        return [
            UserDict(ids=torch.arange(3) + offset, mask=torch.ones(2, dtype=torch.bfloat16)),
            {"a": np.arange(4.0) + offset, "b": (np.array(["x", f"{offset}"]), [offset, None])},
            [1j * offset, b"%d" % offset, f"text {offset}", True, 0.5 * offset],
        ]

    file = tmp_path / "kept.pt"
    torch.save(packed(map(Batch, batches(1))), file)
    leaves = torch.load(file, weights_only=True)
    kept = unpacked([*map(Batch, batches(7))], leaves)
    assert digest_of(kept) == digest(batches(1))
    with pytest.raises(ProxyError, match="Expected 3 batches as were kept, got 2"):
        unpacked([*map(Batch, batches(7)[:2])], leaves)
    for change, word in (([0], "larger"), (None, "smaller")):
        other = batches(7)
        other[2] = other[2] + change if change else other[2][:-1]
        with pytest.raises(ProxyError, match=f"got {word} ones"):
            unpacked([*map(Batch, other)], leaves)


@pytest.mark.parametrize("damage", [b"", b"PK", b"not a file of torch"])
def test_a_damaged_file_of_kept_batches_is_refused(tmp_path: Path, damage: bytes) -> None:
    proxy = Proxy([torch.ones(2, 3)], lambda model, batch: model(batch).mean(1))
    (tmp_path / "kept.pt").write_bytes(damage)
    with pytest.raises(ProxyError, match="Expected the batches that a proxy kept"):
        proxy.with_kept(tmp_path / "kept.pt")
    proxy.keep(tmp_path / "kept.pt")
    assert proxy.with_kept(tmp_path / "kept.pt").hash == proxy.hash
    assert [path.name for path in tmp_path.iterdir()] == ["kept.pt"]


def value(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return model(batch).square().mean(dim=1)


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 3, generator=generator) for _ in range(3)]


def test_values_are_those_of_the_batches_at_the_time_of_the_call() -> None:
    model, source = nn.Linear(3, 2), batches()
    expected = torch.cat([value(model, b) for b in source]).double().detach().numpy()
    proxy = Proxy(source, value)
    for batch in source:
        batch.zero_()
    np.testing.assert_array_equal(proxy.evaluate(model), expected)
    assert proxy.num_batches == 3


def test_a_dataloader_is_read_once_and_the_generators_stay() -> None:
    loader = DataLoader(TensorDataset(torch.randn(10, 3)), batch_size=4, shuffle=True)

    def source():
        for (batch,) in loader:
            np.random.rand()  # noqa: NPY002 what a user's collate function may do
            random.random()
            yield batch

    torch.manual_seed(1)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    proxy = Proxy(source(), value)
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]
    assert proxy.num_batches == 3


def test_the_hash_is_about_the_batches_and_the_value() -> None:
    base = Proxy(batches(), value).hash
    assert Proxy(batches(), value).hash == base
    assert Proxy(batches()[:2], value).hash != base
    assert Proxy(batches(), value, higher_is_better=True).hash != base
    assert Proxy(batches(), value, name="other").hash != base


def test_an_endless_source_needs_a_limit() -> None:
    assert Proxy(itertools.repeat(torch.ones(2, 3)), value, max_batches=2).num_batches == 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "at least one batch, got none"),
        (torch.ones(2, 3), "Wrap a single batch in a list"),
        (5, "iterable of batches such as a list or a DataLoader, got int"),
        ([object()], r"got object at batches\[0\]"),
    ],
)
def test_bad_batches(source: object, message: str) -> None:
    with pytest.raises(ProxyError, match=message):
        Proxy(source, value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda m, b: m(b).mean(), r"shape \[N\].*got a tensor of shape \(\)"),
        (lambda m, b: m(b), r"got a tensor of shape \(4, 2\)"),
        (lambda m, b: m(b).argmax(1), r"dtype torch\.int64"),
        (lambda m, b: m(b).mean().item(), "got float"),
        (lambda m, b: m(b[:0]).mean(1), "at least two examples over all batches.*got 0"),
        (lambda m, b: 1 / 0, "it raised ZeroDivisionError: division by zero"),
        (lambda m, b: m(b[:1]).mean(1)[:1], None),
    ],
)
def test_a_bad_value_function_is_refused_at_attach(bad, message) -> None:
    model = nn.Linear(3, 2)
    proxy = Proxy(batches(), bad)
    if message is None:
        check_proxy(proxy, model)
        return
    with pytest.raises(ProxyError, match=message):
        check_proxy(proxy, model)
    assert model.training


def test_one_example_is_too_few_for_an_error() -> None:
    with pytest.raises(ProxyError, match=r"at least two examples over all batches.*got 1"):
        check_proxy(Proxy([torch.ones(1, 3)], value), nn.Linear(3, 2))


def test_a_value_that_is_no_function() -> None:
    with pytest.raises(ProxyError, match="`value` to be a function"):
        Proxy(batches(), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused_by_batch_and_example(broken: float) -> None:
    source = batches()
    source[1][2] = broken
    proxy = Proxy(source, value)
    with pytest.raises(ProxyError, match=r"got (nan|inf) for example 2 of batch 1\. A mean over"):
        check_proxy(proxy, nn.Linear(3, 2))
    check_proxy(
        proxy, nn.Linear(3, 2), has_weights=False
    )  # what a replay evaluates is still to come
    source[2][0] = broken
    with pytest.raises(ProxyError, match="example 2 of batch 1 and 1 others"):
        check_proxy(Proxy(source, value), nn.Linear(3, 2))
