"""A whole replay: some checkpoints of one run, by one process or by workers."""

from __future__ import annotations

import importlib
import multiprocessing
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import safetensors.torch
import torch

import sparsitywatch as sw

__all__ = ["NUM_WORKERS", "executors", "replayed", "write_series"]

NUM_WORKERS = 4


def write_series(folder: Path, first: Path, num_checkpoints: int) -> None:
    """Checkpoints in which every weight has moved since the one before.

    There are two files, in turns, under many names: one would do for counting, but then nothing
    moves, and what did not move is not compared.

    Args:
        folder: where they go.
        first: a file of safetensors.
        num_checkpoints: how many.
    """
    weights = safetensors.torch.load_file(first)
    generator = torch.Generator().manual_seed(1)
    for weight in weights.values():
        weight.mul_(0.999).add_(torch.empty_like(weight).normal_(0, 1e-4, generator=generator))
    other = folder.with_suffix(".safetensors")
    safetensors.torch.save_file(weights, other)
    for step in range(num_checkpoints):
        checkpoint = folder / f"checkpoint-{step}"
        checkpoint.mkdir(parents=True)
        os.link((first, other)[step % 2], checkpoint / "model.safetensors")
        (checkpoint / "trainer_state.json").write_text(f'{{"global_step": {step}}}')


def replayed(
    url: str | os.PathLike[str],
    executor: Executor | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[sw.Record]:
    """The records of a replay without a model, with everything that it writes."""
    with TemporaryDirectory() as place:
        done = sw.replay(url, logdir=place, executor=executor, on_event=[], storage_options=options)
    assert not done.failures, done.failures
    return done.records


@contextmanager
def executors() -> Iterator[dict[str, Executor]]:
    """What may look at checkpoints, already running: threads, processes, dask's where it is."""
    found: dict[str, Executor] = {}
    with ExitStack() as stack:
        found["threads"] = stack.enter_context(ThreadPoolExecutor(NUM_WORKERS))
        found["processes"] = stack.enter_context(
            ProcessPoolExecutor(NUM_WORKERS, multiprocessing.get_context("spawn"))
        )
        if find_spec("distributed"):
            dask: Any = importlib.import_module("distributed")
            cluster = dask.LocalCluster(
                n_workers=NUM_WORKERS, threads_per_worker=1, dashboard_address=None
            )
            client = stack.enter_context(dask.Client(stack.enter_context(cluster)))
            found["dask's LocalCluster"] = client.get_executor(pure=False)
        yield found
