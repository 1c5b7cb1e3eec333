"""A real cluster of dask: more than one machine can look."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts.families import whole
from contracts.live_runs import held_out, save_torch, tiny_bert, told_by_weights, train
from contracts.stored_run import detectors, on_disk

import sparsitywatch as sw

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    distributed = pytest.importorskip("distributed")

pytestmark = [
    pytest.mark.slow,
    whole,
    pytest.mark.timeout(400),
    pytest.mark.filterwarnings("ignore"),
]  # its own warnings


@pytest.fixture(scope="module")
def client(forking: ForkServerContext) -> Iterator[Any]:
    """Two worker processes with one thread each."""
    with (
        distributed.dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.run(torch.set_num_threads, torch.get_num_threads())
        yield client


def test_the_same_files_as_in_series(client, run, tmp_path: Path) -> None:
    executor = client.get_executor(pure=False)
    sw.replay(run, logdir=tmp_path / "series", detectors=detectors())
    sw.replay(run, logdir=tmp_path / "many", detectors=detectors(), executor=executor)
    assert on_disk(tmp_path / "many") == on_disk(tmp_path / "series")


def test_the_same_evaluations(client, tmp_path: Path) -> None:
    train(None, save_torch(tmp_path / "run"))
    here = sw.replay(tmp_path / "run", logdir=None, model=tiny_bert, proxy=held_out())
    (tmp_path / "run" / "ckpt-20.pt").write_bytes(b"")
    there = sw.replay(
        tmp_path / "run",
        logdir=None,
        model=tiny_bert,
        proxy=held_out(),
        executor=client.get_executor(pure=False),
    )
    expected = list(map(told_by_weights, here.records))
    assert list(map(told_by_weights, there.records[:-1])) == expected
    assert [failure.step for failure in there.failures] == [20]
