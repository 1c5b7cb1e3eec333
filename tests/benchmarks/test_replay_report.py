"""What the table of reading checkpoints rests on: checkpoints, counts of bytes, peaks of memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from replaying import checkpoints
from replaying.checkpoints import write_sharded
from replaying.replays import growth_bytes, look, read_in_order

from sparsitywatch.checkpoints.formats import open_checkpoint


@pytest.fixture
def sharded(tmp_path: Path) -> checkpoints.Written:
    return write_sharded(tmp_path / "sharded", 2, 128, 300, shard_bytes=200_000)


@pytest.mark.slow
def test_a_sharded_decoder_is_what_it_says(sharded: checkpoints.Written) -> None:
    assert len(list(sharded.path.glob("*.safetensors"))) > 2
    with open_checkpoint(sharded.path) as checkpoint:
        entries = checkpoint.entries()
        assert {entry.dtype for entry in entries} == {torch.bfloat16}
        assert sum(entry.num_weights for entry in entries) == sharded.num_weights
        assert sum(entry.num_bytes for entry in entries) == sharded.num_bytes
        assert max(entry.num_bytes for entry in entries) == sharded.largest_bytes
        in_layers = sum(e.num_weights for e in entries if ".layers." in e.name)
    assert look(sharded.path) == in_layers


def test_reading_in_order_reads_every_byte(sharded: checkpoints.Written) -> None:
    sizes = [file.stat().st_size for file in sharded.path.iterdir()]
    assert read_in_order(sharded.path) == sum(sizes)
    (largest, *_) = sorted(sharded.path.glob("*.safetensors"), key=lambda f: -f.stat().st_size)
    assert read_in_order(largest) == largest.stat().st_size


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's own peak")
def test_growth_is_that_of_a_look(sharded: checkpoints.Written) -> None:
    growth = growth_bytes(sharded.path, 1, "plain")
    assert 1 << 20 < growth < 1 << 29  # at least its own modules
