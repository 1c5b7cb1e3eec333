"""A whole replay: some checkpoints of one run, by one process or by workers."""

from __future__ import annotations

import importlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
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
def _dask() -> Iterator[Executor]:
    distributed: Any = importlib.import_module("distributed")
    with (
        distributed.LocalCluster(
            n_workers=NUM_WORKERS, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client.get_executor(pure=False)


def executors() -> dict[str, Callable[[], AbstractContextManager[Executor]]]:
    """What may look at checkpoints: threads, processes, and dask's where it is installed."""
    context = multiprocessing.get_context("spawn")
    found: dict[str, Callable[[], AbstractContextManager[Executor]]] = {
        "threads": partial(ThreadPoolExecutor, NUM_WORKERS),
        "processes": partial(ProcessPoolExecutor, NUM_WORKERS, context),
    }
    return found | ({"dask's LocalCluster": _dask} if find_spec("distributed") else {})
