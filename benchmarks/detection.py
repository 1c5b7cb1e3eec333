"""Abrupt changes caught live: how many, how soon, and how many false alarms.

python benchmarks/detection.py [--small] [--save] [--seeds N] [--ours] [--figures FOLDER]
python benchmarks/detection.py --sensitivity [--save]

scores the library's detector, a naive rule and detectors of other packages on made-up series
(detecting/jumps.py, slow.py) and on the recorded runs (recorded/runs/, proxy/), says how far the
rate of false alarms that was asked for is met, what vital signs say of planted faults and of
trainings that are well, and what all of it costs; and draws every recorded run with its alarms. The
second form halves and doubles each number of the detector, and says what comes out otherwise.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter
from pathlib import Path

import torch
from detecting import kinds
from detecting.breakthroughs import EVERY, left_rows
from detecting.cadences import NUMBERS, cadence_rows, draw_cadences
from detecting.calibration import ASKED
from detecting.figures import draw_calibration, draw_runs
from detecting.goals import goals_of
from detecting.jumps import DIFFICULTIES
from detecting.sensitivity import rows_of
from detecting.tables import (
    calibration_rows,
    early_rows,
    family_rows,
    made_rows,
    onset_rows,
    real_rows,
    run_rows,
    spreads,
    table,
)
from detecting.work import (
    DETECTORS,
    OURS,
    SUITES,
    Asked,
    Bare,
    Costs,
    Grown,
    Job,
    Made,
    Proxied,
    Real,
    Results,
    Signals,
    Zoo,
    run_all,
)
from detecting.zoo import SEED, tried_rows
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
    "**Recorded runs.** Seen every 25, 50, 100 and 200 steps, from each possible first snapshot, "
    "by three rules for near-zero weights. Caught: after the rise begins, and before 2.5 times the "
    "floor or among the first four snapshots that can show it. Even seeds were designed on, odd "
    "ones not. Controls never reach 1.5 times their floor, so that a rule which asks for that "
    "cannot be false on them.\n"
    "\n"
    "**Peers.** River as is: at its defaults. Behind our front end: fed the standardised errors of "
    "a trailing line, parameters tuned on design seeds. All others, and those behind our front, "
    "alarm only at rises of the smallest change that matters."
)

_ABOUT_EACH = (
    "Ours with the whole context, each take-off: caught from so many of the first snapshots, the "
    "step of the alarm and since when it says that the series rises (medians)."
)
_ABOUT_EARLY = (
    "`DormantRise`: step of the alarm, and how long before near-zero weights double. *Dead units*: "
    "transformers with ReLU that take off by weight decay; *smooth*: no unit dies."
)

_ABOUT_GROWTH = (
    "A near-zero fraction that doubles or becomes fourfold over the last 54 % of 300,000 steps, "
    "and one that grows evenly to 2.2 times its floor while decay accounts for it: the step of the "
    "one event, and how far the steps are apart. The true onset, to a snapshot, lies in each "
    "interval; the even one is told as steady."
)


_ABOUT_RATE = (
    "*The rate told*: the series that follow a learning rate, schedule and wsd, are given it, as a "
    "watch would; the others are the same."
)
_ABOUT_ONSETS = (
    "How often the 90 % interval of the onset, in the event of ours that caught the change, holds "
    "the true one: the change began after a snapshot of the interval, and no later than at the one "
    "after its end. An interval is of whole snapshots, so that where one or two do, as on easy "
    "series, it can hold nearly all."
)
_ABOUT_KINDS = (
    "*Made up*: all stable series of the suites. *-like*: series in which nothing happens "
    "(detecting/kinds.py). A rate is met if half to twice as many come; nothing is concluded where "
    "fewer than five are to be expected."
)
_ABOUT_BARE = (
    "Ours from the first snapshot on, without the learning rate. *Estimated clock*: as a replay "
    "that knows no schedule, from how much weights without gradient shrink between two snapshots. "
    "*Decay clock*: the most that such an estimate can tell."
)
_ABOUT_PROXY = (
    "Small BERTs under a watch with a proxy (recorded/proxy/): the step at which essential "
    "sparsity is first said to fall and reliance to rise, and how many snapshots after that at "
    "which the loss is 0.15 below its plateau. Those that never leave it are controls."
)
_ABOUT_ZOO = (
    "Twenty faults on three models with four optimizers, and 35 trainings that only look odd, six "
    f"of each, with seed {SEED} (tests/contracts/fault_zoo.py, healthy_zoo.py): a fault has to be "
    "named within two snapshots, and of what is well nothing may be said."
)
#: Of series in which nothing happens: the first seed, and how many for each rate that is asked for;
#: five false alarms are to be expected at least.
_FIRST_OF_KINDS, _OF_KINDS = 2000, {0.1: 300, 1.0: 75, 3.0: 75}
#: What is told of the context of recorded runs.
_TOLD: dict[tuple[str, ...], str] = {
    (): "ours, nothing told",
    ("estimated_advance",): "ours, the estimated clock alone",
    ("decay_clock",): "ours, the decay clock alone",
}


def _sensitivity(arguments: argparse.Namespace) -> str:
    rows, number = rows_of(
        longest=50 if arguments.small else 100,
        tell=lambda row: print(row, file=sys.stderr, flush=True),
    )
    kinds = Counter(row[2] for row in rows)
    about = (
        f"Each number halved and doubled: what {number} series of design seeds and recorded design "
        "runs show otherwise: in how many of them alarms come at other snapshots or not at all "
        "(*alarms*), in how many only onsets, intervals, noise or suspicions are others (*told*), "
        "and how many more changes are missed or alarms false. A definition stays as it is, a grid "
        "is scaled as a whole. Of each kind: "
        + ", ".join(f"{kinds[kind]} {kind}" for kind in sorted(kinds))
        + "."
    )
    head = ["number", "is", "kind", "what it is", "halved", "doubled"]
    return "\n".join(["# The detectors' numbers", "", about, "", *table(head, rows, left=6), ""])


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=10, help="in each of two blocks")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--ours", action="store_true", help="no other detectors")
    parser.add_argument("--sensitivity", action="store_true", help="each number halved and doubled")
    parser.add_argument(
        "--figures", type=Path, help="folder of the figures; results/, unless --small"
    )


def _jobs(seeds: int, *, small: bool, alone: bool) -> list[Job]:
    """The longest ones first."""
    jobs: list[Job] = [Grown()]
    detectors = {OURS: DETECTORS[OURS]} if alone else DETECTORS
    rates = ASKED[:3:2] if small else ASKED
    jobs += [Asked(rate, range(seeds)) for rate in rates]
    blocks = [range(i * seeds, (i + 1) * seeds) for i in (0, 1)]
    jobs += [Made(OURS, suite, block) for block in blocks for suite in SUITES]
    for rate, number in _OF_KINDS.items():
        quiet = range(_FIRST_OF_KINDS, _FIRST_OF_KINDS + (1 if small else number))
        jobs += [Asked(rate, quiet, kind) for kind in kinds.KINDS]
    for name, detector in detectors.items():
        if name == OURS:
            continue
        few = range(max(1, int(seeds * detector.share)))
        jobs += [Made(name, suite, few) for suite in SUITES]
    jobs += [Asked(rate, None) for rate in rates]
    thinned = 4 if small else 1
    jobs += [Real(name, thinned) for name, d in detectors.items() if d.online is not None]
    jobs += [Zoo("well", 12 if small else 1), Zoo("planted", 6 if small else 1)]
    jobs += [Made(OURS, s, block, rate_is_told=True) for block in blocks for s in DIFFICULTIES]
    jobs += [Bare(told, thinned) for told in _TOLD]
    return [*jobs, Costs(2 if small else 12), Proxied(), Signals()]


def _report(arguments: argparse.Namespace) -> str:
    torch.set_num_threads(1)
    seeds = 1 if arguments.small else arguments.seeds
    results = run_all(
        _jobs(seeds, small=arguments.small, alone=arguments.ours), arguments.processes
    )
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
            *_grown(results),
            *_recorded(results),
            *_with_proxy(results),
            *_vital_signs(results),
        ]
    )


def _draw(results: Results, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    draw_runs(results.real[OURS], folder / "detection-runs.png")
    if results.told:
        draw_calibration(results.told, folder / "detection-calibration.png")
    if results.grown:
        draw_cadences(results.grown, folder / "detection-cadences.png")
    print(f"Drawn: {folder / 'detection-*.png'}", file=sys.stderr)


def _made_up(results: Results) -> list[str]:
    lines = []
    for suite in SUITES:
        title = "Slow take-offs" if suite == "slow" else f"Quick rises, {suite}"
        lines += [f"## {title}", "", *made_rows(results, suite), ""]
    lines += ["Where ours misses and alarms falsely:", "", *family_rows(results), ""]
    lines += [_ABOUT_RATE, ""]
    lines += ["## Onset intervals", "", _ABOUT_ONSETS, "", *onset_rows(results), ""]
    lines += ["## False alarms asked for", "", _ABOUT_KINDS, ""]
    if results.told:
        return [*lines, *calibration_rows(results), ""]
    return [*lines, "The detector cannot be asked for a rate of false alarms.", ""]


def _grown(results: Results) -> list[str]:
    head = ["growth", *(f"{number:,} snapshots" for number in NUMBERS), "apart"]
    rows = cadence_rows(results.grown)
    return ["## Growth at any cadence", "", _ABOUT_GROWTH, "", *table(head, rows), ""]


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
        *("## Recorded runs", "", *real_rows(results.real), "", spread, ""),
        *(_ABOUT_BARE, "", *real_rows({_TOLD[told]: x for told, x in results.bare.items()}), ""),
        *(_ABOUT_EACH, "", *run_rows(own), ""),
        *("## Dormant weights, the early signal", ""),
        *(_ABOUT_EARLY, "", *early_rows(results.early), ""),
    ]


def _with_proxy(results: Results) -> list[str]:
    head = ["run", "split", "leaves its plateau"]
    head += [f"{what} every {every}" for what in ("falls,", "reliance rises,") for every in EVERY]
    rows = table(head, left_rows(results.left), left=2)
    return ["## Essential sparsity and reliance", "", _ABOUT_PROXY, "", *rows, ""]


def _vital_signs(results: Results) -> list[str]:
    head = ["what", "trainings", "as they should", "others"]
    lines = ["## Vital signs", "", _ABOUT_ZOO, "", *table(head, tried_rows(results.tried)), ""]
    cost = results.cost
    if cost is None:
        return lines
    text = (
        f"A snapshot of the weights of a BERT of {cost.num_layers} layers takes "
        f"{1e3 * cost.bare:.0f} ms of one thread without vital signs and detectors, and "
        f"{1e3 * cost.more:.1f} ms more with both (medians, in turns; the weights drift). One "
        f"detector takes {1e3 * cost.detection:.1f} ms of a snapshot of a made-up series. Measured "
        "last, with nothing beside it."
    )
    return [*lines, text, ""]


if __name__ == "__main__":
    if "--sensitivity" in sys.argv:
        run("detection-numbers", "What each number decides.", _sensitivity, _add_arguments)
    else:
        run("detection", "Abrupt changes caught live.", _report, _add_arguments)
