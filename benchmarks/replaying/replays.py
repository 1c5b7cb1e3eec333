"""One look at one stored checkpoint, a whole replay, its memory; and what they stand beside."""

from __future__ import annotations

import importlib
import importlib.util
import json
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from reporting import HERE

import sparsitywatch as sw
from sparsitywatch.checkpoints.base import stored_snapshot
from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.pipeline.measure import RunContext, measure_snapshot
from sparsitywatch.settings import Settings
from sparsitywatch.weights.scope import Scope

NUM_WORKERS = 4
#: What is read at once: longer or shorter is slower here.
_BUFFER_BYTES = 1 << 19


def look(url: str | os.PathLike[str], options: Mapping[str, Any] | None = None) -> int:
    """Everything that a record without a model says; the number of weights in scope."""
    with open_checkpoint(url, options) as checkpoint:
        scope = Scope.of_entries(checkpoint.entries())
        snapshot = stored_snapshot(checkpoint, scope, 1)
        initial_rms = dict.fromkeys(scope.names, 0.02)
        run = RunContext(
            settings=Settings(), scope=scope, initial_rms=initial_rms, dtypes=snapshot.dtypes
        )
        measure_snapshot(snapshot, run)
    return scope.summary.num_weights


def read_in_order(path: Path) -> int:
    """Read each byte of a file, or of the files of a folder, once, in order; how many."""
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    total = 0
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        with file.open("rb", buffering=0) as opened:
            while count := opened.readinto(buffer):
                total += count
    return total


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
    return found | (
        {"dask's LocalCluster": _dask} if importlib.util.find_spec("distributed") else {}
    )


_CODE = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from reporting import forget_peak, peak_bytes
torch.set_num_threads(int(sys.argv[3]))
before = forget_peak()
from unittest import mock
from replaying.replays import replayed
from sparsitywatch.weights.spectrum import kernel
if sys.argv[4] == "plain":
    with mock.patch.object(kernel, "load", return_value=None):
        replayed(sys.argv[2])
else:
    replayed(sys.argv[2])
print(peak_bytes() - before)
"""


def growth_bytes(path: Path, num_threads: int, way: str) -> int:
    """Peak resident memory of a replay of one checkpoint, above that of ``import torch``.

    The library's own modules count, and so does numba where the way is "compiled".
    """
    arguments = [str(HERE), str(path), str(num_threads), way]
    roots = [str(HERE.parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    done = subprocess.run(  # noqa: S603  our own code
        [sys.executable, "-c", _CODE, *arguments],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, roots))},
    )
    return int(json.loads(done.stdout))
