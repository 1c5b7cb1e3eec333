"""What happened in runs of the demo: plateau, breakthrough, take-off.

The table of docs/reports/demo.md.

python benchmarks/milestones.py runs/demo runs/control

reads the log of each run, and prints a table in Markdown with a column for each.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from reporting import table

import sparsitywatch as sw

NEAR_ZERO = "initial_0.1"
#: A breakthrough is this many nats below the plateau ...
DROP = 0.15
#: ... and the plateau is this part of the run, if the loss stays within DROP there.
PLATEAU = (0.1, 0.3)
MIN_PLATEAU = 4
#: "Early" is at this share of a run.
EARLY = 0.2


@dataclass(frozen=True)
class Breakthrough:
    """The held-out loss left its plateau: at ``step`` first 0.15 nats below ``plateau``.

    ``reliance_before`` is the median reliance on the plateau, ``reliance`` that at ``step``.
    """

    step: int
    plateau: float
    reliance_before: float
    reliance: float


@dataclass(frozen=True)
class Takeoff:
    """Near-zero weights: the lowest fraction, and when twice that was first exceeded after it.

    ``doubling_step`` and ``decay_clock`` (at that step) are None where it never was.
    """

    floor: float
    floor_step: int
    doubling_step: int | None
    decay_clock: float | None


def dense(record: sw.Record) -> float:
    """The held-out loss; NaN if it was not measured."""
    return record.series().get("value/dense", math.nan)


def find_breakthrough(records: Sequence[sw.Record], steps: int) -> Breakthrough | None:
    """When the held-out loss left its plateau; None without a plateau, or if it did not yet.

    The plateau is the median held-out loss between 10 and 30 % of the run, if there are at
    least four snapshots and the loss stays within 0.15 nats there: a loss that falls all the
    time has no plateau to break through.
    """
    first, last = (share * steps for share in PLATEAU)
    evaluated = [r for r in records if math.isfinite(dense(r))]
    before = [r for r in evaluated if first <= r.step <= last]
    losses = [dense(r) for r in before]
    if len(losses) < MIN_PLATEAU or max(losses) - min(losses) > DROP:
        return None
    plateau = statistics.median(losses)
    for record in evaluated:
        if record.step > last and dense(record) < plateau - DROP:
            reliance = statistics.median(r.reliance for r in before)
            return Breakthrough(record.step, plateau, reliance, record.reliance)
    return None


def find_takeoff(records: Sequence[sw.Record], rule: str = NEAR_ZERO) -> Takeoff | None:
    """The floor of the near-zero fraction and its doubling; None without records."""
    seen = [r for r in records if rule in r.near_zero]
    if not seen:
        return None
    low = min(seen, key=lambda r: r.near_zero[rule])
    floor = low.near_zero[rule]
    for record in seen:
        if record.step > low.step and record.near_zero[rule] > 2 * floor:
            return Takeoff(floor, low.step, record.step, record.decay_clock)
    return Takeoff(floor, low.step, None, None)


def columns(runs: dict[str, tuple[Sequence[sw.Record], Sequence[sw.Event]]]) -> list[str]:
    """One column a run, from its records and events, in Markdown."""
    rows = zip(_ROWS, *(_column(*run) for run in runs.values()), strict=True)
    return table(["", *runs], rows)


_ROWS = (
    "breakthrough: held-out loss 0.15 below its plateau, at step",
    "reliance there, and on the plateau",
    "dormant weights early, at the breakthrough, at the end",
    "event in dormant weights: began at step, seen at step",
    "essential sparsity early",
    "essential sparsity at the end",
    "near zero (0.1 × initial scale): floor, at the end",
    "take-off: twice the floor, at step (decay clock)",
    "event in near-zero weights: began at step, seen at step",
    "held-out loss at the end",
)


def _column(records: Sequence[sw.Record], events: Sequence[sw.Event]) -> list[str]:
    last = records[-1]
    early = min(records, key=lambda r: abs(r.step - EARLY * last.step))
    found, takeoff = find_breakthrough(records, last.step), find_takeoff(records)
    there = next((r for r in records if found and r.step == found.step), None)
    doubled = takeoff is not None and takeoff.doubling_step is not None
    return [
        str(found.step) if found else "none",
        f"{found.reliance:.2f}, {found.reliance_before:.2f}" if found else "-",
        ", ".join(_dormant(r) for r in (early, there, last) if r is not None),
        _event(events, "motion/dormant"),
        _essential(early),
        _essential(last),
        f"{takeoff.floor:.1%}, {last.near_zero[NEAR_ZERO]:.1%}" if takeoff else "-",
        f"{takeoff.doubling_step} ({takeoff.decay_clock:.2f})" if takeoff and doubled else "never",
        _event(events, f"near_zero/{NEAR_ZERO}"),
        f"{dense(last):.2f}",
    ]


def _dormant(record: sw.Record) -> str:
    fraction = record.series().get("motion/dormant", math.nan)
    return "-" if math.isnan(fraction) else f"{fraction:.1%}"


def _event(events: Sequence[sw.Event], series: str) -> str:
    first = next((e for e in events if e.series == series and e.direction == "up"), None)
    return f"{first.onset_step}, {first.detected_step}" if first else "none"


def _essential(record: sw.Record) -> str:
    estimate = record.essential_sparsity
    if estimate is None or not estimate.informative:
        return "not informative"
    interval = "" if math.isnan(estimate.low) else f" [{estimate.low:.2f}, {estimate.high:.2f}]"
    return f"{estimate.value:.2f}{interval}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("logdirs", nargs="+", metavar="LOGDIR")
    runs = {logdir: sw.load(logdir) for logdir in parser.parse_args().logdirs}
    print("\n".join(columns({name: (run.records, run.events) for name, run in runs.items()})))


if __name__ == "__main__":
    main()
