"""One checkpoint measured, here or by a worker: what it is sent, and what comes back."""

from __future__ import annotations

import copyreg
import io
import multiprocessing
import os
import pickle
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from sparsitywatch.analysis.contents import Looker
from sparsitywatch.checkpoints.base import Checkpoint, load_into, stored_snapshot
from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.checkpoints.series import mark_of
from sparsitywatch.checkpoints.storage import one_line
from sparsitywatch.errors import CheckpointError, ConfigurationError
from sparsitywatch.evaluation.masked import MaskedModel
from sparsitywatch.pipeline.measure import Measured, RunContext, measure_snapshot, nothing_examined
from sparsitywatch.proxy.proxy import Proxy
from sparsitywatch.ranks.reading import ShardedReader
from sparsitywatch.records import Source
from sparsitywatch.redact import redacted_url
from sparsitywatch.settings import Settings
from sparsitywatch.vital import unread
from sparsitywatch.weights.layout import unwrap_model
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import LazyTensors, Sampler, Snapshot, bits_of

#: A writer that goes on has written again within so many seconds.
_LEFT_ALONE_S = 1.0
#: Why a checkpoint's parameters are not judged one by one.
_NOT_TOLD = "a checkpoint tells neither gradients nor what its optimizer did"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the checkpoints of a replay are measured; it goes to the workers."""

    settings: Settings
    unit: str = "step"  # what the numbers of the checkpoints count
    scope: Scope | None = None  # None until a checkpoint or a model has decided it
    initial_rms: Mapping[str, float] | None = None  # None until the first one has been measured
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = None  # what leads to the model in a checkpoint that holds more
    factory: ModelFactory | None = None  # None to read the weights only
    proxy: Proxy | None = None
    num_threads: int | None = None  # to read the weights with; None for as many as torch uses

    def open(self, url: str) -> Checkpoint:
        """A checkpoint, open."""
        return open_checkpoint(url, self.storage_options, self.key)

    @property
    def run(self) -> RunContext:
        """What every snapshot is measured with."""
        assert self.scope is not None  # noqa: S101 for the type checker
        return RunContext(
            settings=self.settings,
            scope=self.scope,
            proxy=self.proxy,
            initial_rms=self.initial_rms or {},
            unit=self.unit,
        )


#: What comes of a checkpoint: what it says, or why that is not known.
Outcome = Measured | CheckpointError


def measure(plan: Plan, step: int, url: str) -> Outcome:
    """Measure a checkpoint. Whatever is wrong with it is reported, not raised."""
    num_samples = plan.settings.dormant_samples
    try:
        with torch.no_grad(), plan.open(url) as checkpoint:
            model = None if plan.factory is None else plan.factory.model()
            if model is not None:  # before names in scope are compared: it is said of all tensors
                load_into(model, checkpoint)
            snapshot = stored_snapshot(checkpoint, plan.run.scope, step)
            run = replace(plan.run, dtypes=snapshot.dtypes)
            if model is not None:
                snapshot = _held_by(model, snapshot)
            looker, snapshot = looked_at(snapshot)
            measured = measure_snapshot(
                snapshot,
                run,
                ShardedReader(num_threads=plan.num_threads),
                model=None if model is None else MaskedModel(model, run.scope),
                sampler=None if num_samples == 0 else Sampler(num_samples),
                examined=nothing_examined if num_samples == 0 else unread(_NOT_TOLD),
            )
            expect_written(checkpoint)
            mark = mark_of(checkpoint, run.scope.names)
            dtypes = {e.name: str(e.dtype).removeprefix("torch.") for e in checkpoint.entries()}
            source = Source(
                address=checkpoint.url,
                key=checkpoint.key,
                mark=mark,
                contents=looker.contents({n: dtypes.get(n, "") for n in run.scope.names}),
            )
            record = replace(measured.record, source=source)
            return replace(measured, record=record, sample=_Sample(measured.sample))
    except CheckpointError as error:
        return type(error)(str(error))  # a new one, which holds no frame with what was read
    except Exception as error:  # noqa: BLE001 whatever a model and a proxy raise
        return CheckpointError(f"Cannot replay {redacted_url(url)}: {one_line(error)}.")


def expect_written(checkpoint: Checkpoint) -> None:
    """Raise IncompleteCheckpointError where a file without checksums is still being written."""
    age_s = checkpoint.left_alone_s()
    if 0.0 <= age_s < _LEFT_ALONE_S:
        time.sleep(_LEFT_ALONE_S - age_s)
        checkpoint.check_unchanged()


def _held_by(model: nn.Module, snapshot: Snapshot) -> Snapshot:
    """The same weights from the model, which holds them now, in the dtype of the file."""
    assert isinstance(snapshot.tensors, LazyTensors)  # noqa: S101 for the type checker
    parameters = snapshot.scope.parameters(unwrap_model(model))
    entries = snapshot.tensors.entries.items()
    held = {name: parameters[name].detach().to(entry.dtype) for name, entry in entries}
    return replace(snapshot, tensors=held)


def looked_at(snapshot: Snapshot) -> tuple[Looker, Snapshot]:
    """What has looked at all weights in scope, or does while they are read."""
    looker, tensors = Looker(), snapshot.tensors
    if isinstance(tensors, LazyTensors):
        return looker, replace(snapshot, tensors=tensors.observed(looker.see))
    for name, tensor in tensors.items():
        bits = bits_of(tensor).numpy()
        looker.see(name, 0, bits.view(f"u{bits.itemsize}"))
    return looker, snapshot


class _Sample(dict[str, torch.Tensor]):
    """Sent as bytes: tensors would go through shared memory, and numpy has no bfloat16."""

    def __reduce__(self) -> tuple[Any, ...]:
        packed = {name: (t.dtype, t.view(torch.uint8).numpy()) for name, t in self.items()}
        return _sample_of, (packed,)


def _sample_of(packed: Mapping[str, tuple[torch.dtype, np.ndarray]]) -> _Sample:
    arrays = {n: (dtype, a if a.flags.writeable else a.copy()) for n, (dtype, a) in packed.items()}
    return _Sample({n: torch.from_numpy(a).view(dtype) for n, (dtype, a) in arrays.items()})


def sample_of(plan: Plan, step: int, url: str) -> Mapping[str, torch.Tensor]:
    """Only the sampled weights of a checkpoint; empty if they cannot be read."""
    with suppress(CheckpointError), torch.no_grad(), plan.open(url) as checkpoint:
        stored = stored_snapshot(checkpoint, plan.run.scope, step)
        return Sampler(plan.settings.dormant_samples).take(stored)
    return {}


def mark_at(plan: Plan, url: str) -> str:
    """The mark of a checkpoint as it is now; empty if it cannot be read."""
    with suppress(CheckpointError), plan.open(url) as checkpoint:
        return mark_of(checkpoint, plan.run.scope.names)
    return ""


# ------------------------------------------------------------------ the model of a worker


#: What a thread has made, and the factory that it is of.
_mine = threading.local()


@dataclass(frozen=True)
class ModelFactory:
    """How a worker comes by the model that checkpoints are evaluated on."""

    make: Callable[[], nn.Module]  # called once in each thread; its weights do not matter
    id: str = field(default_factory=lambda: uuid.uuid4().hex)  # a worker may outlive a factory

    def model(self) -> nn.Module:
        """This thread's model; the same one at every call."""
        mine = vars(_mine)
        if mine.get("id") != self.id:
            mine.update(model=self.make(), id=self.id)
        model: nn.Module = mine["model"]
        return model


