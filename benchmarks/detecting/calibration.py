"""False alarms that were asked for against those that came.

On made-up series without a change, quick ones and slow ones, and on those of each kind in which
nothing happens (quiet.py). A rate is met if half to twice as many come;
nothing is concluded where fewer than five are to be expected.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from reporting import Goal, table

from detecting import jumps, quiet, slow
from detecting.detectors import online, ours_at
from detecting.scoring import score
from detecting.series import Series
from detecting.work import Job, Plan, Results

TITLE = "False alarms asked for"
ASKED = (0.1, 0.3, 1.0, 3.0)
#: False alarms that must be expected for their number to say something.
_LEAST_COUNT = 5
#: Of series in which nothing happens: the first seed, and how many for each rate.
_FIRST_OF_KINDS = 2000
_OF_KINDS = {0.1: 300, 1.0: 75, 3.0: 75}
_MADE_UP = "made up"


@dataclass(frozen=True)
class Told:
    """One rate asked for, and what came; rates are false alarms per 1000 snapshots."""

    asked: float
    where: str
    told: float
    # 90 % interval of that
    low: float
    high: float
    num_false: int
    num_snapshots: int

    @property
    def is_within_factor_two(self) -> bool | None:
        """Whether it is; None if so few snapshots cannot tell."""
        if self.asked * self.num_snapshots < 1000.0 * _LEAST_COUNT:
            return None
        return self.off_by <= 2.0

    @property
    def off_by(self) -> float:
        """What was told as a multiple of what was asked, or the other way round."""
        return max(self.told / self.asked, self.asked / self.told) if self.told else math.inf


def told(asked: float, where: str, seeds: range) -> Told:
    """What came of a rate that was asked for."""
    of_kind = (quiet.quiet(where.removesuffix("-like"), seed) for seed in seeds)
    found = score(online(ours_at(asked)), _stable(seeds) if where == _MADE_UP else of_kind)
    low, high = found.intervals["false_per_1000"]
    counts = [sum(getattr(o, name) for o in found.outcomes) for name in ("num_false", "num_quiet")]
    return Told(asked, where, found.figures["false_per_1000"], low, high, *counts)


def _stable(seeds: range) -> Iterator[Series]:
    """Every series without a change; of the quick ones those of standard difficulty."""
    for seed in seeds:
        yield from (jumps.make(family, seed) for family in jumps.STABLE)
        yield from (slow.make(family, seed) for family in slow.STABLE)


def jobs(plan: Plan) -> list[Job]:
    """Each rate everywhere."""
    rates = ASKED[:3:2] if plan.small else ASKED
    found = [Job(told, (rate, _MADE_UP, range(plan.seeds))) for rate in rates]
    for rate, number in _OF_KINDS.items():
        seeds = range(_FIRST_OF_KINDS, _FIRST_OF_KINDS + (1 if plan.small else number))
        found += [Job(told, (rate, f"{kind}-like", seeds)) for kind in quiet.KINDS]
    return found


def _sorted(results: Results) -> list[Told]:
    return sorted((x for _, x in results.of(told)), key=lambda t: (t.where, t.asked))


def lines(results: Results) -> list[str]:
    """A row for each rate and place."""
    said = {True: "yes", False: "no", None: "too few snapshots to say"}
    head = ["asked for, per 1000 snapshots", "on", "told", "90 % interval", "counted"]
    rows = [
        [f"{t.asked:g}", t.where, f"{t.told:.3g}", f"{t.low:.3g} to {t.high:.3g}",
         f"{t.num_false} in {t.num_snapshots}", said[t.is_within_factor_two]]
        for t in _sorted(results)
    ]  # fmt: skip
    return table([*head, "within a factor of two"], rows, left=0)


def goals(results: Results) -> list[Goal]:
    """Where it can be said."""
    return [
        Goal(f"asked for {t.asked:g} per 1000 on {t.where} series: off by", 2.0, t.off_by)
        for t in _sorted(results)
        if t.is_within_factor_two is not None
    ]
