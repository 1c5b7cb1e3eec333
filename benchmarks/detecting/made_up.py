"""Detectors on made-up series: what they catch, how soon, and with how many false alarms.

17 kinds of series with one quick rise (easy: 20 to 100 times the noise; standard: 8 to 30; hard: 4
to 8) and 18 without; 11 kinds of slow take-offs and 14 counterparts. An alarm hits up to five
snapshots after the onset; a slow take-off until five snapshots after its doubling, or until 2.5
times the floor. The smallest change that matters is 0.01 of the series' unit. Intervals are 90 %
bootstrap intervals over seeds. The delay of slow take-offs is from their doubling. Offline: change
points within three snapshots of the onset, the whole series at hand. *The rate told*: the series
that follow a learning rate, schedule and wsd, are given it, as a watch would; the others are the
same. River as is: at its defaults. Behind our front end: fed the standardised errors of a trailing
line, parameters tuned on design seeds. All others, and those behind our front, alarm only at rises
of the smallest change that matters.

*Onset intervals*: how often the 90 % interval of the onset, in the event of ours that caught the
change, holds the true one: the change began after a snapshot of the interval, and no later than at
the one after its end. An interval is of whole snapshots, so that where one or two do, as on easy
series, it can hold nearly all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from reporting import Goal, table

from detecting import jumps, slow
from detecting.detectors import DETECTORS, OURS
from detecting.scoring import Score, score
from detecting.work import Job, Plan, Results

TITLE = "Made-up series"
SUITES = (*jumps.DIFFICULTIES, "slow")
#: F1, recall, median and 90th percentile of the delay, false alarms per 1000 snapshots.
_REACH = {
    "easy": (0.98, 0.98, 2.0, 3.0, 0.10),
    "standard": (0.965, 0.94, 2.0, 4.0, 0.10),
    "hard": (0.75, 0.65, 3.0, 5.0, 0.15),
    "slow": (0.93, 0.95, None, None, 0.20),
}
#: Share of 90 % onset intervals that hold the onset.
_HELD_PERCENT = (85.0, 95.0)


def scored(
    detector: str, suite: str, seeds: range, rate_is_told: bool = False
) -> tuple[Score, float]:
    """A detector on one suite, and seconds a snapshot; with the rate told on what follows one."""
    if suite == "slow":
        made = list(slow.suite(seeds))
    elif rate_is_told:
        pairs = [(family, seed) for seed in seeds for family in jumps.ANSWERING]
        made = [jumps.make(*pair, suite, rate_is_told=True) for pair in pairs]
    else:
        made = list(jumps.suite(seeds, suite))
    peer = DETECTORS[detector]
    peer.detect(made[0])  # what is loaded or compiled at first is not counted
    started = time.perf_counter()
    found = score(peer.detect, made, peer.tolerance)
    return found, (time.perf_counter() - started) / sum(len(s.values) for s in made)


def jobs(plan: Plan) -> list[Job]:
    """Ours in two blocks of seeds, the slow ones of the others on few."""
    blocks = [range(i * plan.seeds, (i + 1) * plan.seeds) for i in (0, 1)]
    found = [Job(scored, (OURS, suite, block)) for block in blocks for suite in SUITES]
    for name, peer in {} if plan.alone else DETECTORS.items():
        few = range(max(1, int(plan.seeds * peer.share)))
        found += [Job(scored, (name, suite, few)) for suite in SUITES if name != OURS]
    told = [(OURS, suite, block, True) for block in blocks for suite in jumps.DIFFICULTIES]
    return [*found, *(Job(scored, arguments) for arguments in told)]


def merged(results: Results, suite: str, *, rate_is_told: bool = False) -> Score:
    """Ours at all seeds; with the rate told on the series that follow a learning rate, if asked."""
    return Score(
        tuple(
            outcome
            for (name, of, _, *told), (found, _) in results.of(scored)
            if (name, of) == (OURS, suite)
            for outcome in found.outcomes
            if any(told) == (rate_is_told and outcome.family in jumps.ANSWERING)
        )
    )


def _told_suites(results: Results) -> list[str]:
    """Where ours was also told the rate."""
    told = {suite for (_, suite, _, *told), _ in results.of(scored) if any(told)}
    return [suite for suite in SUITES if suite in told]


def lines(results: Results) -> list[str]:
    """A table for each suite, and the onset intervals."""
    found = []
    for suite in SUITES:
        title = "Slow take-offs" if suite == "slow" else f"Quick rises, {suite}"
        found += [f"### {title}", "", *_suite_table(results, suite)]
    held = [(suite, *merged(results, suite).held()) for suite in SUITES]
    cells = [[suite, str(of), f"{n} ({n / of:.1%})" if of else "-"] for suite, n, of in held]
    return [*found, *table(["suite", "caught", "onset interval holds the onset"], cells)]


def _suite_table(results: Results, suite: str) -> list[str]:
    found = {key: x for key, x in results.of(scored) if key[1] == suite}
    own_s = sum(seconds for (name, *_), (_, seconds) in found.items() if name == OURS)
    own_s /= max(sum(name == OURS for name, *_ in found), 1)
    rows = [
        [*_cells(name, seeds, of), f"{seconds / own_s:.2g}"]
        for (name, _, seeds, *told), (of, seconds) in found.items()
        if not any(told)
    ]
    if suite in _told_suites(results):
        seeds = [seed for (_, _, block, *told), _ in found.items() if any(told) for seed in block]
        of = merged(results, suite, rate_is_told=True)
        rows.append([*_cells(f"{OURS}, the rate told", seeds, of), ""])
    head = ["detector", "seeds", "F1", "recall", "precision", "delay, median / 90 %"]
    return table([*head, "false alarms per 1000", "time a snapshot, x ours"], rows)


def _cells(name: str, seeds: Sequence[int], found: Score) -> list[str]:
    figures = [found.shown(figure) for figure in ("f1", "recall", "precision", "false_per_1000")]
    delays = " / ".join(f"{found.delay(percentile):.0f}" for percentile in (50, 90))
    delays = delays if math.isfinite(found.delay(50)) else "-"
    return [name, f"{min(seeds)} to {max(seeds)}", *figures[:3], delays, figures[3]]


def goals(results: Results) -> list[Goal]:
    """Of ours."""
    found = []
    for suite, (f1, recall, median, late, false) in _REACH.items():
        own = merged(results, suite)
        found += _rates(own, suite, f1, false)
        found.append(Goal(f"{suite}: recall", recall, own.figures["recall"], False, ""))
        for percentile, most in ((50, median), (90, late)):
            if most is not None:
                what = f"{suite}: {percentile} % of the delays"
                found.append(Goal(what, most, own.delay(percentile), unit=" snapshots"))
        if suite in _told_suites(results):
            told = merged(results, suite, rate_is_told=True)
            found += _rates(told, f"{suite}, the rate told", f1, false)
        held, number = own.held()
        if number:
            what, percent = f"{suite}: 90 % onset intervals that hold", 100.0 * held / number
            least, most = _HELD_PERCENT
            found += [Goal(what, least, percent, False, " %"), Goal(what, most, percent, unit=" %")]
    return found


def _rates(found: Score, what: str, f1: float, false: float) -> list[Goal]:
    return [
        Goal(f"{what}: F1", f1, found.figures["f1"], False, ""),
        Goal(f"{what}: false alarms per 1000", false, found.figures["false_per_1000"], unit=""),
    ]
