"""One look at one checkpoint; runs wherever an executor puts it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from sparsitywatch.analysis.overlap import MASK_LEVELS
from sparsitywatch.checkpoints.base import Checkpoint
from sparsitywatch.checkpoints.loading import load_into
from sparsitywatch.checkpoints.opening import open_checkpoint
from sparsitywatch.checkpoints.storage import one_line
from sparsitywatch.checkpoints.stored_snapshot import stored_snapshot
from sparsitywatch.errors import CheckpointError, IncompleteCheckpointError
from sparsitywatch.measurement import Measurement, Settings
from sparsitywatch.pruning.masked import MaskedModel
from sparsitywatch.records import Detail, Record, SparsityCurve
from sparsitywatch.replayer.stage import Stage
from sparsitywatch.shown import shown_url
from sparsitywatch.weights.sample import Sampler
from sparsitywatch.weights.scope import Scope
from sparsitywatch.weights.snapshot import Snapshot
from sparsitywatch.weights.spectrum import MagnitudeSpectrum
from sparsitywatch.weights.stored import LazyTensors

__all__ = ["Look", "Plan", "Task", "look", "sample", "unpacked"]

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
    dtypes = stored.tensors.dtypes
    tensors = LazyTensors(dtypes, lambda name: parameters[name].detach().to(dtypes[name]))
    return Snapshot(stored.step, stored.scope, tensors)
