"""The picture of the last spike: its numbers are those of the ring in the log."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from sparsitywatch.analysis.run import Run
from sparsitywatch.analysis.spikes import Moves
from sparsitywatch.page.data import page_data
from sparsitywatch.page.render import render
from sparsitywatch.sinks.jsonl import write_moves


def logged(directory: Path, *, spike: bool) -> Run:
    """A run whose first two of three blocks move twice as far from step 430 on."""
    rng = np.random.default_rng(0)
    steps = np.arange(1, 501)
    loss = 2.0 + 0.01 * rng.standard_normal(500) + 1.0 * (spike & (steps >= 440))
    update = 1e-3 * np.exp(0.05 * rng.standard_normal((500, 3)))
    update[429:, :2] *= 2.0 if spike else 1.0
    moves = Moves(
        blocks=np.array(["h.0", "h.1", "</script>"]), steps=steps, loss=loss, update=update,
        weight=np.ones((500, 3)), gradient=np.full((500, 3), np.nan),
    )  # fmt: skip
    write_moves(directory, moves)
    return Run([], directory=directory)


def test_the_picture_shows_the_steps_around_the_spike(tmp_path):
    found = page_data(logged(tmp_path, spike=True))["spike"]
    assert (found["steps"][found["began"]], found["steps"][found["at"]]) == (430, 440)
    assert found["steps"] == [*range(370, 500)]
    assert "began in h.0, h.1 at step 430, where updates rose 2." in found["told"]
    rises = np.array(found["rises"], dtype=float)
    assert rises.shape == (3, 130)
    np.testing.assert_allclose(rises[:2, 60:].mean(), 1000, atol=30)  # thousandths of a doubling
    np.testing.assert_allclose(rises[:, :60].mean(), 0, atol=30)
    json.dumps(found, allow_nan=False)


def test_without_a_spike_or_a_ring_there_is_no_picture(tmp_path):
    assert page_data(logged(tmp_path, spike=False))["spike"] is None
    assert page_data(Run([], directory=tmp_path / "elsewhere"))["spike"] is None
    assert page_data(Run([]))["spike"] is None


def test_a_damaged_ring_takes_nothing_from_the_page(tmp_path):
    run = logged(tmp_path, spike=True)
    content = (tmp_path / "ring.npz").read_bytes()
    (tmp_path / "ring.npz").write_bytes(content[: len(content) // 2])
    assert page_data(run)["spike"] is None
    np.savez(tmp_path / "ring.npz", blocks=np.array(["h.0"]))
    assert page_data(run)["spike"] is None


def test_names_of_blocks_end_no_script(tmp_path):
    assert "</script>" not in json.dumps(page_data(logged(tmp_path, spike=True))["spike"]["told"])
    assert render(logged(tmp_path, spike=True)).count("<script") == 3
