"""False alarms on series in which nothing happens, of one detector at its defaults.

Kinds are those of quiet.py, seeds from 2000 on: nothing was chosen on them. One alarm in ten
thousand snapshots is what the smallest scores were chosen for, on other series.
"""

from __future__ import annotations

from reporting import Goal, table

from detecting import quiet
from detecting.detectors import online, ours
from detecting.scoring import Score, score
from detecting.work import Job, Plan, Results

TITLE = "False alarms"
#: The first seed, and how many series of each kind.
_FIRST, _NUM = 2000, 150
#: Twice the rate that the scores were chosen for.
_MOST_PER_1000 = 0.2


def told(kind: str, seeds: range) -> Score:
    """What the detector says of one kind."""
    return score(online(ours), quiet.quiet_suite(seeds, kind))


def jobs(plan: Plan) -> list[Job]:
    """One a kind."""
    seeds = range(_FIRST, _FIRST + (1 if plan.small else _NUM))
    return [Job(told, (kind, seeds)) for kind in quiet.KINDS]


def lines(results: Results) -> list[str]:
    """A row for each kind."""
    rows = []
    for (kind, _), found in results.of(told):
        low, high = found.intervals["false_per_1000"]
        false, seen = (
            sum(getattr(o, n) for o in found.outcomes) for n in ("num_false", "num_quiet")
        )
        rate = f"{found.figures['false_per_1000']:.3g}"
        rows.append([kind, rate, f"{low:.3g} to {high:.3g}", f"{false} in {seen}"])
    head = ["series", "false alarms per 1000 snapshots", "90 % interval", "counted"]
    return table(head, rows, left=1)


def goals(results: Results) -> list[Goal]:
    """One a kind."""
    return [
        Goal(f"false alarms per 1000 on {kind} series", _MOST_PER_1000,
             found.figures["false_per_1000"], unit="")
        for (kind, _), found in results.of(told)
    ]  # fmt: skip
