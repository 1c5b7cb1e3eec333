"""A masked language model as a watch with a proxy measures it, until it has left its plateau."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sparsitywatch as sw
from recording.catalog import RunSpec
from recording.labels import breakthrough, split_of
from recording.recorder import EVERY, Training, rounded, versions
from recording.tasks import build
from sparsitywatch.records import Record

__all__ = ["FOLDER", "MEASURED", "record"]

FOLDER = Path(__file__).parents[1] / "recorded" / "proxy"
#: What is measured, each with both ends of the 90 percent interval that a detector is told.
MEASURED = ("essential_sparsity/value", "value/reliance")
#: So many looks follow the breakthrough: what is seen later comes too late.
_LOOKS_AFTER = 6
#: A model that never leaves its plateau is recorded so long.
_MOST_STEPS = 1200


class _Told:
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


def record(spec: RunSpec) -> dict[str, Any]:
    """Train a run under a watch with a proxy, at the defaults of a watch.

    Returns:
        What is stored.

    Raises:
        FloatingPointError: the loss is not finite any more.
    """
    task = build(spec)
    training, told = Training(task, spec), {name: _Told() for name in MEASURED}
    steps: list[int] = []
    series: dict[str, list[float | None]] = {}

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
    watcher = sw.watch(
        task.model, training.optimizer, logdir=None, proxy=task.proxy(), every=EVERY,
        detectors=told, on_event=(), on_record=[on_record], max_overhead=None,
        background=False,  # the losses are those up to the look
        strict=True,
    )  # fmt: skip
    with watcher:
        while training.steps_done < _end(left_at()):
            for _ in range(EVERY):
                training.step()
            if series["loss"][-1] is None:
                raise FloatingPointError(f"the loss is not finite at step {training.steps_done}")
    return {
        "name": spec.name,
        "split": split_of(spec.seed),
        "label": {"breakthrough": left_at()},
        "run": dataclasses.asdict(spec),
        "versions": versions(),
        "every": EVERY,
        "steps": steps,
        "series": series,
    }


def _end(left: int | None) -> int:
    return _MOST_STEPS if left is None else left + EVERY * _LOOKS_AFTER
