"""Out of memory in an evaluation: smaller batches, the same examples."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import sparsitywatch as sw
from sparsitywatch.pruning.batches import halve
from sparsitywatch.pruning.memory import is_out_of_memory, with_less_memory


def test_what_counts_as_out_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    with pytest.raises(RuntimeError) as real:
        torch.empty(1 << 50)  # what the CPU allocator really says
    assert is_out_of_memory(real.value)


def test_halves_together_are_the_batch() -> None:
    batch = {"x": torch.arange(10).reshape(5, 2), "y": (np.arange(5), 0.5), "t": torch.tensor(3.0)}
    first, last = halve(batch)
    assert torch.equal(torch.cat([first["x"], last["x"]]), batch["x"])
    assert np.array_equal(np.concatenate([first["y"][0], last["y"][0]]), batch["y"][0])
    assert first["y"][1] == last["y"][1] == 0.5
    assert first["t"] == last["t"] == 3.0


@pytest.mark.parametrize(
    "batch", [torch.ones(1, 3), torch.tensor(1.0), {"x": torch.ones(4), "y": torch.ones(3)}]
)
def test_what_cannot_be_halved(batch) -> None:
    assert halve(batch) is None


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
    assert "smaller batches, 7 in all" in caplog.text


def test_without_any_room_records_are_marked_and_training_goes_on(caplog) -> None:
    records = watched(0)
    assert len(records) == 3  # then the watch is off; four steps were taken
    assert all(not r.valid and "OutOfMemoryError" in r.reason for r in records)
    assert all(r.near_zero for r in records)  # what needs no evaluation is there
    assert "switched itself off" in caplog.text


def test_other_errors_are_not_tried_again() -> None:
    calls = []

    def fails() -> None:
        calls.append(1)
        raise RuntimeError("shape mismatch")

    proxy = sw.Proxy([torch.ones(4, 2)], Hungry(math.inf), name="value")
    with pytest.raises(RuntimeError, match="shape mismatch"):
        with_less_memory(fails, proxy)
    assert len(calls) == 1
    assert proxy.num_batches == 1


def test_a_value_that_changes_its_number_of_examples_is_refused() -> None:
    """A batch whose halves do not hold half of the examples cannot give a true number."""

    def value(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return torch.ones(4)

    proxy = sw.Proxy([torch.ones(4, 2)], value)
    proxy.check(nn.Linear(2, 2))
    assert proxy.halve()
    with pytest.raises(sw.ProxyError, match="4 examples over all batches as before, got 8"):
        proxy.check(nn.Linear(2, 2))
