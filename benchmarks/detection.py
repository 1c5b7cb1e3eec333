"""Abrupt changes caught live: how many, how soon, and how many false alarms.

python benchmarks/detection.py [--small] [--save] [--seeds N] [--ours] [--figures FOLDER]
python benchmarks/detection.py --sensitivity [--save]

scores the library's detector, a naive rule and detectors of other packages on made-up series and on
the recorded runs (recorded/runs/, proxy/), says how far the rate of false alarms that was asked for
is met, what vital signs say of planted faults and of trainings that are well, and what all of it
costs; and draws every recorded run with its alarms. Each section is a module of detecting/, whose
docstring stands in the page. The second form halves and doubles each number of the detector, and
says what comes out otherwise.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import torch
from detecting import breakthroughs, cadences, calibration, cost, early, made_up, takeoffs, zoo
from detecting.figures import draw_runs
from detecting.sensitivity import rows_of
from detecting.work import Plan, Results, run_all
from reporting import HERE, Part, run, table

#: Each has a title, jobs, and of their results lines and goals.
SECTIONS = (takeoffs, early, breakthroughs, cadences, made_up, calibration, zoo, cost)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, default=10, help="in each of two blocks")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--ours", action="store_true", help="no other detectors")
    parser.add_argument("--sensitivity", action="store_true", help="each number halved and doubled")
    parser.add_argument(
        "--figures", type=Path, help="folder of the figures; results/, unless --small"
    )


def _report(arguments: argparse.Namespace) -> tuple[str, list[Part]]:
    torch.set_num_threads(1)
    plan = Plan(1 if arguments.small else arguments.seeds, arguments.small, arguments.ours)
    jobs = [job for section in SECTIONS for job in section.jobs(plan)]
    results = run_all(jobs, arguments.processes)
    folder = arguments.figures or (None if arguments.small else HERE / "results")
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        draw_runs(takeoffs.of_ours(results), folder / "detection-runs.png")
        cadences.draw(results, folder)
    return "Abrupt changes caught live", parts_of(results)


def parts_of(results: Results) -> list[Part]:
    """A part for each section: what it is about, its lines and its goals."""
    parts: list[Part] = []
    for section in SECTIONS:
        about = (section.__doc__ or "").strip()
        lines = [f"## {section.TITLE}", "", about, "", *section.lines(results)]
        parts.append((lines, section.goals(results)))
    return parts


def _sensitivity(arguments: argparse.Namespace) -> tuple[str, list[Part]]:
    rows, number = rows_of(longest=50 if arguments.small else 100)
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
    return "The detectors' numbers", [([about, "", *table(head, rows, left=6)], [])]


if __name__ == "__main__":
    if "--sensitivity" in sys.argv:
        run("detection-numbers", "What each number decides.", _sensitivity, _add_arguments)
    else:
        run("detection", "Abrupt changes caught live.", _report, _add_arguments)
