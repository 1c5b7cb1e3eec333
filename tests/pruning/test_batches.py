"""Frozen batches: own memory, own containers, an identity."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict, UserDict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers

from sparsitywatch.errors import ProxyError
from sparsitywatch.pruning.batches import digest, freeze, move, packed, unpacked
from sparsitywatch.pruning.proxy import Proxy


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclasses.dataclass
class Sample:
    x: torch.Tensor
    name: str


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
    frozen = freeze(batch, "batch")
    before = digest([frozen])
    batch["ids"].zero_()
    batch["pair"].right[0][:] = 7
    batch["sample"].x.fill_(3)
    assert digest([frozen]) == before
    assert type(frozen["pair"]) is Pair
    assert type(frozen["sample"]) is Sample
    assert type(frozen["ordered"]) is OrderedDict


def test_a_tokenizers_batch_stays_one() -> None:
    batch = transformers.BatchEncoding({"input_ids": torch.ones(2, 3, dtype=torch.long)})
    frozen = freeze(batch, "batch")
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
    moved = move(batch, torch.device("cpu"))
    moved.pop("x")
    moved["y"].clear()
    assert "x" in batch
    assert len(batch["y"]) == 1


def test_what_cannot_be_copied_is_refused_with_its_place() -> None:
    with pytest.raises(ProxyError, match=r"got object at batches\[3\]\['a'\]\[1\]"):
        freeze({"a": [1, object()]}, "batches[3]")


def test_kept_batches_come_back_into_the_same_structure(tmp_path: Path) -> None:
    def batches(offset: int) -> list:
        return [
            UserDict(ids=torch.arange(3) + offset, mask=torch.ones(2, dtype=torch.bfloat16)),
            {"a": np.arange(4.0) + offset, "b": (np.array(["x", f"{offset}"]), [offset, None])},
            [1j * offset, b"%d" % offset, f"text {offset}", True, 0.5 * offset],
        ]

    file = tmp_path / "kept.pt"
    torch.save(packed(batches(1)), file)
    leaves = torch.load(file, weights_only=True)
    assert digest(unpacked(batches(7), leaves)) == digest(batches(1))
    with pytest.raises(ProxyError, match="Expected 3 batches as were kept, got 2"):
        unpacked(batches(7)[:2], leaves)
    for change, word in (([0], "larger"), (None, "smaller")):
        other = batches(7)
        other[2] = other[2] + change if change else other[2][:-1]
        with pytest.raises(ProxyError, match=f"got {word} ones"):
            unpacked(other, leaves)


@pytest.mark.parametrize("damage", [b"", b"PK", b"not a file of torch"])
def test_a_damaged_file_of_kept_batches_is_refused(tmp_path: Path, damage: bytes) -> None:
    proxy = Proxy([torch.ones(2, 3)], lambda model, batch: model(batch).mean(1))
    (tmp_path / "kept.pt").write_bytes(damage)
    with pytest.raises(ProxyError, match="Expected the batches that a proxy kept"):
        proxy.with_kept(tmp_path / "kept.pt")
    proxy.keep(tmp_path / "kept.pt")
    assert proxy.with_kept(tmp_path / "kept.pt").hash == proxy.hash
    assert [path.name for path in tmp_path.iterdir()] == ["kept.pt"]
