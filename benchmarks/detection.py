"""Abrupt changes caught live: how many, how soon, and how many false alarms.

python benchmarks/detection.py [--small] [--save] [--seeds N] [--figures FOLDER]

scores the library's detector, a naive rule and detectors of other packages on made-up series
(detecting/jumps.py, slow.py) and on the recorded runs (recorded/runs/), says how far the rate of
false alarms that was asked for is met, and draws every recorded run with its alarms.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import torch
from detecting.calibration import ASKED
from detecting.figures import draw_calibration, draw_runs
from detecting.goals import goals_of
from detecting.tables import (
    calibration_rows,
    early_rows,
    family_rows,
    made_rows,
    real_rows,
    run_rows,
    spreads,
)
from detecting.work import (
    DETECTORS,
    OURS,
    SUITES,
    Asked,
    Job,
    Made,
    Real,
    Results,
    Signals,
    run_all,
)
from reporting import goal_rows, machine, run

__all__: list[str] = []

_FIGURES = Path(__file__).parent / "results"
_EXPLANATION = (
    "**Made-up series.** 17 kinds of series with one quick rise (easy: 20 to 100 times the noise; "
    "standard: 8 to 30; hard: 4 to 8) and 18 without; 11 kinds of slow take-offs and 14 "
    "counterparts. An alarm hits up to five snapshots after the onset; a slow take-off until five "
    "snapshots after its doubling, or until 2.5 times the floor. The smallest change that matters "
    "is 0.01 of the series' unit. Intervals are 90 % bootstrap intervals over seeds. The delay of "
    "slow take-offs is from their doubling. Offline: change points within three snapshots of the "
    "onset, the whole series at hand.\n"
    "\n"
    "**Recorded runs.** Looked at every 25, 50, 100 and 200 steps, from each possible first look, "
    "by three rules for near-zero weights. Caught: after the rise begins, and before 2.5 times the "
    "floor or among the first four looks that can show it. Even seeds were designed on, odd ones "
    "not. Controls never reach 1.5 times their floor, so that a rule which asks for that cannot "
    "be false on them.\n"
    "\n"
    "**Peers.** River as is: at its defaults. Behind our front end: fed the standardised errors of "
    "a trailing line, parameters tuned on design seeds. All others, and those behind our front, "
    "alarm only at rises of the smallest change that matters."
)

_ABOUT_EACH = (
    "Ours, each take-off: caught from so many of the first looks, the step of the alarm and "
    "since when it says that the series rises (medians)."
)
_ABOUT_EARLY = (
    "`DormantRise`: step of the alarm, and how long before near-zero weights double. *Dead units*: "
    "transformers with ReLU that take off by weight decay; *smooth*: no unit dies."
)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=10, help="in each of two blocks")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument(
        "--figures", type=Path, help="folder of the figures; results/, unless --small"
    )


def _jobs(seeds: int, *, small: bool) -> list[Job]:
    """The longest ones first."""
    jobs: list[Job] = []
    rates = ASKED[:3:2] if small else ASKED
    jobs += [Asked(rate, range(seeds)) for rate in rates]
    jobs += [Made(OURS, s, range(i * seeds, (i + 1) * seeds)) for i in (0, 1) for s in SUITES]
    for name, detector in DETECTORS.items():
        if name == OURS:
            continue
        few = range(max(1, int(seeds * detector.share)))
        jobs += [Made(name, suite, few) for suite in SUITES]
    jobs += [Asked(rate, None) for rate in rates]
    thinned = 4 if small else 1
    jobs += [Real(name, thinned) for name, d in DETECTORS.items() if d.online is not None]
    return [*jobs, Signals()]


def _report(arguments: argparse.Namespace) -> str:
    torch.set_num_threads(1)
    seeds = 1 if arguments.small else arguments.seeds
    results = run_all(_jobs(seeds, small=arguments.small), arguments.processes)
    results.real = {name: results.real[name] for name in DETECTORS if name in results.real}
    folder = arguments.figures or (None if arguments.small else _FIGURES)
    if folder is not None:
        _draw(results, folder)
    return "\n".join(
        [
            "# Abrupt changes caught live",
            "",
            machine(1),
            "",
            _EXPLANATION,
            "",
            *goal_rows(goals_of(results)),
            "",
            *_made_up(results),
            *_recorded(results),
        ]
    )


def _draw(results: Results, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    draw_runs(results.real[OURS], folder / "detection-runs.png")
    if results.told:
        draw_calibration(results.told, folder / "detection-calibration.png")
    print(f"Drawn: {folder / 'detection-*.png'}", file=sys.stderr)


def _made_up(results: Results) -> list[str]:
    lines = []
    for suite in SUITES:
        title = "Slow take-offs" if suite == "slow" else f"Quick rises, {suite}"
        lines += [f"## {title}", "", *made_rows(results, suite), ""]
    lines += ["Where ours misses and alarms falsely:", "", *family_rows(results), ""]
    lines += ["## False alarms asked for", ""]
    if results.told:
        return [*lines, *calibration_rows(results), ""]
    return [*lines, "The detector cannot be asked for a rate of false alarms.", ""]


def _recorded(results: Results) -> list[str]:
    own = results.real[OURS]
    found = spreads(own)
    spread = (
        f"The alarms of a take-off at the four cadences are {statistics.median(found):.1%} of the "
        f"step apart (median of {len(found)} that are caught at all four)."
        if found
        else "No take-off is caught at all four cadences."
    )
    return [
        *("## Recorded runs", "", *real_rows(results), "", spread, ""),
        *(_ABOUT_EACH, "", *run_rows(own), ""),
        *("## Dormant weights, the early signal", ""),
        *(_ABOUT_EARLY, "", *early_rows(results.early), ""),
    ]


if __name__ == "__main__":
    run("detection", "Abrupt changes caught live.", _report, _add_arguments)
