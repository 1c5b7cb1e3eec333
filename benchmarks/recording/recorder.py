"""One run from its first step to its file."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

import torch
import transformers
from pretrain_bert import lr_factor
from torch import nn

import sparsitywatch as sw
from recording.catalog import Interference, RunSpec
from recording.labels import label_of, split_of
from recording.tasks import Task, build
from sparsitywatch.records import Record
from sparsitywatch.weights.motion import MotionTracker
from sparsitywatch.weights.scope import Scope

__all__ = [
    "APART", "DORMANT", "EVERY", "SERIES", "Training", "label", "lr_factor", "record", "rounded",
    "versions", "write",
]  # fmt: skip

#: Steps between two looks, and between those of the watches that see dormant weights from
#: further apart: the one series that cannot be thinned out afterwards.
EVERY, COARSER = 25, (50, 100, 200)
#: In looks, every distance that a series is seen at: how far the decay clock advanced, as a replay
#: estimates it, depends on it, too.
APART = (1, *(every // EVERY for every in COARSER))
_RULES = ("initial_0.1", "rms_0.1", "abs_0.001")
#: What is dormant, and how much of it by chance; both depend on the look before.
DORMANT = ("motion/dormant", "motion/dormant_by_chance")
SERIES = (*(f"near_zero/{rule}" for rule in _RULES), *DORMANT, "motion/decay_clock")

Series = dict[str, list[float | None]]


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
    """Train a run under watch.

    Returns:
        What is stored.

    Raises:
        FloatingPointError: the loss is not finite any more.
    """
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
        training.step()
        if not math.isfinite(float(training.losses[-1]) if training.losses else 0.0):
            raise FloatingPointError(f"the loss is not finite at step {training.steps_done}")
    for watcher in watchers:
        watcher.close()
    return {
        "name": spec.name,
        "split": split_of(spec.seed),
        "label": label(spec, steps, series),
        "run": dataclasses.asdict(spec),
        "num_weights": watchers[0].records[-1].scope.num_weights,
        "versions": versions(),
        "every": EVERY,
        "steps": steps,
        "series": series,
        "estimated_advance": estimated.advances,
        "dormant_further_apart": coarser,
    }


def _note(seen: dict[str, list[float | None]], record: Record) -> None:
    """Keep what is dormant."""
    told = record.series()
    seen["steps"].append(record.step)
    for name in DORMANT:
        seen[name].append(rounded(told.get(name, math.nan)))


def versions() -> dict[str, str]:
    """Of what a recording was made with."""
    return {module.__name__: str(module.__version__) for module in (sw, torch, transformers)}


def _watch(task: Task, training: Training, every: int, on_record: Any) -> sw.Watcher:
    return sw.watch(
        task.model,
        training.optimizer,
        logdir=None,
        proxy=None,
        every=every,
        near_zero=_RULES,
        detectors={},
        on_event=(),
        on_record=[on_record],
        max_overhead=None,
        background=False,  # on_record sees the optimizer as it is at the look
        strict=True,
    )


def label(spec: RunSpec, steps: list[int], series: Series) -> dict[str, Any]:
    """What the rules say about a run's series."""
    event = spec.interference
    return label_of(
        steps,
        series,
        interference=event.kind if event else "",
        known_step=event.step if event else None,
    )


def write(run: dict[str, Any], path: Path) -> None:
    """One line a series; whole or not at all."""
    flat = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
    nested = [key for key in ("series", "estimated_advance", "dormant_further_apart") if key in run]
    head = {k: v for k, v in run.items() if k not in ("steps", *nested)}
    lines = [f"{json.dumps(k)}: {flat.encode(v)}" for k, v in head.items()]
    lines.append(f'"steps": {flat.encode(run["steps"])}')
    for key in nested:
        inner = (f"{json.dumps(k)}: {flat.encode(v)}" for k, v in run[key].items())
        lines.append(f'"{key}": {{\n  ' + ",\n  ".join(inner) + "\n }")
    text = "{\n " + ",\n ".join(lines) + "\n}\n"
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)


def rounded(x: float) -> float | None:
    """To six digits; None if it is not finite."""
    return float(f"{x:.6g}") if math.isfinite(x) else None
