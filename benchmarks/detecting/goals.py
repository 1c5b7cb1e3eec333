"""What the detector has to reach."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from reporting import Goal

from detecting.breakthroughs import Left
from detecting.cadences import SHAPES, Seen, spread_of
from detecting.early import Early
from detecting.recorded import EVERY, Verdict
from detecting.tables import SPLITS, spreads, takeoffs
from detecting.work import OURS, Results
from detecting.zoo import Tried

__all__ = ["goals_of"]

#: F1, recall, median and 90th percentile of the delay, false alarms per 1000 snapshots.
_MADE = {
    "easy": (0.98, 0.98, 2.0, 3.0, 0.10),
    "standard": (0.965, 0.94, 2.0, 4.0, 0.10),
    "hard": (0.75, 0.65, 3.0, 5.0, 0.15),
    "slow": (0.93, 0.95, None, None, 0.20),
}
#: Share of 90 % onset intervals that hold the onset.
_HELD_PERCENT = (85.0, 95.0)
_CAUGHT_PERCENT = 95.0
#: Falls of essential sparsity to be seen, of so many breakthroughs.
_FALLS, _OF_BREAKTHROUGHS = 11, 13
_ADDED_PERCENT = 10.0
_SPREAD_PERCENT = 10.0
_LEAD_STEPS = 300.0
_MAX_MS = 2.0


def goals_of(results: Results) -> list[Goal]:
    """All of them, the recorded runs first."""
    goals = [
        *_real(results.real[OURS]), *_bare(results), *_left(results.left),
        *_early(results.early), *_grown(results.grown),
    ]  # fmt: skip
    for suite in _MADE:
        goals += [*_made(results, suite), *_rate_told(results, suite), *_held(results, suite)]
    for told in sorted(results.told, key=lambda t: (t.where, t.asked)):
        if told.where != "recorded controls" and told.is_within_factor_two is not None:
            on = "" if told.where == "made up" else f" on {told.where} series"
            goals.append(Goal(f"asked for {told.asked:g} per 1000{on}: off by", 2.0, told.off_by))
    goals += _tried(results.tried)
    cost = results.cost
    if cost is not None:
        goals.append(Goal("time a snapshot", _MAX_MS, 1000.0 * cost.detection, unit=" ms"))
        what = f"vital signs and detection, on a snapshot of {cost.num_layers} layers"
        goals.append(Goal(what, _ADDED_PERCENT, cost.added_percent, unit=" % more"))
    return goals


def _real(verdicts: Sequence[Verdict]) -> list[Goal]:
    goals = []
    for split in SPLITS:
        of = [v for v in verdicts if v.case.split == split]
        goals += _caught(of, f"recorded, {split}")
        false = sum(v.num_false for v in of)
        goals.append(Goal(f"recorded, {split}: false alarms", 0.0, false, unit=""))
        found_spreads = spreads(of)
        spread = 100.0 * statistics.median(found_spreads) if found_spreads else math.inf
        what = f"recorded, {split}: alarms at the cadences apart, median"
        goals.append(Goal(what, _SPREAD_PERCENT, spread, unit=" %"))
    return goals


def _caught(verdicts: Sequence[Verdict], of: str) -> list[Goal]:
    """At each cadence."""
    goals = []
    for every in EVERY:
        found = takeoffs(verdicts, every=every)
        caught = 100.0 * sum(v.caught is not None for v in found) / max(len(found), 1)
        what = f"{of}: take-offs caught at {every} steps"
        goals.append(Goal(what, _CAUGHT_PERCENT, caught, at_most=False, unit=" %"))
    return goals


def _bare(results: Results) -> list[Goal]:
    """What a replay without a schedule sees, and what the series alone show."""
    goals = []
    for told, words in ((("estimated_advance",), "by the estimated clock"), ((), "nothing told")):
        verdicts = results.bare.get(told, ())
        for split in SPLITS if verdicts else ():
            of, what = (
                [v for v in verdicts if v.case.split == split],
                f"recorded, {words}, {split}",
            )
            false = sum(v.num_false for v in of)
            goals += [*_caught(of, what), Goal(f"{what}: false alarms", 0.0, false, unit="")]
    return goals


def _left(found: Sequence[Left]) -> list[Goal]:
    finest = [left for left in found if left.every == min(x.every for x in found)]
    breaks = [left for left in finest if left.at is not None]
    if not breaks:
        return []
    reach = math.ceil(len(breaks) * _FALLS / _OF_BREAKTHROUGHS)
    seen = sum(left.is_seen for left in breaks)
    false = sum(len(left.fell) + left.num_others for left in finest if left.at is None)
    what = f"essential sparsity's fall seen in time at {len(breaks)} breakthroughs"
    num_controls = len(finest) - len(breaks)
    return [
        Goal(what, reach, seen, at_most=False, unit=""),
        Goal(f"events of essential sparsity on {num_controls} controls", 0.0, false, unit=""),
    ]


def _early(signals: Sequence[Early]) -> list[Goal]:
    goals = []
    for split in SPLITS:
        dead = [e for e in signals if e.group == "dead units" and e.split == split]
        smooth = [e for e in signals if e.group == "smooth" and e.split == split]
        # one that is missed leads by nothing
        leads = [0.0 if e.is_missed else e.lead for e in dead]
        lead = statistics.median(leads) if leads else 0.0
        what = f"dormant, {split}"
        goals += [
            Goal(f"{what}: lead, median", _LEAD_STEPS, lead, at_most=False, unit=" steps"),
            Goal(f"{what}: missed of {len(dead)}", 0.0, sum(e.is_missed for e in dead), unit=""),
            Goal(
                f"{what}: false alarms on {len(smooth)} smooth ones",
                0.0,
                sum(e.alarm is not None for e in smooth),
                unit="",
            ),
        ]
    return goals


def _grown(seen: Sequence[Seen]) -> list[Goal]:
    if not seen:
        return []
    wrong = sum(not one.is_right for one in seen)
    spread = max(spread_of([one for one in seen if one.shape == shape]) for shape in SHAPES)
    return [
        Goal(f"growth over half of a run: missed or misdated of {len(seen)}", 0.0, wrong, unit=""),
        Goal("growth over half of a run: alarms apart", 15.0, 100.0 * spread, unit=" %"),
    ]


def _made(results: Results, suite: str) -> list[Goal]:
    found = results.merged(OURS, suite)
    f1, recall, median, late, false = _MADE[suite]
    goals = [
        Goal(f"{suite}: F1", f1, found.f1, at_most=False, unit=""),
        Goal(f"{suite}: recall", recall, found.recall, at_most=False, unit=""),
        Goal(f"{suite}: false alarms per 1000", false, found.false_per_1000, unit=""),
    ]
    for percentile, most in ((50, median), (90, late)):
        if most is not None:
            what = f"{suite}: {percentile} % of the delays"
            goals.append(Goal(what, most, found.delay(percentile), unit=" snapshots"))
    return goals


def _rate_told(results: Results, suite: str) -> list[Goal]:
    """Beside what comes if it is not."""
    if not any(job.rate_is_told and job.suite == suite for job in results.made):
        return []
    found = results.merged(OURS, suite, rate_is_told=True)
    f1, *_, false = _MADE[suite]
    return [
        Goal(f"{suite}, the rate told: F1", f1, found.f1, at_most=False, unit=""),
        Goal(
            f"{suite}, the rate told: false alarms per 1000", false, found.false_per_1000, unit=""
        ),
    ]


def _held(results: Results, suite: str) -> list[Goal]:
    held, number = results.merged(OURS, suite).held()
    if not number:
        return []
    least, most = _HELD_PERCENT
    percent, what = 100.0 * held / number, f"{suite}: 90 % onset intervals that hold"
    return [
        Goal(what, least, percent, at_most=False, unit=" %"),
        Goal(what, most, percent, unit=" %"),
    ]


def _tried(found: Sequence[Tried]) -> list[Goal]:
    goals = []
    for is_well, what in (
        (False, "faults of the zoo named"),
        (True, "trainings that are well quiet"),
    ):
        of = [tried for tried in found if (tried.kind == "well") == is_well]
        number, wrong = sum(t.number for t in of), sum(len(t.wrong) for t in of)
        if of:
            goals.append(Goal(what, number, number - wrong, at_most=False, unit=f" of {number}"))
    return goals
