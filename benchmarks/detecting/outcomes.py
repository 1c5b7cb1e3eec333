"""What the detectors say of series of all kinds, to see what is otherwise with another number.

They are made-up ones of design seeds, also upside down, growth at several cadences, and recorded
design runs. Each detector is looked at on what it is for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
from recording.table import load

from detecting import jumps, kinds, measured, slow
from detecting.cadences import SHAPES, growth
from detecting.ours import MIN_EFFECT
from detecting.recorded import cases
from detecting.scoring import judge
from detecting.series import Series
from sparsitywatch.analysis import detect

__all__ = ["DETECTORS", "Outcome", "changed", "outcomes"]

#: Modules with a detector: of any series, of measured numbers, of dormant weights.
DETECTORS = ("detector", "measured", "dormant")

#: Growth is looked at that is no line: with so many snapshots it is most of the time that it takes.
_SHAPES = SHAPES[::2]
#: Recorded runs are looked at so often, by one rule.
_EVERY, _RULE = 200, "initial_0.1"
#: Numbers are compared to so many digits: rounding is no other outcome.
_DIGITS = 4


@dataclass(frozen=True)
class Outcome:
    """What is said of one series.

    Args:
        alarms: step, direction and kind of each event.
        told: all else that is said: onset, interval, baseline, noise, what is suspicious.
        num_missed, num_false: changes that are not seen, and alarms that are false.
    """

    alarms: tuple[Any, ...]
    told: tuple[Any, ...]
    num_missed: int = 0
    num_false: int = 0


def outcomes(
    seeds: Sequence[int],
    longest: int,
    package: ModuleType = detect,
    modules: Container[str] = DETECTORS,
) -> dict[str, Outcome]:
    """The outcome of each series.

    Args:
        seeds: of the made-up ones.
        longest: those of more snapshots are left out; growth has four times as many.
        package: the detectors.
        modules: of the detectors that are looked at.
    """
    watched = [_of_any, _of_measured, _of_dormant]
    return {
        f"{name} {series.family} {series.seed}": _outcome(make(), series, is_judged=name in _JUDGED)
        for module, of in zip(DETECTORS, watched, strict=True)
        if module in modules
        for name, make, series in of(seeds, longest, package)
    }


#: A name, what makes the detector, and the series that it watches.
_Watched = Iterator[tuple[str, Callable[[], Any], Series]]
#: The truth is known of these.
_JUDGED = ("standard", "hard", "slow", "quiet")


def _of_any(seeds: Sequence[int], longest: int, package: ModuleType) -> _Watched:
    made: list[tuple[str, Series]] = []
    for difficulty in ("standard", "hard"):
        for series in jumps.suite(seeds, difficulty):
            made += [(difficulty, series), (f"{difficulty} upside down", _upside_down(series))]
    made += [("slow", series) for series in slow.suite(seeds)]
    made += [("quiet", series) for kind in kinds.KINDS for series in kinds.suite(seeds, kind)]
    made = [(name, series) for name, series in made if len(series.values) <= longest]
    made += [("growth", growth(shape, 4 * longest, seeds[0])) for shape in _SHAPES]
    for case in cases():
        if (case.split, case.every, case.phase, case.rule) == ("design", _EVERY, 0, _RULE):
            made.append(
                ("recorded", Series(case.name, 0, case.steps, case.values, context=case.context))
            )
    for name, series in made:
        yield name, partial(package.AbruptChange, MIN_EFFECT * series.unit), series


def _of_measured(seeds: Sequence[int], _: int, package: ModuleType) -> _Watched:
    for series in measured.measured(seeds):
        yield "essential sparsity", package.MeasuredChange, series
        yield "reliance", partial(package.MeasuredChange, ratio=2.5), series


def _of_dormant(seeds: Sequence[int], _: int, package: ModuleType) -> _Watched:
    for series in (*measured.dormant(seeds), *_recorded_dormant()):
        yield "dormant", package.DormantRise, series


def _recorded_dormant() -> Iterator[Series]:
    for name, run in load().items():
        if run["split"] == "design":
            apart = slice(None, None, _EVERY // run["every"])
            steps = np.array(run["steps"])[apart]
            values, clock = (
                np.array(run["series"][key], np.float64)[apart]
                for key in ("motion/dormant", "motion/decay_clock")
            )
            yield Series(name, 0, steps, values, context={"decay_clock": clock})


def _upside_down(series: Series) -> Series:
    """The same with falls for rises."""
    top = float(np.nanmax(series.values) + np.nanmin(series.values))
    return replace(series, values=top - series.values)


def _outcome(detector: Any, series: Series, *, is_judged: bool) -> Outcome:
    alarms, told, rises = [], [], []
    for i, (step, value) in enumerate(zip(series.steps, series.values, strict=True)):
        context = {k: x for k, x in (series.context_at(i) or {}).items() if math.isfinite(x)}
        event = detector.update(int(step), float(value), context)
        told.append(getattr(detector, "is_suspicious", False))
        if event is not None:
            alarms.append((event.detected_step, event.direction, event.kind))
            told += [_rounded(x) for x in asdict(event).values()]
            rises += [i] if event.direction == "up" else []
    if not is_judged:
        return Outcome(tuple(alarms), tuple(told))
    judged = judge(series, rises)
    missed = int(judged.changes and judged.delay is None)
    return Outcome(tuple(alarms), tuple(told), missed, judged.num_false)


def _rounded(value: Any) -> Any:
    return f"{value:.{_DIGITS}g}" if isinstance(value, float) else value


def changed(before: dict[str, Outcome], now: dict[str, Outcome]) -> str:
    """In how many series alarms are others, or what is told; how many more are missed and false.

    Of the series that were looked at now.
    """
    alarms = sum(before[name].alarms != now[name].alarms for name in now)
    differ = sum(before[name] != now[name] for name in now)
    if not differ:
        return "nothing"
    parts = [f"{alarms} alarms"] if alarms else []
    parts += [f"{differ - alarms} told"] if differ > alarms else []
    for what in ("missed", "false"):
        more = sum(getattr(now[n], f"num_{what}") - getattr(before[n], f"num_{what}") for n in now)
        parts += [f"{what} {more:+d}"] if more else []
    return ", ".join(parts)
