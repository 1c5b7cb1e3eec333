"""Take-offs of the recorded runs: those that are caught at each cadence, and false alarms.

Seen every 25, 50, 100 and 200 steps, from each possible first snapshot, by three rules for
near-zero weights. Caught: after the rise begins, and before 2.5 times the floor or among the first
four snapshots that can show it. Even seeds were designed on, odd ones not. Controls never reach 1.5
times their floor, so that a rule which asks for that cannot be false on them.

*Told* some things alone: ours from the first snapshot on, without the learning rate. *Estimated
clock*: as a replay that knows no schedule, from how much weights without gradient shrink between
two snapshots. *Decay clock*: the most that such an estimate can tell.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace

from reporting import Goal, table

from detecting.detectors import DETECTORS, OURS, ours
from detecting.recorded import EVERY, SPLITS, Case, Verdict, cases, judge, replay
from detecting.work import Job, Plan, Results

TITLE = "Recorded runs"
#: What is told of the context, and what that is called.
_TOLD = {
    (): "nothing told",
    ("estimated_advance",): "by the estimated clock",
    ("decay_clock",): "by the decay clock",
}
_CAUGHT_PERCENT = 95.0
_SPREAD_PERCENT = 10.0


def judged(detector: str, thinned: int) -> list[Verdict]:
    """A verdict on each case of the recorded runs, or of every so many of them."""
    make = DETECTORS[detector].online
    assert make is not None
    return [judge(case, replay(make, case)) for case in _cases(thinned)]


def bare(told: tuple[str, ...], thinned: int) -> list[Verdict]:
    """Ours, told only some things, from the first snapshot on."""
    first = [case for case in _cases(thinned) if not case.phase]
    seen = [replace(c, context={key: c.context[key] for key in told}) for c in first]
    return [judge(case, replay(ours, case)) for case in seen]


def _cases(thinned: int) -> list[Case]:
    found = list(cases())
    names = list(dict.fromkeys(case.name for case in found))[::thinned]
    return [case for case in found if case.name in names]


def jobs(plan: Plan) -> list[Job]:
    """Every detector that sees one snapshot after the other."""
    thinned = 4 if plan.small else 1
    names = [OURS] if plan.alone else DETECTORS
    found = [Job(judged, (name, thinned)) for name in names if DETECTORS[name].online]
    return [*found, *(Job(bare, (told, thinned)) for told in _TOLD)]


def of_ours(results: Results) -> list[Verdict]:
    """With the whole context."""
    return next(found for (name, _), found in results.of(judged) if name == OURS)


def takeoffs(verdicts: Iterable[Verdict], **of: object) -> list[Verdict]:
    """The verdicts on take-offs whose case has these attributes."""
    return [
        v
        for v in verdicts
        if v.case.truth.kind == "take-off"
        and all(getattr(v.case, key) == value for key, value in of.items())
    ]


def spread_of(verdicts: Sequence[Verdict]) -> float:
    """How far the alarms of one take-off at the cadences are apart: NaN if one has none.

    At each cadence the median over first snapshots counts; the largest minus the smallest, in parts
    of their median.
    """
    medians = []
    for every in EVERY:
        steps = [v.caught.step for v in verdicts if v.case.every == every and v.caught]
        if not steps:
            return math.nan
        medians.append(statistics.median(steps))
    return (max(medians) - min(medians)) / statistics.median(medians)


def spreads(verdicts: Sequence[Verdict]) -> list[float]:
    """``spread_of`` each take-off that is caught at every cadence."""
    found = takeoffs(verdicts)
    keys = dict.fromkeys((v.case.name, v.case.rule) for v in found)
    each = [spread_of(takeoffs(found, name=name, rule=rule)) for name, rule in keys]
    return [x for x in each if not math.isnan(x)]


def lines(results: Results) -> list[str]:
    """Every detector on both splits: caught at each cadence, and false alarms."""
    named = [(name, found) for (name, _), found in results.of(judged)]
    named += [(f"{OURS}, {_TOLD[told]}", found) for (told, _), found in results.of(bare)]
    rows = []
    for name, verdicts in named:
        for split in SPLITS:
            of = [v for v in verdicts if v.case.split == split]
            late = [v.looks_late for v in takeoffs(of) if v.caught]
            controls = [v for v in of if v.case.truth.kind == "control"]
            looks = sum(len(v.case.steps) for v in controls)
            shares = [takeoffs(of, every=every) for every in EVERY]
            rows.append(
                [
                    *(name, split),
                    *(f"{sum(v.caught is not None for v in x)} of {len(x)}" for x in shares),
                    f"{statistics.median(late):.0f}" if late else "-",
                    f"{sum(v.num_false for v in controls)} in {looks} snapshots",
                    str(sum(v.num_false for v in takeoffs(of))),
                ]
            )
    head = ["detector", "runs", *(f"caught at {every}" for every in EVERY)]
    head += ["snapshots late, median", "false on controls", "too early"]
    return table(head, rows, left=2)


def goals(results: Results) -> list[Goal]:
    """Of ours, and of ours that is told little."""
    found = []
    for split in SPLITS:
        of = [v for v in of_ours(results) if v.case.split == split]
        what = f"recorded, {split}"
        found += _caught(of, what)
        apart = 100.0 * statistics.median(spreads(of) or [math.inf])
        what = f"{what}: alarms at the cadences apart, median"
        found.append(Goal(what, _SPREAD_PERCENT, apart, unit=" %"))
    for (told, _), verdicts in results.of(bare):
        for split in SPLITS if told != ("decay_clock",) else ():
            of = [v for v in verdicts if v.case.split == split]
            found += _caught(of, f"recorded, {_TOLD[told]}, {split}")
    return found


def _caught(verdicts: Sequence[Verdict], of: str) -> list[Goal]:
    """At each cadence, and false alarms."""
    goals = []
    for every in EVERY:
        found = takeoffs(verdicts, every=every)
        caught = 100.0 * sum(v.caught is not None for v in found) / max(len(found), 1)
        what = f"{of}: take-offs caught at {every} steps"
        goals.append(Goal(what, _CAUGHT_PERCENT, caught, False, " %"))
    false = sum(v.num_false for v in verdicts)
    return [*goals, Goal(f"{of}: false alarms", 0.0, false, unit="")]
