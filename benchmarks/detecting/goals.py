"""What the detector has to reach."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from reporting import Goal

from detecting.cadences import SHAPES, Seen, spread_of
from detecting.early import Early
from detecting.recorded import EVERY, Verdict
from detecting.tables import SPLITS, spreads, takeoffs
from detecting.work import OURS, Results

__all__ = ["goals_of"]

#: F1, recall, median and 90th percentile of the delay, false alarms per 1000 snapshots.
_MADE = {
    "easy": (0.98, 0.98, 2.0, 3.0, 0.10),
    "standard": (0.965, 0.94, 2.0, 4.0, 0.10),
    "hard": (0.75, 0.65, 3.0, 5.0, 0.15),
    "slow": (0.93, 0.95, None, None, 0.20),
}
_CAUGHT_PERCENT = 95.0
_SPREAD_PERCENT = 10.0
_LEAD_STEPS = 300.0
_MAX_MS = 2.0


def goals_of(results: Results) -> list[Goal]:
    """All of them, the recorded runs first."""
    goals = [*_real(results.real[OURS]), *_early(results.early), *_grown(results.grown)]
    for suite in _MADE:
        goals += _made(results, suite)
    for told in sorted(results.told, key=lambda t: (t.where, t.asked)):
        if told.where == "made up" and told.is_within_factor_two is not None:
            goals.append(Goal(f"asked for {told.asked:g} per 1000: off by", 2.0, told.off_by))
    milliseconds = 1000.0 * results.seconds(OURS)
    return [*goals, Goal("time a snapshot", _MAX_MS, milliseconds, unit=" ms")]


def _real(verdicts: Sequence[Verdict]) -> list[Goal]:
    goals = []
    for split in SPLITS:
        of = [v for v in verdicts if v.case.split == split]
        for every in EVERY:
            found = takeoffs(of, every=every)
            caught = 100.0 * sum(v.caught is not None for v in found) / max(len(found), 1)
            what = f"recorded, {split}: take-offs caught at {every} steps"
            goals.append(Goal(what, _CAUGHT_PERCENT, caught, at_most=False, unit=" %"))
        false = sum(v.num_false for v in of)
        goals.append(Goal(f"recorded, {split}: false alarms", 0.0, false, unit=""))
        found_spreads = spreads(of)
        spread = 100.0 * statistics.median(found_spreads) if found_spreads else math.inf
        what = f"recorded, {split}: alarms at the cadences apart, median"
        goals.append(Goal(what, _SPREAD_PERCENT, spread, unit=" %"))
    return goals


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
