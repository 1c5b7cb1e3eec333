"""One checkpoint measured, here or by a worker: what it is sent, and what comes back."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import signal
import threading
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from sparsitywatch.checkpoints.base import Checkpoint, load_into, stored_snapshot
from sparsitywatch.checkpoints.formats import open_checkpoint
from sparsitywatch.checkpoints.storage import one_line
from sparsitywatch.errors import (
    CheckpointError,
    ConfigurationError,
    IncompleteCheckpointError,
    expect_functions,
)
from sparsitywatch.offline.selection import Failure
from sparsitywatch.pipeline.measure import Context, Measured, measure_snapshot
from sparsitywatch.pruning.evaluation import MaskedModel
from sparsitywatch.pruning.proxy import Proxy
from sparsitywatch.settings import Settings
from sparsitywatch.shown import shown_url
from sparsitywatch.vital import unread
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import LazyTensors, Sampler, Snapshot

__all__ = [
    "EmptyModel",
    "Job",
    "JobResult",
    "Listeners",
    "ModelFactory",
    "in_order",
    "processes",
    "run_job",
    "sample_of",
    "window_of",
]

_mine = threading.local()

#: Why a checkpoint's parameters are not judged one by one.
_NOT_TOLD = "a checkpoint tells neither gradients nor what its optimizer did"


@dataclass(frozen=True)
class ModelFactory:
    """How a worker comes by the model that checkpoints are evaluated on.

    Args:
        make: makes the model; called once in each thread. Its weights do not matter.
        id: distinguishes this factory from others in a worker that outlives it.
    """

    make: Callable[[], nn.Module]
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def model(self) -> nn.Module:
        """This thread's model; the same one at every call."""
        if getattr(_mine, "id", None) != self.id:
            _mine.model, _mine.id = self.make(), self.id
        model: nn.Module = _mine.model
        return model


class EmptyModel:
    """A model without the values of its parameters, small enough to send to every worker.

    Buffers keep theirs: some of them are in no checkpoint.

    Args:
        model: of classes that can be pickled.

    Raises:
        ConfigurationError: it cannot be pickled.
    """

    def __init__(self, model: nn.Module) -> None:
        buffer = io.BytesIO()
        try:
            _EmptyPickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(model)
        except Exception as error:
            raise ConfigurationError(
                "Expected a `model` that can be sent to the workers of `executor`, but pickling it "
                f"raised {type(error).__name__}: {error}. Give a function that makes it instead, "
                "defined at the top of a module."
            ) from error
        self._pickled = buffer.getvalue()

    def __call__(self) -> nn.Module:
        """A model of its own, its parameters not yet set."""
        # what this process or its parent has pickled itself, never a file
        model: nn.Module = pickle.loads(self._pickled)  # noqa: S301
        return model


class _EmptyPickler(pickle.Pickler):
    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is nn.Parameter:
            return _empty, (tuple(obj.shape), obj.dtype, str(obj.device), obj.requires_grad)
        return NotImplemented


def _empty(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    requires_grad: bool,
) -> nn.Parameter:
    data = torch.empty(shape, dtype=dtype, device=device)
    return nn.Parameter(data, requires_grad=requires_grad)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One checkpoint to measure, and how; it goes to a worker.

    Args:
        url, step: of the checkpoint.
        settings: what is measured.
        scope: which weights count; None until a checkpoint or a model has decided it.
        initial_rms: what "initial" near-zero rules refer to; None: the checkpoint itself.
        storage_options: passed on to fsspec.
        factory: the model; None to read the weights only.
        proxy: what is evaluated on it.
        num_threads: to read the weights with; None for as many as torch uses.
        strict: let what goes wrong out, for tests.
    """

    url: str = ""
    step: int = -1
    settings: Settings
    scope: Scope | None = None
    initial_rms: Mapping[str, float] | None = None
    storage_options: Mapping[str, Any] = field(default_factory=dict)
    factory: ModelFactory | None = None
    proxy: Proxy | None = None
    num_threads: int | None = None
    strict: bool = False

    @property
    def context(self) -> Context:
        """What its snapshot is measured with, the model left out."""
        assert self.scope is not None  # noqa: S101 for the type checker
        num_samples = self.settings.dormant_samples
        return Context(
            settings=self.settings,
            scope=self.scope,
            proxy=self.proxy,
            initial_rms=self.initial_rms or {},
            sampler=None if num_samples == 0 else Sampler(num_samples),
            examined=None if num_samples == 0 else unread(_NOT_TOLD),
            num_threads=self.num_threads,
            strict=self.strict,
        )


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What came of a job.

    Args:
        measured: None if the weights cannot be read.
        reason: why there is no record, in one line; empty if there is one.
        is_incomplete: whether it may be worth a wait.
    """

    measured: Measured | None = None
    reason: str = ""
    is_incomplete: bool = False

    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        if self.measured is not None:
            # as bytes: tensors would go through shared memory, and numpy has no bfloat16
            sample = self.measured.sample.items()
            state["packed"] = {n: (t.dtype, t.view(torch.uint8).numpy()) for n, t in sample}
            state["measured"] = replace(self.measured, sample={})
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        packed = state.pop("packed", {})
        if packed:
            sample = {
                name: torch.from_numpy(words if words.flags.writeable else words.copy()).view(dtype)
                for name, (dtype, words) in packed.items()
            }
            state["measured"] = replace(state["measured"], sample=sample)
        vars(self).update(state)


