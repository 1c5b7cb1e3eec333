"""Every known fault, done on purpose: what was expected and what came.

python benchmarks/faults.py [--only WORD] [--workers 2] [--save]

runs each case of faulting/ in a process of its own, so that one that hangs or dies is a row like
any other, and prints a table with a line for each and a count for each family.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import faulting
from faulting.case import Case
from reporting import machine, run
from tqdm import tqdm

__all__ = ["Outcome", "all_cases", "carry_out", "table"]

_CHILD = "--carry-out"

#: What has to be nothing, and the families whose cases show it.
_REACH = {
    "Trainer runs ended or hung": ("Trainer runs ended or hung by the callback", "ranks"),
    "models whose training bits differ after a watch": ("what a forward leaves", "device"),
    "due snapshots of the weights left out for an evaluation": ("budget",),
    "watches that see nothing without a word": ("optimizer", "state"),
    "wrong-weights records without a word": (
        *("scope", "reparametrized", "same weights", "not a number"),
        *("series: parts", "series: steps"),
    ),
    "files that end a replay of others": ("hostile files", "formats"),
}


@dataclass(frozen=True)
class Outcome:
    """What came of one case."""

    case: Case
    came: str
    seconds: float

    @property
    def is_expected(self) -> bool:
        """Whether it came as it has to."""
        return self.came == self.case.expected


def all_cases() -> list[tuple[str, int, Case]]:
    """Every case with its module's name and its number in there."""
    names = sorted(module.name for module in pkgutil.iter_modules(faulting.__path__))
    modules = ((name, importlib.import_module(f"faulting.{name}")) for name in names)
    return [
        (name, number, case)
        for name, module in modules
        for number, case in enumerate(getattr(module, "CASES", ()))
    ]


def carry_out(name: str, number: int, case: Case) -> Outcome:
    """Run one case in a process and a folder of its own."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, _CHILD, name, str(number), folder]
        try:
            child = subprocess.run(  # noqa: S603
                command, capture_output=True, text=True, timeout=case.limit_s, check=False
            )
        except subprocess.TimeoutExpired:
            return Outcome(case, f"hung for {case.limit_s:g} s", time.perf_counter() - started)
    last = child.stdout.strip().splitlines()[-1:] or [""]
    try:
        came = str(json.loads(last[0])["came"])
    except (ValueError, KeyError, TypeError):
        tail = child.stderr.strip().splitlines()[-1:] or ["nothing printed"]
        came = f"died with {child.returncode}: {tail[0]}"
    return Outcome(case, came, time.perf_counter() - started)


def table(outcomes: Sequence[Outcome]) -> str:
    """Each case, then how many of each family came as expected, then what is to be reached."""
    rows = ["| family | fault | expected | came | |", "|---|---|---|---|---|"]
    for outcome in outcomes:
        cells = [outcome.case.point, outcome.case.what, outcome.case.expected, outcome.came]
        verdict = "" if outcome.is_expected else "**not as expected**"
        rows.append("| " + " | ".join(_cell(text) for text in [*cells, verdict]) + " |")
    num_cases = Counter(outcome.case.point for outcome in outcomes)
    num_expected = Counter(outcome.case.point for outcome in outcomes if outcome.is_expected)
    rows += ["", "| family | as expected |", "|---|---:|"]
    rows += [f"| {point} | {num_expected[point]} of {n} |" for point, n in num_cases.items()]
    rows += ["", "| to reach: none | cases | not as expected |", "|---|---:|---:|"]
    for what, points in _REACH.items():
        num_all = sum(num_cases[point] for point in points)
        num_good = sum(num_expected[point] for point in points)
        rows.append(f"| {what} | {num_all} | {num_all - num_good} |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|")


def _report(arguments: argparse.Namespace) -> str:
    chosen = [
        (name, number, case)
        for name, number, case in all_cases()
        if arguments.only in f"{name} {case.point} {case.what}"
    ]
    with ThreadPoolExecutor(arguments.workers) as pool:
        done = pool.map(lambda one: carry_out(*one), chosen)
        outcomes = list(tqdm(done, total=len(chosen), desc="faults"))
    return f"# Faults\n\n{machine(arguments.threads)}\n\n{table(outcomes)}\n"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", default="", help="cases with this word in family or fault")
    parser.add_argument("--workers", type=int, default=2, help="cases at a time")


def _child(name: str, number: str, folder: str) -> None:
    case: Case = importlib.import_module(f"faulting.{name}").CASES[int(number)]
    try:
        came = case.run(Path(folder))
    except BaseException as error:  # noqa: BLE001 also a SystemExit is what came
        came = f"{type(error).__name__}: {error}"[:300]
    print(json.dumps({"came": came}), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == [_CHILD]:
        _child(*sys.argv[2:5])
    else:
        run("faults", "Every known fault, done on purpose.", _report, _add_arguments)
