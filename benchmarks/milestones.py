"""What happened in runs of the demo: plateau, breakthrough, take-off. The table of docs/demo.md.

python benchmarks/milestones.py runs/demo runs/control

reads the log of each run, and prints a table in Markdown with a column for each.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Breakthrough", "Takeoff", "find_breakthrough", "find_takeoff", "read_log", "table"]

NEAR_ZERO = "initial_0.1"
#: A breakthrough is this many nats below the plateau ...
DROP = 0.15
#: ... and the plateau is this part of the run, if the loss stays within DROP there.
PLATEAU = (0.1, 0.3)
MIN_PLATEAU = 4
#: "Early" is at this share of a run.
EARLY = 0.2

#: A line of records.jsonl or events.jsonl; NaN is None there.
Line = dict[str, Any]


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


def read_log(logdir: Path) -> tuple[list[Line], list[Line]]:
    """Records and events of a run; of an event that was reported again only the latest."""
    files = [logdir / "sparsitywatch" / f"{name}.jsonl" for name in ("records", "events")]
    records, events = ([json.loads(x) for x in file.read_text().splitlines()] for file in files)
    return records, list({event["id"]: event for event in events}.values())


def dense(record: Line) -> float:
    """The held-out loss; NaN if it was not measured."""
    value = (record.get("curve") or {}).get("value", [None])[0]
    return math.nan if value is None else float(value)


def find_breakthrough(records: Sequence[Line], steps: int) -> Breakthrough | None:
    """When the held-out loss left its plateau; None without a plateau, or if it did not yet.

    The plateau is the median held-out loss between 10 and 30 % of the run, if there are at
    least four snapshots and the loss stays within 0.15 nats there: a loss that falls all the
    time has no plateau to break through.

    Args:
        records: in the order of their steps.
        steps: length of the whole run.
    """
    first, last = (share * steps for share in PLATEAU)
    evaluated = [r for r in records if math.isfinite(dense(r))]
    before = [r for r in evaluated if first <= r["step"] <= last]
    losses = [dense(r) for r in before]
    if len(losses) < MIN_PLATEAU or max(losses) - min(losses) > DROP:
        return None
    plateau = statistics.median(losses)
    for record in evaluated:
        if record["step"] > last and dense(record) < plateau - DROP:
            reliance = statistics.median(r["reliance"] for r in before)
            return Breakthrough(record["step"], plateau, reliance, record["reliance"])
    return None


def find_takeoff(records: Sequence[Line], rule: str = NEAR_ZERO) -> Takeoff | None:
    """The floor of the near-zero fraction and its doubling; None without records."""
    seen = [r for r in records if r["near_zero"].get(rule) is not None]
    if not seen:
        return None
    low = min(seen, key=lambda r: r["near_zero"][rule])
    floor = low["near_zero"][rule]
    for record in seen:
        if record["step"] > low["step"] and record["near_zero"][rule] > 2 * floor:
            return Takeoff(floor, low["step"], record["step"], record["decay_clock"])
    return Takeoff(floor, low["step"], None, None)


def table(runs: dict[str, tuple[Sequence[Line], Sequence[Line]]]) -> str:
    """One column a run, in Markdown."""
    columns = [["", "---:"], *(_column(name, *run) for name, run in runs.items())]
    rows = zip(*[[first.strip() for first in _ROWS], *columns[1:]], strict=True)
    lines = [f"| {' | '.join(row)} |" for row in rows]
    rule = "|---|" + "---:|" * len(runs)
    return "\n".join([lines[0], rule, *lines[1:]])


_ROWS = (
    "",
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


def _column(name: str, records: Sequence[Line], events: Sequence[Line]) -> list[str]:
    last = records[-1]
    early = min(records, key=lambda r: abs(r["step"] - EARLY * last["step"]))
    found, takeoff = find_breakthrough(records, last["step"]), find_takeoff(records)
    there = next((r for r in records if found and r["step"] == found.step), None)
    doubled = takeoff is not None and takeoff.doubling_step is not None
    return [
        name,
        str(found.step) if found else "none",
        f"{found.reliance:.2f}, {found.reliance_before:.2f}" if found else "-",
        ", ".join(_dormant(r) for r in (early, there, last) if r is not None),
        _event(events, "motion/dormant"),
        _essential(early),
        _essential(last),
        f"{takeoff.floor:.1%}, {last['near_zero'][NEAR_ZERO]:.1%}" if takeoff else "-",
        f"{takeoff.doubling_step} ({takeoff.decay_clock:.2f})" if takeoff and doubled else "never",
        _event(events, f"near_zero/{NEAR_ZERO}"),
        f"{dense(last):.2f}",
    ]


def _dormant(record: Line) -> str:
    fraction = (record.get("dormant") or {}).get("fraction")
    return "-" if fraction is None else f"{fraction:.1%}"


def _event(events: Sequence[Line], series: str) -> str:
    first = next((e for e in events if e["series"] == series and e["direction"] == "up"), None)
    return f"{first['onset_step']}, {first['detected_step']}" if first else "none"


def _essential(record: Line) -> str:
    estimate = record.get("essential_sparsity") or {}
    if not estimate.get("informative"):
        return "not informative"
    told = f"{estimate['value']:.2f}"
    if estimate["low"] is None:
        return told
    return f"{told} [{estimate['low']:.2f}, {estimate['high']:.2f}]"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("logdirs", nargs="+", type=Path, metavar="LOGDIR")
    print(table({str(logdir): read_log(logdir) for logdir in parser.parse_args().logdirs}))


if __name__ == "__main__":
    main()
