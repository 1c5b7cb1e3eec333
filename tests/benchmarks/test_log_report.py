"""What the table of a log's bytes rests on: the entropy of counts, and the noise of two spectra."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts import fake_run
from log import entropy_bytes, noise_table, write_long_log

import sparsitywatch as sw
from sparsitywatch.records import Detail
from sparsitywatch.sinks.jsonl import JsonlSink
from sparsitywatch.weights.spectrum import MagnitudeSpectrum


def test_entropy_is_that_of_counts_that_were_drawn() -> None:
    """A plug-in estimate from many draws of the same bins, where a bin holds few weights."""
    num_weights, num_draws = 300, 4_000
    weights = np.abs(np.random.default_rng(0).normal(0.0, 0.02, (num_draws, num_weights)))
    keys = -(-weights.astype(np.float32).view(np.uint32).astype(np.int64) // (1 << 15))
    first = int(keys.min())
    bits, bins = 0.0, int(keys.max()) - first + 1
    counts = np.zeros((num_draws, bins), np.int64)
    np.add.at(counts, (np.arange(num_draws)[:, None], keys - first), 1)
    for column in counts.T:
        shares = np.bincount(column) / num_draws
        bits -= sum(p * math.log2(p) for p in shares if p > 0.0)
    assert entropy_bytes(num_weights) == pytest.approx(bits / 8.0, rel=0.03)


@pytest.mark.parametrize(("kept", "low", "high"), [(0.0, 0.0, 0.1), (1.0, 0.99, 1.0)])
def test_noise_that_stays_is_seen(tmp_path: Path, kept: float, low: float, high: float) -> None:
    """Of two spectra of the same weights it is the same, of new ones there is none in common."""
    draw = torch.Generator().manual_seed(0)
    weights = 0.02 * torch.randn(200_000, generator=draw)
    sink = JsonlSink(tmp_path / "sparsitywatch")
    sink.open(fake_run.run_info())
    for step in (500, 1000):
        spectrum = MagnitudeSpectrum.of({"w": weights})
        record, _ = fake_run.look(step)
        sink.write(record, Detail(spectrum=spectrum.to_arrays()))
        if not kept:
            weights = 0.02 * torch.randn(200_000, generator=draw)
    sink.close()
    row = noise_table([tmp_path])[-1].split("|")
    assert low <= float(row[3]) <= high


def test_the_long_log_is_one_that_can_be_read(tmp_path: Path) -> None:
    write_long_log(tmp_path, 3, 7)
    run = sw.load(tmp_path)
    assert [len(record.layers) for record in run.records] == [7, 7, 7]
    assert run.records[1].layers[6].num_weights == 1 << 20