def run_job(job: Job) -> JobResult:
    """Measure a checkpoint. Whatever is wrong with it is reported, not raised."""
    try:
        with torch.no_grad(), open_checkpoint(job.url, job.storage_options) as checkpoint:
            return JobResult(measured=_measured(job, checkpoint))
    except CheckpointError as error:
        is_incomplete = isinstance(error, IncompleteCheckpointError)
        return JobResult(reason=str(error), is_incomplete=is_incomplete)
    except Exception as error:
        if job.strict:
            raise
        return JobResult(reason=f"Cannot replay {shown_url(job.url)}: {one_line(error)}.")


def sample_of(job: Job) -> Mapping[str, torch.Tensor]:
    """Only the sampled weights of a checkpoint; empty if they cannot be read."""
    try:
        with torch.no_grad(), open_checkpoint(job.url, job.storage_options) as checkpoint:
            stored = stored_snapshot(checkpoint, job.context.scope, job.step)
            return Sampler(job.settings.dormant_samples).take(stored)
    except CheckpointError:
        return {}


def _measured(job: Job, checkpoint: Checkpoint) -> Measured:
    if job.factory is not None:  # before its names are compared: this is said of all tensors
        load_into(job.factory.model(), checkpoint)
    context = job.context
    snapshot = stored_snapshot(checkpoint, context.scope, job.step)
    context = replace(context, dtypes=snapshot.dtypes)
    if job.factory is not None:
        model = MaskedModel(job.factory.model(), context.scope)
        snapshot, context = _loaded(snapshot, model.module), replace(context, model=model)
    return measure_snapshot(snapshot, context)


def _loaded(stored: Snapshot, module: nn.Module) -> Snapshot:
    """The same weights from the model that holds them now, in the dtype of the file."""
    parameters = stored.scope.parameters(module)
    assert isinstance(stored.tensors, LazyTensors)  # noqa: S101 for the type checker
    entries = stored.tensors.entries
    held = {entry.name: (parameters[name].detach(), entry.dtype) for name, entry in entries.items()}
    return replace(stored, tensors=LazyTensors(entries, _Loaded(held)))


#: Weights of a model that are cast to the dtype of the file at once.
_CAST_AT_ONCE = 1 << 18


class _Loaded:
    """Weights of a checkpoint that a model holds now; a ``Store``.

    Args:
        held: each tensor, and its dtype in the file, by its name there.
    """

    chunk_bytes = 0

    def __init__(self, held: Mapping[str, tuple[torch.Tensor, torch.dtype]]) -> None:
        self._held = held

    def read(self, name: str) -> torch.Tensor:
        tensor, dtype = self._held[name]
        return tensor.to(dtype)

    def in_byte_order(self, names: Iterable[str]) -> list[str]:
        return list(names)

    def chunks(self, name: str, _: memoryview) -> Generator[memoryview, None, None]:
        tensor, dtype = self._held[name]
        for part in torch.split(tensor.reshape(-1), _CAST_AT_ONCE):
            yield part.to(dtype).cpu().view(torch.uint8).numpy().data

    def check_unchanged(self) -> None:
        pass


#: Jobs at once for executors that do not say how many workers they have.
_MANY = 16


def window_of(executor: Executor | None) -> int:
    """How many jobs to have under way: two to each worker, so that none waits for work."""
    num_workers = getattr(executor, "_max_workers", None)
    return 2 * num_workers if isinstance(num_workers, int) and num_workers > 0 else _MANY


def in_order(
    jobs: Iterable[Job | JobResult], executor: Executor | None, window: Callable[[], int]
) -> Iterator[JobResult]:
    """What comes of each job, in the order of the jobs.

    Args:
        jobs: asked for one by one: without an executor only when the result before has been
            taken. One that is a result already is passed through in its turn.
        executor: None to run them here and now.
        window: jobs under way at once, at most, asked after each; bounds the memory of what
            waits its turn.

    Raises:
        Exception: the executor failed, such as ``BrokenProcessPool``; jobs themselves raise
            nothing.
    """
    waiting: deque[JobResult | Future[JobResult]] = deque()
    try:
        for job in jobs:
            if isinstance(job, JobResult):
                waiting.append(job)
            else:
                waiting.append(run_job(job) if executor is None else executor.submit(run_job, job))
            if executor is None or len(waiting) >= window():
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())
    finally:
        for left in waiting:
            if isinstance(left, Future):
                left.cancel()


def _result(one: JobResult | Future[JobResult]) -> JobResult:
    return one if isinstance(one, JobResult) else one.result()


@contextmanager
def processes(num: int) -> Iterator[ProcessPoolExecutor]:
    """An executor of ``num`` processes; what has not begun at the end is dropped.

    Each computes with its share of the cores. They are spawned: the clients of remote
    storages, and torch's threads, do not survive a fork. They end with this process, however
    that ends.
    """
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


@dataclass(frozen=True)
class Listeners:
    """Who is called while a replay goes on.

    Args:
        on_failure: called with each checkpoint that could not be measured.
        on_progress: called with how many checkpoints are done, and how many there are.
        on_waiting: called with why nothing can be listed yet.
    """

    on_failure: Sequence[Callable[[Failure], object]] = ()
    on_progress: Sequence[Callable[[int, int], object]] = ()
    on_waiting: Sequence[Callable[[str], object]] = ()

    def __post_init__(self) -> None:
        for name in ("on_failure", "on_progress", "on_waiting"):
            expect_functions(name, getattr(self, name))
