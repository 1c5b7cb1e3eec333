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

import sparsitywatch as sw
from sparsitywatch.errors import ProxyError
from sparsitywatch.evaluation.checks import check_proxy
from sparsitywatch.proxy.batches import Batch, packed, unit_of, unpacked
from sparsitywatch.proxy.batches import digest as digest_of
from sparsitywatch.proxy.proxy import Proxy


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
        ({"input_ids": torch.ones(2, 3)}, "got dict. Wrap a single batch in a list"),
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


# ------------------------------------------------------------------ what a value is


@pytest.mark.parametrize(
    ("dims", "counts", "unit"),
    [
        ([[(8, 3), (8,)]] * 3, [8, 8, 8], "example"),
        ([[(8, 3), (8,)], [(5, 3), (5,)]], [8, 5], "example"),
        ([[(8, 3)], [(1, 3)]], [8, 1], "example"),  # a last batch of one
        ([[(1, 3)]] * 3, [1, 1, 1], "example"),
        ([[(8, 3)]] * 3, [1, 1, 1], "batch"),
        ([[(8, 3)], [(1, 3)]], [1, 1], "batch"),
        ([[(8, 3)]] * 3, [24, 24, 24], "token"),
        ([[(8, 3)]] * 3, [20, 19, 24], "token"),  # without padding
        ([[(8, 3)]] * 3, [7, 0, 8], "example"),  # those that have a label
        ([[(8, 30)]] * 3, [30, 30, 30], "example"),  # time comes first
        ([[(9, 5), (4,)]] * 3, [4, 4, 4], "example"),  # a graph's nodes, and its four molecules
        ([[], []], [1, 1], "example"),  # texts
        ([[], []], [4, 2], "example"),
    ],
)
def test_what_a_number_is_of(dims: list, counts: list[int], unit: str) -> None:
    random = np.random.default_rng(0)
    assert unit_of(dims, [random.random(count) for count in counts]) == unit


@pytest.mark.parametrize(("num", "unit"), [(3, "batch"), (2, "example")])
def test_a_mean_that_a_batch_repeats_is_of_the_batch(num: int, unit: str) -> None:
    """Of two batches that all answers of one are right and of the other wrong may be chance."""
    random = np.random.default_rng(0)
    repeated = [np.full(4, random.random()) for _ in range(num)]
    assert unit_of([[(4, 2)]] * num, repeated) == unit
    assert unit_of([[(4, 2)]] * num, [np.ones(4)] * num) == "example"  # all are right


def tokens() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(4, 5, 3, generator=generator) for _ in range(12)]


