"""Dormant weights as the early signal: how long before near-zero counts they alarm.

Where weights decay, a near-zero count doubles when dead units have decayed far enough, and
these are dormant long before. The lead is from the alarm on dormant weights to the step at which
near-zero weights are twice their floor. An alarm that comes only then, or never, is a miss. On
smooth activations, where no unit dies and nobody interfered, any alarm is false.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from recording.catalog import load
from recording.labels import DECISIVE
from reporting import Goal, table

from detecting.detectors import Online, early
from detecting.recorded import CONTEXT, EVERY, SPLITS
from detecting.work import Job, Plan, Results

TITLE = "Dormant weights, the early signal"
#: The smallest share of dormant weights that matters.
_MIN_EFFECT = 0.03
_SMOOTH = ("gelu", "silu")
_TRANSFORMERS = ("bert", "gpt", "vit")
_LEAD_STEPS = 300.0


@dataclass(frozen=True)
class Early:
    """The early signal on one run at one cadence."""

    name: str
    split: str
    # "dead units" (transformers with ReLU that take off by weight decay, also if it is switched on
    # late), "smooth" (no unit dies, nobody interfered) or "other": nothing is concluded from these
    group: str
    every: int
    # steps of the first alarm, and at which near-zero weights are twice their floor; None: never
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
    context = {key: np.array(run["series"][told], float)[at] for key, told in CONTEXT.items()}
    context["dormant_by_chance"] = np.array(seen["motion/dormant_by_chance"], float)
    update = make(_MIN_EFFECT)
    for i, step in enumerate(seen["steps"]):
        value = seen["motion/dormant"][i]
        told = {key: float(x[i]) for key, x in context.items() if math.isfinite(x[i])}
        if update(step, math.nan if value is None else value, told):
            return int(step)
    return None


def signals() -> list[Early]:
    """Those of the recorded runs."""
    return list(early_signals(early))


def jobs(_: Plan) -> list[Job]:
    """One."""
    return [Job(signals)]


def lines(results: Results) -> list[str]:
    """The step of the alarm, and its lead, of each run at each cadence."""
    found = results.flat(signals)
    rows = []
    for name in dict.fromkeys(e.name for e in found):
        of = [e for e in found if e.name == name]
        doubled = "-" if of[0].doubled is None else str(of[0].doubled)
        leads = ["" if math.isnan(e.lead) else f" ({e.lead:+.0f})" for e in of]
        cells = ["-" if e.alarm is None else str(e.alarm) for e in of]
        told = [cell + lead for cell, lead in zip(cells, leads, strict=True)]
        rows.append([name, of[0].split, of[0].group, doubled, *told])
    return table(["run", "split", "group", "2 x", *(f"every {n}" for n in EVERY)], rows, left=3)


def goals(results: Results) -> list[Goal]:
    """Of both splits; one that is missed leads by nothing."""
    found = []
    for split in SPLITS:
        of = [e for e in results.flat(signals) if e.split == split]
        dead = [e for e in of if e.group == "dead units"]
        smooth = [e for e in of if e.group == "smooth"]
        lead = statistics.median([0.0 if e.is_missed else e.lead for e in dead] or [0.0])
        missed = sum(e.is_missed for e in dead)
        false = sum(e.alarm is not None for e in smooth)
        what = f"dormant, {split}"
        found += [
            Goal(f"{what}: lead, median", _LEAD_STEPS, lead, False, " steps"),
            Goal(f"{what}: missed of {len(dead)}", 0.0, missed, unit=""),
            Goal(f"{what}: false alarms on {len(smooth)} smooth ones", 0.0, false, unit=""),
        ]
    return found
