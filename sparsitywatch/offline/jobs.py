"""The model that checkpoints are evaluated on, one to each thread that evaluates."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import signal
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sparsitywatch.analysis.overlap import MASK_LEVELS
from sparsitywatch.checkpoints.base import Checkpoint
from sparsitywatch.checkpoints.loading import load_into, stored_snapshot
from sparsitywatch.checkpoints.opening import open_checkpoint
from sparsitywatch.checkpoints.storage import one_line
from sparsitywatch.errors import (
    CheckpointError,
    ConfigurationError,
    IncompleteCheckpointError,
    expect_functions,
)
from sparsitywatch.offline.selection import Failure
from sparsitywatch.pipeline.measure import Measurement
from sparsitywatch.pruning.masked import MaskedModel
from sparsitywatch.pruning.proxy import Proxy
from sparsitywatch.records import Detail, Record, SparsityCurve
from sparsitywatch.settings import Settings
from sparsitywatch.shown import shown_url
from sparsitywatch.weights.sample import Sampler
from sparsitywatch.weights.scope import Scope, ScopeLike
from sparsitywatch.weights.snapshot import Snapshot
from sparsitywatch.weights.spectrum import MagnitudeSpectrum
from sparsitywatch.weights.spectrum.stored import LazyTensors

__all__ = [
    "Given",
    "Listeners",
    "Look",
    "Orders",
    "Plan",
    "Skeleton",
    "Stage",
    "Task",
    "in_order",
    "look",
    "processes",
    "sample",
    "unpacked",
    "window_of",
]

_mine = threading.local()


@dataclass(frozen=True)
class Stage:
    """How a worker comes by its model, and what it evaluates.

    Args:
        make: makes the model; called once in each thread. Its weights do not matter.
        proxy: what is evaluated; None to evaluate nothing.
        id: tells this stage from others in a worker that outlives it.
    """

    make: Callable[[], nn.Module]
    proxy: Proxy | None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def model(self) -> nn.Module:
        """This thread's model; the same one at every call."""
        if getattr(_mine, "id", None) != self.id:
            _mine.model, _mine.id = self.make(), self.id
        model: nn.Module = _mine.model
        return model


@dataclass(frozen=True)
class Given:
    """The user's own model, for looks in the caller's thread."""

    model: nn.Module

    def __call__(self) -> nn.Module:
        """The model."""
        return self.model


class Skeleton:
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
            _SkeletonPickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(model)
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


class _SkeletonPickler(pickle.Pickler):
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


