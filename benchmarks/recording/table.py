"""The table of recorded runs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recording.labels import DECISIVE, FACTORS

__all__ = ["FOLDER", "lead_of", "load", "write_table"]

FOLDER = Path(__file__).parents[1] / "recorded" / "runs"

_HEAD = """\
# Recorded runs

Small trainings, each recorded under a real watch that looked every 25 steps, for judging
detectors on. Made by

    python benchmarks/record_runs.py

which trains what is missing here, one or two minutes a run, and writes this page anew. A file
holds the series at each look (`steps`), what was trained (`run`) and a `label`, computed from the
series by the rules in `benchmarks/recording/labels.py`. Runs with an even seed are for
designing detectors (split `design`), those with an odd seed for reporting on them (`report`).
Series at 50, 100 and 200 steps are every 2nd, 4th and 8th look; dormant weights, which depend on
the look before, were measured anew at these distances (`dormant_further_apart`), as was how far
the decay clock advanced, as a replay without a schedule estimates it (`estimated_advance`: at each
look, since the one 25, 50, 100 and 200 steps before).

The columns 1.5, 2 and 2.5 x are the steps at which near-zero weights (0.1 x the initial scale)
cross so many times their running floor, *ratio* is the largest one reached, *dormant* the step
at which dormant weights rise, *lead* how long that is before the doubling, in steps,
*breakthrough* where a masked language model leaves its plateau or modular addition is understood.
The digits of the vision transformer are drawn from fonts; they are not those of scikit-learn.

To know before drawing conclusions:

- Runs of one seed that differ only in what comes later (schedule, interference) are one and the
  same training until then. They are on the same side of the split, but not independent.
- After a spike of the learning rate a model has collapsed, and in modular addition without weight
  decay the loss soon sinks below 1e-5: what weights get is then too little to tell from nothing. Of
  such looks the watch says so, in place of a share of dormant weights, and near-zero counts are
  silent.
- The share that passes as dormant by chance (`motion/dormant_by_chance`) grows with the distance of
  the looks: 0.001 to 0.02 at 25 steps, 0.006 to 0.05 at 200. The rule for *dormant* here is for 25.
- In modular addition near-zero weights begin to rise when it is understood, slowly, and take off
  some 600 steps later; 1.5 and 2 times the floor mark the slow part. Later they fall back in part.
- "ambiguous" and the "control" of a run that goes on growing hold for the steps recorded.
"""


def load(folder: Path = FOLDER) -> dict[str, dict[str, Any]]:
    """The recorded runs by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def lead_of(label: Mapping[str, Any]) -> int | None:
    """Steps from the rise of dormant weights to twice the floor of near-zero weights."""
    dormant, doubled = label["dormant"], label["near_zero"][DECISIVE]["steps"]["2.0"]
    if dormant is None or dormant["step"] is None or doubled is None:
        return None
    return int(doubled - dormant["step"])


def write_table(names: Iterable[str], folder: Path = FOLDER) -> None:
    """README.md of the folder, the runs in the order of ``names``."""
    runs = load(folder)
    rows = [_row(runs[name]) for name in names if name in runs]
    columns = ["run", "split", "kind", "at", "floor", *(f"{f:g} x" for f in FACTORS)]
    columns += ["ratio", "dormant", "lead", "largest dormant", "breakthrough"]
    table = [columns, ["---"] * 3 + ["---:"] * (len(columns) - 3), *rows]
    lines = [f"| {' | '.join(row)} |" for row in table]
    text = "\n".join([_HEAD, *lines, "", _summary(list(runs.values())), "", _by_rule(runs), ""])
    (folder / "README.md").write_text(text)


def _row(run: Mapping[str, Any]) -> list[str]:
    label = run["label"]
    found, dormant = label["near_zero"][DECISIVE], label["dormant"] or {}
    return [
        run["name"],
        run["split"],
        label["kind"],
        _cell(label["known_step"]),
        _cell(found["floor"]),
        *(_cell(found["steps"][f"{factor:.1f}"]) for factor in FACTORS),
        _cell(found["largest_ratio"]),
        _cell(dormant.get("step")) if dormant else "not measurable",
        _cell(lead_of(label)),
        _cell(dormant.get("largest")),
        _cell(label["breakthrough"]),
    ]


def _cell(x: float | None) -> str:
    return "-" if x is None else f"{x:.3g}" if isinstance(x, float) else str(x)


def _summary(runs: Sequence[Mapping[str, Any]]) -> str:
    takeoffs = [run["label"] for run in runs if run["label"]["kind"] == "take-off"]
    leads = sorted(lead for label in takeoffs if (lead := lead_of(label)) is not None)
    kinds = [run["label"]["kind"] for run in runs]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    told = f"{len(runs)} runs: {counts}."
    if leads:
        told += (
            f" Dormant weights rose before the doubling, or at it, in "
            f"{sum(lead >= 0 for lead in leads)} of {len(takeoffs)} take-offs; the lead is "
            f"{leads[0]} to {leads[-1]} steps, median {statistics.median(leads):g}."
        )
    return told


def _by_rule(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """How many runs of each kind double by each near-zero rule."""
    first = next(iter(runs.values()), None)
    if first is None:
        return ""
    rules = list(first["label"]["near_zero"])
    lines = [
        "Runs that reach 1.5, 2 and 2.5 times the floor, by near-zero rule:",
        "",
        f"| kind | runs | {' | '.join(rules)} |",
        f"|---|---:|{'---:|' * len(rules)}",
    ]
    for kind in dict.fromkeys(run["label"]["kind"] for run in runs.values()):
        labels = [
            run["label"]["near_zero"] for run in runs.values() if run["label"]["kind"] == kind
        ]
        cells = [
            ", ".join(
                str(sum(label[rule]["steps"][f"{f:.1f}"] is not None for label in labels))
                for f in FACTORS
            )
            for rule in rules
        ]
        lines.append(f"| {kind} | {len(labels)} | {' | '.join(cells)} |")
    return "\n".join(lines)
