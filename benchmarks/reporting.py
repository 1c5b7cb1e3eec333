"""What all benchmarks share: the machine in one line, the table of goals, the results folder."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import sparsitywatch

__all__ = ["Goal", "commit", "goal_rows", "machine", "medians_s", "run", "timed"]


@dataclass(frozen=True)
class Goal:
    """Something to reach, and what was measured.

    Args:
        what: the ratio that counts.
        reach: the number that it has to reach.
        measured: the number that was measured, in the same unit.
        at_most: whether it has to be at most ``reach``; False: at least.
        unit: written after both numbers.
    """

    what: str
    reach: float
    measured: float
    at_most: bool = True
    unit: str = " x"

    def row(self) -> str:
        """A row of the table."""
        reached = self.measured <= self.reach if self.at_most else self.measured >= self.reach
        sign = "<=" if self.at_most else ">="
        verdict = "reached" if reached else "not reached"
        reach, measured = (f"{x:,.4g}{self.unit}" for x in (self.reach, self.measured))
        return f"| {self.what} | {sign} {reach} | {measured} | {verdict} |"


def goal_rows(goals: Sequence[Goal]) -> list[str]:
    """The table of goals, in Markdown."""
    return ["| goal | reach | measured | |", "|---|---:|---:|---|", *(g.row() for g in goals)]


def timed(run: Callable[[], object]) -> float:
    """Seconds that ``run`` took."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def medians_s(cases: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Medians of interleaved repeats, so that a busy moment hits every case alike."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for run in cases.values():
        run()
    for _ in range(repeats):
        for name, run in cases.items():
            times[name].append(timed(run))
    return {name: statistics.median(found) for name, found in times.items()}


def machine(num_threads: int) -> str:
    """Where and with what the times were taken."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        text = Path("/proc/cpuinfo").read_text()
        cpu = next((x.split(":")[1].strip() for x in text.splitlines() if "model name" in x), cpu)
    num_cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    return (
        f"{cpu}, {num_cores} cores, load {os.getloadavg()[0]:.1f}, {num_threads} threads; "
        f"{platform.system()}, Python {platform.python_version()}, torch {torch.__version__}, "
        f"numpy {np.__version__}, sparsitywatch {sparsitywatch.__version__}; "
        f"{dt.date.today()}, commit {commit()}"
    )


def commit() -> str:
    """The commit that was measured, ``-dirty`` if changed since."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    root = Path(__file__).parent
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)  # noqa: S603
    return found.stdout.strip() or "unknown"


def run(
    name: str,
    description: str,
    report: Callable[[argparse.Namespace], str],
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
) -> None:
    """The command line of a benchmark: measure, print, and keep the table if asked to.

    Args:
        name: of its files in results/.
        description: one line.
        report: gets ``small``, ``repeats`` and ``threads``; returns Markdown.
        add_arguments: adds those that only this benchmark has.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--small", action="store_true", help="a quick run")
    parser.add_argument("--save", action="store_true", help="keep the table in results/")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    if add_arguments is not None:
        add_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    text = report(arguments)
    print(text)
    if arguments.save:
        path = Path(__file__).parent / "results" / f"{name}-{dt.date.today()}.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
