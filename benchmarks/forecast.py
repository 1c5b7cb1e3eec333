"""The forecast of near-zero weights, against what came.

python benchmarks/forecast.py [--small] [--save]

trains runs of the catalog under watch, a snapshot every 25 steps, and compares the step of doubling
that the records foresaw with the one that came. Even seeds were designed on, odd ones not.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from recording.catalog import EVERY, RunSpec, load, spec_of
from recording.labels import DECISIVE, crossing, split_of
from recording.recorder import Training
from recording.tasks import build
from reporting import Goal, Part, run, table

import sparsitywatch as sw
from sparsitywatch.records import Record

#: Steps before the doubling at which the forecast is read.
AHEAD = (500, 400, 300, 200, 100)
#: Advances of the clock at which later values are held against the band.
ADVANCES = (0.5, 1.0)
_STEADY = ("bert-relu-wd1", "vit-relu-wd1", "bert-relu-wd0.5")
_CHANGED = ("bert-switch-wd",)
_NEVER = ("bert-gelu-wd1",)
_EXPLANATION = (
    f"The step at which the share of weights near zero ({DECISIVE}) is twice its running floor, "
    "as foreseen so many steps before it, and the error in percent of that step; - where nothing "
    "was foreseen. *Inside*: share of later values inside the band, nominally 90 %, at so many "
    "units of the decay clock. A snapshot every 25 steps. Even seeds were designed on."
)


@dataclass(frozen=True)
class Score:
    """One run's forecasts against what came."""

    name: str
    split: str
    # step of doubling; None if there was none
    actual: int | None
    # foreseen step of doubling, as many steps ahead as AHEAD says
    predicted: tuple[float, ...]
    # share of the later values inside the band, by advance of the clock
    inside: tuple[float, ...]
    # snapshots that foresaw a doubling, before it or if none came
    num_alarms: int

    def error(self, ahead: int) -> float:
        """Percent of the actual step; NaN if nothing was foreseen."""
        if self.actual is None:
            return math.nan
        return 100.0 * (self.predicted[AHEAD.index(ahead)] / self.actual - 1.0)

    def row(self) -> list[str]:
        """Of the table."""
        shown = [
            "-" if math.isnan(step) else f"{step:.0f} ({self.error(ahead):+.1f} %)"
            for ahead, step in zip(AHEAD, self.predicted, strict=True)
        ]
        inside = ["-" if math.isnan(x) else f"{x:.0%}" for x in self.inside]
        actual = "-" if self.actual is None else str(self.actual)
        return [self.name, self.split, actual, *shown, *inside, str(self.num_alarms)]


def score(spec: RunSpec, records: Sequence[Record]) -> Score:
    """Hold the records' forecasts against the records that came later."""
    steps = np.array([r.step for r in records])
    values = np.array([r.near_zero[DECISIVE] for r in records])
    found = crossing(values, 2.0)
    actual = None if found is None else int(steps[found])
    foreseen = {r.step: r.forecast.doubling_step for r in records if r.forecast is not None}
    before = steps[-1] + 1 if actual is None else actual
    predicted = tuple(
        math.nan if actual is None else foreseen.get(actual - ahead, math.nan) for ahead in AHEAD
    )
    return Score(
        name=spec.name,
        split=split_of(spec.seed),
        actual=actual,
        predicted=predicted,
        inside=tuple(_share_inside(records, values, advance) for advance in ADVANCES),
        num_alarms=sum(math.isfinite(s) for step, s in foreseen.items() if step < before),
    )


def _share_inside(records: Sequence[Record], values: np.ndarray, advance: float) -> float:
    clock = np.array([r.decay_clock for r in records])
    inside = []
    for record in records:
        if record.forecast is None or record.decay_clock + advance > clock[-1]:
            continue
        _, low, high = record.forecast.at(advance)
        if math.isfinite(low):
            inside.append(low <= np.interp(record.decay_clock + advance, clock, values) <= high)
    return float(np.mean(inside)) if inside else math.nan


def _train(spec: RunSpec) -> list[Record]:
    task = build(spec)
    training = Training(task, spec)
    with sw.watch(
        task.model,
        training.optimizer,
        logdir=None,
        every=EVERY,
        near_zero=(DECISIVE,),
        detectors={},
        on_event=(),
        max_overhead=None,
    ) as watcher:
        while training.steps_done < spec.steps:
            training.step()
    return watcher.records


def _chosen(families: Sequence[str], seeds: Sequence[int]) -> list[RunSpec]:
    found = [spec_of(run) for run in load().values()]
    return [s for s in found if s.name.rpartition("-s")[0] in families and s.seed in seeds]


def _goals(scores: Sequence[Score]) -> list[Goal]:
    goals = []
    for split in ("design", "report"):
        steady = [s for s in scores if s.split == split and s.name.startswith(_STEADY)]
        errors = [abs(s.error(300)) for s in steady]
        if errors:
            worst = math.inf if any(math.isnan(e) for e in errors) else max(errors)
            what = f"steady schedule, {split}: largest error 300 steps ahead"
            goals.append(Goal(what, 15.0, worst, unit=" %"))
    return goals


def _measure(arguments: argparse.Namespace) -> tuple[str, list[Part]]:
    seeds = (0,) if arguments.small else (0, 1, 2, 3)
    families = _STEADY[:1] if arguments.small else (*_STEADY, *_CHANGED, *_NEVER)
    scores = []
    for spec in _chosen(families, seeds):
        scores.append(score(spec, _train(spec)))
        print(" | ".join(scores[-1].row()), flush=True)
    head = ["run", "split", "doubling", *(f"{a} ahead" for a in AHEAD)]
    head += [f"inside at +{x:g}" for x in ADVANCES] + ["snapshots that foresaw one"]
    rows = table(head, [s.row() for s in scores], left=2)
    title = "The forecast of near-zero weights, against what came"
    return title, [([_EXPLANATION, "", *rows], _goals(scores))]


if __name__ == "__main__":
    run("forecast", __doc__ or "", _measure)
