"""False alarms that were asked for against those that came.

On made-up series without a change, quick ones and slow ones, on those of each kind in which nothing
happens (kinds.py), and on the recorded controls. A rate
asked for is met if twice as many come at most, and half as many at least; where fewer than five
are to be expected, nothing is concluded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

from detecting import jumps, kinds, slow
from detecting.ours import online, ours_at
from detecting.recorded import cases, replay
from detecting.scoring import Outcome, Score, score
from detecting.series import Series

__all__ = ["ASKED", "Told", "on_controls", "on_kind", "on_made_up"]

ASKED = (0.1, 0.3, 1.0, 3.0)
#: False alarms that must be expected for their number to say something.
_LEAST_COUNT = 5


@dataclass(frozen=True)
class Told:
    """One rate asked for, and what came.

    Args:
        asked: false alarms per 1000 snapshots.
        where: "made up", a kind of series in which nothing happens, or "recorded controls".
        told: false alarms per 1000 snapshots.
        low, high: 90 % interval of that.
        num_false, num_snapshots: what it was counted from.
    """

    asked: float
    where: str
    told: float
    low: float
    high: float
    num_false: int
    num_snapshots: int

    @property
    def is_within_factor_two(self) -> bool | None:
        """Whether it is; None if so few snapshots cannot tell."""
        if self.asked * self.num_snapshots < 1000.0 * _LEAST_COUNT:
            return None
        return self.asked / 2.0 <= self.told <= 2.0 * self.asked

    @property
    def off_by(self) -> float:
        """What was told as a multiple of what was asked, or the other way round."""
        return max(self.told / self.asked, self.asked / self.told) if self.told else math.inf


def on_made_up(asked: float, seeds: Iterable[int]) -> Told:
    """On every family without a change."""
    return _told(asked, "made up", score(online(ours_at(asked)), _stable(seeds)))


def on_kind(asked: float, kind: str, seeds: Iterable[int]) -> Told:
    """On one kind of series in which nothing happens."""
    return _told(asked, f"{kind}-like", score(online(ours_at(asked)), kinds.suite(seeds, kind)))


def _stable(seeds: Iterable[int]) -> Iterable[Series]:
    """Every series without a change; of the quick ones those of standard difficulty."""
    return chain.from_iterable(
        chain(
            (jumps.make(family, seed) for family in jumps.STABLE),
            (slow.make(family, seed) for family in slow.STABLE),
        )
        for seed in seeds
    )


def on_controls(asked: float) -> Told:
    """On every recorded control, by every rule, at every cadence, from every first snapshot.

    A run stands for a seed, as its cases are far from independent.
    """
    names: dict[str, int] = {}
    outcomes = []
    for case in cases():
        if case.truth.kind != "control":
            continue
        run = names.setdefault(case.name, len(names))
        num_false = len(replay(ours_at(asked), case))
        outcomes.append(Outcome(case.rule, run, False, None, num_false, len(case.steps)))
    return _told(asked, "recorded controls", Score(tuple(outcomes)))


def _told(asked: float, where: str, found: Score) -> Told:
    low, high = found.intervals["false_per_1000"]
    return Told(
        asked=asked,
        where=where,
        told=found.false_per_1000,
        low=low,
        high=high,
        num_false=sum(o.num_false for o in found.outcomes),
        num_snapshots=sum(o.num_quiet for o in found.outcomes),
    )
