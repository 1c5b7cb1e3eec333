"""What the table of the page rests on: a log that is whole, and as noisy as one of a training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from contracts.fake_run import LONG_EVERY, LONG_NOISE, write_long_run

import sparsitywatch as sw
from sparsitywatch.page.data import details_of, page_data
from sparsitywatch.series import OF_TENSORS
from sparsitywatch.sinks.jsonl import read_spectrum


@pytest.mark.slow
def test_the_long_log_has_every_kind_of_number(tmp_path: Path) -> None:
    run = sw.load(write_long_run(tmp_path / "run", 40, 12))
    assert run.steps.tolist() == list(range(0, 40 * LONG_EVERY, LONG_EVERY))
    data = page_data(run)
    assert data["verdict"]["headline"].startswith(
        "Near-zero weights (|w| ≤ 0.1 × first rms) began to rise"
    )
    rooms = {name.partition("/")[0] for name in data["series"]}
    assert rooms == {"near_zero", "motion", "gradient", "forecast", "essential_sparsity", "value",
                     "weights", "vital", "watch", "xray"}  # fmt: skip
    assert len(data["curves"]) == 40
    details = details_of(run, for_file=False)
    assert {"alone", *details["maps"]["rows"]} == set(OF_TENSORS)
    assert len(details["magnitudes"]["columns"]) == 40
    first, last = (
        read_spectrum(tmp_path / "run" / "sparsitywatch", int(s)) for s in run.steps[[0, -1]]
    )
    assert first["counts"].sum() == last["counts"].sum()
    assert np.array(details["magnitudes"]["all"])[-1].tolist() != details["magnitudes"]["all"][0]


@pytest.mark.slow
def test_shares_of_tensors_differ_by_the_noise_that_is_stated(tmp_path: Path) -> None:
    """On the plateau, where nothing else moves."""
    run = sw.load(write_long_run(tmp_path / "run", 400, 12))
    dormant = np.array([[layer.dormant for layer in r.layers] for r in run.records[:60]])
    spread = np.diff(dormant, axis=0).std() / np.sqrt(2.0)
    assert abs(spread / LONG_NOISE - 1.0) < 0.1
