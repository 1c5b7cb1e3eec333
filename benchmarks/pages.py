"""The page: the time to open it, to move about in it, to write it as a file, and the bytes of it.

python benchmarks/pages.py [--small] [--save] [--repeats N]

Opening is wall time from navigation until the charts are on the screen, in a headless Chromium
with an empty cache, of 2,000 snapshots of 200 tensors. The browser itself tells it, in a window
that has been open for two seconds. A cold server has just started, and begins to read the log as it
does so: what it has not read by the navigation is in the time. Of TensorBoard its own page is in
the time, and stands apart: until it asks for the tab, and in the bytes. An act takes from its event
to the end of the frame that shows it, so up to 17 ms of waiting for a frame are in it. A report is
the whole command, from the start of Python to the file on the disk.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from paging.browsing import Opened, chromium, opened, served, tensorboard, times_ms, window
from paging.logs import write_log
from reporting import Goal, goal_rows, machine, run, timed

Rows = tuple[list[str], list[Goal]]
Serve = Callable[[Path], AbstractContextManager[str]]

NUM_ACTS = 60
#: Of a report: snapshots, tensors, and what its file may have, MB.
REPORTS = ((80, 24, 0.25), (200, 200, 0.4), (2_000, 12, 0.5))


def openings(browser: Any, serve: Serve, log: Path, repeats: int) -> dict[str, list[Opened]]:
    """Openings at a server that was just started, and at one that has answered before."""
    found: dict[str, list[Opened]] = {"cold": [], "warm": []}
    for _ in range(max(repeats // 3, 1)):
        with window(browser) as first, serve(log) as url:
            found["cold"].append(opened(first, url)[1])
            first.close()
            for _ in range(3):
                with window(browser) as page:
                    found["warm"].append(opened(page, url)[1])
    return found


def opening_table(browser: Any, log: Path, repeats: int) -> Rows:
    """The time to open the page, and what was sent for it."""
    columns = ("opening", "until the tab, s", "in the tab, s", "charts, s", "worst",
               "with the map, s", "sent, MB", "TensorBoard's own")  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) - 1)]
    goals = []
    for name, serve in (("`sparsitywatch show`", served), ("tab in TensorBoard", tensorboard)):
        for state, all_ in openings(browser, serve, log, repeats).items():
            tab, charts, whole = (
                [getattr(o, f"{x}_s") for o in all_] for x in ("tab", "charts", "whole")
            )
            inside = [c - t for c, t in zip(charts, tab, strict=True)]
            sent, rest = (max(getattr(o, x) for o in all_) / 1e6 for x in ("sent", "rest"))
            lines.append(
                f"| {name}, {state} server | {statistics.median(tab):.2f} "
                f"| {statistics.median(inside):.2f} "
                f"| {statistics.median(charts):.2f} | {max(charts):.2f} "
                f"| {statistics.median(whole):.2f} | {sent:.2f} | {rest:.2f} |"
            )
            what = f"{name}, {state} server: charts"
            goals.append(Goal(what, 1.5, statistics.median(charts), unit=" s"))
        goals.append(Goal(f"{name}: sent", 2.0, sent, unit=" MB"))
    return lines, goals


def acting_table(browser: Any, log: Path, num_acts: int) -> Rows:
    """The time from an act to the frame that shows it."""
    lines, goals = ["| act | median, ms | 95 %, ms |", "|---|---:|---:|"], []
    with served(log) as url, window(browser) as page:
        frame, _ = opened(page, url)
        for what in ("cursor", "zoom"):
            times = times_ms(frame, what, num_acts)
            median, late = statistics.median(times), statistics.quantiles(times, n=20)[-1]
            lines.append(f"| {what} | {median:.1f} | {late:.1f} |")
            goals.append(Goal(f"{what}, median", 25.0, median, unit=" ms"))
            goals.append(Goal(f"{what}, 95 %", 60.0, late, unit=" ms"))
    return lines, goals


def reports_table(folder: Path, repeats: int) -> Rows:
    """The time that the command takes, and the size of its file."""
    lines, goals = ["| report | s | MB |", "|---|---:|---:|"], []
    for num_snapshots, num_tensors, most_mb in REPORTS:
        name = f"{num_snapshots:,} snapshots of {num_tensors} tensors"
        log = write_log(folder / str(num_snapshots), num_snapshots, num_tensors)
        path = folder / "report.html"
        script = Path(sys.executable).with_name("sparsitywatch")
        command = [str(script), "report", str(log), "-o", str(path)]

        def report(command: list[str] = command) -> None:
            subprocess.run(command, check=True, capture_output=True)  # noqa: S603

        wall_s = statistics.median(timed(report) for _ in range(max(repeats // 3, 1)))
        size_mb = path.stat().st_size / 1e6
        lines.append(f"| {name} | {wall_s:.2f} | {size_mb:.2f} |")
        goals.append(Goal(f"report of {name}, size", most_mb, size_mb, unit=" MB"))
        goals.append(Goal(f"report of {name}, time", 1.5, wall_s, unit=" s"))
    return lines, goals


def whole_report(arguments: argparse.Namespace) -> str:
    """All tables, in Markdown."""
    shape, repeats = ((200, 50), 1) if arguments.small else ((2_000, 200), arguments.repeats)
    with tempfile.TemporaryDirectory() as place, chromium() as browser:
        log = write_log(Path(place) / "long", *shape)
        tables = [
            opening_table(browser, log, repeats),
            acting_table(browser, log, NUM_ACTS),
            reports_table(Path(place), repeats),
        ]
    title = f"# The page of {shape[0]:,} snapshots of {shape[1]} tensors"
    lines = [title, "", machine(arguments.threads)]
    lines += [line for table, _ in tables for line in ["", *table]]
    return "\n".join([*lines, "", *goal_rows([g for _, goals in tables for g in goals])]) + "\n"


if __name__ == "__main__":
    run("pages", (__doc__ or "").splitlines()[0], whole_report)
