"""One run under watch from its first step to its last: of its weights alone, or with a proxy."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import transformers
from pretrain_bert import lr_factor
from torch import nn

import sparsitywatch as sw
from recording.catalog import (
    APART,
    COARSER,
    DORMANT,
    EVERY,
    MEASURED,
    RULES,
    SERIES,
    Interference,
    RunSpec,
    Series,
    label,
)  # fmt: skip
from recording.labels import breakthrough, split_of
from recording.tasks import Task, build
from sparsitywatch.records import Record
from sparsitywatch.weights.motion import MotionTracker
from sparsitywatch.weights.scope import Scope


class Training:
    """The loop of every run: schedule, loss, clipping, interference, one step at a time."""

    def __init__(self, task: Task, spec: RunSpec) -> None:
        self._task, self._spec = task, spec
        model = task.model.train()
        parameters = list(model.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": spec.decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(groups, lr=spec.lr, momentum=0.9)
            if spec.optimizer == "sgd"
            else torch.optim.AdamW(groups, lr=spec.lr, betas=(0.9, 0.98))
        )
        names = {e.name for e in Scope.of(model, "blocks").ledger if e.in_scope}
        self._in_scope = [p for n, p in model.named_parameters() if n in names]
        self._cut: float | None = None
        self._kept: list[torch.Tensor] = []
        self.steps_done, self.lr_sum = 0, 0.0
        self.losses: list[torch.Tensor] = []
        # before the watch attaches: it looks at the weights as this leaves them
        self.optimizer.register_step_post_hook(lambda *_: self._interfere_with_weights())

    @property
    def _interference(self) -> Interference | None:
        event = self._spec.interference
        return event if event is not None and self.steps_done >= event.step else None

    def step(self) -> None:
        """One optimizer step, the learning rate set before."""
        spec, event = self._spec, self._interference
        factor = lr_factor(
            self.steps_done + 1, schedule=spec.schedule, warmup=spec.warmup, steps=spec.steps
        )
        if event and event.what == "lr" and self.steps_done < event.step + event.duration:
            factor *= event.amount
        for group in self.optimizer.param_groups:
            group["lr"] = spec.lr * factor
        if event and event.what == "decay":
            self.optimizer.param_groups[0]["weight_decay"] = event.amount
        loss = self._task.loss()
        self.losses.append(loss.detach())
        if event and event.what == "l1":
            penalty = torch.stack([p.abs().sum() for p in self._in_scope]).sum()
            loss = loss + event.amount * penalty
        loss.backward()  # type: ignore[no-untyped-call]
        if spec.clip:
            torch.nn.utils.clip_grad_norm_(self._task.model.parameters(), spec.clip)
        self.steps_done += 1
        self.lr_sum += spec.lr * factor
        self.optimizer.step()
        self.optimizer.zero_grad()

    def finite_step(self) -> None:
        """A step whose loss must be finite.

        Raises:
            FloatingPointError: it is not.
        """
        self.step()
        if not math.isfinite(float(self.losses[-1]) if self.losses else 0.0):
            raise FloatingPointError(f"the loss is not finite at step {self.steps_done}")

    @torch.no_grad()
    def _interfere_with_weights(self) -> None:
        event = self._interference
        if event is None or not event.what.startswith("prune"):
            return
        if not self._kept:
            magnitudes = torch.cat([p.abs().flatten() for p in self._in_scope])
            cut = magnitudes.kthvalue(round(event.amount * len(magnitudes))).values
            self._kept = [p.abs() > cut for p in self._in_scope]
        elif event.what == "prune":
            return
        for p, kept in zip(self._in_scope, self._kept, strict=True):
            p.mul_(kept)


class _Estimated:
    """How far the decay clock advanced since earlier looks, as a replay without schedule tells."""

    def __init__(self, model: nn.Module) -> None:
        self._scope, self._model = Scope.of(model, "blocks"), model
        self._trackers = {apart: [MotionTracker(None) for _ in range(apart)] for apart in APART}
        self.advances: dict[str, list[float | None]] = {str(EVERY * apart): [] for apart in APART}

    def look(self, step: int) -> None:
        """Estimate it since the look before, and since the 2nd, 4th and 8th before."""
        parameters = dict(self._model.named_parameters())
        sample = {
            name: parameters[name].detach().flatten().clone() for name, _ in self._scope.sizes
        }
        for apart, trackers in self._trackers.items():
            moved = trackers[step // EVERY % apart].compare(step, sample)
            self.advances[str(EVERY * apart)].append(rounded(moved.dormant.estimated_advance))


def record(spec: RunSpec) -> dict[str, Any]:
    """Train a run under watch; what is stored."""
    task = build(spec)
    training = Training(task, spec)
    steps: list[int] = []
    series: Series = {}
    coarser: dict[str, dict[str, list[float | None]]] = {}
    estimated = _Estimated(task.model)

    def on_record(record: Record) -> None:
        steps.append(record.step)
        estimated.look(record.step)
        told = record.series()
        values = {name: told.get(name, math.nan) for name in SERIES}
        values["lr"] = float(training.optimizer.param_groups[0]["lr"])
        values["lr_sum"] = training.lr_sum
        values["loss"] = float(torch.stack(training.losses).mean()) if training.losses else math.nan
        training.losses.clear()
        if task.accuracy is not None:
            values["validation_accuracy"] = task.accuracy()
        for name, value in values.items():
            series.setdefault(name, []).append(rounded(value))

    watchers = [_watch(task, training, EVERY, on_record)]
    for every in COARSER:
        seen = coarser[str(every)] = {name: [] for name in ("steps", *DORMANT)}
        watchers.append(_watch(task, training, every, functools.partial(_note, seen)))
    while training.steps_done < spec.steps:
        training.finite_step()
    for watcher in watchers:
        watcher.close()
    return {
        **_stored(spec, label(spec, steps, series), steps, series),
        "num_weights": watchers[0].records[-1].scope.num_weights,
        "estimated_advance": estimated.advances,
        "dormant_further_apart": coarser,
    }


def _stored(
    spec: RunSpec, label: dict[str, Any], steps: list[int], series: Series
) -> dict[str, Any]:
    """What every file has."""
    return {
        "name": spec.name,
        "split": split_of(spec.seed),
        "label": label,
        "run": dataclasses.asdict(spec),
        "versions": {of.__name__: str(of.__version__) for of in (sw, torch, transformers)},
        "every": EVERY,
        "steps": steps,
        "series": series,
    }


def _note(seen: dict[str, list[float | None]], record: Record) -> None:
    """Keep what is dormant."""
    told = record.series()
    seen["steps"].append(record.step)
    for name in DORMANT:
        seen[name].append(rounded(told.get(name, math.nan)))


def _watch(task: Task, training: Training, every: int, on_record: Any) -> sw.Watcher:
    return sw.watch(
        task.model, training.optimizer, logdir=None, every=every, near_zero=RULES, detectors={},
        on_event=(), on_record=[on_record], max_overhead=None, strict=True,
        background=False,  # on_record sees the optimizer as it is at the look
    )  # fmt: skip


def rounded(x: float) -> float | None:
    """To six digits; None if it is not finite."""
    return float(f"{x:.6g}") if math.isfinite(x) else None


# ------------------------------------------------------------------ with a proxy

#: So many looks follow the breakthrough: what is seen later comes too late.
_LOOKS_AFTER = 6
#: A model that never leaves its plateau is recorded so long.
_MOST_STEPS = 1200


class _Told(sw.detectors.Detector):
    """Stands where a detector would, and keeps what that would have been told."""

    def __init__(self) -> None:
        self.latest: tuple[float, float, float] | None = None

    def update(self, step: int, value: float, context: Mapping[str, float] | None = None) -> None:
        """Keep a value and its interval."""
        del step
        assert context is not None
        self.latest = value, context.get("low", math.nan), context.get("high", math.nan)

    def state_dict(self) -> dict[str, Any]:
        """Nothing is needed to go on."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """There is nothing to go on from."""


def record_with_proxy(spec: RunSpec) -> dict[str, Any]:
    """Train a masked language model under a watch with a proxy until it has left its plateau."""
    task = build(spec)
    training, told = Training(task, spec), {name: _Told() for name in MEASURED}
    steps: list[int] = []
    series: Series = {}

    def on_record(record: Record) -> None:
        steps.append(record.step)
        values = {"loss": float(torch.stack(training.losses).mean())}
        training.losses.clear()
        for name, one in told.items():
            found, one.latest = one.latest or 3 * (math.nan,), None
            values |= zip((name, f"{name}/low", f"{name}/high"), found, strict=True)
        for name, value in values.items():
            series.setdefault(name, []).append(rounded(value))

    def left_at() -> int | None:
        losses = {"loss": np.array(series.get("loss", ()), np.float64)}
        return breakthrough(np.array(steps), losses)

    assert task.proxy is not None
    with sw.watch(
        task.model, training.optimizer, logdir=None, proxy=task.proxy(), every=EVERY,
        detectors=told, on_event=(), on_record=[on_record], max_overhead=None, strict=True,
        background=False,  # the losses are those up to the look
    ):  # fmt: skip
        while training.steps_done < _end(left_at()):
            training.finite_step()
    return _stored(spec, {"breakthrough": left_at()}, steps, series)


def _end(left: int | None) -> int:
    return _MOST_STEPS if left is None else left + EVERY * _LOOKS_AFTER
