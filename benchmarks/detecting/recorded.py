"""Recorded runs as a detector would have seen them, and what its alarms are worth there.

A run is looked at every 25, 50, 100 and 200 steps, from each possible first snapshot, by each rule
for near-zero weights. What there is to see is told by the run's label, from all its snapshots:

- By a rule a run is a *take-off* if it reaches twice its floor and at some time
  exceeds the floor by the smallest change that matters, a *control* if it never reaches 1.5
  times the floor, and ambiguous between: there neither an alarm nor silence is wrong.
- A take-off *begins* after the last snapshot, before twice the floor, at which it is within a tenth
  of its floor, and is *visible* from the first of two snapshots in a row with 1.5 times the floor
  and the smallest change that matters above it.
- It is *caught* by an alarm that comes after it began, and either before it is 2.5 times its
  floor or among the first four snapshots from when it is visible: the earliest look at that
  cadence which can show it, and three more. One that never gets to 2.5 times its floor, may
  be caught until the end.
- An alarm before it begins is false, as is any on a control. Later ones count no further.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from recording.catalog import load
from recording.labels import crossing, running_floor

from detecting.detectors import MIN_EFFECT, Online
from detecting.series import Array

EVERY = (25, 50, 100, 200)
SPLITS = ("design", "report")
RULES = ("initial_0.1", "rms_0.1", "abs_0.001")
_NEAR_FLOOR = 1.1
_MORE_LOOKS = 3
#: Names of the recorded series by what a watch calls them.
CONTEXT = {"lr": "lr", "lr_clock": "lr_sum", "decay_clock": "motion/decay_clock"}


@dataclass(frozen=True)
class Truth:
    """What there is to see in one run by one rule; steps are of a take-off only."""

    # "take-off", "control" or "ambiguous"
    kind: str
    # step after which it rises, and the first one at which it can be seen
    began: int = 0
    visible: int = 0
    # of twice the floor, and of 2.5 times; infinite if it never gets there
    doubled: int = 0
    limit: float = math.inf


@dataclass(frozen=True)
class Case:
    """One run by one rule, as seen at one cadence from one first snapshot."""

    # of the run
    name: str
    split: str
    kind: str
    known_step: int | None
    # for near-zero weights
    rule: str
    # steps between snapshots, and how many of the recorded ones come before the first one
    every: int
    phase: int
    # of the snapshots
    steps: NDArray[np.int64]
    values: Array
    context: Mapping[str, Array]
    truth: Truth


@dataclass(frozen=True)
class Alarm:
    """An alarm, and since when it says that the series changes, if it does."""

    step: int
    onset: int | None = None
    onset_low: int | None = None
    onset_high: int | None = None


@dataclass(frozen=True)
class Verdict:
    """What the alarms of one case are worth."""

    case: Case
    alarms: tuple[Alarm, ...]
    # the one that caught a take-off
    caught: Alarm | None
    # on a control, or before a take-off began
    num_false: int

    @property
    def looks_late(self) -> float:
        """Snapshots from when it was visible to the alarm that caught it; NaN if none did."""
        if self.caught is None:
            return math.nan
        return (self.caught.step - self.case.truth.visible) / self.case.every


def cases(runs: Mapping[str, Mapping[str, Any]] | None = None) -> Iterator[Case]:
    """Every run, rule, cadence and first snapshot."""
    for name, run in (load() if runs is None else runs).items():
        steps, label = np.array(run["steps"]), run["label"]
        series = {key: np.array(x, np.float64) for key, x in run["series"].items()}
        advances = {e: np.array(run["estimated_advance"][str(e)], np.float64) for e in EVERY}
        for rule in RULES:
            values = series[f"near_zero/{rule}"]
            truth = truth_of(steps, values)
            for every in EVERY:
                apart = every // run["every"]
                for phase in range(apart):
                    seen = slice(phase, None, apart)
                    context = {key: series[told][seen] for key, told in CONTEXT.items()}
                    # as a replay without a schedule estimates it; a decay clock is believed first
                    context["estimated_advance"] = advances[every][seen]
                    yield Case(
                        name, run["split"], label["kind"], label["known_step"], rule, every, phase,
                        steps[seen], values[seen], context, truth,
                    )  # fmt: skip


def truth_of(steps: NDArray[np.int64], values: Array) -> Truth:
    """What all snapshots of a run show."""
    risen, doubled, tripled = (crossing(values, factor) for factor in (1.5, 2.0, 2.5))
    if risen is None:
        return Truth("control")
    floor = running_floor(values)
    above = (values >= 1.5 * floor) & (values - floor >= MIN_EFFECT)
    both = np.flatnonzero(above[:-1] & above[1:])
    if doubled is None or not len(both):
        return Truth("ambiguous")
    near = np.flatnonzero(~(values[:doubled] > _NEAR_FLOOR * floor[:doubled]))  # NaN is near
    return Truth(
        kind="take-off",
        began=int(steps[near[-1]]) if len(near) else 0,
        visible=int(steps[both[0]]),
        doubled=int(steps[doubled]),
        limit=math.inf if tripled is None else int(steps[tripled]),
    )


def replay(make: Callable[[float], Online], case: Case) -> tuple[Alarm, ...]:
    """The alarms of a fresh detector."""
    update = make(MIN_EFFECT)
    alarms = []
    for i, (step, value) in enumerate(zip(case.steps, case.values, strict=True)):
        context = {key: float(x[i]) for key, x in case.context.items() if math.isfinite(x[i])}
        found = update(int(step), float(value), context)
        if found:
            told = (getattr(found, key, None) for key in ("onset_step", "onset_low", "onset_high"))
            alarms.append(Alarm(int(step), *told))
    return tuple(alarms)


def judge(case: Case, alarms: Sequence[Alarm]) -> Verdict:
    """Hold the alarms of one case against the truth."""
    truth = case.truth
    if truth.kind != "take-off":
        return Verdict(case, tuple(alarms), None, len(alarms) if truth.kind == "control" else 0)
    allowed = case.steps[case.steps >= truth.visible][: _MORE_LOOKS + 1]
    last = int(allowed[-1]) if len(allowed) else -1
    caught = [
        a for a in alarms if a.step > truth.began and (a.step < truth.limit or a.step <= last)
    ]
    false = sum(a.step <= truth.began for a in alarms)
    return Verdict(case, tuple(alarms), caught[0] if caught else None, false)