#: A sampled tensor as plain bytes: its dtype and uint8 [N * bytes per weight].
Packed = tuple[torch.dtype, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the looks of a replay have in common; it goes to every worker.

    Args:
        settings: what is measured.
        scope: which weights count.
        initial_rms: what "initial" near-zero rules refer to; None: the checkpoint itself.
        storage_options: passed on to fsspec.
        num_samples: weights that are compared from look to look, as of ``Motion``.
        stage: the model; None to read the weights only.
        num_threads: to read the weights with; None for as many as torch uses.
        strict: let what goes wrong out, for tests.
    """

    settings: Settings
    scope: Scope
    initial_rms: Mapping[str, float] | None
    storage_options: Mapping[str, Any]
    num_samples: int | None
    stage: Stage | None
    num_threads: int | None = None
    strict: bool = False


@dataclass(frozen=True, kw_only=True)
class Task:
    """One checkpoint to look at.

    Args:
        url, step: of the checkpoint.
        plan: how.
        previous: the curve of the look before, for sweeps that go on from it.
    """

    url: str
    step: int
    plan: Plan
    previous: SparsityCurve | None = None


@dataclass(frozen=True, kw_only=True)
class Look:
    """What came of it: a record, or why there is none.

    Args:
        record: without what needs the look before; None if the weights cannot be read.
        detail: as sinks take it.
        sample: the sampled weights.
        mask_thresholds: below which a weight would go, at each of ``MASK_LEVELS``.
        initial_rms: what "initial" near-zero rules referred to.
        reason: why there is no record, in one line; empty if there is one.
        is_incomplete: whether it may be worth a wait.
    """

    record: Record | None = None
    detail: Detail = field(default_factory=Detail)
    sample: Mapping[str, Packed] = field(default_factory=dict)
    mask_thresholds: tuple[float, ...] = ()
    initial_rms: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    is_incomplete: bool = False


def look(task: Task) -> Look:
    """Look at a checkpoint. Whatever is wrong with it is told, not raised."""
    started = time.perf_counter()
    try:
        with (
            torch.no_grad(),
            open_checkpoint(task.url, task.plan.storage_options) as checkpoint,
        ):
            return _measured(task, checkpoint, started)
    except CheckpointError as error:
        return Look(reason=str(error), is_incomplete=isinstance(error, IncompleteCheckpointError))
    except Exception as error:
        if task.plan.strict:
            raise
        return Look(reason=f"Cannot replay {shown_url(task.url)}: {one_line(error)}.")


def sample(task: Task) -> Mapping[str, Packed]:
    """Only the sampled weights of a checkpoint; empty if they cannot be read."""
    plan = task.plan
    try:
        with (
            torch.no_grad(),
            open_checkpoint(task.url, plan.storage_options) as checkpoint,
        ):
            stored = stored_snapshot(checkpoint, plan.scope, task.step)
            return _packed(Sampler(plan.num_samples).take(stored))
    except CheckpointError:
        return {}


def unpacked(packed: Mapping[str, Packed]) -> dict[str, torch.Tensor]:
    """Sampled weights as tensors, by name."""
    return {
        name: torch.from_numpy(words if words.flags.writeable else words.copy()).view(dtype)
        for name, (dtype, words) in packed.items()
    }


def _packed(tensors: Mapping[str, torch.Tensor]) -> dict[str, Packed]:
    # as bytes: tensors would go through shared memory, and numpy has no bfloat16
    return {name: (t.dtype, t.view(torch.uint8).numpy()) for name, t in tensors.items()}


def _measured(task: Task, checkpoint: Checkpoint, started: float) -> Look:
    plan, stage = task.plan, task.plan.stage
    if stage is not None:  # before its names are compared: what this says is said of all tensors
        load_into(stage.model(), checkpoint)
    snapshot = stored_snapshot(checkpoint, plan.scope, task.step)
    model, proxy = None, None
    if stage is not None:
        model, proxy = MaskedModel(stage.model(), plan.scope), stage.proxy
        snapshot = _loaded(snapshot, model.module)
    dtypes = snapshot.dtypes
    taken: dict[str, torch.Tensor] = {}
    if plan.num_samples != 0:
        snapshot = Sampler(plan.num_samples).tapped(snapshot, taken)
    mask_thresholds: list[float] = []

    def counted(spectrum: MagnitudeSpectrum) -> dict[str, Any]:
        mask_thresholds.extend(spectrum.thresholds(MASK_LEVELS))
        return {}  # what moved is told where the look before is known

    measurement = Measurement(plan.settings, plan.scope, plan.initial_rms, proxy, dtypes)
    record, detail = measurement.record(
        snapshot,
        model,
        started=started,
        stall_s=0.0,
        motion=counted,
        previous=task.previous,
        num_threads=plan.num_threads,
        strict=plan.strict,
    )
    return Look(
        record=record,
        detail=detail,
        sample=_packed(taken),
        mask_thresholds=tuple(mask_thresholds),
        initial_rms=measurement.initial_rms,
    )


def _loaded(stored: Snapshot, module: nn.Module) -> Snapshot:
    """The same weights from the model that holds them now, in the dtype of the file."""
    parameters = stored.scope.parameters(module)
    assert isinstance(stored.tensors, LazyTensors)  # noqa: S101 for the type checker
    entries = stored.tensors.entries
    tensors = LazyTensors(entries, lambda name: parameters[name].detach().to(entries[name].dtype))
    return Snapshot(stored.step, stored.scope, tensors)


#: Looks at once for executors that do not say how many workers they have.
_MANY = 16


def window_of(executor: Executor | None) -> int:
    """How many looks to have under way: two to each worker, so that none waits for work."""
    num_workers = getattr(executor, "_max_workers", None)
    return 2 * num_workers if isinstance(num_workers, int) and num_workers > 0 else _MANY


def in_order(
    tasks: Iterable[Task | Look], executor: Executor | None, window: int
) -> Iterator[Look]:
    """What comes of each task, in the order of the tasks.

    Args:
        tasks: asked for one by one: without an executor only when the look before has been
            taken. One that is a look already is passed through in its turn.
        executor: None to look here and now.
        window: looks under way at once, at most; bounds the memory of what waits its turn.

    Raises:
        Exception: the executor failed, such as ``BrokenProcessPool``; looks themselves
            raise nothing.
    """
    waiting: deque[Look | Future[Look]] = deque()
    try:
        for task in tasks:
            if isinstance(task, Look):
                waiting.append(task)
            else:
                waiting.append(look(task) if executor is None else executor.submit(look, task))
            if executor is None or len(waiting) >= window:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())
    finally:
        for left in waiting:
            if isinstance(left, Future):
                left.cancel()


def _result(one: Look | Future[Look]) -> Look:
    return one if isinstance(one, Look) else one.result()


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


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What was asked for, checked.

    Args:
        settings: what is measured.
        scope: which weights count; decided already if there is a model.
        stage: the model and the proxy; None to read the weights only.
        initial_rms: what "initial" near-zero rules refer to; None: the first checkpoint.
        num_samples: weights that are compared from look to look, as of ``Motion``.
        storage_options: passed on to fsspec.
        executor: None to look in this thread.
        window: looks under way at once, at most.
        goes_on: whether a sweep goes on from the look before.
        directory: of the log, or None.
        replayed_from: where the checkpoints lie, as asked for.
        strict: let what goes wrong out, for tests.
    """

    settings: Settings
    scope: Scope | ScopeLike
    stage: Stage | None
    initial_rms: Mapping[str, float] | None
    num_samples: int | None
    storage_options: Mapping[str, Any]
    executor: Executor | None
    window: int
    goes_on: bool
    directory: Path | None
    replayed_from: tuple[str, ...]
    strict: bool = False


@dataclass(frozen=True)
class Listeners:
    """Who is told what while a replay goes on.

    Args:
        on_failure: called with each checkpoint that could not be looked at.
        on_progress: called with how many checkpoints are done, and how many there are.
        on_waiting: called with why nothing can be listed yet.
    """

    on_failure: Sequence[Callable[[Failure], object]] = ()
    on_progress: Sequence[Callable[[int, int], object]] = ()
    on_waiting: Sequence[Callable[[str], object]] = ()

    def __post_init__(self) -> None:
        for name in ("on_failure", "on_progress", "on_waiting"):
            expect_functions(name, getattr(self, name))
