"""Dormant weights as the early signal: how long before near-zero counts they alarm.

Where weights decay, a near-zero count doubles when dead units have decayed far enough, and
these are dormant long before. The lead is from the alarm on dormant weights to the step at which
near-zero weights are twice their floor. An alarm that comes only then, or never, is a miss. On
smooth activations, where no unit dies and nobody interfered, any alarm is false.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from recording.labels import DECISIVE
from recording.table import load

from detecting.ours import Online
from detecting.recorded import EVERY

__all__ = ["Early", "early_signals"]

#: The smallest share of dormant weights that matters.
_MIN_EFFECT = 0.03
_SMOOTH, _TRANSFORMERS = ("gelu", "silu"), ("bert", "gpt", "vit")
_CONTEXT = {"lr": "lr", "lr_clock": "lr_sum", "decay_clock": "motion/decay_clock"}


@dataclass(frozen=True)
class Early:
    """The early signal on one run at one cadence.

    Args:
        name, split: of the run.
        group: "dead units" (transformers with ReLU that take off by weight decay, also if it
            is switched on late), "smooth" (no unit dies, nobody interfered) or "other", from
            which nothing is concluded.
        every: steps between snapshots.
        alarm: step of the first alarm; None if there was none.
        doubled: step at which near-zero weights are twice their floor; None if never.
    """

    name: str
    split: str
    group: str
    every: int
    alarm: int | None
    doubled: int | None

    @property
    def lead(self) -> float:
        """Steps from the alarm to the doubling; NaN if one of them never came."""
        if self.alarm is None or self.doubled is None:
            return math.nan
        return float(self.doubled - self.alarm)

    @property
    def is_missed(self) -> bool:
        """Whether there was a doubling and no alarm before it."""
        return self.doubled is not None and not self.lead > 0


def early_signals(
    make: Callable[[float], Online], runs: Mapping[str, Mapping[str, Any]] | None = None
) -> Iterator[Early]:
    """Every run at every cadence, if its optimizer let dormant weights be told."""
    for name, run in (load() if runs is None else runs).items():
        if run["label"]["dormant"] is None:
            continue
        for every in EVERY:
            yield Early(
                name=name,
                split=run["split"],
                group=_group(run),
                every=every,
                alarm=_first_alarm(make, run, every),
                doubled=run["label"]["near_zero"][DECISIVE]["steps"]["2.0"],
            )


def _group(run: Mapping[str, Any]) -> str:
    spec, told = run["run"], run["label"]["near_zero"][DECISIVE]["steps"]
    done = None if spec["interference"] is None else spec["interference"]["what"]
    if spec["model"] not in _TRANSFORMERS:
        return "other"
    if spec["activation"] in _SMOOTH:
        return "smooth" if done is None else "other"
    return "dead units" if told["2.0"] is not None and done in (None, "decay") else "other"


def _first_alarm(make: Callable[[float], Online], run: Mapping[str, Any], every: int) -> int | None:
    seen: Mapping[str, Any] = (
        {"steps": run["steps"], **run["series"]}
        if every == run["every"]
        else run["dormant_further_apart"][str(every)]
    )
    at = np.searchsorted(run["steps"], seen["steps"])
    context = {key: np.array(run["series"][told], float)[at] for key, told in _CONTEXT.items()}
    context["dormant_by_chance"] = np.array(seen["motion/dormant_by_chance"], float)
    update = make(_MIN_EFFECT)
    for i, step in enumerate(seen["steps"]):
        value = seen["motion/dormant"][i]
        told = {key: float(x[i]) for key, x in context.items() if math.isfinite(x[i])}
        if update(step, math.nan if value is None else value, told):
            return int(step)
    return None