def mean_of(dims: tuple[int, ...]):
    def value(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        found = model(batch).square().mean(2)
        return (found.mean(dims) if dims else found).reshape(-1)

    return value


@pytest.mark.parametrize(
    ("dims", "unit", "num"),
    [((1,), "example", 48), ((), "token", 12), ((0, 1), "batch", 12)],
)
def test_an_interval_counts_examples_or_batches(dims, unit, num, caplog) -> None:
    torch.manual_seed(0)
    model, proxy = nn.Linear(3, 2), Proxy(tokens(), mean_of(dims), higher_is_better=True)
    options = {"scope": "matrices", "tolerance": 0.3, "tolerance_mode": "relative"}
    record = sw.measure(model, proxy, **options)
    curve, estimate = record.curve, record.essential_sparsity
    assert (curve.unit, estimate.unit, curve.num_examples) == (unit, unit, num)
    assert estimate.describe().endswith(" by batches" if unit != "example" else "]")
    assert (f"one number per {unit}" in caplog.text) == (unit != "example")
    every = torch.cat([mean_of((1,))(model, batch) for batch in tokens()])
    assert curve.dense == pytest.approx(every.mean().item(), rel=1e-6)
    with torch.no_grad():
        model.weight.zero_()
    without = torch.cat([mean_of((1,))(model, batch) for batch in tokens()])
    lost = (without - every).double().detach().numpy()
    if unit != "example":
        lost = lost.reshape(12, 4).mean(1)
    assert curve.stderr[-1] == pytest.approx(lost.std(ddof=1) / len(lost) ** 0.5, rel=1e-5)


def test_tokens_of_batches_of_several_sizes_have_the_mean_of_all_tokens() -> None:
    source = [torch.full((num, 5, 3), float(num)) for num in (1, 2, 4)]
    proxy = Proxy(source, lambda m, b: b.mean(2).reshape(-1))
    values = proxy.evaluate(nn.Linear(3, 2))
    assert len(values) == 3
    assert values.mean() == pytest.approx((1 + 4 + 16) / 7)


def test_one_batch_of_tokens_has_no_error() -> None:
    with pytest.raises(
        ProxyError, match=r"two batches over all batches.*It returns one number per"
    ):
        check_proxy(Proxy(tokens()[:1], mean_of(())), nn.Linear(3, 2))


class Running:
    """A metric that adds up over batches and is never reset, as one number for each batch."""

    def __init__(self) -> None:
        self.total, self.num = 0.0, 0

    def __call__(self, model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        self.total += model(batch).square().mean().item()
        self.num += 1
        return torch.tensor([self.total / self.num])


def running_within(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    found = value(model, batch)
    return found.cumsum(0) / torch.arange(1, len(found) + 1)


def by_place(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return value(model, batch) * torch.arange(1.0, len(batch) + 1)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Running(), "differ by up to .* the second time"),
        (running_within, "with the examples reversed"),
        (by_place, "with the examples reversed"),
    ],
)
def test_a_value_that_depends_on_the_order_is_refused(bad, message: str) -> None:
    with pytest.raises(ProxyError, match=message):
        check_proxy(Proxy(batches(), bad), nn.Linear(3, 2))


@pytest.mark.parametrize(("num_batches", "period"), [(1, 2), (3, 2), (1, 3), (2, 3), (3, 6)])
def test_what_comes_round_beside_the_model_is_refused(num_batches: int, period: int) -> None:
    """What is another only at some calls, whichever of them see the batches as they are."""
    calls = itertools.count()

    def round_about(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return value(model, batch) + next(calls) % period

    source = [torch.randn(4, 3) for _ in range(num_batches)]
    with pytest.raises(ProxyError, match=r"differ by up to .* the second time"):
        check_proxy(Proxy(source, round_about), nn.Linear(3, 2))


@pytest.mark.parametrize("unit", ["example", "batch"])
def test_each_batch_is_evaluated_twice(unit: str) -> None:
    seen: list[torch.Tensor] = []

    def noted(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        seen.append(batch)
        return value(model, batch) if unit == "example" else value(model, batch).mean()[None]

    source = batches()
    values = check_proxy(Proxy(source, noted), nn.Linear(3, 2))
    again = [batch.flip(0) for batch in source] if unit == "example" else source[::-1]
    assert len(values) == (sum(map(len, source)) if unit == "example" else len(source))
    assert torch.equal(torch.stack(seen), torch.stack([*source, *again]))


def contrast(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    out = model(batch)
    return torch.logsumexp(out @ out.T, dim=1)


def noisy(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return value(model, batch + torch.randn_like(batch))


def numpy_noise(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return value(model, batch) + torch.tensor(np.random.rand(len(batch)).astype(np.float32))  # noqa: NPY002


def python_noise(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return value(model, batch) + torch.tensor([random.random() for _ in batch])


@pytest.mark.parametrize("good", [value, contrast, noisy, numpy_noise, python_noise])
def test_a_value_that_depends_on_its_batch_or_on_what_is_drawn_is_none(good) -> None:
    check_proxy(Proxy(batches(), good), nn.Linear(3, 2))


def test_examples_are_not_turned_without_what_belongs_to_them() -> None:
    """Labels in a plain list stay where they are, so that nothing would be learned."""

    def labelled(model: nn.Module, batch: dict) -> torch.Tensor:
        return model(batch["x"]).square().mean(1) * torch.tensor(batch["labels"])

    source = [{"x": x, "labels": [1.0, 2.0, 3.0, 4.0]} for x in batches()]
    check_proxy(Proxy(source, labelled), nn.Linear(3, 2))
    assert Batch(source[0]).reversed() is None
    turned = Batch({"x": source[0]["x"], "temperature": 0.5}).reversed()
    assert torch.equal(turned.leaves[0], source[0]["x"].flip(0))
    assert Batch([torch.ones(4), torch.ones(3)]).reversed() is None


@pytest.mark.parametrize(("apart", "is_refused"), [(0.8e-4, False), (1.2e-4, True)])
def test_rounding_by_the_place_is_no_dependence(apart: float, is_refused: bool) -> None:
    def rounded(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        sign = torch.tensor([1.0, -1.0] * (len(batch) // 2))  # the same place turned has the other
        return torch.ones(len(batch)) * (1 + apart / 2 * sign) + 0 * model(batch).sum(1)

    proxy = Proxy(batches(), rounded)
    if not is_refused:
        check_proxy(proxy, nn.Linear(3, 2))
        return
    with pytest.raises(ProxyError, match="with the examples reversed"):
        check_proxy(proxy, nn.Linear(3, 2))
