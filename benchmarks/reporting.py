"""What all benchmarks share: repeats and medians, peak memory, tables, goals, the machine."""

from __future__ import annotations

import argparse
import datetime as dt
import importlib
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

import sparsitywatch

HERE = Path(__file__).resolve().parent
K = TypeVar("K")


@dataclass(frozen=True)
class Goal:
    """Something to reach, and what was measured."""

    what: str
    reach: float
    measured: float
    # whether it has to be at most ``reach``; False: at least
    at_most: bool = True
    unit: str = " x"

    def row(self) -> list[str]:
        """Its cells."""
        reached = self.measured <= self.reach if self.at_most else self.measured >= self.reach
        sign = "<=" if self.at_most else ">="
        reach, measured = (f"{x:,.4g}{self.unit}" for x in (self.reach, self.measured))
        return [self.what, f"{sign} {reach}", measured, "reached" if reached else "not reached"]


#: Lines in Markdown, and what is to be reached there.
Part = tuple[list[str], list[Goal]]


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of a table, the first ``left`` columns text, with an empty one after it."""
    rule = f"|{'---|' * left}{'---:|' * (len(head) - left)}"
    return [f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(row)} |" for row in rows), ""]


def page(title: str, parts: Iterable[Part], machine: str) -> str:
    """All parts, and then the table of what is to be reached."""
    parts = list(parts)
    lines = [f"# {title}", "", machine, ""]
    for of_part, _ in parts:
        lines += [*of_part, ""]
    goals = [goal.row() for _, found in parts for goal in found]
    lines += table(["goal", "reach", "measured", ""], goals) if goals else []
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


def shared_with_tests(name: str) -> Any:
    """A module of tests/contracts/."""
    tests = str(HERE.parent / "tests")
    if tests not in sys.path:
        sys.path.append(tests)
    return importlib.import_module(f"contracts.{name}")


def timed(run: Callable[[], object]) -> float:
    """Seconds that ``run`` took."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def medians_s(cases: Mapping[K, Callable[[], object]], repeats: int) -> dict[K, float]:
    """Medians of interleaved repeats, so that a busy moment hits every case alike."""
    times: dict[K, list[float]] = {name: [] for name in cases}
    for run in cases.values():
        run()
    for _ in range(repeats):
        for name, run in cases.items():
            times[name].append(timed(run))
    return {name: statistics.median(found) for name, found in times.items()}


def forget_peak() -> int:
    """Resident bytes now; where Linux allows it, the peak starts again from here."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return peak_bytes()  # elsewhere: the peak so far, which the weights dominate
    return _status_bytes("VmRSS")


def peak_bytes() -> int:
    """The most resident bytes of this process so far."""
    if sys.platform == "linux":
        return _status_bytes("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status_bytes(field: str) -> int:
    """A field of this process's status on Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"Expected {field} in /proc/self/status.")


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
        f"numpy {np.__version__}, {version()}"
    )


def version() -> str:
    """Of the library, with the day and the commit, ``-dirty`` if changed since."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    found = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)  # noqa: S603
    commit = found.stdout.strip() or "unknown"
    return f"sparsitywatch {sparsitywatch.__version__}; {dt.date.today()}, commit {commit}"


def run(
    name: str,
    description: str,
    measure: Callable[[argparse.Namespace], tuple[str, list[Part]]],
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
    *,
    is_timed: bool = True,
) -> None:
    """The command line of a benchmark: measure, print, and keep the page if asked to.

    Args:
        name: of its files in results/.
        description: one line.
        measure: gets ``small``, ``repeats`` and ``threads``; returns a title and the parts.
        add_arguments: adds those that only this benchmark has.
        is_timed: names the machine; False: only the version, since no machine matters.
    """
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="a quick run")
    parser.add_argument("--save", action="store_true", help="keep the table in results/")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    if add_arguments is not None:
        add_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    title, parts = measure(arguments)
    text = page(title, parts, machine(arguments.threads) if is_timed else version())
    print(text)
    if arguments.save:
        (HERE / "results" / f"{name}-{dt.date.today()}.md").write_text(text)
