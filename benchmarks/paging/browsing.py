"""The page in a real headless Chromium: the time to open it and to move about, and the bytes."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparsitywatch.cli.pages import server_of

__all__ = ["Opened", "chromium", "opened", "served", "tensorboard", "times_ms", "window"]

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
#: Moves the cursor over the first chart, or zooms by half and back, and waits for the frame that
#: shows it, each time; milliseconds from the event to the end of that frame.
_ACT = """async ([what, times]) => {
  const over = document.querySelector("[data-chart=sparse] .u-over");
  const box = over.getBoundingClientRect();
  const acts = {
    cursor: (i) => over.dispatchEvent(new MouseEvent("mousemove", { bubbles: true,
      clientX: box.left + box.width * ((i * 0.381966) % 1), clientY: box.top + box.height / 2 })),
    zoom: (i) => document.body.dispatchEvent(
      new KeyboardEvent("keydown", { bubbles: true, key: i % 2 ? "0" : "+" })),
  };
  const found = [];
  for (let i = 0; i < times; i += 1) {
    await new Promise((done) => setTimeout(done, 20 + (i % 16)));
    const start = performance.now();
    acts[what](i);
    await window.shown();
    found.push(performance.now() - start);
  }
  return found;
}"""


@dataclass(frozen=True)
class Opened:
    """How one opening went.

    Args:
        tab_s: from navigation until TensorBoard's page asked for the tab; 0 without TensorBoard.
        charts_s: from navigation until the charts were on the screen.
        whole_s: until the map of the tensors was, too.
        sent: bytes of the page's own answers, as they went over the wire.
        rest: bytes of TensorBoard's.
    """

    tab_s: float
    charts_s: float
    whole_s: float
    sent: int
    rest: int


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser.

    Raises:
        RuntimeError: there is none.
    """
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


def opened(page: Any, url: str) -> tuple[Any, Opened]:
    """The frame of the page in a window, and how it opened."""
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
    return frame, Opened(tab_s, charts_s, whole_s, own, sum(sent.values()) - own)


def times_ms(frame: Any, what: str, times: int) -> list[float]:
    """Milliseconds that some acts took, each from the event to the frame that shows it.

    Args:
        frame: of the page.
        what: "cursor" or "zoom".
        times: how often.
    """
    return list(frame.evaluate(_ACT, [what, times]))


@contextmanager
def served(logdir: Path) -> Iterator[str]:
    """The address at which `sparsitywatch show` serves a log, read anew."""
    with server_of(logdir, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextmanager
def tensorboard(logdir: Path) -> Iterator[str]:
    """The address of the tab in a TensorBoard of its own process, once it answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir)]
    process = subprocess.Popen(  # noqa: S603
        [*command, "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _wait_until(lambda: _answers(f"http://127.0.0.1:{port}/data/environment"))
        yield f"http://127.0.0.1:{port}/#sparsity"
    finally:
        process.terminate()
        process.wait(timeout=30)


def _answers(url: str) -> bool:
    # a proxy of the environment must not be asked for the loopback device
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=30) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("TensorBoard does not answer.")
        time.sleep(0.1)
