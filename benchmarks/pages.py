"""The page: the time to open it, to write it as a file, and the bytes of both.

python benchmarks/pages.py [--small] [--save] [--repeats N]

Opening is wall time from navigation until the charts are on the screen, in a headless Chromium
with an empty cache, of 2,000 snapshots of 200 tensors. The browser itself tells it, in a window
that has been open for two seconds. A cold server has just started, and begins to read the log as it
does so: what it has not read by the navigation is in the time. Of TensorBoard its own page is in
the time, and stands apart: until it asks for the tab, and in the bytes. A report is the whole
command, from the start of Python to the file on the disk.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from reporting import Goal, Part, run, shared_with_tests, table, timed

Serve = Callable[[Path], AbstractContextManager[str]]

write_long_run = shared_with_tests("fake_run").write_long_run
servers = shared_with_tests("event_readers")
SERVERS: dict[str, Serve] = {
    "`sparsitywatch show`": servers.page_server,
    "tab in TensorBoard": servers.tab_server,
}
#: Of a report: snapshots, tensors, and what its file may have, MB.
REPORTS = ((80, 24, 0.25), (200, 200, 0.4), (2_000, 12, 0.5))


# ------------------------------------------------------------------ in the browser

SCREEN = {"width": 1400, "height": 900}
#: Chromium loads pages of its own for a new window, for about a second: it is open before.
_SETTLE_S = 2.0
#: Goes into every frame: a wait until the next picture is on the screen, and, in that of the page,
#: milliseconds since the epoch at which something was.
_WATCH = """
window.shown = () => new Promise((done) => requestAnimationFrame(() => {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = done;
  port2.postMessage(0);
}));
const seen = (name, selector) => new MutationObserver(async (_, observer) => {
  if (!document.querySelector(selector)) return;
  observer.disconnect();
  await window.shown();
  window.opening[name] = performance.timeOrigin + performance.now();
}).observe(document, { childList: true, subtree: true });
if (window !== window.top || location.hash !== "#sparsity") { // not TensorBoard's own page
  window.opening = {};
  seen("charts", ".chart canvas");
  seen("whole", ".heat .names li");
}"""
#: In the window: when its navigation began, and when TensorBoard asked for the tab.
_BEGAN = """() => {
  const asked = performance.getEntriesByType("resource");
  const tab = asked.find((entry) => entry.name.includes("/plugin_entry.html"));
  return [performance.timeOrigin, performance.timeOrigin + (tab?.startTime ?? 0)];
}"""


@dataclass(frozen=True)
class Opened:
    """How one opening went."""

    # from navigation until TensorBoard's page asked for the tab; 0 without TensorBoard
    tab_s: float
    # until the charts were on the screen, and until the map of the tensors was, too
    charts_s: float
    whole_s: float
    # bytes of the page's own answers, as they went over the wire, and of TensorBoard's
    sent: int
    rest: int


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        raise RuntimeError(f"Expected one of the commands {', '.join(names)}, found none.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def window(browser: Any) -> Iterator[Any]:
    """A window of its own, whose cache is empty, and in which Chromium itself has nothing to do."""
    context = browser.new_context(viewport=SCREEN)
    page = context.new_page()
    page.add_init_script(_WATCH)
    time.sleep(_SETTLE_S)
    yield page
    context.close()


def opened(page: Any, url: str) -> Opened:
    """How the page opened in a window."""
    done: list[Any] = []
    page.on("requestfinished", lambda request: done.append(request))
    page.goto(url, wait_until="commit")
    frame = page
    if url.endswith("#sparsity"):
        frame = page.wait_for_selector("iframe", state="attached").content_frame()
    frame.wait_for_function("window.opening?.whole", timeout=60_000)
    times_ms = frame.evaluate("window.opening")
    start_ms, tab_ms = page.evaluate(_BEGAN)
    tab_s, charts_s, whole_s = (
        (ms - start_ms) / 1e3 for ms in (tab_ms, times_ms["charts"], times_ms["whole"])
    )
    page.wait_for_load_state("networkidle")
    sent = {request: request.sizes()["responseBodySize"] for request in done}
    own = sum(n for r, n in sent.items() if frame is page or "/plugin/sparsity/" in r.url)
    return Opened(tab_s, charts_s, whole_s, own, sum(sent.values()) - own)


# ------------------------------------------------------------------ what is measured


def openings(browser: Any, serve: Serve, log: Path, repeats: int) -> dict[str, list[Opened]]:
    """Openings at a server that was just started, and at one that has answered before."""
    found: dict[str, list[Opened]] = {"cold": [], "warm": []}
    for _ in range(max(repeats // 3, 1)):
        with window(browser) as first, serve(log) as url:
            found["cold"].append(opened(first, url))
            first.close()
            for _ in range(3):
                with window(browser) as page:
                    found["warm"].append(opened(page, url))
    return found


def opening_part(browser: Any, log: Path, repeats: int) -> Part:
    """The time to open the page, and what was sent for it."""
    rows, goals = [], []
    for name, serve in SERVERS.items():
        for state, found in openings(browser, serve, log, repeats).items():
            charts = [o.charts_s for o in found]
            times = [
                statistics.median(o.tab_s for o in found),
                statistics.median(o.charts_s - o.tab_s for o in found),
                statistics.median(charts),
                max(charts),
                statistics.median(o.whole_s for o in found),
            ]
            sent = [max(getattr(o, x) for o in found) / 1e6 for x in ("sent", "rest")]
            rows.append([f"{name}, {state} server", *(f"{x:.2f}" for x in (*times, *sent))])
            what = f"{name}, {state} server: charts"
            goals.append(Goal(what, 1.5, times[2], unit=" s"))
        goals.append(Goal(f"{name}: sent", 2.0, sent[0], unit=" MB"))
    head = ["opening", "until the tab, s", "in the tab, s", "charts, s", "worst"]
    return table([*head, "with the map, s", "sent, MB", "TensorBoard's own"], rows), goals


def reports_part(folder: Path, repeats: int) -> Part:
    """The time that the command takes, and the size of its file."""
    rows, goals = [], []
    script = Path(sys.executable).with_name("sparsitywatch")
    path = folder / "report.html"
    for num_snapshots, num_tensors, most_mb in REPORTS:
        name = f"{num_snapshots:,} snapshots of {num_tensors} tensors"
        log = write_long_run(folder / str(num_snapshots), num_snapshots, num_tensors)
        command = [str(script), "report", str(log), "-o", str(path)]
        report = partial(subprocess.run, command, check=True, capture_output=True)
        wall_s = statistics.median(timed(report) for _ in range(max(repeats // 3, 1)))
        size_mb = path.stat().st_size / 1e6
        rows.append([name, f"{wall_s:.2f}", f"{size_mb:.2f}"])
        goals.append(Goal(f"report of {name}, size", most_mb, size_mb, unit=" MB"))
        goals.append(Goal(f"report of {name}, time", 1.5, wall_s, unit=" s"))
    return table(["report", "s", "MB"], rows), goals


def measure(arguments: argparse.Namespace) -> tuple[str, list[Part]]:
    """All of it."""
    shape, repeats = ((200, 50), 1) if arguments.small else ((2_000, 200), arguments.repeats)
    with tempfile.TemporaryDirectory() as place, chromium() as browser:
        log = write_long_run(Path(place) / "long", *shape)
        return f"The page of {shape[0]:,} snapshots of {shape[1]} tensors", [
            opening_part(browser, log, repeats),
            reports_part(Path(place), repeats),
        ]


if __name__ == "__main__":
    run("pages", __doc__, measure)