def without_weights(model: nn.Module) -> Callable[[], nn.Module]:
    """What makes the model in a worker: buffers, which may be in no checkpoint, and no weights."""
    buffer = io.BytesIO()
    try:
        pickler = pickle.Pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL)
        pickler.dispatch_table = {**copyreg.dispatch_table, nn.Parameter: _without_values}
        pickler.dump(model)
    except Exception as error:
        raise ConfigurationError(
            "Expected a `model` that can be sent to the workers of `executor`, but pickling it "
            f"raised {type(error).__name__}: {error}. Give a function that makes it instead, "
            "defined at the top of a module."
        ) from error
    # what this process has pickled itself, never a file
    return partial(pickle.loads, buffer.getvalue())


def _without_values(one: nn.Parameter) -> tuple[Any, ...]:
    return _empty, (one.shape, one.dtype, str(one.device), one.requires_grad)


def _empty(shape: torch.Size, dtype: torch.dtype, device: str, requires_grad: bool) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad)


# ------------------------------------------------------------------ many at once

#: Checkpoints at once for executors that do not say how many workers they have.
_MANY = 16


def window_of(executor: Executor | None) -> int:
    """How many checkpoints to have under way: two to each worker, so that none waits for work."""
    num_workers = getattr(executor, "_max_workers", None)
    return 2 * num_workers if isinstance(num_workers, int) and num_workers > 0 else _MANY


@contextmanager
def processes(num: int) -> Iterator[ProcessPoolExecutor]:
    """An executor of ``num`` processes, which share the cores and end with this one."""
    # clients of remote storages, and torch's threads, do not survive a fork
    threads = max(1, (os.cpu_count() or 1) // num)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num, context, initializer=_begin, initargs=(threads,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _begin(num_threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that asks
    torch.set_num_threads(num_threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Without this a worker would wait for ever for the next task of a parent that was killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
